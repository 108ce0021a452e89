package window_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
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
	"hearthline/flow/window"
)

func eventsOf(events []flow.Event) arrow.Record {
	b := flow.NewEventBuilder()
	for i := range events {
		b.Append(&events[i])
	}
	rec, _ := b.Record()
	return rec
}

// seen is one row of a window, as the stage was given it.
type seen struct {
	device     string
	start, end flow.Micros
	time       flow.Micros
	value      float64
}

// collecting notes what it is given.
type collecting struct {
	rows  []seen
	calls []int
	fails int // so many calls fail, as the world does
}

var errWorld = errors.New("the world failed")

func (c *collecting) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	if in.NumRows() == 0 {
		return []flow.Output{{To: "none", Record: in.NewSlice(0, 0)}}, nil
	}
	if c.fails > 0 {
		c.fails--
		return nil, errWorld
	}
	ev, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	starts, _ := flow.Instants(in, window.ColStart)
	ends, _ := flow.Instants(in, window.ColEnd)
	for i := range int(in.NumRows()) {
		c.rows = append(c.rows, seen{strings.Clone(ev.Device.Value(i)), flow.Micros(starts[i]), flow.Micros(ends[i]), flow.Micros(ev.Time[i]), ev.Value.Value(i)})
	}
	c.calls = append(c.calls, int(in.NumRows()))
	in.Retain()
	return []flow.Output{{To: "rows", Record: in}}, nil
}

func lateness(d time.Duration) *time.Duration { return &d }

// naive finds the windows of rows that never close before the end.
func naive(c *window.Config, rows []seen) []seen {
	byDevice := map[string][]seen{}
	for _, r := range rows {
		byDevice[r.device] = append(byDevice[r.device], r)
	}
	var all []seen
	for _, rows := range byDevice {
		slices.SortStableFunc(rows, func(a, b seen) int { return cmp.Compare(a.time, b.time) })
		if c.Gap == 0 {
			size, every := flow.Micros(c.Size.Microseconds()), flow.Micros(c.Every.Microseconds())
			for _, r := range rows {
				for start := r.time / every * every; start > r.time-size; start -= every {
					r.start, r.end = start, start+size
					all = append(all, r)
				}
			}
			continue
		}
		gap, longest := flow.Micros(c.Gap.Microseconds()), flow.Micros(c.Max.Microseconds())
		first := 0
		for i := range rows {
			if i+1 < len(rows) && rows[i+1].time-rows[i].time < gap && rows[i+1].time < rows[first].time+longest {
				continue
			}
			for k := first; k <= i; k++ {
				rows[k].start, rows[k].end = rows[first].time, min(rows[i].time+gap, rows[first].time+longest)
				all = append(all, rows[k])
			}
			first = i + 1
		}
	}
	return all
}

func ordered(rows []seen) []seen {
	slices.SortStableFunc(rows, func(a, b seen) int {
		return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.start, b.start), strings.Compare(a.device, b.device), cmp.Compare(a.time, b.time))
	})
	return rows
}

// What random rows give, in small batches with a world that fails now and then, is what a plain search for windows finds.
func TestWindowsAreThoseOfAPlainSearch(t *testing.T) {
	for seed := range uint64(16) {
		rng := rand.New(rand.NewPCG(seed, 0))
		c := &window.Config{By: []string{"home", "device"}, Lateness: lateness(24 * time.Hour)}
		if seed%2 == 0 {
			c.Every = time.Duration(1+rng.IntN(5)) * 10 * time.Second
			c.Size = c.Every * time.Duration(1+rng.IntN(4))
		} else {
			c.Gap = time.Duration(5+rng.IntN(40)) * time.Second
			c.Max = c.Gap * time.Duration(1+rng.IntN(5))
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
		ctx := exec.WithAllocator(t.Context(), mem)
		got := &collecting{}
		s := window.New(c, false, got)
		var want []seen
		at := flow.MicrosOf(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC))
		for range 100 + rng.IntN(200) {
			var events []flow.Event
			for range 1 + rng.IntN(30) {
				at += flow.Micros(rng.IntN(4e6))
				e := flow.Event{Time: at - flow.Micros(rng.IntN(60))*1e6, Received: at, Home: "h", Device: fmt.Sprint("d", rng.IntN(5)), Metric: "m", Value: rng.Float64(), HasValue: true}
				events = append(events, e)
				want = append(want, seen{device: e.Device, time: e.Time, value: e.Value})
			}
			got.fails = rng.IntN(3)
			rec := eventsOf(events)
			again(t, func() ([]flow.Output, error) { return s.Process(ctx, rec) })
			rec.Release()
		}
		again(t, func() ([]flow.Output, error) { return s.Advance(ctx, flow.EndOfTime) })
		want = naive(c, want)
		if is, should := ordered(slices.Clone(got.rows)), ordered(want); !slices.Equal(is, should) {
			t.Fatalf("seed %d: %v: %d rows in windows; want %d; the first that differs: %v", seed, c, len(is), len(should), differs(is, should))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		mem.AssertSize(t, 0)
	}
}

func differs(a, b []seen) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("%+v, want %+v", a[i], b[i])
		}
	}
	return "the length"
}

