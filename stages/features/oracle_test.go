package features

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow"
)

type got struct {
	count                           int64
	mean, min, max, last, sinceLast float64
	std, slope, rate                float64 // NaN for null
	received                        flow.Micros
}

// collect reads an output into windows by series, kind and start.
func collect(t *testing.T, into map[string]got, rec arrow.Record) {
	t.Helper()
	defer rec.Release()
	times, _ := flow.Instants(rec, "time")
	received, _ := flow.Instants(rec, "received")
	f := func(name string, i int) float64 {
		a, err := flow.Column[*array.Float64](rec, name)
		if err != nil {
			t.Fatal(err)
		}
		if a.IsNull(i) {
			return math.NaN()
		}
		return a.Value(i)
	}
	s := func(name string, i int) string { v, _ := flow.StringsOf(rec, name); return v.Value(i) }
	count, _ := flow.Column[*array.Int64](rec, "count")
	for i := range times {
		k := fmt.Sprint(s("home", i), "/", s("device", i), " ", s("window", i), " ", times[i])
		if _, twice := into[k]; twice {
			t.Errorf("window %s came twice", k)
		}
		into[k] = got{count: count.Value(i), mean: f("mean", i), min: f("min", i), max: f("max", i), last: f("last", i), sinceLast: f("since_last", i),
			std: f("std", i), slope: f("slope", i), rate: f("rate", i), received: flow.Micros(received[i])}
	}
}

// plainly computes a window from its readings by the definitions, in two passes.
func plainly(rows []flow.Event, end flow.Micros) got {
	n := float64(len(rows))
	g := got{count: int64(len(rows)), min: math.Inf(1), max: math.Inf(-1), std: math.NaN(), slope: math.NaN(), rate: math.NaN(), received: math.MinInt64}
	var meanT float64
	first, last := rows[0], rows[0]
	for _, r := range rows {
		g.mean += r.Value / n
		meanT += float64(r.Time-rows[0].Time) / 1e6 / n
		g.min, g.max = math.Min(g.min, r.Value), math.Max(g.max, r.Value)
		g.received = max(g.received, r.Received)
		if r.Time < first.Time {
			first = r
		}
		if r.Time >= last.Time {
			last = r
		}
	}
	g.last, g.sinceLast = last.Value, float64(end-last.Time)/1e6
	var vv, tt, tv float64
	for _, r := range rows {
		d, dt := r.Value-g.mean, float64(r.Time-rows[0].Time)/1e6-meanT
		vv, tt, tv = vv+d*d, tt+dt*dt, tv+d*dt
	}
	if n > 1 {
		g.std = math.Sqrt(vv / (n - 1))
	}
	if last.Time > first.Time {
		g.slope = tv / tt
		g.rate = (last.Value - first.Value) / (float64(last.Time-first.Time) / 1e6)
	}
	return g
}

func near(a, b float64) bool {
	return math.IsNaN(a) && math.IsNaN(b) || math.Abs(a-b) <= 1e-9*math.Max(1, math.Max(math.Abs(a), math.Abs(b)))
}

func (g got) like(o got) bool {
	return g.count == o.count && g.received == o.received && g.min == o.min && g.max == o.max && g.last == o.last && near(g.mean, o.mean) &&
		near(g.std, o.std) && near(g.slope, o.slope) && near(g.rate, o.rate) && near(g.sinceLast, o.sinceLast)
}

// TestAgainstDefinitions gives random rows, some of them out of order within the lateness, and compares all windows with
// those computed from their definitions.
func TestAgainstDefinitions(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := New()
		s.Windows = []Window{{time.Minute, time.Minute}, {5 * time.Minute, time.Minute}, {90 * time.Second, 30 * time.Second}, {time.Hour, time.Hour}}
		s.Lateness, s.Idle, s.Forget = 20*time.Second, 1000*time.Hour, 2000*time.Hour
		var all []flow.Event
		b := flow.NewEventBuilder()
		at := flow.MicrosOf(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC))
		for range 3000 {
			at += flow.Micros(rng.IntN(2e6))
			e := flow.Event{Time: at - flow.Micros(rng.IntN(20e6)), Received: at, Home: fmt.Sprint("h", rng.IntN(3)), Device: fmt.Sprint("d", rng.IntN(2)),
				Metric: "m", Value: 1e6 + rng.NormFloat64(), HasValue: true}
			all = append(all, e)
			b.Append(&e)
		}
		rec, _ := b.Record()
		windows := map[string]got{}
		outs, err := s.Process(context.Background(), rec)
		if err != nil {
			t.Fatal(err)
		}
		if n := outs[1].Record.NumRows(); n != 0 {
			t.Fatalf("seed %d: %d rows are late, none should be", seed, n)
		}
		collect(t, windows, outs[0].Record)
		if outs, err = s.Advance(context.Background(), flow.EndOfTime); err != nil {
			t.Fatal(err)
		}
		collect(t, windows, outs[0].Record)

		want := map[string][]flow.Event{}
		ends := map[string]flow.Micros{}
		for _, e := range all {
			for _, w := range s.Windows {
				hop, size := flow.Micros(w.Hop.Microseconds()), flow.Micros(w.Size.Microseconds())
				for start := floor(e.Time, hop); start > e.Time-size; start -= hop {
					k := fmt.Sprint(e.Home, "/", e.Device, " ", w, " ", arrow.Timestamp(start))
					want[k] = append(want[k], e)
					ends[k] = start + size
				}
			}
		}
		for k, rows := range want {
			if w := plainly(rows, ends[k]); !w.like(windows[k]) {
				t.Errorf("seed %d: window %s:\ngot  %+v\nwant %+v", seed, k, windows[k], w)
			}
		}
		if len(windows) != len(want) {
			t.Errorf("seed %d: %d windows; want %d", seed, len(windows), len(want))
		}
	}
}

