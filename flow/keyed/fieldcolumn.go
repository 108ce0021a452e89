package keyed

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow/snapshot"
)

// fieldColumn is one field of all slots. Only the slices that its kind needs grow.
type fieldColumn struct {
	FieldDefault
	nulls  []bool
	ints   []int64
	floats []float64
	texts  []string
}

func (f *fieldColumn) value(slot int32) Value {
	if f.Nullable && f.nulls[slot] {
		return Value{Null: true}
	}
	switch f.Kind {
	case Float:
		return Value{Float: f.floats[slot]}
	case Text, Bytes:
		return Value{Text: f.texts[slot]}
	default:
		return Value{Int: f.ints[slot]}
	}
}

func (f *fieldColumn) set(slot int32, v Value) {
	if f.Nullable {
		f.nulls[slot] = v.Null
	}
	switch f.Kind {
	case Float:
		f.floats[slot] = v.Float
	case Text, Bytes:
		f.texts[slot] = v.Text
	default:
		f.ints[slot] = v.Int
	}
}

// room makes a slot hold the default.
func (f *fieldColumn) room(slot int32) {
	n := int(slot) + 1
	if f.Nullable && len(f.nulls) < n {
		f.nulls = append(f.nulls, false)
	}
	switch {
	case f.Kind == Float && len(f.floats) < n:
		f.floats = append(f.floats, 0)
	case (f.Kind == Text || f.Kind == Bytes) && len(f.texts) < n:
		f.texts = append(f.texts, "")
	case f.Kind != Float && f.Kind != Text && f.Kind != Bytes && len(f.ints) < n:
		f.ints = append(f.ints, 0)
	}
	f.set(slot, f.Default)
}

func (f *fieldColumn) append(b array.Builder, v Value) {
	if v.Null {
		b.AppendNull()
		return
	}
	switch b := b.(type) {
	case *array.Int64Builder:
		b.Append(v.Int)
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(v.Int))
	case *array.BooleanBuilder:
		b.Append(v.Int != 0)
	case *array.Float64Builder:
		b.Append(v.Float)
	case *array.StringBuilder:
		b.Append(v.Text)
	case *array.BinaryBuilder:
		b.AppendString(v.Text)
	}
}

// appendTo appends the value of an id, which a column of the key has.
func (c *column) appendTo(b array.Builder, id uint32) {
	if id == idNull {
		b.AppendNull()
		return
	}
	value := c.values[id]
	if b, ok := b.(*array.StringBuilder); ok {
		b.Append(value)
		return
	}
	whole := int64(binary.BigEndian.Uint64([]byte(value)))
	switch b := b.(type) {
	case *array.Int64Builder:
		b.Append(whole)
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(whole))
	case *array.BooleanBuilder:
		b.Append(whole != 0)
	}
}

// fits checks a column that is to become the field.
func (f *fieldColumn) fits(name string, a arrow.Array) error {
	if name != f.Name || !arrow.TypeEqual(a.DataType(), f.Kind.Type()) {
		return fmt.Errorf("field %q of the state, %v, came back as %q, %v", f.Name, f.Field, name, a.DataType())
	}
	if a.NullN() > 0 && !f.Nullable {
		return fmt.Errorf("field %q of the state is null, and is declared as %v", f.Name, f.Field)
	}
	if f.Kind != Text && f.Kind != Bytes {
		return nil
	}
	for row := range a.Len() {
		if n := len(valueAt(a, row).Text); n > textMax {
			return fmt.Errorf("field %q of the state would have %d bytes; at most %d", f.Name, n, textMax)
		}
	}
	return nil
}

func valueAt(a arrow.Array, row int) Value {
	if a.IsNull(row) {
		return Value{Null: true}
	}
	switch a := a.(type) {
	case *array.Int64:
		return Value{Int: a.Value(row)}
	case *array.Timestamp:
		return Value{Int: int64(a.Value(row))}
	case *array.Boolean:
		if a.Value(row) {
			return Value{Int: 1}
		}
	case *array.Float64:
		return Value{Float: a.Value(row)}
	case *array.String:
		return Value{Text: strings.Clone(a.Value(row))}
	case *array.Binary:
		return Value{Text: string(a.Value(row))}
	}
	return Value{}
}

// storedColumns is the values of Columns, for the form of snapshots.
type storedColumns struct{ *Columns }

func (c storedColumns) declared() []Field {
	all := make([]Field, len(c.fields))
	for i, f := range c.fields {
		all[i] = f.Field
	}
	return all
}

func (c storedColumns) room(slot int32) { c.Columns.room(slot) }

func (c *Columns) room(slot int32) {
	for i := range c.fields {
		c.fields[i].room(slot)
	}
	if int(slot) == len(c.entryOf) {
		c.entryOf = append(c.entryOf, none)
	}
}

func (c storedColumns) save(w *snapshot.Writer, field int, slot int32) {
	f := &c.fields[field]
	v := f.value(slot)
	if f.Nullable {
		w.Bool(!v.Null)
	}
	if v.Null {
		return
	}
	switch f.Kind {
	case Float:
		w.Float(v.Float)
	case Bool:
		w.Bool(v.Int != 0)
	case Text, Bytes:
		w.String(v.Text)
	default:
		w.Int(v.Int)
	}
}

func (c storedColumns) load(r *snapshot.Reader, field int, slot int32) {
	f := &c.fields[field]
	var v Value
	switch {
	case f.Nullable && !r.Bool():
		v.Null = true
	case f.Kind == Float:
		v.Float = r.Float()
	case f.Kind == Bool:
		if r.Bool() {
			v.Int = 1
		}
	case f.Kind == Text, f.Kind == Bytes:
		v.Text = r.String()
	default:
		v.Int = r.Int()
	}
	f.set(slot, v)
}
