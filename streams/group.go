package streams

import (
	"context"
	"errors"
	"fmt"
	"time"
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
	// SessionTimeout is how long a member may be silent before its partitions go to others. Default 6 s, the least
	// that brokers allow unless they are set otherwise: another member then has a lost one's gigabyte of state within 10 s.
	SessionTimeout time.Duration
	// RebalanceTimeout is how long members have to join again when the group changes. Default 30 s.
	RebalanceTimeout time.Duration
	// Heartbeat is the time between two signs of life; a rebalance is noticed at one. Default 100 ms, but no more than
	// a third of SessionTimeout.
	Heartbeat time.Duration

	assignors []string // nil: all that this client knows, the best first
}

func (g *GroupConfig) check() error {
	orDefault(&g.SessionTimeout, 6*time.Second)
	orDefault(&g.RebalanceTimeout, 30*time.Second)
	orDefault(&g.Heartbeat, min(100*time.Millisecond, g.SessionTimeout/3))
	if g.assignors == nil {
		g.assignors = []string{cooperative, eager}
	}
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

// Join makes this client a member of a group, and calls handle for each partition that becomes this member's: in a
// goroutine of its own, with a ctx that ends when the partition goes to another member, is lost, or the membership
// ends. While the group changes, members go on with the partitions that they keep (KIP-429, incremental cooperative
// rebalancing): a partition goes to its next member once handle has returned for the last, and the next finds what that
// one committed. A handle that returns nil earlier has nothing more to do with its partition while it is this member's.
//
// Join returns nil when ctx ends and every handle has wound down; the member has left the group then, and its partitions
// go to others at once. Otherwise it returns only with a handle's error, or one that no rejoining mends. Two of handle's
// errors are none: context.Canceled once its ctx has ended, and [ErrFenced], after which handle is called anew should the
// partition be this member's again.
func (c *Client) Join(ctx context.Context, cfg GroupConfig, handle func(context.Context, *Assignment) error) error {
	if err := cfg.check(); err != nil {
		return err
	}
	m := &member{
		c: c, cfg: cfg, handle: handle, joined: -1, generation: -1, doubted: -1, settledDoubt: -1, coordinator: noBroker, proven: noBroker,
		held: map[int32]*Assignment{}, returned: make(chan struct{}, 1), turned: make(chan struct{}),
	}
	err := m.live(ctx)
	m.leave(ctx)
	return err
}
