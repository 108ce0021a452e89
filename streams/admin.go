package streams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/segmentio/kafka-go"
)

// What changes a pipeline needs of Kafka beside reading and writing: to see groups from outside of them, to set what
// they have committed while nobody is in them, and to delete groups and streams. Data is never touched by anything but
// DeleteStreams.

// Groups lists the consumer groups whose names begin with prefix, sorted.
func (c *Client) Groups(ctx context.Context, prefix string) ([]string, error) {
	var names []string
	err := c.retry(ctx, "list groups", func(ctx context.Context) error {
		names = nil
		res, err := c.kafka.ListGroups(ctx, &kafka.ListGroupsRequest{})
		if err != nil {
			return err
		}
		if res.Error != nil {
			return res.Error
		}
		for _, g := range res.Groups {
			if strings.HasPrefix(g.GroupID, prefix) {
				names = append(names, g.GroupID)
			}
		}
		return nil
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

// Members counts the members of each group; one that does not exist has none.
func (c *Client) Members(ctx context.Context, groups ...string) (map[string]int, error) {
	members := make(map[string]int, len(groups))
	for _, group := range groups {
		err := c.retry(ctx, "members of group "+group, func(ctx context.Context) error {
			res, err := c.kafka.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
			if err != nil {
				return err
			}
			for _, g := range res.Groups {
				if g.Error != nil && !errors.Is(g.Error, kafka.GroupIdNotFound) { // newer brokers say so of one that is not there
					return g.Error
				}
				members[group] = len(g.Members)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return members, nil
}

// CommittedAll gives everything a group has committed, by stream and partition.
func (c *Client) CommittedAll(ctx context.Context, group string) (map[string]map[int32]Committed, error) {
	all, err := c.committed(ctx, group, nil)
	for stream, partitions := range all {
		if len(partitions) == 0 {
			delete(all, stream)
		}
	}
	return all, err
}

// SetCommitted commits for a group that has no members, all in one request. With members it is refused, with an error
// that Is [ErrFenced].
func (c *Client) SetCommitted(ctx context.Context, group string, commits []Commit) error {
	topics := map[string][]kafka.OffsetCommit{}
	for _, cm := range commits {
		if len(cm.Metadata) > metadataBytesMax || cm.Offset < 0 {
			return fmt.Errorf("commit %s/%d of group %s: offset %d with %d bytes of metadata; the limit is %d", cm.Stream, cm.Partition, group, cm.Offset, len(cm.Metadata), metadataBytesMax)
		}
		topics[cm.Stream] = append(topics[cm.Stream], kafka.OffsetCommit{Partition: int(cm.Partition), Offset: cm.Offset, Metadata: cm.Metadata})
	}
	err := c.retry(ctx, "set what group "+group+" has committed", func(ctx context.Context) error {
		// No generation and no member: brokers take that for a group without members only.
		res, err := c.kafka.OffsetCommit(ctx, &kafka.OffsetCommitRequest{GroupID: group, GenerationID: -1, Topics: topics})
		if err != nil {
			return err
		}
		for stream, partitions := range res.Topics {
			for _, p := range partitions {
				if p.Error != nil {
					code, _ := asCode(p.Error)
					return refusal{stream, int32(p.Partition), code}.error()
				}
			}
		}
		return nil
	})
	if errors.Is(err, ErrFenced) {
		return fmt.Errorf("group %s has members: stop them first: %w", group, err)
	}
	return err
}

// DeleteGroups deletes groups that have no members, with all that they have committed. One that does not exist is none.
func (c *Client) DeleteGroups(ctx context.Context, groups ...string) error {
	for _, group := range groups {
		if err := c.uncommit(ctx, group); err != nil {
			return err
		}
		err := c.retry(ctx, "delete group "+group, func(ctx context.Context) error {
			res, err := c.kafka.DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{group}})
			if err != nil {
				return err
			}
			err = res.Errors[group]
			switch {
			case errors.Is(err, kafka.GroupIdNotFound):
				return nil
			case errors.Is(err, kafka.NonEmptyGroup):
				return final{fmt.Errorf("it has members: stop them first: %w", err)}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// uncommit deletes what a group has committed. The embedded broker keeps this over a crash, and not that a group was deleted:
// it would come back, and name checkpoints that are gone.
func (c *Client) uncommit(ctx context.Context, group string) error {
	// Of streams that its members do not read, offsets are deleted of a group that has members, too.
	members, err := c.Members(ctx, group)
	if err != nil || members[group] > 0 {
		return err // the deletion of the group will say it
	}
	committed, err := c.CommittedAll(ctx, group)
	if err != nil || len(committed) == 0 {
		return err
	}
	req := &kafka.OffsetDeleteRequest{GroupID: group, Topics: map[string][]int{}}
	for stream, partitions := range committed {
		for p := range partitions {
			req.Topics[stream] = append(req.Topics[stream], int(p))
		}
	}
	return c.retry(ctx, "delete offsets of group "+group, func(ctx context.Context) error {
		res, err := c.kafka.OffsetDelete(ctx, req)
		switch {
		case err != nil:
			return err
		case errors.Is(res.Error, kafka.GroupIdNotFound), errors.Is(res.Error, kafka.NonEmptyGroup):
			return nil // which the deletion of the group will say
		}
		return res.Error
	})
}

// DeleteStreams deletes streams and all that is in them, and waits until they are gone. One that does not exist is none.
func (c *Client) DeleteStreams(ctx context.Context, streams ...string) error {
	if len(streams) == 0 {
		return nil
	}
	return c.retry(ctx, "delete streams "+strings.Join(streams, ", "), func(ctx context.Context) error {
		known, err := c.metadata(ctx, streams)
		if err != nil {
			return err
		}
		var there []string
		for _, s := range streams {
			if known[s].code != kafka.UnknownTopicOrPartition {
				there = append(there, s)
			}
		}
		if len(there) == 0 {
			return nil
		}
		res, err := c.kafka.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: there})
		if err != nil {
			return err
		}
		for name, err := range res.Errors {
			if err != nil && !errors.Is(err, kafka.UnknownTopicOrPartition) {
				return fmt.Errorf("delete stream %s: %w", name, err)
			}
		}
		return fmt.Errorf("streams are being deleted: %w", kafka.LeaderNotAvailable) // a passing error: look again
	})
}
