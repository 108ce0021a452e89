package window

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/rowstore"
	"hearthline/flow/snapshot"
)

// layout is the version of the snapshot.
const layout = 1

// Snapshot implements flow.Stateful: it writes the open windows of all keys, and what the author's stage remembers.
func (s *Stage) Snapshot(w io.Writer) error {
	if s.under != nil {
		return errors.New("window: a snapshot in the middle of a batch")
	}
	out := snapshot.NewWriter(w, "window", layout)
	out.String(s.config.String())
	out.Int(int64(s.keys.clock))
	out.Uint(uint64(len(s.keys.byName)))
	var refs []columns.Ref
	for k := range s.keys.byAge {
		out.String(k.name)
		out.Int(int64(k.latest))
		out.Int(int64(k.received))
		out.Int(int64(k.closed))
		out.Uint(uint64(len(k.rows)))
		for _, r := range k.rows {
			refs = append(refs, r.ref)
		}
	}
	if err := s.store.Save(out, refs); err != nil {
		return fmt.Errorf("window: %w", err)
	}
	inner, remembers := s.inner.(flow.Stateful)
	out.Bool(remembers)
	if remembers {
		var b bytes.Buffer
		if err := inner.Snapshot(&b); err != nil {
			return err
		}
		out.Bytes(b.Bytes())
	}
	return out.Close()
}

// Restore implements flow.Stateful. Rows of other windows are refused: what is in them cannot become what is wanted.
func (s *Stage) Restore(r io.Reader) error {
	in, _, err := snapshot.NewReader(r, "window", layout)
	if err != nil {
		return err
	}
	if was := in.String(); in.Err() == nil && was != s.config.String() {
		return fmt.Errorf("window: the state is of windows with %s, the settings say %s: keep them, or begin without the state", was, s.config)
	}
	t := newKept()
	t.clock = flow.Micros(in.Int())
	rows := map[*key]int{}
	for range in.Count(KeysMax) {
		k := newKey(in.String())
		k.latest, k.received, k.closed = flow.Micros(in.Int()), flow.Micros(in.Int()), flow.Micros(in.Int())
		rows[k] = in.Count(RowsMax)
		if in.Err() != nil {
			break
		}
		t.add(k)
	}
	saved := rowstore.Read(in)
	var innerState []byte
	_, remembers := s.inner.(flow.Stateful)
	if had := in.Bool(); had != remembers && in.Err() == nil {
		return fmt.Errorf("window: the state has a part of the stage's own: %v; the stage remembers: %v", had, remembers)
	} else if had {
		innerState = in.Bytes()
	}
	if err := in.Close(); err != nil {
		return err
	}
	if err := s.load(t, rows, saved); err != nil {
		return fmt.Errorf("window: %w", err)
	}
	if remembers {
		return s.inner.(flow.Stateful).Restore(bytes.NewReader(innerState))
	}
	return nil
}

// load gives the keys their rows.
func (s *Stage) load(t kept, rows map[*key]int, saved rowstore.Saved) error {
	s.store.Release()
	refs, err := s.store.Load(saved)
	if err != nil {
		return err
	}
	s.keys, s.bytes = t, 0
	var chunk int32 = -1
	var times []arrow.Timestamp
	var sizes []int64
	for k := range s.keys.byAge {
		if rows[k] > len(refs) {
			return errors.New("there are fewer rows than the keys have")
		}
		for _, ref := range refs[:rows[k]] {
			if ref.Chunk != chunk {
				chunk = ref.Chunk
				if times, err = flow.Instants(s.store.Chunk(chunk), flow.ColTime); err != nil {
					return err
				}
				sizes = columns.RowSizes(s.store.Chunk(chunk))
			}
			r := row{at: flow.Micros(times[ref.Row]), bytes: sizes[ref.Row], ref: ref}
			k.add(r)
			s.bytes += r.bytes
			s.shape.added(k, r.at)
		}
		refs = refs[rows[k]:]
		s.schedule(k)
	}
	if len(refs) > 0 {
		return fmt.Errorf("%d rows are nobody's", len(refs))
	}
	s.counts.keys.Store(int64(len(s.keys.byName)))
	s.counts.rows.Store(int64(s.store.Len()))
	return nil
}
