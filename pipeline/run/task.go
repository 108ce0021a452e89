package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow/util"
	"github.com/sourcegraph/conc"
	"github.com/sourcegraph/conc/stream"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// Limits of a task.
const (
	// Messages processed but not yet published, of one partition.
	deliveriesMax = 64
	// What was made of them and is not yet published, of all partitions of a unit in one process: bytes in memory. What
	// is encoded from it takes less, since it is sent by requests of a bounded size.
	unitBytesMax = 64 << 20
	// How long a task may go on finishing what it has in hand after it was told to stop.
	windDown = 10 * time.Second
	// Heartbeats a stream may lack before one is sent on: in the time that batches carry.
	heartbeatEvery = time.Second
)

// Positions of the batches without rows that a stage sends on: above those of any rows it makes of the same message.
const (
	heartbeatK = math.MaxInt32 - 1
	endK       = math.MaxInt32
)

// task runs a unit on one partition: it reads batches in order, processes them (several at once where no stage
// remembers anything), publishes what comes of them in order, and checkpoints. All order, all dropping of
// duplicates and all time is decided on the goroutine of run; deliver and publish only carry it out.
type task struct {
	r         *Runner
	unit      *pipeline.Unit
	partition int32
	inputs    []*input // sorted by stream
	merge     merge
	chains    chan *chain // idle ones; one when the unit is stateful
	budget    *budget     // of what all tasks of the unit have made and not yet published
	keeper    *keeper
	told      map[string]flow.Micros // stream → watermark last sent on it; used by deliver alone
	edges     []edge                 // what the unit writes to Kafka and heartbeats go to
	deads     []edge                 // its dead letters that only sinks read
	watermark flow.Micros
	fresh     bool // there is no checkpoint yet
	anew      bool // some stage begins without state, or not with its own

	turn     *turn              // what it may be heading for; nil: no second version is tried
	held     string             // the promotion for which a shadow stops
	promoted map[string]string  // the promotions by which its stages are what they are
	canaries map[string]float64 // whose canaries work, and for how many percent of the homes
	muted    map[string]int64   // where what it makes begins to count

	deliveries chan delivery
	saving     atomic.Bool      // a checkpoint is on its way
	costs      [3]time.Duration // that the last ones took, to be made and to be stored; used by save alone
	saves      int
	cost       atomic.Int64 // the least of them, nanoseconds
	fail       context.CancelCauseFunc
}

// input is one input stream of a task.
type input struct {
	stream string
	id     string
	next   int64
	marks  *marks
	ends   int // producers that have to end before the input has ended
	ended  bool
}

// edge is a stream that a stage of the unit writes.
type edge struct {
	stage, stream string
	partitions    []int32 // of the stream, to which the task tells time
}

// delivery is what one message came to, in the order of the messages.
type delivery struct {
	made       []made
	bytes      int64       // of made, in memory
	checkpoint *checkpoint // to be saved once everything before it is published
}

// run works until ctx ends, or until every input has ended; then it finishes what it has in hand and saves a last
// checkpoint. done says that the inputs have ended.
func (t *task) run(ctx context.Context) (done bool, err error) {
	// What is in hand may be finished for a while after ctx has ended.
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	t.fail = stop
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(windDown, func() { stop(fmt.Errorf("did not finish within %v of being told to stop", windDown)) })
	})()
	reading, stopReading := context.WithCancelCause(ctx)
	defer stopReading(nil)
	defer context.AfterFunc(work, func() { stopReading(context.Cause(work)) })()

	t.deliveries = make(chan delivery, deliveriesMax)
	var publisher conc.WaitGroup
	publisher.Go(func() {
		if err := t.publish(work); err != nil {
			t.fail(err)
		}
	})
	workers := stream.New().WithMaxGoroutines(cap(t.chains))
	done, err = t.read(reading, work, workers)
	workers.Wait()
	close(t.deliveries)
	publisher.Wait()
	if cause := context.Cause(work); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = cause
	}
	return done && err == nil, errors.Join(err, t.close())
}

