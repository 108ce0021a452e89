package join

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/compute/exec"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/flow/flowtest"
)

func TestCases(t *testing.T) {
	flowtest.Run(t, func() flow.Stage { return New() }, "cases")
}

func events(all []flow.Event) arrow.Record {
	b := flow.NewEventBuilder()
	for i := range all {
		b.Append(&all[i])
	}
	rec, _ := b.Record()
	return rec
}

// pairsOf is what a record of pairs says: the sequence numbers of both rows, -1 for none.
func pairsOf(made []flow.Output) (all [][2]int64) {
	for _, o := range made {
		l, r := column(o.Record, "seq"), column(o.Record, "right_seq")
		for i := range l {
			all = append(all, [2]int64{l[i], r[i]})
		}
		o.Record.Release()
	}
	return all
}

func column(rec arrow.Record, name string) (values []int64) {
	a := rec.Column(rec.Schema().FieldIndices(name)[0]).(*array.Int64)
	for i := range a.Len() {
		if a.IsNull(i) {
			values = append(values, -1)
		} else {
			values = append(values, a.Value(i))
		}
	}
	return values
}

// Random rows of two streams, in batches, with restarts and watermarks in between, make the pairs that a look at every two rows
// finds.
func TestPairsAreThoseOfAPlainSearch(t *testing.T) {
	for seed := range uint64(16) {
		rng := rand.New(rand.NewPCG(seed, 0))
		made := func() *Stage {
			s := New()
			s.On, s.Within, s.Lateness = []string{"device"}, 20*time.Second, 5*time.Second
			s.Kind = []string{"inner", "left"}[seed%2]
			return s
		}
		s := made()
		mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
		ctx := exec.WithAllocator(t.Context(), mem)
		give := func(s *Stage, at int, all []flow.Event) [][2]int64 {
			rec := events(all)
			defer rec.Release()
			out, err := s.ProcessInput(ctx, inputs[at], rec)
			if err != nil {
				t.Fatal(err)
			}
			return pairsOf(out)
		}
		prime := func(s *Stage) { give(s, left, nil); give(s, right, nil) }
		prime(s)
		var rows [2][]flow.Event
		var got [][2]int64
		clock := flow.Micros(1e12)
		for n := int64(0); n < 600; {
			at := rng.IntN(2)
			var batch []flow.Event
			for range 1 + rng.IntN(20) {
				clock += flow.Micros(rng.IntN(3e6))
				n++
				batch = append(batch, flow.Event{Time: clock - flow.Micros(rng.IntN(30e6)), Received: clock, Home: "h", Device: fmt.Sprint(rng.IntN(4)), Metric: "m", Seq: n, HasSeq: true})
			}
			rows[at] = append(rows[at], batch...)
			got = append(got, give(s, at, batch)...)
			if rng.IntN(3) == 0 {
				out, err := s.Advance(ctx, clock)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, pairsOf(out)...)
			}
			if rng.IntN(4) == 0 {
				var b bytes.Buffer
				if err := s.Snapshot(&b); err != nil {
					t.Fatal(err)
				}
				_ = s.Close()
				s = made()
				if err := s.Restore(&b); err != nil {
					t.Fatal(err)
				}
				prime(s)
			}
		}
		out, err := s.Advance(ctx, flow.EndOfTime)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, pairsOf(out)...)
		var want [][2]int64
		for _, l := range rows[left] {
			found := false
			for _, r := range rows[right] {
				if l.Device == r.Device && apart(l.Time, r.Time) <= 20e6 && apart(l.Received, r.Received) <= 25e6 {
					want, found = append(want, [2]int64{l.Seq, r.Seq}), true
				}
			}
			if !found && s.Kind == "left" {
				want = append(want, [2]int64{l.Seq, -1})
			}
		}
		order := func(a, b [2]int64) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) }
		slices.SortFunc(got, order)
		slices.SortFunc(want, order)
		if !slices.Equal(got, want) || len(want) < 100 {
			t.Fatalf("seed %d: %d pairs; want %d", seed, len(got), len(want))
		}
		if rows := s.Counters()["rows"]; rows != 0 {
			t.Errorf("seed %d: %d rows are kept after the end of time", seed, rows)
		}
		_ = s.Close()
		mem.AssertSize(t, 0)
	}
}

func TestStateOfAnotherKey(t *testing.T) {
	s := New()
	s.On = []string{"home"}
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	s.On = []string{"device"}
	if err := s.Restore(&b); err == nil || !strings.Contains(err.Error(), "kept by [home], the settings say [device]") {
		t.Errorf("got %v; want an error that names both keys", err)
	}
}

// BenchmarkJoin: two streams of 100,000 devices, which each say something every ten seconds.
func BenchmarkJoin(b *testing.B) {
	const keys, batch = 100_000, 10_000
	var recs []arrow.Record
	for round := range 4 {
		for from := 0; from < keys; from += batch {
			var all []flow.Event
			for k := from; k < from+batch; k++ {
				at := flow.Micros(1e12) + flow.Micros(round)*10e6 + flow.Micros(k)
				all = append(all, flow.Event{Time: at, Received: at, Home: fmt.Sprint("home-", k/10), Device: fmt.Sprint("device-", k%10), Metric: "temperature", Value: 1, HasValue: true})
			}
			recs = append(recs, events(all))
		}
	}
	b.ReportAllocs()
	rows := 0
	for b.Loop() {
		s := New()
		s.On, s.Within, s.Lateness = []string{"home", "device"}, 5*time.Second, time.Second
		for _, rec := range recs {
			for _, input := range inputs {
				made, err := s.ProcessInput(b.Context(), input, rec)
				if err != nil {
					b.Fatal(err)
				}
				flow.ReleaseOutputs(made)
				rows += int(rec.NumRows())
			}
		}
		_ = s.Close()
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(0, "ns/op")
}
