// Package columns has the few moves on Arrow columns that stages make and that Arrow's Go library has only in its
// compute package: picking rows, replacing columns, building columns of keys.
package columns

import (
	"context"
	"fmt"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/bitutil"
	"github.com/apache/arrow/go/v15/arrow/compute/exec"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// Allocator is where a stage's outputs are allocated: the allocator that ctx carries (exec.WithAllocator), or
// Arrow's default one.
func Allocator(ctx context.Context) memory.Allocator { return exec.GetAllocator(ctx) }

// Take gives the rows of rec whose places are listed, in that order. All of them is rec itself, retained.
// Dictionaries are carried over whole. The caller releases the record.
func Take(mem memory.Allocator, rec arrow.Record, rows []int) (arrow.Record, error) {
	if isAll(rows, int(rec.NumRows())) {
		rec.Retain()
		return rec, nil
	}
	cols := make([]arrow.Array, 0, rec.NumCols())
	defer func() {
		for _, c := range cols {
			c.Release()
		}
	}()
	for i, c := range rec.Columns() {
		t, err := take(mem, c, rows)
		if err != nil {
			return nil, fmt.Errorf("pick rows of column %q: %w", rec.ColumnName(i), err)
		}
		cols = append(cols, t)
	}
	return array.NewRecord(rec.Schema(), cols, int64(len(rows))), nil
}

func isAll(rows []int, n int) bool {
	if len(rows) != n {
		return false
	}
	for i, r := range rows {
		if i != r {
			return false
		}
	}
	return true
}

// Except gives the n rows that are not in skip, which is ascending.
func Except(n int, skip []int) []int {
	keep := make([]int, 0, n-len(skip))
	for i := range n {
		if len(skip) > 0 && skip[0] == i {
			skip = skip[1:]
			continue
		}
		keep = append(keep, i)
	}
	return keep
}

// Without gives rec without the rows listed (ascending). The caller releases it.
func Without(mem memory.Allocator, rec arrow.Record, rows []int) (arrow.Record, error) {
	if len(rows) == 0 {
		rec.Retain()
		return rec, nil
	}
	return Take(mem, rec, Except(int(rec.NumRows()), rows))
}

func take(mem memory.Allocator, a arrow.Array, rows []int) (arrow.Array, error) {
	switch a := a.(type) {
	case *array.Dictionary:
		width := a.DataType().(*arrow.DictionaryType).IndexType.(arrow.FixedWidthDataType).Bytes()
		valid, nulls := takeValidity(mem, a, rows)
		values := takeFixed(mem, a.Data(), width, rows)
		defer release(valid, values)
		d := array.NewDataWithDictionary(a.DataType(), len(rows), []*memory.Buffer{valid, values}, nulls, 0, a.Dictionary().Data().(*array.Data))
		defer d.Release()
		return array.MakeFromData(d), nil
	case *array.String:
		return takeStrings(mem, a, rows), nil
	}
	if t, ok := a.DataType().(arrow.FixedWidthDataType); ok && len(a.Data().Children()) == 0 && t.BitWidth()%8 == 0 && t.BitWidth() > 0 {
		valid, nulls := takeValidity(mem, a, rows)
		values := takeFixed(mem, a.Data(), t.BitWidth()/8, rows)
		defer release(valid, values)
		d := array.NewData(a.DataType(), len(rows), []*memory.Buffer{valid, values}, nil, nulls, 0)
		defer d.Release()
		return array.MakeFromData(d), nil
	}
	return takeRuns(mem, a, rows)
}

func release(buffers ...*memory.Buffer) {
	for _, b := range buffers {
		if b != nil {
			b.Release()
		}
	}
}

func takeValidity(mem memory.Allocator, a arrow.Array, rows []int) (*memory.Buffer, int) {
	if a.NullN() == 0 {
		return nil, 0
	}
	b := memory.NewResizableBuffer(mem)
	b.Resize(int(bitutil.BytesForBits(int64(len(rows)))))
	memory.Set(b.Bytes(), 0)
	nulls := 0
	for i, r := range rows {
		if a.IsNull(r) {
			nulls++
		} else {
			bitutil.SetBit(b.Bytes(), i)
		}
	}
	return b, nulls
}

func takeFixed(mem memory.Allocator, d arrow.ArrayData, width int, rows []int) *memory.Buffer {
	from := d.Buffers()[1].Bytes()[d.Offset()*width:]
	b := memory.NewResizableBuffer(mem)
	b.Resize(len(rows) * width)
	to := b.Bytes()
	switch width {
	case 8:
		src, dst := arrow.Uint64Traits.CastFromBytes(from), arrow.Uint64Traits.CastFromBytes(to)
		for i, r := range rows {
			dst[i] = src[r]
		}
	case 4:
		src, dst := arrow.Uint32Traits.CastFromBytes(from), arrow.Uint32Traits.CastFromBytes(to)
		for i, r := range rows {
			dst[i] = src[r]
		}
	default:
		for i, r := range rows {
			copy(to[i*width:(i+1)*width], from[r*width:])
		}
	}
	return b
}

func takeStrings(mem memory.Allocator, a *array.String, rows []int) arrow.Array {
	b := array.NewStringBuilder(mem)
	defer b.Release()
	b.Reserve(len(rows))
	for _, r := range rows {
		if a.IsNull(r) {
			b.AppendNull()
		} else {
			b.Append(a.Value(r))
		}
	}
	return b.NewArray()
}

// takeRuns serves every other type (maps, lists, booleans): it joins the stretches of rows that follow each other.
func takeRuns(mem memory.Allocator, a arrow.Array, rows []int) (arrow.Array, error) {
	var runs []arrow.Array
	defer func() {
		for _, r := range runs {
			r.Release()
		}
	}()
	for from := 0; from < len(rows); {
		to := from + 1
		for to < len(rows) && rows[to] == rows[to-1]+1 {
			to++
		}
		runs = append(runs, array.NewSlice(a, int64(rows[from]), int64(rows[to-1]+1)))
		from = to
	}
	if len(runs) == 0 {
		return array.NewSlice(a, 0, 0), nil
	}
	return array.Concatenate(runs, mem)
}
