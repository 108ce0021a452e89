package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/pipeline"
)

// chain is one set of instances of a unit's stages, joined by plain calls. It is used by one goroutine at a time.
type chain struct {
	partition int32
	links     []*chained               // in the order of the data: who writes a stream stands before who reads it
	readers   map[string][]reader      // stream → stages of this unit that read it, in the same order
	onKafka   map[string]bool          // stream → it is published
	keys      map[string][]string      // stream → columns by which its rows are parted over its partitions
	parts     int                      // partitions of every stream
	schemas   map[string]*arrow.Schema // of the streams that the unit reads, as far as they are known
	fitting   map[string]*arrow.Schema // the last that was found to be the same: batches of a stream share theirs
	mem       memory.Allocator
	tap       TapFunc
	retry     retryFunc
	opened    []flow.Stage // those to be closed
	uncount   []func()     // end what open began to count
	anew      bool         // some stage remembers, and had no state to restore
}

// chained is one stage of a chain.
type chained struct {
	node   *pipeline.StageNode
	stage  flow.Stage
	canary *canaried // the second version beside it; nil: none
	meter  *NodeMeter
	k      int32 // outputs made of the message in hand

	snapshotBytes int // of the last one
}

// reader is a stage as the reader of a stream, by the input's name where it tells them apart.
type reader struct {
	*chained
	input string
}

// TapFunc sees the rows that pass on a stream that never reaches Kafka. It borrows rec, must not block, and is
// called by several goroutines.
type TapFunc func(stream string, partition int32, rec arrow.Record)

// retryFunc calls f until it succeeds, until its error is one that no retry mends, or until patience ends.
type retryFunc func(ctx context.Context, meter *NodeMeter, what string, f func() error) error

// made is a batch on its way to Kafka.
type made struct {
	stream    string
	partition int32 // of the stream
	batch     flow.Batch
}

// message is one batch in hand: where it was read, and what time it is by then.
type message struct {
	origin    flow.Origin // Watermark: the batch's own
	watermark flow.Micros // of the task, this batch counted in
	record    arrow.Record
	trace     string // traceparent of the batch, then of the span of its processing
}

// newChain makes the instances of a unit's stages. canaries is, by ID, of which stages the second version works too, and for
// how many percent of the homes.
func newChain(u *pipeline.Unit, plan *pipeline.Plan, partition int32, canaries map[string]float64, mem memory.Allocator, meter *Meter, tap TapFunc, retry retryFunc) *chain {
	c := &chain{partition: partition, readers: map[string][]reader{}, onKafka: map[string]bool{}, keys: map[string][]string{}, parts: plan.Spec.Partitions, schemas: map[string]*arrow.Schema{}, fitting: map[string]*arrow.Schema{}, mem: mem, tap: tap, retry: retry}
	for _, node := range u.Stages {
		l := &chained{node: node, stage: node.New(), meter: meter.Node(node.Name)}
		if percent, ok := canaries[node.ID()]; ok && node.Canary != nil {
			l.canary = &canaried{id: node.ID(), percent: percent, outputs: node.Canary.Outputs, stage: node.Canary.New(), meter: meter.Node(node.Name + "-" + pipeline.TrialCanary)}
		}
		c.links = append(c.links, l)
		for _, in := range node.From {
			c.readers[in] = append(c.readers[in], reader{l, node.InputOf(in)})
			if s := plan.Streams[in]; s != nil {
				c.schemas[in] = s.Schema
			}
		}
		for _, out := range node.Outputs {
			c.onKafka[out] = plan.Streams[out].OnKafka()
			if s := plan.Streams[out]; s != nil && s.Key != nil {
				c.keys[out] = s.Key
			}
		}
		c.onKafka[node.Dead] = true
	}
	return c
}

func (c *chain) open(ctx context.Context, states map[string][]byte) error {
	for _, l := range c.links {
		size, err := c.openStage(ctx, l.node.Name, l.stage, l.meter, states, l.node.ID())
		if err != nil {
			return err
		}
		l.snapshotBytes = size
		if v := l.canary; v != nil {
			if v.snapshotBytes, err = c.openStage(ctx, v.meter.Name, v.stage, v.meter, states, canaryID(v.id)); err != nil {
				return err
			}
		}
		if err := c.prime(ctx, l.node, l.stage); err != nil {
			return err
		}
		if l.canary != nil {
			if err := c.prime(ctx, l.node, l.canary.stage); err != nil {
				return err
			}
		}
	}
	return nil
}

