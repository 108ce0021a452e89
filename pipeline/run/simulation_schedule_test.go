package run

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/cenkalti/backoff/v5"
	"github.com/sourcegraph/conc"

	"hearthline/flow"
	"hearthline/pipeline"
)

// request is one use of the world by a process. It waits until the scheduler grants it.
type request struct {
	p           *process
	key         string       // where it comes from: of two requests that wait at once, no two have the same
	coordinator bool         // it goes to the group's coordinator, which the process may be cut off from
	ready       func() bool  // nil: always
	effect      func() error // carried out by the scheduler alone; what it returns is the answer
	faults      faults
	hold, drop  func() // take what the effect will need, before the sender is told that it failed; give it back
	held        bool
	until       int // it is slow: not before this step
	done        chan error
}

// faults says what may become of a request other than being done.
type faults uint8

const (
	canFail   faults = 1 << iota // refused, without effect
	canLose                      // done, but the answer is lost
	canBeLate                    // the sender gives up; it is done later, perhaps when its sender has been replaced
	slow                         // it may take long
	often                        // it fails more often than others: who asks, asks again
)

// process is one life of a member of a node's consumer group: it runs the node's tasks until it is killed, fails, or is
// told to stop, and then another life takes its place.
type process struct {
	s      *simulation
	node   string
	inputs []string
	label  string // node/slot.life and a space
	stop   context.CancelFunc

	dead  bool // killed: nothing that it asks for happens any more
	gone  bool // ended
	until int  // frozen: it does nothing before this step, though it does not know
	cut   int  // it does not reach the coordinator before this step

	membership
	budget *budget
}

// simulation is one run: a world, the processes in it, and the scheduler that decides what happens next.
type simulation struct {
	*simWorld
	settings
	dice  *rand.Rand
	plan  *pipeline.Plan
	texts []script // what the gateways say, by partition
	fed   []int
	alloc *counted
	meter *Meter

	mu        sync.Mutex
	requests  []*request // waiting, by key
	late      []*request // sent by somebody who does not wait for the answer any more, by key
	processes []*process // alive, by label
	order     []*group
	undone    map[string]bool
	over      bool
	faults    int // left
	lastFault int // step
	step      int
	favourite *process
	trace     uint64
	log       []string // what happened, when somebody wants to read it
	keepLog   bool
	running   conc.WaitGroup
	ended     struct{ processes, late, frozen int }
}

// settings are what differs from run to run beside the order of things.
type settings struct {
	kind, partitions int
	fussy            bool
	members          int // of each group
	workers          int
	checkpoint       time.Duration
	flushRows        int64
	flushWait        time.Duration
	faultsMax        int
	faultRate        float64 // of a request, and of a step
	ills             ills    // what befalls processes
	outcomes         faults  // what becomes of requests
	timeRate         float64 // of a step
	streak           float64 // how likely the process that was chosen last is chosen again
	burst            bool    // the gateways say all they have to say at once
	budget           int64   // bytes that a node's tasks may hold
	tooLarge         int     // percent of publishes that the broker finds too large
	bug              bug
}

func newSimulation(set settings, dice *rand.Rand, alloc *counted, meter *Meter, texts []script) *simulation {
	s := &simulation{
		simWorld: newSimWorld(), settings: set, dice: dice, alloc: alloc, meter: meter, texts: texts, fed: make([]int, set.partitions),
		undone: map[string]bool{}, faults: set.faultsMax, trace: 14695981039346656037,
	}
	s.plan = s.newPlan(nil)
	for _, u := range s.plan.Units {
		for p := range int32(set.partitions) {
			s.undone[at{u.Name, p}.String()] = true
		}
	}
	for _, sink := range s.plan.Sinks {
		for _, stream := range sink.Streams {
			for p := range int32(set.partitions) {
				s.undone[sink.Name+" "+at{stream, p}.String()] = true
			}
		}
	}
	return s
}

