package clickhouse

import (
	"encoding/binary"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

// stringAt returns a reader of the strings of a; "" for nulls. a is of a type that is stringLike. What the reader returns borrows
// the array's memory.
func stringAt(a arrow.Array) func(i int) string {
	switch a := a.(type) {
	case *array.Dictionary:
		values := a.Dictionary().(*array.String)
		return func(i int) string {
			if a.IsNull(i) {
				return ""
			}
			return values.Value(a.GetValueIndex(i))
		}
	case *array.String:
		return func(i int) string {
			if a.IsNull(i) {
				return ""
			}
			return a.Value(i)
		}
	case *array.LargeString:
		return func(i int) string {
			if a.IsNull(i) {
				return ""
			}
			return a.Value(i)
		}
	case *array.Binary:
		return func(i int) string {
			if a.IsNull(i) {
				return ""
			}
			return a.ValueString(i)
		}
	}
	panic("not a string: " + a.DataType().String()) // fillerOf has looked
}

// stringColumn writes strings one after another, each after its length.
type stringColumn struct{ chunks []chunk }

func (c *stringColumn) Type() proto.ColumnType      { return "String" }
func (c *stringColumn) Rows() int                   { return rowsOf(c.chunks) }
func (c *stringColumn) EncodeState(*proto.Buffer)   {}
func (c *stringColumn) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }
func (c *stringColumn) EncodeColumn(b *proto.Buffer) {
	for _, k := range c.chunks {
		value := stringAt(k.a)
		for i := k.from; i < k.to; i++ {
			b.PutString(value(i))
		}
	}
}

// lowCardinality is a column of strings as keys and, a row, the index of its key. Arrow's dictionaries are the same idea, so
// keys are looked up once a dictionary entry that is used; plain strings once a row.
//
// On the wire, as ClickHouse's SerializationLowCardinality reads it: a version (the state), then flags with the width of an
// index, the number of keys, the keys, the number of rows, the indices.
type lowCardinality struct {
	server  string
	keys    []string
	indices []uint32
}

const (
	lowCardinalityVersion = 1       // a shared dictionary with additional keys
	hasAdditionalKeys     = 1 << 9  // the keys stand before the indices
	needUpdateDictionary  = 1 << 10 // and replace those of the block before
)

func newLowCardinality(server string, nullable bool, chunks []chunk) *lowCardinality {
	c := &lowCardinality{server: server, indices: make([]uint32, 0, rowsOf(chunks))}
	ids := make(map[string]uint32)
	intern := func(s string) uint32 {
		id, ok := ids[s]
		if !ok {
			id = uint32(len(c.keys))
			ids[s] = id
			c.keys = append(c.keys, s)
		}
		return id
	}
	null := func() uint32 { return intern("") }
	if nullable {
		c.keys = append(c.keys, "") // key 0 is null, whatever it holds
		null = func() uint32 { return 0 }
	}
	for _, k := range chunks {
		if d, ok := k.a.(*array.Dictionary); ok {
			c.fromDictionary(d, k, intern, null)
			continue
		}
		value := stringAt(k.a)
		for i := k.from; i < k.to; i++ {
			if k.a.IsNull(i) {
				c.indices = append(c.indices, null())
			} else {
				c.indices = append(c.indices, intern(value(i)))
			}
		}
	}
	return c
}

// fromDictionary adds a chunk whose distinct strings Arrow knows already.
func (c *lowCardinality) fromDictionary(d *array.Dictionary, k chunk, intern func(string) uint32, null func() uint32) {
	const unseen = ^uint32(0)
	values := d.Dictionary().(*array.String)
	ids := make([]uint32, values.Len())
	for i := range ids {
		ids[i] = unseen
	}
	nulls := d.NullN() > 0
	entries := d.Indices().(*array.Int32).Int32Values()
	for i := k.from; i < k.to; i++ {
		if nulls && d.IsNull(i) {
			c.indices = append(c.indices, null())
			continue
		}
		entry := entries[i]
		if ids[entry] == unseen {
			if values.IsNull(int(entry)) {
				ids[entry] = null()
			} else {
				ids[entry] = intern(values.Value(int(entry)))
			}
		}
		c.indices = append(c.indices, ids[entry])
	}
}

func (c *lowCardinality) Type() proto.ColumnType      { return proto.ColumnType(c.server) }
func (c *lowCardinality) Rows() int                   { return len(c.indices) }
func (c *lowCardinality) EncodeState(b *proto.Buffer) { b.PutInt64(lowCardinalityVersion) }
func (c *lowCardinality) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }
func (c *lowCardinality) EncodeColumn(b *proto.Buffer) {
	if len(c.indices) == 0 {
		return // inside an empty map or array: not even the flags are read
	}
	width := int64(0) // 1 << width bytes
	switch {
	case len(c.keys) > 1<<16:
		width = 2
	case len(c.keys) > 1<<8:
		width = 1
	}
	b.PutInt64(hasAdditionalKeys | needUpdateDictionary | width)
	b.PutInt64(int64(len(c.keys)))
	for _, key := range c.keys {
		b.PutString(key)
	}
	b.PutInt64(int64(len(c.indices)))
	for _, id := range c.indices {
		switch width {
		case 0:
			b.Buf = append(b.Buf, byte(id))
		case 1:
			b.Buf = binary.LittleEndian.AppendUint16(b.Buf, uint16(id))
		default:
			b.Buf = binary.LittleEndian.AppendUint32(b.Buf, id)
		}
	}
}
