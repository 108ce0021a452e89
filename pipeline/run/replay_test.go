package run

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc/pool"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// This file kills tasks. The real task loop, checkpoints and sink tasks run over a road kept in memory; a node
// dies at its n-th use of the world, before the use or after it, without a word, and is started again, until the
// data have gone through. Then every sink must hold what an undisturbed run gives: the same rows in the same order.

// world is what outlives a kill: streams, commits, blobs, and what sinks have stored.
type world struct {
	mu      sync.Mutex
	changed *sync.Cond
	streams map[string][]flow.Batch // one partition each
	commits map[string]map[string]streams.Committed
	blobs   map[string][]byte
	stored  map[string][]string // range → rows
	order   map[string][]flow.Range
}

func newWorld() *world {
	w := &world{
		streams: map[string][]flow.Batch{}, commits: map[string]map[string]streams.Committed{},
		blobs: map[string][]byte{}, stored: map[string][]string{}, order: map[string][]flow.Range{},
	}
	w.changed = sync.NewCond(&w.mu)
	return w
}

// life is one life of a node: a view of the world that ends after some number of uses.
type life struct {
	*world
	uses  int  // left before the end; negative: for ever
	after bool // the last use still takes effect
	dice  *rand.Rand
}

var errKilled = errors.New("killed")

// use counts a use of the world. It says whether the use takes effect and whether the user learns of it.
func (l *life) use() (effect bool, err error) {
	switch {
	case l.uses == 0:
		return false, errKilled
	case l.uses == 1:
		l.uses = 0
		return l.after, errKilled
	case l.uses > 0:
		l.uses--
	}
	return true, nil
}

func (l *life) Publish(_ context.Context, stream string, _ int32, batches ...flow.Batch) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	effect, err := l.use()
	at := int64(len(l.streams[stream]))
	if effect {
		for _, b := range batches {
			if b.Record != nil {
				b.Record.Retain()
			}
			l.streams[stream] = append(l.streams[stream], b)
		}
		l.changed.Broadcast()
	}
	return at, err
}

func (l *life) Bounds(context.Context, string, int32) (first, next int64, err error) {
	return 0, 0, nil
}

func (l *life) Reader(stream string, partition int32, offset int64) source {
	return &lifeReader{l, stream, offset}
}

// unreadable is a message that nobody can decode.
const unreadable flow.Kind = 99

type lifeReader struct {
	*life
	stream string
	at     int64
}

func (r *lifeReader) Close() error { return nil }

func (r *lifeReader) Next(ctx context.Context) (streams.Message, error) {
	defer context.AfterFunc(ctx, func() { r.mu.Lock(); defer r.mu.Unlock(); r.changed.Broadcast() })()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.at >= int64(len(r.streams[r.stream])) {
		if ctx.Err() != nil {
			return streams.Message{}, ctx.Err()
		}
		r.changed.Wait()
	}
	if _, err := r.use(); err != nil {
		return streams.Message{}, err
	}
	if r.streams[r.stream][r.at].Kind == unreadable {
		r.at++
		return streams.Message{}, &streams.DecodeError{Stream: r.stream, Offset: r.at - 1, Err: errors.New("unreadable")}
	}
	m := streams.Message{Stream: r.stream, Offset: r.at, Batch: r.streams[r.stream][r.at], Bytes: 100}
	if m.Batch.Record != nil {
		m.Batch.Record.Retain()
	}
	r.at++
	return m, nil
}

func (l *life) commit(group string) func(context.Context, []streams.Commit) error {
	return func(_ context.Context, commits []streams.Commit) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		effect, err := l.use()
		if effect {
			for _, c := range commits {
				l.commits[group][c.Stream] = streams.Committed{Offset: c.Offset, Metadata: c.Metadata}
			}
		}
		return err
	}
}

func (l *life) Put(_ context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	effect, err := l.use()
	if effect {
		l.blobs[name] = b
	}
	return err
}

