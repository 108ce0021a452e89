package session

import (
	"context"
	"time"
)

// Left is what a session leaves behind.
type Left struct {
	Will   Will // its delay ends with the session at the latest
	Number uint64
	Due    time.Time // when it is published if the client does not come back; zero: the client is connected
}

// bequest gives a session a will, or none, and says so where that is another one than was said. Callers hold the session's lock.
func (r *Registry) bequest(s *Session, w *Will) {
	if w != nil && w != s.will {
		r.mu.Lock()
		r.wills++
		s.number = r.wills
		r.mu.Unlock()
	}
	s.will = w
	if r.Willed != nil && (w != nil || s.willed) {
		s.willed = w != nil
		r.Willed(s)
	}
}

// Will gives what a session of this registry leaves behind; nil: nothing.
func (r *Registry) Will(key Key) *Left {
	s := r.find(key)
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || s.will == nil {
		return nil
	}
	left := &Left{Will: *s.will, Number: s.number}
	left.Will.Delay = min(left.Will.Delay, s.expiry)
	if s.rest != nil {
		left.Due = s.rest.since.Add(time.Duration(left.Will.Delay) * time.Second)
	}
	return left
}

// DropWill takes back a will that another gateway has published. It does nothing when the session has another one by now.
func (r *Registry) DropWill(key Key, number uint64) {
	s := r.find(key)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.number == number && s.will != nil {
		s.will, s.willed = nil, false
		if s.rest != nil {
			s.rest.changed = true
		}
	}
}

// PublishWill publishes a will, if there is one.
func (r *Registry) PublishWill(w *Will) {
	if w == nil {
		return
	}
	m := w.Message
	if w.Expiry > 0 {
		m.Expires = time.Now().Add(time.Duration(w.Expiry) * time.Second)
	}
	r.Publish(&m)
}

// A gateway that has stood still may have been taken for dead, its wills published and its sessions gone. What it finds when it
// goes on, clients that were not heard for too long, it must not act upon before it knows.
const (
	doubtEvery = 50 * time.Millisecond
	doubtMax   = 5 * time.Second // then it is acted upon: the log is away, and nobody is taken for dead
)

// departure is the end of a connection that waits until there is no doubt.
type departure struct {
	s  *Session
	t  *Terms
	at time.Time
}

// postpone has the end of a connection wait, if there is doubt. They are bounded by the connections there were.
func (r *Registry) postpone(s *Session, t *Terms) bool {
	if r.Doubt == nil || !r.Doubt() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return false
	}
	r.late = append(r.late, departure{s, t, time.Now()})
	return true
}

// keepLeaving ends connections that have waited.
func (r *Registry) keepLeaving(ctx context.Context) {
	tick := time.NewTicker(doubtEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		r.mu.Lock()
		r.over = ctx.Err() != nil
		late := r.late
		if !r.over && len(late) > 0 && r.Doubt() && time.Since(late[0].at) < doubtMax {
			late = nil
		} else {
			r.late = nil
		}
		r.mu.Unlock()
		for _, d := range late {
			r.depart(d.s, d.t)
		}
	}
}

// doubts says whether there is doubt, and has not been for too long; since keeps when it began.
func (r *Registry) doubts(since *time.Time) bool {
	if r.Doubt == nil || !r.Doubt() {
		*since = time.Time{}
		return false
	}
	if since.IsZero() {
		*since = time.Now()
	}
	return time.Since(*since) < doubtMax
}
