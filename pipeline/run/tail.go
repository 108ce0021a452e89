package run

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

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
// node of this process is asked directly, another is known by what it has committed. A shadow that has committed nothing
// lacks nothing.
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
		next, err := r.next(ctx, node, streams)
		if err != nil {
			return nil, fmt.Errorf("lag of %s: %w", node, err)
		}
		lag[node] = map[string][]int64{}
		u := r.Plan.Node(node)
		for _, stream := range streams {
			behind := make([]int64, len(ends[stream]))
			if u != nil && firstOf(r.Plan, u) != nil && len(next[stream]) == 0 {
				lag[node][stream] = behind // a shadow begins where its stage is, and one that was promoted is behind nothing
				continue
			}
			for p, end := range ends[stream] {
				behind[p] = max(0, end-next[stream][int32(p)])
			}
			lag[node][stream] = behind
		}
	}
	return lag, nil
}

// next gives the offsets up to which a node has taken its streams, by partition; 0 where it has taken nothing. The group
// is asked, once for all streams, only about those of which this process has not taken all partitions.
func (r *Runner) next(ctx context.Context, node string, names []string) (map[string]map[int32]int64, error) {
	next := map[string]map[int32]int64{}
	for _, name := range names {
		next[name] = map[int32]int64{}
	}
	for _, p := range r.Meter.Node(node).Status().Partitions {
		if at, ok := next[p.Stream]; ok && p.Offset > 0 {
			at[p.Partition] = p.Offset
		}
	}
	var ask []string
	for _, name := range names {
		if len(next[name]) < r.Plan.Spec.Partitions {
			ask = append(ask, name)
		}
	}
	committed, err := r.Client.CommittedOf(ctx, r.group(node), ask, r.Plan.Spec.Partitions)
	if err != nil {
		return nil, err
	}
	for name, of := range committed {
		for p, c := range of {
			if _, here := next[name][p]; !here {
				next[name][p] = c.Offset
			}
		}
	}
	return next, nil
}

// History reads what a stream has held since a time, all partitions, outside of any group, up to its end as it is when this
// begins; or, live, on from there until ctx ends. The zero time is now. Heartbeats are given, too. give borrows the batch and is
// called by one goroutine at a time for each partition.
func (r *Runner) History(ctx context.Context, stream string, since time.Time, live bool, give func(streams.Message) error) error {
	r.init()
	var begin []int64
	if !since.IsZero() {
		var err error
		if begin, err = r.Client.OffsetsAt(ctx, stream, since); err != nil {
			return err
		}
	}
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	for partition := range int32(r.Plan.Spec.Partitions) {
		p.Go(func(ctx context.Context) error {
			_, end, err := r.road.Bounds(ctx, stream, partition)
			if err != nil {
				return err
			}
			from := end
			if int(partition) < len(begin) {
				from = min(begin[partition], end)
			}
			if !live && from >= end {
				return nil
			}
			if live {
				end = math.MaxInt64
			}
			return readUpTo(ctx, r.road.Reader(stream, partition, from), end, give)
		})
	}
	if err := p.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read %s: %w", stream, err)
	}
	return nil
}

// readUpTo reads the messages before an offset.
func readUpTo(ctx context.Context, from source, end int64, give func(streams.Message) error) (err error) {
	defer func() { err = errors.Join(err, from.Close()) }()
	for {
		msg, err := from.Next(ctx)
		var broken *streams.DecodeError
		if errors.As(err, &broken) {
			if broken.Offset >= end-1 {
				return nil
			}
			continue // whoever works on the stream sets it aside and counts it
		}
		if err != nil {
			return err
		}
		if err = give(msg); msg.Batch.Record != nil {
			msg.Batch.Record.Release()
		}
		if err != nil || msg.Offset >= end-1 {
			return err
		}
	}
}