func (l *life) Get(_ context.Context, name string) (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.blobs[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (l *life) List(_ context.Context, prefix string) ([]blobs.Info, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var infos []blobs.Info
	for _, name := range slices.Sorted(maps.Keys(l.blobs)) {
		if strings.HasPrefix(name, prefix) {
			infos = append(infos, blobs.Info{Name: name, Size: int64(len(l.blobs[name]))})
		}
	}
	return infos, nil
}

func (l *life) Delete(_ context.Context, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.blobs, name)
	return nil
}

// Write is of flow.Sink. The same range must always hold the same rows.
func (l *life) Write(_ context.Context, r flow.Range, recs []arrow.Record) error {
	var rows []string
	for _, rec := range recs {
		if !rec.Schema().Equal(recs[0].Schema()) {
			return fmt.Errorf("range %s holds rows of two schemas", r)
		}
		for i := range int(rec.NumRows()) {
			rows = append(rows, rowText(rec, i))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	effect, err := l.use()
	if effect {
		if before, ok := l.stored[r.String()]; ok && !slices.Equal(before, rows) {
			return fmt.Errorf("range %s held %v and is written again with %v", r, before, rows)
		}
		if _, ok := l.stored[r.String()]; !ok {
			l.order[r.Stream] = append(l.order[r.Stream], r)
		}
		l.stored[r.String()] = rows
	}
	return err
}

func rowText(rec arrow.Record, row int) string {
	var s []string
	for i, f := range rec.Schema().Fields() {
		s = append(s, f.Name+"="+rec.Column(i).ValueStr(row))
	}
	return strings.Join(s, " ")
}

// rows is what the sinks hold of a stream, in the order of their ranges.
func (w *world) rows(t *testing.T, stream string) []string {
	ranges := w.order[stream]
	slices.SortFunc(ranges, func(a, b flow.Range) int { return int(a.First - b.First) })
	var rows []string
	for i, r := range ranges {
		if i > 0 && r.First <= ranges[i-1].Last {
			t.Fatalf("ranges overlap: %s and %s", ranges[i-1], r)
		}
		rows = append(rows, w.stored[r.String()]...)
	}
	return rows
}

// The stages of the test. numbers is their one schema.
var numbers = arrow.NewSchema([]arrow.Field{
	{Name: flow.ColTime, Type: flow.InstantType}, {Name: flow.ColReceived, Type: flow.InstantType},
	{Name: "n", Type: arrow.PrimitiveTypes.Int64},
}, nil)

func numbersOf(values []int64) arrow.Record {
	b := array.NewRecordBuilder(memory.DefaultAllocator, numbers)
	defer b.Release()
	for _, v := range values {
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(v))
		b.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(v))
		b.Field(2).(*array.Int64Builder).Append(v)
	}
	return b.NewRecord()
}

func valuesOf(rec arrow.Record) []int64 { return rec.Column(2).(*array.Int64).Int64Values() }

// sieve remembers nothing: multiples of 7 are bad, multiples of 10 make it panic with their whole batch.
type sieve struct{}

func (sieve) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	var good []int64
	var bad flow.BadRows
	for i, v := range valuesOf(in) {
		switch {
		case v%100 == 0:
			panic("a hundred")
		case v%7 == 0:
			bad.Add(i, "a multiple of seven")
		default:
			good = append(good, v)
		}
	}
	return []flow.Output{{To: "good", Record: numbersOf(good)}}, bad.Err()
}

// sum remembers a running sum, and gives it for every row.
type sum struct{ total int64 }

func (s *sum) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	var sums []int64
	for _, v := range valuesOf(in) {
		s.total += v
		sums = append(sums, s.total)
	}
	return []flow.Output{{To: "sums", Record: numbersOf(sums)}}, nil
}
func (s *sum) Snapshot(w io.Writer) error { return binary.Write(w, binary.LittleEndian, s.total) }
func (s *sum) Restore(r io.Reader) error  { return binary.Read(r, binary.LittleEndian, &s.total) }

// bell gives, whenever time has passed by 10, how many rows came since it last did.
type bell struct{ Rows, Rung int64 }

