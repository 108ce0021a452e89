package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// sourceTask brings one partition of a foreign topic into the gateway's stream.
type sourceTask struct {
	r         *Runner
	node      *pipeline.Source
	from      *streams.Client
	partition int32
	commit    func(context.Context, []streams.Commit) error
	decode    Decoder
	meter     *NodeMeter
	stamped   time.Time // of the last message taken, as its producer or the broker has it

	reader  *streams.Reader
	next    int64 // first offset that is not yet published
	note    sourceNote
	again   bool            // others have worked on it before
	held    *streams.Record // read, and not taken yet; valid until the next read
	rows    map[int32]*flow.EventBuilder
	dead    *flow.DeadBuilder
	letters int

	told   map[int32]bool // partitions that wait for a sign of life
	signs  int32          // given since the last range
	lastAt time.Time      // of the last range
}

// run works until ctx ends. A range that was begun to be published is published to its end.
func (t *sourceTask) run(ctx context.Context) (err error) {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(windDown, stop) })()
	t.reader = t.from.NewReader(t.node.Topic, t.partition, t.next)
	t.rows, t.dead, t.told = map[int32]*flow.EventBuilder{}, flow.NewDeadBuilder(t.r.mem()), map[int32]bool{}
	defer func() {
		t.dead.Release()
		err = errors.Join(err, t.reader.Close())
	}()
	if t.note.Intent != nil {
		again := *t.note.Intent
		t.r.Log.Info("publishing a range again that may have been published before", "source", t.node.Name, "partition", t.partition, "first", again.First, "last", again.Last)
		if _, err := t.gather(ctx, &again); err != nil {
			return err
		}
		if err := t.publish(work, again.Last); err != nil {
			return err
		}
	} else if t.again { // the life before this one left some partitions waiting
		for p := range int32(t.r.Plan.Spec.Partitions) {
			t.told[p] = true
		}
		if err := t.sign(work, flow.KindEnd); err != nil {
			return err
		}
	}
	for {
		last, err := t.gather(ctx, nil)
		if err == nil && last >= t.next {
			err = t.store(work, last)
		}
		if ctx.Err() != nil {
			return errors.Join(t.settle(work), ctx.Err())
		}
		if err == nil {
			err = t.beat(work)
		}
		if err != nil {
			return err
		}
		t.show()
	}
}

// store commits the intent, then publishes what was gathered. That the range before it is published, the same commit says.
func (t *sourceTask) store(ctx context.Context, last int64) error {
	t.note.Intent = &intent{First: t.next, Last: last}
	if err := t.save(ctx); err != nil {
		return err
	}
	return t.publish(ctx, last)
}

// settle says that everything begun is done, and that this source holds nobody up while nobody reads it.
func (t *sourceTask) settle(ctx context.Context) error {
	if t.note.Intent == nil {
		return nil
	}
	t.note.Intent = nil
	return errors.Join(t.save(ctx), t.sign(ctx, flow.KindEnd))
}

func (t *sourceTask) save(ctx context.Context) error {
	text, err := json.Marshal(t.note)
	if err != nil {
		return err
	}
	start := time.Now()
	err = t.commit(ctx, []streams.Commit{{Stream: t.node.Topic, Partition: t.partition, Offset: t.next, Metadata: string(text)}})
	t.meter.Checkpoint.Observe(time.Since(start).Seconds())
	return err
}

// gather reads a range: until it is large or old enough, or exactly that of again. It gives the last offset taken.
func (t *sourceTask) gather(ctx context.Context, again *intent) (last int64, err error) {
	last = t.next - 1
	var deadline time.Time
	wait, since := sourceBeat, time.Now()
	rows, bytes := 0, 0
	for again == nil && rows < sourceRows && bytes < sourceBytes || again != nil && last < again.Last {
		m, err := t.read(ctx, deadline, wait)
		var broken *streams.DecodeError
		switch {
		case err == nil && again != nil && m.Offset > again.Last:
			t.held = &m // what stood at the end of the range has been compacted away
			return again.Last, nil
		case err == nil:
			last = m.Offset
			if !m.Time.IsZero() {
				t.stamped = m.Time
			}
			bytes += len(m.Value) + 64
			rows += t.take(&m)
			since = time.Now()
		case errors.As(err, &broken):
			last = broken.Offset
			t.bad(broken.Offset, -1, broken.Err.Error(), "")
			rows++
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			if again == nil {
				return last, nil
			}
			if t.reader.End() > again.Last && time.Since(since) > sourceGone {
				return again.Last, nil // likewise, and nothing has come after it
			}
		default:
			return last, err
		}
		if again == nil && deadline.IsZero() {
			deadline = time.Now().Add(t.node.Linger)
		}
	}
	return last, nil
}

