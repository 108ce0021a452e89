package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow/columns"
	"hearthline/streams"
)

// A stream with a key: its rows are parted over its partitions by what the columns of the key hold. Each task of its writer
// then writes to all partitions, and is a source of its own in each of them: its positions rise there, though not by one.
// It tells time and the end in all of them. A reader waits for the time of all tasks of the writer.

// part adds rec (borrowed) to what will be published, each row in the partition of its key.
func (c *chain) part(m message, l *chained, stream string, key []string, rec arrow.Record, out *[]made) error {
	by, err := columns.KeyOf(rec, key)
	if err != nil {
		// lint has seen the columns: a stage that makes others has a defect worth stopping for.
		return fmt.Errorf("stage %s: part the rows of %s: %w", l.node.Name, stream, err)
	}
	rows := make([][]int, c.parts)
	for i := range int(rec.NumRows()) {
		p := by.Partition(i, c.parts)
		rows[p] = append(rows[p], i)
	}
	for p, of := range rows {
		if len(of) == 0 {
			continue
		}
		piece, err := columns.Take(c.mem, rec, of)
		if err != nil {
			return fmt.Errorf("stage %s: part the rows of %s: %w", l.node.Name, stream, err)
		}
		c.publishable(m, l, stream, int32(p), piece, out)
		piece.Release()
	}
	return nil
}

// partitionsOf is where a task on a partition tells time and the end of a stream it writes.
func (r *Runner) partitionsOf(stream string, own int32) []int32 {
	if r.Plan.Streams[stream].Key == nil {
		return []int32{own}
	}
	all := make([]int32, r.Plan.Spec.Partitions)
	for p := range all {
		all[p] = int32(p)
	}
	return all
}

// toldOf is under which name a task remembers when it last told a partition of a stream the time.
func (r *Runner) toldOf(stream string, partition int32) string {
	if s := r.Plan.Streams[stream]; s == nil || s.Key == nil {
		return stream // of its own partition, the only one it writes to
	}
	return fmt.Sprintf("%s/%d", stream, partition)
}

// awaited is the tasks that write each partition of a stream with a key, nil of another stream: a reader does not know the time
// before it has heard of all of them.
func (r *Runner) awaited(stream string) []teller {
	s := r.Plan.Streams[stream]
	if s == nil || s.Key == nil {
		return nil
	}
	unit := r.Plan.Node(s.Writer)
	if unit == nil {
		return nil
	}
	var all []teller
	for _, st := range unit.Stages {
		if st.Name == s.Writer {
			for p := range int32(r.Plan.Spec.Partitions) {
				all = append(all, teller{st.ID(), p})
			}
		}
	}
	return all
}

// wrote says whether a task has written to a stream with a key: others write to the same partitions, so what stands there
// has to be looked at. A task tells time everywhere, so it does not take long to find it.
func (r *Runner) wrote(ctx context.Context, stream string, by teller) (bool, error) {
	for p := range int32(r.Plan.Spec.Partitions) {
		first, next, err := r.road.Bounds(ctx, stream, p)
		if err != nil {
			return false, err
		}
		if found, err := r.wroteTo(ctx, stream, p, first, next, by); err != nil || found {
			return found, err
		}
	}
	return false, nil
}

func (r *Runner) wroteTo(ctx context.Context, stream string, partition int32, first, next int64, by teller) (bool, error) {
	if first >= next {
		return false, nil
	}
	from := r.road.Reader(stream, partition, first)
	defer func() { _ = from.Close() }() // nothing was written by it
	for at := first; at < next; {
		msg, err := from.Next(ctx)
		var broken *streams.DecodeError
		if errors.As(err, &broken) {
			at = broken.Offset + 1
			continue
		}
		if err != nil {
			return false, fmt.Errorf("look for batches of an earlier life in %s/%d: %w", stream, partition, err)
		}
		if msg.Batch.Record != nil {
			msg.Batch.Record.Release()
		}
		if at = msg.Offset + 1; tellerOf(msg.Batch.Lineage.Source) == by {
			return true, nil
		}
	}
	return false, nil
}

// rekeyed says that a stream which a node wrote is to be parted by other columns, "" where it is not: rows of one key would
// then stand in two of its partitions, and its readers would wait for other tasks than those that wrote what is in it.
func rekeyed(old *NodeNote, stream string, keys map[string][]string) string {
	wrote := false
	for _, s := range old.To {
		wrote = wrote || s == stream
	}
	if !wrote || slices.Equal(old.Keys[stream], keys[stream]) {
		return ""
	}
	said := func(key []string) string {
		if key == nil {
			return "not parted anew"
		}
		return "parted by " + strings.Join(key, ", ")
	}
	return fmt.Sprintf("the rows of stream %s were %s and would be %s", stream, said(old.Keys[stream]), said(keys[stream]))
}

// sameKeys refuses to go on with a stream that is parted by other columns than before.
func sameKeys(old, now *Note) error {
	if old == nil {
		return nil
	}
	for i := range old.Nodes {
		for _, node := range now.Nodes {
			for _, stream := range node.To {
				if why := rekeyed(&old.Nodes[i], stream, node.Keys); why != "" && old.Nodes[i].ID == node.ID {
					return fmt.Errorf("%s: give it a new stream", why)
				}
			}
		}
	}
	return nil
}
