package streams

import (
	"errors"
	"fmt"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/bitutil"
)

// nestingMax bounds how deep types may nest.
const nestingMax = 16

// checkType refuses types whose data checkArray could not vouch for.
func checkType(t arrow.DataType) error { return checkTypeAt(t, 0) }

func checkTypeAt(t arrow.DataType, depth int) error {
	if depth > nestingMax {
		return fmt.Errorf("type nests deeper than %d", nestingMax)
	}
	switch t := t.(type) {
	case *arrow.DictionaryType:
		if _, ok := t.ValueType.(arrow.NestedType); ok {
			return fmt.Errorf("type %v: dictionaries hold strings, bytes or numbers", t)
		}
		return checkTypeAt(t.ValueType, depth+1)
	case *arrow.ListType, *arrow.LargeListType, *arrow.FixedSizeListType, *arrow.StructType, *arrow.MapType:
		for _, f := range t.(arrow.NestedType).Fields() {
			if err := checkTypeAt(f.Type, depth+1); err != nil {
				return err
			}
		}
		return nil
	case *arrow.NullType, *arrow.BooleanType, *arrow.StringType, *arrow.BinaryType, *arrow.LargeStringType, *arrow.LargeBinaryType:
		return nil
	case arrow.ExtensionType:
		return fmt.Errorf("type %v does not travel on streams: use its storage type", t)
	case arrow.FixedWidthDataType:
		return nil
	}
	return fmt.Errorf("type %v does not travel on streams: use numbers, booleans, strings, bytes, times, dictionaries, lists, structs or maps", t)
}

// checkArray vouches for data that came from outside: every buffer is long enough for the rows, every offset and
// every dictionary index stays inside. Arrow trusts them; a wrong one would be a panic, or a wrong row, in a stage.
func checkArray(d arrow.ArrayData) error {
	n := d.Len()
	if n < 0 || d.Offset() != 0 {
		return fmt.Errorf("%d values at offset %d", n, d.Offset())
	}
	if err := checkNulls(d); err != nil {
		return err
	}
	switch t := d.DataType().(type) {
	case *arrow.NullType:
		return nil
	case *arrow.BooleanType:
		return need(d, 1, int(bitutil.BytesForBits(int64(n))))
	case *arrow.StringType, *arrow.BinaryType:
		return checkOffsets(d, arrow.Int32Traits.CastFromBytes, 4, bufferLen(d, 2))
	case *arrow.LargeStringType, *arrow.LargeBinaryType:
		return checkOffsets(d, arrow.Int64Traits.CastFromBytes, 8, bufferLen(d, 2))
	case *arrow.DictionaryType:
		return checkDictionary(d, t)
	case *arrow.ListType, *arrow.MapType:
		return checkChildren(d, func(c arrow.ArrayData) error {
			return checkOffsets(d, arrow.Int32Traits.CastFromBytes, 4, c.Len())
		})
	case *arrow.LargeListType:
		return checkChildren(d, func(c arrow.ArrayData) error {
			return checkOffsets(d, arrow.Int64Traits.CastFromBytes, 8, c.Len())
		})
	case *arrow.FixedSizeListType:
		return checkChildren(d, func(c arrow.ArrayData) error { return atLeast(c, int64(n)*int64(t.Len())) })
	case *arrow.StructType:
		return checkChildren(d, func(c arrow.ArrayData) error { return atLeast(c, int64(n)) })
	case arrow.FixedWidthDataType:
		return need(d, 1, n*t.Bytes())
	}
	return checkType(d.DataType())
}

func bufferLen(d arrow.ArrayData, i int) int {
	if bs := d.Buffers(); i < len(bs) && bs[i] != nil {
		return bs[i].Len()
	}
	return 0
}

func need(d arrow.ArrayData, i, bytes int) error {
	if got := bufferLen(d, i); got < bytes || bytes < 0 {
		return fmt.Errorf("%d values of %v in %d bytes", d.Len(), d.DataType(), got)
	}
	return nil
}

func atLeast(c arrow.ArrayData, n int64) error {
	if int64(c.Len()) < n {
		return fmt.Errorf("%d child values; want %d", c.Len(), n)
	}
	return nil
}