func (s *simulation) newPlan(w stageWorld) *pipeline.Plan {
	p := simPlan(s.kind, s.partitions, w)
	p.Spec.Checkpoint = s.checkpoint
	for _, sink := range p.Sinks {
		sink.FlushRows, sink.FlushWait = s.flushRows, s.flushWait
	}
	for _, u := range p.Units {
		for _, st := range u.Stages {
			st.Parallel = s.workers
		}
	}
	return p
}

// stepsMax is how long a run may go on once nothing fails any more.
const stepsMax = 30_000

// run goes on until all data have gone through, and then says what is wrong. It leaves nothing behind.
func (s *simulation) run() error {
	base := runtime.NumGoroutine()
	nodes := map[string][]string{}
	for _, u := range s.plan.Units {
		nodes[u.Name] = u.Inputs
		s.order = append(s.order, newGroup("sim."+u.Name, s.partitions))
	}
	for _, k := range s.plan.Sinks {
		nodes[k.Name] = k.Streams
		s.order = append(s.order, newGroup("sim."+k.Name, s.partitions))
	}
	for _, g := range s.order {
		s.groups[g.name] = g
	}
	for node, inputs := range nodes {
		for slot := range s.members {
			s.running.Go(func() { s.place(node, inputs, slot) })
		}
	}
	err := s.schedule()
	s.end()
	s.running.Wait()
	time.Sleep(windDown + time.Second) // timers that nobody waits for
	synctest.Wait()
	if runtime.NumGoroutine() != base && err == nil {
		err = goroutinesLeft()
	}
	return err
}

// goroutinesLeft says whether there are goroutines in the bubble beside the test's own. Others come and go outside of it:
// those of earlier tests.
func goroutinesLeft() error {
	const own = 3 // that of synctest.Run, that of synctest.Test and the test's
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if n := bytes.Count(stacks, []byte(", synctest bubble ")) - own; n > 0 {
		return fmt.Errorf("%d goroutines are left:\n%s", n, stacks)
	}
	return nil
}

// place runs one life of a member after the other.
func (s *simulation) place(node string, inputs []string, slot int) {
	for life := 0; ; life++ {
		ctx, stop := context.WithCancel(context.Background())
		p := &process{s: s, node: node, inputs: inputs, budget: newBudget(s.budget), label: fmt.Sprintf("%s/%d.%d ", node, slot, life), stop: stop}
		s.mu.Lock()
		if s.over {
			s.mu.Unlock()
			stop()
			return
		}
		i, _ := slices.BinarySearchFunc(s.processes, p.label, func(p *process, l string) int { return cmp.Compare(p.label, l) })
		s.processes = slices.Insert(s.processes, i, p)
		s.mu.Unlock()
		_ = p.run(ctx) // died has looked at it
		stop()
		s.ends(p)
		time.Sleep(time.Duration(1+(slot+7*life)%5) * time.Millisecond)
	}
}

// ends takes leave of a process.
func (s *simulation) ends(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended.processes++
	p.gone = true
	s.processes = slices.DeleteFunc(s.processes, func(o *process) bool { return o == p })
}

// died looks at what a task has died of that had its partition, as far as its process knows.
func (s *simulation) died(a *assignment, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := a.p
	switch {
	case p.dead, errors.Is(err, errWorld), errors.Is(err, context.Canceled), a.fenced, p.number == nil, !p.number.known():
	case strings.Contains(err.Error(), "of being told to stop"):
	default:
		s.violated("%sdied: %w", p.label, err)
	}
}

// use asks for something and waits for the answer.
func (p *process) use(ctx context.Context, r *request) error {
	r.p, r.key, r.done = p, p.label+r.key, make(chan error, 1)
	s := p.s
	s.mu.Lock()
	if p.dead {
		s.mu.Unlock()
		return errDead
	}
	if err := ctx.Err(); err != nil {
		s.mu.Unlock()
		return err
	}
	i, twice := slices.BinarySearchFunc(s.requests, r.key, byKey)
	if twice {
		s.violated("two requests are called %s", r.key)
		s.mu.Unlock()
		return errDead
	}
	s.requests = slices.Insert(s.requests, i, r)
	s.mu.Unlock()
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.requests, r); i >= 0 {
		s.requests = slices.Delete(s.requests, i, i+1)
		s.giveUp(r)
		return ctx.Err()
	}
	return <-r.done
}

