package streams

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearthline/flow"
)

func someEnvelope() envelope {
	return envelope{
		batch: flow.Batch{
			Kind: flow.KindRows,
			Lineage: flow.Lineage{
				Source:   flow.Source{Producer: "features", Stream: "readings", Partition: 7},
				Position: flow.Position{Offset: 1<<40 + 5, K: 3},
			},
			Bounds:    flow.Bounds{First: 1_700_000_000_000_000, Last: 1_700_000_001_000_000},
			Watermark: 1_700_000_002_000_000,
		},
		print: fingerprint{1, 2, 3, 4, 5, 6, 7, 8},
		codec: codecLZ4,
		rows:  8192,
		size:  436_000,
	}
}

func TestHeadersComeBack(t *testing.T) {
	rows := someEnvelope()
	gateway := someEnvelope()
	gateway.batch.Lineage.Source = flow.Source{Producer: "gateway/1", Partition: 2}
	beat := envelope{batch: rows.batch}
	beat.batch.Kind, beat.batch.Bounds = flow.KindHeartbeat, flow.Bounds{}
	end := envelope{batch: beat.batch}
	end.batch.Kind, end.batch.Run, end.batch.Watermark = flow.KindEnd, "run-1", flow.EndOfTime
	for _, want := range []envelope{rows, gateway, beat, end} {
		headers := appendHeaders(nil, &want)
		// Other tools may add theirs, and order is nobody's promise.
		headers = append([]header{headers[len(headers)-1], {"traceparent", []byte("00-…")}}, headers[:len(headers)-1]...)
		got, err := parseHeaders(headers)
		if err != nil {
			t.Fatalf("%v: %v", want.batch.Kind, err)
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(envelope{})); d != "" {
			t.Errorf("%v: %s", want.batch.Kind, d)
		}
	}
}

// TestHeadersOnTheWire holds the bytes fast: what is on disk must stay readable.
func TestHeadersOnTheWire(t *testing.T) {
	e := someEnvelope()
	want := []string{
		"hl.kind 0100",
		"hl.producer 6665617475726573",
		"hl.stream 72656164696e6773",
		"hl.at 00000007000001000000000500000003",
		"hl.time 00060a24183cc48000060a24181e400000060a24182d8240",
		"hl.schema 0102030405060708",
		"hl.body 01000020000006a720",
	}
	var got []string
	for _, h := range appendHeaders(nil, &e) {
		got = append(got, h.key+" "+hex.EncodeToString(h.value))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestHeadersRefused(t *testing.T) {
	edit := func(key string, value []byte) func([]header) []header {
		return func(hs []header) []header {
			for i := range hs {
				if hs[i].key == key {
					hs[i].value = value
				}
			}
			return hs
		}
	}
	drop := func(key string) func([]header) []header {
		return func(hs []header) []header {
			var out []header
			for _, h := range hs {
				if h.key != key {
					out = append(out, h)
				}
			}
			return out
		}
	}
	for _, c := range []struct {
		name string
		edit func([]header) []header
		want string
	}{
		{"foreign", drop(headerKind), "no batch"},
		{"nothing", func([]header) []header { return nil }, "no batch"},
		{"newer format", edit(headerKind, []byte{2, 0}), "newer version"},
		{"no format", edit(headerKind, []byte{99, 0}), "wire format 99"},
		{"unknown kind", edit(headerKind, []byte{1, 3}), "kind 3"},
		{"short kind", edit(headerKind, []byte{1}), "1 bytes; want 2"},
		{"rows on a heartbeat", edit(headerKind, []byte{1, 1}), "without rows"},
		{"no producer", edit(headerProducer, nil), "producer"},
		{"producer gone", drop(headerProducer), "hl.producer is missing"},
		{"not UTF-8", edit(headerProducer, []byte{0xff}), "UTF-8"},
		{"long producer", edit(headerProducer, bytes.Repeat([]byte("x"), 256)), "at most 255"},
		{"no place", drop(headerAt), "hl.at is missing"},
		{"negative partition", edit(headerAt, bytes.Repeat([]byte{0xff}, 16)), "below zero"},
		{"no times", drop(headerTime), "hl.time is missing"},
		{"bounds reversed", edit(headerTime, append(make([]byte, 15), 1, 0, 0, 0, 0, 0, 0, 0, 0)), "after the last"},
		{"no schema", drop(headerSchema), "hl.schema is missing"},
		{"no body", drop(headerBody), "hl.body is missing"},
		{"negative rows", edit(headerBody, []byte{0, 0xff, 0, 0, 0, 0, 0, 0, 0}), "below zero"},
		{"twice", func(hs []header) []header { return append(hs, hs[0]) }, "twice"},
	} {
		e := someEnvelope()
		_, err := parseHeaders(c.edit(appendHeaders(nil, &e)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	e := someEnvelope()
	for _, h := range appendHeaders(nil, &e) {
		f.Add(h.key, h.value, uint8(0))
	}
	f.Add(headerRun, []byte("run"), uint8(2))
	f.Fuzz(func(t *testing.T, key string, value []byte, kind uint8) {
		e := someEnvelope()
		e.batch.Kind = flow.Kind(kind % 3)
		hs := appendHeaders(nil, &e)
		for i := range hs {
			if hs[i].key == key {
				hs[i].value = value
			}
		}
		got, err := parseHeaders(hs)
		if err != nil {
			return
		}
		again, err := parseHeaders(appendHeaders(nil, &got))
		if err != nil || again != got {
			t.Fatalf("%+v became %+v: %v", got, again, err)
		}
	})
}
