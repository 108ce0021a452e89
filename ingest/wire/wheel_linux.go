package wire

import "time"

// wheel keeps the deadlines of many connections, coarsely: two pointers and no timer each. A deadline that has moved
// on stays where it is until its slot comes up, and is then asked for again: most packets move a deadline, and few
// deadlines pass. It is not safe for use by several goroutines at once.
type wheel struct {
	slots [wheelSlots]*conn
	tick  int64 // the last that was looked at
}

const (
	wheelTick  = 100 * time.Millisecond
	wheelSlots = 1024 // 102 s: what is due later is looked at every so often
)

// tickOf is the first tick not before d, a time since the loop began.
func tickOf(d time.Duration) int64 { return int64((d + wheelTick - 1) / wheelTick) }

// put has c come up at tick, or before, when that is far off. What is past comes up next.
func (w *wheel) put(c *conn, tick int64) {
	w.drop(c)
	due := min(max(tick, w.tick+1), w.tick+wheelSlots-1)
	c.due.Store(due)
	head := &w.slots[due%wheelSlots]
	if c.next = *head; c.next != nil {
		c.next.prev = c
	}
	*head = c
}

// drop takes c out, if it is in.
func (w *wheel) drop(c *conn) {
	due := c.due.Load()
	if due == 0 {
		return
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		w.slots[due%wheelSlots] = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.next, c.prev = nil, nil
	c.due.Store(0)
}

// advance takes out what is due at tick or before, and adds it to out.
func (w *wheel) advance(tick int64, out []*conn) []*conn {
	for w.tick < tick {
		w.tick++
		for c := w.slots[w.tick%wheelSlots]; c != nil; c = w.slots[w.tick%wheelSlots] {
			w.drop(c)
			out = append(out, c)
		}
	}
	return out
}
