package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// Decoder makes rows of messages that others wrote. It is used by one goroutine at a time.
type Decoder interface {
	// Decode gives each usable row to add, which borrows it, and why others are not to refuse: row is -1 where that is
	// all of the message. received is now, by the clock that the rows carry. The same message gives the same rows.
	Decode(m *streams.Record, received flow.Micros, add func(*flow.Event), refuse func(row int, reason string))
}

// Source reads a topic that others write, until ctx ends: as a member of a consumer group, each of its partitions by one
// task. from is the cluster that holds it. Every message's rows come to stand in the gateway's stream once, by the rule
// by which sinks write theirs: a range of offsets is committed as intent before its rows are published, so that whoever
// takes over after a crash cuts the same range again, under the same lineage, and readers drop what they have. An error
// ends it; start it again.
func (r *Runner) Source(ctx context.Context, from *streams.Client, name string, decoder func(*pipeline.Source) Decoder) error {
	r.init()
	i := slices.IndexFunc(r.Plan.Spec.Sources, func(s pipeline.Source) bool { return s.Name == name })
	if i < 0 {
		return fmt.Errorf("no source %q in %s", name, r.Plan.Spec.File)
	}
	node := &r.Plan.Spec.Sources[i]
	if _, err := from.Info(ctx, node.Topic); err != nil {
		return fmt.Errorf("source %s: %w", name, err)
	}
	group := streams.GroupConfig{ID: node.Group, Streams: []string{node.Topic}, Instance: r.Instance, SessionTimeout: node.Kafka.SessionTimeout}
	err := from.Join(ctx, group, func(ctx context.Context, a *streams.Assignment) error {
		t := &sourceTask{r: r, node: node, from: from, partition: a.Partition(), commit: a.Commit, decode: decoder(node), meter: r.Meter.Node(name)}
		defer t.meter.release(node.Topic, t.partition)
		err := t.prepare(ctx, a.Committed()[node.Topic])
		if err == nil {
			err = t.run(ctx)
		}
		if errors.Is(err, streams.ErrFenced) {
			r.Log.Info("a partition was taken over by another member", "node", name, "partition", t.partition, "error", err)
			return streams.ErrFenced
		}
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("source %s: %w", name, err)
	}
	return ctx.Err()
}

// sourceNote is what a source's commits say in their metadata.
type sourceNote struct {
	Version   int         `json:"v"`
	Intent    *intent     `json:"intent,omitempty"` // the range that may have been published
	Watermark flow.Micros `json:"wm"`               // arrival of the last range's rows
	Life      int32       `json:"life"`             // how often the partition was taken up
}

const sourceNoteVersion = 1

// prepare finds where the partition stands.
func (t *sourceTask) prepare(ctx context.Context, at streams.Committed) error {
	if at.Metadata != "" {
		if err := json.Unmarshal([]byte(at.Metadata), &t.note); err != nil || t.note.Version != sourceNoteVersion {
			return fmt.Errorf("what group %s has committed for %s/%d is not of this program (%.80q): give the source a group of its own", t.node.Group, t.node.Topic, t.partition, at.Metadata)
		}
	}
	first, next, err := t.from.Bounds(ctx, t.node.Topic, t.partition)
	if err != nil {
		return err
	}
	switch {
	case at.Metadata != "" || at.Offset > 0:
		t.next = at.Offset
	case t.node.Begin == "last":
		t.next = next
	default:
		t.next = first
	}
	if t.next < first && t.note.Intent == nil {
		// Nobody can read them any more. To stop here for ever would lose what comes, too.
		t.r.Log.Error("messages were deleted before they were read", "source", t.node.Name, "topic", t.node.Topic, "partition", t.partition, "first", t.next, "next", first)
		t.next = first
	}
	t.again = at.Metadata != ""
	t.note.Version = sourceNoteVersion
	t.note.Life = (t.note.Life + 1) % sourceLives
	return nil
}

// Places in the lineage of a source that are not rows: signs of life between two ranges have the offset of the range before
// them, and a K above all that rows can have. A life tells few of them, and the next one's are above.
const (
	sourceSigns = 1 << 22 // first K of a sign of life
	signsOfLife = 16      // K that one life takes, at one offset
	sourceLives = 1 << 26
)

// Limits of one range.
const (
	sourceRows     = 16_384
	sourceBytes    = 2 << 20
	sourceBeat     = time.Second
	sourceIdle     = 5 * time.Second // after the last row, the source stops holding the watermark
	sourceGone     = 10 * time.Second
	deadLetterText = 2048 // bytes of a message that its dead letter keeps
)
