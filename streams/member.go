package streams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/sourcegraph/conc"
)

// Limits of a member.
const (
	// A rebalance that is under way when the member is told to stop may be completed for so long: commits count again
	// once it is.
	rejoinAfterStop = 2 * time.Second
	// Partitions to be given away are given away together if they are ready within so long of each other.
	releaseTogether = 50 * time.Millisecond
	// Rebalances that end in another one, before this member pauses as after an error.
	rebalancesAtOnce = 10
)

// member is this client's place in a group. One goroutine, that of live, joins, sends heartbeats and begins and ends
// assignments; handles run in their own.
type member struct {
	c      *Client
	cfg    GroupConfig
	handle func(context.Context, *Assignment) error

	handles  conc.WaitGroup
	returned chan struct{} // a handle has, or a commit had no answer
	end      context.CancelFunc

	// Of live's goroutine alone:
	joined       int32 // the last generation whose joining was answered; -1 after membership was lost
	assigned     []int32
	heard        time.Time // of the coordinator
	settledDoubt int32     // the last generation that was left for the sake of a commit without an answer
	again        bool      // the group should be rebalanced once more, for what this member gives away or may claim

	mu          sync.Mutex
	coordinator int32 // of the group; noBroker has to be found
	proven      int32 // the coordinator, if it let this member into its generation, or took a commit of it since; else noBroker

	id         string // given by the coordinator; "" before, and when it has forgotten this member
	generation int32  // in which this member has its assignment; -1 is none
	doubted    int32  // a commit of this generation had no answer; -1 is none
	stopping   bool   // no other generation will come
	failed     error  // what the membership ends with
	held       map[int32]*Assignment
	turned     chan struct{} // closed when the generation or stopping has changed
}

// live is a member's whole life but its leaving.
func (m *member) live(ctx context.Context) error {
	alive, end := context.WithCancel(ctx)
	defer end()
	m.end = end
	trouble := trouble{c: m.c, what: "join group " + m.cfg.ID}
	for alive.Err() == nil {
		err := m.rebalance(alive)
		if err == nil {
			trouble.over()
			err = m.stay(alive)
		}
		if err == nil || errors.Is(err, errChanged) || alive.Err() != nil {
			continue
		}
		if time.Since(m.heard) > m.cfg.SessionTimeout {
			m.lose() // by now the partitions may be another's
		}
		if err := trouble.met(alive, err); err != nil && alive.Err() == nil {
			m.fail(err)
		}
	}
	m.windDown(alive)
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed
}

// fail ends the membership with the first error.
func (m *member) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil {
		m.failed = fmt.Errorf("group %s: %w", m.cfg.ID, err)
	}
	m.end()
}

// errChanged says that the group changed again before this member knew its part; it joins again at once.
var errChanged = errors.New("the group changed again")

// rebalance takes part in rebalances until it knows what is this member's, and begins and ends handles accordingly.
// Handles of partitions that this member keeps do not notice.
func (m *member) rebalance(alive context.Context) error {
	// Once begun it is completed, for a while, even if the member is to stop: until then nothing can be committed.
	ctx, cancel := context.WithCancel(context.WithoutCancel(alive))
	defer cancel()
	defer context.AfterFunc(alive, func() { time.AfterFunc(rejoinAfterStop, cancel) })()
	for range rebalancesAtOnce {
		err := m.rebalanceOnce(ctx, alive)
		if !errors.Is(err, errChanged) || alive.Err() != nil {
			return err
		}
	}
	return errors.New("the group does not come to rest")
}

func (m *member) rebalanceOnce(ctx, alive context.Context) error {
	m.settle()
	first := m.id == ""
	j, err := m.askToJoin(ctx)
	if err != nil {
		return err
	}
	m.heard = time.Now()
	if j.generation != m.joined && j.generation != m.joined+1 {
		m.lose() // there was a generation without this member, in which its partitions may have been another's
	}
	m.joined = j.generation
	leads := j.leader == j.id && j.members != nil
	var plan map[string][]int32
	if leads {
		if plan, err = m.plan(ctx, j); err != nil {
			return err
		}
	}
	s, err := m.syncGroup(ctx, j.generation, plan)
	if err == nil && s.code != 0 {
		err = m.lost(s.code)
	}
	if err != nil {
		return err
	}
	slices.Sort(s.partitions)
	m.heard, m.assigned = time.Now(), s.partitions
	// A member that took its dead self's place knows its assignment, but not whether the dead one owed partitions to
	// others, and the group does not know what it works on. One more rebalance, which pauses nothing, tells.
	m.again = first && m.cfg.Instance != "" && !leads
	m.turn(j.generation, j.assignor == cooperative)
	return m.begin(alive)
}

