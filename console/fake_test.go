package console

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
)

// fakePlan builds plans by hand: streams are joined by name, schemas are given, no stage ever runs.
type fakePlan struct {
	plan    *pipeline.Plan
	schemas map[string]*arrow.Schema
}

func newFakePlan(name string, partitions int) *fakePlan {
	return &fakePlan{
		plan:    &pipeline.Plan{Spec: &pipeline.Spec{Name: name, Partitions: partitions}, Streams: map[string]*pipeline.Stream{}},
		schemas: map[string]*arrow.Schema{},
	}
}

func (f *fakePlan) stream(name, writer string) *pipeline.Stream {
	s := f.plan.Streams[name]
	if s == nil {
		s = &pipeline.Stream{Name: name, Schema: flow.EventSchema}
		if strings.HasSuffix(name, ".dead") {
			s.Schema = flow.DeadSchema
		}
		if schema := f.schemas[name]; schema != nil {
			s.Schema = schema
		}
		f.plan.Streams[name] = s
	}
	if writer != "" {
		s.Writer = writer
	}
	return s
}

// source adds a topic of others, whose rows come into a stream of the gateway.
func (f *fakePlan) source(name, topic, stream string) {
	f.plan.Spec.Gateway.To = stream
	f.plan.Spec.Sources = append(f.plan.Spec.Sources, pipeline.Source{Name: name, Topic: topic})
	f.stream(pipeline.SourceDead, gatewayName)
}

// unit adds a task of stages written "name: in1 in2 -> out1 out2".
func (f *fakePlan) unit(stages ...string) {
	u := &pipeline.Unit{}
	var names []string
	for _, text := range stages {
		name, rest, _ := strings.Cut(text, ": ")
		in, out, _ := strings.Cut(rest, " -> ")
		n := &pipeline.StageNode{Stage: pipeline.Stage{Name: name, Use: name, From: strings.Fields(in)}, Outputs: map[string]string{}, Dead: name + ".dead"}
		for _, to := range strings.Fields(out) {
			n.Outputs[to] = to
			f.stream(to, name)
		}
		for _, from := range n.From {
			s := f.stream(from, "")
			s.Readers = append(s.Readers, name)
		}
		f.stream(n.Dead, name)
		names = append(names, name)
		u.Stages = append(u.Stages, n)
	}
	u.Name = strings.Join(names, "+")
	for _, n := range u.Stages {
		for _, from := range n.From {
			if !slices.Contains(names, f.plan.Streams[from].Writer) {
				u.Inputs = append(u.Inputs, from)
			}
		}
	}
	f.plan.Units = append(f.plan.Units, u)
}

func (f *fakePlan) sink(name string, streams ...string) {
	n := &pipeline.SinkNode{Sink: pipeline.Sink{Name: name, Use: name}, Streams: streams, Dead: name + ".dead"}
	f.stream(n.Dead, name)
	for _, s := range streams {
		f.stream(s, "").Readers = append(f.stream(s, "").Readers, name)
	}
	f.plan.Sinks = append(f.plan.Sinks, n)
}

// done marks the streams that never leave a unit.
func (f *fakePlan) done() *pipeline.Plan {
	for _, u := range f.plan.Units {
		var names []string
		for _, s := range u.Stages {
			names = append(names, s.Name)
		}
		for _, s := range f.plan.Streams {
			outside := slices.ContainsFunc(s.Readers, func(r string) bool { return !slices.Contains(names, r) })
			if slices.Contains(names, s.Writer) && len(s.Readers) > 0 && !outside {
				s.Unit = u.Name
			}
		}
	}
	return f.plan
}

// homesPlan is the pipeline that the project ships.
func homesPlan() *pipeline.Plan {
	f := newFakePlan("homes", 4)
	key, f64 := flow.KeyType, arrow.PrimitiveTypes.Float64
	base := flow.EventSchema.Fields()[:5]
	f.schemas["scores"] = arrow.NewSchema(append(slices.Clone(base),
		arrow.Field{Name: "value", Type: f64}, arrow.Field{Name: "score", Type: f64}, arrow.Field{Name: "model", Type: key}), nil)
	f.schemas["features"] = arrow.NewSchema(append(slices.Clone(base),
		arrow.Field{Name: "window", Type: key}, arrow.Field{Name: "window_end", Type: flow.InstantType},
		arrow.Field{Name: "count", Type: arrow.PrimitiveTypes.Int64}, arrow.Field{Name: "mean", Type: f64},
		arrow.Field{Name: "std", Type: f64, Nullable: true}), nil)
	f.stream("raw", gatewayName)
	f.unit("normalize: raw -> clean", "dedupe: clean -> unique", "enrich: unique -> readings")
	f.unit("features: readings -> features late")
	f.unit("score: readings -> scores")
	f.unit("alert: scores -> alerts")
	f.sink("clickhouse", "readings", "features", "late", "scores", "alerts", "alert.dead", "clickhouse.dead", "dedupe.dead",
		"enrich.dead", "features.dead", "normalize.dead", "parquet.dead", "score.dead", "webhook.dead")
	f.sink("parquet", "readings", "features", "scores")
	f.sink("webhook", "alerts")
	return f.done()
}

// world plays a pipeline that runs: how fast rows go where, who stands still, who refuses rows.
type world struct {
	mu     sync.Mutex
	plan   *pipeline.Plan
	rows   map[string]float64            // "node in stream"
	bad    map[string]float64            // node
	lag    map[string]map[string][]int64 // node → stream → partition
	offset map[place]int64
	marks  map[place]flow.Micros
	stuck  map[string]bool    // "node stream/partition"
	refuse map[string]float64 // node → share of rows
	rate   float64            // rows a second at the gateway
	factor map[string]float64 // stream → rows for each row of raw
	steady bool               // no chance: what waits and how old it is are always the same
	forced []func()           // done at the end of the next step
	extra  map[string]run.NodeStatus
}

