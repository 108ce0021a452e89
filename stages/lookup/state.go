package lookup

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/rowstore"
	"hearthline/flow/snapshot"
)

// outputs joins rows to those of the table.
func (s *Stage) outputs(mem memory.Allocator, in arrow.Record, refs []columns.Ref, without []int) ([]flow.Output, error) {
	rows := in
	rows.Retain()
	defer func() { rows.Release() }()
	if s.Unmatched != unmatchedNulls && len(without) > 0 {
		matched, err := columns.Without(mem, in, without)
		if err != nil {
			return nil, flow.Badf("lookup: %v", err)
		}
		rows.Release()
		rows = matched
		refs = slices.DeleteFunc(refs, func(r columns.Ref) bool { return r.Chunk < 0 })
	}
	cols := s.store.Columns(mem, refs, s.picked)
	for _, c := range rows.Columns() {
		c.Retain()
	}
	outs := []flow.Output{{To: "rows", Record: columns.Record(s.out, append(slices.Clone(rows.Columns()), cols...)...)}}
	if s.Unmatched == unmatchedOutput {
		rec, err := columns.Take(mem, in, without)
		if err != nil {
			flow.ReleaseOutputs(outs)
			return nil, flow.Badf("lookup: %v", err)
		}
		outs = append(outs, flow.Output{To: "unmatched", Record: rec})
	}
	return outs, nil
}

const layout = 1

// Snapshot writes the table.
func (s *Stage) Snapshot(w io.Writer) error {
	out := snapshot.NewWriter(w, "lookup", layout)
	out.Uint(uint64(len(s.On)))
	for _, name := range s.On {
		out.String(name)
	}
	out.Uint(uint64(s.order.Len()))
	var refs []columns.Ref
	for at := s.order.Front(); at != nil; at = at.Next() {
		e := at.Value.(*entry)
		out.String(e.key)
		out.Int(int64(e.time))
		out.Int(int64(e.received))
		out.Uint(uint64(e.bytes))
		out.Bool(e.ref.Chunk >= 0)
		if e.ref.Chunk >= 0 {
			refs = append(refs, e.ref)
		}
	}
	if err := s.store.Save(out, refs); err != nil {
		return fmt.Errorf("lookup: %w", err)
	}
	return out.Close()
}

// Restore replaces the table. One with another key is refused.
func (s *Stage) Restore(r io.Reader) error {
	in, _, err := snapshot.NewReader(r, "lookup", layout)
	if err != nil {
		return err
	}
	var on []string
	for range in.Count(1 << 10) {
		on = append(on, in.String())
	}
	if in.Err() == nil && !slices.Equal(on, s.On) {
		return fmt.Errorf("lookup: the table of the snapshot has the key %v, the settings say %v: begin without the state, and let the table's stream be read again", on, s.On)
	}
	byKey, order := map[string]*list.Element{}, list.New()
	var there []*entry
	bytes := int64(0)
	for range in.Count(1 << 30) {
		e := &entry{key: in.String(), time: flow.Micros(in.Int()), received: flow.Micros(in.Int()), bytes: int64(in.Uint()), ref: columns.NoRow}
		bytes += e.bytes
		if in.Bool() {
			there = append(there, e)
		}
		if in.Err() != nil {
			break
		}
		byKey[e.key] = order.PushBack(e)
	}
	saved := rowstore.Read(in)
	if err := in.Close(); err != nil {
		return err
	}
	s.store.Release()
	refs, err := s.store.Load(saved)
	if err != nil {
		return fmt.Errorf("lookup: %w", err)
	}
	if len(refs) != len(there) {
		return errors.New("lookup: the snapshot has other rows than keys")
	}
	for i, e := range there {
		e.ref = refs[i]
	}
	s.byKey, s.order, s.bytes, s.schemas, s.out = byKey, order, bytes, map[string]*arrow.Schema{}, nil
	s.counts.keys.Store(int64(len(byKey)))
	return nil
}