// plan shares out the partitions, as the group's leader.
func (m *member) plan(ctx context.Context, j joined) (map[string][]int32, error) {
	if j.damaged != nil {
		return nil, final{j.damaged}
	}
	n, err := m.partitions(ctx)
	if err != nil {
		return nil, err
	}
	plan := shareOut(j.members, n)
	if j.assignor == cooperative {
		withhold(plan, j.members)
	}
	return plan, nil
}

// turn goes on to a generation: handles of partitions that are not this member's in it are told to end. Where the group
// is cooperative they may still commit, since nobody else gets the partition before they have ended.
func (m *member) turn(generation int32, cooperative bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, a := range m.held {
		if !slices.Contains(m.assigned, p) {
			a.end()
			a.fenced = a.fenced || !cooperative
		}
	}
	m.generation = generation
	m.hasTurned()
}

func (m *member) hasTurned() {
	close(m.turned)
	m.turned = make(chan struct{})
}

// lose ends all handles: their partitions are others' now, or may be.
func (m *member) lose() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.held {
		a.end()
		a.fenced = true
	}
	m.joined, m.generation, m.assigned = -1, -1, nil
	m.hasTurned()
}

// begin calls handle for what has become this member's. A partition whose last handle is still winding down waits for it.
func (m *member) begin(alive context.Context) error {
	if alive.Err() != nil {
		return nil
	}
	var fresh []int32
	m.mu.Lock()
	for _, p := range m.assigned {
		if m.held[p] == nil {
			fresh = append(fresh, p)
		}
	}
	m.mu.Unlock()
	if len(fresh) == 0 {
		return nil
	}
	committed, err := m.committed(alive, fresh)
	if err != nil {
		return err
	}
	for _, p := range fresh {
		a := &Assignment{m: m, partition: p, committed: map[string]Committed{}}
		for _, s := range m.cfg.Streams {
			if c, ok := committed[s][p]; ok {
				a.committed[s] = c
			}
		}
		var ctx context.Context
		ctx, a.end = context.WithCancel(alive)
		m.mu.Lock()
		a.memberID, a.generation = m.id, m.generation
		m.held[p] = a
		m.mu.Unlock()
		m.handles.Go(func() { m.work(ctx, a) })
	}
	return nil
}

// work is a handle's life.
func (m *member) work(ctx context.Context, a *Assignment) {
	defer a.end()
	err := m.handle(ctx, a)
	fenced := errors.Is(err, ErrFenced)
	over := fenced || ctx.Err() != nil && errors.Is(err, context.Canceled)
	m.mu.Lock()
	a.returned, a.revoked, a.fenced = true, ctx.Err() != nil, a.fenced || fenced
	m.mu.Unlock()
	if err != nil && !over {
		m.fail(err)
	}
	select {
	case m.returned <- struct{}{}:
	default:
	}
}

// settle lets go of partitions whose handles have wound down. released says that some of them are due to others;
// waiting says that more will be.
func (m *member) settle() (released, waiting bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, a := range m.held {
		due := !a.fenced && !slices.Contains(m.assigned, p)
		switch {
		case a.returned && (a.revoked || a.fenced || due):
			delete(m.held, p)
			released = released || due
		case due:
			waiting = true
		}
	}
	return released, waiting
}

// claims are the partitions that nobody else may have yet.
func (m *member) claims() (partitions []int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, a := range m.held {
		if !a.fenced {
			partitions = append(partitions, p)
		}
	}
	slices.Sort(partitions)
	return partitions
}

// stay sends heartbeats until the group changes, or should. It returns an error when the membership is in question.
func (m *member) stay(alive context.Context) error {
	tick := time.NewTicker(m.cfg.Heartbeat)
	defer tick.Stop()
	var release <-chan time.Time
	for !m.again {
		if inDoubt, again := m.inDoubt(); again {
			m.lose()
			m.leave(alive)
			m.name("")
			return errChanged
		} else if inDoubt {
			return nil // for the next generation
		}
		select {
		case <-alive.Done():
			return nil
		case <-release:
			return nil
		case <-m.returned:
			released, waiting := m.settle()
			if released && !waiting {
				return nil
			}
			if released && release == nil {
				release = time.After(releaseTogether)
			}
			if err := m.begin(alive); err != nil {
				return err
			}
		case <-tick.C:
			if rebalances, err := m.beat(alive); rebalances || err != nil {
				return err
			}
		}
	}
	return nil
}

