package streams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/sourcegraph/conc"
)

// GroupConfig is a consumer group. Zero durations take the defaults.
type GroupConfig struct {
	ID string
	// Streams are co-partitioned: they have the same number of partitions, and partition p of all of them goes to
	// the same member.
	Streams []string
	// Instance, when it is set, is this member's lasting name (static membership, KIP-345): unique in the group, and
	// the same after a restart. A member that died without leaving is then replaced at once, where the group would
	// otherwise wait for SessionTimeout.
	Instance string
	// SessionTimeout is how long a member may be silent before its partitions go to others. Default 10 s.
	SessionTimeout time.Duration
	// RebalanceTimeout is how long members have to finish and join again. Default 30 s.
	RebalanceTimeout time.Duration
	// Heartbeat is the time between two signs of life; a rebalance is noticed at one. Default 500 ms, but no more than
	// a third of SessionTimeout.
	Heartbeat time.Duration
}

func (g *GroupConfig) check() error {
	orDefault(&g.SessionTimeout, 10*time.Second)
	orDefault(&g.RebalanceTimeout, 30*time.Second)
	orDefault(&g.Heartbeat, min(500*time.Millisecond, g.SessionTimeout/3))
	switch {
	case g.ID == "":
		return errors.New("join: the group has no id")
	case len(g.Streams) == 0:
		return fmt.Errorf("join group %s: it has no streams", g.ID)
	case g.Heartbeat < 0 || g.SessionTimeout < 2*g.Heartbeat || g.RebalanceTimeout < 0:
		return fmt.Errorf("join group %s: heartbeat is %v and session timeout %v; want the heartbeat at most half of it", g.ID, g.Heartbeat, g.SessionTimeout)
	}
	return nil
}

// metadataBytesMax is Kafka's default limit for a commit's metadata (offset.metadata.max.bytes).
const metadataBytesMax = 4096

// Committed is what a group has committed for a partition.
type Committed struct {
	Offset   int64 // of the next message to read
	Metadata string
}

// Commit says how far a partition of a stream is done.
type Commit struct {
	Stream    string
	Partition int32
	Offset    int64  // of the next message to read
	Metadata  string // at most 4,096 bytes
}

// Join makes this client a member of a group and calls handle once for each generation, with the partitions that are
// this member's in it. The generation's ctx is cancelled when the group changes; the others then wait for handle to
// return, RebalanceTimeout at most. A handle that returns nil earlier has nothing more to do in its generation.
//
// Join returns nil when ctx ends and handle has wound down, and otherwise only with handle's error, or one that no
// rejoining mends. Of handle's errors those that come of the generation's end (context.Canceled, [ErrFenced]) count
// as nil once it has ended.
func (c *Client) Join(ctx context.Context, cfg GroupConfig, handle func(context.Context, *Generation) error) error {
	if err := cfg.check(); err != nil {
		return err
	}
	m := &member{c: c, cfg: cfg, generation: -1}
	defer m.leave(ctx)
	trouble := trouble{c: c, what: "join group " + cfg.ID}
	for ctx.Err() == nil {
		g, err := m.join(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if err := trouble.met(ctx, err); err != nil && ctx.Err() == nil {
				return err
			}
			continue
		}
		trouble.over()
		if err := m.run(ctx, g, handle); err != nil {
			return fmt.Errorf("group %s: %w", cfg.ID, err)
		}
	}
	return nil
}

// member is this client's place in a group.
type member struct {
	c   *Client
	cfg GroupConfig
	id  string
	// What it had in the last generation it lived through, to keep it if that may be.
	generation int32
	owned      []int32
}

// join takes part in one rebalance.
func (m *member) join(ctx context.Context) (*Generation, error) {
	j, err := m.askToJoin(ctx)
	if err != nil {
		return nil, err
	}
	var plan map[string][]int32
	if j.leader == j.id {
		if j.damaged != nil {
			return nil, final{j.damaged}
		}
		n, err := m.partitions(ctx)
		if err != nil {
			return nil, err
		}
		plan = shareOut(j.members, n)
	}
	s, err := m.syncGroup(ctx, j.generation, plan)
	if err != nil {
		return nil, err
	}
	if s.code != 0 {
		return nil, m.lost(s.code)
	}
	slices.Sort(s.partitions)
	m.generation, m.owned = j.generation, s.partitions
	return &Generation{m: m, memberID: m.id, id: int(j.generation), partitions: s.partitions}, nil
}

