package run

import (
	"context"

	"hearthline/streams"
)

// History is a stretch of a stream that is read from elsewhere than the runner's Kafka, for a replay. It is the same every
// time: a task that is killed begins at its checkpoint and must find the same messages at the same offsets.
type History interface {
	// Bounds gives the offset of the first message of a partition, and the one behind the last.
	Bounds(partition int32) (first, next int64)
	// Read reads a partition from an offset on. Its last message is a [flow.KindEnd] of the runner's [Drain].
	Read(partition int32, offset int64) Messages
}

// Messages are those of one partition, in the order of their offsets.
type Messages interface {
	// Next gives the next message, whose record the caller releases. After the last it waits until ctx ends.
	Next(ctx context.Context) (streams.Message, error)
	Close() error
}

// replayed is a road some of whose streams are histories.
type replayed struct {
	road
	histories map[string]History
}

func (r replayed) Reader(stream string, partition int32, offset int64) source {
	if h := r.histories[stream]; h != nil {
		return h.Read(partition, offset)
	}
	return r.road.Reader(stream, partition, offset)
}

func (r replayed) Bounds(ctx context.Context, stream string, partition int32) (first, next int64, err error) {
	if h := r.histories[stream]; h != nil {
		first, next = h.Bounds(partition)
		return first, next, nil
	}
	return r.road.Bounds(ctx, stream, partition)
}
