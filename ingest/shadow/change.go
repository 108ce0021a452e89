package shadow

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"hearthline/ingest/names"
)

// Update asks for a change of one half of a shadow.
type Update struct {
	Home, Device string
	Half         Half
	Patch        []byte // a merge patch (RFC 7396): an object, or null for nothing at all. Not changed afterwards
	Version      int64  // the version of the half that it is meant for; [AnyVersion] for whichever there is
	Delete       bool   // the whole shadow, instead; Half is Desired
	By           string // the user
}

// Versions that no document has.
const (
	AnyVersion     int64 = -1
	PresentVersion int64 = -2 // whichever there is, but there must be one
)

// Errors of an update, beside [ErrInvalid].
var (
	ErrVersion = errors.New("the shadow has another version")
	ErrTooMany = errors.New("the home's shadows are as many, or as large, as they may be")
	ErrBusy    = errors.New("too many changes are being written")
	ErrNone    = errors.New("there is no shadow")
)

// queue holds the changes of one device, in their order.
type queue struct{ waiting []*asked }

// asked is an update on its way.
type asked struct {
	Update
	done  func(error)
	begun time.Time
}

// Offer takes an update on its way without waiting: those of one device take effect in the order in which they were offered here.
// Offer says false when too many are under way. Else begin has been called, and what it gave is told, once, when the update stands
// or has failed. Neither may wait, and begin may not call back.
func (s *Shadows) Offer(u Update, begin func() (done func(error))) bool {
	key := u.Home + "/" + u.Device
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[key]
	if s.pending >= s.PendingMax || q != nil && len(q.waiting) >= s.DevicePendingMax {
		return false
	}
	s.pending++
	idle := q == nil
	if idle {
		q = &queue{}
		s.queues[key] = q
	}
	q.waiting = append(q.waiting, &asked{u, begin(), time.Now()})
	if idle {
		s.work.Go(func() { s.run(key, q) })
	}
	return true
}