func byKey(r *request, key string) int { return cmp.Compare(r.key, key) }

// giveUp lets a request go on without its sender, who knows nothing of what becomes of it.
func (s *simulation) giveUp(r *request) {
	if r.faults&canBeLate == 0 || s.over {
		return
	}
	if r.hold != nil {
		r.hold()
	}
	r.held = true
	i, _ := slices.BinarySearchFunc(s.late, r.key+"~", byKey) // behind others of the same key
	s.late = slices.Insert(s.late, i, r)
}

// answer tells the sender of a waiting request what came of it.
func (s *simulation) answer(r *request, err error) {
	i, ok := slices.BinarySearchFunc(s.requests, r.key, byKey)
	if !ok || s.requests[i] != r {
		panic(r.key + " does not wait")
	}
	s.requests = slices.Delete(s.requests, i, i+1)
	r.done <- err
}

// note makes what happens part of the trace.
func (s *simulation) note(what, where string) {
	for _, part := range [2]string{what, where} {
		for i := range len(part) {
			s.trace = (s.trace ^ uint64(part[i])) * 1099511628211
		}
	}
	if s.keepLog {
		s.log = append(s.log, what+" "+where)
	}
}

// action is something that may happen next.
type action struct {
	what      what
	r         *request // grant, arrive
	m         *member  // expel, tell
	g         *group   // expel, form
	partition int32    // say
}

type what uint8

const (
	grant  what = iota // a request is granted
	arrive             // a request whose sender has given up arrives, or is lost
	say                // the gateways say something
	form               // a coordinator begins a generation
	expel              // a coordinator gives up a member
	tell               // a member hears that its generation is over
)

// schedule makes one thing after the other happen, each when nobody has anything left to do but wait.
func (s *simulation) schedule() error {
	var actions []action
	idle, after := time.Millisecond, 0
	for ; after < 60; s.step++ {
		synctest.Wait()
		s.mu.Lock()
		switch {
		case s.broken != nil:
			s.mu.Unlock()
			return s.broken
		case len(s.undone) == 0:
			after++ // what is still on its way must change nothing
			s.faults = 0
		case s.step > s.lastFault+stepsMax:
			s.mu.Unlock()
			return fmt.Errorf("%d steps after the last fault it still has to end: %v", stepsMax, s.undone)
		}
		actions = s.possible(actions[:0])
		if len(actions) == 0 {
			s.thaw()
			s.mu.Unlock()
			if len(s.undone) == 0 {
				return s.broken
			}
			time.Sleep(idle)
			idle = min(2*idle, 5*time.Second)
			continue
		}
		idle = time.Millisecond
		if !s.fault() {
			s.act(s.choose(actions))
		}
		pause := s.passes()
		s.mu.Unlock()
		if pause > 0 {
			time.Sleep(pause)
		}
	}
	return s.broken
}

// thaw ends all waiting for steps, when nothing else can happen.
func (s *simulation) thaw() {
	for _, p := range s.processes {
		p.until, p.cut = 0, 0
	}
	for _, r := range s.requests {
		r.until = 0
	}
}

// passes is how much time passes now.
func (s *simulation) passes() time.Duration {
	if s.dice.Float64() >= s.timeRate {
		return 0
	}
	d := time.Microsecond << s.dice.IntN(18) // up to 131 ms
	if s.dice.IntN(200) == 0 {
		d = time.Duration(s.dice.IntN(15)) * time.Second
	}
	return d
}

// possible gives all that could happen next, in an order that does not depend on the order of asking.
func (s *simulation) possible(a []action) []action {
	for _, r := range s.requests {
		if r.p.until > s.step || r.until > s.step || r.coordinator && r.p.cut > s.step || r.ready != nil && !r.ready() {
			continue
		}
		a = append(a, action{r: r})
	}
	a = s.coordinate(a)
	for partition, script := range s.texts {
		if s.fed[partition] < len(script) {
			a = append(a, action{what: say, partition: int32(partition)})
		}
	}
	for _, r := range s.late {
		a = append(a, action{what: arrive, r: r})
	}
	return a
}

