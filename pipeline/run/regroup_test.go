package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// groupings are the ways in which sieve, sum and bell can run together.
var groupings = []string{"sieve sum bell", "sieve+sum bell", "sieve sum+bell", "sieve+sum+bell"}

// groupedPlan is testPlan with other units.
func groupedPlan(grouping string, partitions int, held flow.Sink) *pipeline.Plan {
	p := testPlan()
	p.Spec.Partitions, p.Spec.Checkpoint, p.Spec.Kafka.Retention = partitions, 20*time.Millisecond, time.Hour
	p.Spec.Stages = nil
	stages := map[string]*pipeline.StageNode{}
	for _, u := range p.Units {
		for _, s := range u.Stages {
			stages[s.Name] = s
			p.Spec.Stages = append(p.Spec.Stages, s.Stage)
		}
	}
	// good leaves Kafka when who reads it stands with who writes it; sums is always kept by the sink.
	p.Units, p.Streams["good"] = nil, &pipeline.Stream{Name: "good", Writer: "sieve"}
	delete(p.Streams, "inner")
	p.Streams["sums"].Writer = "sum"
	for _, name := range strings.Fields(grouping) {
		u := &pipeline.Unit{Name: name}
		for _, s := range strings.Split(name, "+") {
			u.Stages = append(u.Stages, stages[s])
		}
		u.Inputs = []string{u.Stages[0].From[0]}
		if strings.Contains(name, "sieve+sum") {
			p.Streams["good"].Unit = name
		}
		p.Units = append(p.Units, u)
	}
	p.Sinks[0].Streams, p.Sinks[0].New = []string{"sums", "counts"}, func() flow.Sink { return held }
	p.Spec.Sinks = []pipeline.Sink{p.Sinks[0].Sink}
	for _, s := range p.Streams {
		s.Readers = nil
	}
	return p
}

// changing is a pipeline that is run, drained and changed, again and again.
type changing struct {
	t       *testing.T
	ctx     context.Context
	config  streams.Config
	store   blobs.Store
	rounds  int
	fed     int64             // batches a partition
	clients []*streams.Client // the last two
}

func (c *changing) runner(plan *pipeline.Plan, drain Drain) *Runner {
	client, err := streams.Dial(c.ctx, c.config, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { client.Close() })
	if c.clients = append(c.clients, client); len(c.clients) > 2 { // a broker takes so many connections
		c.clients[0].Close()
		c.clients = c.clients[1:]
	}
	return &Runner{Plan: plan, Client: client, Store: c.store, Log: slog.New(slog.DiscardHandler), Meter: NewMeter(), Drain: drain, settle: 5 * time.Millisecond}
}

// round runs the plan while batches come in, until they have all flown through.
func (c *changing) round(plan *pipeline.Plan, batches, rows int) {
	c.t.Helper()
	c.rounds++
	run := fmt.Sprint("run-", c.rounds)
	r := c.runner(plan, Drain{Run: run, Gateways: 1})
	if err := r.Ensure(c.ctx); err != nil {
		c.t.Fatal(err)
	}
	var wait conc.WaitGroup
	node := func(f func(context.Context, string) error, name string) {
		wait.Go(func() {
			if err := f(c.ctx, name); err != nil {
				c.t.Errorf("%s: %v", name, err)
			}
		})
	}
	node(r.Sink, "keep")
	for _, u := range plan.Units {
		node(r.Unit, u.Name)
	}
	p := r.Client.NewProducer()
	for i := range batches + 1 {
		for partition := range int32(plan.Spec.Partitions) {
			b := flow.Batch{Watermark: flow.Micros(c.fed * 3), Record: numbersOf(slices.Repeat([]int64{1}, rows))}
			b.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0", Partition: partition}, Position: flow.Position{Offset: c.fed}}
			if i == batches {
				b.Kind, b.Run, b.Record = flow.KindEnd, run, nil
			}
			if _, err := p.Publish(c.ctx, "raw", partition, b); err != nil {
				c.t.Fatal(err)
			}
		}
		c.fed++
	}
	wait.Wait()
}