// close gives back the inputs and the chains, none of which is in use any more.
func (t *task) close() error {
	var errs []error
	for range len(t.chains) {
		errs = append(errs, (<-t.chains).close())
	}
	return errors.Join(append(errs, t.merge.close())...)
}

// read takes messages until it is told to stop or the inputs have ended, and submits them.
func (t *task) read(ctx, work context.Context, workers *stream.Stream) (done bool, err error) {
	defer func() {
		if err == nil {
			t.submitCheckpoint(work, workers)
		}
	}()
	if t.allEnded() {
		return true, nil
	}
	if t.fresh || t.anew {
		// What a stage found when it was opened (a registry, a model) is part of its state: it must be on record
		// before anything is made with it, or a replay might be made with something else. And whoever finds
		// batches of a unit that has no checkpoint knows that they are not this unit's (see Runner.foreign).
		t.submitCheckpoint(work, workers)
	}
	dirty, due := false, time.Now().Add(t.r.Plan.Spec.Checkpoint)
	for {
		if dirty && !time.Now().Before(due) && t.saving.CompareAndSwap(false, true) {
			t.submitCheckpoint(work, workers)
			dirty, due = false, time.Now().Add(t.checkpointPause())
		}
		if t.turns(ctx) {
			return false, nil
		}
		msg, err := t.nextMessage(ctx, dirty, due)
		var broken *streams.DecodeError
		switch {
		case err == nil:
		case errors.As(err, &broken):
			dirty = true
			t.submitBroken(work, workers, broken)
			continue
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			continue
		case ctx.Err() != nil:
			return false, nil
		default:
			return false, err
		}
		dirty = true
		if t.take(work, workers, msg) {
			return true, nil
		}
	}
}

// checkpointShare is the most of a task's time that checkpoints take. While one is made the stage stands still, and while it
// is stored nothing is published; so those of a large state come less often than is set, and a replay is as much longer.
const checkpointShare = 0.1

// checkpointPauseMax bounds what slow checkpoints add to a replay.
const checkpointPauseMax = 5 * time.Minute

// checkpointPause is the time from one checkpoint to the next: as set, or longer if the last ones took long.
func (t *task) checkpointPause() time.Duration {
	return max(t.r.Plan.Spec.Checkpoint, min(time.Duration(float64(t.cost.Load())/checkpointShare), checkpointPauseMax))
}

// saved notes what a checkpoint took. What counts is the least of three: a state that is large makes each of them dear; a broker
// that was away makes one, and a replay is not to be longer for that.
func (t *task) saved(took time.Duration) {
	t.costs[t.saves%len(t.costs)] = took
	t.saves++
	t.cost.Store(int64(slices.Min(t.costs[:])))
}

