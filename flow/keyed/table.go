package keyed

import (
	"fmt"
	"io"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/snapshot"
)

// Table keeps an S for each key of one partition. S is a struct whose fields are tagged `state:"name"`: int64, float64, bool,
// string, [flow.Micros], or pointers to these. It is used by one goroutine at a time.
type Table[S any] struct {
	index
	initial S
	fields  []structField
	texts   []structField // those of fields that are texts
	states  []S           // by slot
	forgot  int64
}

// New gives an empty table. A key that is not in it has the initial value, and so has a field that a snapshot does not know.
func New[S any](initial S, s Settings) (*Table[S], error) {
	ix, err := newIndex(s)
	if err != nil {
		return nil, err
	}
	fields, err := fieldsOf[S]()
	if err != nil {
		return nil, err
	}
	t := &Table[S]{index: ix, initial: initial, fields: fields}
	for _, f := range fields {
		if f.Kind == Text {
			t.texts = append(t.texts, f)
		}
	}
	return t, nil
}

// Begin makes ready for the rows of a batch, which it borrows until End. A column of the key that is missing, or of a type that
// cannot be one, is an [flow.ErrBad].
func (t *Table[S]) Begin(rec arrow.Record) error { return t.begin(rec) }

// End lets go of the batch.
func (t *Table[S]) End() { t.end() }

// Get gives the state of a row's key, or the initial value and false. Rows are to be asked for in their order: time passes with them.
func (t *Table[S]) Get(row int) (S, bool) {
	if slot := t.at(row); slot != none {
		return t.states[slot], true
	}
	return t.initial, false
}

// Put keeps s for a row's key; its texts may be borrowed ones. The error of a key too many, and of a text that is too long, is
// an [flow.ErrBad].
func (t *Table[S]) Put(row int, s S) error {
	if len(t.texts) > 0 {
		own := s
		for i := range t.texts {
			if err := t.texts[i].own(&own); err != nil {
				return err
			}
		}
		s = own
	}
	slot := t.at(row)
	if slot == none {
		var err error
		if slot, err = t.add(row); err != nil {
			return err
		}
		t.room(slot)
	}
	t.states[slot] = s
	return nil
}

// Delete forgets a row's key.
func (t *Table[S]) Delete(row int) {
	if slot := t.at(row); slot != none {
		t.remove(slot)
		t.states[slot] = t.initial // what it held can be collected
	}
}

// Len is the number of keys.
func (t *Table[S]) Len() int { return t.len() }

// Expired is how many keys Advance forgot for their TTL.
func (t *Table[S]) Expired() int64 { return t.forgot }

// Advance makes room: it forgets the keys that no row received at the watermark or later can find any more.
func (t *Table[S]) Advance(watermark flow.Micros) {
	t.advance(watermark, func(slot int32) {
		t.states[slot] = t.initial
		t.forgot++
	})
}

// Snapshot writes all keys and their states.
func (t *Table[S]) Snapshot(w io.Writer) error { return t.index.save(w, stored[S]{t}) }

// Restore replaces everything by what Snapshot wrote. After an error the table is what it was.
func (t *Table[S]) Restore(r io.Reader) error {
	fresh, err := New(t.initial, t.settings)
	if err != nil {
		return err
	}
	if err := fresh.index.load(r, stored[S]{fresh}); err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	*t = *fresh
	return nil
}

func (t *Table[S]) declared() []Field {
	all := make([]Field, len(t.fields))
	for i, f := range t.fields {
		all[i] = f.Field
	}
	return all
}

func (t *Table[S]) room(slot int32) {
	if int(slot) == len(t.states) {
		t.states = append(t.states, t.initial)
	} else {
		t.states[slot] = t.initial
	}
}

// stored is the values of a table, for the form of snapshots.
type stored[S any] struct{ *Table[S] }

func (t stored[S]) save(w *snapshot.Writer, field int, slot int32) {
	t.fields[field].save(w, &t.states[slot])
}
func (t stored[S]) load(r *snapshot.Reader, field int, slot int32) {
	t.fields[field].load(r, &t.states[slot])
}
