package run

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/flow/window"
	"hearthline/pipeline"
	"hearthline/streams"
)

// tallying gives one row a window: which it is, and how many rows it has.
type tallying struct{}

func tally1(n, start int64, rows int) int64 {
	return n*1_000_000_000 + start/1_000_000*10_000 + int64(rows)
}

func (tallying) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	received := in.Column(1).(*array.Timestamp).TimestampValues()
	starts, err := flow.Instants(in, window.ColStart)
	if err != nil {
		return nil, err
	}
	n := valuesOf(in)
	var out []pending
	for i := 0; i < len(n); {
		first := i
		for i < len(n) && n[i] == n[first] && starts[i] == starts[first] {
			i++
		}
		out = append(out, pending{int64(received[first]), tally1(n[first], int64(starts[first]), i-first)})
	}
	return []flow.Output{{To: "tallies", Record: recordOf(out)}}, nil
}

// partPlan: raw → spread → shares, whose rows are parted by number; shares → tally, in windows of ten seconds a number → keep.
func partPlan(partitions int) *pipeline.Plan {
	config := &window.Config{Size: 10 * time.Second, By: []string{"n"}, Lateness: new(time.Duration), Idle: 7 * 24 * time.Hour}
	*config.Lateness = time.Hour
	p := &pipeline.Plan{
		Spec:    &pipeline.Spec{Name: "parted", Partitions: partitions, Gateway: pipeline.Gateway{To: "raw"}, Checkpoint: 50 * time.Millisecond},
		Streams: map[string]*pipeline.Stream{},
		Units: []*pipeline.Unit{
			{Name: "spread", Inputs: []string{"raw"}, Stages: []*pipeline.StageNode{
				stage("spread", "raw", func() flow.Stage { return multiples(1) }, map[string]string{"out": "shares"})}},
			{Name: "tally", Inputs: []string{"shares"}, Stages: []*pipeline.StageNode{
				stage("tally", "shares", func() flow.Stage { return window.New(config, false, tallying{}) }, map[string]string{"tallies": "tallies"})}},
		},
		Sinks: []*pipeline.SinkNode{{Sink: pipeline.Sink{Name: "keep"}, Streams: []string{"tallies"}, Dead: "keep.dead"}},
	}
	for _, s := range []string{"raw", "shares", "tallies", "spread.dead", "tally.dead", "keep.dead"} {
		p.Streams[s] = &pipeline.Stream{Name: s}
	}
	p.Streams["shares"].Key, p.Streams["shares"].Writer = []string{"n"}, "spread"
	return p
}

