package series

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"hearthline/flow"
	"hearthline/flow/snapshot"
)

// model is a table that hashes strings and searches lists.
type model struct {
	limit int
	ttl   time.Duration
	list  []modelEntry // oldest first
	clock flow.Micros
}

type modelEntry struct {
	key      Key
	count    int
	received flow.Micros
}

func (m *model) at(k Key, received flow.Micros, add bool) *modelEntry {
	m.clock = max(m.clock, received)
	for len(m.list) > 0 && m.clock.Sub(m.list[0].received) > m.ttl {
		m.list = m.list[1:]
	}
	i := slices.IndexFunc(m.list, func(e modelEntry) bool { return e.key == k })
	e := modelEntry{key: k, received: received}
	switch {
	case i >= 0:
		e = m.list[i]
		m.list = slices.Delete(slices.Clone(m.list), i, i+1)
	case !add:
		return nil
	case len(m.list) >= m.limit:
		m.list = m.list[1:]
	}
	e.received = max(e.received, received)
	m.list = append(slices.Clone(m.list), e)
	return &m.list[len(m.list)-1]
}

func (m *model) remove() { m.list = m.list[:len(m.list)-1] }

// TestAgainstModel cuts random rows into batches, with strings in and out of dictionaries.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		limit, ttl := 1+rng.IntN(40), time.Duration(1+rng.IntN(300))*time.Second
		table, m := New[int](limit, ttl), &model{limit: limit, ttl: ttl}
		at := flow.Micros(0)
		for range 30 {
			b := flow.NewEventBuilder()
			n := rng.IntN(300)
			for range n {
				at += flow.Micros(rng.IntN(2e6))
				b.Append(&flow.Event{Received: at - flow.Micros(rng.IntN(5e6)), Home: fmt.Sprint(rng.IntN(5)), Device: fmt.Sprint(rng.IntN(4)), Metric: fmt.Sprint(rng.IntN(3))})
			}
			rec, _ := b.Record()
			ev, err := flow.EventsOf(rec)
			if err != nil {
				t.Fatal(err)
			}
			table.Begin(ev.Home, ev.Device, ev.Metric)
			if rng.IntN(4) == 0 {
				table.packable = false // as with dictionaries too large to pack
			}
			for i := range n {
				k := Key{ev.Home.Value(i), ev.Device.Value(i), ev.Metric.Value(i)}
				received, add := flow.Micros(ev.Received[i]), rng.IntN(2) == 0
				want := m.at(k, received, add)
				var e *Entry[int]
				if add {
					e, _ = table.At(i, received)
				} else {
					e = table.Known(i, received)
				}
				if (e == nil) != (want == nil) {
					t.Fatalf("seed %d: series %v is there: %v, want %v", seed, k, e != nil, want != nil)
				}
				if e == nil {
					continue
				}
				if e.Key != k || e.State != want.count || e.Received != want.received {
					t.Fatalf("seed %d: series %v has %d of %d; want %+v", seed, e.Key, e.State, e.Received, *want)
				}
				e.State++
				want.count++
				if rng.IntN(20) == 0 {
					table.Remove(e)
					m.remove()
				}
			}
			table.End()
			if table.Len() != len(m.list) {
				t.Fatalf("seed %d: %d series; want %d", seed, table.Len(), len(m.list))
			}
			if rng.IntN(3) == 0 {
				table = saved(t, table)
			}
		}
	}
}

func saved(t *testing.T, table *Table[int]) *Table[int] {
	t.Helper()
	var text bytes.Buffer
	w := snapshot.NewWriter(&text, "test", 1)
	table.Save(w, func(w *snapshot.Writer, e *Entry[int]) { w.Int(int64(e.State)) })
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, _, err := snapshot.NewReader(&text, "test", 1)
	if err != nil {
		t.Fatal(err)
	}
	back := New[int](table.Limit, table.TTL)
	back.Load(r, func(r *snapshot.Reader, e *Entry[int]) { e.State = int(r.Int()) })
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return back
}