// prime tells a stage with several inputs what they hold, before any batch.
func (c *chain) prime(ctx context.Context, node *pipeline.StageNode, stage flow.Stage) error {
	s, ok := stage.(flow.Inputs)
	if !ok {
		return nil
	}
	made, err := flow.Prime(ctx, s, func(input string) *arrow.Schema { return c.schemas[node.Inputs[input]] })
	flow.ReleaseOutputs(made)
	if err != nil {
		return fmt.Errorf("tell stage %s what its inputs hold: %w", node.Name, err)
	}
	return nil
}

// openStage makes a stage ready, with its section of the states if there is one. It gives the size of that.
func (c *chain) openStage(ctx context.Context, name string, stage flow.Stage, meter *NodeMeter, states map[string][]byte, section string) (int, error) {
	if err := flow.Open(ctx, stage); err != nil {
		return 0, fmt.Errorf("open stage %s: %w", name, err)
	}
	c.opened = append(c.opened, stage)
	if n, ok := stage.(flow.Counting); ok {
		c.uncount = append(c.uncount, meter.count(n))
	}
	s, stateful := stage.(flow.Stateful)
	state, saved := states[section]
	c.anew = c.anew || stateful && !saved
	if !stateful || !saved {
		return 0, nil
	}
	if err := s.Restore(bytes.NewReader(state)); err != nil {
		return 0, fmt.Errorf("restore state of stage %s (%d bytes): %w", name, len(state), err)
	}
	return len(state), nil
}

func (c *chain) close() error {
	for _, end := range c.uncount {
		end()
	}
	var errs []error
	for _, stage := range c.opened {
		errs = append(errs, flow.Close(stage))
	}
	return errors.Join(errs...)
}

// snapshot gives the state of every stage that has some.
func (c *chain) snapshot() (map[string][]byte, error) {
	states := map[string][]byte{}
	take := func(name string, stage flow.Stage, section string, size *int) error {
		s, ok := stage.(flow.Stateful)
		if !ok {
			return nil
		}
		var b bytes.Buffer
		b.Grow(*size + *size/16) // it is as large as the last, or a little larger
		if err := s.Snapshot(&b); err != nil {
			return fmt.Errorf("snapshot of stage %s: %w", name, err)
		}
		states[section], *size = b.Bytes(), b.Len()
		return nil
	}
	for _, l := range c.links {
		if err := take(l.node.Name, l.stage, l.node.ID(), &l.snapshotBytes); err != nil {
			return nil, err
		}
		if v := l.canary; v != nil {
			if err := take(v.meter.Name, v.stage, canaryID(v.id), &v.snapshotBytes); err != nil {
				return nil, err
			}
		}
	}
	return states, nil
}

// stateful says whether a unit needs one chain for a partition's whole life, or can have several work at once.
func stateful(u *pipeline.Unit) bool {
	for _, node := range u.Stages {
		if remembers(node.New()) || node.Canary != nil && remembers(node.Canary.New()) {
			return true
		}
	}
	return false
}

func remembers(stage flow.Stage) bool {
	_, stateful := stage.(flow.Stateful)
	_, timed := stage.(flow.Timed)
	return stateful || timed
}

// process runs a message through the chain: its rows first, then the time it tells. The result depends on the
// message, the stages' state and their settings alone, and so do the positions of what is made.
func (c *chain) process(ctx context.Context, m message) ([]made, error) {
	var out []made
	for _, l := range c.links {
		l.k = 0
	}
	if m.record != nil && m.record.NumRows() > 0 {
		if err := c.enter(ctx, m, &out); err != nil {
			return release(out), err
		}
	}
	for _, l := range c.links {
		if l.canary != nil {
			if err := c.advanceBoth(ctx, m, l, &out); err != nil {
				return release(out), err
			}
			continue
		}
		t, ok := l.stage.(flow.Timed)
		if !ok {
			continue
		}
		var outputs []flow.Output
		err := c.call(ctx, l, "advance", func() (err error) {
			outputs, err = t.Advance(ctx, m.watermark)
			return err
		})
		err = timeIsBad(l, m, err)
		if err == nil {
			err = c.route(ctx, m, l, outputs, &out)
		}
		if err != nil {
			return release(out), err
		}
	}
	return out, nil
}

// timeIsBad says where time was called bad: it has no rows to set aside, and a stage that does so has a bug worth stopping
// for.
func timeIsBad(l *chained, m message, err error) error {
	if errors.Is(err, flow.ErrBad) {
		return fmt.Errorf("stage %s: advance to %v: %w", l.node.Name, m.watermark.Time(), err)
	}
	return err
}

