// Package run carries out a plan: a task for each input partition of a unit, which reads batches in order, has the
// stages work on them, publishes what comes of it and checkpoints; a task for each partition that a sink keeps; and
// the consumer groups that spread both over processes. Order, dropping of duplicates, time, retries and dead letters
// are decided here and nowhere else, so that the authors of stages and sinks write none of it.
//
// task.go reads and submits, chain.go calls the stages, publish.go publishes and saves, marks.go knows what has been
// taken, merge.go orders several inputs, checkpoint.go keeps state, sinktask.go writes ranges, runner.go joins groups.
package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/cenkalti/backoff/v5"
	"github.com/sourcegraph/conc/pool"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// Runner runs the nodes of a plan against Kafka. Its fields are set before the first call and not changed.
type Runner struct {
	Plan   *pipeline.Plan
	Client *streams.Client
	Store  blobs.Store // where checkpoints are kept
	Log    *slog.Logger
	Meter  *Meter
	Drain  Drain
	Tap    TapFunc          // nil: nobody looks
	Mem    memory.Allocator // nil: the Go heap
	// Instance, if not "", is the lasting name of this process: unique among those that run the same node, and the same
	// after a restart. Killed and started again, it goes on with its partitions at once; see streams.GroupConfig.
	Instance string
	Tracer   flow.Tracer // nil: nobody traces
	// Version is the binary's, for the notes of what ran.
	Version string
	// Histories are streams, by name, that are read from elsewhere than Kafka: those that a replay begins with.
	Histories map[string]History

	once     sync.Once
	road     road
	patience time.Duration          // 0: patienceMax
	settle   time.Duration          // 0: settleTime
	catchUp  time.Duration          // 0: catchUpWait
	stepped  func()                 // called after each step of a change; nil: nobody looks
	workers  int                    // messages a stateless unit works on at once; 0: one a core
	pauses   func() backoff.BackOff // between two attempts; nil: exponential, with jitter
}

// road is what tasks need of Kafka.
type road interface {
	// Publish makes batches (borrowed) durable on a partition of a stream, in order.
	Publish(ctx context.Context, stream string, partition int32, batches ...flow.Batch) (int64, error)
	// Reader reads a partition from an offset on.
	Reader(stream string, partition int32, offset int64) source
	// Bounds gives the first offset that is kept and the next that will be written.
	Bounds(ctx context.Context, stream string, partition int32) (first, next int64, err error)
}

// kafka is the road over a Kafka cluster.
type kafka struct {
	*streams.Client
	*streams.Producer
}

func (k kafka) Reader(stream string, partition int32, offset int64) source {
	return k.NewReader(stream, partition, offset)
}

// Drain says when a runner's nodes are done: when the end of run Run has come to them with the data. The zero
// Drain is never.
type Drain struct {
	Run      string
	Gateways int // how many gateways write the gateway's stream; each ends the run
}

// patienceMax is how long a call is repeated while the world fails, before the node ends with the error and is
// started afresh.
const patienceMax = 2 * time.Minute

func (r *Runner) mem() memory.Allocator {
	if r.Mem != nil {
		return r.Mem
	}
	return memory.DefaultAllocator
}

func (r *Runner) init() {
	r.once.Do(func() {
		if r.road == nil {
			r.road = kafka{r.Client, r.Client.NewProducer()}
		}
		if len(r.Histories) > 0 {
			r.road = replayed{r.road, r.Histories}
		}
	})
}

// ends is the number of producers that have to end a stream.
func (r *Runner) ends(stream string) int {
	if stream == r.Plan.Spec.Gateway.To || stream == r.Plan.Spec.Gateway.Commands {
		return r.Drain.Gateways
	}
	if all := r.awaited(stream); all != nil {
		return len(all)
	}
	for _, s := range r.Plan.Sinks {
		if s.Dead == stream {
			// A sink's streams end one by one; see sinkTask.tellEnd.
			n := 0
			for _, in := range s.Streams {
				if !r.sinkDead(in) {
					n++
				}
			}
			return n
		}
	}
	return 1
}

// sinkDead says whether a stream holds the dead letters of a sink.
func (r *Runner) sinkDead(stream string) bool {
	return slices.ContainsFunc(r.Plan.Sinks, func(s *pipeline.SinkNode) bool { return s.Dead == stream })
}

