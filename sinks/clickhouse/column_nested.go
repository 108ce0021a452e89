package clickhouse

import (
	"fmt"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

// nestedColumn is a list or a map a row: where each row's elements end, then all elements as columns of their own.
type nestedColumn struct {
	server string
	ends   []uint64
	parts  []wireColumn // of a list its elements; of a map keys, then values
}

func (c *nestedColumn) Type() proto.ColumnType { return proto.ColumnType(c.server) }
func (c *nestedColumn) Rows() int              { return len(c.ends) }
func (c *nestedColumn) EncodeState(b *proto.Buffer) {
	for _, p := range c.parts {
		p.EncodeState(b)
	}
}
func (c *nestedColumn) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }
func (c *nestedColumn) EncodeColumn(b *proto.Buffer) {
	for _, end := range c.ends {
		b.PutUInt64(end)
	}
	for _, p := range c.parts {
		p.EncodeColumn(b)
	}
}

// spread finds the elements of each row: the rows' ends in the new column, and the stretches of the elements' array that hold
// them, in order. A null row has no elements, even where Arrow keeps some for it.
func (c *nestedColumn) spread(k chunk, bounds func(row int) (from, to int), each func(from, to int)) {
	last := uint64(0)
	if len(c.ends) > 0 {
		last = c.ends[len(c.ends)-1]
	}
	at, until := 0, 0 // a stretch that grows
	for i := k.from; i < k.to; i++ {
		if !k.a.IsNull(i) {
			from, to := bounds(i)
			if from != until {
				if until > at {
					each(at, until)
				}
				at = from
			}
			until = to
			last += uint64(to - from)
		}
		c.ends = append(c.ends, last)
	}
	if until > at {
		each(at, until)
	}
}

// offsetsOf gives the bounds of a row's elements in the array of elements.
func offsetsOf(a arrow.Array) func(row int) (from, to int) {
	if f, ok := a.(*array.FixedSizeList); ok {
		n := int(f.DataType().(*arrow.FixedSizeListType).Len())
		return func(row int) (int, int) {
			row += f.Data().Offset()
			return row * n, (row + 1) * n
		}
	}
	l := a.(array.ListLike)
	return func(row int) (int, int) {
		from, to := l.ValueOffsets(row)
		return int(from), int(to)
	}
}

func listFiller(elem arrow.Field, server string) (filler, error) {
	in, ok := inner(server, "Array")
	if !ok {
		return nil, fmt.Errorf("a list of %s does not fit into %s", elem.Type, server)
	}
	fill, err := fillerOf(elem.Type, elem.Nullable, in)
	if err != nil {
		return nil, err
	}
	return func(chunks []chunk) wireColumn {
		c := &nestedColumn{server: server}
		var elems []chunk
		for _, k := range chunks {
			values := k.a.(array.ListLike).ListValues()
			c.spread(k, offsetsOf(k.a), func(from, to int) { elems = append(elems, chunk{values, from, to}) })
		}
		c.parts = []wireColumn{fill(elems)}
		return c
	}, nil
}

func mapFiller(t *arrow.MapType, server string) (filler, error) {
	args, ok := inner(server, "Map")
	if !ok {
		return nil, fmt.Errorf("a %s does not fit into %s", t, server)
	}
	keyType, valueType, ok := mapTypes(args)
	if !ok {
		return nil, fmt.Errorf("a %s does not fit into %s", t, server)
	}
	fillKeys, err := fillerOf(t.KeyType(), false, keyType)
	if err != nil {
		return nil, fmt.Errorf("keys of a map: %w", err)
	}
	nullable := t.ItemField().Nullable
	if stringLike(t.ItemType()) {
		nullable = false // a null string in a map becomes an empty one
	}
	fillValues, err := fillerOf(t.ItemType(), nullable, valueType)
	if err != nil {
		return nil, fmt.Errorf("values of a map: %w", err)
	}
	return func(chunks []chunk) wireColumn {
		c := &nestedColumn{server: server}
		var keys, values []chunk
		for _, k := range chunks {
			m := k.a.(*array.Map)
			c.spread(k, offsetsOf(m), func(from, to int) {
				keys = append(keys, chunk{m.Keys(), from, to})
				values = append(values, chunk{m.Items(), from, to})
			})
		}
		c.parts = []wireColumn{fillKeys(keys), fillValues(values)}
		return c
	}, nil
}