func newWorld(plan *pipeline.Plan) *world {
	return &world{
		plan: plan, rows: map[string]float64{}, bad: map[string]float64{}, lag: map[string]map[string][]int64{},
		offset: map[place]int64{}, marks: map[place]flow.Micros{}, stuck: map[string]bool{}, refuse: map[string]float64{},
		factor: map[string]float64{}, extra: map[string]run.NodeStatus{}, rate: 1200,
	}
}

// step lets seconds pass until now.
func (w *world) step(now time.Time, seconds float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, s := range w.plan.Streams {
		f, ok := w.factor[name]
		if !ok {
			f = 1
		}
		if strings.HasSuffix(name, ".dead") {
			f = w.refuse[s.Writer]
			w.bad[s.Writer] += f * w.rate * seconds
		}
		w.rows[s.Writer+" out "+name] += f * w.rate * seconds
		for _, r := range s.Readers {
			w.read(now, seconds, s, r, f)
		}
	}
	for _, force := range w.forced {
		force()
	}
	w.forced = nil
}

// behind makes 2n messages wait for a reader, most of them on partition 1.
func (w *world) behind(node, stream string, n int) {
	w.forced = append(w.forced, func() { w.lag[node][stream] = []int64{int64(n / 2), int64(n), int64(n / 2), 0} })
}

// late makes a reader's watermarks older.
func (w *world) late(node, stream string, by time.Duration) {
	w.forced = append(w.forced, func() {
		for at := range w.marks {
			if at.node == node && at.stream == stream {
				w.marks[at] = w.marks[at].Add(-by)
			}
		}
	})
}

// quiet makes a partition one on which nothing has come for some seconds.
func (w *world) quiet(node, stream string, partition int32, seconds int) {
	w.forced = append(w.forced, func() {
		at := place{node, stream, partition}
		w.marks[at] = w.marks[at].Add(-time.Duration(seconds) * time.Second)
		w.lag[node][stream] = []int64{0, 0, 0, 0}
	})
}

func (w *world) read(now time.Time, seconds float64, s *pipeline.Stream, reader string, f float64) {
	runs := reader
	if u := w.plan.Node(reader); u != nil {
		runs = u.Name
	}
	n := w.plan.Spec.Partitions
	if w.lag[runs] == nil {
		w.lag[runs] = map[string][]int64{}
	}
	if w.lag[runs][s.Name] == nil && s.OnKafka() {
		w.lag[runs][s.Name] = make([]int64, n)
	}
	for p := range n {
		at := place{runs, s.Name, int32(p)}
		if w.stuck[fmt.Sprintf("%s %s/%d", reader, s.Name, p)] {
			w.lag[runs][s.Name][p] += int64(20*seconds + 1)
			continue
		}
		w.rows[reader+" in "+s.Name] += f * w.rate * seconds / float64(n)
		if s.OnKafka() {
			lag, age := rand.IntN(3), 200+rand.IntN(900)
			if w.steady {
				lag, age = 1, 500
			}
			w.lag[runs][s.Name][p] = int64(lag)
			w.offset[at] += int64(max(1, f*4*seconds))
			w.marks[at] = flow.MicrosOf(now.Add(-time.Duration(age) * time.Millisecond))
		}
	}
}

func (w *world) lags(context.Context) (map[string]map[string][]int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]map[string][]int64{}
	for node, streams := range w.lag {
		out[node] = map[string][]int64{}
		for s, l := range streams {
			out[node][s] = slices.Clone(l)
		}
	}
	return out, nil
}

// statuses gives what meters would.
func (w *world) statuses() []run.NodeStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes := map[string]*run.NodeStatus{}
	node := func(name string) *run.NodeStatus {
		if nodes[name] == nil {
			n := w.extra[name]
			n.Name = name
			n.Bad += int64(w.bad[name])
			nodes[name] = &n
		}
		return nodes[name]
	}
	for key, rows := range w.rows {
		f := strings.Fields(key)
		n := node(f[0])
		n.Edges = append(n.Edges, run.EdgeStatus{Stream: f[2], Direction: f[1], Rows: int64(rows), Batches: int64(rows / 100)})
	}
	for at, offset := range w.offset {
		n := node(at.node)
		n.Partitions = append(n.Partitions, run.PartitionStatus{Stream: at.stream, Partition: at.partition, Offset: offset, Watermark: w.marks[at]})
	}
	for name := range w.extra {
		node(name)
	}
	var all []run.NodeStatus
	for _, n := range nodes {
		all = append(all, *n)
	}
	slices.SortFunc(all, func(a, b run.NodeStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// eventRecord makes rows of EventSchema; the device of each is called device.
func eventRecord(t testing.TB, mem memory.Allocator, rows int, device string) arrow.Record {
	t.Helper()
	b := flow.NewEventBuilder()
	now := flow.MicrosOf(time.Now())
	for i := range rows {
		b.Append(&flow.Event{
			Time: now.Add(time.Duration(i) * time.Millisecond), Received: now.Add(time.Duration(i+80) * time.Millisecond),
			Home: fmt.Sprintf("home-%03d", i%200), Device: device, Metric: "temperature", Value: 20 + float64(i%70)/10,
			HasValue: true, Unit: "°C", Seq: int64(i), HasSeq: true, Attributes: []flow.Attribute{{Name: "firmware", Value: "2.1.7"}},
		})
	}
	rec, _ := b.Record()
	return rec
}
