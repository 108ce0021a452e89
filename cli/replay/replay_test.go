package replay

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/sinks/parquet"
	"hearthline/streams"
)

// peak is an allocator that knows the most that was ever held at once, in bytes.
type peak struct {
	memory.Allocator
	held, most atomic.Int64
}

func (p *peak) note(n int64) {
	held := p.held.Add(n)
	for most := p.most.Load(); held > most && !p.most.CompareAndSwap(most, held); most = p.most.Load() {
	}
}

func (p *peak) Allocate(n int) []byte { p.note(int64(n)); return p.Allocator.Allocate(n) }

func (p *peak) Reallocate(n int, b []byte) []byte {
	p.note(int64(n - cap(b)))
	return p.Allocator.Reallocate(n, b)
}

func (p *peak) Free(b []byte) { p.note(-int64(cap(b))); p.Allocator.Free(b) }

// through hands its input on.
type through struct{}

func (through) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	in.Retain()
	return []flow.Output{{To: "clean", Record: in}}, nil
}

// nowhere is a sink that takes its time: whoever runs ahead of it piles up.
type nowhere struct{ rows atomic.Int64 }

func (n *nowhere) Write(_ context.Context, _ flow.Range, recs []arrow.Record) error {
	for _, r := range recs {
		n.rows.Add(r.NumRows())
	}
	return nil
}

func (n *nowhere) Flush() (int64, time.Duration) { return 20_000, time.Second }

func planOf(t *testing.T, keep flow.Sink) *pipeline.Plan {
	t.Helper()
	text := "pipeline: p\npartitions: 2\ngateway: {to: raw}\nstages: {normalize: {from: raw, to: clean}}\nsinks: {parquet: {from: clean}}\n"
	spec, findings := pipeline.ReadBytes("p.yaml", []byte(text), func(string) (string, bool) { return "", false })
	plan, more := pipeline.NewPlan(t.Context(), spec, pipeline.Catalog{
		Stages: map[string]func() flow.Stage{"normalize": func() flow.Stage { return through{} }},
		Sinks:  map[string]func() flow.Sink{"parquet": func() flow.Sink { return keep }},
	})
	if plan == nil {
		t.Fatal(findings, more)
	}
	part, err := plan.Part([]string{"normalize"}, []string{"raw"})
	if err != nil {
		t.Fatal(err)
	}
	part.Keep("nowhere", func() flow.Sink { return keep }, []string{"clean"})
	return part
}

// history writes ranges of 40,000 rows for each of two partitions.
func history(t *testing.T, ranges int, text string) (blobs.Store, int64) {
	t.Helper()
	store, err := blobs.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	sink := parquet.New()
	sink.Store = store
	if err := sink.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	const rows = 40_000
	b := flow.NewEventBuilder()
	for p := range int32(2) {
		for r := range ranges {
			for n := range rows {
				at := flow.Micros(r*rows+n+1) * 100_000
				b.Append(&flow.Event{Time: at, Received: at, Home: "h", Device: fmt.Sprint("d", n%9), Metric: "m", Value: float64(n), HasValue: true, Text: text, HasText: true})
			}
			rec, _ := b.Record()
			if err := sink.Write(t.Context(), flow.Range{Stream: "raw", StreamID: "k", Partition: p, First: int64(r), Last: int64(r)}, []arrow.Record{rec}); err != nil {
				t.Fatal(err)
			}
			rec.Release()
		}
	}
	return store, int64(2 * ranges * rows)
}

