package simulator

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// hub is one home's connection and its place in the line of work. One goroutine runs it: it sends what is due,
// then reads until the next is. What is outstanding is kept as positions, not as bytes.
type hub struct {
	r              *run
	number         int
	plan           *plan
	version        byte
	user, password string

	cursor  int64 // the slot to send next
	sub     int   // and which of its messages
	slot    slot  // what it holds, once loaded
	loaded  bool
	limit   int64 // slots that there are
	out     []entry
	written int // how many of out were written on this connection
	window  int // how many may be unacknowledged on it
	id      uint16
	done    tally // rows acknowledged of slots that are not complete yet

	anchor       time.Time     // of a recording: when this run began to play it,
	anchorPlayed time.Duration // and where

	ghost net.Conn      // a connection left half open
	tries int           // failures in a row
	rest  time.Duration // how long to stay away before the next connection
	seen  bool          // it has been connected

	reserved atomic.Int64 // rounds below this may be sent

	mu           sync.Mutex // guards what follows, which the journal reads
	acknowledged int64      // every slot below is
	sent         int64      // rounds that were begun
	rows         tally      // rows acknowledged in this run, of the slots below acknowledged

	desk desk // of commands; the hub's own

	inherited int64 // rounds reserved by runs before this one

	noted int64 // sent, when the journal was written last; the journal's own
}

// entry is a message that is outstanding.
type entry struct {
	message
	slot  int64
	at    time.Time // when it was written last
	id    uint16
	last  bool // of its slot
	done  bool // acknowledged, or refused
	times uint8
}

func newHub(r *run, p *plan, number int, m *hubMark) *hub {
	h := &hub{r: r, plan: p, number: number, version: byte(r.s.MQTT), window: r.s.Window,
		cursor: m.acknowledged, acknowledged: m.acknowledged, sent: m.acknowledged / p.devices(), limit: p.limit() * p.devices()}
	if p.limit() > (1<<62-1)/p.devices() {
		h.limit = 1<<63 - 1
	}
	if h.version == 0 {
		h.version = [2]byte{version5, version311}[number%2]
	}
	h.noted = h.sent
	h.inherited = m.reserved
	h.reserved.Store(m.reserved)
	return h
}

// reserveMax bounds how many rounds a hub may send beyond what the journal knows. A killed hub sends at most these
// again, far fewer than the 1024 sequences that a dedupe stage remembers.
const reserveMax = 256

// mark notes the hub's place in its line of the journal, adds its rows, and reserves rounds: twice what it sent since
// the last time. final gives back what was reserved and not used. It says whether the line has changed.
func (h *hub) mark(m *hubMark, rows *tally, final bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f, n := range h.rows {
		rows[f] += n
	}
	reserve := max(m.reserved, h.sent+min(2*(h.sent-h.noted)+4, reserveMax))
	if final {
		reserve = max(h.inherited, h.sent) // a run that was killed may have used all that it had reserved
	}
	h.noted = h.sent
	if m.acknowledged == h.acknowledged && m.reserved == reserve {
		return false
	}
	m.acknowledged, m.reserved = h.acknowledged, reserve
	return true
}

// run keeps the hub connected until its work is done. When stop ends it sends nothing new; when hard ends it
// leaves at once.
func (h *hub) run(stop, hard context.Context) {
	h.user, h.password = h.r.s.Credentials(h.plan.name)
	h.anchor, h.anchorPlayed = time.Now(), 0
	if h.plan.recording != nil {
		h.anchorPlayed = h.plan.recording.played(h.cursor / h.plan.devices())
	}
	defer func() {
		if h.ghost != nil {
			h.ghost.Close()
		}
	}()
	for !h.finished(stop.Err() != nil) && hard.Err() == nil {
		before := h.acknowledged
		err := h.session(stop, hard)
		h.broke()
		if h.finished(stop.Err() != nil) || hard.Err() != nil {
			break
		}
		if h.acknowledged > before {
			h.tries = 0
		}
		if err != nil && !spoilt(err) {
			h.r.count.failed(err)
			h.tries = min(h.tries+1, 30)
		}
		h.pause(stop, hard)
	}
	if h.finished(false) {
		h.r.count.finished.Add(1)
	}
}

// pause waits before the next connection: full jitter (Brooker: Exponential Backoff and Jitter, 2015), so that hubs that
// lost their server together do not come back together.
func (h *hub) pause(stop, hard context.Context) {
	top := h.r.s.BackoffMax
	if shift := max(h.tries-1, 0); shift < 20 {
		top = min(top, h.r.s.BackoffMin<<shift)
	}
	wait := h.rest + rand.N(top) // #nosec G404 -- a wait, not a secret
	h.rest = 0
	timer := time.NewTimer(wait)
	defer timer.Stop()
	stopped := stop.Done()
	if stop.Err() != nil {
		stopped = nil // there is something left to bring home: it waits its turn
	}
	select {
	case <-timer.C:
	case <-stopped:
	case <-hard.Done():
	}
}

