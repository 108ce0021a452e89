package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/util"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// Limits of what a sink gathers, in bytes in memory, whatever its rows limit.
const (
	// For one range, by how many partitions the process has: a few hundred thousand readings, or some fifty thousand.
	rangeBytesMax, rangeBytesMin = 32 << 20, 4 << 20
	// For all ranges of a sink in one process, gathered or being written. Sinks hold what they encode besides, and readers
	// what they fetched ahead; a pod is given 512 MiB (TestOutage holds a sink to that).
	sinkBytesMax = 64 << 20
)

// sinkTask keeps one partition of one stream in a sink. It gathers a range, commits that it is about to write it
// (the intent), writes it, and commits that it has. After a crash the same range is cut again from the same
// offsets, so that a sink for which writing twice equals writing once counts every row once.
type sinkTask struct {
	r         *Runner
	node      *pipeline.SinkNode
	sink      flow.Sink
	stream    string
	id        string
	partition int32
	rowsMax   int64
	bytesMax  int64 // of one range
	wait      time.Duration
	budget    *budget // of all ranges of the sink
	open      func(offset int64) source
	keeper    *keeper
	meter     *NodeMeter

	source  source
	next    int64            // first offset that is not yet written
	marks   *marks           // as of next
	fitting *arrow.Schema    // the last that needed no column more
	held    *streams.Message // read, but of another schema than the range before it: the first of the next one
}

// batchRange is what has been gathered for one write.
type batchRange struct {
	records []arrow.Record
	offsets []int64 // of the messages that the records came in
	rows    int64
	bytes   int64
	held    int64 // of budget
	budget  *budget
	last    int64  // offset of the last message taken, next-1 while there is none
	marks   *marks // as of last+1
	broken  []*streams.DecodeError
	ended   bool
	traces  []string // of batches that were sampled
}

func (b *batchRange) release() {
	for _, rec := range b.records {
		rec.Release()
	}
	b.records, b.offsets = nil, nil
	b.budget.give(b.held)
	b.held = 0
}

// differs says whether rec may not stand in a range with the rows gathered: a sink writes rows of one schema.
func (b *batchRange) differs(rec arrow.Record) bool {
	return rec != nil && len(b.records) > 0 && rec.Schema() != b.records[0].Schema() && !rec.Schema().Equal(b.records[0].Schema())
}

