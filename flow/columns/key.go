package columns

import (
	"encoding/binary"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow"
)

// Key reads what some columns of a row hold as one sequence of bytes: rows whose columns are equal give the same bytes, and no
// others. Whole numbers of any width, and strings in any encoding, are equal where they are the same. It borrows the record.
type Key struct {
	arrays  []arrow.Array
	columns []func(b []byte, row int) []byte
}

// KeyOf finds the columns of a key. A missing column, or one of a type that is no key (floats are none), is an [flow.ErrBad].
func KeyOf(rec arrow.Record, names []string) (Key, error) {
	var k Key
	for _, name := range names {
		at := rec.Schema().FieldIndices(name)
		if len(at) == 0 {
			return k, flow.Badf("no column %q", name)
		}
		column := keyColumn(rec.Column(at[0]))
		if column == nil {
			return k, flow.Badf("column %q is a %s; keys are strings, whole numbers, booleans or instants", name, rec.Column(at[0]).DataType())
		}
		k.columns, k.arrays = append(k.columns, column), append(k.arrays, rec.Column(at[0]))
	}
	return k, nil
}

// Append adds the key of a row to b.
func (k Key) Append(b []byte, row int) []byte {
	for _, column := range k.columns {
		b = column(b, row)
	}
	return b
}

// Partition says which of n partitions holds the rows with a row's key. Of one column of strings it is [flow.PartitionOf], by
// which gateways part homes. It must never change: rows of one key would stand in two partitions of a stream.
func (k Key) Partition(row, n int) int32 {
	if len(k.arrays) == 1 {
		switch a := k.arrays[0].(type) {
		case *array.String:
			if !a.IsNull(row) {
				return flow.PartitionOf(a.Value(row), n)
			}
		case *array.Dictionary:
			if values, ok := a.Dictionary().(*array.String); ok && !a.IsNull(row) {
				return flow.PartitionOf(values.Value(a.GetValueIndex(row)), n)
			}
		}
	}
	var b [64]byte
	return flow.PartitionOf(string(k.Append(b[:0], row)), n)
}

// HasNull says whether one of the columns of a row is null: in joins, such a row is equal to no other.
func (k Key) HasNull(row int) bool {
	for _, a := range k.arrays {
		if a.IsNull(row) {
			return true
		}
	}
	return false
}

// What a value is, before its bytes.
const (
	keyNull = iota
	keyText
	keyNumber
)

func keyColumn(a arrow.Array) func(b []byte, row int) []byte {
	switch a := a.(type) {
	case *array.Dictionary:
		if values, ok := a.Dictionary().(*array.String); ok {
			return func(b []byte, row int) []byte {
				if a.IsNull(row) {
					return append(b, keyNull)
				}
				return appendText(b, values.Value(a.GetValueIndex(row)))
			}
		}
	case *array.String:
		return func(b []byte, row int) []byte {
			if a.IsNull(row) {
				return append(b, keyNull)
			}
			return appendText(b, a.Value(row))
		}
	case *array.Int64:
		return number(a, func(row int) int64 { return a.Value(row) })
	case *array.Int32:
		return number(a, func(row int) int64 { return int64(a.Value(row)) })
	case *array.Int16:
		return number(a, func(row int) int64 { return int64(a.Value(row)) })
	case *array.Int8:
		return number(a, func(row int) int64 { return int64(a.Value(row)) })
	case *array.Uint32:
		return number(a, func(row int) int64 { return int64(a.Value(row)) })
	case *array.Uint16:
		return number(a, func(row int) int64 { return int64(a.Value(row)) })
	case *array.Uint8:
		return number(a, func(row int) int64 { return int64(a.Value(row)) })
	case *array.Timestamp:
		return number(a, func(row int) int64 { return int64(a.Value(row)) })
	case *array.Boolean:
		return number(a, func(row int) int64 {
			if a.Value(row) {
				return 1
			}
			return 0
		})
	}
	return nil
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(append(b, keyText), uint64(len(s)))
	return append(b, s...)
}

func number(a arrow.Array, value func(row int) int64) func(b []byte, row int) []byte {
	return func(b []byte, row int) []byte {
		if a.IsNull(row) {
			return append(b, keyNull)
		}
		return binary.AppendVarint(append(b, keyNumber), value(row))
	}
}
