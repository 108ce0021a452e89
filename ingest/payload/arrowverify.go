package payload

import (
	"encoding/binary"

	"hearthline/ingest/reason"
)

// The metadata of an Arrow IPC message is a FlatBuffer (format/Message.fbs and Schema.fbs of Apache Arrow). The library
// that reads it allocates by the lengths of vectors before it looks at them, and follows fields as deep as they nest: 900
// bytes can ask for 350 GB, and shared children multiply at every level. verifyArrow walks the tables that the
// library will walk and holds every offset and length to the buffer, the types to those that an event has, and
// the number of tables to a budget.

// flatTablesMax is how many tables one message may hold: ten columns take about 60.
const flatTablesMax = 512

// Types of columns (Schema.fbs, union Type).
var arrowTypes = map[byte]bool{
	2: true, 3: true, 5: true, 20: true, // Int, FloatingPoint, Utf8, LargeUtf8
	10: true, 13: true, 17: true, // Timestamp, Struct (entries of a map), Map
}

// flat is a FlatBuffer under verification. It panics with a refusal.
type flat struct {
	b      []byte
	tables int
}

// table is a verified table: its place, and that of its vtable.
type flatTable struct{ at, vtable, size int }

func (f *flat) need(at, n int) int {
	if at < 0 || n < 0 || at > len(f.b)-n {
		panic(reason.Refuse(reason.Malformed, "Arrow IPC stream: metadata points outside itself"))
	}
	return at
}

func (f *flat) u16(at int) int { return int(binary.LittleEndian.Uint16(f.b[f.need(at, 2):])) }
func (f *flat) u32(at int) int { return int(binary.LittleEndian.Uint32(f.b[f.need(at, 4):])) }

// table checks the table at a place.
func (f *flat) table(at int) flatTable {
	if f.tables++; f.tables > flatTablesMax {
		panic(reason.Refuse(reason.Malformed, "Arrow IPC stream: metadata of more than %d tables", flatTablesMax))
	}
	vtable := f.need(at-int(int32(f.u32(at))), 4)
	size := f.u16(vtable)
	f.need(vtable, size)
	return flatTable{at: at, vtable: vtable, size: size}
}

// field is the place of a table's field of so many bytes, 0 when it has none.
func (f *flat) field(t flatTable, i, bytes int) int {
	if 4+2*i >= t.size { // as the library tells it, also where the size is odd
		return 0
	}
	off := f.u16(t.vtable + 4 + 2*i)
	if off == 0 {
		return 0
	}
	return f.need(t.at+off, bytes)
}

// ref follows an offset field.
func (f *flat) ref(t flatTable, i int) (at int, ok bool) {
	at = f.field(t, i, 4)
	if at == 0 {
		return 0, false
	}
	return at + f.u32(at), true
}

// vector checks a vector field of elements of so many bytes, and gives the place of the first and their number.
func (f *flat) vector(t flatTable, i, bytes int) (at, n int) {
	at, ok := f.ref(t, i)
	if !ok {
		return 0, 0
	}
	if n = f.u32(at); n > len(f.b) {
		f.need(-1, 0)
	}
	return f.need(at+4, n*bytes), n
}

// each checks a vector of tables.
func (f *flat) each(t flatTable, i int, check func(flatTable)) {
	at, n := f.vector(t, i, 4)
	for k := range n {
		check(f.table(at + 4*k + f.u32(at+4*k)))
	}
}

func (f *flat) pairs(t flatTable, i int) {
	f.each(t, i, func(p flatTable) { f.vector(p, 0, 1); f.vector(p, 1, 1) })
}

// verifyArrow checks the metadata of one message. It panics with a refusal.
func verifyArrow(metadata []byte) {
	f := &flat{b: metadata}
	message := f.table(f.u32(0))
	f.field(message, 0, 2)
	f.field(message, 3, 8)
	f.pairs(message, 4)
	kind := f.field(message, 1, 1)
	at, ok := f.ref(message, 2)
	if kind == 0 || !ok {
		panic(reason.Refuse(reason.Malformed, "Arrow IPC stream: a message without a header"))
	}
	header := f.table(at)
	switch f.b[kind] {
	case 1:
		f.field(header, 0, 2)
		f.pairs(header, 2)
		f.vector(header, 3, 8)
		f.each(header, 1, func(t flatTable) { f.column(t, 0) })
	case 2:
		f.field(header, 0, 8)
		f.field(header, 2, 1)
		if at, ok := f.ref(header, 1); ok {
			f.batch(f.table(at))
		}
	case 3:
		f.batch(header)
	default:
		panic(reason.Refuse(reason.Malformed, "Arrow IPC stream: a message of type %d", f.b[kind]))
	}
}

// column checks a Field. Maps of pairs are the deepest: map, entries, key.
func (f *flat) column(t flatTable, depth int) {
	if depth > 2 {
		panic(reason.Refuse(reason.Field, "a column nested more deeply than a map"))
	}
	f.vector(t, 0, 1)
	f.field(t, 1, 1)
	kind := f.field(t, 2, 1)
	if kind == 0 || !arrowTypes[f.b[kind]] {
		panic(reason.Refuse(reason.Field, "a column of a type that no event has"))
	}
	if at, ok := f.ref(t, 3); ok {
		f.scalars(at, f.b[kind] == 10)
	}
	if at, ok := f.ref(t, 4); ok {
		d := f.table(at)
		f.field(d, 0, 8)
		f.field(d, 2, 1)
		f.field(d, 3, 2)
		if at, ok := f.ref(d, 1); ok {
			f.scalars(at, false)
		}
	}
	f.pairs(t, 6)
	f.each(t, 5, func(c flatTable) { f.column(c, depth+1) })
}

// scalars checks a table that describes a type: Int, FloatingPoint, Timestamp (whose zone is a string) and the like.
func (f *flat) scalars(at int, zone bool) {
	t := f.table(at)
	f.field(t, 0, 1)
	if zone {
		f.vector(t, 1, 1)
	} else {
		f.field(t, 1, 1)
	}
}

// batch checks a RecordBatch.
func (f *flat) batch(t flatTable) {
	f.field(t, 0, 8)
	f.vector(t, 1, 16)
	f.vector(t, 2, 16)
	if at, ok := f.ref(t, 3); ok {
		c := f.table(at)
		f.field(c, 0, 1)
		f.field(c, 1, 1)
	}
}