// A pipeline is regrouped at random, many times, and the change is interrupted after some of its steps. In the end
// the running sums of every partition are those of a pipeline that was never changed, in order and once, and every row was
// counted once.
func TestRegroupedAtRandomEveryRowCountsOnce(t *testing.T) {
	const partitions, batches, rows, changes = 3, 12, 4, 12
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	store, err := blobs.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	config := streams.New()
	config.Brokers = []string{broker(t)}
	c := &changing{t: t, ctx: ctx, config: config, store: store}
	held := &shelf{held: map[flow.Range][]int64{}}
	at := groupings[dice.IntN(len(groupings))]
	c.round(groupedPlan(at, partitions, held), batches, rows)
	interrupted := 0
	for range changes {
		next := groupings[dice.IntN(len(groupings))]
		plan := groupedPlan(next, partitions, held)
		for stop := dice.IntN(8); ; stop = 1000 {
			r := c.runner(plan, Drain{})
			applying, interrupt := context.WithCancel(ctx)
			n := 0
			r.stepped = func() {
				if n++; n > stop {
					interrupt()
				}
			}
			_, err := r.Apply(applying, Consent{})
			interrupt()
			if err == nil {
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("seed %d, from %s to %s: %v", seed, at, next, err)
			}
			interrupted++
			// A change that was begun keeps everybody out.
			if err := c.runner(plan, Drain{}).Unit(ctx, plan.Units[0].Name); err == nil || !strings.Contains(err.Error(), "not finished") {
				t.Fatalf("seed %d: a unit started in the middle of a change: %v", seed, err)
			}
		}
		if left, err := c.runner(plan, Drain{}).Changes(ctx, Consent{}); err != nil || len(left) != 0 {
			t.Fatalf("seed %d: after the change from %s to %s there is left: %+v, %v", seed, at, next, left, err)
		}
		at = next
		c.round(plan, batches, rows)
	}
	if interrupted == 0 {
		t.Errorf("seed %d: no change was interrupted", seed)
	}
	t.Logf("%d changes, %d interruptions", changes, interrupted)
	want := (changes + 1) * batches * rows
	for p := range int32(partitions) {
		sums := held.of(t, "sums", p)
		for i, v := range sums {
			if v != int64(i+1) {
				t.Fatalf("seed %d: partition %d: row %d is %d", seed, p, i, v)
			}
		}
		if len(sums) != want {
			t.Errorf("seed %d: partition %d: %d sums, want %d", seed, p, len(sums), want)
		}
		counted := int64(0)
		for _, n := range held.of(t, "counts", p) {
			counted += n
		}
		// What came since the bell last rang has not been told.
		if counted > int64(want) || counted < int64(want-5*rows) {
			t.Errorf("seed %d: partition %d: %d rows counted of %d", seed, p, counted, want)
		}
	}
}

// A stage under another name that says which was its own goes on where it stood: the running sums of every partition are there
// once and in order, those of before and those of after.
func TestRenamedStageGoesOn(t *testing.T) {
	const partitions, batches, rows = 2, 5, 2
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	store, err := blobs.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	config := streams.New()
	config.Brokers = []string{broker(t)}
	c := &changing{t: t, ctx: ctx, config: config, store: store}
	held := &shelf{held: map[flow.Range][]int64{}}
	c.round(groupedPlan("sieve sum bell", partitions, held), batches, rows)
	for _, name := range []string{"add", "total"} { // and again; was is the name under which it began
		plan := groupedPlan("sieve sum bell", partitions, held)
		node := plan.Units[1].Stages[0]
		plan.Units[1].Name, node.Name, node.Was, plan.Streams["sums"].Writer = name, name, "sum", name
		plan.Spec.Stages[1] = node.Stage
		c.round(plan, batches, rows)
	}
	for p := range int32(partitions) {
		sums := held.of(t, "sums", p)
		for i, v := range sums {
			if v != int64(i+1) {
				t.Fatalf("partition %d: row %d is %d: its state did not go on", p, i, v)
			}
		}
		if len(sums) != 3*batches*rows {
			t.Errorf("partition %d: %d sums, want %d", p, len(sums), 3*batches*rows)
		}
	}
}

