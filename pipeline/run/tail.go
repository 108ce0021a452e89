package run

import (
	"context"
	"errors"
	"fmt"

	"github.com/sourcegraph/conc/pool"

	"hearthline/streams"
)

// Tail reads a stream from now on, all partitions, outside of any group: nobody's offsets move. give borrows the
// batch and is called by one goroutine at a time for each partition. It ends with ctx, and then returns nil.
func (r *Runner) Tail(ctx context.Context, stream string, give func(streams.Message)) error {
	r.init()
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	for partition := range int32(r.Plan.Spec.Partitions) {
		p.Go(func(ctx context.Context) error {
			_, next, err := r.road.Bounds(ctx, stream, partition)
			if err != nil {
				return err
			}
			return tailPartition(ctx, r.road.Reader(stream, partition, next), give)
		})
	}
	if err := p.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	return nil
}

func tailPartition(ctx context.Context, from source, give func(streams.Message)) (err error) {
	defer func() { err = errors.Join(err, from.Close()) }()
	for {
		msg, err := from.Next(ctx)
		var broken *streams.DecodeError
		switch {
		case errors.As(err, &broken):
			continue // whoever works on the stream sets it aside and counts it
		case err != nil:
			return err
		case msg.Batch.Record != nil:
			give(msg)
			msg.Batch.Record.Release()
		}
	}
}

// Lag is, by node (unit or sink) and stream, how many messages of each partition the node has not taken yet. A
// node of this process is asked directly, another is known by what it has committed.
func (r *Runner) Lag(ctx context.Context) (map[string]map[string][]int64, error) {
	inputs := map[string][]string{}
	for _, u := range r.Plan.Units {
		inputs[u.Name] = u.Inputs
	}
	for _, s := range r.Plan.Sinks {
		inputs[s.Name] = s.Streams
	}
	var names []string
	for name, s := range r.Plan.Streams {
		if s.OnKafka() {
			names = append(names, name)
		}
	}
	ends, err := r.Client.Ends(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("lag: %w", err)
	}
	lag := map[string]map[string][]int64{}
	for node, streams := range inputs {
		lag[node] = map[string][]int64{}
		for _, stream := range streams {
			next, err := r.next(ctx, node, stream)
			if err != nil {
				return nil, fmt.Errorf("lag of %s: %w", node, err)
			}
			behind := make([]int64, len(ends[stream]))
			for p, end := range ends[stream] {
				behind[p] = max(0, end-next[int32(p)])
			}
			lag[node][stream] = behind
		}
	}
	return lag, nil
}

// next gives the offsets up to which a node has taken a stream, by partition; 0 where it has taken nothing.
func (r *Runner) next(ctx context.Context, node, stream string) (map[int32]int64, error) {
	next := map[int32]int64{}
	for _, p := range r.Meter.Node(node).Status().Partitions {
		if p.Stream == stream && p.Offset > 0 {
			next[p.Partition] = p.Offset
		}
	}
	if len(next) == r.Plan.Spec.Partitions {
		return next, nil
	}
	committed, err := r.Client.Committed(ctx, r.group(node), stream)
	if err != nil {
		return nil, err
	}
	for p, c := range committed {
		if _, here := next[p]; !here {
			next[p] = c.Offset
		}
	}
	return next, nil
}
