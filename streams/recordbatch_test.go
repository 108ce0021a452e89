package streams

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	kcompress "github.com/segmentio/kafka-go/compress"
)

const someMillis = 1_700_000_000_000

func someMessages() []message {
	return []message{
		{offset: 0, millis: someMillis, value: []byte("one"), headers: []header{{"a", []byte("1")}, {"b", nil}}},
		{offset: 1, millis: someMillis, key: []byte("k"), value: bytes.Repeat([]byte("x"), 1000)},
		{offset: 2, millis: someMillis},
	}
}

func someBatch() []byte {
	b := appendBatch(nil, someMessages())
	stamp(b, someMillis, 42, 1, 7)
	return b
}

func TestRecordBatchComesBack(t *testing.T) {
	raw := someBatch()
	v, rest, err := cutBatch(append(raw, "next"...))
	if err != nil || string(rest) != "next" {
		t.Fatal(err, rest)
	}
	if v.base != 0 || v.last != 2 || v.producerID != 42 || v.checksum() != nil {
		t.Fatalf("%+v: %v", v, v.checksum())
	}
	got, err := v.messages(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(someMessages(), got, cmp.AllowUnexported(message{}, header{})); d != "" {
		t.Error(d)
	}
}

// TestCompressedRecordBatch: brokers may be set to compress what they store, in Kafka's way.
func TestCompressedRecordBatch(t *testing.T) {
	plain := someBatch()
	for kind := 1; kind <= 4; kind++ {
		codec := kcompress.Codecs[kind]
		var packed bytes.Buffer
		w := codec.NewWriter(&packed)
		if _, err := w.Write(plain[batchHeaderBytes:]); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		b := append(bytes.Clone(plain[:batchHeaderBytes]), packed.Bytes()...)
		b[22] = byte(kind)
		b[8], b[9], b[10], b[11] = 0, 0, byte((len(b)-12)>>8), byte(len(b)-12)
		v, _, err := cutBatch(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.messages(1 << 20)
		if err != nil {
			t.Fatalf("%s: %v", codec.Name(), err)
		}
		if d := cmp.Diff(someMessages(), got, cmp.AllowUnexported(message{}, header{})); d != "" {
			t.Errorf("%s: %s", codec.Name(), d)
		}
		if _, err := v.messages(100); err == nil {
			t.Errorf("%s: more than the limit came out", codec.Name())
		}
	}
}

func TestRecordBatchDamage(t *testing.T) {
	raw := someBatch()
	for i := 21; i < len(raw); i++ {
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		if v, _, err := cutBatch(bad); err == nil && v.checksum() == nil {
			t.Fatalf("byte %d changed, and nobody saw it", i)
		}
	}
	for n := range raw {
		if _, _, err := cutBatch(raw[:n]); err == nil {
			t.Fatalf("%d of %d bytes were taken for the whole", n, len(raw))
		}
	}
	old := bytes.Clone(raw)
	old[16] = 1
	if _, _, err := cutBatch(old); err == nil || !strings.Contains(err.Error(), "format 1") {
		t.Errorf("old format: %v", err)
	}
}

func TestVarintBytes(t *testing.T) {
	for _, v := range []int64{0, 1, -1, 63, 64, -64, -65, 1 << 20, -1 << 62, 1<<63 - 1} {
		if got, want := varintBytes(v), len(binary.AppendVarint(nil, v)); got != want {
			t.Errorf("varintBytes(%d) = %d; want %d", v, got, want)
		}
	}
}

func FuzzRecordBatch(f *testing.F) {
	f.Add(someBatch())
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			v, rest, err := cutBatch(b)
			if err != nil {
				return
			}
			b = rest
			if v.attributes&attrControl != 0 {
				_, _ = v.aborts()
				continue
			}
			msgs, err := v.messages(1 << 16)
			if err != nil {
				continue
			}
			for _, m := range msgs {
				_, _ = parseHeaders(m.headers)
			}
		}
	})
}

func FuzzResponses(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0, 0, 0, 1}, 40))
	f.Add(bytes.Repeat([]byte{0xff}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseFetch(b)
		for _, parse := range []func(*parser){
			func(p *parser) { parseMetadata(p) }, func(p *parser) { parseProduce(p) }, func(p *parser) { parseListOffsets(p) },
		} {
			parse(&parser{b: b})
		}
	})
}
