package columns

import (
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// Null is the key of a row that has none.
const Null = int32(-1)

// Keys builds a column of [flow.KeyType]. A string is hashed once, by Key; rows are then told by number.
// The zero value is ready.
type Keys struct {
	index  map[string]int32
	values []string
	rows   []int32
}

// Key is the number of s in this column's dictionary. It keeps s.
func (k *Keys) Key(s string) int32 {
	if n, ok := k.index[s]; ok {
		return n
	}
	if k.index == nil {
		k.index = make(map[string]int32)
	}
	n := int32(len(k.values))
	k.index[s] = n
	k.values = append(k.values, s)
	return n
}

// Grow makes room for n more rows.
func (k *Keys) Grow(n int) {
	if cap(k.rows)-len(k.rows) < n {
		k.rows = append(make([]int32, 0, len(k.rows)+n), k.rows...)
	}
}

// Append adds a row that holds key, or Null.
func (k *Keys) Append(key int32) { k.rows = append(k.rows, key) }

// AppendString adds a row that holds s.
func (k *Keys) AppendString(s string) { k.Append(k.Key(s)) }

// Len is the number of rows.
func (k *Keys) Len() int { return len(k.rows) }

// Column gives the rows as an array and begins anew. The caller releases it.
func (k *Keys) Column(mem memory.Allocator) arrow.Array {
	values := array.NewStringBuilder(mem)
	defer values.Release()
	values.AppendValues(k.values, nil)
	index := array.NewInt32Builder(mem)
	defer index.Release()
	index.Reserve(len(k.rows))
	for _, r := range k.rows {
		if r == Null {
			index.AppendNull()
		} else {
			index.UnsafeAppend(r)
		}
	}
	v, i := values.NewArray(), index.NewArray()
	defer v.Release()
	defer i.Release()
	*k = Keys{rows: k.rows[:0]}
	return array.NewDictionaryArray(flow.KeyType, i, v)
}

// Float64s makes a column of values; where valid is given, a false is a null. The caller releases it.
func Float64s(mem memory.Allocator, values []float64, valid []bool) arrow.Array {
	b := array.NewFloat64Builder(mem)
	defer b.Release()
	b.AppendValues(values, valid)
	return b.NewArray()
}

// Int64s makes a column of values. The caller releases it.
func Int64s(mem memory.Allocator, values []int64) arrow.Array {
	b := array.NewInt64Builder(mem)
	defer b.Release()
	b.AppendValues(values, nil)
	return b.NewArray()
}

// Instants makes a column of [flow.InstantType]. The caller releases it.
func Instants(mem memory.Allocator, values []arrow.Timestamp) arrow.Array {
	b := array.NewTimestampBuilder(mem, flow.InstantType)
	defer b.Release()
	b.AppendValues(values, nil)
	return b.NewArray()
}

// Record joins columns, which it takes over, to a record of schema. The caller releases it.
func Record(schema *arrow.Schema, cols ...arrow.Array) arrow.Record {
	rows := int64(0)
	if len(cols) > 0 {
		rows = int64(cols[0].Len())
	}
	rec := array.NewRecord(schema, cols, rows)
	for _, c := range cols {
		c.Release()
	}
	return rec
}

// Replace gives rec with the columns named in with instead of its own; their types must be the same. It takes
// the new columns over. The caller releases the record.
func Replace(rec arrow.Record, with map[string]arrow.Array) arrow.Record {
	cols := make([]arrow.Array, rec.NumCols())
	for i := range cols {
		if c, ok := with[rec.ColumnName(i)]; ok {
			cols[i] = c
		} else {
			cols[i] = rec.Column(i)
		}
	}
	out := array.NewRecord(rec.Schema(), cols, rec.NumRows())
	for _, c := range with {
		c.Release()
	}
	return out
}

// As gives a, retained, or, where a key column is wanted and a is strings in another encoding, the same strings as
// [flow.KeyType]. The caller releases it.
func As(mem memory.Allocator, a arrow.Array, want arrow.DataType) arrow.Array {
	if arrow.TypeEqual(a.DataType(), want) || !arrow.TypeEqual(want, flow.KeyType) {
		a.Retain()
		return a
	}
	var k Keys
	k.Grow(a.Len())
	for i := range a.Len() {
		if a.IsNull(i) {
			k.Append(Null)
			continue
		}
		switch a := a.(type) {
		case *array.Dictionary:
			k.AppendString(a.Dictionary().ValueStr(a.GetValueIndex(i)))
		default:
			k.AppendString(a.ValueStr(i))
		}
	}
	return k.Column(mem)
}
