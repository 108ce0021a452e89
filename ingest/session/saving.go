package session

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc/pool"
)

// load looks for the state of a session that is new here. Callers hold the session's lock: nobody else knows it.
func (r *Registry) load(ctx context.Context, s *Session) (found bool, err error) {
	if r.Store == nil {
		return false, nil
	}
	r.mu.Lock()
	ends := r.ends[s.Key]
	r.mu.Unlock()
	if ends != nil {
		<-ends
	}
	saving := r.lockStore(s.Key)
	defer saving.Unlock()
	ctx, cancel := context.WithTimeout(ctx, r.StoreTime)
	defer cancel()
	st, err := r.Store.Load(ctx, s.Key)
	if err != nil {
		return false, fmt.Errorf("load the session of client %q: %w", s.Key.Client, err)
	}
	if st == nil || st.Expired(time.Now()) {
		return false, nil
	}
	s.restore(st)
	return true, nil
}

// lockStore makes the calls of the store for one session come one after the other.
func (r *Registry) lockStore(key Key) *sync.Mutex {
	mu := &r.saving[maphash.Comparable(r.seed, key)%uint64(len(r.saving))]
	mu.Lock()
	return mu
}

// save stores a session whose client is away, if it has changed since it was.
func (r *Registry) save(ctx context.Context, s *Session) error {
	if r.Store == nil {
		return nil
	}
	saving := r.lockStore(s.Key)
	defer saving.Unlock()
	s.mu.Lock()
	if s.gone || s.rest == nil || !s.rest.changed {
		s.mu.Unlock()
		return nil
	}
	st := s.state()
	s.rest.changed = false
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, r.StoreTime)
	defer cancel()
	if err := r.Store.Save(ctx, st); err != nil {
		r.unsaved.Add(1)
		s.mu.Lock()
		if s.rest != nil && !errors.Is(err, ErrTooLarge) { // or it is tried when it is another
			s.rest.changed = true
		}
		s.mu.Unlock()
		return fmt.Errorf("save the session of client %q: %w", s.Key.Client, err)
	}
	return nil
}

// SaveAll stores the sessions that rest here and have changed since they were stored: messages were kept for them. It gives up
// at the first that cannot be, unless that is too large, which others need not be.
func (r *Registry) SaveAll(ctx context.Context) error {
	r.mu.Lock()
	all := make([]*Session, 0, len(r.due.all))
	all = append(all, r.due.all...)
	r.mu.Unlock()
	p := pool.New().WithMaxGoroutines(savesMax).WithContext(ctx).WithCancelOnError().WithFirstError()
	var tooLarge atomic.Pointer[error]
	for _, s := range all {
		p.Go(func(ctx context.Context) error {
			err := r.save(ctx, s)
			if errors.Is(err, ErrTooLarge) { // the others are not
				tooLarge.Store(&err)
				return nil
			}
			return err
		})
	}
	err := p.Wait()
	if large := tooLarge.Load(); err == nil && large != nil {
		err = *large
	}
	return err
}

// Unsaved is how often a session could not be stored.
func (r *Registry) Unsaved() uint64 { return r.unsaved.Load() }

// savesMax is how many sessions are stored at once.
const savesMax = 64