// enter gives a message's rows to the stages that read its stream, with the columns that they count on. A batch that cannot have
// them is set aside by each.
func (c *chain) enter(ctx context.Context, m message, out *[]made) error {
	stream := m.origin.Stream
	schema := c.schemas[stream]
	if schema == nil || m.record.Schema() == c.fitting[stream] {
		return c.give(ctx, m, stream, m.record, out)
	}
	rec, err := flow.Fit(m.record, schema)
	if err != nil {
		for _, l := range c.readers[stream] {
			in := l.meter.In(stream)
			in.Rows.Add(m.record.NumRows())
			in.Batches.Add(1)
			if err := c.setAside(m, l.chained, m.record, err, out); err != nil {
				return err
			}
		}
		return nil
	}
	defer rec.Release()
	if rec == m.record {
		c.fitting[stream] = rec.Schema()
	}
	return c.give(ctx, m, stream, rec, out)
}

// give hands rec (borrowed) to every stage of the unit that reads stream.
func (c *chain) give(ctx context.Context, m message, stream string, rec arrow.Record, out *[]made) error {
	for _, l := range c.readers[stream] {
		in := l.meter.In(stream)
		in.Rows.Add(rec.NumRows())
		in.Batches.Add(1)
		if l.canary != nil {
			if err := c.giveBoth(ctx, m, l.chained, l.input, rec, out); err != nil {
				return err
			}
			continue
		}
		var outputs []flow.Output
		start := time.Now()
		err := c.call(ctx, l.chained, "process", func() (err error) {
			outputs, err = flow.Give(ctx, l.stage, l.input, rec)
			if err != nil && !errors.Is(err, flow.ErrBad) {
				flow.ReleaseOutputs(outputs)
				outputs = nil
			}
			return err
		})
		l.meter.Process.Observe(time.Since(start).Seconds())
		if errors.Is(err, flow.ErrBad) {
			err = c.setAside(m, l.chained, rec, err, out)
		}
		if err == nil {
			err = c.route(ctx, m, l.chained, outputs, out)
		} else {
			flow.ReleaseOutputs(outputs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// route sends outputs on: to Kafka, to the next stages of the unit, or both.
func (c *chain) route(ctx context.Context, m message, l *chained, outputs []flow.Output, out *[]made) error {
	for i, o := range outputs {
		if o.Refused != nil && o.Record != nil {
			err := c.bury(m, l, o.Record, everyRow(o), out)
			o.Record.Release()
			if err != nil {
				flow.ReleaseOutputs(outputs[i+1:])
				return err
			}
			continue
		}
		stream, ok := l.node.Outputs[o.To]
		if !ok {
			flow.ReleaseOutputs(outputs[i:])
			return fmt.Errorf("stage %s returned an output called %q, which pipeline.yaml maps to no stream", l.node.Name, o.To)
		}
		if o.Record == nil {
			flow.ReleaseOutputs(outputs[i:])
			return fmt.Errorf("stage %s returned no record for its output %q", l.node.Name, o.To)
		}
		if o.Record.NumRows() == 0 {
			o.Record.Release()
			continue
		}
		if err := c.send(ctx, m, l, stream, o.Record, out); err != nil {
			flow.ReleaseOutputs(outputs[i+1:])
			return err
		}
	}
	return nil
}

// send sends one record, which is given away, on.
func (c *chain) send(ctx context.Context, m message, l *chained, stream string, rec arrow.Record, out *[]made) error {
	defer rec.Release()
	edge := l.meter.Out(stream)
	edge.Rows.Add(rec.NumRows())
	edge.Batches.Add(1)
	if key := c.keys[stream]; key != nil {
		if err := c.part(m, l, stream, key, rec, out); err != nil {
			return err
		}
	} else if c.onKafka[stream] {
		c.publishable(m, l, stream, c.partition, rec, out)
	} else if c.tap != nil {
		makeShareable(rec)
		c.tap(stream, c.partition, rec)
	}
	return c.give(ctx, m, stream, rec, out)
}

// outputRowsMax cuts what a stage gives into batches that fit a Kafka message. It is a number of rows, not the broker's
// answer: cut again after a crash, the same rows must have the same positions.
const outputRowsMax = 16_384

// publishable adds rec (borrowed) to what will be published, in pieces if it is large.
func (c *chain) publishable(m message, l *chained, stream string, partition int32, rec arrow.Record, out *[]made) {
	for at := int64(0); at < rec.NumRows(); at += outputRowsMax {
		piece := rec.NewSlice(at, min(at+outputRowsMax, rec.NumRows()))
		makeShareable(piece)
		*out = append(*out, c.made(m, l, stream, partition, piece))
	}
}

// setAside puts the rows that a stage refused into its dead letters.
func (c *chain) setAside(m message, l *chained, rec arrow.Record, err error, out *[]made) error {
	var rows *flow.BadRows
	if !errors.As(err, &rows) {
		rows = &flow.BadRows{Reasons: []string{err.Error()}}
	}
	return c.bury(m, l, rec, *rows, out)
}

// everyRow is all rows of an output that a stage refused.
func everyRow(o flow.Output) flow.BadRows {
	bad := flow.BadRows{Rows: make([]int, o.Record.NumRows()), Reasons: o.Refused}
	for i := range bad.Rows {
		bad.Rows[i] = i
	}
	return bad
}

// bury makes dead letters of rows of rec (borrowed).
func (c *chain) bury(m message, l *chained, rec arrow.Record, rows flow.BadRows, out *[]made) error {
	// An edge inside the unit has no offsets: the place is that of the message it comes from.
	letters, err := deadLetters(c.mem, rec, l.node.Name, m.origin, rows)
	if err != nil {
		return err
	}
	edge := l.meter.Out(l.node.Dead)
	for _, dead := range letters {
		l.meter.Bad.Add(dead.NumRows())
		edge.Rows.Add(dead.NumRows())
		edge.Batches.Add(1)
		*out = append(*out, c.made(m, l, l.node.Dead, c.partition, dead))
	}
	return nil
}

// made stamps a record with its place in the lineage of l.
func (c *chain) made(m message, l *chained, stream string, partition int32, rec arrow.Record) made {
	b := flow.Batch{
		Kind: flow.KindRows,
		Lineage: flow.Lineage{
			Source:   flow.Source{Producer: l.node.ID(), Stream: m.origin.Stream, Partition: m.origin.Partition},
			Position: flow.Position{Offset: m.origin.Offset, K: l.k},
		},
		Bounds:    boundsOf(rec),
		Watermark: m.watermark,
		Record:    rec,
		Trace:     m.trace,
	}
	l.k++
	return made{stream: stream, partition: partition, batch: b}
}

// call runs f, a call into a stage, with panics made into bad data and the world's errors retried.
func (c *chain) call(ctx context.Context, l *chained, what string, f func() error) error {
	return c.retry(ctx, l.meter, what, func() (err error) {
		defer panicIsBad(l.node.Name, &err)
		return f()
	})
}

// panicIsBad makes a panic of a stage or sink into bad data. The reason names the calls that led there, and
// nothing that differs from run to run: a dead letter made again after a crash must be the same.
func panicIsBad(node string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	var pcs [panicFramesMax]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])]) // behind Callers, panicIsBad and gopanic
	var at []string
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "runtime.") {
			at = append(at, fmt.Sprintf("%s (%s:%d)", f.Function, filepath.Base(f.File), f.Line))
		}
		if !more || strings.HasPrefix(f.Function, "hearthline/pipeline/run.") {
			break
		}
	}
	*err = flow.Badf("%s panicked: %v; at %s", node, p, strings.Join(at, ", "))
}

