package run

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// runOne runs a unit of testPlan on one partition of w until it ends.
func runOne(t *testing.T, w *world, plan *pipeline.Plan, unit *pipeline.Unit) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l := &life{world: w, uses: -1}
	w.commits["g"] = map[string]streams.Committed{}
	r := &Runner{Plan: plan, Store: l, Log: slog.New(slog.DiscardHandler), Meter: NewMeter(), Drain: Drain{Run: "r", Gateways: 1}, road: l, patience: 1}
	r.once.Do(func() {})
	_, err := r.runTask(ctx, &generation{group: "g", budget: newBudget(64), partitions: []int32{0}, ids: map[string]string{}, commit: l.commit("g")}, unit, 0)
	return err
}

// ill is a stage that fails in a way of its own.
type ill struct {
	sum
	snapshot, process func() error
	outputs           []flow.Output
	open, closed      *int
}

func (i *ill) Open(context.Context) error { *i.open++; return nil }
func (i *ill) Close() error               { *i.closed++; return nil }
func (i *ill) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if err := i.process(); err != nil {
		return nil, err
	}
	if i.outputs != nil {
		return i.outputs, nil
	}
	return i.sum.Process(ctx, in)
}
func (i *ill) Snapshot(w io.Writer) error { return errors.Join(i.snapshot(), i.sum.Snapshot(w)) }
func (i *ill) Restore(io.Reader) error    { return nil }

func TestATaskEndsWithWhatIsWrong(t *testing.T) {
	fine := func() error { return nil }
	var badRow flow.BadRows
	badRow.Add(1_000_000, "a row that is not there")
	for _, c := range []struct {
		name, want string
		stage      ill
	}{
		{"the world fails for good", "no route to host", ill{snapshot: fine, process: func() error { return errors.New("no route to host") }}},
		{"no record", "no record for its output \"sums\"", ill{snapshot: fine, process: fine, outputs: []flow.Output{{To: "sums"}}}},
		{"an output nobody knows", "maps to no stream", ill{snapshot: fine, process: fine, outputs: []flow.Output{{To: "x"}}}},
		{"a snapshot that panics", "lost my mind", ill{process: fine, snapshot: func() error { panic("lost my mind") }}},
		{"bad rows that are not there", "out of range", ill{snapshot: fine, process: func() error { return badRow.Err() }}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, plan := newWorld(), testPlan()
			feed(w, 1)
			w.streams["good"] = w.streams["raw"]
			open, closed := 0, 0
			unit := plan.Units[1]
			unit.Stages[0].New = func() flow.Stage {
				s := c.stage
				s.open, s.closed = &open, &closed
				return &s
			}
			err := runOne(t, w, plan, unit)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("it ended with %v; want %q", err, c.want)
			}
			if open != 1 || closed != 1 {
				t.Errorf("opened %d times, closed %d times", open, closed)
			}
			for _, b := range append(w.streams["sums"], w.streams["counts"]...) {
				t.Errorf("published all the same: %v of %v", b.Kind, b.Lineage)
			}
		})
	}
}

// What cannot be opened does not stay behind.
func TestATaskThatCannotBeginGivesBackWhatItTook(t *testing.T) {
	w, plan := newWorld(), testPlan()
	open, closed, sources := 0, 0, &closing{life: &life{world: w, uses: -1}}
	fine := func() error { return nil }
	unit := plan.Units[1]
	unit.Stages[0].New = func() flow.Stage { return &ill{snapshot: fine, process: fine, open: &open, closed: &closed} }
	unit.Stages[1].New = func() flow.Stage { return &shut{} }
	r := &Runner{Plan: plan, Store: sources, Log: slog.New(slog.DiscardHandler), Meter: NewMeter(), road: sources}
	r.once.Do(func() {})
	_, err := r.runTask(t.Context(), &generation{group: "g", budget: newBudget(64), ids: map[string]string{}}, unit, 0)
	if err == nil || !strings.Contains(err.Error(), "the door is shut") {
		t.Errorf("it began with %v", err)
	}
	if open != 1 || closed != 1 || sources.open != 0 {
		t.Errorf("opened %d times, closed %d times, %d sources left open", open, closed, sources.open)
	}
}

type shut struct{ bell }

func (shut) Open(context.Context) error { return errors.New("the door is shut") }

type closing struct {
	*life
	open int
}

func (c *closing) Reader(stream string, partition int32, offset int64) source {
	c.open++
	return &closingReader{c.life.Reader(stream, partition, offset), c}
}

type closingReader struct {
	source
	c *closing
}

func (r *closingReader) Close() error { r.c.open--; return r.source.Close() }

// twins gives its input to two streams, once as it is and once with other columns beside those.
type twins struct{}

func (twins) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	in.Retain()
	again := array.NewRecord(arrow.NewSchema(in.Schema().Fields()[1:], nil), in.Columns()[1:], in.NumRows())
	return []flow.Output{{To: "one", Record: in}, {To: "other", Record: again}}, nil
}

// producing is a road that does with a record what a producer does.
type producing struct{ *life }

func (producing) Publish(_ context.Context, _ string, _ int32, batches ...flow.Batch) (int64, error) {
	w := ipc.NewWriter(io.Discard, ipc.WithSchema(batches[0].Record.Schema()))
	defer w.Close()
	return 0, w.Write(batches[0].Record)
}

// Records that share columns are published at once, and looked at while they are: arrow's arrays are not made for
// that. The race detector is what can fail here.
func TestRecordsThatShareColumnsAreReadAtOnce(t *testing.T) {
	eb := flow.NewEventBuilder()
	for range 100 {
		eb.Append(&flow.Event{Home: "h", Device: "d", Metric: "m", HasValue: true})
		eb.Append(&flow.Event{Home: "h", Device: "d", Metric: "m", Unit: "C", Attributes: []flow.Attribute{{Name: "a", Value: "b"}}})
	}
	whole, _ := eb.Record()
	defer whole.Release()
	unit := &pipeline.Unit{Name: "twins", Inputs: []string{"raw"}, Stages: []*pipeline.StageNode{
		stage("twins", "raw", func() flow.Stage { return twins{} }, map[string]string{"one": "one", "other": "other"})}}
	plan := &pipeline.Plan{Spec: &pipeline.Spec{Partitions: 1}, Streams: map[string]*pipeline.Stream{"one": {}, "other": {}, "twins.dead": {}}}
	r := &Runner{road: producing{}}
	for range 20 {
		rec := whole.NewSlice(1, 150)
		c := newChain(unit, plan, 0, nil, memory.DefaultAllocator, NewMeter(), nil, (&Runner{patience: 1}).retry)
		out, err := c.process(t.Context(), message{origin: flow.Origin{Stream: "raw"}, record: rec})
		if err != nil {
			t.Fatal(err)
		}
		var looker conc.WaitGroup
		looker.Go(func() { _ = rowText(out[0].batch.Record, 3) })
		if err := (&task{r: r}).publishGroup(t.Context(), out); err != nil {
			t.Error(err)
		}
		looker.Wait()
		release(out)
		rec.Release()
	}
}
