package streams

import (
	"context"
	"errors"
	"fmt"
)

// Note is one entry of a compacted stream of notes: the last one of a key stands for it.
type Note struct {
	Key    string
	Value  []byte // nil: the key has been taken back
	Offset int64
}

// PublishNotes appends notes, in order and all or none, to a partition of a compacted stream, and returns the offset of
// the first. It promises what [Producer.Publish] promises, but that a note may stand there twice where the broker has
// forgotten its producer: notes have no lineage. A note without a value takes its key back. The notes are borrowed.
func (p *Producer) PublishNotes(ctx context.Context, stream string, partition int32, notes ...Note) (int64, error) {
	if len(notes) == 0 {
		return 0, fmt.Errorf("publish to %s/%d: no notes", stream, partition)
	}
	return p.lane(place{stream, partition}).publish(ctx, p.c, func(context.Context) ([]message, error) {
		msgs := make([]message, len(notes))
		for i, n := range notes {
			msgs[i].key = []byte(n.Key)
			if n.Value != nil {
				msgs[i].value = append(takeBuffer(max(len(n.Value), 1)), n.Value...) // publish gives it back to the pool
			}
		}
		return msgs, nil
	})
}

// Followed is what came of a partition at once.
type Followed struct {
	Notes []Note // in the order of the log; they belong to the receiver
	Next  int64  // the offset that is read next
	End   int64  // the offset behind the last note
	Whole bool   // nothing more stood in the log when this was read
}

// Follow reads the notes of a partition from its first on, and then what is appended, until ctx ends, take fails or
// reading cannot go on; it returns why. take is called on the caller's goroutine, at least once every FetchWait, also with
// no notes. A note that cannot be read is left out with a line in the log: it would not become readable by waiting.
func (c *Client) Follow(ctx context.Context, stream string, partition int32, take func(Followed) error) error {
	if _, err := c.Info(ctx, stream); err != nil {
		return err
	}
	at := place{stream, partition}
	trouble := trouble{c: c, what: fmt.Sprintf("follow %s/%d", stream, partition), stream: stream}
	f := &fetcher{c: c, at: at, offset: -1}
	for {
		got, err := c.follow(ctx, f)
		var behind *OutOfRangeError
		if errors.As(err, &behind) && behind.Offset < behind.First {
			// Compaction has taken what stood here: whatever of it still counts stands further on.
			f.offset = behind.First
			continue
		}
		if err != nil {
			if err := trouble.met(ctx, err); err != nil {
				return err
			}
			continue
		}
		trouble.over()
		if err := take(got); err != nil {
			return err
		}
	}
}

func (c *Client) follow(ctx context.Context, f *fetcher) (out Followed, err error) {
	if f.offset < 0 {
		first, _, err := c.Bounds(ctx, f.at.stream, f.at.partition)
		if err != nil {
			return out, err
		}
		f.offset = first
	}
	before := f.offset
	got, err := f.fetch(ctx, c.cfg.FetchWait)
	if err != nil {
		return out, err
	}
	defer got.release()
	for _, it := range got.items {
		if it.err != nil {
			c.count.bad.Add(1)
			c.log.Error("streams: notes that cannot be read are left out", "stream", f.at.stream, "partition", f.at.partition, "offset", it.offset, "error", it.err)
			continue
		}
		n := Note{Key: string(it.key), Offset: it.offset}
		if it.value != nil {
			n.Value = append(make([]byte, 0, len(it.value)), it.value...)
		}
		out.Notes = append(out.Notes, n)
	}
	// Compaction may have taken the last offsets away: then nothing comes although the end is further on.
	out.Next, out.End, out.Whole = f.offset, got.end, f.offset >= got.end || len(got.items) == 0 && f.offset == before
	return out, nil
}

// EnsureNotes makes a compacted stream of one partition, if it is not there.
func (c *Client) EnsureNotes(ctx context.Context, stream string) error {
	return c.Ensure(ctx, []Spec{{Name: stream, Partitions: 1, Compacted: true}})
}

// WriteNote appends a note, durably. A nil value takes the key back.
func (c *Client) WriteNote(ctx context.Context, stream, key string, value []byte) error {
	_, err := newLane(place{stream, 0}).publish(ctx, c, func(context.Context) ([]message, error) {
		var given []byte
		if value != nil {
			given = append(takeBuffer(len(value)), value...) // publish gives it back to the pool
		}
		return []message{{key: []byte(key), value: given}}, nil
	})
	if err != nil {
		return fmt.Errorf("write note %s to %s: %w", key, stream, err)
	}
	return nil
}

// Notes reads the whole stream and gives the last note of each key that has one; none when there is no such stream.
func (c *Client) Notes(ctx context.Context, stream string) (map[string]Note, error) {
	if err := c.missing(ctx, stream); errors.Is(err, ErrNoStream) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	first, end, err := c.Bounds(ctx, stream, 0)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", stream, err)
	}
	notes := map[string]Note{}
	f := &fetcher{c: c, at: place{stream, 0}, offset: first}
	for f.offset < end {
		before := f.offset
		var got chunk
		err := c.retry(ctx, "read "+stream, func(ctx context.Context) (err error) {
			got, err = f.fetch(ctx, 0)
			return err
		})
		if err != nil {
			return nil, err
		}
		n := len(got.items)
		for _, it := range got.items {
			if it.err != nil {
				got.release()
				return nil, fmt.Errorf("read %s at offset %d: %w", stream, it.offset, it.err)
			}
			key := string(it.key)
			if len(it.value) == 0 {
				delete(notes, key)
				continue
			}
			notes[key] = Note{Key: key, Value: append([]byte(nil), it.value...), Offset: it.offset}
		}
		got.release()
		if f.offset == before && n == 0 {
			break // compaction took the last offsets away
		}
	}
	return notes, nil
}
