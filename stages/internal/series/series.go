// Package series keeps one state for each series (home, device, metric), bounded in number and in age, and finds the
// state of a row without hashing its strings.
//
// Everything it decides follows from the rows in their order: which series is the oldest, and when one has been silent for
// too long by the rows' received times. How rows are cut into batches does not matter.
package series

import (
	"fmt"
	"math/bits"
	"strings"
	"time"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/snapshot"
)

// Key names a series.
type Key struct{ Home, Device, Metric string }

// Entry is a series and its state.
type Entry[S any] struct {
	Key
	State    S
	Number   uint64      // how many series the table had met before this one
	Received flow.Micros // the largest received time of its rows
	older    *Entry[S]   // by the last row
	newer    *Entry[S]
	gone     bool
}

// Table holds the series of one partition. It is used by one goroutine at a time.
type Table[S any] struct {
	Limit int           // series kept; the one whose last row is oldest goes first
	TTL   time.Duration // a series without rows for this long, in received time, is forgotten; 0 is never
	// Forget, if set, is told of each series that goes, before it goes.
	Forget func(*Entry[S])
	// Expired and Crowded count the series forgotten for their age, and for Limit.
	Expired, Crowded int64

	entries        map[Key]*Entry[S]
	oldest, newest *Entry[S]
	met            uint64
	clock          flow.Micros

	// Of the batch at hand:
	strings  [3]flow.Strings
	numbers  [3]columns.Numbers
	shift    [2]int
	packable bool
	slots    []slot[S]
	used     int
	batch    uint32
}

type slot[S any] struct {
	batch  uint32
	key    uint64
	entry  *Entry[S]
	missed uint64 // one more than the series met when none was found
}

// New gives an empty table.
func New[S any](limit int, ttl time.Duration) *Table[S] {
	return &Table[S]{Limit: limit, TTL: ttl, entries: make(map[Key]*Entry[S])}
}

// Len is the number of series.
func (t *Table[S]) Len() int { return len(t.entries) }

// Begin makes ready for the rows of a batch. The columns are borrowed until the next Begin or End.
func (t *Table[S]) Begin(home, device, metric flow.Strings) {
	t.strings = [3]flow.Strings{home, device, metric}
	var width [3]int
	for i, s := range t.strings {
		t.numbers[i] = columns.NumbersOf(s)
		width[i] = bits.Len(uint(t.numbers[i].Size))
	}
	t.shift = [2]int{width[1] + width[2], width[2]}
	t.packable = width[0]+width[1]+width[2] <= 64
	t.batch++
	if t.slots == nil || t.batch == 0 { // a wrapped number could meet its own old slots
		t.slots, t.batch = make([]slot[S], 1024), 1
	}
	t.used = 0
}

// End lets go of the batch.
func (t *Table[S]) End() {
	t.strings, t.numbers = [3]flow.Strings{}, [3]columns.Numbers{}
}

// At gives the series of a row that was received then, and says whether the row is its first. It makes the row the newest.
func (t *Table[S]) At(row int, received flow.Micros) (e *Entry[S], isNew bool) {
	t.pass(received)
	if !t.packable {
		if e = t.find(row); e == nil {
			e, isNew = t.add(row), true
		}
	} else if s := t.slot(t.key(row)); s.entry != nil && !s.entry.gone {
		e = s.entry
	} else {
		if e = t.find(row); e == nil {
			e, isNew = t.add(row), true
		}
		s.entry = e
	}
	t.touch(e, received)
	return e, isNew
}

// Known is At for a series that is there, and nil for one that is not: it adds none.
func (t *Table[S]) Known(row int, received flow.Micros) (e *Entry[S]) {
	t.pass(received)
	if !t.packable {
		e = t.find(row)
	} else {
		s := t.slot(t.key(row))
		if s.entry != nil && s.entry.gone {
			*s = slot[S]{batch: s.batch, key: s.key}
		}
		if s.entry == nil && s.missed != t.met+1 { // looked for, and none was added since
			s.entry, s.missed = t.find(row), t.met+1
		}
		e = s.entry
	}
	if e != nil {
		t.touch(e, received)
	}
	return e
}

// pass lets time pass.
func (t *Table[S]) pass(received flow.Micros) {
	t.clock = max(t.clock, received)
	if t.TTL > 0 {
		for t.oldest != nil && t.clock.Sub(t.oldest.Received) > t.TTL {
			t.Expired++
			t.forget(t.oldest)
		}
	}
}

// key packs the numbers of a row's three strings.
func (t *Table[S]) key(row int) uint64 {
	return uint64(t.numbers[0].At(row))<<t.shift[0] | uint64(t.numbers[1].At(row))<<t.shift[1] | uint64(t.numbers[2].At(row))
}