// Every row that has a value is in all its windows, or late: none is lost.
func TestNoRowIsLost(t *testing.T) {
	for seed := range uint64(15) {
		rng := rand.New(rand.NewPCG(seed, 2))
		s := New()
		s.Windows = []Window{{time.Minute, time.Minute}}
		s.Lateness, s.Idle, s.Series = 10*time.Second, time.Minute, 1+rng.IntN(5)
		at := flow.MicrosOf(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC))
		counted, late, given := int64(0), int64(0), int64(0)
		take := func(outs []flow.Output, err error) {
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range outs {
				if o.To == "late" {
					late += o.Record.NumRows()
					continue
				}
				c, _ := flow.Column[*array.Int64](o.Record, "count")
				for _, n := range c.Int64Values() {
					counted += n
				}
			}
		}
		for range 50 {
			b := flow.NewEventBuilder()
			for range rng.IntN(100) {
				at += flow.Micros(rng.IntN(5e6))
				b.Append(&flow.Event{Time: at - flow.Micros(rng.IntN(200e6)), Received: at, Home: "h", Device: fmt.Sprint(rng.IntN(4)), Metric: "m", Value: 1, HasValue: true})
				given++
			}
			rec, _ := b.Record()
			take(s.Process(context.Background(), rec))
			if rng.IntN(2) == 0 {
				take(s.Advance(context.Background(), at))
			}
			if rng.IntN(3) == 0 {
				var snap bytes.Buffer
				if err := s.Snapshot(&snap); err != nil {
					t.Fatal(err)
				}
				old := s
				s = New()
				s.Windows, s.Lateness, s.Idle, s.Series = old.Windows, old.Lateness, old.Idle, old.Series
				if err := s.Restore(&snap); err != nil {
					t.Fatal(err)
				}
			}
		}
		take(s.Advance(context.Background(), flow.EndOfTime))
		if counted+late != given {
			t.Errorf("seed %d: %d rows given, %d counted in windows, %d late", seed, given, counted, late)
		}
	}
}

func TestRestoreRefusesOtherWindows(t *testing.T) {
	var snap bytes.Buffer
	if err := New().Snapshot(&snap); err != nil {
		t.Fatal(err)
	}
	other := New()
	other.Windows = other.Windows[:1]
	if err := other.Restore(&snap); err == nil {
		t.Error("a snapshot of other windows was taken")
	}
}

func TestRestoreRefusesDamage(t *testing.T) {
	s := New()
	b := flow.NewEventBuilder()
	for i := range 20 {
		b.Append(&flow.Event{Time: flow.Micros(i * 7e6), Received: flow.Micros(i * 7e6), Home: "h", Device: "d", Metric: "m", Value: float64(i), HasValue: true})
	}
	rec, _ := b.Record()
	if _, err := s.Process(context.Background(), rec); err != nil {
		t.Fatal(err)
	}
	var snap bytes.Buffer
	if err := s.Snapshot(&snap); err != nil {
		t.Fatal(err)
	}
	for i := range snap.Len() {
		damaged := bytes.Clone(snap.Bytes())
		damaged[i] ^= 0x40
		if err := New().Restore(bytes.NewReader(damaged)); err == nil {
			t.Errorf("a snapshot with byte %d changed was taken", i)
		}
		if err := New().Restore(bytes.NewReader(snap.Bytes()[:i])); err == nil {
			t.Errorf("a snapshot cut to %d bytes was taken", i)
		}
	}
}

func FuzzParseWindow(f *testing.F) {
	for _, s := range []string{"1m", "5m/1m", "90s/30s", "1h0m0s", "x", "/", "1m/0s", "9223372036854775807ns"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		w, err := ParseWindow(s)
		if err != nil {
			return
		}
		if again, err := ParseWindow(w.String()); err != nil || again != w {
			t.Errorf("%q is %v, and that is %v (%v)", s, w, again, err)
		}
	})
}
