package dedupe

import (
	"math/bits"

	"hearthline/flow"
	"hearthline/flow/snapshot"
)

// windowSize is how many sequence numbers back a copy is known as one.
const windowSize = 1024

const words = windowSize / 64

// window remembers which of the numbers (top-windowSize, top] were seen.
type window struct {
	top    int64
	latest flow.Micros   // the largest event time
	seen   [words]uint64 // number n is bit n mod windowSize
}

type verdict uint8

const (
	fresh verdict = iota
	restart
	duplicate
	old
)

func (w *window) begin(seq int64, at flow.Micros) {
	*w = window{top: seq, latest: at}
	w.set(seq)
}

func (w *window) set(seq int64) { w.seen[uint64(seq)%windowSize/64] |= 1 << (uint64(seq) % 64) }
func (w *window) has(seq int64) bool {
	return w.seen[uint64(seq)%windowSize/64]>>(uint64(seq)%64)&1 == 1
}

// behind is how far seq lies below the top; 0 and above. Only for seq <= top. Unsigned, so that a distance
// above 2⁶³ is right too.
func (w *window) behind(seq int64) uint64 { return uint64(w.top) - uint64(seq) }

// forward moves the top to seq, which is above it, and forgets what falls out below.
func (w *window) forward(seq int64) {
	by := uint64(seq) - uint64(w.top)
	if by >= windowSize {
		w.seen = [words]uint64{}
	} else {
		w.clear(uint64(w.top)+1, by)
	}
	w.top = seq
	w.set(seq)
}

// clear forgets n numbers (below windowSize) from the given one on.
func (w *window) clear(from, n uint64) {
	for n > 0 {
		bit := from % 64
		take := min(64-bit, n)
		w.seen[from%windowSize/64] &^= (1<<take - 1) << bit
		from, n = from+take, n-take
	}
}

// look says what seq is to a window, and notes it when it is fresh.
func (w *window) look(seq int64) verdict {
	switch {
	case seq > w.top:
		w.forward(seq)
		return fresh
	case w.behind(seq) >= windowSize:
		return old
	case w.has(seq):
		return duplicate
	}
	w.set(seq)
	return fresh
}

// take says what a row is. stamped says that its time is the gateway's.
func (s *state) take(seq int64, at flow.Micros, stamped bool) verdict {
	// A time not after the latest one before the restart belongs to the count of then.
	if s.before != nil && at <= s.before.latest {
		return s.before.look(seq)
	}
	later := at > s.now.latest
	if below := seq <= s.now.top; below && later {
		tooOld := s.now.behind(seq) >= windowSize
		if tooOld || !stamped && s.now.has(seq) {
			before := s.now
			s.before = &before
			s.now.begin(seq, at)
			return restart
		}
	}
	v := s.now.look(seq)
	if v == fresh && later {
		s.now.latest = at
	}
	return v
}

func (w *window) count() int {
	n := 0
	for _, x := range w.seen {
		n += bits.OnesCount64(x)
	}
	return n
}

// save writes the bitmap as it stands, or, when all of the window is seen as with a device that loses nothing,
// one byte instead.
func (w *window) save(out *snapshot.Writer) {
	out.Int(w.top)
	out.Int(int64(w.latest))
	full := w.count() == windowSize
	out.Bool(full)
	if !full {
		for _, x := range w.seen {
			out.Fixed(x)
		}
	}
}

func (w *window) load(in *snapshot.Reader) {
	w.top, w.latest = in.Int(), flow.Micros(in.Int())
	full := in.Bool()
	for i := range w.seen {
		if full {
			w.seen[i] = ^uint64(0)
		} else {
			w.seen[i] = in.Fixed()
		}
	}
}