func (t *sourceTask) read(ctx context.Context, deadline time.Time, atMost time.Duration) (streams.Record, error) {
	if m := t.held; m != nil {
		t.held = nil
		return *m, nil
	}
	if deadline.IsZero() {
		deadline = time.Now().Add(atMost)
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	return t.reader.NextRecord(ctx)
}

// take puts a message's rows to those of their partitions, and says how many they are.
func (t *sourceTask) take(m *streams.Record) (rows int) {
	if t.empty() { // the range begins: all its rows arrived now
		t.note.Watermark = max(t.note.Watermark, flow.MicrosOf(time.Now()))
	}
	t.decode.Decode(m, t.note.Watermark, func(e *flow.Event) {
		p := flow.PartitionOf(e.Home, t.r.Plan.Spec.Partitions)
		b := t.rows[p]
		if b == nil {
			b = flow.NewEventBuilder()
			t.rows[p] = b
		}
		b.Append(e)
		rows++
	}, func(row int, reason string) {
		t.bad(m.Offset, row, reason, clipText(m.Value))
		rows++
	})
	return rows
}

// clipText is the beginning of a message that nobody could read.
func clipText(b []byte) string {
	if len(b) <= deadLetterText {
		return string(b)
	}
	n := deadLetterText
	for n > deadLetterText-utf8.UTFMax && !utf8.RuneStart(b[n]) {
		n--
	}
	return string(b[:n])
}

func (t *sourceTask) bad(offset int64, row int, reason, text string) {
	if t.empty() {
		t.note.Watermark = max(t.note.Watermark, flow.MicrosOf(time.Now()))
	}
	t.dead.Foreign(t.node.Name, flow.Origin{Stream: t.node.Topic, Partition: t.partition, Offset: offset, Watermark: t.note.Watermark}, row, reason, text)
	t.letters++
	t.meter.Bad.Add(1)
}

func (t *sourceTask) empty() bool {
	for _, b := range t.rows {
		if b.Len() > 0 {
			return false
		}
	}
	return t.letters == 0
}

// publish makes the gathered rows durable, each partition's as the batch of this range, and its dead letters.
func (t *sourceTask) publish(ctx context.Context, last int64) error {
	edge := t.meter.Out(t.r.Plan.Spec.Gateway.To)
	for p, b := range t.rows {
		if b.Len() == 0 {
			continue
		}
		rec, bounds := b.Record()
		err := t.part(ctx, t.r.Plan.Spec.Gateway.To, p, rec, bounds, last, 0)
		n := rec.NumRows()
		rec.Release()
		if err != nil {
			return err
		}
		edge.Rows.Add(n)
		edge.Batches.Add(1)
		t.told[p] = true
	}
	if t.letters > 0 {
		rec := t.dead.Record()
		t.letters = 0
		err := t.part(ctx, pipeline.SourceDead, t.partition%int32(t.r.Plan.Spec.Partitions), rec, boundsOf(rec), last, 0)
		rec.Release()
		if err != nil {
			return err
		}
	}
	t.next, t.signs, t.lastAt = last+1, 0, time.Now()
	t.meter.In(t.node.Topic).Batches.Add(1)
	t.show()
	return nil
}

// show says where the source is: with all that stood on the topic when its broker last answered; or, behind, as far as the last
// message taken says. A topic that nobody writes to is no source that stands still.
func (t *sourceTask) show() {
	seen := t.stamped
	if t.reader.End() <= t.next {
		seen = t.reader.Heard()
	}
	at := t.meter.partition(t.node.Topic, t.partition)
	at.Offset.Store(t.next)
	if !seen.IsZero() {
		at.Watermark.Store(int64(flow.MicrosOf(seen)))
	}
}

// part publishes a batch, in halves where it is too large: k is the first of its rows, so positions rise.
func (t *sourceTask) part(ctx context.Context, stream string, to int32, rec arrow.Record, bounds flow.Bounds, last int64, k int32) error {
	b := flow.Batch{Lineage: t.lineage(last, k), Bounds: bounds, Watermark: t.note.Watermark, Record: rec}
	_, err := t.r.road.Publish(ctx, stream, to, b)
	if n := rec.NumRows(); errors.Is(err, streams.ErrTooLarge) && n > 1 {
		for _, cut := range [][2]int64{{0, n / 2}, {n / 2, n}} {
			half := rec.NewSlice(cut[0], cut[1])
			err := t.part(ctx, stream, to, half, boundsOf(half), last, k+int32(cut[0]))
			half.Release()
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("publish to %s/%d: %w", stream, to, err)
	}
	return nil
}

// lineage names what is made of a range that ends at an offset. Each partition of the topic is a producer by itself: it is
// another process's, perhaps, whose clock says something else.
func (t *sourceTask) lineage(last int64, k int32) flow.Lineage {
	return flow.Lineage{
		Source:   flow.Source{Producer: fmt.Sprintf("source/%s/%d", t.node.Name, t.partition), Stream: t.node.Topic, Partition: t.partition},
		Position: flow.Position{Offset: last, K: k},
	}
}

// beat tells those who wait for this source's time what it is, while it has rows; and when it has had none for a while, that
// they need not wait.
func (t *sourceTask) beat(ctx context.Context) error {
	idle := time.Since(t.lastAt)
	switch {
	case len(t.told) == 0 || t.signs >= signsOfLife-1:
		return nil
	case idle > sourceIdle:
		return t.settle(ctx)
	case idle > sourceBeat:
		return t.sign(ctx, flow.KindHeartbeat)
	}
	return nil
}

// sign tells the time, or that none will be told, to the partitions that wait for it.
func (t *sourceTask) sign(ctx context.Context, kind flow.Kind) error {
	if t.next == 0 {
		return nil // there is no offset before the first
	}
	t.note.Watermark = max(t.note.Watermark, flow.MicrosOf(time.Now()))
	b := flow.Batch{Kind: kind, Lineage: t.lineage(t.next-1, sourceSigns+t.note.Life*signsOfLife+t.signs), Watermark: t.note.Watermark}
	if kind == flow.KindEnd {
		b.Run = sourceRest
	}
	t.signs++
	for p := range t.told {
		if _, err := t.r.road.Publish(ctx, t.r.Plan.Spec.Gateway.To, p, b); err != nil {
			return err
		}
	}
	if kind == flow.KindEnd {
		clear(t.told)
	}
	return nil
}

// sourceRest is the run that a source ends when it falls silent: one that nobody drains.
const sourceRest = "source-rests"
