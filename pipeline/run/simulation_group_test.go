package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/streams"
)

// A consumer group as Kafka's coordinator keeps it, with cooperative rebalancing as package streams does it. Whoever joins
// makes the group form anew; a generation begins when all members that the coordinator still believes in have joined, and
// nobody gets in it what another still works on; a member that does not join is expelled in the end, and its commits are
// refused from then on, though it may go on for as long as it does not know.

// group is what the coordinator knows.
type group struct {
	name       string
	partitions int
	generation int
	forming    bool
	last       int // number of the last member
	members    []*member
	committed  map[at]streams.Committed
}

func newGroup(name string, partitions int) *group {
	return &group{name: name, partitions: partitions, committed: map[at]streams.Committed{}}
}

// member is a process as the coordinator knows it.
type member struct {
	g          *group
	number     int
	p          *process
	joined     bool    // and waits for the next generation
	claims     []int32 // what it works on, as it said when it joined
	generation int
	partitions []int32
}

// known says whether the coordinator still believes in m.
func (m *member) known() bool { return slices.Contains(m.g.members, m) }

// current says whether m's generation is the group's.
func (m *member) current() bool { return m.known() && m.generation == m.g.generation }

// form begins a generation. Who gets a partition is decided by dice, but nobody gets what somebody else works on.
func (s *simulation) form(g *group) {
	g.forming = false
	g.generation++
	for _, m := range g.members {
		m.joined, m.generation, m.partitions = false, g.generation, nil
	}
	for partition := range int32(g.partitions) {
		who := g.members[s.dice.IntN(len(g.members))]
		holds := slices.IndexFunc(g.members, func(m *member) bool { return slices.Contains(m.claims, partition) })
		switch {
		case holds < 0:
			who.partitions = append(who.partitions, partition)
		case g.members[holds] == who || s.dice.IntN(2) == 0:
			g.members[holds].partitions = append(g.members[holds].partitions, partition)
		}
	}
}

func (g *group) expel(m *member) {
	g.members = slices.DeleteFunc(g.members, func(o *member) bool { return o == m })
	g.forming = len(g.members) > 0
}

// coordinate adds what the coordinators may do next.
func (s *simulation) coordinate(a []action) []action {
	for _, g := range s.order {
		all := len(g.members) > 0
		for _, m := range g.members {
			all = all && m.joined
			if m.p.gone || m.p.dead || m.p.until > s.step || m.p.cut > s.step {
				a = append(a, action{what: expel, m: m, g: g})
			}
		}
		if g.forming && all {
			a = append(a, action{what: form, g: g})
		}
	}
	for _, p := range s.processes {
		// A member learns of it by its next heartbeat; one that is cut off finds out by itself, in the end.
		if p.staying && !p.dead && p.until <= s.step && (p.cut <= s.step || !p.member.known()) &&
			(p.member.g.forming && !p.member.joined || !p.member.current()) {
			a = append(a, action{what: tell, m: p.member})
		}
	}
	return a
}

// membership is what a process knows of its place in the group: the state of streams.member.
type membership struct {
	member  *member
	staying bool // it sends heartbeats

	mu         sync.Mutex
	number     *member // under which the coordinator knew it when its generation began
	generation int
	doubted    int // a commit of this generation had no answer: the group is to be rebalanced, after which it is refused
	stopping   bool
	failed     error
	assigned   []int32
	held       map[int32]*assignment
	turned     chan struct{}
	news       chan struct{} // the coordinator has told it that the group changes
	returned   chan struct{} // a task has
	end        context.CancelFunc
}

// assignment is a partition in the hands of a process.
type assignment struct {
	p                         *process
	partition                 int32
	end                       context.CancelFunc
	fenced, returned, revoked bool
}

// run takes part in the group as streams.member does.
func (p *process) run(ctx context.Context) error {
	alive, end := context.WithCancel(ctx)
	defer end()
	p.end, p.held, p.turned = end, map[int32]*assignment{}, make(chan struct{})
	p.news, p.returned = make(chan struct{}, 1), make(chan struct{}, 1)
	r := p.runner()
	var tasks conc.WaitGroup
	for alive.Err() == nil {
		if p.rebalance(alive, r, &tasks) {
			p.stay(alive, r, &tasks)
		}
	}
	p.mu.Lock()
	p.stopping = true
	p.hasTurned()
	p.mu.Unlock()
	tasks.Wait()
	p.leave(ctx)
	return p.failed
}