func (b *bell) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	b.Rows += in.NumRows()
	return []flow.Output{{To: "counts", Record: numbersOf(nil)}}, nil
}
func (b *bell) Advance(_ context.Context, w flow.Micros) ([]flow.Output, error) {
	if int64(w)/10 <= b.Rung {
		return nil, nil
	}
	b.Rung = int64(w) / 10
	out := numbersOf([]int64{b.Rows})
	b.Rows = 0
	return []flow.Output{{To: "counts", Record: out}}, nil
}
func (b *bell) Snapshot(w io.Writer) error { return binary.Write(w, binary.LittleEndian, b) }
func (b *bell) Restore(r io.Reader) error  { return binary.Read(r, binary.LittleEndian, b) }

func stage(name string, from string, newStage func() flow.Stage, outputs map[string]string) *pipeline.StageNode {
	return &pipeline.StageNode{Stage: pipeline.Stage{Name: name, From: []string{from}}, New: newStage, Outputs: outputs, Dead: name + ".dead"}
}

// testPlan: raw → sieve → good → [sum → sums, bell → counts] → keep.
func testPlan() *pipeline.Plan {
	p := &pipeline.Plan{
		Spec:    &pipeline.Spec{Name: "test", Partitions: 1, Gateway: pipeline.Gateway{To: "raw"}, Checkpoint: time.Microsecond},
		Streams: map[string]*pipeline.Stream{"inner": {Unit: "sum+bell"}},
		Units: []*pipeline.Unit{
			{Name: "sieve", Inputs: []string{"raw"}, Stages: []*pipeline.StageNode{
				stage("sieve", "raw", func() flow.Stage { return sieve{} }, map[string]string{"good": "good"})}},
			{Name: "sum+bell", Inputs: []string{"good"}, Stages: []*pipeline.StageNode{
				stage("sum", "good", func() flow.Stage { return &sum{} }, map[string]string{"sums": "sums"}),
				stage("bell", "sums", func() flow.Stage { return &bell{} }, map[string]string{"counts": "counts"})}},
		},
	}
	keep := &pipeline.SinkNode{Sink: pipeline.Sink{Name: "keep", FlushRows: 40, FlushWait: time.Millisecond},
		Streams: []string{"sums", "counts", "sieve.dead"}, Dead: "keep.dead"}
	p.Sinks = []*pipeline.SinkNode{keep}
	for _, s := range []string{"raw", "good", "sums", "counts", "sieve.dead", "sum.dead", "bell.dead", "keep.dead"} {
		p.Streams[s] = &pipeline.Stream{Name: s}
	}
	return p
}

// feed writes the gateway's stream: rows, heartbeats, batches sent twice, and the end.
func feed(w *world, seed uint64) {
	dice := rand.New(rand.NewPCG(seed, 1))
	l := &life{world: w, uses: -1}
	n := int64(0)
	for i := range int64(150) {
		var b flow.Batch
		b.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: i}}
		b.Watermark = flow.Micros(i * 3)
		switch dice.IntN(5) {
		case 0:
			b.Kind = flow.KindHeartbeat
		default:
			var values []int64
			for range 1 + dice.IntN(12) {
				n++
				values = append(values, n)
			}
			b.Record = numbersOf(values)
		}
		_, _ = l.Publish(context.Background(), "raw", 0, b)
		if dice.IntN(6) == 0 {
			_, _ = l.Publish(context.Background(), "raw", 0, b)
		}
	}
	end := flow.Batch{Kind: flow.KindEnd, Run: "r", Watermark: 10_000}
	end.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: 1000}}
	_, _ = l.Publish(context.Background(), "raw", 0, end)
}