// slot finds the place of k among the pairs seen in this batch: open addressing, Fibonacci hashing (Knuth, The Art of
// Computer Programming, vol. 3, 6.4).
func (t *Table[S]) slot(k uint64) *slot[S] {
	if 2*t.used >= len(t.slots) {
		old := t.slots
		t.slots, t.used = make([]slot[S], 2*len(old)), 0
		for _, s := range old {
			if s.batch == t.batch {
				*t.slot(s.key) = s
			}
		}
	}
	mask := uint64(len(t.slots) - 1)
	h := k * 0x9E3779B97F4A7C15
	for i := h ^ h>>32; ; i++ {
		s := &t.slots[i&mask]
		if s.batch != t.batch {
			*s = slot[S]{batch: t.batch, key: k}
			t.used++
			return s
		}
		if s.key == k {
			return s
		}
	}
}

func (t *Table[S]) name(row int) Key {
	return Key{t.strings[0].Value(row), t.strings[1].Value(row), t.strings[2].Value(row)}
}

func (t *Table[S]) find(row int) *Entry[S] { return t.entries[t.name(row)] }

func (t *Table[S]) add(row int) *Entry[S] {
	for len(t.entries) >= max(t.Limit, 1) {
		t.Crowded++
		t.forget(t.oldest)
	}
	k := t.name(row)
	k = Key{strings.Clone(k.Home), strings.Clone(k.Device), strings.Clone(k.Metric)}
	e := &Entry[S]{Key: k, Number: t.met, Received: never}
	t.met++
	t.entries[k] = e
	t.push(e)
	return e
}

// never is before every row.
const never = flow.Micros(-1 << 63)

func (t *Table[S]) forget(e *Entry[S]) {
	if t.Forget != nil {
		t.Forget(e)
	}
	t.Remove(e)
}

// Remove takes a series out.
func (t *Table[S]) Remove(e *Entry[S]) {
	t.unlink(e)
	delete(t.entries, e.Key)
	e.gone = true
}

func (t *Table[S]) touch(e *Entry[S], received flow.Micros) {
	e.Received = max(e.Received, received)
	if t.newest != e {
		t.unlink(e)
		t.push(e)
	}
}

func (t *Table[S]) push(e *Entry[S]) {
	e.older, e.newer = t.newest, nil
	if t.newest != nil {
		t.newest.newer = e
	} else {
		t.oldest = e
	}
	t.newest = e
}

func (t *Table[S]) unlink(e *Entry[S]) {
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		t.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		t.newest = e.older
	}
	e.older, e.newer = nil, nil
}

// Each visits all series, the one whose last row is oldest first.
func (t *Table[S]) Each(f func(*Entry[S])) {
	for e := t.oldest; e != nil; {
		next := e.newer
		f(e)
		e = next
	}
}

// maxSeries bounds the count in a snapshot.
const maxSeries = 1 << 28

const (
	entriesAtOnce = 1 << 20 // for which Load makes room before they are there
	metricsMax    = 1 << 12 // whose names Load remembers
)

// Save writes the table; state writes one state. Homes that follow each other are written once.
func (t *Table[S]) Save(w *snapshot.Writer, state func(*snapshot.Writer, *Entry[S])) {
	w.Uint(uint64(len(t.entries)))
	w.Uint(t.met)
	w.Int(int64(t.clock))
	w.Int(t.Expired)
	w.Int(t.Crowded)
	var last Key
	t.Each(func(e *Entry[S]) {
		same := e.Home == last.Home
		w.Bool(same)
		if !same {
			w.String(e.Home)
		}
		w.String(e.Device)
		w.String(e.Metric)
		w.Uint(e.Number)
		w.Int(int64(e.Received))
		state(w, e)
		last = e.Key
	})
}

// Load fills an empty table with what Save wrote; state reads one state.
func (t *Table[S]) Load(r *snapshot.Reader, state func(*snapshot.Reader, *Entry[S])) {
	n := r.Count(maxSeries)
	t.met, t.clock = r.Uint(), flow.Micros(r.Int())
	t.Expired, t.Crowded = r.Int(), r.Int()
	if n > len(t.entries) {
		t.entries = make(map[Key]*Entry[S], min(n, entriesAtOnce))
	}
	// Few names of metrics are many series'.
	metrics := map[string]string{}
	var last Key
	for i := 0; i < n && r.Err() == nil; i++ {
		e := &Entry[S]{}
		if r.Bool() {
			e.Home = last.Home
		} else {
			e.Home = r.String()
		}
		e.Device, e.Metric = r.String(), r.String()
		if known, ok := metrics[e.Metric]; ok {
			e.Metric = known
		} else if len(metrics) < metricsMax {
			metrics[e.Metric] = e.Metric
		}
		e.Number, e.Received = r.Uint(), flow.Micros(r.Int())
		state(r, e)
		if r.Err() != nil {
			return
		}
		if _, twice := t.entries[e.Key]; twice {
			r.Fail(fmt.Errorf("series %v is there twice", e.Key))
			return
		}
		t.entries[e.Key] = e
		t.push(e)
		last = e.Key
	}
}
