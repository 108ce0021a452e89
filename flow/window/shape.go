package window

import (
	"slices"

	"hearthline/flow"
	"hearthline/flow/deadline"
)

// shape says what falls into which window: one of fixed and sessions.
type shape interface {
	// place says whether a row of that time came after a window of its was closed, and whether an open one needs it.
	place(k *key, at flow.Micros) (late, needed bool)
	// first is the first open window that holds rows, and how many; drop is how many rows no open window needs.
	first(k *key) (w span, rows int, drop int)
	// next is a time before which no open window ends.
	next(k *key) flow.Micros
	// added notes that a row of that time was added.
	added(k *key, at flow.Micros)
	// passed notes that all windows that end at bound or before are closed.
	passed(k *key, bound flow.Micros)
}

type span struct{ start, end flow.Micros }

// fixed are windows of one size, one every hop.
type fixed struct{ size, hop flow.Micros }

// floor is the largest multiple of step that is not above m.
func floor(m, step flow.Micros) flow.Micros {
	r := m % step
	if r < 0 {
		r += step
	}
	return m - r
}

func (f fixed) place(k *key, at flow.Micros) (late, needed bool) {
	pane := floor(at, f.hop)
	return pane+f.hop <= k.closed, pane+f.size > k.closed
}

// end of the first open window that a row of that time is in.
func (f fixed) end(k *key, at flow.Micros) flow.Micros {
	return max(floor(at, f.hop), k.closed) + f.hop
}

func (f fixed) first(k *key) (w span, rows, drop int) {
	for drop < len(k.rows) && floor(k.rows[drop].at, f.hop)+f.size <= k.closed {
		drop++
	}
	if drop == len(k.rows) {
		return span{}, 0, drop
	}
	end := f.end(k, k.rows[drop].at)
	n, _ := slices.BinarySearchFunc(k.rows[drop:], end, func(r row, at flow.Micros) int {
		if r.at < at {
			return -1
		}
		return 1
	})
	return span{end - f.size, end}, n, drop
}

func (f fixed) next(k *key) flow.Micros {
	for i := range k.rows {
		if floor(k.rows[i].at, f.hop)+f.size > k.closed {
			return f.end(k, k.rows[i].at)
		}
	}
	return deadline.None
}

func (f fixed) added(*key, flow.Micros) {}

func (f fixed) passed(k *key, bound flow.Micros) { k.closed = max(k.closed, floor(bound, f.hop)) }

// sessions are windows of rows between which less than gap passes, cut at max. One ends gap after its last row.
type sessions struct{ gap, max, lateness flow.Micros }

func (s sessions) place(k *key, at flow.Micros) (late, needed bool) {
	if at < k.closed {
		return true, false
	}
	if at+s.gap > k.latest-s.lateness {
		return false, true
	}
	// Its own session would be closed already; it is in time only where it joins one that is open.
	i, _ := slices.BinarySearchFunc(k.rows, at, func(r row, at flow.Micros) int {
		if r.at < at {
			return -1
		}
		return 1
	})
	joins := i < len(k.rows) && k.rows[i].at-at < s.gap || i > 0 && at-k.rows[i-1].at < s.gap
	return !joins, joins
}

func (s sessions) first(k *key) (w span, rows, drop int) {
	if len(k.rows) == 0 {
		return span{}, 0, 0
	}
	w.start = k.rows[0].at
	last, n := w.start, 1
	for n < len(k.rows) && k.rows[n].at-last < s.gap && k.rows[n].at < w.start+s.max {
		last = k.rows[n].at
		n++
	}
	w.end = min(last+s.gap, w.start+s.max)
	k.due = w.end
	return w, n, 0
}

func (s sessions) next(k *key) flow.Micros {
	if len(k.rows) == 0 {
		k.due = deadline.None
		return deadline.None
	}
	return k.due
}

// added: whatever sessions the row joins or parts, none of them ends before it would end alone.
func (s sessions) added(k *key, at flow.Micros) { k.due = min(k.due, at+s.gap) }

func (s sessions) passed(*key, flow.Micros) {}