func (m *member) askToJoin(ctx context.Context) (joined, error) {
	for {
		j, err := m.joinGroup(ctx)
		if err != nil {
			return j, err
		}
		// The first answer to a new member is only its id (KIP-394).
		if j.code == kafka.MemberIDRequired && m.id != j.id {
			m.id = j.id
			continue
		}
		if j.code != 0 {
			return j, m.lost(j.code)
		}
		m.id = j.id
		return j, nil
	}
}

// lost is what an error of the coordinator means for this member: some are mended by joining again.
func (m *member) lost(code kafka.Error) error {
	switch code {
	case kafka.UnknownMemberId:
		m.id = ""
		return fmt.Errorf("the coordinator does not know this member: %v", code)
	case kafka.IllegalGeneration, kafka.RebalanceInProgress:
		return fmt.Errorf("the group went on without this member: %v", code)
	case kafka.FencedInstanceID:
		return final{fmt.Errorf("another member is called %q in the group: give each its own instance: %w", m.cfg.Instance, code)}
	case kafka.InconsistentGroupProtocol:
		return final{fmt.Errorf("the group is in use by consumers of another kind: choose another group id: %w", code)}
	case kafka.InvalidSessionTimeout:
		return final{fmt.Errorf("session timeout %v is outside of the broker's limits (group.min.session.timeout.ms): %w", m.cfg.SessionTimeout, code)}
	}
	return code
}

// run lives through one generation. It returns handle's error if that is to end the membership.
func (m *member) run(ctx context.Context, g *Generation, handle func(context.Context, *Generation) error) error {
	live, end := context.WithCancel(ctx)
	defer end()
	done := make(chan struct{})
	var work conc.WaitGroup
	var result error
	work.Go(func() {
		defer close(done)
		result = handle(live, g)
		if result != nil {
			end()
		}
	})
	m.keepAlive(live, end, done, g)
	work.Wait()
	if live.Err() != nil && (errors.Is(result, context.Canceled) || errors.Is(result, ErrFenced)) {
		return nil
	}
	return result
}

// keepAlive sends heartbeats until the generation is over and handle is done with it. It ends the generation when the
// coordinator says so, or when none was reached for the session timeout: by then the partitions may be another's.
func (m *member) keepAlive(live context.Context, end context.CancelFunc, done <-chan struct{}, g *Generation) {
	tick := time.NewTicker(m.cfg.Heartbeat)
	defer tick.Stop()
	heard := time.Now()
	ended, finished := live.Done(), done
	for {
		select {
		case <-ended:
			ended = nil // go on with the heartbeats while handle winds down
		case <-finished:
			finished = nil
		case <-tick.C:
			// Not live: the coordinator should hear of us while handle winds down, too.
			err := m.heartbeat(context.WithoutCancel(live), g)
			switch code, answered := asCode(err); {
			case err == nil:
				heard = time.Now()
			case answered && !passing(code):
				_ = m.lost(code) // forgets the id if that is gone
				end()
			case time.Since(heard) > m.cfg.SessionTimeout:
				end()
			default:
				m.c.refresh(err)
			}
		}
		if ended == nil && finished == nil {
			return
		}
	}
}

func (m *member) heartbeat(ctx context.Context, g *Generation) error {
	ctx, cancel := context.WithTimeout(ctx, max(m.cfg.SessionTimeout/3, m.cfg.Heartbeat))
	defer cancel()
	code, err := m.sendHeartbeat(ctx, int32(g.id), g.memberID)
	if err == nil && code != 0 {
		err = code
	}
	return err
}

// leave gives the partitions to the others at once. A member with a lasting name stays: it is expected back.
func (m *member) leave(ctx context.Context) {
	if m.id == "" || m.cfg.Instance != "" {
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