// again calls f until the world does not fail.
func again(t *testing.T, f func() ([]flow.Output, error)) []flow.Output {
	t.Helper()
	for {
		made, err := f()
		flow.ReleaseOutputs(made)
		if err == nil {
			return made
		}
		if !errors.Is(err, errWorld) {
			t.Fatal(err)
		}
	}
}

// After an error of the world the same batch comes again; anything else is a defect that must not pass.
func TestAnotherBatchAfterAnError(t *testing.T) {
	s := window.New(&window.Config{Size: time.Minute, By: []string{"device"}, Lateness: lateness(0)}, false, &collecting{fails: 1})
	at := flow.MicrosOf(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC))
	rec := eventsOf([]flow.Event{{Time: at, Received: at, Home: "h"}, {Time: at + 90e6, Received: at + 90e6, Home: "h"}})
	if _, err := s.Process(t.Context(), rec); !errors.Is(err, errWorld) {
		t.Fatalf("got %v; want the world's error", err)
	}
	if err := s.Snapshot(new(bytes.Buffer)); err == nil {
		t.Error("a snapshot was made in the middle of a batch")
	}
	if _, err := s.Advance(t.Context(), at); err == nil {
		t.Error("time passed in the middle of a batch")
	}
	if made, err := s.Process(t.Context(), rec); err != nil || made[0].Record.NumRows() != 1 {
		t.Errorf("the second time: %v, %v", made, err)
	}
}

// A key, and a call, hold no more than they may; what is too much is refused with the reason.
func TestWindowsAreBounded(t *testing.T) {
	got := &collecting{}
	s := window.New(&window.Config{Size: time.Hour, By: []string{"device"}, Lateness: lateness(0)}, false, got)
	at := flow.MicrosOf(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC))
	batch := func(device string, from, n, text int) []string {
		var events []flow.Event
		for i := range n {
			events = append(events, flow.Event{Time: at + flow.Micros(from+i), Received: at, Home: "h", Device: device, Text: strings.Repeat("x", text), HasText: true})
		}
		rec := eventsOf(events)
		defer rec.Release()
		_, err := s.Process(t.Context(), rec)
		var bad *flow.BadRows
		if errors.As(err, &bad) {
			return bad.Reasons
		} else if err != nil {
			t.Fatal(err)
		}
		return nil
	}
	for i := range 8 {
		if why := batch("many", i*8192, 8192, 0); why != nil {
			t.Fatalf("batch %d: %v", i, why)
		}
	}
	if why := batch("many", 0, 3, 0); len(why) != 3 || !strings.Contains(why[0], "hold 65536 rows") {
		t.Errorf("rows beyond the limit: %v", why)
	}
	if why := batch("large", 0, 20, 1<<20); len(why) != 5 || !strings.Contains(why[0], "hold 16 MiB") {
		t.Errorf("bytes beyond the limit: %d rows, %.1v", len(why), why)
	}
	for i := range 40 { // of other keys, until the partition is full
		if why := batch(fmt.Sprint(i), 0, 15, 1<<20); why != nil {
			if i < 30 || !strings.Contains(why[0], "partition hold 512 MiB") {
				t.Fatalf("key %d: %v", i, why)
			}
			break
		} else if i == 39 {
			t.Error("600 MiB were kept")
		}
	}
	if n := s.Counters()["window_rows_refused"]; n < 9 {
		t.Errorf("%d rows are counted as refused", n)
	}
	again(t, func() ([]flow.Output, error) { return s.Advance(t.Context(), flow.EndOfTime) })
	slices.Sort(got.calls)
	if last := got.calls[len(got.calls)-1]; last != window.RowsMax || got.calls[len(got.calls)-2] > window.CallRows {
		t.Errorf("calls of %v rows; want one of %d, the others of at most %d", got.calls, window.RowsMax, window.CallRows)
	}
}

func TestStateOfOtherWindows(t *testing.T) {
	one := window.New(&window.Config{Size: time.Hour, By: []string{"device"}}, false, &collecting{})
	var b bytes.Buffer
	if err := one.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	other := window.New(&window.Config{Size: time.Minute, By: []string{"device"}}, false, &collecting{})
	if err := other.Restore(bytes.NewReader(b.Bytes())); err == nil || !strings.Contains(err.Error(), "size 1h0m0s, every 1h0m0s, by [device]") {
		t.Errorf("got %v; want an error that names both", err)
	}
	for i := range b.Len() {
		broken := slices.Clone(b.Bytes())
		broken[i] ^= 0x10
		if one.Restore(bytes.NewReader(broken)) == nil {
			t.Errorf("a snapshot whose byte %d is broken was restored", i)
		}
	}
}