// Ensure makes the streams of the plan that Kafka does not have yet, and checks those that it has.
func (r *Runner) Ensure(ctx context.Context) error {
	specs := []streams.Spec{{Name: NoteStream, Partitions: 1, Compacted: true}}
	for _, name := range slices.Sorted(maps.Keys(r.Plan.Streams)) {
		if s := r.Plan.Streams[name]; s.OnKafka() {
			specs = append(specs, streams.Spec{Name: name, Partitions: r.Plan.Spec.Partitions, Retention: r.Plan.Spec.Kafka.Retention})
		}
	}
	if err := r.Client.Ensure(ctx, specs); err != nil {
		return fmt.Errorf("prepare streams: %w", err)
	}
	return nil
}

// group names the consumer group of a node.
func (r *Runner) group(node string) string { return r.Plan.Group(node) }

// Unit runs a unit (or the unit that a stage is in) until ctx ends or, with a Drain, until its inputs have ended.
// An error ends it; start it again.
func (r *Runner) Unit(ctx context.Context, name string) error {
	r.init()
	unit := r.Plan.Node(name)
	if unit == nil {
		return fmt.Errorf("no stage %q in %s", name, r.Plan.Spec.File)
	}
	unit, trial, err := r.watchTrials(ctx, unit)
	if err != nil {
		return err
	}
	if trial != nil && trial.over() {
		return trial.rest(ctx)
	}
	if err := r.enter(ctx, r.noteOfUnit(unit)); err != nil {
		return err
	}
	work := func(ctx context.Context) error {
		return r.join(ctx, unit.Name, unit.Inputs, newBudget(unitBytesMax), func(ctx context.Context, g *generation) (bool, error) {
			g.trial = trial
			return r.runTask(ctx, g, unit, g.partitions[0])
		})
	}
	if trial == nil {
		return work(ctx)
	}
	return trial.run(ctx, work)
}

