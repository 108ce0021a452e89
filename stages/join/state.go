package join

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/deadline"
	"hearthline/flow/rowstore"
	"hearthline/flow/snapshot"
)

func (s *Stage) keyOf(name []byte) *key {
	k := s.keys[string(name)]
	if k == nil {
		k = &key{Deadline: deadline.New(), name: string(name)}
		s.keys[k.name], k.at = k, s.order.PushBack(k)
	}
	s.order.MoveToBack(k.at)
	return k
}

// byAge gives the keys, the one whose last row came first at first. The one in hand may be forgotten.
func (s *Stage) byAge(yield func(*key) bool) {
	for at := s.order.Front(); at != nil; {
		next := at.Next()
		if !yield(at.Value.(*key)) {
			return
		}
		at = next
	}
}

func (s *Stage) forget(k *key) {
	s.order.Remove(k.at)
	delete(s.keys, k.name)
}

// outputs makes the record of pairs.
func (s *Stage) outputs(ctx context.Context, p *pairs) []flow.Output {
	mem := columns.Allocator(ctx)
	cols := s.sides[left].store.Columns(mem, p.refs[left], s.sides[left].picked)
	received := slices.Index(columnNames(s.out), flow.ColReceived)
	cols[received].Release()
	cols[received] = columns.Instants(mem, p.received)
	cols = append(cols, s.sides[right].store.Columns(mem, p.refs[right], s.sides[right].picked)...)
	return []flow.Output{{To: "pairs", Record: columns.Record(s.out, cols...)}}
}

func columnNames(schema *arrow.Schema) (names []string) {
	for _, f := range schema.Fields() {
		names = append(names, f.Name)
	}
	return names
}

// sweep gives back the rows that nobody needs any more.
func (s *Stage) sweep(ctx context.Context) {
	rows := 0
	for at := range s.sides {
		side := &s.sides[at]
		for _, r := range side.dropped {
			side.store.Drop(r)
		}
		side.dropped = side.dropped[:0]
		side.store.Sweep(columns.Allocator(ctx), func(yield func(*columns.Ref) bool) {
			for k := range s.byAge {
				for i := range k.rows[at] {
					if !yield(&k.rows[at][i].ref) {
						return
					}
				}
			}
		})
		rows += side.store.Len()
	}
	s.counts.rows.Store(int64(rows))
	s.counts.keys.Store(int64(len(s.keys)))
}

const layout = 1

// Snapshot writes the rows that are kept.
func (s *Stage) Snapshot(w io.Writer) error {
	out := snapshot.NewWriter(w, "join", layout)
	out.Uint(uint64(len(s.On)))
	for _, name := range s.On {
		out.String(name)
	}
	out.Uint(uint64(len(s.keys)))
	var refs [2][]columns.Ref
	for k := range s.byAge {
		out.String(k.name)
		for at := range k.rows {
			out.Uint(uint64(len(k.rows[at])))
			for _, r := range k.rows[at] {
				out.Int(int64(r.time))
				out.Int(int64(r.received))
				out.Uint(uint64(r.bytes))
				out.Bool(r.paired)
				refs[at] = append(refs[at], r.ref)
			}
		}
	}
	for at := range s.sides {
		if err := s.sides[at].store.Save(out, refs[at]); err != nil {
			return fmt.Errorf("join: %w", err)
		}
	}
	return out.Close()
}

// Restore replaces the rows that are kept. Those of another key are refused.
func (s *Stage) Restore(r io.Reader) error {
	in, _, err := snapshot.NewReader(r, "join", layout)
	if err != nil {
		return err
	}
	var on []string
	for range in.Count(1 << 10) {
		on = append(on, in.String())
	}
	if in.Err() == nil && !slices.Equal(on, s.On) {
		return fmt.Errorf("join: the rows of the snapshot are kept by %v, the settings say %v: keep on, or begin without the state", on, s.On)
	}
	fresh := New()
	for range in.Count(1 << 30) {
		k := fresh.keyOf([]byte(in.String()))
		for at := range k.rows {
			for range in.Count(1 << 30) {
				k.rows[at] = append(k.rows[at], row{time: flow.Micros(in.Int()), received: flow.Micros(in.Int()), bytes: int64(in.Uint()), paired: in.Bool()})
				if in.Err() != nil {
					break
				}
			}
		}
		if in.Err() != nil {
			break
		}
	}
	saved := [2]rowstore.Saved{rowstore.Read(in), rowstore.Read(in)}
	if err := in.Close(); err != nil {
		return err
	}
	return s.load(fresh, saved)
}

// load takes over what fresh has been told, with the rows.
func (s *Stage) load(fresh *Stage, saved [2]rowstore.Saved) error {
	s.keys, s.order, s.queue, s.bytes, s.out = fresh.keys, fresh.order, deadline.Queue[*key]{}, 0, nil
	for at := range s.sides {
		s.sides[at].store.Release()
		s.sides[at] = side{}
		refs, err := s.sides[at].store.Load(saved[at])
		if err != nil {
			return fmt.Errorf("join: %w", err)
		}
		for k := range s.byAge {
			if len(refs) < len(k.rows[at]) {
				return errors.New("join: the snapshot has fewer rows than its keys have")
			}
			for i := range k.rows[at] {
				k.rows[at][i].ref = refs[i]
				s.bytes += k.rows[at][i].bytes
			}
			refs = refs[len(k.rows[at]):]
		}
		if len(refs) > 0 {
			return fmt.Errorf("join: %d rows of the snapshot are nobody's", len(refs))
		}
	}
	for k := range s.byAge {
		s.schedule(k) // without rows it is forgotten
	}
	s.counts.keys.Store(int64(len(s.keys)))
	s.counts.rows.Store(int64(s.sides[left].store.Len() + s.sides[right].store.Len()))
	return nil
}
