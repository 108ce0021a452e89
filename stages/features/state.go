package features

import (
	"math"
	"slices"

	"hearthline/flow"
)

// never is before every instant; added to, it does not overflow.
const never = flow.Micros(math.MinInt64 / 2)

// state is what is remembered of a series.
type state struct {
	latest   flow.Micros   // largest event time; how far the series has come
	received flow.Micros   // largest received time
	closed   []flow.Micros // by kind: windows that end then or before are closed
	panes    [][]pane      // by grid: the panes that an open window may need, by start
	deadline flow.Micros   // when the next window closes should the series stay silent; noDeadline if none is open
	queuedAt flow.Micros   // the deadline under which it stands in the stage's queue; noDeadline if it does not
}

const noDeadline = flow.Micros(math.MaxInt64)

func newState(kinds, grids int) state {
	s := state{latest: never, received: never, closed: make([]flow.Micros, kinds), panes: make([][]pane, grids), deadline: noDeadline, queuedAt: noDeadline}
	for i := range s.closed {
		s.closed[i] = never
	}
	return s
}

// at finds or makes the pane that starts then. Readings come nearly in order, so it looks from the end.
func (s *state) at(grid int, start flow.Micros) *pane {
	ps := s.panes[grid]
	i := len(ps)
	for i > 0 && ps[i-1].start > start {
		i--
	}
	if i > 0 && ps[i-1].start == start {
		return &ps[i-1]
	}
	s.panes[grid] = slices.Insert(ps, i, pane{start: start})
	return &s.panes[grid][i]
}

// result is one closed window.
type result struct {
	kind *kind
	end  flow.Micros
	pane pane // all of the window, merged; its start is the window's
}

// close closes the windows of a kind that end at bound or before and are open, and gives them to emit in the order of
// their ends. Windows without readings are not told of.
func (s *state) close(at int, k *kind, bound flow.Micros, emit func(result)) {
	ps := s.panes[k.grid]
	for len(ps) > 0 {
		// The first window that is open and holds the pane ps[0].
		end := max(ps[0].start+k.hop, s.closed[at]+k.hop)
		if end > ps[0].start+k.size { // all of its windows are closed
			ps = ps[1:]
			continue
		}
		if end > bound {
			return
		}
		r := result{kind: k, end: end, pane: pane{start: end - k.size}}
		for i := range ps {
			if ps[i].start >= end {
				break
			}
			r.pane.merge(&ps[i])
		}
		s.closed[at] = end
		emit(r)
	}
}

// lastEnd is the end of the last window of a kind that holds a reading; never if there is none.
func (s *state) lastEnd(k *kind) flow.Micros {
	ps := s.panes[k.grid]
	if len(ps) == 0 {
		return never
	}
	return ps[len(ps)-1].start + k.size
}

// drop forgets the panes that no open window of the kinds needs.
func (s *state) drop(kinds []kind) {
	for g := range s.panes {
		n := 0
		for n < len(s.panes[g]) && !s.needed(kinds, g, s.panes[g][n].start) {
			n++
		}
		if n > 0 {
			s.panes[g] = slices.Delete(s.panes[g], 0, n)
		}
	}
}

func (s *state) needed(kinds []kind, grid int, start flow.Micros) bool {
	for i := range kinds {
		if k := &kinds[i]; k.grid == grid && start+k.size > s.closed[i] {
			return true
		}
	}
	return false
}

// nextEnd is the smallest end of an open window that holds a reading.
func (s *state) nextEnd(kinds []kind) (flow.Micros, bool) {
	next, found := noDeadline, false
	for i := range kinds {
		k := &kinds[i]
		for _, p := range s.panes[k.grid] {
			end := max(p.start+k.hop, s.closed[i]+k.hop)
			if end <= p.start+k.size {
				next, found = min(next, end), true
				break
			}
		}
	}
	return next, found
}