// Sink runs a sink until ctx ends or, with a Drain, until its streams have ended. An error ends it; start it again.
func (r *Runner) Sink(ctx context.Context, name string) (err error) {
	r.init()
	i := slices.IndexFunc(r.Plan.Sinks, func(s *pipeline.SinkNode) bool { return s.Name == name })
	if i < 0 {
		return fmt.Errorf("no sink %q in %s", name, r.Plan.Spec.File)
	}
	node := r.Plan.Sinks[i]
	if err := r.enter(ctx, r.noteOfSink(node)); err != nil {
		return err
	}
	sink := node.New()
	connected := r.Meter.Node(name).waitsFor(fmt.Errorf("sink %s is not connected yet; its log says to what", name))
	err = flow.Open(ctx, sink)
	connected()
	if err != nil {
		return fmt.Errorf("open sink %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, flow.Close(sink)) }()
	return r.join(ctx, node.Name, node.Streams, newBudget(sinkBytesMax), func(ctx context.Context, g *generation) (bool, error) {
		type place struct {
			stream    string
			partition int32
		}
		var places []place
		for _, stream := range node.Streams {
			for _, p := range g.partitions {
				places = append(places, place{stream, p})
			}
		}
		return each(ctx, places, func(ctx context.Context, p place) (bool, error) {
			return r.runSinkTask(ctx, g, node, sink, p.stream, p.partition)
		})
	})
}

// generation is a node's time with a partition, as a member of its consumer group.
type generation struct {
	group      string
	partitions []int32 // the one
	committed  map[string]map[int32]streams.Committed
	ids        map[string]string // stream → id of its incarnation
	budget     *budget           // of all tasks of the node in this process
	trial      *trialWatch       // of the second versions of the unit's stages; nil: none is tried
	commit     func(context.Context, []streams.Commit) error
}

// commitsOf is what is committed for a partition of some streams.
func commitsOf(committed map[string]map[int32]streams.Committed, inputs []string, partition int32) map[string]streams.Committed {
	commits := map[string]streams.Committed{}
	for _, stream := range inputs {
		if c, ok := committed[stream][partition]; ok {
			commits[stream] = c
		}
	}
	return commits
}

// set says whether an offset is committed for some input: by a task, or by somebody who set it by hand.
func (g *generation) set(inputs []string, partition int32) bool {
	return slices.ContainsFunc(inputs, func(stream string) bool { _, ok := g.committed[stream][partition]; return ok })
}

// each runs f for every one of all at once. It says whether all are done.
func each[T any](ctx context.Context, all []T, f func(context.Context, T) (bool, error)) (bool, error) {
	p := pool.NewWithResults[bool]().WithContext(ctx).WithCancelOnError()
	for _, one := range all {
		p.Go(func(ctx context.Context) (bool, error) { return f(ctx, one) })
	}
	results, err := p.Wait()
	return err == nil && !slices.Contains(results, false), err
}

// join takes part in a node's consumer group: run works on each partition while it is this member's.
func (r *Runner) join(ctx context.Context, node string, inputs []string, bytes *budget, run func(context.Context, *generation) (done bool, err error)) error {
	ids := map[string]string{}
	for _, stream := range inputs {
		info, err := r.Client.Info(ctx, stream)
		if err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
		ids[stream] = info.ID
	}
	member, leave := context.WithCancel(ctx)
	defer leave()
	var done atomic.Int64 // partitions, of those that are this member's
	err := r.Client.Join(member, r.membership(node, inputs), func(ctx context.Context, a *streams.Assignment) error {
		r.Log.Debug("partition assigned", "node", node, "partition", a.Partition())
		finished, err := run(ctx, assigned(r.group(node), a, ids, bytes))
		if errors.Is(err, streams.ErrFenced) {
			r.Log.Info("a partition was taken over by another member", "node", node, "partition", a.Partition(), "error", err)
			return streams.ErrFenced
		}
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			// The partition went while its task was still making ready. Whoever has it next does that.
			r.Log.Debug("a partition went before work on it had begun", "node", node, "partition", a.Partition(), "error", err)
			return nil
		}
		if err != nil {
			return err
		}
		if finished {
			// Nothing is left to do here, but the group is left only when that is true of all its partitions.
			if done.Add(1) == int64(r.Plan.Spec.Partitions) {
				leave()
			}
			defer done.Add(-1)
			<-ctx.Done()
		}
		return nil
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", node, err)
	}
	return ctx.Err()
}

// membership is how a node takes part in its group.
func (r *Runner) membership(node string, inputs []string) streams.GroupConfig {
	return streams.GroupConfig{ID: r.group(node), Streams: inputs, Instance: r.Instance, SessionTimeout: r.Plan.Spec.Kafka.SessionTimeout}
}

// assigned is what a partition's task needs of its membership.
func assigned(group string, a *streams.Assignment, ids map[string]string, bytes *budget) *generation {
	g := &generation{
		group: group, partitions: []int32{a.Partition()}, committed: map[string]map[int32]streams.Committed{}, ids: ids, budget: bytes, commit: a.Commit,
	}
	for stream, c := range a.Committed() {
		g.committed[stream] = map[int32]streams.Committed{a.Partition(): c}
	}
	return g
}

// runTask runs a unit on one partition for one generation.
func (r *Runner) runTask(ctx context.Context, g *generation, unit *pipeline.Unit, partition int32) (done bool, err error) {
	keeper := r.keeper(g, unit.Name, unit.Inputs[0], partition)
	begun := time.Now()
	saved, err := keeper.last(ctx, commitsOf(g.committed, unit.Inputs, partition))
	if err != nil {
		return false, err
	}
	read := time.Since(begun)
	if err := keeper.sweep(ctx); err != nil {
		return false, err
	}
	for _, stream := range unit.Inputs {
		defer r.Meter.Node(unit.Name).release(stream, partition)
	}
	for {
		unit, from, anew, err := r.takeUp(ctx, g, unit, partition, saved)
		if err != nil {
			return false, err
		}
		t := &task{r: r, unit: unit, partition: partition, budget: g.budget, told: map[string]flow.Micros{}, keeper: keeper, anew: anew}
		if err := r.prepare(ctx, t, g, from); err != nil {
			return false, errors.Join(err, t.close())
		}
		r.tellTakenUp(ctx, t, from, read, time.Since(begun))
		if done, err = t.run(ctx); err != nil || t.turn == nil || t.turn.last == nil {
			return done, err
		}
		begun = time.Now()
		if saved, err = r.turned(ctx, t); err != nil {
			return false, err
		}
	}
}

// takenUpSlowly is how long a partition may stand still until its state is there before that is worth a line in any log.
const takenUpSlowly = time.Second

// tellTakenUp says what the state of a partition cost to be read and restored.
func (r *Runner) tellTakenUp(ctx context.Context, t *task, saved *checkpoint, read, all time.Duration) {
	level, size := slog.LevelDebug, 0
	if all > takenUpSlowly {
		level = slog.LevelInfo
	}
	if saved != nil {
		for _, state := range saved.state {
			size += len(state)
		}
	}
	r.Log.Log(ctx, level, "partition taken up", "node", t.unit.Name, "partition", t.partition, "state_bytes", size,
		"read", read.Round(time.Millisecond), "restored", all.Round(time.Millisecond))
}

// prepare makes a task ready to go on from a checkpoint, or to begin when there is none. The caller closes it, also
// after an error.
func (r *Runner) prepare(ctx context.Context, t *task, g *generation, saved *checkpoint) error {
	unit, partition := t.unit, t.partition
	states := map[string][]byte{}
	t.fresh = saved == nil
	if saved != nil {
		states, t.watermark = saved.state, saved.Watermark
		maps.Copy(t.told, saved.Told)
	}
	for _, stream := range unit.Inputs {
		in, err := r.resume(ctx, g, saved, stream, partition)
		if err != nil {
			return err
		}
		in.ended = r.Drain.Run != "" && in.marks.ended(r.Drain.Run) >= in.ends
		t.inputs = append(t.inputs, in)
		t.merge.inputs = append(t.merge.inputs, &mergeInput{stream: stream, source: r.road.Reader(stream, partition, in.next), ended: in.ended})
	}
	t.advance()
	if err := r.foreign(ctx, t, g); err != nil {
		return err
	}
	if err := r.takeUpTrial(ctx, t, g, saved); err != nil {
		return err
	}
	t.chains = make(chan *chain, r.chainsFor(unit))
	for range cap(t.chains) {
		c := newChain(unit, r.Plan, partition, t.canaries, r.mem(), r.Meter, r.Tap, r.retry)
		t.chains <- c
		if err := c.open(ctx, states); err != nil {
			return err
		}
		t.anew = t.anew || c.anew
	}
	for _, s := range unit.Stages {
		for _, output := range slices.Sorted(maps.Keys(s.Outputs)) {
			stream := s.Outputs[output]
			if known := func(e edge) bool { return e.stage == s.ID() && e.stream == stream }; r.Plan.Streams[stream].OnKafka() && !slices.ContainsFunc(t.edges, known) {
				t.edges = append(t.edges, edge{s.ID(), stream, r.partitionsOf(stream, partition)})
			}
		}
		if s.Canary != nil {
			for _, output := range slices.Sorted(maps.Keys(s.Outputs)) {
				side := pipeline.Side(s.Outputs[output], pipeline.TrialCanary)
				if known := func(e edge) bool { return e.stage == s.ID() && e.stream == side }; r.Plan.Streams[side].OnKafka() && !slices.ContainsFunc(t.edges, known) {
					t.edges = append(t.edges, edge{s.ID(), side, []int32{partition}})
				}
			}
		}
		if e := (edge{s.ID(), s.Dead, []int32{partition}}); slices.ContainsFunc(r.Plan.Streams[s.Dead].Readers, func(n string) bool { return r.Plan.Node(n) != nil }) {
			t.edges = append(t.edges, e) // a stage reads them, perhaps beside another stream, and waits for what time they tell
		} else {
			t.deads = append(t.deads, e)
		}
	}
	return nil
}

// foreign refuses to begin a unit anew whose streams hold batches already. It has run before under another name (its
// stages stood together with others), or Kafka has forgotten its group. What it would make now has positions
// that readers do not know, and would count a second time.
func (r *Runner) foreign(ctx context.Context, t *task, g *generation) error {
	if !t.fresh || g.set(t.unit.Inputs, t.partition) {
		return nil
	}
	for _, s := range t.unit.Stages {
		for _, output := range slices.Sorted(maps.Keys(s.Outputs)) {
			stream := s.Outputs[output]
			if !r.Plan.Streams[stream].OnKafka() {
				continue
			}
			first, next, err := r.road.Bounds(ctx, stream, t.partition)
			if err != nil {
				return err
			}
			written := next > 0
			if r.Plan.Streams[stream].Key != nil {
				if written, err = r.wrote(ctx, stream, teller{s.ID(), t.partition}); err != nil {
					return err
				}
			}
			if written {
				return fmt.Errorf("stream %s holds batches (offsets %d to %d of partition %d), but consumer group %s, which runs %s, has no checkpoint: "+
					"the stages stood together otherwise before, or the group was deleted; beginning anew would count everything twice. "+
					"Set the offsets of the group to where it shall go on, or give its outputs new streams", stream, first, next, t.partition, g.group, t.unit.Name)
			}
		}
	}
	return nil
}

// runSinkTask keeps one partition of a stream for one generation.
func (r *Runner) runSinkTask(ctx context.Context, g *generation, node *pipeline.SinkNode, sink flow.Sink, stream string, partition int32) (done bool, err error) {
	t := &sinkTask{
		r: r, node: node, sink: sink, stream: stream, id: g.ids[stream], partition: partition,
		rowsMax: node.FlushRows, wait: node.FlushWait, meter: r.Meter.Node(node.Name), budget: g.budget,
		// All partitions of one stream together may hold half: the other streams go on while its table refuses.
		bytesMax: min(rangeBytesMax, max(rangeBytesMin, sinkBytesMax/2/int64(max(1, len(g.partitions))))),
		open:     func(offset int64) source { return r.road.Reader(stream, partition, offset) },
	}
	rows, wait := int64(100_000), time.Second
	if f, ok := sink.(flow.Flushing); ok {
		rows, wait = f.Flush()
	}
	if t.rowsMax == 0 {
		t.rowsMax = rows
	}
	if t.wait == 0 {
		t.wait = wait
	}
	t.keeper = r.keeper(g, node.Name, stream, partition)
	saved, err := t.keeper.load(ctx, g.committed[stream][partition].Metadata)
	if err != nil {
		return false, err
	}
	if err := t.keeper.sweep(ctx); err != nil {
		return false, err
	}
	in, err := r.resume(ctx, g, saved, stream, partition)
	if err != nil {
		return false, err
	}
	t.next, t.marks = in.next, in.marks
	defer t.meter.release(stream, partition)
	return t.run(ctx, saved)
}

func (r *Runner) keeper(g *generation, node, stream string, partition int32) *keeper {
	return &keeper{
		store: r.Store, commit: g.commit, now: time.Now, since: time.Now(),
		prefix: blobsOf(r.group(node), stream, partition),
	}
}

// resume says where to go on with an input: at its checkpoint, at an offset that somebody set by hand, or at the
// beginning.
func (r *Runner) resume(ctx context.Context, g *generation, saved *checkpoint, stream string, partition int32) (*input, error) {
	in := &input{stream: stream, id: g.ids[stream], marks: newMarks(), ends: r.ends(stream)}
	in.marks.awaited = r.awaited(stream)
	if saved != nil {
		for _, m := range saved.Inputs {
			if m.Stream != stream {
				continue
			}
			if m.StreamID != in.id {
				return nil, fmt.Errorf("stream %s has been deleted and made anew since the last checkpoint of group %s: its offsets mean "+
					"something else now; reset the group's offsets to begin anew", stream, g.group)
			}
			in.next, in.marks = m.Next, restoreMarks(m.Marks, m.Watermark)
			in.marks.begun, in.marks.awaited = m.Begun, r.awaited(stream)
			return in, nil
		}
	}
	if c, ok := g.committed[stream][partition]; ok {
		in.next = c.Offset
		return in, nil
	}
	first, _, err := r.road.Bounds(ctx, stream, partition)
	if err != nil {
		return nil, err
	}
	in.next = first
	return in, nil
}

// retry calls f until it succeeds, or until its error is bad data, or until patience ends.
func (r *Runner) retry(ctx context.Context, meter *NodeMeter, what string, f func() error) error {
	pauses := r.pauses
	if pauses == nil {
		pauses = exponential
	}
	logged, over := false, func() {}
	defer func() { over() }()
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := f()
		last = err
		if err == nil || errors.Is(err, flow.ErrBad) {
			return struct{}{}, wrapPermanent(err)
		}
		meter.Retries.Add(1)
		if !logged {
			logged = true
			over = meter.waitsFor(fmt.Errorf("%s: %w", what, err))
			r.Log.Warn("failed, trying again", "node", meter.Name, "what", what, "error", err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pauses()), backoff.WithMaxElapsedTime(cmp.Or(r.patience, patienceMax)))
	if err == nil && logged {
		r.Log.Info("works again", "node", meter.Name, "what", what)
	}
	if err != nil && last != nil && !errors.Is(err, last) {
		return fmt.Errorf("%s: %w (%w)", what, last, err) // the context ended it: what had been failing is what matters
	}
	return err
}

func exponential() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, 10*time.Second
	return b
}

func wrapPermanent(err error) error {
	if err == nil {
		return nil
	}
	return backoff.Permanent(err)
}
