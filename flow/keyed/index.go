package keyed

import (
	"container/heap"
	"slices"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// index gives every key that is kept a slot, finds the slots of a batch's rows, and forgets keys by their TTL.
type index struct {
	settings Settings
	columns  []column
	narrow   map[uint64]int32 // slots, of keys of at most two columns
	wide     map[ids]int32    // of others
	keys     []ids            // by slot
	received []flow.Micros
	lives    []uint32 // how often a slot was given back: what was noted of it before is void
	free     []int32
	due      dueHeap // of keys with a TTL; a key's time may be later than it says

	// Of the batch at hand:
	times   []arrow.Timestamp // received; nil without a TTL
	lastRow int               // what at said last, of this row
	last    int32
}

// ids is a key: an id for each column.
type ids [columnsMax]uint32

func (k ids) narrow() uint64 { return uint64(k[0])<<32 | uint64(k[1]) }

const none = int32(-1)

func newIndex(s Settings) (index, error) {
	err := s.check()
	s.Key = slices.Clone(s.Key)
	ix := index{settings: s}
	for _, name := range s.Key {
		ix.columns = append(ix.columns, newColumn(name))
	}
	ix.reserve(0)
	return ix, err
}

// reserve makes an empty index ready for so many keys.
func (ix *index) reserve(n int) {
	if len(ix.columns) <= 2 {
		ix.narrow = make(map[uint64]int32, n)
	} else {
		ix.wide = make(map[ids]int32, n)
	}
}

func (ix *index) len() int { return len(ix.narrow) + len(ix.wide) }

// begin makes ready for a batch, which is borrowed until end.
func (ix *index) begin(rec arrow.Record) (err error) {
	for i := range ix.columns {
		if err := ix.columns[i].begin(rec); err != nil {
			return err
		}
	}
	ix.times, ix.lastRow = nil, -1
	if ix.settings.TTL > 0 {
		ix.times, err = receivedOf(rec)
	}
	return err
}

// receivedOf is the column of received times, which a TTL needs.
func receivedOf(rec arrow.Record) ([]arrow.Timestamp, error) {
	at := rec.Schema().FieldIndices(flow.ColReceived)
	if len(at) == 0 {
		return nil, flow.Badf("no column %q: state with a ttl is forgotten by it", flow.ColReceived)
	}
	if n := rec.Column(at[0]).NullN(); n > 0 {
		return nil, flow.Badf("column %q has %d nulls: state with a ttl is forgotten by it", flow.ColReceived, n)
	}
	return flow.Instants(rec, flow.ColReceived)
}

func (ix *index) end() {
	for i := range ix.columns {
		ix.columns[i].end()
	}
	ix.times = nil
}

// at gives the slot of a row's key, or none, and notes the row's time.
func (ix *index) at(row int) int32 {
	if ix.lastRow == row {
		return ix.last
	}
	slot := ix.find(row)
	if slot != none && ix.times != nil {
		slot = ix.touch(slot, flow.Micros(ix.times[row]))
	}
	ix.lastRow, ix.last = row, slot
	return slot
}

func (ix *index) find(row int) int32 {
	var key ids
	for i := range ix.columns {
		if key[i] = ix.columns[i].id(row); key[i] == idNone {
			return none
		}
	}
	return ix.slot(key)
}

func (ix *index) slot(key ids) int32 {
	slot, ok := int32(0), false
	if ix.wide == nil {
		slot, ok = ix.narrow[key.narrow()]
	} else {
		slot, ok = ix.wide[key]
	}
	if !ok {
		return none
	}
	return slot
}

// touch notes a row's time, or forgets the key that had none for too long.
func (ix *index) touch(slot int32, received flow.Micros) int32 {
	if received.Sub(ix.received[slot]) > ix.settings.TTL {
		ix.remove(slot)
		return none
	}
	ix.received[slot] = max(ix.received[slot], received)
	return slot
}

// add gives the key of a row, which has none, a slot.
func (ix *index) add(row int) (int32, error) {
	if ix.len() >= ix.settings.Limit {
		return none, ix.settings.full()
	}
	for i := range ix.columns {
		if c := &ix.columns[i]; c.kind == Text && !c.arr.IsNull(row) && len(c.text(row)) > textMax {
			return none, flow.Badf("column %q of the state's key is a text of %d bytes; at most %d", c.name, len(c.text(row)), textMax)
		}
	}
	var key ids
	for i := range ix.columns {
		key[i] = ix.columns[i].make(row)
	}
	var received flow.Micros
	if ix.times != nil {
		received = flow.Micros(ix.times[row])
	}
	slot := ix.insert(key, received)
	ix.lastRow, ix.last = row, slot
	return slot, nil
}

func (ix *index) insert(key ids, received flow.Micros) int32 {
	var slot int32
	if n := len(ix.free); n > 0 {
		slot, ix.free = ix.free[n-1], ix.free[:n-1]
		ix.keys[slot], ix.received[slot] = key, received
	} else {
		slot = int32(len(ix.keys))
		ix.keys, ix.received, ix.lives = append(ix.keys, key), append(ix.received, received), append(ix.lives, 0)
	}
	for i := range ix.columns {
		ix.columns[i].refs[key[i]]++
	}
	if ix.wide == nil {
		ix.narrow[key.narrow()] = slot
	} else {
		ix.wide[key] = slot
	}
	if ix.settings.TTL > 0 {
		if len(ix.due) > ix.dueMost() {
			ix.due = ix.due[:0]
			ix.each(func(slot int32) {
				ix.due = append(ix.due, due{later(ix.received[slot], ix.settings.TTL), slot, ix.lives[slot]})
			})
			heap.Init(&ix.due)
		} else {
			heap.Push(&ix.due, due{later(received, ix.settings.TTL), slot, ix.lives[slot]})
		}
	}
	return slot
}

// dueMost bounds a heap of times, most of which may be void where keys come and go.
func (ix *index) dueMost() int { return 1024 + 2*ix.len() }

// each visits the keys, in no order.
func (ix *index) each(visit func(slot int32)) {
	for _, slot := range ix.narrow {
		visit(slot)
	}
	for _, slot := range ix.wide {
		visit(slot)
	}
}

func (ix *index) remove(slot int32) {
	key := ix.keys[slot]
	if ix.wide == nil {
		delete(ix.narrow, key.narrow())
	} else {
		delete(ix.wide, key)
	}
	for i := range ix.columns {
		ix.columns[i].release(key[i])
	}
	ix.lives[slot]++
	ix.free = append(ix.free, slot)
	if ix.last == slot {
		ix.last = none
	}
}

// advance forgets the keys that no row can find any more, and tells of each before.
func (ix *index) advance(watermark flow.Micros, forget func(slot int32)) {
	for len(ix.due) > 0 && ix.due[0].at < watermark {
		d := heap.Pop(&ix.due).(due)
		if ix.lives[d.slot] != d.life {
			continue
		}
		if watermark.Sub(ix.received[d.slot]) > ix.settings.TTL {
			forget(d.slot)
			ix.remove(d.slot)
			continue
		}
		d.at = later(ix.received[d.slot], ix.settings.TTL)
		heap.Push(&ix.due, d)
	}
}

// later adds without running over.
func later(at flow.Micros, by time.Duration) flow.Micros {
	if sum := at.Add(by); sum >= at {
		return sum
	}
	return flow.EndOfTime
}

// due is when a slot is to be looked at.
type due struct {
	at   flow.Micros
	slot int32
	life uint32
}

// dueHeap has the earliest first.
type dueHeap []due

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is for container/heap.
func (h *dueHeap) Push(d any) { *h = append(*h, d.(due)) }

// Pop is for container/heap.
func (h *dueHeap) Pop() any {
	d := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return d
}