// Do is Offer for those who wait. Given up, the update may yet come to stand.
func (s *Shadows) Do(ctx context.Context, u Update) error {
	done := make(chan error, 1)
	if !s.Offer(u, func() func(error) { return func(err error) { done <- err } }) {
		return ErrBusy
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run writes the changes of a device until there are none.
func (s *Shadows) run(key string, q *queue) {
	for {
		some := s.next(key, q)
		if some == nil {
			return
		}
		errs := s.write(some)
		s.mu.Lock()
		s.pending -= len(some)
		s.mu.Unlock()
		for i, a := range some {
			if errors.Is(errs[i], ErrInvalid) || errors.Is(errs[i], ErrVersion) || errors.Is(errs[i], ErrTooMany) {
				s.count.refused.Add(1)
			}
			s.count.write.Observe(time.Since(a.begun))
			a.done(errs[i])
		}
	}
}

// next takes the changes of one half that stand first: they go into one record. nil ends the queue.
func (s *Shadows) next(key string, q *queue) []*asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(q.waiting) == 0 {
		delete(s.queues, key)
		return nil
	}
	n := 1
	for n < len(q.waiting) && q.waiting[n].Half == q.waiting[0].Half && !q.waiting[n].Delete && !q.waiting[0].Delete {
		n++
	}
	some := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	return some
}

// write makes changes of one half durable: all that can be, in one record. It gives an error for each.
func (s *Shadows) write(some []*asked) []error {
	ctx, cancel := context.WithTimeout(context.Background(), s.WriteTimeout)
	defer cancel()
	first := &some[0].Update
	if first.Delete {
		return []error{s.delete(ctx, first)}
	}
	for {
		base := s.get(first.Home, first.Device)
		m := s.made(base, some)
		if m.next == nil {
			return m.errs
		}
		took, err := s.put(ctx, keyOf(first.Home, first.Device, first.Half), m.next)
		if took {
			s.wroteDown(some, m)
			return m.errs
		}
		if err != nil {
			for i := range m.errs {
				if m.mine[i] {
					m.errs[i] = err
				}
			}
			return m.errs
		}
		s.count.conflicts.Add(1)
	}
}

// delete empties both halves: first the desired one, so that no hub is told to do it all again.
func (s *Shadows) delete(ctx context.Context, u *Update) error {
	if !s.get(u.Home, u.Device).there() {
		return ErrNone
	}
	for h := Desired; h <= Reported; {
		p := s.get(u.Home, u.Device)
		if h == Desired {
			if err := fits(p[Desired], u); err != nil {
				return err
			}
		}
		if p[h] == nil || p[h].deleted {
			h++
			continue
		}
		next := p[h].after(s.instant(), u.By)
		next.State, next.Times, next.deleted = emptyObject, nil, true
		took, err := s.put(ctx, keyOf(u.Home, u.Device, h), next)
		switch {
		case took && h == Desired:
			s.wish(u, next)
			h++
		case took:
			h++
		case err != nil:
			return err
		default:
			s.count.conflicts.Add(1)
		}
	}
	return nil
}

// result is what became of changes that were put together.
type result struct {
	next *section // nil: there is nothing to write
	errs []error
	mine []bool // it changed something
}

// made puts changes together, each on top of those before it.
func (s *Shadows) made(base pair, some []*asked) result {
	r := result{errs: make([]error, len(some)), mine: make([]bool, len(some))}
	stands := base[some[0].Half]
	for i, a := range some {
		over := stands
		if r.next != nil {
			over = r.next
		}
		next, err := s.apply(over, &a.Update)
		if err == nil && next != nil && !base.there() {
			err = s.admit(a.Home, a.Device)
		}
		if r.errs[i] = err; err != nil || next == nil {
			continue
		}
		r.next, r.mine[i] = next, true
	}
	if r.next == nil {
		return r
	}
	r.next.seq = 1
	more := len(r.next.State)
	if stands != nil {
		r.next.seq = stands.seq + 1
		more -= len(stands.State)
	}
	if held := s.held(some[0].Home); more > 0 && held+more > s.HomeBytesMax {
		for i := range r.mine {
			if r.mine[i] {
				r.errs[i] = fmt.Errorf("%w: %d bytes", ErrTooMany, held)
			}
		}
		r.next = nil
	}
	return r
}

// held is how many bytes the shadows of a home take.
func (s *Shadows) held(home string) (bytes int) {
	for _, rec := range s.Table.Scan(home + "/") {
		bytes += len(rec.Value)
	}
	return bytes
}

// fits says whether an update is meant for what stands.
func fits(old *section, u *Update) error {
	version, there := int64(0), old != nil && !old.deleted
	if there {
		version = old.version
	}
	switch {
	case u.Version >= 0 && u.Version != version:
		return fmt.Errorf("%w: %d of %s; the change is meant for %d", ErrVersion, version, u.Half, u.Version)
	case u.Version == PresentVersion && !there:
		return fmt.Errorf("%w: none of %s", ErrVersion, u.Half)
	}
	return nil
}

// after is a half as it follows on another one.
func (s *section) after(now time.Time, by string) *section {
	n := &section{header: header{version: 1, seq: 1}, Updated: now, By: by, Times: map[string]time.Time{}}
	if s != nil {
		n.version, n.seq = s.version+1, s.seq+1
		maps.Copy(n.Times, s.Times)
	}
	return n
}

// apply makes a change; nil when it changes nothing.
func (s *Shadows) apply(old *section, u *Update) (*section, error) {
	if err := fits(old, u); err != nil {
		return nil, err
	}
	next := old.after(s.instant(), u.By)
	patch, err := parse(u.Patch, s.DepthMax)
	if err != nil {
		return nil, err
	}
	var state map[string]any
	if old != nil {
		if state, err = old.object(); err != nil {
			s.Logger.Error("shadow: what stands cannot be read; it is begun anew", "home", u.Home, "device", u.Device, "error", err)
		}
	}
	if patch != nil && object(patch) == nil {
		return nil, invalid("want an object, or null")
	}
	merged := object(merge(state, patch))
	if merged == nil {
		merged = map[string]any{}
	}
	if same(merged, state) || len(merged) == 0 && len(state) == 0 {
		s.count.unchanged.Add(1)
		return nil, nil
	}
	return next, s.fill(next, merged, state)
}

// fill gives a half its state, within the limits.
func (s *Shadows) fill(next *section, state, before map[string]any) (err error) {
	if n := members(state); n > s.PropertiesMax {
		return invalid("%d properties; at most %d", n, s.PropertiesMax)
	}
	if next.State, err = encode(state); err != nil {
		return invalid("%v", err)
	}
	if len(next.State) > s.DocumentMax {
		return invalid("%d bytes; at most %d", len(next.State), s.DocumentMax)
	}
	next.state = state
	for name := range next.Times {
		if _, ok := state[name]; !ok {
			delete(next.Times, name)
		}
	}
	for name, v := range state {
		if is, ok := before[name]; !ok || !same(v, is) {
			next.Times[name] = next.Updated
		}
	}
	return nil
}

// admit says why a device may not have a shadow, where it has none.
func (s *Shadows) admit(home, device string) error {
	if why := names.Bad(home); why != "" {
		return invalid("the home's name %s", why)
	}
	if why := names.Bad(device); why != "" {
		return invalid("the device's name %s", why)
	}
	devices, last := 0, ""
	for _, rec := range s.Table.Scan(home + "/") {
		if _, device, _, ok := splitKey(rec.Key); ok && device != last {
			last = device
			if s.get(home, device).there() {
				devices++
			}
		}
	}
	if devices >= s.DevicesMax {
		return fmt.Errorf("%w: %d", ErrTooMany, devices)
	}
	return nil
}

func (s *Shadows) instant() time.Time { return s.Now().UTC().Truncate(time.Millisecond) }

// put writes a record, and says whether it took effect: another one may have been first.
func (s *Shadows) put(ctx context.Context, key string, next *section) (took bool, err error) {
	next.write = s.Gateway + "/" + strconv.FormatInt(s.writing.Add(1), 36)
	raw, err := next.encode()
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	s.wrote[next.write] = false
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		took = s.wrote[next.write]
		delete(s.wrote, next.write)
		s.mu.Unlock()
	}()
	at, err := s.Table.Put(ctx, key, raw)
	if err == nil {
		err = s.Table.Reached(ctx, at)
	}
	return false, err
}

// wroteDown counts what stands, and has users' wishes written down.
func (s *Shadows) wroteDown(some []*asked, m result) {
	for i, a := range some {
		switch {
		case !m.mine[i]:
		case a.Half == Reported:
			s.count.reported.Add(1)
		default:
			s.wish(&a.Update, m.next)
		}
	}
}

func (s *Shadows) wish(u *Update, stands *section) {
	s.count.desired.Add(1)
	if s.Audit == nil {
		return
	}
	var patch bytes.Buffer
	if len(u.Patch) > 0 && json.Compact(&patch, u.Patch) != nil {
		return // it was read before
	}
	s.Audit(Change{Home: u.Home, Device: u.Device, By: u.By, Version: stands.version, Patch: patch.Bytes(), At: stands.Updated})
}
