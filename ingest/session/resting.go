package session

import (
	"context"
	"slices"
	"time"

	"github.com/sourcegraph/conc"
)

// heap holds the sessions whose clients are away, the one that is due first at the top. It is guarded by the registry's lock.
type heap struct{ all []*Session }

func (h *heap) before(i, j int) bool { return h.all[i].rest.due.Before(h.all[j].rest.due) }

func (h *heap) swap(i, j int) {
	h.all[i], h.all[j] = h.all[j], h.all[i]
	h.all[i].rest.index, h.all[j].rest.index = i, j
}

func (h *heap) up(i int) {
	for i > 0 && h.before(i, (i-1)/2) {
		h.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
}

func (h *heap) down(i int) {
	for {
		least := i
		for _, child := range []int{2*i + 1, 2*i + 2} {
			if child < len(h.all) && h.before(child, least) {
				least = child
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}

func (h *heap) push(s *Session) {
	s.rest.index = len(h.all)
	h.all = append(h.all, s)
	h.up(s.rest.index)
}

func (h *heap) remove(s *Session) {
	i, last := s.rest.index, len(h.all)-1
	h.swap(i, last)
	h.all[last] = nil
	h.all = h.all[:last]
	if i < last {
		h.up(i)
		h.down(i)
	}
	s.rest.index = -1
}

// dueAt is when something is to be done with a session that rests: its will published, or itself ended. Callers hold
// its lock.
func (s *Session) dueAt() time.Time {
	after := time.Duration(s.expiry) * time.Second
	if s.expiry == Forever {
		after = 100 * 365 * 24 * time.Hour
	}
	if s.will != nil {
		after = min(after, time.Duration(s.will.Delay)*time.Second)
	}
	return s.rest.since.Add(after)
}

// park notes that a session rests, and gives those that must end for it. Callers hold its lock.
func (r *Registry) park(s *Session) (tooMany []*Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.rest.due = s.dueAt()
	r.due.push(s)
	r.awayOf[s.Key.User]++
	if r.awayOf[s.Key.User] > r.UserAwayMax {
		if i := slices.IndexFunc(r.due.all, func(o *Session) bool { return o != s && o.Key.User == s.Key.User }); i >= 0 {
			tooMany = append(tooMany, r.due.all[i])
		}
	}
	if len(r.due.all) > r.AwayMax && r.due.all[0] != s {
		tooMany = append(tooMany, r.due.all[0])
	}
	if r.due.all[0] == s {
		r.signal()
	}
	return tooMany
}

// unpark notes that a session rests no more. Callers hold its lock.
func (r *Registry) unpark(s *Session) {
	if s.rest == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.rest.index >= 0 {
		r.due.remove(s)
		if r.awayOf[s.Key.User]--; r.awayOf[s.Key.User] == 0 {
			delete(r.awayOf, s.Key.User)
		}
	}
	s.rest = nil
}

func (r *Registry) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// saveEvery is how long what is queued for a client that is away may be in this process alone.
const saveEvery = time.Second

// Run publishes wills and ends sessions when their time has come, and stores those that messages have come for, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	var saving conc.WaitGroup
	defer saving.Wait()
	if r.Store != nil {
		saving.Go(func() { r.keepSaving(ctx) })
	}
	if r.Doubt != nil {
		saving.Go(func() { r.keepLeaving(ctx) })
	}
	var doubted time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		for {
			s, wait := r.next(time.Now())
			if s != nil && r.doubts(&doubted) {
				s, wait = nil, doubtEvery
			}
			if s == nil {
				timer.Reset(wait)
				break
			}
			r.fall(s)
		}
	}
}

func (r *Registry) keepSaving(ctx context.Context) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := r.SaveAll(ctx)
		if err != nil && !failed && ctx.Err() == nil {
			r.Logger.Warn("gateway: sessions are held by this gateway alone", "err", err)
		}
		failed = err != nil
	}
}

// next gives a session that is due, or says how long nothing is.
func (r *Registry) next(now time.Time) (*Session, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.due.all) == 0 {
		return nil, time.Hour
	}
	if wait := r.due.all[0].rest.due.Sub(now); wait > 0 {
		return nil, wait
	}
	return r.due.all[0], 0
}

// fall does what is due with a session.
func (r *Registry) fall(s *Session) {
	s.mu.Lock()
	now := time.Now()
	if s.gone || s.rest == nil || now.Before(s.rest.due) {
		s.mu.Unlock()
		return
	}
	if s.expiry != Forever && !now.Before(s.rest.since.Add(time.Duration(s.expiry)*time.Second)) {
		r.finish(s)
		return
	}
	will := s.will
	r.bequest(s, nil)
	r.mu.Lock()
	r.due.remove(s)
	s.rest.due, s.rest.changed = s.dueAt(), true
	r.due.push(s)
	r.mu.Unlock()
	s.mu.Unlock()
	r.PublishWill(will)
}
