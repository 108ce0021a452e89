package keyed

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/cespare/xxhash/v2"

	"hearthline/flow"
)

// column is one column of the key. Its values have numbers, ids, as long as a key has them, so that a key is a few numbers, and a
// value is hashed once a batch where it stands in a dictionary.
type column struct {
	name   string
	kind   Kind // "" until a batch or a snapshot has told
	ids    map[string]uint32
	values []string // by id; whole numbers as eight bytes
	refs   []int32  // keys that have an id; idFree
	free   []uint32
	idle   []uint32 // ids that lost their last key since begin, to be given back when no row stands for them any more
	gained uint64   // ids given

	// Of the batch at hand:
	arr     arrow.Array
	texts   *array.String // the dictionary of arr, by number
	numbers []int32       // of each row
	found   []uint32      // id by number; idNone where none was found
	missed  []uint64      // by number, for idNone: gained when it was looked for, plus one
	scratch []int32
}

const (
	idNone = 0
	idNull = 1 // which no key gives back
	idFree = -1
)

func newColumn(name string) column {
	return column{name: name, ids: map[string]uint32{}, values: make([]string, 2), refs: []int32{idFree, 0}}
}

// id is the number of a row's value, or idNone where no key has it.
func (c *column) id(row int) uint32 {
	number := c.numbers[row]
	if id := c.found[number]; id != idNone || c.missed[number] == c.gained+1 {
		return id
	}
	id := uint32(idNull)
	if !c.arr.IsNull(row) {
		var b [8]byte
		if c.kind == Text {
			id = c.ids[c.text(row)]
		} else {
			id = c.ids[string(c.whole(&b, row))]
		}
	}
	c.found[number], c.missed[number] = id, c.gained+1
	return id
}

// make is id for a value that gets one.
func (c *column) make(row int) uint32 {
	if id := c.id(row); id != idNone {
		return id
	}
	var b [8]byte
	var id uint32
	if c.kind == Text {
		id = c.intern(strings.Clone(c.text(row)))
	} else {
		id = c.intern(string(c.whole(&b, row)))
	}
	c.found[c.numbers[row]] = id
	return id
}

func (c *column) intern(value string) uint32 {
	if id, ok := c.ids[value]; ok {
		return id
	}
	var id uint32
	if n := len(c.free); n > 0 {
		id, c.free = c.free[n-1], c.free[:n-1]
		c.values[id], c.refs[id] = value, 0
	} else {
		id = uint32(len(c.values))
		c.values, c.refs = append(c.values, value), append(c.refs, 0)
	}
	c.ids[value] = id
	c.gained++
	return id
}

// release takes a key from an id.
func (c *column) release(id uint32) {
	if c.refs[id]--; c.refs[id] == 0 && id != idNull {
		c.idle = append(c.idle, id)
	}
}

// tidy gives ids back that no key has.
func (c *column) tidy() {
	for _, id := range c.idle {
		if c.refs[id] == 0 {
			delete(c.ids, c.values[id])
			c.values[id], c.refs[id] = "", idFree
			c.free = append(c.free, id)
		}
	}
	c.idle = c.idle[:0]
}

func (c *column) text(row int) string {
	if c.texts != nil {
		return c.texts.Value(int(c.numbers[row]))
	}
	return c.arr.(*array.String).Value(row)
}

func (c *column) whole(b *[8]byte, row int) []byte {
	binary.BigEndian.PutUint64(b[:], uint64(whole(c.arr, row)))
	return b[:]
}

// whole is a value of a column of numbers, instants or booleans.
func whole(a arrow.Array, row int) int64 {
	switch a := a.(type) {
	case *array.Int64:
		return a.Value(row)
	case *array.Int32:
		return int64(a.Value(row))
	case *array.Timestamp:
		return int64(a.Value(row))
	case *array.Boolean:
		if a.Value(row) {
			return 1
		}
	}
	return 0
}

