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