// Members come and go while rows are parted anew over a real broker, and are counted in windows there: each window of each number
// counts each of its rows once, whichever partition it came from.
func TestRowsPartedAnewCountOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("rebalances take seconds")
	}
	const partitions, rounds, values = 4, 300, 20
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	store, err := blobs.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	held := &shelf{held: map[flow.Range][]int64{}}
	plan := partPlan(partitions)
	plan.Sinks[0].New = func() flow.Sink { return held }
	c := streams.New()
	c.Brokers = []string{broker(t)}
	var wait conc.WaitGroup
	defer wait.Wait()
	defer cancel()
	member := func() (leave context.CancelFunc) {
		client, err := streams.Dial(ctx, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &Runner{Plan: plan, Client: client, Store: store, Log: slog.New(slog.DiscardHandler), Meter: NewMeter()}
		if err := r.Ensure(ctx); err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(ctx)
		for node, f := range map[string]func(context.Context, string) error{"keep": r.Sink, "spread": r.Unit, "tally": r.Unit} {
			wait.Go(func() {
				if err := f(ctx, node); err != nil && ctx.Err() == nil {
					t.Errorf("%s ended: %v", node, err)
				}
			})
		}
		return leave
	}
	first := member()
	client, err := streams.Dial(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	start := flow.MicrosOf(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC))
	want := map[int64]int{} // of n and window: rows
	give := func(round int64, at flow.Micros) {
		for partition := range int32(partitions) {
			var rows []pending
			for k := range int64(4) {
				rows = append(rows, pending{int64(at), (round*int64(partition+1)*7 + k*3) % values})
			}
			if round == rounds { // the last says everywhere how late it is
				rows = nil
				for n := range int64(values) {
					rows = append(rows, pending{int64(at), n})
				}
			}
			for _, r := range rows {
				if round < rounds {
					want[tally1(r.N, int64(at/10e6*10e6), 0)]++
				}
			}
			b := flow.Batch{Watermark: at, Record: recordOf(rows)}
			b.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0", Partition: partition}, Position: flow.Position{Offset: round}}
			if _, err := client.NewProducer().Publish(ctx, "raw", partition, b); err != nil {
				t.Errorf("publish: %v", err)
			}
			b.Record.Release()
		}
	}
	for round := range int64(rounds) {
		give(round, start+flow.Micros(round)*1e6)
		switch round {
		case 60, 180:
			member()
		case 120:
			first()
		}
		time.Sleep(15 * time.Millisecond)
	}
	give(rounds, start+flow.MicrosOf(time.Unix(7200, 0)))
	for held.count() < len(want) {
		if ctx.Err() != nil {
			t.Fatalf("%d windows of %d are held", held.count(), len(want))
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(500 * time.Millisecond) // whatever comes twice comes now
	cancel()
	wait.Wait()
	var windows []int64
	for w, rows := range want {
		windows = append(windows, w+int64(rows))
	}
	slices.Sort(windows)
	var got []int64
	of := map[int64]int32{}
	for p := range int32(partitions) {
		for _, v := range held.of(t, "tallies", p) {
			got = append(got, v)
			n := v / 1_000_000_000
			if at, ok := of[n]; ok && at != p {
				t.Errorf("windows of %d are in the partitions %d and %d", n, at, p)
			}
			of[n] = p
		}
	}
	slices.Sort(got)
	if d := cmp.Diff(windows, got); d != "" {
		t.Errorf("windows (-want +got):\n%s", d)
	}
	if len(slices.Compact(slices.Sorted(maps.Values(of)))) < 2 {
		t.Errorf("all numbers are in one partition: %v", of)
	}
}

// A reader of a stream with a key knows no time before it has heard of each of the tasks that write it, or the others' time went
// on for long. It never forgets how far it has taken each.
func TestTheTasksOfAStreamWithAKeyAreAwaited(t *testing.T) {
	m := newMarks()
	m.awaited = []teller{{"spread", 0}, {"spread", 1}, {"spread", 2}}
	const second = 1_000_000
	say := func(partition int32, offset, at int64) bool {
		took := m.take(&flow.Batch{Watermark: flow.Micros(at), Lineage: flow.Lineage{
			Source: flow.Source{Producer: "spread", Stream: "raw", Partition: partition}, Position: flow.Position{Offset: offset}}})
		m = m.copy()
		return took
	}
	is := func(want int64) {
		t.Helper()
		if m.watermark != flow.Micros(want) {
			t.Errorf("the watermark is %d; want %d", m.watermark, want)
		}
	}
	say(0, 1, 1000*second)
	say(1, 1, 1010*second)
	is(0) // the third may be further back
	say(2, 1, 990*second)
	is(990 * second)
	say(2, 2, 1005*second)
	is(1000 * second)
	say(0, 2, 4500*second)
	is(1005 * second) // the others lag, or catch up
	say(2, 3, 1020*second)
	is(1010 * second)
	say(0, 3, 4611*second)
	is(1020 * second) // the second has not been heard of for more than an hour
	say(0, 4, 1_000_000*second)
	if say(1, 1, 1010*second) {
		t.Error("a batch was taken twice: how far its task had come was forgotten")
	}
	m = newMarks()
	m.awaited = []teller{{"spread", 0}, {"spread", 1}}
	say(0, 1, 1000*second)
	say(0, 2, 4599*second)
	is(0)
	say(0, 3, 4601*second)
	is(4601 * second) // a task that never spoke is not waited for, for ever
}

// A task that begins anew may find batches of the other tasks in a stream with a key, but none of its own.
func TestATaskMayBeginBesideOthersThatWriteTheSamePartitions(t *testing.T) {
	for who, refused := range map[teller]bool{{"spread", 1}: true, {"spread", 0}: false, {"other", 1}: false} {
		w := newWorld()
		r := &Runner{Meter: NewMeter(), road: &bounded{&life{world: w, uses: -1}}, Plan: partPlan(2)}
		r.once.Do(func() {})
		b := flow.Batch{Kind: flow.KindHeartbeat, Watermark: 7, Lineage: flow.Lineage{Source: flow.Source{Producer: who.producer, Stream: "raw", Partition: who.partition}}}
		_, _ = r.road.Publish(t.Context(), "shares", 0, b)
		task := &task{r: r, unit: r.Plan.Units[0], partition: 1, told: map[string]flow.Micros{}, fresh: true}
		err := r.foreign(t.Context(), task, &generation{group: "parted.spread"})
		if (err != nil) != refused {
			t.Errorf("batches of %v: %v; refused should be %v", who, err, refused)
		}
	}
}

// bounded is a life that knows how much its streams hold.
type bounded struct{ *life }

func (b *bounded) Bounds(_ context.Context, stream string, partition int32) (first, next int64, err error) {
	if partition != 0 { // it has one partition
		return 0, 0, nil
	}
	return 0, int64(len(b.streams[stream])), nil
}

// Rows are parted by their keys, each batch in a place of its own in the lineage, and none is lost.
func TestRowsArePartedByTheirKeys(t *testing.T) {
	plan := partPlan(3)
	c := newChain(plan.Units[0], plan, 1, nil, memory.DefaultAllocator, NewMeter(), nil, (&Runner{}).retry)
	var rows []pending
	for n := range int64(100) {
		rows = append(rows, pending{n, n % 10})
	}
	rec := recordOf(rows)
	defer rec.Release()
	out, err := c.process(t.Context(), message{origin: flow.Origin{Stream: "raw", Partition: 1, Offset: 9}, record: rec})
	if err != nil {
		t.Fatal(err)
	}
	defer release(out)
	where, total := map[int64]int32{}, 0
	for k, m := range out {
		if p := m.batch.Lineage.Position; p != (flow.Position{Offset: 9, K: int32(k)}) || m.batch.Lineage.Partition != 1 {
			t.Errorf("batch %d has the lineage %v %v", k, m.batch.Lineage.Source, p)
		}
		for _, v := range valuesOf(m.batch.Record) {
			total++
			if at, ok := where[v]; ok && at != m.partition {
				t.Errorf("rows of %d are in the partitions %d and %d", v, at, m.partition)
			}
			where[v] = m.partition
		}
	}
	if total != 100 || len(out) < 2 {
		t.Errorf("%d rows in %d batches; want 100 in several", total, len(out))
	}
}

// A stream that is parted otherwise is another stream.
func TestAStreamIsNotPartedOtherwise(t *testing.T) {
	note := func(key []string) *Note {
		plan := partPlan(2)
		r := &Runner{Plan: plan}
		if plan.Units[0].Stages[0].Keys = nil; key != nil {
			plan.Units[0].Stages[0].Keys = map[string][]string{"shares": key}
		}
		return r.noteOfUnit(plan.Units[0])
	}
	if err := sameKeys(note([]string{"n"}), note([]string{"n"})); err != nil {
		t.Error(err)
	}
	for want, notes := range map[string][2]*Note{
		"were parted by n and would be parted by time, n": {note([]string{"n"}), note([]string{"time", "n"})},
		"were not parted anew and would be parted by n":   {note(nil), note([]string{"n"})},
		"were parted by n and would be not parted anew":   {note([]string{"n"}), note(nil)},
	} {
		if err := sameKeys(notes[0], notes[1]); err == nil || err.Error() != fmt.Sprintf("the rows of stream shares %s: give it a new stream", want) {
			t.Errorf("got %v; want an error that says %q", err, want)
		}
	}
}

// What has been written by one key is not gone on with by another: the plan says so, and a start does too.
func TestAChangedKeyIsRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	store, err := blobs.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := streams.New()
	c.Brokers = []string{broker(t)}
	client, err := streams.Dial(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	by := func(key ...string) *Runner {
		plan := partPlan(2)
		plan.Streams["shares"].Key = key
		plan.Units[0].Stages[0].Keys = map[string][]string{"shares": key}
		return &Runner{Plan: plan, Client: client, Store: store, Log: slog.New(slog.DiscardHandler), Meter: NewMeter()}
	}
	r := by("n")
	if err := r.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	b := flow.Batch{Watermark: 1, Record: numbersOf([]int64{1, 2, 3})}
	b.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: 1}}
	if _, err := client.NewProducer().Publish(ctx, "raw", 0, b); err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	var wait conc.WaitGroup
	wait.Go(func() { _ = r.Unit(running, "spread") }) // it ends when it is told to
	for written := false; !written; time.Sleep(10 * time.Millisecond) {
		for p := range int32(2) {
			_, next, err := client.Bounds(ctx, "shares", p)
			if err != nil {
				t.Fatal(err)
			}
			written = written || next > 0
		}
	}
	stop()
	wait.Wait()
	if changes, err := by("n").Changes(ctx, Consent{}); err != nil || slices.ContainsFunc(changes, func(c Change) bool { return c.Refused != "" }) {
		t.Errorf("the same key: %+v, %v", changes, err)
	}
	changes, err := by("time", "n").Changes(ctx, Consent{})
	if err != nil || !slices.ContainsFunc(changes, func(c Change) bool {
		return c.What == "stage spread" && c.Refused == "the rows of stream shares were parted by n and would be parted by time, n"
	}) {
		t.Errorf("another key: %+v, %v", changes, err)
	}
	if err := by("time", "n").Unit(ctx, "spread"); err == nil || ctx.Err() != nil {
		t.Errorf("started with another key: %v", err)
	}
}