// begin numbers the rows of a batch, which is borrowed until end.
func (c *column) begin(rec arrow.Record) error {
	c.tidy()
	at := rec.Schema().FieldIndices(c.name)
	if len(at) == 0 {
		return flow.Badf("no column %q, which the state's key names", c.name)
	}
	c.arr, c.texts = rec.Column(at[0]), nil
	kind, ok := kindOf(c.arr)
	switch {
	case !ok:
		return flow.Badf("column %q is a %s; a key is of texts, whole numbers, true or false, or instants", c.name, c.arr.DataType())
	case c.kind != "" && c.kind != kind:
		return flow.Badf("column %q is %s; state was kept by it as %s", c.name, kind, c.kind)
	case rec.NumRows() > 0:
		c.kind = kind
	}
	size := 0
	switch a := c.arr.(type) {
	case *array.Dictionary:
		size = c.dictionary(a)
	case *array.String:
		size = appear(c, a.Value)
	default:
		size = appear(c, func(row int) int64 { return whole(a, row) })
	}
	c.found = append(c.found[:0], make([]uint32, size)...)
	c.missed = append(c.missed[:0], make([]uint64, size)...)
	return nil
}

func (c *column) end() { c.arr, c.texts, c.numbers = nil, nil, nil }

func kindOf(a arrow.Array) (Kind, bool) {
	switch a := a.(type) {
	case *array.Dictionary:
		_, texts := a.Dictionary().(*array.String)
		return Text, texts
	case *array.String:
		return Text, true
	case *array.Int64, *array.Int32:
		return Int, true
	case *array.Boolean:
		return Bool, true
	case *array.Timestamp:
		return Instant, arrow.TypeEqual(a.DataType(), flow.InstantType)
	}
	return "", false
}

// dictionary numbers rows by their dictionary, and nulls behind it.
func (c *column) dictionary(a *array.Dictionary) (size int) {
	c.texts = a.Dictionary().(*array.String)
	if index, ok := a.Indices().(*array.Int32); ok && a.NullN() == 0 {
		c.numbers = index.Int32Values()
		return c.texts.Len()
	}
	c.room(a.Len())
	for row := range c.numbers {
		if a.IsNull(row) {
			c.numbers[row] = int32(c.texts.Len())
		} else {
			c.numbers[row] = int32(a.GetValueIndex(row))
		}
	}
	return c.texts.Len() + 1
}

// appear numbers rows by the order in which their values appear; null is 0.
func appear[V comparable](c *column, value func(int) V) (size int) {
	c.room(c.arr.Len())
	seen := map[V]int32{}
	for row := range c.numbers {
		if c.arr.IsNull(row) {
			c.numbers[row] = 0
			continue
		}
		v := value(row)
		number, ok := seen[v]
		if !ok {
			number = int32(len(seen)) + 1
			seen[v] = number
		}
		c.numbers[row] = number
	}
	return len(seen) + 1
}

func (c *column) room(n int) {
	if cap(c.scratch) < n {
		c.scratch = make([]int32, n)
	}
	c.numbers = c.scratch[:n]
}

// inOrder gives the ids that keys have, in an order that depends on their values alone (by a hash, since that compares numbers), and by
// id its place in that order. Null is not among them.
func (c *column) inOrder() (ids, place []uint32) {
	type hashed struct {
		hash uint64
		id   uint32
	}
	var all []hashed
	for id := idNull + 1; id < len(c.values); id++ {
		if c.refs[id] > 0 {
			all = append(all, hashed{xxhash.Sum64String(c.values[id]), uint32(id)})
		}
	}
	slices.SortFunc(all, func(a, b hashed) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return strings.Compare(c.values[a.id], c.values[b.id])
	})
	ids, place = make([]uint32, len(all)), make([]uint32, len(c.values))
	for i, h := range all {
		ids[i], place[h.id] = h.id, uint32(i)+1
	}
	return ids, place
}