// However long history is, a replay of it holds no more than the limits of a unit and a sink: it reads no faster than what it
// made is taken. The rows are fat, so that all of them together are half as much again.
func TestMemoryDoesNotGrowWithHistory(t *testing.T) {
	// Made and not yet published; gathered by a sink; and, of each partition, records being read, encoded and decoded,
	// whose builders grow by doubling.
	const mostBytes = 64<<20 + 64<<20 + 2*64<<20
	store, rows := history(t, 5, strings.Repeat("x", 1000))
	files, err := Files(t.Context(), store, "raw", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	mem, keep := &peak{Allocator: memory.NewGoAllocator()}, &nowhere{}
	e := &Engine{
		Dir: t.TempDir(), Plan: planOf(t, keep), Run: "replay-x", Log: slog.New(slog.DiscardHandler), Meter: run.NewMeter(), Mem: mem,
		Histories: map[string]run.History{"raw": &Parquet{Stream: "raw", Store: store, Ranges: files, Bound: Bound{Run: "replay-x"}, Mem: mem, Done: &Progress{}}},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := e.Go(ctx); err != nil {
		t.Fatal(err)
	}
	if keep.rows.Load() != rows {
		t.Errorf("%d rows of %d arrived", keep.rows.Load(), rows)
	}
	if most := mem.most.Load(); most > mostBytes || most < 1<<20 {
		t.Errorf("held %d MiB at most, of a history of %d MiB; want at most %d", most>>20, rows*1000>>20, int64(mostBytes)>>20)
	}
}

// A message has the same offset and the same rows whoever reads it first, and wherever reading begins.
func TestOffsetsStay(t *testing.T) {
	store, _ := history(t, 2, "")
	files, err := Files(t.Context(), store, "raw", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &Parquet{Stream: "raw", Store: store, Ranges: files, Bound: Bound{Run: "r", Since: 1_000_000, Until: 2_500_000_000}, Done: &Progress{}}
	read := func(from int64) (all []string, offsets []int64) {
		m := p.Read(1, from)
		defer m.Close()
		for {
			msg, err := m.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			all, offsets = append(all, said(msg)), append(offsets, msg.Offset)
			if msg.Batch.Kind == flow.KindEnd {
				return all, offsets
			}
			release(&msg)
		}
	}
	whole, offsets := read(0)
	if len(whole) < 10 {
		t.Fatalf("only %d messages", len(whole))
	}
	for n, at := range offsets {
		for _, from := range []int64{at, at - 1, at + 1} {
			part, _ := read(max(0, from))
			skip := n
			if from > at {
				skip++
			}
			if skip == len(whole) {
				continue
			}
			if got, want := part[0], whole[skip]; from != at-1 && got != want || from == at-1 && n > 0 && got != want {
				t.Errorf("from %d: %s, want %s", from, got, want)
			}
		}
		if n == len(whole)-2 {
			break // behind the end there is nothing to wait for
		}
	}
	first, next := p.Bounds(1)
	if first != 0 || next != offsets[len(offsets)-1]+1 {
		t.Errorf("bounds are %d and %d, the last offset is %d", first, next, offsets[len(offsets)-1])
	}
}

func said(m streams.Message) string {
	s := fmt.Sprint(m.Offset, m.Batch.Kind, m.Batch.Watermark, m.Batch.Rows())
	if m.Batch.Record != nil {
		s += fmt.Sprint(m.Batch.Record.Column(0))
	}
	return s
}

// Rows outside of the bounds are left out, wherever in a record they are.
func TestBounds(t *testing.T) {
	b := flow.NewEventBuilder()
	for _, at := range []flow.Micros{5, 1, 6, 7, 2, 9, 3} {
		b.Append(&flow.Event{Time: at, Home: fmt.Sprint("h", at), Text: fmt.Sprint(at), HasText: true})
	}
	rec, _ := b.Record()
	defer rec.Release()
	for _, c := range []struct {
		since, until flow.Micros
		want         string
	}{{0, 0, "[5 1 6 7 2 9 3]"}, {3, 7, "[5 6 3]"}, {0, 3, "[1 2]"}, {9, 0, "[9]"}, {100, 0, ""}} {
		got := ""
		if in := (&Bound{Since: c.since, Until: c.until}).within(rec); in != nil {
			times, err := flow.Instants(in, flow.ColTime)
			if err != nil {
				t.Fatal(err)
			}
			got = fmt.Sprint(times)
			homes, _ := flow.StringsOf(in, flow.ColHome)
			for i, at := range times {
				if homes.Value(i) != fmt.Sprint("h", int64(at)) {
					t.Errorf("row of %d is of home %s", at, homes.Value(i))
				}
			}
			in.Release()
		}
		if got != c.want {
			t.Errorf("from %d to %d: %s, want %s", c.since, c.until, got, c.want)
		}
	}
}