// Rows that are kept get a column that comes to be, as null.
func TestAColumnComesToBe(t *testing.T) {
	got := &collecting{}
	c := &window.Config{Size: time.Minute, By: []string{"device"}, Lateness: lateness(0)}
	s := window.New(c, false, got)
	at := flow.MicrosOf(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC))
	old := eventsOf([]flow.Event{{Time: at, Received: at, Home: "h", Device: "d", HasValue: true, Value: 1}})
	if _, err := s.Process(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	s = window.New(c, false, got)
	if err := s.Restore(&b); err != nil {
		t.Fatal(err)
	}
	now := with(eventsOf([]flow.Event{{Time: at + 61e6, Received: at, Home: "h", Device: "d"}}), arrow.Field{Name: "room", Type: flow.KeyType, Nullable: true})
	made, err := s.Process(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	if rec := made[0].Record; rec.NumRows() != 1 || rec.Column(rec.Schema().FieldIndices("room")[0]).NullN() != 1 || got.rows[0].value != 1 {
		t.Errorf("the window holds %v", rec)
	}
	// Zero rows are enough to find out: a plan asks so, before anything is started.
	none := with(old, arrow.Field{Name: "floor", Type: flow.KeyType}).NewSlice(0, 0)
	if _, err := s.Process(t.Context(), none); err == nil || !strings.Contains(err.Error(), "column floor is new and cannot be null") {
		t.Errorf("of zero rows: got %v; want an error that names the column", err)
	}
	if _, err := s.Process(t.Context(), with(old, arrow.Field{Name: "floor", Type: flow.KeyType})); err == nil || !strings.Contains(err.Error(), "column floor is new and cannot be null") {
		t.Errorf("got %v; want an error that names the column", err)
	}
}

func with(rec arrow.Record, f arrow.Field) arrow.Record {
	cols := append(slices.Clone(rec.Columns()), array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, int(rec.NumRows())))
	return array.NewRecord(arrow.NewSchema(append(slices.Clone(rec.Schema().Fields()), f), nil), cols, rec.NumRows())
}

func TestConfig(t *testing.T) {
	for want, c := range map[string]window.Config{
		"give size (windows":         {By: []string{"a"}},
		"not both":                   {Size: time.Minute, Gap: time.Minute, By: []string{"a"}},
		"by: name the columns":       {Size: time.Minute},
		"stands there twice":         {Size: time.Minute, By: []string{"a", "a"}},
		"must be a multiple":         {Size: time.Minute, Every: 7 * time.Second, By: []string{"a"}},
		"in 3600 windows":            {Size: time.Hour, Every: time.Second, By: []string{"a"}},
		"every is -1s":               {Size: time.Minute, Every: -time.Second, By: []string{"a"}},
		"only a session has a max":   {Size: time.Minute, Max: time.Hour, By: []string{"a"}},
		"a session has no every":     {Gap: time.Minute, Every: time.Minute, By: []string{"a"}},
		"max is 1s":                  {Gap: time.Minute, Max: time.Second, By: []string{"a"}},
		"lateness is -1s":            {Size: time.Minute, By: []string{"a"}, Lateness: lateness(-time.Second)},
		"size is 200h0m0s; want":     {Size: 200 * time.Hour, By: []string{"a"}},
		"size is 1m0.0000005s; want": {Size: time.Minute + 500, By: []string{"a"}},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v; want an error that holds %q", c, err, want)
		}
	}
}

// counting gives one row a window, and is so cheap that what is measured is the window.
type counting struct{}

func (counting) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	return []flow.Output{{To: "counts", Record: in.NewSlice(0, min(1, in.NumRows()))}}, nil
}

// BenchmarkWindow: 100,000 keys that send every ten seconds, in windows of a minute.
func BenchmarkWindow(b *testing.B) {
	const keys, batch = 100_000, 10_000
	start := flow.MicrosOf(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC))
	var recs []arrow.Record
	for round := range 12 {
		for from := 0; from < keys; from += batch {
			var events []flow.Event
			for k := from; k < from+batch; k++ {
				at := start + flow.Micros(round)*10e6 + flow.Micros(k%1000)*1000
				events = append(events, flow.Event{Time: at, Received: at, Home: fmt.Sprint("home-", k/10), Device: fmt.Sprint("device-", k%10), Metric: "temperature", Value: 1, HasValue: true, Unit: "°C"})
			}
			recs = append(recs, eventsOf(events))
		}
	}
	for name, c := range map[string]*window.Config{
		"tumbling": {Size: time.Minute, By: []string{"home", "device"}},
		"hopping":  {Size: 5 * time.Minute, Every: time.Minute, By: []string{"home", "device"}},
		"sessions": {Gap: 5 * time.Second, By: []string{"home", "device"}, Lateness: lateness(time.Second)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			rows := 0
			for b.Loop() {
				s := window.New(c, false, counting{})
				for _, rec := range recs {
					made, err := s.Process(b.Context(), rec)
					if err != nil {
						b.Fatal(err)
					}
					flow.ReleaseOutputs(made)
					rows += int(rec.NumRows())
				}
				_ = s.Close()
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}