// inDoubt says whether a commit of this generation had no answer: another generation must come before the next commit. again
// says that one was asked for and did not come, so that the group must be left for it.
func (m *member) inDoubt() (inDoubt, again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	inDoubt = m.generation >= 0 && m.doubted == m.generation
	again = inDoubt && m.settledDoubt == m.generation
	if inDoubt {
		m.settledDoubt = m.generation
	}
	return inDoubt, again
}

// beat sends a heartbeat. It says whether the group rebalances; an error says that this member has lost its place.
func (m *member) beat(ctx context.Context) (rebalances bool, err error) {
	// The coordinator should hear of us while handles wind down, too.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(m.cfg.SessionTimeout/3, m.cfg.Heartbeat))
	defer cancel()
	code, err := m.sendHeartbeat(ctx)
	if err == nil && code != 0 {
		err = code
	}
	answer, answered := asCode(err)
	switch {
	case err == nil:
		m.heard = time.Now()
	case answer == kafka.RebalanceInProgress:
		m.heard = time.Now()
		return true, nil
	case answered && !passing(answer):
		return false, m.lost(answer)
	case time.Since(m.heard) > m.cfg.SessionTimeout:
		m.lose()
	default:
		m.c.refresh(err)
	}
	return false, nil
}

// windDown goes on with heartbeats until every handle has returned.
func (m *member) windDown(alive context.Context) {
	m.mu.Lock()
	m.stopping = true
	m.hasTurned()
	m.mu.Unlock()
	done := make(chan struct{})
	var wait conc.WaitGroup
	wait.Go(func() { defer close(done); m.handles.Wait() })
	defer wait.Wait()
	tick := time.NewTicker(m.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			// What the coordinator says of the membership ends or fences handles; there is no other to go on to.
			_, _ = m.beat(alive)
		}
	}
}

func (m *member) askToJoin(ctx context.Context) (joined, error) {
	for {
		j, err := m.joinGroup(ctx)
		if err != nil {
			return j, err
		}
		// The first answer to a new member is only its id (KIP-394).
		if j.code == kafka.MemberIDRequired && m.id != j.id {
			m.name(j.id)
			continue
		}
		if j.code != 0 {
			return j, m.lost(j.code)
		}
		m.name(j.id)
		return j, nil
	}
}

func (m *member) name(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.id = id
}

// lost is what an error of the coordinator means for this member: some are mended by joining again.
func (m *member) lost(code kafka.Error) error {
	switch code {
	case kafka.UnknownMemberId:
		m.lose()
		m.name("")
		return errChanged
	case kafka.IllegalGeneration, kafka.RebalanceInProgress:
		return errChanged
	case kafka.FencedInstanceID:
		m.lose()
		m.name("") // there is nothing to leave: the place is another's
		return final{fmt.Errorf("another member is called %q in the group: give each its own instance: %w", m.cfg.Instance, code)}
	case kafka.InconsistentGroupProtocol:
		return final{fmt.Errorf("the group is in use by consumers of another kind: choose another group id: %w", code)}
	case kafka.InvalidSessionTimeout:
		return final{fmt.Errorf("session timeout %v is outside of the broker's limits (group.min.session.timeout.ms): %w", m.cfg.SessionTimeout, code)}
	}
	return code
}

// leave gives the partitions to the others at once.
func (m *member) leave(ctx context.Context) {
	if m.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_, err := m.leaveGroup(ctx)
	if err != nil {
		m.c.log.Warn("streams: the group was not told that this member leaves; it will wait for it",
			"group", m.cfg.ID, "for", m.cfg.SessionTimeout, "error", err)
	}
}

// partitions is how many the group's streams have, each.
func (m *member) partitions(ctx context.Context) (int, error) {
	n := 0
	for i, s := range m.cfg.Streams {
		info, err := m.c.Info(ctx, s)
		if err != nil {
			return 0, err
		}
		if i > 0 && info.Partitions != n {
			return 0, final{fmt.Errorf("stream %s has %d partitions, stream %s has %d: streams that are read together need the same number",
				m.cfg.Streams[0], n, s, info.Partitions)}
		}
		n = info.Partitions
	}
	return n, nil
}
