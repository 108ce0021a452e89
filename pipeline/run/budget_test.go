package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/util"
	"github.com/sourcegraph/conc"

	"hearthline/flow"
	"hearthline/streams"
)

func TestBudgetLetsOneInWhateverItsSize(t *testing.T) {
	b := newBudget(100)
	if err := b.take(t.Context(), 5000); err != nil {
		t.Fatal(err)
	}
	if !b.full() {
		t.Error("5000 of 100 are not full")
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := b.take(short, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("taken beyond the limit: %v", err)
	}
	var waiting conc.WaitGroup
	for range 10 {
		waiting.Go(func() {
			if err := b.take(t.Context(), 30); err != nil {
				t.Error(err)
			}
			if held := heldBy(b); held > 100 {
				t.Errorf("%d held of 100", held)
			}
			b.give(30)
		})
	}
	b.give(5000)
	waiting.Wait()
	if b.held != 0 {
		t.Errorf("%d held when all was given back", b.held)
	}
}

func heldBy(b *budget) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

// wide feeds n batches of a stream, and gives the size of one in memory.
func wide(t *testing.T, w *world, stream string, n int) int64 {
	t.Helper()
	rec := numbersOf(make([]int64, 8192))
	gateway := &life{world: w, uses: -1}
	for i := range n {
		b := flow.Batch{Record: rec, Watermark: flow.Micros(i)}
		b.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: int64(i)}}
		if _, err := gateway.Publish(t.Context(), stream, 0, b); err != nil {
			t.Fatal(err)
		}
	}
	return util.TotalRecordSize(rec)
}

// away is a sink whose server is gone until the world is mended. It notes the most that its tasks held meanwhile.
type away struct {
	*life
	mended chan struct{}
	budget *budget
	most   atomic.Int64
	rows   atomic.Int64
}

func (a *away) Write(ctx context.Context, _ flow.Range, recs []arrow.Record) error {
	for {
		a.most.Store(max(a.most.Load(), heldBy(a.budget)))
		select {
		case <-a.mended:
			for _, rec := range recs {
				a.rows.Add(rec.NumRows())
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// While a sink's server is away its tasks hold no more than the budget and a batch each; then all rows go through.
func TestASinkThatWaitsHoldsABoundedNumberOfBytes(t *testing.T) {
	const tasks, batches = 8, 40
	w := newWorld()
	plan := testPlan()
	plan.Sinks[0].FlushRows, plan.Sinks[0].FlushWait = 10_000_000, 100*time.Millisecond
	plan.Sinks[0].Streams = nil
	var size int64
	for i := range tasks {
		stream := fmt.Sprint("s", i)
		plan.Sinks[0].Streams = append(plan.Sinks[0].Streams, stream)
		size = wide(t, w, stream, batches)
		plan.Streams[stream] = plan.Streams["raw"]
		w.commits[stream] = map[string]streams.Committed{}
	}
	l := &life{world: w, uses: -1}
	bytes := newBudget(6 * size)
	sink := &away{life: l, mended: make(chan struct{}), budget: bytes}
	r := &Runner{Plan: plan, Store: l, Log: slog.New(slog.DiscardHandler), Meter: NewMeter(), road: l}
	r.once.Do(func() {})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var work conc.WaitGroup
	for _, stream := range plan.Sinks[0].Streams {
		g := &generation{group: stream, budget: bytes, partitions: []int32{0}, ids: map[string]string{}, commit: l.commit(stream)}
		work.Go(func() {
			if _, err := r.runSinkTask(ctx, g, plan.Sinks[0], sink, stream, 0); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(500 * time.Millisecond) // an outage takes time: without the budget all would be read in it
	close(sink.mended)
	for sink.rows.Load() < tasks*batches*8192 && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	work.Wait()
	if got := sink.rows.Load(); got != tasks*batches*8192 {
		t.Errorf("%d rows arrived; want %d", got, tasks*batches*8192)
	}
	if most := sink.most.Load(); most > (6+tasks)*size {
		t.Errorf("%d bytes held at once; want at most %d and a batch a task, %d", most, 6*size, (6+tasks)*size)
	}
	if bytes.held != 0 {
		t.Errorf("%d bytes held in the end", bytes.held)
	}
}

// shutRoad takes nothing until it is opened.
type shutRoad struct {
	*life
	open chan struct{}
	read atomic.Int64
}

func (s *shutRoad) Publish(ctx context.Context, stream string, p int32, batches ...flow.Batch) (int64, error) {
	<-s.open
	return s.life.Publish(ctx, stream, p, batches...)
}

func (s *shutRoad) Reader(stream string, partition int32, offset int64) source {
	return countingSource{s.life.Reader(stream, partition, offset), &s.read}
}

type countingSource struct {
	source
	n *atomic.Int64
}

func (c countingSource) Next(ctx context.Context) (streams.Message, error) {
	m, err := c.source.Next(ctx)
	if err == nil {
		c.n.Add(1)
	}
	return m, err
}

// A stage whose outputs nobody takes stops reading when what it has made fills its budget, long before it would by count.
func TestAStageThatCannotPublishHoldsABoundedNumberOfBytes(t *testing.T) {
	w := newWorld()
	const batches = deliveriesMax - 4
	size := wide(t, w, "good", batches)
	end := flow.Batch{Kind: flow.KindEnd, Run: "r"}
	end.Lineage = flow.Lineage{Source: flow.Source{Producer: "sieve"}, Position: flow.Position{Offset: 1000}}
	_, _ = (&life{world: w, uses: -1}).Publish(t.Context(), "good", 0, end)
	plan := testPlan()
	plan.Spec.Checkpoint = time.Hour
	l := &life{world: w, uses: -1}
	road := &shutRoad{life: l, open: make(chan struct{})}
	w.commits["g"] = map[string]streams.Committed{}
	r := &Runner{Plan: plan, Store: l, Log: slog.New(slog.DiscardHandler), Meter: NewMeter(), Drain: Drain{Run: "r", Gateways: 1}, road: road}
	r.once.Do(func() {})
	bytes := newBudget(5 * size)
	g := &generation{group: "g", budget: bytes, partitions: []int32{0}, ids: map[string]string{}, commit: l.commit("g")}
	unit := plan.Units[1]
	unit.Stages = unit.Stages[:1] // sums: as many rows come out as go in
	var work conc.WaitGroup
	work.Go(func() {
		if done, err := r.runTask(t.Context(), g, unit, 0); err != nil || !done {
			t.Errorf("done %v: %v", done, err)
		}
	})
	time.Sleep(300 * time.Millisecond) // time in which all would be read
	if n := road.read.Load(); n > 20 {
		t.Errorf("%d batches were read while nothing could be published; the budget is 5", n)
	}
	close(road.open)
	work.Wait()
	rows := 0
	for _, b := range w.streams["sums"] {
		if b.Record != nil {
			rows += int(b.Record.NumRows())
		}
	}
	if rows != batches*8192 || bytes.held != 0 {
		t.Errorf("%d rows came out, want %d; %d bytes held in the end", rows, batches*8192, bytes.held)
	}
}
