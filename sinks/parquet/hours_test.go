package parquet

import (
	"slices"
	"testing"

	"hearthline/flow"
)

func FuzzParseName(f *testing.F) {
	good := flow.Range{Stream: "a-b", StreamID: "x-1", Partition: 3, First: 10, Last: 1 << 60}
	f.Add("a-b", objectName(good, 500_000))
	f.Add("a-b", "a-b/dt=2026-11-22/hour=18/a-b-x-1-03-10-11.parquet")
	f.Add("a-b", "a-b/dt=2026-11-22/hour=18/a-b-x--1-10-11.parquet")
	f.Add("a", "a/dt=2026-1-2/hour=3/a-x-1-2-3.parquet")
	f.Add("a", "a/x.parquet")
	f.Add("", "/dt=2026-11-22/hour=18/-x-1-2-3.parquet")
	f.Fuzz(func(t *testing.T, stream, name string) {
		r, h, ok := parseName(stream, name)
		if ok && (objectName(r, h) != name || r.Stream != stream) {
			t.Errorf("%q is read as %+v, hour %d, which is named %q", name, r, h, objectName(r, h))
		}
	})
}

func TestParseName(t *testing.T) {
	want := flow.Range{Stream: "a-b", StreamID: "x-1", Partition: 3, First: 10, Last: 1 << 60}
	for _, h := range []hour{0, 500_000, -5} {
		if got, gotHour, ok := parseName("a-b", objectName(want, h)); !ok || got != want || gotHour != h {
			t.Errorf("%q is read as %+v, hour %d, %v", objectName(want, h), got, gotHour, ok)
		}
	}
}

func FuzzSpans(f *testing.F) {
	f.Add(encodeSpans([]span{{0, 5}, {7, 1}, {1 << 30, 12}}))
	f.Add("")
	f.Add("AAA")
	f.Add("/////////////w")
	f.Fuzz(func(t *testing.T, s string) {
		spans, err := decodeSpans(s)
		if err != nil {
			return
		}
		next := int64(0)
		for _, sp := range spans {
			if sp.rows <= 0 || sp.position < next {
				t.Fatalf("%q gives spans out of order: %v", s, spans)
			}
			next = sp.position + sp.rows
		}
		if again, err := decodeSpans(encodeSpans(spans)); err != nil || !slices.Equal(again, spans) {
			t.Errorf("%v comes back as %v, %v", spans, again, err)
		}
	})
}

func TestSpansOf(t *testing.T) {
	got := spansOf([]run{{0, 0, 3, 0}, {1, 0, 2, 3}, {1, 4, 5, 7}})
	if want := []span{{0, 5}, {7, 1}}; !slices.Equal(got, want) {
		t.Errorf("spans %v; want %v", got, want)
	}
}
