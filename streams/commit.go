package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"

	"github.com/segmentio/kafka-go"
)

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

// Assignment is a partition, of each of the group's streams, in this member's hands. Its methods may be called from many
// goroutines.
type Assignment struct {
	m          *member
	partition  int32
	memberID   string
	generation int32
	committed  map[string]Committed
	end        context.CancelFunc // of handle's ctx

	// Kept under m.mu:
	fenced   bool // the partition is another's, or may be
	returned bool // handle has
	revoked  bool // it did because its ctx had ended
}

// Partition is its number, the same in each of the group's streams.
func (a *Assignment) Partition() int32 { return a.partition }

// Committed is what the group had committed for the partition when it was assigned, by stream; what has no commit is absent.
func (a *Assignment) Committed() map[string]Committed { return maps.Clone(a.committed) }

// Generation of the group in which the partition was assigned. It rises with each rebalance.
func (a *Assignment) Generation() int { return int(a.generation) }

// Member is this member's name then, given by the coordinator.
func (a *Assignment) Member() string { return a.memberID }

// Committed gives what a group has committed for a stream, seen from outside of the group; what has no commit is absent.
func (c *Client) Committed(ctx context.Context, group, stream string) (map[int32]Committed, error) {
	info, err := c.Info(ctx, stream)
	if err != nil {
		return nil, err
	}
	all, err := c.CommittedOf(ctx, group, []string{stream}, info.Partitions)
	if err != nil {
		return nil, err
	}
	return all[stream], nil
}

// CommittedOf is Committed for several streams of so many partitions each, by one request.
func (c *Client) CommittedOf(ctx context.Context, group string, streams []string, partitions int) (map[string]map[int32]Committed, error) {
	if len(streams) == 0 {
		return map[string]map[int32]Committed{}, nil
	}
	all := make([]int, partitions)
	for i := range all {
		all[i] = i
	}
	ask := map[string][]int{}
	for _, s := range streams {
		ask[s] = all
	}
	return c.committed(ctx, group, ask)
}

func (c *Client) committed(ctx context.Context, group string, ask map[string][]int) (map[string]map[int32]Committed, error) {
	out := map[string]map[int32]Committed{}
	err := c.retry(ctx, "read the commits of group "+group, func(ctx context.Context) error {
		c.count.offsets.Add(1)
		res, err := c.kafka.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: ask})
		if err != nil {
			return err
		}
		if errors.Is(res.Error, kafka.GroupIdNotFound) {
			return nil // some brokers say so of a group that has committed nothing
		}
		if res.Error != nil {
			return res.Error
		}
		for stream, partitions := range res.Topics {
			out[stream] = map[int32]Committed{}
			for _, p := range partitions {
				if p.Error != nil {
					return fmt.Errorf("%s/%d: %w", stream, p.Partition, p.Error)
				}
				if p.CommittedOffset >= 0 {
					out[stream][int32(p.Partition)] = Committed{p.CommittedOffset, p.Metadata}
				}
			}
		}
		return nil
	})
	return out, err
}

// Commit records how far the partition is done, in all streams by one request, which the broker takes as a whole. An error
// that Is [ErrFenced] says that the partition is another member's by now, or may be; it may have been recorded all the
// same, if an attempt at it had no answer. It may be called after handle's ctx has ended, with another ctx, while handle
// winds down. While the group rebalances it waits until it is known whether this member keeps the partition. Commits of
// one partition must not overlap.
//
// A commit that has no answer may still be on its way, and would undo later ones if it came after them. So it is not sent
// again in its generation: this member has the group rebalanced, after which the coordinator refuses it.
func (a *Assignment) Commit(ctx context.Context, commits []Commit) error {
	if len(commits) == 0 {
		return nil
	}
	for _, cm := range commits {
		if err := a.check(cm); err != nil {
			return err
		}
	}
	limit := time.NewTimer(a.m.cfg.RebalanceTimeout + a.m.cfg.SessionTimeout)
	defer limit.Stop()
	for {
		id, generation, turned, err := a.standing()
		if err != nil {
			return err
		}
		if err = a.m.commit(ctx, id, generation, commits); !errors.Is(err, ErrFenced) {
			return err
		}
		// The broker knows another generation. If this member is in it, and has kept the partition, all is well.
		if a.m.turnsNoMore(turned) {
			return err
		}
		select {
		case <-turned:
		case <-limit.C:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

func (a *Assignment) check(cm Commit) error {
	switch {
	case cm.Partition != a.partition:
		return fmt.Errorf("commit %s/%d: assigned is partition %d", cm.Stream, cm.Partition, a.partition)
	case len(cm.Metadata) > metadataBytesMax:
		return fmt.Errorf("commit %s/%d: %d bytes of metadata; the limit is %d", cm.Stream, cm.Partition, len(cm.Metadata), metadataBytesMax)
	case cm.Offset < 0:
		return fmt.Errorf("commit %s/%d: offset %d", cm.Stream, cm.Partition, cm.Offset)
	}
	return nil
}

// standing is in whose name the assignment commits now, and a channel that is closed when that has changed.
func (a *Assignment) standing() (id string, generation int32, turned <-chan struct{}, err error) {
	m := a.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.fenced || a.returned {
		return "", 0, nil, final{fmt.Errorf("partition %d: %w", a.partition, ErrFenced)}
	}
	return m.id, m.generation, m.turned, nil
}

// turnsNoMore says that nothing has changed since turned was given, and nothing will.
func (m *member) turnsNoMore(turned <-chan struct{}) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stopping && turned == m.turned
}

// commit sends one commit in the name of a generation.
func (m *member) commit(ctx context.Context, id string, generation int32, commits []Commit) error {
	return m.c.retry(ctx, "commit of group "+m.cfg.ID, func(ctx context.Context) error {
		refused, err := m.sendCommit(ctx, id, generation, commits)
		switch {
		case err != nil && !unsent(err):
			m.doubt(generation)
			return final{fmt.Errorf("%w: the commit was not answered: %w", ErrFenced, err)}
		case err != nil:
			return err
		case refused.code != 0:
			return refused.error()
		}
		return nil
	})
}

// unsent says that a request did not leave: the broker could not be reached, or nobody knew which one to ask.
func unsent(err error) bool {
	_, coded := asCode(err)
	var before notSent
	var op *net.OpError
	return coded || errors.As(err, &before) || errors.As(err, &op) && op.Op == "dial"
}

// doubt notes that a commit in the name of a generation had no answer, and wakes live.
func (m *member) doubt(generation int32) {
	m.mu.Lock()
	if generation == m.generation { // of one that is over, requests are refused
		m.doubted = generation
	}
	m.mu.Unlock()
	select {
	case m.returned <- struct{}{}:
	default:
	}
}

func (r refusal) error() error {
	switch r.code {
	case kafka.IllegalGeneration, kafka.UnknownMemberId, kafka.FencedInstanceID, kafka.RebalanceInProgress:
		return final{fmt.Errorf("%w: %w", ErrFenced, r.code)}
	case kafka.OffsetMetadataTooLarge:
		return final{fmt.Errorf("%s/%d: %w: raise the broker's offset.metadata.max.bytes to %d", r.stream, r.partition, r.code, metadataBytesMax)}
	}
	return fmt.Errorf("%s/%d: %w", r.stream, r.partition, r.code)
}