var errExpelled = errors.New("the coordinator does not know this member")

// rebalance joins, and begins and ends tasks accordingly. It says whether it came through.
func (p *process) rebalance(alive context.Context, r *Runner, tasks *conc.WaitGroup) bool {
	p.settle()
	group := p.s.groups[r.group(p.node)]
	// Once begun it is completed, for a while, even if the process is to stop: until then nothing can be committed.
	ctx, cancel := context.WithCancel(context.WithoutCancel(alive))
	defer cancel()
	defer context.AfterFunc(alive, func() { time.AfterFunc(2*time.Second, cancel) })()
	claims := p.claims()
	first := p.member == nil
	err := p.use(ctx, &request{
		key: "join", coordinator: true, faults: canFail,
		effect: func() error {
			if !first && !p.member.known() {
				first = true
				return errExpelled
			}
			if first {
				group.last++
				p.member = &member{g: group, number: group.last, p: p}
				group.members = append(group.members, p.member)
			}
			p.member.joined, p.member.claims = true, claims
			group.forming = true
			return nil
		},
	})
	if errors.Is(err, errExpelled) {
		p.forget()
	}
	if err != nil {
		return false
	}
	m := p.member
	generation := 0
	var assigned []int32
	err = p.use(ctx, &request{
		key: "sync", coordinator: true,
		ready: func() bool { return !m.joined || !m.known() },
		effect: func() error {
			if !m.known() {
				return errExpelled
			}
			assigned, generation = slices.Clone(m.partitions), m.generation
			return nil
		},
	})
	if errors.Is(err, errExpelled) {
		p.forget()
	}
	if err != nil {
		return false
	}
	p.mu.Lock()
	p.assigned, p.number, p.generation = assigned, m, generation
	for _, a := range p.held {
		if !slices.Contains(assigned, a.partition) {
			a.end()
		}
	}
	p.hasTurned()
	p.mu.Unlock()
	return p.begin(alive, r, tasks) == nil
}

func (p *process) hasTurned() {
	close(p.turned)
	p.turned = make(chan struct{})
}

// lose ends all tasks: their partitions are others' now, or may be.
func (p *process) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.held {
		a.end()
		a.fenced = true
	}
	p.assigned = nil
	p.hasTurned()
}

// forget is lose, when the coordinator has said that it does not know this member: it joins as a new one.
func (p *process) forget() {
	p.lose()
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.member = nil
}

// settle lets go of partitions whose tasks have wound down.
func (p *process) settle() (released, waiting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for partition, a := range p.held {
		due := !a.fenced && !slices.Contains(p.assigned, partition)
		switch {
		case a.returned && (a.revoked || a.fenced || due):
			delete(p.held, partition)
			released = released || due
		case due:
			waiting = true
		}
	}
	return released, waiting
}

func (p *process) claims() (partitions []int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for partition, a := range p.held {
		if !a.fenced {
			partitions = append(partitions, partition)
		}
	}
	slices.Sort(partitions)
	return partitions
}

// stay waits until the group changes, or should.
func (p *process) stay(alive context.Context, r *Runner, tasks *conc.WaitGroup) {
	heartbeats := func(on bool) { p.s.mu.Lock(); defer p.s.mu.Unlock(); p.staying = on }
	heartbeats(true)
	defer heartbeats(false)
	for {
		select {
		case <-alive.Done():
			return
		case <-p.news:
			return
		case <-p.returned:
			p.mu.Lock()
			inDoubt := p.doubted == p.generation
			p.mu.Unlock()
			if released, waiting := p.settle(); inDoubt || released && !waiting {
				return
			}
			if err := p.begin(alive, r, tasks); err != nil {
				return
			}
		}
	}
}