// What a start would get wrong is refused by it, by the plan, or by both.
func TestChangesThatWouldCountTwiceAreRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	store, err := blobs.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	config := streams.New()
	config.Brokers = []string{broker(t)}
	c := &changing{t: t, ctx: ctx, config: config, store: store}
	held := &shelf{held: map[flow.Range][]int64{}}
	c.round(groupedPlan("sieve sum bell", 2, held), 5, 2)

	t.Run("together, without plan --apply", func(t *testing.T) {
		plan := groupedPlan("sieve+sum bell", 2, held)
		if err := c.runner(plan, Drain{}).Unit(ctx, "sieve+sum"); err == nil || !strings.Contains(err.Error(), "ran in the group") {
			t.Error(err)
		}
	})
	t.Run("a sink under another name", func(t *testing.T) {
		plan := groupedPlan("sieve sum bell", 2, held)
		plan.Sinks[0].Name, plan.Spec.Sinks[0].Name = "hold", "hold"
		if err := c.runner(plan, Drain{}).Sink(ctx, "hold"); err == nil || !strings.Contains(err.Error(), "was: keep") {
			t.Error(err)
		}
		expectRefusal(t, c.runner(plan, Drain{}), Consent{}, "was: keep")
		plan.Sinks[0].Was, plan.Spec.Sinks[0].Was = "keep", "keep"
		expectNoRefusal(t, c.runner(plan, Drain{}), Consent{})
	})
	t.Run("a stage under another name", func(t *testing.T) {
		plan := groupedPlan("sieve sum bell", 2, held)
		plan.Units[1].Name, plan.Units[1].Stages[0].Name, plan.Spec.Stages[1].Name = "add", "add", "add"
		if err := c.runner(plan, Drain{}).Unit(ctx, "add"); err == nil || !strings.Contains(err.Error(), "was: sum") {
			t.Error(err)
		}
		expectRefusal(t, c.runner(plan, Drain{}), Consent{}, "was: sum")
		// Forgotten, it is new; but what it would make of the past stands on its stream already.
		expectRefusal(t, c.runner(plan, Drain{}), Consent{Forget: []string{"sum"}}, "another stage made")
		expectNoRefusal(t, c.runner(plan, Drain{}), Consent{Forget: []string{"sum"}, BeginNow: []string{"add"}})
	})
	t.Run("settings that the state does not fit", func(t *testing.T) {
		plan := groupedPlan("sieve sum bell", 2, held)
		plan.Units[1].Stages[0].New = func() flow.Stage { return &picky{} }
		r := c.runner(plan, Drain{})
		r.Version = "2"
		expectRefusal(t, r, Consent{}, "lose-state:sum")
		if err := c.runner(plan, Drain{}).Unit(ctx, "sum"); err == nil || !strings.Contains(err.Error(), "restore state of stage sum") {
			t.Error(err)
		}
		changes, err := r.Apply(ctx, Consent{LoseState: []string{"sum"}})
		if err != nil {
			t.Fatal(changes, err)
		}
		c.round(plan, 2, 2)
	})
	t.Run("other partitions", func(t *testing.T) {
		plan := groupedPlan("sieve sum bell", 5, held)
		expectRefusal(t, c.runner(plan, Drain{}), Consent{}, "repartition")
		// With rows on the way it is refused, too: they would be lost.
		p := c.runner(plan, Drain{}).Client.NewProducer()
		b := flow.Batch{Watermark: 1e6, Record: numbersOf([]int64{1}), Lineage: flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: c.fed}}}
		if _, err := p.Publish(ctx, "raw", 0, b); err != nil {
			t.Fatal(err)
		}
		if _, err := c.runner(plan, Drain{}).Apply(ctx, Consent{Repartition: true}); !errors.Is(err, ErrRefused) {
			t.Errorf("made anew over rows that nobody has taken: %v", err)
		}
		plan.Units[1].Stages[0].New = func() flow.Stage { return &picky{} }
		four := groupedPlan("sieve sum bell", 2, held)
		four.Units[1].Stages[0].New = plan.Units[1].Stages[0].New
		c.round(four, 1, 1)
		rows := held.count()
		if _, err := c.runner(plan, Drain{}).Apply(ctx, Consent{Repartition: true}); err != nil {
			t.Fatal(err)
		}
		c.round(plan, 1, 1)
		if got := held.count() - rows; got < 5 {
			t.Errorf("%d rows after, want the 5 sums of one round at least", got)
		}
	})
}

// picky is a sum that does not take an old state.
type picky struct{ sum }

func (p *picky) Restore(r io.Reader) error {
	if err := p.sum.Restore(r); err != nil || p.total > 6 {
		return fmt.Errorf("this state is another's (%d, %v)", p.total, err)
	}
	return nil
}

func refusals(t *testing.T, r *Runner, c Consent) string {
	t.Helper()
	changes, err := r.Changes(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, ch := range changes {
		if ch.Refused != "" {
			all = append(all, ch.Refused+"; "+ch.Way)
		}
	}
	return strings.Join(all, "\n")
}

func expectRefusal(t *testing.T, r *Runner, c Consent, words string) {
	t.Helper()
	if got := refusals(t, r, c); !strings.Contains(got, words) {
		t.Errorf("refused: %q; want something of %q", got, words)
	}
	if _, err := r.Apply(t.Context(), c); !errors.Is(err, ErrRefused) {
		t.Errorf("what is refused was carried out: %v", err)
	}
}

func expectNoRefusal(t *testing.T, r *Runner, c Consent) {
	t.Helper()
	if got := refusals(t, r, c); got != "" {
		t.Errorf("refused: %s", got)
	}
}
