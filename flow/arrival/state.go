package arrival

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/rowstore"
	"hearthline/flow/snapshot"
)

// layout is the version of the snapshot, and header what it begins with.
const (
	layout = 1
	header = "hearthline arrival state "
)

// Snapshot implements flow.Stateful: the rows that are held, and what the stage remembers.
func (s *Stage) Snapshot(w io.Writer) error {
	if s.under != nil {
		return errors.New("arrival: a snapshot in the middle of a batch")
	}
	out := snapshot.NewWriter(w, "arrival", layout)
	refs := make([]columns.Ref, len(s.held))
	for i, r := range s.held {
		refs[i] = r.ref
	}
	if err := s.store.Save(out, refs); err != nil {
		return fmt.Errorf("arrival: %w", err)
	}
	var b bytes.Buffer
	if inner, ok := s.inner.(flow.Stateful); ok {
		if err := inner.Snapshot(&b); err != nil {
			return err
		}
	}
	out.Bytes(b.Bytes())
	return out.Close()
}

// Restore implements flow.Stateful. A state without rows that are held is the stage's own, of before they were put in order.
func (s *Stage) Restore(r io.Reader) error {
	all, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("arrival: %w", err)
	}
	inner, remembers := s.inner.(flow.Stateful)
	if !bytes.HasPrefix(all, []byte(header)) {
		if !remembers {
			return errors.New("arrival: this is the state of another stage")
		}
		return inner.Restore(bytes.NewReader(all))
	}
	in, _, err := snapshot.NewReader(bytes.NewReader(all), "arrival", layout)
	if err != nil {
		return err
	}
	saved, own := rowstore.Read(in), in.Bytes()
	if err := in.Close(); err != nil {
		return err
	}
	if err := s.load(saved); err != nil {
		return fmt.Errorf("arrival: %w", err)
	}
	if remembers {
		return inner.Restore(bytes.NewReader(own))
	}
	return nil
}

// load holds the rows of a snapshot. They were a heap, and are one in the same order.
func (s *Stage) load(saved rowstore.Saved) error {
	s.store.Release()
	s.held, s.bytes = nil, 0
	refs, err := s.store.Load(saved)
	if err != nil {
		return err
	}
	for len(refs) > 0 {
		chunk := refs[0].Chunk
		rec := s.store.Chunk(chunk)
		times, err := flow.Instants(rec, flow.ColTime)
		if err != nil {
			return err
		}
		received, err := flow.Instants(rec, flow.ColReceived)
		if err != nil {
			return err
		}
		sizes := columns.RowSizes(rec)
		for ; len(refs) > 0 && refs[0].Chunk == chunk; refs = refs[1:] {
			i := int(refs[0].Row)
			s.held = append(s.held, rowOf(flow.Micros(times[i]), flow.Micros(received[i]), sizes[i], refs[0], rec.Column(rec.Schema().FieldIndices(flow.ColReceived)[0]).IsNull(i)))
			s.bytes += sizes[i]
		}
	}
	s.rows.Store(int64(len(s.held)))
	return nil
}