func (s *simulation) choose(all []action) action {
	if s.favourite != nil && s.dice.Float64() < s.streak {
		var first, n int
		for i, a := range all {
			if a.what == grant && a.r.p == s.favourite {
				if n == 0 {
					first = i
				}
				n++
			}
		}
		if n > 0 {
			return all[first+s.dice.IntN(n)] // requests of a process stand together
		}
	}
	a := all[s.dice.IntN(len(all))]
	if a.what == grant {
		s.favourite = a.r.p
	}
	return a
}

// act makes a happen.
func (s *simulation) act(a action) {
	switch a.what {
	case grant:
		s.grant(a.r)
	case arrive:
		s.note("late", a.r.key)
		s.arrive(a.r)
	case say:
		s.note("feed", itoa(a.partition))
		s.feed(a.partition)
	case form:
		s.note("form", a.g.name)
		s.form(a.g)
	case expel:
		s.note("expel", a.m.p.label)
		a.g.expel(a.m)
	case tell:
		s.note("tell", a.m.p.label)
		if !a.m.known() && a.m.p.cut > s.step {
			a.m.p.lose() // it has not heard of its coordinator for too long
		}
		a.m.p.staying = false
		select {
		case a.m.p.news <- struct{}{}:
		default:
		}
	}
}

// grant carries a request out, or lets something else become of it.
func (s *simulation) grant(r *request) {
	rate := s.faultRate
	if r.faults&often != 0 {
		rate *= 3
	}
	outcome := faults(0)
	if r.faults != 0 && s.faults > 0 && s.dice.Float64() < rate {
		outcome = faults(1) << s.dice.IntN(4) & r.faults & s.outcomes
	}
	if outcome != 0 {
		s.faults--
		s.lastFault = s.step
	}
	switch outcome {
	case canFail:
		s.note("refuse", r.key)
		s.answer(r, errWorld)
	case canLose:
		s.note("lose the answer to", r.key)
		_ = r.effect()
		s.answer(r, errUnanswered)
	case canBeLate:
		s.note("delay", r.key)
		s.giveUp(r)
		s.answer(r, errUnanswered)
	case slow:
		s.note("slow down", r.key)
		r.until = s.step + s.dice.IntN(300)
	default:
		s.note("", r.key)
		s.answer(r, r.effect())
	}
}

// arrive carries out a request whose sender has given up, or loses it.
func (s *simulation) arrive(r *request) {
	i := slices.Index(s.late, r)
	s.late = slices.Delete(s.late, i, i+1)
	if s.dice.IntN(3) == 0 {
		s.note("lost", r.key)
		if r.drop != nil {
			r.drop()
		}
		return
	}
	s.ended.late++
	_ = r.effect()
}

// fault makes something happen to a process. It says whether it has.
func (s *simulation) fault() bool {
	if s.faults == 0 || len(s.processes) == 0 || s.dice.Float64() >= s.faultRate {
		return false
	}
	p := s.processes[s.dice.IntN(len(s.processes))]
	if p.dead {
		return false
	}
	s.faults--
	s.lastFault = s.step
	for {
		switch ills(1) << s.dice.IntN(4) & s.ills {
		case kills:
			s.note("kill", p.label)
			s.kill(p)
		case freezes:
			s.note("freeze", p.label)
			p.until = s.step + 20 + s.dice.IntN(400)
			s.ended.frozen++
		case cuts:
			s.note("cut off", p.label)
			p.cut = s.step + 20 + s.dice.IntN(400)
		case stops:
			s.note("stop", p.label)
			p.stop()
		default:
			continue
		}
		return true
	}
}

// ills is what befalls processes in a run.
type ills uint8

const (
	kills   ills = 1 << iota // it is gone at once
	freezes                  // it does nothing for a while, and does not know
	cuts                     // it does not reach its group's coordinator for a while
	stops                    // it is told to end, and is in no hurry
)