// begin begins the task of each partition that has become this process's.
func (p *process) begin(alive context.Context, r *Runner, tasks *conc.WaitGroup) error {
	if alive.Err() != nil {
		return nil
	}
	var fresh []int32
	p.mu.Lock()
	for _, partition := range p.assigned {
		if p.held[partition] == nil {
			fresh = append(fresh, partition)
		}
	}
	p.mu.Unlock()
	if len(fresh) == 0 {
		return nil
	}
	all := map[at]streams.Committed{}
	group := p.s.groups[r.group(p.node)]
	err := p.use(alive, &request{
		key: "committed", coordinator: true, faults: canFail,
		effect: func() error {
			for _, stream := range p.inputs {
				for _, partition := range fresh {
					if c, ok := group.committed[at{stream, partition}]; ok {
						all[at{stream, partition}] = c
					}
				}
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	for _, partition := range fresh {
		a := &assignment{p: p, partition: partition}
		g := &generation{
			group: group.name, partitions: []int32{partition}, ids: map[string]string{}, budget: p.budget, commit: a.commit,
			committed: map[string]map[int32]streams.Committed{},
		}
		for _, stream := range p.inputs {
			if c, ok := all[at{stream, partition}]; ok {
				g.committed[stream] = map[int32]streams.Committed{partition: c}
			}
		}
		var ctx context.Context
		ctx, a.end = context.WithCancel(context.WithValue(alive, ofTask{}, partition))
		p.mu.Lock()
		p.held[partition] = a
		p.mu.Unlock()
		tasks.Go(func() { p.work(ctx, a, r, g) })
	}
	return nil
}

// work is a task's life with a partition: what Runner.join and streams.member make of it.
func (p *process) work(ctx context.Context, a *assignment, r *Runner, g *generation) {
	defer a.end()
	done, err := p.tasks(ctx, r, g)
	if err == nil && done {
		<-ctx.Done() // others may still need the group to stand
	}
	fenced := errors.Is(err, streams.ErrFenced)
	over := fenced || ctx.Err() != nil && errors.Is(err, context.Canceled)
	if err != nil && !over {
		p.s.died(a, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && !over {
		p.failed = errors.Join(p.failed, err)
		p.end()
	}
	a.returned, a.revoked, a.fenced = true, ctx.Err() != nil, a.fenced || fenced
	select {
	case p.returned <- struct{}{}:
	default:
	}
}

// commit commits in the name of whatever generation the member has reached, as streams.Assignment.Commit does.
func (a *assignment) commit(ctx context.Context, commits []streams.Commit) error {
	p := a.p
	for {
		p.mu.Lock()
		m, generation, turned, gone := p.number, p.generation, p.turned, a.fenced || a.returned
		p.mu.Unlock()
		if gone && !p.s.bug.unfenced {
			return streams.ErrFenced
		}
		err := p.use(ctx, p.commitRequest(m, generation, commits))
		if errors.Is(err, errUnanswered) {
			p.mu.Lock()
			if generation == p.generation {
				p.doubted = generation
			}
			p.mu.Unlock()
			select {
			case p.returned <- struct{}{}:
			default:
			}
			err = streams.ErrFenced
		}
		if !errors.Is(err, streams.ErrFenced) {
			return err
		}
		p.mu.Lock()
		turnsNoMore := p.stopping && turned == p.turned
		p.mu.Unlock()
		if turnsNoMore {
			return err
		}
		select {
		case <-turned:
		case <-time.After(40 * time.Second):
			return err
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

func (p *process) commitRequest(m *member, generation int, commits []streams.Commit) *request {
	r := &request{
		key:         fmt.Sprintf("commit %s/%d", commits[0].Stream, commits[0].Partition),
		coordinator: true, faults: canFail | canLose | canBeLate | slow,
	}
	r.effect = func() error {
		if !p.s.bug.unfenced && (!m.known() || m.g.generation != generation) {
			return streams.ErrFenced
		}
		if p.s.bug.skip != nil && p.s.bug.skip(commits) {
			return nil
		}
		for _, c := range commits {
			m.g.committed[at{c.Stream, c.Partition}] = streams.Committed{Offset: c.Offset, Metadata: p.s.bug.metadata(c.Metadata)}
		}
		if p.s.bug.echo && !r.held && p.s.dice.IntN(4) == 0 {
			again := *r
			p.s.giveUp(&again)
		}
		return nil
	}
	return r
}

// leave tells the coordinator, if it can be reached, that the member will not come back.
func (p *process) leave(ctx context.Context) {
	if p.member == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = p.use(ctx, &request{
		key: "leave", coordinator: true, faults: canFail,
		effect: func() error {
			if p.member.known() {
				p.member.g.expel(p.member)
			}
			return nil
		},
	})
}
