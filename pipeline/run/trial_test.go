package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// census counts the rows of each home: 1, 2, 3, times Sign. Rows of the device it refuses it sets aside, so that what it makes
// of a batch has other positions than what another version makes.
type census struct {
	Sign   int64         `yaml:"sign"`
	Refuse string        `yaml:"refuse"`
	Slow   time.Duration `yaml:"slow"` // a batch
	Hang   bool          `yaml:"hang"`

	totals map[string]int64
}

var tallies = arrow.NewSchema([]arrow.Field{
	{Name: flow.ColTime, Type: flow.InstantType}, {Name: flow.ColHome, Type: flow.KeyType}, {Name: "n", Type: arrow.PrimitiveTypes.Int64},
}, nil)

func (s *census) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	events, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	if s.Hang && in.NumRows() > 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	time.Sleep(s.Slow)
	b := array.NewRecordBuilder(memory.DefaultAllocator, tallies)
	defer b.Release()
	var bad flow.BadRows
	for i := range int(in.NumRows()) {
		if s.Refuse != "" && events.Device.Value(i) == s.Refuse {
			bad.Add(i, "refused")
		}
		home := events.Home.Value(i)
		if s.totals == nil {
			s.totals = map[string]int64{}
		}
		s.totals[home]++
		b.Field(0).(*array.TimestampBuilder).Append(events.Time[i])
		if err := b.Field(1).(*array.BinaryDictionaryBuilder).AppendString(home); err != nil {
			return nil, err
		}
		b.Field(2).(*array.Int64Builder).Append(s.Sign * s.totals[home])
	}
	return []flow.Output{{To: "tallies", Record: b.NewRecord()}}, bad.Err()
}

func (s *census) Snapshot(w io.Writer) error { return json.NewEncoder(w).Encode(s.totals) }
func (s *census) Restore(r io.Reader) error  { return json.NewDecoder(r).Decode(&s.totals) }

// keptTallies is a sink of everything: what it holds of each range must be the same whenever it is written.
type keptTallies struct {
	mu   sync.Mutex
	held map[flow.Range][]string
	rows map[string]int // by stream
}

func newKept() *keptTallies {
	return &keptTallies{held: map[flow.Range][]string{}, rows: map[string]int{}}
}

