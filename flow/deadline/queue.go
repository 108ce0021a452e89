// Package deadline finds what is due: of many things that each have a time at which something is to be done, which moves as
// rows come, those whose time a watermark has reached. A row need not touch the queue while it only puts the time off.
package deadline

import (
	"container/heap"
	"math"

	"hearthline/flow"
)

// None is the time of what is not to be done.
const None = flow.Micros(math.MaxInt64)

// Deadline is a thing's time, embedded in it. Make it with [New].
type Deadline struct {
	at     flow.Micros
	queued flow.Micros // the time under which it stands in the queue; None if it does not
}

// New is a deadline that is None.
func New() Deadline { return Deadline{None, None} }

// At is the time.
func (d *Deadline) At() flow.Micros { return d.at }

func (d *Deadline) deadline() *Deadline { return d }

// Holder is a thing that embeds a [Deadline].
type Holder interface{ deadline() *Deadline }

// Queue holds things by their deadlines: a heap. A thing stands in it under the time it had when it was put in; one whose time
// came forward is put in again, and the place it had before is stale. The zero value is ready.
type Queue[E Holder] struct{ items items[E] }

// Set gives a thing another time, which may be None.
func (q *Queue[E]) Set(e E, at flow.Micros) {
	d := e.deadline()
	if d.at = at; at < d.queued {
		d.queued = at
		heap.Push(&q.items, item[E]{at, e})
	}
}

// Due takes out a thing whose time is not after the watermark, and makes its time None. Which comes first of several is not
// told: whoever asks sorts.
func (q *Queue[E]) Due(watermark flow.Micros) (e E, ok bool) {
	for len(q.items) > 0 && q.items[0].at <= watermark {
		top := heap.Pop(&q.items).(item[E])
		d := top.of.deadline()
		if d.queued != top.at {
			continue
		}
		d.queued = None
		if d.at > watermark {
			q.Set(top.of, d.at)
			continue
		}
		d.at = None
		return top.of, true
	}
	return e, false
}

type item[E any] struct {
	at flow.Micros
	of E
}

type items[E any] []item[E]

func (q items[E]) Len() int           { return len(q) }
func (q items[E]) Less(i, j int) bool { return q[i].at < q[j].at }
func (q items[E]) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *items[E]) Push(x any)        { *q = append(*q, x.(item[E])) }
func (q *items[E]) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = item[E]{}
	*q = (*q)[:last]
	return x
}
