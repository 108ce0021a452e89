package features

import (
	"container/heap"

	"hearthline/flow"
	"hearthline/stages/internal/series"
)

// queue holds the series with open windows by the deadline they had when they were put in: a heap. A deadline mostly moves
// back, and is looked at again when it comes up, so that a row need not touch the queue; one that moves forward is put in
// again, and the place it had before is stale.
type queue []queued

type queued struct {
	at    flow.Micros
	entry *series.Entry[state]
}

func (q *queue) push(e *series.Entry[state]) {
	e.State.queuedAt = e.State.deadline
	heap.Push((*byDeadline)(q), queued{e.State.deadline, e})
}

// due takes out a series whose deadline is not after the watermark; nil if there is none. Which comes first is not
// told: whoever asks sorts.
func (q *queue) due(watermark flow.Micros) *series.Entry[state] {
	for len(*q) > 0 && (*q)[0].at <= watermark {
		top := heap.Pop((*byDeadline)(q)).(queued)
		st := &top.entry.State
		if st.queuedAt != top.at {
			continue
		}
		st.queuedAt = noDeadline
		switch {
		case st.deadline == noDeadline:
		case st.deadline > watermark:
			q.push(top.entry)
		default:
			return top.entry
		}
	}
	return nil
}

type byDeadline queue

func (q byDeadline) Len() int           { return len(q) }
func (q byDeadline) Less(i, j int) bool { return q[i].at < q[j].at }
func (q byDeadline) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *byDeadline) Push(x any)        { *q = append(*q, x.(queued)) }
func (q *byDeadline) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = queued{}
	*q = (*q)[:last]
	return x
}
