package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc/pool"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// publish carries deliveries out, in order: everything is published before the checkpoint behind it is saved.
// Deliveries that have piled up while a request was under way travel together. After an error it only drains.
func (t *task) publish(ctx context.Context) error {
	var failed error
	for d := range t.deliveries {
		group, bytes := append([]made(nil), d.made...), d.bytes
		checkpoint := d.checkpoint
		for n := 1; n < deliveriesMax && checkpoint == nil && len(t.deliveries) > 0; n++ {
			more := <-t.deliveries
			group, bytes = append(group, more.made...), bytes+more.bytes
			checkpoint = more.checkpoint
		}
		if failed == nil {
			failed = panicIsError(func() error { return t.publishGroup(ctx, group) })
		}
		release(group)
		t.budget.give(bytes)
		if checkpoint != nil && failed == nil {
			failed = panicIsError(func() error { return t.save(ctx, checkpoint) })
		}
		if failed != nil {
			// Nothing behind a failure may be published or committed: readers would take it for what comes next.
			t.fail(failed)
		}
	}
	return failed
}

// publishGroup publishes the batches of each partition of a stream by one request, all of these at once.
func (t *task) publishGroup(ctx context.Context, group []made) error {
	type place struct {
		stream    string
		partition int32
	}
	byPlace := map[place][]flow.Batch{}
	for _, m := range group {
		to := place{m.stream, m.partition}
		byPlace[to] = append(byPlace[to], m.batch)
	}
	p := pool.New().WithErrors().WithMaxGoroutines(max(1, min(len(byPlace), publishersMax)))
	for to, batches := range byPlace {
		p.Go(func() error { return publishAll(ctx, t.r.road, to.stream, to.partition, batches) })
	}
	return p.Wait()
}

// publishersMax is how many requests of one task are under way at once: a stream with a key has as many places as partitions.
const publishersMax = 16

// publishAll publishes batches in order, by as few requests as the broker's message limit allows.
func publishAll(ctx context.Context, p road, stream string, partition int32, batches []flow.Batch) error {
	_, err := p.Publish(ctx, stream, partition, batches...)
	if errors.Is(err, streams.ErrTooLarge) && len(batches) > 1 {
		half := len(batches) / 2
		if err := publishAll(ctx, p, stream, partition, batches[:half]); err != nil {
			return err
		}
		return publishAll(ctx, p, stream, partition, batches[half:])
	}
	if err != nil {
		return fmt.Errorf("publish to %s/%d: %w", stream, partition, err)
	}
	return nil
}

// save makes a checkpoint valid and notes what it cost.
func (t *task) save(ctx context.Context, c *checkpoint) error {
	defer t.saving.Store(false)
	start := time.Now()
	size, err := t.keeper.save(ctx, t.partition, c)
	if err != nil {
		return err
	}
	if c.last != nil {
		c.last()
	}
	took := c.making + time.Since(start)
	t.saved(took)
	m := t.r.Meter.Node(t.unit.Name)
	m.Checkpoint.Observe(took.Seconds())
	m.partition(t.inputs[0].stream, t.partition).CheckpointBytes.Store(int64(size))
	return nil
}

// deadMessage makes the dead letter of a message that could not be decoded.
func deadMessage(mem memory.Allocator, node *pipeline.StageNode, from flow.Origin, why error) made {
	b := flow.NewDeadBuilder(mem)
	defer b.Release()
	b.Message(node.Name, from, why.Error())
	return made{stream: node.Dead, partition: from.Partition, batch: flow.Batch{
		Lineage: flow.Lineage{
			Source:   flow.Source{Producer: node.ID(), Stream: from.Stream, Partition: from.Partition},
			Position: flow.Position{Offset: from.Offset},
		},
		Bounds:    flow.Bounds{First: from.Watermark, Last: from.Watermark},
		Watermark: from.Watermark,
		Record:    b.Record(),
	}}
}

// deadRowsMax is how many dead letters travel in one batch. As JSON a row takes up to ten times what it takes in
// columns; a batch must stay below what the broker takes, or its task could never go on.
const deadRowsMax = 1024

// deadLetters makes the records of dead letters for the rows of in (borrowed) that node refused.
func deadLetters(mem memory.Allocator, in arrow.Record, node string, from flow.Origin, bad flow.BadRows) ([]arrow.Record, error) {
	rows, reasons := bad.Rows, bad.Reasons
	if rows == nil {
		rows, reasons = make([]int, in.NumRows()), slices.Repeat(reasons[:1], int(in.NumRows()))
		for i := range rows {
			rows[i] = i
		}
	}
	var made []arrow.Record
	for len(rows) > 0 {
		n := min(len(rows), deadRowsMax)
		rec, err := flow.DeadLetters(mem, in, node, from, flow.BadRows{Rows: rows[:n], Reasons: reasons[:n]})
		if err != nil {
			for _, rec := range made {
				rec.Release()
			}
			return nil, err
		}
		made, rows, reasons = append(made, rec), rows[n:], reasons[n:]
	}
	return made, nil
}
