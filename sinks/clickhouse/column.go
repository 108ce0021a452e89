package clickhouse

import (
	"fmt"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/bitutil"
)

// chunk is the rows [from, to) of an Arrow array. A column of an insert is made of one chunk a record.
type chunk struct {
	a        arrow.Array
	from, to int
}

func (c chunk) rows() int { return c.to - c.from }

func rowsOf(chunks []chunk) int {
	n := 0
	for _, c := range chunks {
		n += c.rows()
	}
	return n
}

// filler makes the column of an insert from chunks, which must live until the insert has been sent.
type filler func(chunks []chunk) wireColumn

// wireColumn is what ch-go writes: a column, and its state, a prefix that some types have.
type wireColumn interface {
	proto.ColInput
	proto.StateEncoder
}

// fillerOf says how values of Arrow's type t (null where nullable) become values of the server's type, or why they cannot.
func fillerOf(t arrow.DataType, nullable bool, server string) (filler, error) {
	no := func() (filler, error) {
		null := ""
		if nullable {
			null = "nullable "
		}
		return nil, fmt.Errorf("a %s%s does not fit into %s", null, t, server)
	}
	if in, ok := inner(server, "LowCardinality"); ok {
		_, null := inner(in, "Nullable")
		if (in == "String" || in == "Nullable(String)") && stringLike(t) {
			return func(cs []chunk) wireColumn { return newLowCardinality(server, null, cs) }, nil
		}
		return no()
	}
	if in, ok := inner(server, "Nullable"); ok {
		fill, err := fillerOf(t, false, in)
		if err != nil {
			return no()
		}
		return func(cs []chunk) wireColumn { return &nullableColumn{server, cs, fill(cs)} }, nil
	}
	switch dt := t.(type) {
	case *arrow.MapType:
		return mapFiller(dt, server)
	case *arrow.ListType:
		return listFiller(dt.ElemField(), server)
	case *arrow.FixedSizeListType:
		return listFiller(dt.ElemField(), server)
	case *arrow.TimestampType:
		if !sameInstant(dt, server) || nullable {
			return no()
		}
		return func(cs []chunk) wireColumn { return &fixedColumn{server, 8, cs} }, nil
	}
	switch {
	case stringLike(t) && server == "String":
		return func(cs []chunk) wireColumn { return &stringColumn{cs} }, nil
	case nullable || plainTypes[t.ID()] != server:
		return no()
	case t.ID() == arrow.BOOL:
		return func(cs []chunk) wireColumn { return &boolColumn{cs} }, nil
	}
	return func(cs []chunk) wireColumn { return &fixedColumn{server, fixedWidth(t), cs} }, nil
}

// fixedColumn copies the bytes of values that Arrow and ClickHouse lay out alike: little-endian, one after another.
type fixedColumn struct {
	server string
	width  int
	chunks []chunk
}

func (c *fixedColumn) Type() proto.ColumnType      { return proto.ColumnType(c.server) }
func (c *fixedColumn) Rows() int                   { return rowsOf(c.chunks) }
func (c *fixedColumn) EncodeState(*proto.Buffer)   {}
func (c *fixedColumn) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }
func (c *fixedColumn) EncodeColumn(b *proto.Buffer) {
	for _, k := range c.chunks {
		if k.rows() == 0 {
			continue // an empty array may have no buffer
		}
		d := k.a.Data()
		at := (d.Offset() + k.from) * c.width
		b.PutRaw(d.Buffers()[1].Bytes()[at : at+k.rows()*c.width])
	}
}

// boolColumn makes a byte of each of Arrow's bits.
type boolColumn struct{ chunks []chunk }

func (c *boolColumn) Type() proto.ColumnType      { return "Bool" }
func (c *boolColumn) Rows() int                   { return rowsOf(c.chunks) }
func (c *boolColumn) EncodeState(*proto.Buffer)   {}
func (c *boolColumn) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }
func (c *boolColumn) EncodeColumn(b *proto.Buffer) {
	for _, k := range c.chunks {
		a := k.a.(*array.Boolean)
		for i := k.from; i < k.to; i++ {
			b.PutBool(!a.IsNull(i) && a.Value(i))
		}
	}
}

// nullableColumn puts a byte a row, 1 for null, before the values. What stands for a null among the values is not looked at.
type nullableColumn struct {
	server string
	chunks []chunk
	values wireColumn
}

func (c *nullableColumn) Type() proto.ColumnType      { return proto.ColumnType(c.server) }
func (c *nullableColumn) Rows() int                   { return rowsOf(c.chunks) }
func (c *nullableColumn) EncodeState(b *proto.Buffer) { c.values.EncodeState(b) }
func (c *nullableColumn) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }
func (c *nullableColumn) EncodeColumn(b *proto.Buffer) {
	for _, k := range c.chunks {
		at := len(b.Buf)
		b.Buf = append(b.Buf, make([]byte, k.rows())...)
		if k.a.NullN() == 0 {
			continue
		}
		bits, offset := k.a.NullBitmapBytes(), k.a.Data().Offset()
		for i := range k.rows() {
			if bitutil.BitIsNotSet(bits, offset+k.from+i) {
				b.Buf[at+i] = 1
			}
		}
	}
	c.values.EncodeColumn(b)
}