// live runs a node, life after life, until it is done. uses is how long a life lasts; nil is for ever.
func live(ctx context.Context, w *world, plan *pipeline.Plan, group string, inputs []string, dice *rand.Rand, uses func() int,
	run func(context.Context, *Runner, *generation, *life) (bool, error)) (lives int, err error) {
	for {
		lives++
		l := &life{world: w, uses: -1, dice: dice}
		if uses != nil {
			l.uses, l.after = uses(), dice.IntN(2) == 0
		}
		w.mu.Lock()
		if w.commits[group] == nil {
			w.commits[group] = map[string]streams.Committed{}
		}
		committed := map[string]map[int32]streams.Committed{}
		for _, s := range inputs {
			if c, ok := w.commits[group][s]; ok {
				committed[s] = map[int32]streams.Committed{0: c}
			}
		}
		w.mu.Unlock()
		r := &Runner{Plan: plan, Store: l, Log: slog.New(slog.DiscardHandler), Meter: NewMeter(), Drain: Drain{Run: "r", Gateways: 1}, road: l, patience: 1}
		r.once.Do(func() {})
		g := &generation{group: group, budget: newBudget(64 << dice.IntN(16)), partitions: []int32{0}, committed: committed, ids: map[string]string{}, commit: l.commit(group)}
		done, err := run(ctx, r, g, l)
		switch {
		case err == nil && done:
			return lives, nil
		case errors.Is(err, errKilled):
		default:
			return lives, fmt.Errorf("life %d of %s: done %v: %w", lives, group, done, err)
		}
	}
}

// runWorld runs the whole plan to its end and gives what the sinks hold.
func runWorld(t *testing.T, plan *pipeline.Plan, feed func(*world, uint64), seed uint64, kill bool) (rows map[string][]string, lives int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w := newWorld()
	feed(w, seed)
	p := pool.NewWithResults[int]().WithContext(ctx).WithCancelOnError()
	node := func(i uint64, group string, inputs []string, run func(context.Context, *Runner, *generation, *life) (bool, error)) {
		dice := rand.New(rand.NewPCG(seed, 100+i))
		var uses func() int
		born := 0
		if kill {
			uses = func() int { born++; return 2 + dice.IntN(60+born) } // a range may take more uses than one short life has
		}
		p.Go(func(ctx context.Context) (int, error) { return live(ctx, w, plan, group, inputs, dice, uses, run) })
	}
	for i, u := range plan.Units {
		node(uint64(i), u.Name, u.Inputs, func(ctx context.Context, r *Runner, g *generation, _ *life) (bool, error) {
			return r.runTask(ctx, g, u, 0)
		})
	}
	for i, stream := range plan.Sinks[0].Streams {
		node(10+uint64(i), "keep."+stream, []string{stream}, func(ctx context.Context, r *Runner, g *generation, l *life) (bool, error) {
			return r.runSinkTask(ctx, g, plan.Sinks[0], l, stream, 0)
		})
	}
	all, err := p.Wait()
	if err != nil {
		for _, name := range slices.Sorted(maps.Keys(w.streams)) {
			last := w.streams[name][len(w.streams[name])-1]
			t.Logf("%s: %d batches, the last: %v of %v", name, len(w.streams[name]), last.Kind, last.Lineage)
		}
		t.Fatalf("seed %d: %v", seed, err)
	}
	for _, n := range all {
		lives += n
	}
	rows = map[string][]string{}
	for _, stream := range plan.Sinks[0].Streams {
		rows[stream] = w.rows(t, stream)
	}
	return rows, lives
}

func TestKilledTasksLoseNothingAndDoubleNothing(t *testing.T) {
	runs := 60
	if testing.Short() {
		runs = 5
	}
	first := uint64(time.Now().UnixNano())
	total := 0
	for i := range runs {
		seed := first + uint64(i)
		want, _ := runWorld(t, testPlan(), feed, seed, false)
		if len(want["sums"]) < 300 || len(want["counts"]) < 20 || len(want["sieve.dead"]) < 50 {
			t.Fatalf("seed %d: the undisturbed run kept too little: %d sums, %d counts, %d dead letters",
				seed, len(want["sums"]), len(want["counts"]), len(want["sieve.dead"]))
		}
		got, lives := runWorld(t, testPlan(), feed, seed, true)
		total += lives
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("seed %d, %d lives: what the sinks hold differs from an undisturbed run (-want +got):\n%s", seed, lives, d)
		}
	}
	t.Logf("%d runs from seed %d, %d lives", runs, first, total)
}