// nextMessage waits for a message, but no longer than until a checkpoint is due.
func (t *task) nextMessage(ctx context.Context, dirty bool, due time.Time) (streams.Message, error) {
	until := maxTime(due, time.Now().Add(10*time.Millisecond))
	if look := time.Now().Add(lookEvery); t.turn != nil && (!dirty || look.Before(until)) {
		dirty, until = true, look
	}
	if dirty {
		wait, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		ctx = wait
	}
	return t.merge.next(ctx)
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// take submits a message, unless it was taken before. It says whether all inputs have ended with it.
func (t *task) take(work context.Context, workers *stream.Stream, msg streams.Message) (allEnded bool) {
	in := t.input(msg.Stream)
	in.next = msg.Offset + 1
	t.r.Meter.Node(t.unit.Name).partition(msg.Stream, t.partition).Offset.Store(in.next)
	if !in.marks.take(&msg.Batch) {
		t.r.Meter.Node(t.unit.Name).Duplicates.Add(1)
		if msg.Batch.Record != nil {
			msg.Batch.Record.Release()
		}
		return false
	}
	if in.marks.ended(t.r.Drain.Run) >= in.ends && t.r.Drain.Run != "" {
		in.ended = true
		t.merge.end(in.stream)
	}
	t.advance()
	t.submit(work, workers, message{
		origin:    flow.Origin{Stream: msg.Stream, Partition: t.partition, Offset: msg.Offset, Watermark: msg.Batch.Watermark},
		watermark: t.watermark,
		record:    msg.Batch.Record,
		trace:     msg.Batch.Trace,
	}, t.allEnded())
	return t.allEnded()
}

func (t *task) input(stream string) *input {
	return t.inputs[slices.IndexFunc(t.inputs, func(in *input) bool { return in.stream == stream })]
}

func (t *task) allEnded() bool {
	return !slices.ContainsFunc(t.inputs, func(in *input) bool { return !in.ended })
}

// advance moves the task's watermark to the lowest of its inputs' that have not ended.
func (t *task) advance() {
	low := flow.Micros(math.MaxInt64)
	for _, in := range t.inputs {
		if !in.ended || t.allEnded() {
			low = min(low, in.marks.watermark)
		}
	}
	t.watermark = max(t.watermark, low)
	meter := t.r.Meter.Node(t.unit.Name)
	for _, in := range t.inputs {
		meter.partition(in.stream, t.partition).Watermark.Store(int64(in.marks.watermark))
	}
}

// submit has a message processed. What comes of it is delivered in the order of submission.
func (t *task) submit(work context.Context, workers *stream.Stream, m message, last bool) {
	workers.Go(func() stream.Callback {
		var out []made
		if m.record != nil {
			defer m.record.Release()
		}
		if work.Err() == nil {
			end := t.trace(&m)
			t.withChain(func(c *chain) (err error) {
				out, err = c.process(work, m)
				end(err)
				return err
			})
		}
		return func() { t.deliver(work, m, out, last) }
	})
}

// trace begins a span for a batch that was sampled; what is made of the batch follows from it.
func (t *task) trace(m *message) (end func(error)) {
	if t.r.Tracer == nil || m.trace == "" || m.record == nil {
		return func(error) {}
	}
	m.trace, end = t.r.Tracer.Span("stage.process", time.Now(), []string{m.trace}, slog.String("hearthline.node", t.unit.Name),
		slog.String("messaging.source.name", m.origin.Stream), slog.Int("messaging.source.partition.id", int(t.partition)), slog.Int64("hearthline.rows", m.record.NumRows()))
	return end
}

// withChain calls f with an idle chain; its error ends the task. So does a panic that is not a stage's (see
// chain.call): a worker that died of it would keep the chain, and everything behind it would wait for ever.
func (t *task) withChain(f func(*chain) error) {
	c := <-t.chains
	defer func() { t.chains <- c }()
	if err := panicIsError(func() error { return f(c) }); err != nil {
		t.fail(err)
	}
}

// panicIsError calls f and makes an error of a panic.
func panicIsError(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

// deliver hands what a message came to over to publish. It is called in the order of the messages.
func (t *task) deliver(work context.Context, m message, out []made, last bool) {
	if work.Err() != nil || t.isMuted(m.origin.Stream, m.origin.Offset) {
		release(out)
		return
	}
	for _, d := range out {
		t.told[t.r.toldOf(d.stream, d.partition)] = m.watermark
	}
	for _, e := range t.edges {
		for _, p := range e.partitions {
			told := t.r.toldOf(e.stream, p)
			switch {
			case last:
				out = append(out, t.tell(m, e, p, flow.KindEnd, endK))
			case m.watermark.Sub(t.told[told]) >= heartbeatEvery:
				t.told[told] = m.watermark
				out = append(out, t.tell(m, e, p, flow.KindHeartbeat, heartbeatK))
			}
		}
	}
	if last {
		for _, e := range t.deads {
			out = append(out, t.tell(m, e, t.partition, flow.KindEnd, endK))
		}
	}
	if len(out) > 0 {
		t.hand(work, out)
	}
}

// hand waits until there is room for what was made, and gives it to publish.
func (t *task) hand(work context.Context, out []made) {
	d := delivery{made: out, bytes: bytesOf(out)}
	if err := t.budget.take(work, d.bytes); err != nil {
		release(out) // the task is ending: nothing behind this will be published either
		return
	}
	t.deliveries <- d
}

func bytesOf(out []made) (n int64) {
	for _, m := range out {
		if m.batch.Record != nil {
			n += util.TotalRecordSize(m.batch.Record)
		}
	}
	return n
}

func (t *task) tell(m message, e edge, partition int32, kind flow.Kind, k int32) made {
	b := flow.Batch{
		Kind: kind,
		Lineage: flow.Lineage{
			Source:   flow.Source{Producer: e.stage, Stream: m.origin.Stream, Partition: m.origin.Partition},
			Position: flow.Position{Offset: m.origin.Offset, K: k},
		},
		Watermark: m.watermark,
	}
	if kind == flow.KindEnd {
		b.Run = t.r.Drain.Run
	}
	return made{stream: e.stream, partition: partition, batch: b}
}

// submitCheckpoint has a checkpoint saved that covers every message submitted so far.
func (t *task) submitCheckpoint(work context.Context, workers *stream.Stream) {
	c := &checkpoint{Watermark: t.watermark, Held: t.held, Promoted: t.promoted, Canaries: t.canaries, Muted: t.stillMuted()}
	if t.turn != nil && t.turn.due {
		c.last = func() { t.turn.last = c }
	}
	for _, in := range t.inputs {
		c.Inputs = append(c.Inputs, inputMark{
			Stream: in.stream, StreamID: in.id, Next: in.next, Watermark: in.marks.watermark, Begun: in.marks.begun, Marks: in.marks.list(),
		})
	}
	workers.Go(func() stream.Callback {
		begun := time.Now()
		if work.Err() == nil && cap(t.chains) == 1 {
			t.withChain(func(chain *chain) (err error) {
				c.state, err = chain.snapshot()
				return err
			})
		}
		c.making = time.Since(begun)
		return func() {
			if work.Err() == nil {
				c.Told = maps.Clone(t.told)
				t.deliveries <- delivery{checkpoint: c}
			}
		}
	})
}

// submitBroken sets a message aside that could not be decoded.
func (t *task) submitBroken(work context.Context, workers *stream.Stream, broken *streams.DecodeError) {
	t.input(broken.Stream).next = broken.Offset + 1
	t.r.Meter.Node(t.unit.Name).partition(broken.Stream, t.partition).Offset.Store(broken.Offset + 1)
	// A message that nobody can read tells no time: its is that of the task when its turn came.
	from := flow.Origin{Stream: broken.Stream, Partition: t.partition, Offset: broken.Offset, Watermark: t.watermark}
	head := t.unit.Stages[slices.IndexFunc(t.unit.Stages, func(s *pipeline.StageNode) bool { return slices.Contains(s.From, broken.Stream) })]
	workers.Go(func() stream.Callback {
		return func() {
			if work.Err() != nil || t.isMuted(from.Stream, from.Offset) {
				return
			}
			t.r.Meter.Node(head.Name).Bad.Add(1)
			t.hand(work, []made{deadMessage(t.r.mem(), head, from, broken.Err)})
		}
	})
}

// chainsFor is how many messages a task works on at once.
func (r *Runner) chainsFor(u *pipeline.Unit) int {
	if stateful(u) {
		return 1
	}
	n := cmp.Or(r.workers, runtime.GOMAXPROCS(0))
	for _, s := range u.Stages {
		if s.Parallel > 0 {
			n = min(n, s.Parallel)
		}
	}
	// A stateless unit with one worker still differs from a stateful one: it has no state to save.
	return n
}