// finished says whether there is nothing left to do.
func (h *hub) finished(stopping bool) bool {
	return len(h.out) == 0 && h.sub == 0 && (stopping || h.cursor >= h.limit)
}

// due is when the slot at the cursor may be sent.
func (h *hub) due() time.Time {
	round, device := h.cursor/h.plan.devices(), int(h.cursor%h.plan.devices())
	at := microsTime(h.plan.time(device, round))
	if h.plan.recording == nil || h.r.s.Speed == 0 {
		return at
	}
	played := h.plan.recording.played(round) - h.anchorPlayed
	if paced := h.anchor.Add(time.Duration(float64(played) / h.r.s.Speed)); paced.After(at) {
		return paced
	}
	return at // the recording has caught up with the present: from here on it is live
}

// pick chooses the message to write next: one to be written again, else a new one. Without one it says when to
// ask again, the zero time for when an answer has come. link is what befalls the connection after it.
func (h *hub) pick(now time.Time, stopping bool) (e *entry, link Fault, again time.Time) {
	busy, alone := 0, false
	for i := range h.out[:h.written] {
		if e := &h.out[i]; !e.done {
			busy++
			alone = alone || e.kind.Bad()
		}
	}
	if alone || busy >= h.window {
		return nil, Good, time.Time{}
	}
	if h.written < len(h.out) {
		h.written++
		e := &h.out[h.written-1]
		if e.done {
			return h.pick(now, stopping)
		}
		return e, Good, time.Time{}
	}
	if len(h.out) >= h.window {
		return nil, Good, time.Time{}
	}
	if again, ok := h.load(now, stopping); !ok {
		return nil, Good, again
	}
	m := h.slot.messages[h.sub]
	if m.kind.Bad() && busy > 0 {
		return nil, Good, time.Time{} // it may cost the connection: nothing good goes with it
	}
	h.nextID()
	h.sub++
	last := h.sub == h.slot.n
	h.out = append(h.out, entry{message: m, slot: h.cursor, id: h.id, last: last})
	h.written++
	if last {
		link = h.slot.link
		h.cursor++
		h.sub, h.loaded = 0, false
	}
	h.r.count.outstanding.Add(1)
	if m.kind == Duplicate {
		h.r.count.duplicates.Add(1)
	} else {
		h.r.count.generated.Add(h.plan.readings(m))
	}
	return &h.out[len(h.out)-1], link, time.Time{}
}

// load looks at the slot at the cursor, stepping over empty ones, and says whether it may be sent now.
func (h *hub) load(now time.Time, stopping bool) (again time.Time, ok bool) {
	for {
		if h.sub > 0 {
			return again, true // begun: it is finished
		}
		if stopping || h.cursor >= h.limit {
			return again, false
		}
		round := h.cursor / h.plan.devices()
		if round >= h.reserved.Load() {
			return now.Add(h.r.s.JournalEvery / 4), false
		}
		if due := h.due(); due.After(now) {
			return due, false
		}
		if !h.loaded {
			h.slot, h.loaded = h.plan.slot(h.cursor), true
			h.mu.Lock()
			h.sent = max(h.sent, round+1)
			h.mu.Unlock()
		}
		if h.slot.n > 0 {
			return again, true
		}
		h.cursor++
		h.loaded = false
	}
}

// acknowledge notes the server's answer to a message.
func (h *hub) acknowledge(id uint16, code byte, now time.Time) error {
	for i := range h.out[:h.written] {
		e := &h.out[i]
		if e.id != id || e.done {
			continue
		}
		if code >= 0x80 {
			if !e.kind.Bad() {
				return errRefused
			}
			h.r.count.refused[e.kind].Add(1)
		}
		e.done = true
		h.r.count.latency.observe(now.Sub(e.at))
		h.settle()
		return nil
	}
	return nil // of a message that was given up meanwhile
}

// broke forgets the connection: what was written on it and not answered will be written again. A bad message
// that was out has been refused by the loss of the connection.
func (h *hub) broke() {
	for i := range h.out[:h.written] {
		if e := &h.out[i]; e.kind.Bad() && !e.done {
			e.done = true
			h.r.count.refused[e.kind].Add(1)
		}
	}
	h.written = 0
	h.settle()
}

// settle drops what is done from the front of out, and moves the acknowledged position.
func (h *hub) settle() {
	n := 0
	for n < len(h.out) && h.out[n].done {
		e := &h.out[n]
		n++
		if e.kind != Duplicate {
			h.done[e.kind] += h.plan.readings(e.message)
		}
		if !e.last {
			continue
		}
		h.mu.Lock()
		h.acknowledged = e.slot + 1
		for f, rows := range h.done {
			h.rows[f] += rows
		}
		h.mu.Unlock()
		h.done = tally{}
	}
	if n > 0 {
		h.r.count.outstanding.Add(-int64(n))
		h.out = append(h.out[:0], h.out[n:]...)
		h.written = max(h.written-n, 0)
	}
}
