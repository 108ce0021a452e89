package window

import (
	"container/list"
	"math"
	"slices"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/deadline"
)

// never is before every instant; added to, it does not overflow.
const never = flow.Micros(math.MinInt64 / 2)

// key is what is remembered of the rows with one value of the columns `by`.
type key struct {
	deadline.Deadline // when the next window closes should the key stay silent

	name     string      // the value, as columns.Key writes it
	latest   flow.Micros // largest event time; how far the key has come
	received flow.Micros // largest received time
	closed   flow.Micros // windows that end then or before are closed
	due      flow.Micros // of sessions: no open one ends before
	rows     []row       // that an open window may need, by time, then by arrival
	bytes    int64       // of rows

	at *list.Element // in kept.order
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
	byName map[string]*key
	order  *list.List // of keys, by their last row
	clock  flow.Micros
	queue  deadline.Queue[*key]
}

func newKept() kept { return kept{byName: map[string]*key{}, order: list.New(), clock: never} }

func (t *kept) add(k *key) { t.byName[k.name], k.at = k, t.order.PushBack(k) }

func (t *kept) touch(k *key) { t.order.MoveToBack(k.at) }

// oldest is the key that has been silent for longest; nil when there is none.
func (t *kept) oldest() *key {
	if at := t.order.Front(); at != nil {
		return at.Value.(*key)
	}
	return nil
}

// byAge gives the keys, the oldest first.
func (t *kept) byAge(yield func(*key) bool) {
	for at := t.order.Front(); at != nil && yield(at.Value.(*key)); at = at.Next() {
	}
}

func (t *kept) forget(k *key) {
	t.order.Remove(k.at)
	delete(t.byName, k.name)
}

func newKey(name string) *key {
	return &key{Deadline: deadline.New(), name: name, latest: never, received: never, closed: never, due: deadline.None}
}
