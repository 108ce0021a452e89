package flow

import (
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// validity is a column's bitmap of what is not null. While nothing is null there is none.
type validity struct {
	bits  []byte
	rows  int
	nulls int
}

func (v *validity) append(valid bool) {
	if v.nulls == 0 {
		if valid {
			v.rows++
			return
		}
		v.begin()
	}
	if v.rows&7 == 0 {
		v.bits = append(v.bits, 0)
	}
	if valid {
		v.bits[v.rows>>3] |= 1 << (v.rows & 7)
	} else {
		v.nulls++
	}
	v.rows++
}

// begin makes the bitmap at the first null: all before it is valid.
func (v *validity) begin() {
	v.bits = make([]byte, (v.rows+7)/8, max(64, 2*(v.rows+7)/8))
	for i := range v.rows {
		v.bits[i>>3] |= 1 << (i & 7)
	}
}

func (v *validity) buffer() *memory.Buffer {
	if v.nulls == 0 {
		return nil
	}
	return memory.NewBufferBytes(v.bits)
}

// textColumn is a column of utf8.
type textColumn struct {
	ends  []int32 // where each text ends in bytes
	bytes []byte
	valid validity // used where texts may be null
}

func (t *textColumn) reserve(texts, bytes int) {
	t.ends, t.bytes = make([]int32, 0, texts), make([]byte, 0, bytes)
}

func (t *textColumn) append(s string) {
	t.bytes = append(t.bytes, s...)
	t.ends = append(t.ends, int32(len(t.bytes))) // #nosec G115 -- a batch is far smaller
}

func (t *textColumn) data() arrow.ArrayData {
	return array.NewData(arrow.BinaryTypes.String, len(t.ends), []*memory.Buffer{t.valid.buffer(), offsets(t.ends), memory.NewBufferBytes(t.bytes)}, nil, t.valid.nulls, 0)
}

// offsets is Arrow's buffer of them: one more than there are values, from zero.
func offsets(ends []int32) *memory.Buffer {
	b := make([]int32, len(ends)+1)
	copy(b[1:], ends)
	return memory.NewBufferBytes(arrow.Int32Traits.CastToBytes(b))
}

// fixed is a column of values of one size.
func fixed(t arrow.DataType, rows int, values []byte, valid *validity) arrow.ArrayData {
	if valid == nil {
		valid = &validity{}
	}
	return array.NewData(t, rows, []*memory.Buffer{valid.buffer(), memory.NewBufferBytes(values)}, nil, valid.nulls, 0)
}

// keyColumn is a column of [KeyType]. Names come again in the next record, so they are remembered from one to the next; and in
// the next row, so the last one is looked at first.
type keyColumn struct {
	indices []int32
	valid   validity
	texts   textColumn // the dictionary, in the order in which they came
	known   map[string]*key
	record  uint64 // counts records
	last    *key
}

// key is a name that is known.
type key struct {
	text   string
	record uint64 // in which it was last used
	index  int32  // of it in that one's dictionary
}

// knownMax bounds what is remembered of names that the last record did not hold.
const knownMax = 4096

func (k *keyColumn) append(s string) {
	e := k.last
	if e == nil || e.text != s {
		e = k.find(s)
		k.last = e
	}
	k.indices = append(k.indices, e.index)
	k.valid.append(true)
}

func (k *keyColumn) appendNull() {
	k.indices = append(k.indices, 0)
	k.valid.append(false)
}

func (k *keyColumn) find(s string) *key {
	e := k.known[s]
	switch {
	case e == nil:
		if k.known == nil {
			k.known = map[string]*key{}
		}
		e = &key{text: strings.Clone(s)}
		k.known[e.text] = e
	case e.record == k.record:
		return e
	}
	e.record, e.index = k.record, int32(len(k.texts.ends)) // #nosec G115 -- a batch is far smaller
	k.texts.append(s)
	return e
}

// data is the column. The dictionary of a column that is all null has no entry.
func (k *keyColumn) data() arrow.ArrayData {
	texts := k.texts.data()
	defer texts.Release()
	return array.NewDataWithDictionary(KeyType, len(k.indices), []*memory.Buffer{k.valid.buffer(), memory.NewBufferBytes(arrow.Int32Traits.CastToBytes(k.indices))},
		k.valid.nulls, 0, texts.(*array.Data))
}

// next is the column of the next record.
func (k *keyColumn) next() keyColumn {
	n := keyColumn{known: k.known, record: k.record + 1}
	if len(n.known) > max(knownMax, 2*len(k.texts.ends)) {
		n.known = nil
	}
	return n
}
