package streams

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/apache/arrow/go/v15/arrow"
)

// SchemaStream holds every schema that rows on any stream have: key, the fingerprint as 16 hexadecimal digits; value,
// the schema's encapsulated Arrow IPC message. It is compacted and has one partition. A schema is written before the
// first rows that have it, so whoever finds an unknown fingerprint finds it there.
const SchemaStream = "hearthline.schemas"

var schemaSpec = Spec{Name: SchemaStream, Partitions: 1, Compacted: true}

const (
	schemasMax        = 10_000 // distinct schemas of a cluster
	schemaPointersMax = 256    // schema objects whose fingerprint is remembered
)

// schemas is what this client knows of the schema stream.
type schemas struct {
	c    *Client
	lane *lane

	mu        sync.Mutex
	known     map[fingerprint]*ipcSchema // in the schema stream
	byPointer map[*arrow.Schema]*ipcSchema

	reading chan struct{} // held by the one who reads the stream
	next    int64         // its offset, guarded by reading
	ensured bool          // guarded by reading
}

func newSchemas(c *Client) *schemas {
	return &schemas{
		c: c, lane: newLane(place{SchemaStream, 0}), reading: make(chan struct{}, 1),
		known: map[fingerprint]*ipcSchema{}, byPointer: map[*arrow.Schema]*ipcSchema{},
	}
}

// publish makes sure that schema can be found by its fingerprint.
func (s *schemas) publish(ctx context.Context, schema *arrow.Schema) (*ipcSchema, error) {
	s.mu.Lock()
	is, ok := s.byPointer[schema]
	s.mu.Unlock()
	if ok {
		return is, nil
	}
	is, err := encodeSchema(schema)
	if err != nil {
		return nil, final{err}
	}
	there, err := s.find(ctx, is.print)
	if err != nil {
		return nil, err
	}
	if there == nil {
		if err := s.write(ctx, is); err != nil {
			return nil, fmt.Errorf("write schema %v to %s: %w", is.print, SchemaStream, err)
		}
	} else if !bytes.Equal(there.message, is.message) {
		return nil, final{fmt.Errorf("schema %v: another schema has this fingerprint", is.print)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byPointer) >= schemaPointersMax {
		clear(s.byPointer)
	}
	s.byPointer[schema] = is
	s.known[is.print] = is
	return is, nil
}

func (s *schemas) write(ctx context.Context, is *ipcSchema) error {
	_, err := s.lane.publish(ctx, s.c, func(context.Context) ([]message, error) {
		// The value is given away.
		return []message{{key: []byte(is.print.String()), value: bytes.Clone(is.message)}}, nil
	})
	return err
}

// get finds the schema of a message that was read.
func (s *schemas) get(ctx context.Context, print fingerprint) (*ipcSchema, error) {
	is, err := s.find(ctx, print)
	if err == nil && is == nil {
		err = final{fmt.Errorf("schema %v is not in stream %s", print, SchemaStream)}
	}
	return is, err
}

func (s *schemas) cached(print fingerprint) *ipcSchema {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[print]
}

// find reads on in the schema stream when it does not know print; nil when it is not there.
func (s *schemas) find(ctx context.Context, print fingerprint) (*ipcSchema, error) {
	if is := s.cached(print); is != nil {
		return is, nil
	}
	select {
	case s.reading <- struct{}{}:
		defer func() { <-s.reading }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if is := s.cached(print); is != nil {
		return is, nil
	}
	if !s.ensured {
		if err := s.c.Ensure(ctx, nil); err != nil {
			return nil, err
		}
		s.ensured = true
	}
	if err := s.readOn(ctx); err != nil {
		return nil, fmt.Errorf("read %s: %w", SchemaStream, err)
	}
	return s.cached(print), nil
}

// readOn reads to the end of the schema stream as it is now.
func (s *schemas) readOn(ctx context.Context) error {
	first, end, err := s.c.Bounds(ctx, SchemaStream, 0)
	if err != nil {
		return err
	}
	s.next = max(s.next, first)
	if s.next > end { // made anew
		s.next = first
	}
	f := &fetcher{c: s.c, at: place{SchemaStream, 0}, offset: s.next}
	for f.offset < end {
		before := f.offset
		var got chunk
		err := s.c.retry(ctx, "fetch", func(ctx context.Context) (err error) {
			got, err = f.fetch(ctx, 0)
			return err
		})
		if err != nil {
			return err
		}
		for _, it := range got.items {
			if it.err == nil {
				s.keep(it.message)
			}
		}
		got.release()
		if f.offset == before && len(got.items) == 0 {
			break // compaction took the last offsets away
		}
	}
	s.next = f.offset
	return nil
}

// keep takes a schema from the stream; what is none is passed over, and its rows will say what they miss.
func (s *schemas) keep(m message) {
	is, err := decodeSchema(bytes.Clone(m.value))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || is.print.String() != string(m.key) || len(s.known) >= schemasMax {
		s.c.count.bad.Add(1)
		return
	}
	if s.known[is.print] == nil {
		s.known[is.print] = is
	}
}