// kill ends a process. What it has asked for may still happen.
func (s *simulation) kill(p *process) {
	p.dead = true
	for _, r := range slices.Clone(s.requests) {
		if r.p == p {
			s.giveUp(r)
			s.answer(r, errDead)
		}
	}
	p.stop()
}

// end kills all that lives, and gives back what is on its way.
func (s *simulation) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for _, p := range s.processes {
		s.kill(p)
	}
	for _, r := range s.late {
		if r.drop != nil {
			r.drop()
		}
	}
	s.late = nil
}

// feed has the gateways say the next thing, or repeat what one of them has just said.
func (s *simulation) feed(partition int32) {
	script, to := s.texts[partition], at{"raw", partition}
	next := s.fed[partition]
	if s.faultsMax > 0 && next > 0 && s.dice.IntN(8) == 0 {
		s.repeat(to, script, next)
		return
	}
	n := 1
	if s.burst {
		n = len(script) - next
	}
	for _, b := range script[next : next+n] {
		if b.Record != nil {
			b.Record.Retain()
		}
		s.append(to, b)
	}
	s.fed[partition] += n
}

// repeat has a gateway say its last things once more, in order: it did not hear that they were kept.
func (s *simulation) repeat(to at, script script, next int) {
	who := script[s.dice.IntN(next)].Lineage.Source
	newest, heard, forgotten := flow.Micros(0), flow.Micros(0), producerForgotten
	for _, b := range script[:next] {
		if b.Kind == unreadable {
			continue
		}
		newest = max(newest, b.Watermark)
		if b.Lineage.Source == who {
			heard = newest
		} else if b.Lineage.Instance() == who.Instance() && b.Lineage.Producer > who.Producer {
			forgotten = replacedForgotten
		}
	}
	if newest.Sub(heard) > forgotten {
		return // it is forgotten, and would count again: so it is promised
	}
	from := max(0, next-1-s.dice.IntN(6))
	for _, b := range script[from:next] {
		if b.Lineage.Source != who || b.Kind == unreadable {
			continue
		}
		if b.Record != nil {
			b.Record.Retain()
		}
		s.append(to, b)
	}
}

// runner makes what runs the tasks of a process.
func (p *process) runner() *Runner {
	r := &Runner{
		Plan: p.s.newPlan(p), Store: p, Log: slog.New(slog.DiscardHandler), Meter: p.s.meter, Mem: p.s.alloc,
		Drain: Drain{Run: "r", Gateways: simGateways}, road: p, workers: p.s.workers,
		pauses: func() backoff.BackOff {
			b := exponential().(*backoff.ExponentialBackOff)
			b.RandomizationFactor = 0
			return b
		},
	}
	r.once.Do(func() {})
	return r
}

func (p *process) mem() memory.Allocator { return p.s.alloc }

// tasks runs the tasks of a generation, as Runner.Unit and Runner.Sink do.
func (p *process) tasks(ctx context.Context, r *Runner, g *generation) (bool, error) {
	over := func(key string, done bool, err error) (bool, error) {
		if done && err == nil {
			p.s.mu.Lock()
			defer p.s.mu.Unlock()
			delete(p.s.undone, key)
		}
		return done, err
	}
	if unit := r.Plan.Node(p.node); unit != nil {
		return each(ctx, g.partitions, func(ctx context.Context, partition int32) (bool, error) {
			done, err := r.runTask(ctx, g, unit, partition)
			return over(at{p.node, partition}.String(), done, err)
		})
	}
	node := r.Plan.Sinks[slices.IndexFunc(r.Plan.Sinks, func(n *pipeline.SinkNode) bool { return n.Name == p.node })]
	var places []at
	for _, stream := range node.Streams {
		for _, partition := range g.partitions {
			places = append(places, at{stream, partition})
		}
	}
	return each(ctx, places, func(ctx context.Context, a at) (bool, error) {
		done, err := r.runSinkTask(ctx, g, node, p, a.stream, a.partition)
		return over(p.node+" "+a.String(), done, err)
	})
}
