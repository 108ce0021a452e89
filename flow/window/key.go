package window

import (
	"container/heap"
	"math"
	"slices"

	"hearthline/flow"
	"hearthline/flow/columns"
)

const (
	// never is before every instant; added to, it does not overflow.
	never = flow.Micros(math.MinInt64 / 2)
	// noDeadline is after every instant.
	noDeadline = flow.Micros(math.MaxInt64)
)

// key is what is remembered of the rows with one value of the columns `by`.
type key struct {
	name     string      // the value, as columns.Key writes it
	latest   flow.Micros // largest event time; how far the key has come
	received flow.Micros // largest received time
	closed   flow.Micros // windows that end then or before are closed
	due      flow.Micros // of sessions: no open one ends before
	deadline flow.Micros // when the next window closes should the key stay silent; noDeadline if none is open
	queuedAt flow.Micros // the deadline under which it stands in the queue; noDeadline if it does not
	rows     []row       // that an open window may need, by time, then by arrival
	bytes    int64       // of rows

	older, newer *key // by the last row
}

// row is one row that is kept.
type row struct {
	at    flow.Micros
	bytes int64
	ref   columns.Ref
}

// add puts a row where its time says. Rows come nearly in order, so it mostly is the end.
func (k *key) add(r row) {
	k.bytes += r.bytes
	if n := len(k.rows); n == 0 || k.rows[n-1].at <= r.at {
		k.rows = append(k.rows, r)
		return
	}
	i, _ := slices.BinarySearchFunc(k.rows, r.at, func(k row, at flow.Micros) int {
		if k.at <= at { // behind those of the same time
			return -1
		}
		return 1
	})
	k.rows = slices.Insert(k.rows, i, r)
}

// kept is the keys of a partition by their last row, bounded in number and age.
type kept struct {
	byName         map[string]*key
	oldest, newest *key
	clock          flow.Micros
	queue          queue
}

func newKept() kept { return kept{byName: map[string]*key{}, clock: never} }

func (t *kept) link(k *key) {
	k.older, k.newer = t.newest, nil
	if t.newest != nil {
		t.newest.newer = k
	} else {
		t.oldest = k
	}
	t.newest = k
}

func (t *kept) unlink(k *key) {
	if k.older != nil {
		k.older.newer = k.newer
	} else {
		t.oldest = k.newer
	}
	if k.newer != nil {
		k.newer.older = k.older
	} else {
		t.newest = k.older
	}
	k.older, k.newer = nil, nil
}

func (t *kept) touch(k *key) {
	if t.newest != k {
		t.unlink(k)
		t.link(k)
	}
}

func (t *kept) forget(k *key) {
	t.unlink(k)
	delete(t.byName, k.name)
}

func newKey(name string) *key {
	return &key{name: name, latest: never, received: never, closed: never, due: noDeadline, deadline: noDeadline, queuedAt: noDeadline}
}

// queue holds the keys with open windows by the deadline they had when they were put in: a heap. A deadline mostly moves
// back, and is looked at again when it comes up; one that moves forward is put in again, and the place before is stale.
type queue []queued

type queued struct {
	at  flow.Micros
	key *key
}

func (q *queue) push(k *key) {
	k.queuedAt = k.deadline
	heap.Push((*byDeadline)(q), queued{k.deadline, k})
}

// due takes out a key whose deadline is not after the watermark; nil if there is none.
func (q *queue) due(watermark flow.Micros) *key {
	for len(*q) > 0 && (*q)[0].at <= watermark {
		top := heap.Pop((*byDeadline)(q)).(queued)
		if top.key.queuedAt != top.at {
			continue
		}
		top.key.queuedAt = noDeadline
		switch {
		case top.key.deadline == noDeadline:
		case top.key.deadline > watermark:
			q.push(top.key)
		default:
			return top.key
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