func (k *keptTallies) Write(_ context.Context, r flow.Range, recs []arrow.Record) error {
	var rows []string
	for _, rec := range recs {
		for i := range int(rec.NumRows()) {
			if rec.Schema().HasField("n") {
				home, err := flow.StringsOf(rec, flow.ColHome)
				if err != nil {
					return err
				}
				rows = append(rows, fmt.Sprintf("%s %d", home.Value(i), rec.Column(rec.Schema().FieldIndices("n")[0]).(*array.Int64).Value(i)))
			} else {
				rows = append(rows, "dead")
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if before, again := k.held[r]; again && !slices.Equal(before, rows) {
		return fmt.Errorf("range %v held other rows", r)
	} else if !again {
		k.held[r] = rows
		k.rows[r.Stream] += len(rows)
	}
	return nil
}

func (k *keptTallies) count(stream string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rows[stream]
}

// of gives, by home, the numbers of a stream in the order in which they came.
func (k *keptTallies) of(stream string) map[string][]int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	ranges := slices.SortedFunc(maps.Keys(k.held), func(a, b flow.Range) int {
		return 1_000_000*int(a.Partition-b.Partition) + int(a.First-b.First)
	})
	all := map[string][]int64{}
	for _, r := range ranges {
		if r.Stream != stream {
			continue
		}
		for _, row := range k.held[r] {
			var home string
			var n int64
			if _, err := fmt.Sscan(row, &home, &n); err == nil {
				all[home] = append(all[home], n)
			}
		}
	}
	return all
}

// trialPlan reads a pipeline.yaml whose stage tally has the given lines more, and whose sink keeps everything.
func trialPlan(t testing.TB, held flow.Sink, more string) *pipeline.Plan {
	t.Helper()
	text := `pipeline: homes
partitions: 2
checkpoint: 100ms
gateway: {to: raw}
stages:
  tally:
    from: raw
    to: tallies
` + more + `
sinks:
  keep: {from: [tallies, tally.dead], flush: {wait: 10ms}}
`
	spec, findings := pipeline.ReadBytes("pipeline.yaml", []byte(text), func(string) (string, bool) { return "", false })
	plan, more2 := pipeline.NewPlan(t.Context(), spec, pipeline.Catalog{
		Stages: map[string]func() flow.Stage{
			"turnstile": func() flow.Stage { return &turnstile{Sign: 1} },
			"tally":     func() flow.Stage { return &census{Sign: 1} },
			"tally2":    func() flow.Stage { return &census{Sign: -1, Refuse: "bad"} },
		},
		Sinks: map[string]func() flow.Sink{"keep": func() flow.Sink { return held }},
	})
	if plan == nil {
		t.Fatal(findings, more2)
	}
	return plan
}

// trials is a pipeline that tries second versions under load.
type trials struct {
	t       *testing.T
	ctx     context.Context
	config  streams.Config
	store   blobs.Store
	held    *keptTallies
	sent    map[string]int64 // rows, by home
	mu      sync.Mutex
	log     *slog.Logger
	catchUp time.Duration
}

func newTrials(t *testing.T) *trials {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	store, err := blobs.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := streams.New()
	c.Brokers = []string{broker(t)}
	return &trials{t: t, ctx: ctx, config: c, store: store, held: newKept(), sent: map[string]int64{}, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// running is a process that runs nodes of a plan. kill ends it as kill -9 would: from one moment on nothing is published or
// saved any more.
type running struct {
	*Runner
	stop, kill func()
}

// mortal is the road and the store of a process that can die.
type mortal struct {
	road
	blobs.Store
	dead atomic.Bool
}

var errNoMore = errors.New("dead")

func (m *mortal) Publish(ctx context.Context, stream string, partition int32, batches ...flow.Batch) (int64, error) {
	if m.dead.Load() {
		return 0, errNoMore
	}
	return m.road.Publish(ctx, stream, partition, batches...)
}

func (m *mortal) Put(ctx context.Context, name string, r io.Reader) error {
	if m.dead.Load() {
		return errNoMore
	}
	return m.Store.Put(ctx, name, r)
}

func (s *trials) process(plan *pipeline.Plan, nodes ...string) *running {
	s.t.Helper()
	client, err := streams.Dial(s.ctx, s.config, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	m := &mortal{road: kafka{client, client.NewProducer()}, Store: s.store}
	r := &Runner{Plan: plan, Client: client, Store: m, Log: s.log, Meter: NewMeter(), road: m, catchUp: s.catchUp}
	if err := r.Ensure(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	var wait conc.WaitGroup
	for _, node := range nodes {
		wait.Go(func() {
			for ctx.Err() == nil {
				run := r.Unit
				if node == "keep" {
					run = r.Sink
				}
				if err := run(ctx, node); err != nil && ctx.Err() == nil {
					s.log.Info("ended, starting again", "node", node, "error", err)
					time.Sleep(100 * time.Millisecond)
				}
			}
		})
	}
	var once sync.Once
	p := &running{Runner: r}
	p.stop = func() { once.Do(func() { cancel(); wait.Wait(); client.Close() }) }
	p.kill = func() { once.Do(func() { m.dead.Store(true); cancel(); wait.Wait(); client.Close() }) }
	s.t.Cleanup(p.stop)
	return p
}

// load writes rows of eight homes, a batch of each partition every 5 ms, until it is told to stop.
func (s *trials) load() (stop func()) {
	s.t.Helper()
	client, err := streams.Dial(s.ctx, s.config, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	var wait conc.WaitGroup
	wait.Go(func() {
		p := client.NewProducer()
		for i := int64(0); ctx.Err() == nil; i++ {
			for partition := range int32(2) {
				b := flow.NewEventBuilder()
				rows := map[string]int64{}
				for k := range int64(6) {
					home := fmt.Sprintf("home-%d-%d", partition, (i+k)%4)
					device := "good"
					if k == 2 && i%3 == 0 {
						device = "bad"
					}
					at := flow.Micros(1_700_000_000_000_000 + i*5000 + k)
					b.Append(&flow.Event{Time: at, Received: at, Home: home, Device: device, Metric: "power", Value: 1, HasValue: true})
					rows[home]++
				}
				rec, _ := b.Record()
				batch := flow.Batch{Watermark: flow.Micros(1_700_000_000_000_000 + i*5000), Record: rec}
				batch.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0", Partition: partition}, Position: flow.Position{Offset: i}}
				if _, err := p.Publish(s.ctx, "raw", partition, batch); err != nil {
					s.t.Errorf("publish: %v", err)
					return
				}
				rec.Release()
				s.mu.Lock()
				for home, n := range rows {
					s.sent[home] += n
				}
				s.mu.Unlock()
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return func() { cancel(); wait.Wait(); client.Close() }
}

// until waits for a condition.
func (s *trials) until(what string, ok func() bool) {
	s.t.Helper()
	for !ok() {
		if s.ctx.Err() != nil {
			s.t.Fatalf("waited too long for: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// more waits until so many rows more are kept.
func (s *trials) more(rows int) {
	s.t.Helper()
	want := s.held.count("tallies") + rows
	s.until(fmt.Sprintf("%d rows", want), func() bool { return s.held.count("tallies") >= want })
}

// pause measures the longest time in which nothing came to the sink, until it is called.
func (s *trials) pause() (end func() time.Duration) {
	ctx, cancel := context.WithCancel(s.ctx)
	var wait conc.WaitGroup
	var longest time.Duration
	wait.Go(func() {
		last, since := s.held.count("tallies"), time.Now()
		for ctx.Err() == nil {
			if n := s.held.count("tallies"); n != last {
				longest, last, since = max(longest, time.Since(since)), n, time.Now()
			}
			time.Sleep(time.Millisecond)
		}
	})
	return func() time.Duration { cancel(); wait.Wait(); return longest }
}

// all waits until everything that was sent is kept, then checks that every row of every home is there once and in order, first
// those of the first version, then those of the second. It gives how many are the second's.
func (s *trials) all() (second int) {
	s.t.Helper()
	sum := 0
	for _, n := range s.sent {
		sum += int(n)
	}
	s.until(fmt.Sprintf("all %d rows", sum), func() bool { return s.held.count("tallies") >= sum })
	time.Sleep(300 * time.Millisecond) // whatever comes twice comes now
	for home, got := range s.held.of("tallies") {
		for i, n := range got {
			if n != int64(i+1) && n != -int64(i+1) {
				s.t.Fatalf("%s: row %d is %d", home, i+1, n)
			}
			if n < 0 {
				second++
			}
		}
		if int64(len(got)) != s.sent[home] {
			s.t.Errorf("%s: %d rows, %d were sent", home, len(got), s.sent[home])
		}
	}
	return second
}

// once checks that a home went from the first version to the second at most so many times.
func (s *trials) switches(most int) {
	s.t.Helper()
	for home, got := range s.held.of("tallies") {
		n := 0
		for i := 1; i < len(got); i++ {
			if (got[i] < 0) != (got[i-1] < 0) {
				n++
			}
		}
		if n > most {
			s.t.Errorf("%s changed its version %d times; want %d at most", home, n, most)
		}
	}
}

// A shadow gets the same batches, from where its stage is, with a copy of what that remembers; it is killed, started again
// and promoted while rows flow. Every row is kept once and in order, the second version's from one row on, although it
// makes other batches of a message than the first.
func TestShadowIsPromotedUnderLoad(t *testing.T) {
	s := newTrials(t)
	plan := trialPlan(t, s.held, "")
	stop := s.load()
	before := s.process(plan, "tally", "keep")
	s.more(300)
	before.kill()

	plan = trialPlan(t, s.held, "    shadow: {use: tally2, state: copy}")
	stage := s.process(plan, "tally", "keep")
	shadow := s.process(plan, "tally-shadow")
	s.more(300)
	shadow.kill()
	s.more(300)
	shadow = s.process(plan, "tally-shadow")
	s.until("the shadow's own rows", func() bool { return shadow.Meter.Node("tally-shadow").Out("tallies.shadow").Rows.Load() > 200 })
	s.more(100)

	stage.kill() // what it published beyond its checkpoint is made again by the first version, before it hands over
	stage = s.process(plan, "tally", "keep")
	var told []string
	pause := s.pause()
	if err := stage.Promote(s.ctx, "tally", false, func(line string) { told = append(told, line) }); err != nil {
		t.Fatal(err)
	}
	s.more(50)
	if longest := pause(); longest > 10*time.Second { // of a machine that does other things too; on a quiet one 50 ms
		t.Errorf("nothing came for %v", longest)
	} else {
		t.Logf("the longest time in which nothing came: %v", longest)
	}
	if len(told) != 2 {
		t.Errorf("told %q", told)
	}
	s.more(300)
	stage.kill()
	shadow.kill()
	stage = s.process(plan, "tally", "tally-shadow", "keep") // the file still has both
	s.more(300)
	stage.stop()
	stage = s.process(trialPlan(t, s.held, "    use: tally2"), "tally", "keep")
	s.more(300)
	stop()
	if n := s.all(); n < 500 {
		t.Errorf("%d rows of the second version", n)
	}
	s.switches(1)
	if s.held.count("tally.dead") == 0 {
		t.Error("no dead letters of the second version")
	}
	// A file that knows nothing of the promotion does not start.
	old := trialPlan(t, s.held, "")
	r := &Runner{Plan: old, Client: stage.Client, Store: s.store, Log: s.log, Meter: NewMeter()}
	if err := r.Unit(s.ctx, "tally"); err == nil || !strings.Contains(err.Error(), "was promoted to tally2") {
		t.Errorf("the old file starts: %v", err)
	}
	if groups, err := stage.Client.Groups(s.ctx, "homes.tally-shadow"); err != nil || len(groups) > 0 {
		t.Errorf("groups left: %v, %v", groups, err)
	}
	if changes, err := stage.Changes(s.ctx, Consent{}); err != nil || len(changes) > 0 {
		t.Errorf("changes: %+v, %v", changes, err)
	}
}

// A second version that hangs does not touch the first, and cannot be promoted; dropped, its group and its streams go.
func TestShadowThatHangsIsDropped(t *testing.T) {
	s := newTrials(t)
	s.catchUp = 2 * time.Second
	plan := trialPlan(t, s.held, "    shadow: {use: tally2, settings: {hang: true}}")
	stop := s.load()
	stage := s.process(plan, "tally", "keep")
	shadow := s.process(plan, "tally-shadow")
	s.more(600)
	if err := stage.Promote(s.ctx, "tally", false, func(string) {}); err == nil || !errors.Is(err, ErrRefused) {
		t.Errorf("promoted: %v", err)
	}
	d, err := stage.Drop(s.ctx, "tally", true, func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(d.Deleted, []string{"tallies.shadow", "tally-shadow.dead"}) {
		t.Errorf("%+v", d)
	}
	if err := stage.DropDone(s.ctx, "tally"); err != nil {
		t.Fatal(err)
	}
	s.more(300)
	shadow.stop()
	stage.stop()
	stage = s.process(trialPlan(t, s.held, ""), "tally", "keep")
	s.more(300)
	stop()
	if n := s.all(); n > 0 {
		t.Errorf("%d rows of the second version", n)
	}
	if changes, err := stage.Changes(s.ctx, Consent{}); err != nil || len(changes) > 0 {
		t.Errorf("changes: %+v, %v", changes, err)
	}
}

// A canary's homes are the second version's, from one row on; more of them when it is given more, also where the process is
// killed in between; all when it is promoted. Every row is kept once and in order.
func TestCanaryUnderLoad(t *testing.T) {
	s := newTrials(t)
	stop := s.load()
	p := s.process(trialPlan(t, s.held, ""), "tally", "keep")
	s.more(300)
	p.kill()
	for _, percent := range []string{"30", "30", "60"} {
		p = s.process(trialPlan(t, s.held, "    canary: {use: tally2, percent: "+percent+"}"), "tally", "keep")
		s.more(400)
		p.kill()
	}
	plan := trialPlan(t, s.held, "    canary: {use: tally2, percent: 60}")
	p = s.process(plan, "tally", "keep")
	s.more(200)
	if err := p.Promote(s.ctx, "tally", false, func(line string) { t.Log(line) }); err != nil {
		t.Fatal(err)
	}
	s.more(300)
	p.kill()
	s.process(trialPlan(t, s.held, "    use: tally2"), "tally", "keep")
	s.more(300)
	stop()
	if n := s.all(); n < 400 {
		t.Errorf("%d rows of the second version", n)
	}
	s.switches(1)
	for home, got := range s.held.of("tallies") {
		if got[len(got)-1] > 0 {
			t.Errorf("%s is not the second version's", home)
		}
	}
}

// A canary that is dropped while rows flow gives its homes back.
func TestCanaryIsDropped(t *testing.T) {
	s := newTrials(t)
	stop := s.load()
	plan := trialPlan(t, s.held, "    canary: {use: tally2, percent: 60}")
	p := s.process(plan, "tally", "keep")
	s.more(400)
	if _, err := p.Drop(s.ctx, "tally", false, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if err := p.DropDone(s.ctx, "tally"); err != nil {
		t.Fatal(err)
	}
	s.more(400)
	p.kill()
	s.process(trialPlan(t, s.held, ""), "tally", "keep")
	s.more(200)
	stop()
	if n := s.all(); n == 0 {
		t.Error("no rows of the second version")
	}
	s.switches(1)
}
