package streams

import (
	"context"
	"fmt"
	"slices"

	"github.com/segmentio/kafka-go"
)

// Generation is a group between two rebalances, as one member sees it. Its methods may be called from many goroutines.
type Generation struct {
	m          *member
	memberID   string
	id         int
	partitions []int32
}

// Partitions are this member's, ascending, the same of each of the group's streams. There may be none.
func (g *Generation) Partitions() []int32 { return slices.Clone(g.partitions) }

// ID rises with each generation of the group.
func (g *Generation) ID() int { return g.id }

// Member is this member's name, given by the coordinator.
func (g *Generation) Member() string { return g.memberID }

// Committed gives what the group has committed for this member's partitions, by stream; what has no commit is absent.
func (g *Generation) Committed(ctx context.Context) (map[string]map[int32]Committed, error) {
	if len(g.partitions) == 0 {
		return map[string]map[int32]Committed{}, nil
	}
	ask := map[string][]int{}
	for _, s := range g.m.cfg.Streams {
		for _, p := range g.partitions {
			ask[s] = append(ask[s], int(p))
		}
	}
	return g.m.c.committed(ctx, g.m.cfg.ID, ask)
}

// Committed gives what a group has committed for a stream, seen from outside of the group; what has no commit is absent.
func (c *Client) Committed(ctx context.Context, group, stream string) (map[int32]Committed, error) {
	info, err := c.Info(ctx, stream)
	if err != nil {
		return nil, err
	}
	partitions := make([]int, info.Partitions)
	for i := range partitions {
		partitions[i] = i
	}
	all, err := c.committed(ctx, group, map[string][]int{stream: partitions})
	if err != nil {
		return nil, err
	}
	return all[stream], nil
}

func (c *Client) committed(ctx context.Context, group string, ask map[string][]int) (map[string]map[int32]Committed, error) {
	out := map[string]map[int32]Committed{}
	err := c.retry(ctx, "read the commits of group "+group, func(ctx context.Context) error {
		c.count.offsets.Add(1)
		res, err := c.kafka.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: ask})
		if err != nil {
			return err
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

// Commit records how far partitions are done, all in one request, which the broker takes as a whole. An error that Is
// [ErrFenced] says that the generation is over and nothing was recorded. It may be called after the generation's ctx
// has ended, with another ctx, while handle winds down. Commits of one partition must not overlap.
func (g *Generation) Commit(ctx context.Context, commits []Commit) error {
	if len(commits) == 0 {
		return nil
	}
	topics := map[string][]kafka.OffsetCommit{}
	for _, cm := range commits {
		if len(cm.Metadata) > metadataBytesMax {
			return fmt.Errorf("commit %s/%d: %d bytes of metadata; the limit is %d", cm.Stream, cm.Partition, len(cm.Metadata), metadataBytesMax)
		}
		if cm.Offset < 0 {
			return fmt.Errorf("commit %s/%d: offset %d", cm.Stream, cm.Partition, cm.Offset)
		}
		topics[cm.Stream] = append(topics[cm.Stream], kafka.OffsetCommit{Partition: int(cm.Partition), Offset: cm.Offset, Metadata: cm.Metadata})
	}
	return g.m.c.retry(ctx, "commit of group "+g.m.cfg.ID, func(ctx context.Context) error {
		g.m.c.count.commits.Add(1)
		res, err := g.m.c.kafka.OffsetCommit(ctx, &kafka.OffsetCommitRequest{
			GroupID: g.m.cfg.ID, GenerationID: g.id, MemberID: g.memberID, InstanceID: g.m.cfg.Instance, Topics: topics,
		})
		if err != nil {
			return err
		}
		for stream, partitions := range res.Topics {
			for _, p := range partitions {
				if p.Error != nil {
					return g.refused(stream, p)
				}
			}
		}
		return nil
	})
}

func (g *Generation) refused(stream string, p kafka.OffsetCommitPartition) error {
	code, _ := asCode(p.Error)
	switch code {
	case kafka.IllegalGeneration, kafka.UnknownMemberId, kafka.FencedInstanceID, kafka.RebalanceInProgress:
		return final{fmt.Errorf("%w: %w", ErrFenced, code)}
	case kafka.OffsetMetadataTooLarge:
		return final{fmt.Errorf("%s/%d: %w: raise the broker's offset.metadata.max.bytes to %d", stream, p.Partition, code, metadataBytesMax)}
	}
	return fmt.Errorf("%s/%d: %w", stream, p.Partition, p.Error)
}