// panicFramesMax bounds how much of a stack goes into a dead letter: a recursion may be thousands deep.
const panicFramesMax = 16

func boundsOf(rec arrow.Record) flow.Bounds {
	times, err := flow.Instants(rec, flow.ColTime)
	if err != nil || len(times) == 0 {
		return flow.Bounds{}
	}
	b := flow.Bounds{First: flow.Micros(times[0]), Last: flow.Micros(times[0])}
	for _, t := range times[1:] {
		b.First, b.Last = min(b.First, flow.Micros(t)), max(b.Last, flow.Micros(t))
	}
	return b
}

// makeShareable makes a record fit for several goroutines. Arrow finds a dictionary, and the number of nulls of a slice,
// when first asked, and keeps them in the array. Records that share a column may be published at once, while a
// stage still remembers it and somebody looks at its rows.
func makeShareable(rec arrow.Record) {
	for _, col := range rec.Columns() {
		makeArrayShareable(col)
	}
}

func makeArrayShareable(a arrow.Array) {
	a.NullN()
	switch a := a.(type) {
	case *array.Dictionary:
		makeArrayShareable(a.Indices())
		makeArrayShareable(a.Dictionary())
	case array.ListLike:
		makeArrayShareable(a.ListValues())
	case *array.Struct:
		for i := range a.NumField() {
			makeArrayShareable(a.Field(i))
		}
	}
}

// release gives back what will not be published.
func release(out []made) []made {
	for _, m := range out {
		if m.batch.Record != nil {
			m.batch.Record.Release()
		}
	}
	return nil
}