func checkNulls(d arrow.ArrayData) error {
	if d.DataType().ID() == arrow.NULL {
		return nil
	}
	if bufferLen(d, 0) == 0 {
		if d.NullN() > 0 {
			return fmt.Errorf("%d nulls without a bitmap", d.NullN())
		}
		return nil
	}
	if err := need(d, 0, int(bitutil.BytesForBits(int64(d.Len())))); err != nil {
		return err
	}
	if nulls := d.Len() - bitutil.CountSetBits(d.Buffers()[0].Bytes(), 0, d.Len()); d.NullN() >= 0 && nulls != d.NullN() {
		return fmt.Errorf("%d nulls in the bitmap; %d by the count", nulls, d.NullN())
	}
	return nil
}

// checkOffsets checks the offsets of strings and lists: rising, and inside of the limit values that they point into.
func checkOffsets[T int32 | int64](d arrow.ArrayData, cast func([]byte) []T, width, limit int) error {
	if d.Len() == 0 && bufferLen(d, 1) == 0 {
		return nil
	}
	if err := need(d, 1, (d.Len()+1)*width); err != nil {
		return err
	}
	offsets := cast(d.Buffers()[1].Bytes())[:d.Len()+1]
	last := T(0)
	for i, o := range offsets {
		if o < last {
			return fmt.Errorf("offset of value %d is %d, after %d", i, o, last)
		}
		last = o
	}
	if int64(last) > int64(limit) {
		return fmt.Errorf("offsets up to %d into %d", last, limit)
	}
	return nil
}

func checkChildren(d arrow.ArrayData, check func(arrow.ArrayData) error) error {
	for _, c := range d.Children() {
		if err := check(c); err != nil {
			return err
		}
		if err := checkArray(c); err != nil {
			return err
		}
	}
	return nil
}

func checkDictionary(d arrow.ArrayData, t *arrow.DictionaryType) error {
	width, ok := t.IndexType.(arrow.FixedWidthDataType)
	if !ok {
		return fmt.Errorf("dictionary indices are %v", t.IndexType)
	}
	if err := need(d, 1, d.Len()*width.Bytes()); err != nil {
		return err
	}
	dict := d.Dictionary()
	if data, ok := dict.(*array.Data); !ok || data == nil {
		return errors.New("dictionary is missing")
	}
	if err := checkArray(dict); err != nil {
		return fmt.Errorf("dictionary: %w", err)
	}
	if d.Len() == 0 {
		return nil
	}
	raw := d.Buffers()[1].Bytes()
	switch t.IndexType.ID() {
	case arrow.INT8:
		return checkIndices(d, arrow.Int8Traits.CastFromBytes(raw), dict.Len())
	case arrow.UINT8:
		return checkIndices(d, arrow.Uint8Traits.CastFromBytes(raw), dict.Len())
	case arrow.INT16:
		return checkIndices(d, arrow.Int16Traits.CastFromBytes(raw), dict.Len())
	case arrow.UINT16:
		return checkIndices(d, arrow.Uint16Traits.CastFromBytes(raw), dict.Len())
	case arrow.INT32:
		return checkIndices(d, arrow.Int32Traits.CastFromBytes(raw), dict.Len())
	case arrow.UINT32:
		return checkIndices(d, arrow.Uint32Traits.CastFromBytes(raw), dict.Len())
	case arrow.INT64:
		return checkIndices(d, arrow.Int64Traits.CastFromBytes(raw), dict.Len())
	case arrow.UINT64:
		return checkIndices(d, arrow.Uint64Traits.CastFromBytes(raw), dict.Len())
	}
	return fmt.Errorf("dictionary indices are %v", t.IndexType)
}

// checkIndices looks at every index; what a null's index is does not matter.
func checkIndices[T int8 | uint8 | int16 | uint16 | int32 | uint32 | int64 | uint64](d arrow.ArrayData, indices []T, limit int) error {
	indices = indices[:d.Len()]
	bad := -1
	for i, x := range indices {
		// A negative index becomes a huge one.
		if uint64(x) >= uint64(limit) {
			bad = i
			break
		}
	}
	if bad < 0 {
		return nil
	}
	if bufferLen(d, 0) > 0 {
		valid := d.Buffers()[0].Bytes()
		for bad < len(indices) && (uint64(indices[bad]) < uint64(limit) || !bitutil.BitIsSet(valid, bad)) {
			bad++
		}
		if bad == len(indices) {
			return nil
		}
	}
	return fmt.Errorf("index %d of value %d in a dictionary of %d", indices[bad], bad, limit)
}
