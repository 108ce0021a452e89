package keyed

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"hearthline/flow"
	"hearthline/flow/snapshot"
)

// layout is the version of what snapshots look like.
const layout = 1

// name is what the header of a snapshot says.
const name = "keyed"

const (
	fieldsMax   = 1000
	slotsAtOnce = 1 << 20 // for which load makes room before they are there
)

// values are what is kept by slot.
type values interface {
	declared() []Field
	// room makes a slot hold the initial values.
	room(slot int32)
	// save writes the value of one field of a slot, load reads it.
	save(w *snapshot.Writer, field int, slot int32)
	load(r *snapshot.Reader, field int, slot int32)
}

// save writes keys and values, in an order that depends on them alone: for each column of the key its values, then each key as
// their places, and its fields.
func (ix *index) save(w io.Writer, v values) error {
	out := snapshot.NewWriter(w, name, layout)
	out.Uint(uint64(len(ix.columns)))
	places := make([][]uint32, len(ix.columns))
	for i := range ix.columns {
		c := &ix.columns[i]
		out.String(c.name)
		out.String(string(c.kind))
		var ids []uint32
		ids, places[i] = c.inOrder()
		out.Uint(uint64(len(ids)))
		for _, id := range ids {
			out.String(c.values[id])
		}
	}
	fields := v.declared()
	out.Uint(uint64(len(fields)))
	for _, f := range fields {
		out.String(f.Name)
		out.String(string(f.Kind))
		out.Bool(f.Nullable)
	}
	keys := ix.inOrder(places)
	out.Uint(uint64(len(keys)))
	for _, k := range keys {
		for i := range ix.columns {
			out.Uint(uint64(k.place[i]))
		}
		out.Int(int64(ix.received[k.slot]))
		for i := range fields {
			v.save(out, i, k.slot)
		}
	}
	return out.Close()
}

// placed is a slot, and the places of its key's values.
type placed struct {
	place ids
	slot  int32
}

func (ix *index) inOrder(places [][]uint32) []placed {
	all := make([]placed, 0, ix.len())
	ix.each(func(slot int32) {
		p := placed{slot: slot}
		for i := range ix.columns {
			p.place[i] = places[i][ix.keys[slot][i]]
		}
		all = append(all, p)
	})
	slices.SortFunc(all, func(a, b placed) int {
		for i := range a.place {
			if a.place[i] != b.place[i] {
				return int(a.place[i]) - int(b.place[i])
			}
		}
		return 0
	})
	return all
}

// load fills an empty index, and v, with what save wrote.
func (ix *index) load(from io.Reader, v values) error {
	r, _, err := snapshot.NewReader(from, name, layout)
	if err != nil {
		return err
	}
	values, err := ix.loadColumns(r)
	if err != nil {
		return err
	}
	where, err := fieldsIn(r, v.declared())
	if err != nil {
		return err
	}
	n := r.Count(limitMost)
	if n > ix.settings.Limit {
		return fmt.Errorf("the snapshot has state of %d keys, and the limit is %d: raise it", n, ix.settings.Limit)
	}
	ix.reserve(min(n, slotsAtOnce))
	for i := 0; i < n && r.Err() == nil; i++ {
		var key ids
		for c := range ix.columns {
			if place := r.Count(len(values[c])); place == 0 {
				key[c] = idNull
			} else {
				key[c] = values[c][place-1]
			}
		}
		received := flow.Micros(r.Int())
		if r.Err() == nil && ix.slot(key) != none {
			r.Fail(fmt.Errorf("key %d is there twice", i))
		}
		if r.Err() != nil {
			break
		}
		slot := ix.insert(key, received)
		v.room(slot)
		for _, field := range where {
			v.load(r, field, slot)
		}
	}
	return r.Close()
}

// loadColumns reads the columns of the key, and gives the ids of each one's values.
func (ix *index) loadColumns(r *snapshot.Reader) ([][]uint32, error) {
	var key []string
	var all [][]uint32
	for i := range r.Count(fieldsMax) {
		column, kind := r.String(), Kind(r.String())
		key = append(key, column)
		var values []uint32
		for n := r.Count(limitMost); n > 0 && r.Err() == nil; n-- {
			value := r.String()
			if kind != Text && len(value) != 8 {
				r.Fail(fmt.Errorf("a value of column %q has %d bytes; want 8 of %q", column, len(value), kind))
			}
			if i < len(ix.columns) && r.Err() == nil {
				values = append(values, ix.columns[i].intern(value))
			}
		}
		if i < len(ix.columns) {
			ix.columns[i].kind = kind
		}
		all = append(all, values)
	}
	if r.Err() != nil {
		return nil, r.Close()
	}
	if !slices.Equal(key, ix.settings.Key) {
		return nil, fmt.Errorf("state is kept by %s, and the snapshot by %s: a key cannot be changed", strings.Join(ix.settings.Key, ", "), strings.Join(key, ", "))
	}
	return all, nil
}

// fieldsIn reads the fields of a snapshot, and gives their places among those declared.
func fieldsIn(r *snapshot.Reader, declared []Field) ([]int, error) {
	var were []Field
	for range r.Count(fieldsMax) {
		were = append(were, Field{r.String(), Kind(r.String()), r.Bool()})
	}
	if r.Err() != nil {
		return nil, r.Close()
	}
	return places(were, declared)
}

// places gives for each field that was its place among those declared now. A field more than there was is no error.
func places(were, declared []Field) ([]int, error) {
	where := make([]int, len(were))
	for i, f := range were {
		where[i] = slices.IndexFunc(declared, func(d Field) bool { return d.Name == f.Name })
		if where[i] < 0 {
			return nil, fmt.Errorf("field %q of the state that was kept (%v) is not declared any more: declare it again, or begin anew without the state", f.Name, f)
		}
		if d := declared[where[i]]; d != f {
			return nil, fmt.Errorf("field %q is declared as %v, and the state was kept as %v: give the new one another name, or begin anew without the state", f.Name, d, f)
		}
	}
	return where, nil
}