// run works until ctx ends or the stream has ended. What was gathered but not begun to be written when ctx ends
// is left to whoever comes next.
func (t *sinkTask) run(ctx context.Context, c *checkpoint) (done bool, err error) {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(windDown, stop) })()
	t.source = t.open(t.next)
	defer func() {
		if t.held != nil {
			t.held.Batch.Record.Release()
		}
		err = errors.Join(err, t.source.Close())
	}()

	if c != nil && c.Intent != nil {
		if err := t.repeat(ctx, work, *c.Intent); err != nil {
			return false, fmt.Errorf("write range %d–%d of %s/%d again: %w", c.Intent.First, c.Intent.Last, t.stream, t.partition, err)
		}
	}
	for {
		if t.ended(t.marks) {
			return true, t.tellEnd(work)
		}
		b, err := t.gather(ctx, nil)
		if err == nil {
			err = t.write(work, b, true)
		}
		b.release()
		if ctx.Err() != nil {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}

func (t *sinkTask) ended(m *marks) bool {
	return t.r.Drain.Run != "" && m.ended(t.r.Drain.Run) >= t.r.ends(t.stream)
}

// repeat writes the range of an intent that may or may not have been written.
func (t *sinkTask) repeat(ctx, work context.Context, i intent) error {
	t.r.Log.Info("writing a range again that may have been written before", "sink", t.node.Name, "stream", t.stream,
		"partition", t.partition, "first", i.First, "last", i.Last)
	b, err := t.gather(ctx, &i)
	defer b.release()
	if err != nil {
		return err
	}
	return t.write(work, b, false)
}

// gather reads until the range is large or old enough, or the sink's budget is spent, or until exactly the range of
// again is read.
func (t *sinkTask) gather(ctx context.Context, again *intent) (*batchRange, error) {
	b := &batchRange{last: t.next - 1, marks: t.marks.copy(), budget: t.budget}
	if err := t.mayBegin(ctx, b, again); err != nil {
		return b, err
	}
	var deadline time.Time
	for {
		if again != nil && b.last >= again.Last {
			return b, nil
		}
		if again == nil && (b.rows+int64(len(b.broken)) >= t.rowsMax || b.bytes >= t.bytesMax || b.bytes > 0 && t.budget.full() || b.ended) {
			return b, nil
		}
		msg, err := t.nextBefore(ctx, deadline)
		var broken *streams.DecodeError
		switch {
		case err == nil && again == nil && b.differs(msg.Batch.Record):
			t.held = &msg
			return b, nil
		case err == nil:
			b.last = msg.Offset
			t.takeInto(b, msg)
		case errors.As(err, &broken):
			b.last = broken.Offset
			b.broken = append(b.broken, broken)
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && again == nil:
			return b, nil
		default:
			return b, err
		}
		if again == nil && deadline.IsZero() {
			deadline = time.Now().Add(t.wait)
		}
	}
}

// mayBegin waits until the sink holds little enough for another range. The range of an intent cannot be cut shorter: its
// bytes are held before it is read.
func (t *sinkTask) mayBegin(ctx context.Context, b *batchRange, again *intent) error {
	if again == nil {
		if err := t.budget.take(ctx, 1); err != nil {
			return err
		}
		t.budget.give(1)
		return nil
	}
	if err := t.budget.take(ctx, t.bytesMax); err != nil {
		return err
	}
	b.held = t.bytesMax
	return nil
}

func (t *sinkTask) nextBefore(ctx context.Context, deadline time.Time) (streams.Message, error) {
	if msg := t.held; msg != nil {
		t.held = nil
		return *msg, nil
	}
	if !deadline.IsZero() {
		wait, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		ctx = wait
	}
	return t.source.Next(ctx)
}

func (t *sinkTask) takeInto(b *batchRange, msg streams.Message) {
	p := t.meter.partition(t.stream, t.partition)
	p.Offset.Store(msg.Offset + 1)
	if !b.marks.take(&msg.Batch) {
		t.meter.Duplicates.Add(1)
		if msg.Batch.Record != nil {
			msg.Batch.Record.Release()
		}
		return
	}
	p.Watermark.Store(int64(b.marks.watermark))
	if trace := msg.Batch.Trace; trace != "" && t.r.Tracer != nil && len(b.traces) < flow.TracesMax {
		b.traces = append(b.traces, trace)
	}
	b.ended = t.ended(b.marks)
	if rec := msg.Batch.Record; rec != nil {
		if rec.NumRows() == 0 {
			rec.Release()
			return
		}
		rec = t.widened(rec)
		b.records, b.offsets = append(b.records, rec), append(b.offsets, msg.Offset)
		b.rows += rec.NumRows()
		b.bytes += util.TotalRecordSize(rec)
		if more := b.bytes - b.held; more > 0 {
			t.budget.add(more)
			b.held = b.bytes
		}
		edge := t.meter.In(t.stream)
		edge.Rows.Add(rec.NumRows())
		edge.Batches.Add(1)
	}
}

// widened gives rows (given away) from before a column was added that column, as nulls: tables and files get the columns that the stream
// has now.
func (t *sinkTask) widened(rec arrow.Record) arrow.Record {
	st := t.r.Plan.Streams[t.stream]
	if st == nil || st.Schema == nil || rec.Schema() == t.fitting {
		return rec
	}
	wide := flow.Widen(rec, st.Schema)
	if wide == rec {
		t.fitting = rec.Schema()
	}
	rec.Release()
	return wide
}

// write stores a range: intent, rows, commit. A range without rows needs no intent.
func (t *sinkTask) write(ctx context.Context, b *batchRange, announce bool) error {
	if b.last < t.next {
		return nil
	}
	r := flow.Range{Stream: t.stream, StreamID: t.id, Partition: t.partition, First: t.next, Last: b.last}
	if b.rows > 0 || len(b.broken) > 0 {
		if announce {
			c := t.checkpoint(t.next, t.marks)
			c.Intent = &intent{First: r.First, Last: r.Last}
			if err := t.save(ctx, c); err != nil {
				return err
			}
		}
		if err := t.store(ctx, r, b); err != nil {
			return err
		}
	}
	if err := t.save(ctx, t.checkpoint(r.Last+1, b.marks)); err != nil {
		return err
	}
	t.next, t.marks = r.Last+1, b.marks
	return nil
}

// store gives the rows to the sink; those that the sink can never take go to its dead letters.
func (t *sinkTask) store(ctx context.Context, r flow.Range, b *batchRange) error {
	var bad flow.BadRows
	if b.rows > 0 {
		start := time.Now()
		end := t.trace(r, b)
		err := t.r.retry(ctx, t.meter, "write "+r.String(), func() (err error) {
			defer panicIsBad(t.node.Name, &err)
			return t.sink.Write(ctx, r, b.records)
		})
		end(err)
		t.meter.Process.Observe(time.Since(start).Seconds())
		if err != nil && !errors.Is(err, flow.ErrBad) {
			return fmt.Errorf("write %s: %w", r, err)
		}
		if bad, err = refusedRows(err, b.rows); err != nil {
			return fmt.Errorf("write %s: %w", r, err)
		}
	}
	return t.setAside(ctx, r, b, bad)
}

// refusedRows gives the rows of a range that a sink has refused, in order. That it names what is not there is its own fault.
func refusedRows(refusal error, rows int64) (bad flow.BadRows, err error) {
	var named *flow.BadRows
	switch {
	case refusal == nil:
		return bad, nil
	case !errors.As(refusal, &named):
		bad.AddAll(0, int(rows), refusal.Error())
		return bad, nil
	case named.Rows == nil && len(named.Reasons) > 0:
		bad.AddAll(0, int(rows), named.Reasons[0])
		return bad, nil
	case len(named.Rows) != len(named.Reasons):
		return bad, fmt.Errorf("the sink refuses %d rows for %d reasons", len(named.Rows), len(named.Reasons))
	}
	bad = flow.BadRows{Rows: slices.Clone(named.Rows), Reasons: slices.Clone(named.Reasons)}
	bad.Sort()
	for i, row := range bad.Rows {
		if row < 0 || int64(row) >= rows || i > 0 && row == bad.Rows[i-1] {
			return bad, fmt.Errorf("the sink refuses row %d of %d, or refuses it twice", row, rows)
		}
	}
	return bad, nil
}

// trace begins a span for a range that holds batches which were sampled.
func (t *sinkTask) trace(r flow.Range, b *batchRange) (end func(error)) {
	if len(b.traces) == 0 {
		return func(error) {}
	}
	_, end = t.r.Tracer.Span("sink.write", time.Now(), b.traces, slog.String("hearthline.node", t.node.Name), slog.String("hearthline.range", r.String()), slog.Int64("hearthline.rows", b.rows))
	return end
}

// setAside publishes dead letters for a range: messages nobody could read, rows the sink refused.
func (t *sinkTask) setAside(ctx context.Context, r flow.Range, b *batchRange, bad flow.BadRows) error {
	from := flow.Origin{Stream: r.Stream, Partition: r.Partition, Offset: r.First, Watermark: b.marks.watermark}
	if err := t.setAsideBroken(ctx, r, from, b.broken); err != nil || len(bad.Rows) == 0 {
		return err
	}
	var letters []letter
	waiting, first := 0, 0
	for i, rec := range b.records {
		n := int(rec.NumRows())
		refused, from := bad.Within(first, n), from
		from.Offset = b.offsets[i]
		for some := range slices.Chunk(refused.Rows, deadRowsMax) {
			made, err := flow.DeadLetters(t.r.mem(), rec, t.node.Name, from, flow.BadRows{Rows: some, Reasons: refused.Reasons[:len(some)]})
			if err != nil {
				releaseLetters(letters)
				return err
			}
			refused.Reasons = refused.Reasons[len(some):]
			// Their place is that of the last row, not how many there were before: should the sink refuse other rows the
			// second time, then none of those that were set aside neither now nor before takes the place of one that was.
			letters = append(letters, letter{int32(len(b.broken) + first + some[len(some)-1]), made})
			if waiting += len(some); waiting < deadRowsMax {
				continue
			}
			if err := t.publishDead(ctx, r, from, letters); err != nil {
				return err
			}
			letters, waiting = nil, 0
		}
		first += n
	}
	return t.publishDead(ctx, r, from, letters)
}

// setAsideBroken publishes the dead letters of messages that nobody could read.
func (t *sinkTask) setAsideBroken(ctx context.Context, r flow.Range, from flow.Origin, all []*streams.DecodeError) error {
	d := flow.NewDeadBuilder(t.r.mem())
	defer d.Release()
	k := int32(0)
	for some := range slices.Chunk(all, deadRowsMax) {
		for _, broken := range some {
			at := from
			at.Offset = broken.Offset
			d.Message(t.node.Name, at, broken.Err.Error())
		}
		if err := t.publishDead(ctx, r, from, []letter{{k, d.Record()}}); err != nil {
			return err
		}
		k++
	}
	return nil
}

// letter is a batch of dead letters of a range, and its place among them.
type letter struct {
	k   int32
	rec arrow.Record
}

func releaseLetters(all []letter) {
	for _, l := range all {
		l.rec.Release()
	}
}

// publishDead publishes dead letters of range r (given away). Their lineage is the range's, so that a second writing of the range
// makes none that count.
func (t *sinkTask) publishDead(ctx context.Context, r flow.Range, from flow.Origin, letters []letter) error {
	if len(letters) == 0 {
		return nil
	}
	defer releaseLetters(letters)
	edge := t.meter.Out(t.node.Dead)
	var batches []flow.Batch
	for _, l := range letters {
		t.meter.Bad.Add(l.rec.NumRows())
		edge.Rows.Add(l.rec.NumRows())
		edge.Batches.Add(1)
		batches = append(batches, flow.Batch{
			Lineage: flow.Lineage{
				Source:   flow.Source{Producer: t.node.ID(), Stream: r.Stream, Partition: r.Partition},
				Position: flow.Position{Offset: r.Last, K: l.k},
			},
			Bounds: boundsOf(l.rec), Watermark: from.Watermark, Record: l.rec,
		})
	}
	return publishAll(ctx, t.r.road, t.node.Dead, t.partition, batches)
}

// tellEnd ends the run for whoever reads this sink's dead letters.
func (t *sinkTask) tellEnd(ctx context.Context) error {
	if t.r.sinkDead(t.stream) {
		return nil // sinks that keep each other's dead letters would wait for each other
	}
	return publishAll(ctx, t.r.road, t.node.Dead, t.partition, []flow.Batch{{
		Kind: flow.KindEnd,
		Run:  t.r.Drain.Run,
		Lineage: flow.Lineage{
			Source:   flow.Source{Producer: t.node.ID(), Stream: t.stream, Partition: t.partition},
			Position: flow.Position{Offset: t.next - 1, K: endK},
		},
		Watermark: t.marks.watermark,
	}})
}

func (t *sinkTask) checkpoint(next int64, m *marks) *checkpoint {
	return &checkpoint{Inputs: []inputMark{{Stream: t.stream, StreamID: t.id, Next: next, Watermark: m.watermark, Begun: m.begun, Marks: m.list()}}}
}

func (t *sinkTask) save(ctx context.Context, c *checkpoint) error {
	start := time.Now()
	_, err := t.keeper.save(ctx, t.partition, c)
	t.meter.Checkpoint.Observe(time.Since(start).Seconds())
	return err
}
