package parquet

import (
	"fmt"
	"io"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	pq "github.com/parquet-go/parquet-go"
)

// target gathers rows into records of a layout's Arrow schema.
type target struct {
	builder *array.RecordBuilder
	// copyColumn moves n rows from the cursors of a column's leaves to its builder.
	copyColumn []func(leaves []*cursor, n int64) error
}

func newTarget(mem memory.Allocator, l *layout) *target {
	t := &target{builder: array.NewRecordBuilder(mem, l.arrow)}
	for i, c := range l.columns {
		t.copyColumn = append(t.copyColumn, c.copier(t.builder.Field(i)))
	}
	return t
}

func (t *target) record() arrow.Record {
	rec := t.builder.NewRecord()
	for _, b := range t.builder.Fields() {
		if d, ok := b.(*array.BinaryDictionaryBuilder); ok {
			d.ResetFull() // a dictionary of its own for each record, as they were written
		}
	}
	return rec
}

func (t *target) release() { t.builder.Release() }

func (c column) copier(b array.Builder) func(leaves []*cursor, n int64) error {
	switch b := b.(type) {
	case *array.MapBuilder:
		return c.copyRepeated(b, func() { b.Append(true) }, b.KeyBuilder(), b.ItemBuilder())
	case *array.ListBuilder:
		return c.copyRepeated(b, func() { b.Append(true) }, b.ValueBuilder())
	}
	add := adder(b)
	return func(leaves []*cursor, n int64) error {
		for range n {
			v, err := leaves[0].peek()
			if err != nil {
				return noRow(err)
			}
			if v.IsNull() {
				b.AppendNull()
			} else if err := add(v); err != nil {
				return err
			}
			leaves[0].take()
		}
		return nil
	}
}

// noRow: a column that ends before its file does is damaged, not at its end.
func noRow(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// copyRepeated is the inverse of repeated, which explains the levels.
func (c column) copyRepeated(b array.Builder, begin func(), items ...array.Builder) func(leaves []*cursor, n int64) error {
	empty := level(c.nullable)
	adders := make([]func(*pq.Value) error, len(items))
	for i := range items {
		adders[i] = adder(items[i])
	}
	entry := func(k int, v *pq.Value) error {
		if v.IsNull() {
			items[k].AppendNull()
			return nil
		}
		return adders[k](v)
	}
	return func(leaves []*cursor, n int64) error {
		for range n {
			head, err := leaves[0].peek()
			if err != nil {
				return noRow(err)
			}
			definition := head.DefinitionLevel()
			if definition < empty {
				b.AppendNull()
			} else {
				begin()
			}
			for k := range items {
				if err := copyEntries(leaves[k], definition > empty, func(v *pq.Value) error { return entry(k, v) }); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// copyEntries takes the values of one row: the first, and those that follow with a repetition level.
func copyEntries(leaf *cursor, has bool, add func(*pq.Value) error) error {
	for first := true; ; first = false {
		v, err := leaf.peek()
		if err == io.EOF && !first {
			return nil
		}
		if err != nil {
			return noRow(err)
		}
		if !first && v.RepetitionLevel() == 0 {
			return nil
		}
		if has {
			if err := add(v); err != nil {
				return err
			}
		}
		leaf.take()
	}
}

// adder gives what appends a value that is not null. Builders copy what they are given.
func adder(b array.Builder) func(v *pq.Value) error {
	plain := func(add func(v *pq.Value)) func(v *pq.Value) error {
		return func(v *pq.Value) error { add(v); return nil }
	}
	switch b := b.(type) {
	case *array.BinaryDictionaryBuilder:
		return func(v *pq.Value) error { return b.Append(v.ByteArray()) }
	case *array.StringBuilder:
		return plain(func(v *pq.Value) { b.BinaryBuilder.Append(v.ByteArray()) })
	case *array.LargeStringBuilder:
		return plain(func(v *pq.Value) { b.BinaryBuilder.Append(v.ByteArray()) })
	case *array.BinaryBuilder:
		return plain(func(v *pq.Value) { b.Append(v.ByteArray()) })
	case *array.FixedSizeBinaryBuilder:
		return plain(func(v *pq.Value) { b.Append(v.ByteArray()) })
	case *array.TimestampBuilder:
		return plain(func(v *pq.Value) { b.Append(arrow.Timestamp(v.Int64())) })
	case *array.BooleanBuilder:
		return plain(func(v *pq.Value) { b.Append(v.Boolean()) })
	case *array.Float64Builder:
		return plain(func(v *pq.Value) { b.Append(v.Double()) })
	case *array.Float32Builder:
		return plain(func(v *pq.Value) { b.Append(v.Float()) })
	case *array.Date32Builder:
		return plain(func(v *pq.Value) { b.Append(arrow.Date32(v.Int32())) })
	case *array.Int64Builder:
		return plain(func(v *pq.Value) { b.Append(v.Int64()) })
	case *array.Int32Builder:
		return plain(func(v *pq.Value) { b.Append(v.Int32()) })
	case *array.Int16Builder:
		return plain(func(v *pq.Value) { b.Append(int16(v.Int32())) })
	case *array.Int8Builder:
		return plain(func(v *pq.Value) { b.Append(int8(v.Int32())) })
	case *array.Uint64Builder:
		return plain(func(v *pq.Value) { b.Append(v.Uint64()) })
	case *array.Uint32Builder:
		return plain(func(v *pq.Value) { b.Append(v.Uint32()) })
	case *array.Uint16Builder:
		return plain(func(v *pq.Value) { b.Append(uint16(v.Uint32())) })
	case *array.Uint8Builder:
		return plain(func(v *pq.Value) { b.Append(uint8(v.Uint32())) })
	}
	// newLayout has refused every other type.
	panic(fmt.Sprintf("parquet: a column of %s passed the check of its schema", b.Type()))
}
