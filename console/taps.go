package console

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/apache/arrow/go/v15/arrow"
)

// queueMax is how many records wait for one looker. A looker that falls further behind misses rows.
const queueMax = 16

// Taps lets people look at the rows that pass on an edge, also on one that never reaches Kafka. The zero Taps is
// ready. An edge that nobody looks at pays one atomic load for each batch.
type Taps struct {
	mu sync.Mutex // held by those who come and go, never by Offer
	// lookers is by stream; nil while nobody looks at all. The map is never changed, only replaced.
	lookers atomic.Pointer[map[string][]*looker]
}

// looker is one queue between an edge and somebody who looks at it.
type looker struct {
	mu      sync.Mutex // held for the length of a send that cannot block
	closed  bool
	queue   chan arrow.Record
	dropped atomic.Int64 // rows
}

// Offer shows the rows of rec (borrowed) to whoever looks at stream. It never waits for them: what a slow looker
// has no room for is dropped and counted. It is called by many goroutines at once, and has the form of a
// run.TapFunc.
func (t *Taps) Offer(stream string, _ int32, rec arrow.Record) {
	all := t.lookers.Load()
	if all == nil {
		return
	}
	for _, l := range (*all)[stream] {
		l.offer(rec)
	}
}

func (l *looker) offer(rec arrow.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	rec.Retain()
	select {
	case l.queue <- rec:
	default:
		rec.Release()
		l.dropped.Add(rec.NumRows())
	}
}

// Watch gives the records that pass on stream from now on, until ctx ends; then the channel is closed. Whoever
// takes a record releases it; what nobody took is released here. dropped counts the rows that found no room.
func (t *Taps) Watch(ctx context.Context, stream string) (records <-chan arrow.Record, dropped func() int64) {
	l := &looker{queue: make(chan arrow.Record, queueMax)}
	t.change(func(all map[string][]*looker) { all[stream] = append(all[stream], l) })
	context.AfterFunc(ctx, func() {
		t.change(func(all map[string][]*looker) {
			var left []*looker
			for _, other := range all[stream] {
				if other != l {
					left = append(left, other)
				}
			}
			if all[stream] = left; len(left) == 0 {
				delete(all, stream)
			}
		})
		l.close()
	})
	return l.queue, l.dropped.Load
}

// change replaces the map of lookers by a changed copy.
func (t *Taps) change(f func(map[string][]*looker)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := map[string][]*looker{}
	if old := t.lookers.Load(); old != nil {
		for stream, ls := range *old {
			next[stream] = append([]*looker(nil), ls...)
		}
	}
	f(next)
	if len(next) == 0 {
		t.lookers.Store(nil)
		return
	}
	t.lookers.Store(&next)
}

// close ends a looker. Nothing is sent after closed is set, so the queue can be emptied and closed.
func (l *looker) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for {
		select {
		case rec := <-l.queue:
			rec.Release()
		default:
			close(l.queue)
			return
		}
	}
}
