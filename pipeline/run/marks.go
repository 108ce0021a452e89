package run

import (
	"cmp"
	"slices"
	"time"

	"hearthline/flow"
)

// Limits on what a task remembers of its producers. Both are measured in the arrival time that the batches
// carry, never on a clock.
const (
	// A producer this far behind the others no longer holds the watermark back: it is taken for gone.
	producerSilent = time.Minute
	// One of the tasks that write a stream with a key holds it for longer, for as long as it is heard of: where they catch up each at
	// its pace, the others' time goes on by hours between two of its batches. One that is not heard of is taken for gone.
	taskSilent = time.Hour
	// A producer that was not heard of while the others' time went on by this much is forgotten. Should it come back with
	// batches that were already taken, they would count again; a replay reaches back to a checkpoint, seconds or
	// minutes, never this far. What it says the time is does not matter: one that lags by days (old data
	// played again, a clock that is wrong) and sends is remembered.
	producerForgotten = 24 * time.Hour
	// A gateway's start that a later one has replaced is forgotten sooner, or one that is started over and over
	// would leave a mark each time. What it sent last may still be on its way for a request's timeout, not longer.
	replacedForgotten = time.Hour
)

// marks is what a reader of one partition of one stream knows of that stream's producers: how far it has taken
// each, which is what makes a replayed batch count once, and what time each has told.
type marks struct {
	of        map[flow.Source]*mark
	watermark flow.Micros // of the whole partition; only rises
	begun     flow.Micros // what the first batch that was taken told
	// awaited is who must have been heard before the partition has a watermark: tasks that all write to it. Who is not
	// heard of while the others' time goes on by taskSilent is not waited for.
	awaited []teller
}

// teller is who tells time: a producer's task. What it says of time it says for everything it makes: a stage with two inputs
// speaks of both, whichever of them it made a batch of.
type teller struct {
	producer  string
	partition int32
}

func tellerOf(s flow.Source) teller { return teller{s.Producer, s.Partition} }

// mark is the furthest that was taken of one source.
type mark struct {
	Source    flow.Source   `json:"source"`
	Position  flow.Position `json:"position"`
	Watermark flow.Micros   `json:"watermark"`
	Heard     flow.Micros   `json:"heard,omitempty"` // the newest time anybody had told when the producer was last heard
	Ended     string        `json:"ended,omitempty"` // the run that the source has ended, while it sends nothing more
	// Replaced says that a later start of the same gateway has spoken since this one last did.
	Replaced bool `json:"replaced,omitempty"`
}

func newMarks() *marks { return &marks{of: map[flow.Source]*mark{}} }

// take says whether b is new, and if so remembers it. A batch that is not above its source's mark has been
// taken before, in this life of the task or in an earlier one.
func (m *marks) take(b *flow.Batch) bool {
	k := m.of[b.Lineage.Source]
	if k == nil {
		k = &mark{Source: b.Lineage.Source, Position: flow.Position{Offset: -1}}
		m.replace(k.Source)
		m.of[b.Lineage.Source] = k
	} else if !b.Lineage.Position.After(k.Position) {
		return false
	}
	k.Position = b.Lineage.Position
	k.Ended, k.Replaced = b.Run, false
	if m.awaited != nil && len(m.of) == 1 && m.begun == 0 {
		m.begun = b.Watermark
	}
	by := tellerOf(b.Lineage.Source)
	for s, other := range m.of {
		if tellerOf(s) == by {
			other.Watermark = max(other.Watermark, b.Watermark)
		}
	}
	m.advance(by)
	return true
}

// replace notes that a new start of a gateway has spoken: the starts before it, which were killed, no longer hold the
// watermark. One that is not dead after all (paused, or another of the same name) is heard again when it speaks.
func (m *marks) replace(by flow.Source) {
	for s, k := range m.of {
		if s.Partition == by.Partition && s.Producer != by.Producer && s.Instance() == by.Instance() {
			k.Replaced = true
		}
	}
}

// advance moves the partition's watermark to the lowest that a live producer has promised. One of them was just heard,
// which speaks for all it makes.
func (m *marks) advance(heard teller) {
	newest := flow.Micros(0)
	for _, k := range m.of {
		newest = max(newest, k.Watermark)
	}
	low := newest
	for s, k := range m.of {
		if tellerOf(s) == heard {
			k.Heard = newest
		}
		switch {
		case newest.Sub(k.Heard) > producerForgotten && slices.Contains(m.awaited, tellerOf(s)):
			// One of the tasks that write a stream with a key. They are not more than they are, so none is forgotten: where they
			// catch up with days of data, each at its pace, the time of one says nothing of when another was last heard.
		case newest.Sub(k.Heard) > producerForgotten, k.Replaced && newest.Sub(k.Heard) > replacedForgotten:
			delete(m.of, s)
		case m.live(k, newest) && k.Ended == "" && !k.Replaced:
			low = min(low, k.Watermark)
		}
	}
	if newest.Sub(m.begun) <= taskSilent && m.awaits() {
		return
	}
	m.watermark = max(m.watermark, low)
}

// live says whether a producer holds the watermark back.
func (m *marks) live(k *mark, newest flow.Micros) bool {
	if m.awaited != nil {
		return newest.Sub(k.Heard) <= taskSilent
	}
	return newest.Sub(k.Watermark) <= producerSilent
}

// awaits says whether somebody is waited for who has not been heard.
func (m *marks) awaits() bool {
	for _, a := range m.awaited {
		heard := false
		for s := range m.of {
			heard = heard || tellerOf(s) == a
		}
		if !heard {
			return true
		}
	}
	return false
}

// ended is the number of sources that have ended run.
func (m *marks) ended(run string) int {
	n := 0
	for _, k := range m.of {
		if k.Ended == run {
			n++
		}
	}
	return n
}

// list is the marks in a fixed order, for a checkpoint.
func (m *marks) list() []mark {
	l := make([]mark, 0, len(m.of))
	for _, k := range m.of {
		l = append(l, *k)
	}
	slices.SortFunc(l, func(a, b mark) int {
		return cmp.Or(cmp.Compare(a.Source.Producer, b.Source.Producer),
			cmp.Compare(a.Source.Stream, b.Source.Stream), cmp.Compare(a.Source.Partition, b.Source.Partition))
	})
	return l
}

// copy is another of the same.
func (m *marks) copy() *marks {
	c := restoreMarks(m.list(), m.watermark)
	c.begun, c.awaited = m.begun, m.awaited
	return c
}

// restoreMarks is the inverse of list.
func restoreMarks(l []mark, watermark flow.Micros) *marks {
	m := newMarks()
	m.watermark = watermark
	for _, k := range l {
		k.Heard = max(k.Heard, k.Watermark) // of a checkpoint that is older than the field
		m.of[k.Source] = &k
	}
	return m
}
