package columns

import (
	"fmt"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/bitutil"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// Ref is a row of one of several arrays, or records, of one type. A Chunk below 0 is no row: a null.
type Ref struct{ Chunk, Row int32 }

// NoRow is the Ref of a null.
var NoRow = Ref{Chunk: -1}

// CanGather says which types [Gather] does not know.
func CanGather(t arrow.DataType) error {
	switch t := t.(type) {
	case *arrow.DictionaryType:
		if !arrow.TypeEqual(t, flow.KeyType) {
			return fmt.Errorf("type %s; of dictionaries only %s can be kept", t, flow.KeyType)
		}
		return nil
	case *arrow.ListType, *arrow.MapType, *arrow.StructType:
		for _, f := range t.(arrow.NestedType).Fields() {
			if err := CanGather(f.Type); err != nil {
				return err
			}
		}
		return nil
	case *arrow.StringType, *arrow.BinaryType, *arrow.BooleanType, *arrow.NullType:
		return nil
	}
	if isFixed(t) {
		return nil
	}
	return fmt.Errorf("type %s cannot be kept", t)
}

func isFixed(t arrow.DataType) bool {
	f, ok := t.(arrow.FixedWidthDataType)
	_, nested := t.(arrow.NestedType)
	_, extension := t.(arrow.ExtensionType)
	return ok && !nested && !extension && f.BitWidth() > 0 && f.BitWidth()%8 == 0
}

// Gather copies rows of several arrays of type t (see [CanGather]) to one array, in the order of refs. The same rows give
// the same bytes, wherever they stood: keys get a dictionary of their own, in the order of their rows. The caller
// releases the array.
func Gather(mem memory.Allocator, t arrow.DataType, arrays []arrow.Array, refs []Ref) arrow.Array {
	g := gathering{mem, arrays, refs}
	switch t := t.(type) {
	case *arrow.DictionaryType:
		return g.keys()
	case *arrow.NullType:
		return array.NewNull(len(refs))
	case *arrow.BooleanType:
		return g.made(t, []*memory.Buffer{g.bools()})
	case *arrow.StringType, *arrow.BinaryType:
		offsets, values := g.texts()
		return g.made(t, []*memory.Buffer{offsets, values})
	case *arrow.ListType:
		offsets, child := g.lists(t.Elem())
		return g.made(t, []*memory.Buffer{offsets}, child)
	case *arrow.MapType:
		offsets, child := g.lists(t.Elem())
		return g.made(t, []*memory.Buffer{offsets}, child)
	case *arrow.StructType:
		var fields []arrow.Array
		for i, f := range t.Fields() {
			of := make([]arrow.Array, len(arrays))
			for k, a := range arrays {
				of[k] = a.(*array.Struct).Field(i)
			}
			fields = append(fields, Gather(mem, f.Type, of, refs))
		}
		return g.made(t, nil, fields...)
	}
	return g.made(t, []*memory.Buffer{g.fixed(t.(arrow.FixedWidthDataType).BitWidth() / 8)})
}

type gathering struct {
	mem    memory.Allocator
	arrays []arrow.Array
	refs   []Ref
}

func (g gathering) isNull(r Ref) bool {
	return r.Chunk < 0 || g.arrays[r.Chunk].IsNull(int(r.Row))
}

// made joins buffers and children, which it takes over, to an array, with the bits that say what is null.
func (g gathering) made(t arrow.DataType, buffers []*memory.Buffer, children ...arrow.Array) arrow.Array {
	valid, nulls := g.validity()
	buffers = append([]*memory.Buffer{valid}, buffers...)
	defer release(buffers...)
	var of []arrow.ArrayData
	for _, c := range children {
		of = append(of, c.Data())
		defer c.Release()
	}
	d := array.NewData(t, len(g.refs), buffers, of, nulls, 0)
	defer d.Release()
	return array.MakeFromData(d)
}

func (g gathering) validity() (*memory.Buffer, int) {
	nulls := 0
	for _, r := range g.refs {
		if g.isNull(r) {
			nulls++
		}
	}
	if nulls == 0 {
		return nil, 0
	}
	b := g.zeroed(int(bitutil.BytesForBits(int64(len(g.refs)))))
	for i, r := range g.refs {
		if !g.isNull(r) {
			bitutil.SetBit(b.Bytes(), i)
		}
	}
	return b, nulls
}

func (g gathering) zeroed(size int) *memory.Buffer {
	b := memory.NewResizableBuffer(g.mem)
	b.Resize(size)
	memory.Set(b.Bytes(), 0)
	return b
}

func (g gathering) fixed(width int) *memory.Buffer {
	b := g.zeroed(len(g.refs) * width)
	to := b.Bytes()
	from := make([][]byte, len(g.arrays))
	for i, a := range g.arrays {
		if a.Len() > 0 {
			from[i] = a.Data().Buffers()[1].Bytes()[a.Data().Offset()*width:]
		}
	}
	if width == 8 {
		words, dst := make([][]uint64, len(from)), arrow.Uint64Traits.CastFromBytes(to)
		for i := range from {
			words[i] = arrow.Uint64Traits.CastFromBytes(from[i])
		}
		for i, r := range g.refs {
			if !g.isNull(r) {
				dst[i] = words[r.Chunk][r.Row]
			}
		}
		return b
	}
	for i, r := range g.refs {
		if !g.isNull(r) {
			copy(to[i*width:(i+1)*width], from[r.Chunk][int(r.Row)*width:])
		}
	}
	return b
}

func (g gathering) bools() *memory.Buffer {
	b := g.zeroed(int(bitutil.BytesForBits(int64(len(g.refs)))))
	for i, r := range g.refs {
		if !g.isNull(r) && g.arrays[r.Chunk].(*array.Boolean).Value(int(r.Row)) {
			bitutil.SetBit(b.Bytes(), i)
		}
	}
	return b
}

func (g gathering) keys() arrow.Array {
	var k Keys
	k.Grow(len(g.refs))
	const unseen = Null - 1
	numbers := make([][]int32, len(g.arrays)) // by chunk and place in its dictionary: the key here
	for _, r := range g.refs {
		if g.isNull(r) {
			k.Append(Null)
			continue
		}
		d := g.arrays[r.Chunk].(*array.Dictionary)
		values := d.Dictionary().(*array.String)
		if numbers[r.Chunk] == nil {
			numbers[r.Chunk] = make([]int32, values.Len())
			for i := range numbers[r.Chunk] {
				numbers[r.Chunk][i] = unseen
			}
		}
		at := &numbers[r.Chunk][d.GetValueIndex(int(r.Row))]
		if *at == unseen {
			*at = k.Key(values.Value(d.GetValueIndex(int(r.Row))))
		}
		k.Append(*at)
	}
	return k.Column(g.mem)
}

// texts gives offsets and bytes of strings.
func (g gathering) texts() (offsets, values *memory.Buffer) {
	offsets = g.zeroed((len(g.refs) + 1) * arrow.Int32SizeBytes)
	at := arrow.Int32Traits.CastFromBytes(offsets.Bytes())
	size := 0
	for i, r := range g.refs {
		if !g.isNull(r) {
			size += g.arrays[r.Chunk].(array.BinaryLike).ValueLen(int(r.Row))
		}
		at[i+1] = int32(size)
	}
	values = g.zeroed(size)
	for i, r := range g.refs {
		if at[i+1] > at[i] {
			a := g.arrays[r.Chunk].(array.BinaryLike)
			from := a.ValueOffset64(int(r.Row)) - a.ValueOffset64(0)
			copy(values.Bytes()[at[i]:at[i+1]], a.ValueBytes()[from:])
		}
	}
	return offsets, values
}

// lists gives offsets and the items of lists, or of maps.
func (g gathering) lists(elem arrow.DataType) (offsets *memory.Buffer, items arrow.Array) {
	offsets = g.zeroed((len(g.refs) + 1) * arrow.Int32SizeBytes)
	at := arrow.Int32Traits.CastFromBytes(offsets.Bytes())
	of := make([]arrow.Array, len(g.arrays))
	for i, a := range g.arrays {
		of[i] = a.(array.ListLike).ListValues()
	}
	var refs []Ref
	for i, r := range g.refs {
		if !g.isNull(r) {
			from, to := g.arrays[r.Chunk].(array.ListLike).ValueOffsets(int(r.Row))
			for k := from; k < to; k++ {
				refs = append(refs, Ref{r.Chunk, int32(k)})
			}
		}
		at[i+1] = int32(len(refs))
	}
	return offsets, Gather(g.mem, elem, of, refs)
}

// RowSizes says how many bytes each row of a record takes, about, wherever it is kept: what its texts and lists take is
// counted row by row.
func RowSizes(rec arrow.Record) []int64 {
	sizes := make([]int64, rec.NumRows())
	for _, c := range rec.Columns() {
		add := sizeOf(c)
		for i := range sizes {
			sizes[i] += add(i)
		}
	}
	return sizes
}

func sizeOf(a arrow.Array) func(row int) int64 {
	switch a := a.(type) {
	case array.BinaryLike:
		return func(row int) int64 { return 4 + int64(a.ValueLen(row)) }
	case *array.Dictionary:
		of := sizeOf(a.Dictionary())
		return func(row int) int64 {
			if a.IsNull(row) {
				return 4
			}
			return of(a.GetValueIndex(row))
		}
	case array.ListLike:
		of := sizeOf(a.ListValues())
		return func(row int) (size int64) {
			from, to := a.ValueOffsets(row)
			for i := from; i < to; i++ {
				size += of(int(i))
			}
			return size + 4
		}
	case *array.Struct:
		var of []func(int) int64
		for i := range a.NumField() {
			of = append(of, sizeOf(a.Field(i)))
		}
		return func(row int) (size int64) {
			for _, f := range of {
				size += f(row)
			}
			return size
		}
	}
	if f, ok := a.DataType().(arrow.FixedWidthDataType); ok {
		width := int64(f.BitWidth()+7) / 8
		return func(int) int64 { return width }
	}
	return func(int) int64 { return 1 }
}
