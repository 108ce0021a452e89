package session

import (
	"context"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hearthline/ingest/mqtt"
)

// Registry holds the sessions of one gateway: those of its clients, and those whose clients are away. Its exported fields are set
// before its first use.
type Registry struct {
	AwayMax       int           // sessions whose clients are away; beyond, the one that expires first ends
	UserAwayMax   int           // of one user, likewise
	QueueMax      int           // QoS 1 and 2 messages that wait for one client, besides those in flight
	QueueBytesMax int           // of them, with those in flight
	BytesMax      int           // of all sessions together
	Store         Store         // may be nil
	StoreTime     time.Duration // of one call
	Audience      *Audience
	Publish       func(m *mqtt.Message) // of a will; not called under a lock
	Taken         func(*Session)        // is told of each session that is new here, once whoever had it has let go of it, under its lock; nil: nobody asks
	Ended         func(*Session)        // is told of each of them that has ended, not under a lock; nil: nobody asks
	Willed        func(*Session)        // is told when what a session leaves behind ([Registry.Will]) has changed, under its lock; nil: nobody asks
	Doubt         func() bool           // says that sessions here may be another gateway's by now: ends of connections wait; nil: never
	Logger        *slog.Logger

	bytes    atomic.Int64
	messages atomic.Int64
	unsaved  atomic.Uint64
	seed     maphash.Seed
	saving   [64]sync.Mutex // held while a session is saved, loaded or deleted, so that its last word stands

	mu       sync.Mutex // taken after a session's, never before
	sessions map[Key]*Session
	wills    uint64                // numbers given out
	late     []departure           // ends of connections that wait
	over     bool                  // none waits any more
	awayOf   map[string]int        // by user
	ends     map[Key]chan struct{} // sessions being deleted from the store
	due      heap
	wake     chan struct{} // capacity 1
}

// Open makes the registry ready.
func (r *Registry) Open() {
	r.seed = maphash.MakeSeed()
	r.sessions, r.awayOf = make(map[Key]*Session), make(map[string]int)
	r.ends = make(map[Key]chan struct{})
	r.wake = make(chan struct{}, 1)
}

// Entry is a CONNECT, as the registry sees it.
type Entry struct {
	Key    Key
	Clean  bool
	Expiry uint32 // seconds that the session outlives this connection
	Will   *Will
	Terms  *Terms
	// Welcome adds the CONNACK; nothing is sent to the client before it. It is called under a lock.
	Welcome func(present bool) error
	// May says whether the client may subscribe to a filter, or see a topic: what it could before it went away it may
	// not now.
	May func(filter string) bool
}

// Claim gives a client its session: the one it has, wherever that is, or a new one. A connection that the session had is
// told to go (0x8E); the session stays, unless a clean start or its expiry of 0 ends it. tookOver says that there was one.
func (r *Registry) Claim(ctx context.Context, e *Entry) (s *Session, tookOver bool, err error) {
	taken := false      // from whoever had it
	var loaded *Session // that nobody knew here before
	for {
		s := r.open(e.Key)
		s.mu.Lock()
		if loaded != nil && s != loaded { // yet another gateway has claimed it meanwhile
			taken, loaded = false, nil
		}
		switch {
		case s.gone:
			s.mu.Unlock()
			continue
		case s.lent && s.at == nil:
			s.mu.Unlock()
			if err := r.forgo(ctx, s); err != nil {
				return nil, tookOver, err
			}
			continue
		case !s.begun && !taken:
			found, err := r.load(ctx, s)
			if err != nil {
				r.leaveUnbegun(s)
				return nil, tookOver, err
			}
			if taken = true; found {
				loaded = s
				r.take(s)
				s.mu.Unlock()
				r.resubscribe(s, e, true) // before the client knows that it has its session
				continue
			}
		}
		if !s.begun {
			r.take(s)
		}
		old := s.at
		if old != nil {
			evict(old, mqtt.CodeTakenOver, "another connection uses this client id")
			tookOver = true
		}
		if s.begun && (e.Clean || old != nil && s.expiry == 0) {
			r.finish(s)
			loaded = nil
			continue
		}
		var will *Will
		if old != nil && s.will != nil && s.will.Delay == 0 {
			will = s.will
		}
		if err := e.Welcome(s.begun); err != nil {
			r.unwelcome(s, s == loaded && old == nil)
			return nil, tookOver, err
		}
		r.attach(s, e)
		s.mu.Unlock()
		r.PublishWill(will)
		if s != loaded {
			r.resubscribe(s, e, false)
		}
		return s, tookOver, nil
	}
}

// take says that a session is this gateway's from now on. Callers hold its lock.
func (r *Registry) take(s *Session) {
	if r.Taken != nil {
		r.Taken(s)
	}
}

// unwelcome is called when a client went away before it was told of its session. What was loaded for it is this gateway's to keep.
// Callers hold the session's lock, which is given up.
func (r *Registry) unwelcome(s *Session, loaded bool) {
	switch {
	case loaded && s.rest == nil:
		r.part(s)
	case s.begun:
		s.mu.Unlock()
	default:
		r.leaveUnbegun(s)
		if r.Ended != nil {
			r.Ended(s)
		}
	}
}

// open gives the session of a key, a new one if there is none.
func (r *Registry) open(key Key) *Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[key]
	if s == nil {
		s = &Session{Key: key, owner: r}
		r.sessions[key] = s
	}
	return s
}

// leaveUnbegun forgets a session that never had a connection, and leaves alone one that had. Callers hold the session's lock,
// which is given up.
func (r *Registry) leaveUnbegun(s *Session) {
	unbegun := !s.begun
	s.gone = unbegun
	s.mu.Unlock()
	if unbegun {
		r.remove(s)
	}
}

// attach gives a session its connection. Callers hold the session's lock.
func (r *Registry) attach(s *Session, e *Entry) {
	s.at, s.who, s.expiry, s.begun = e.Terms, e.Terms.Who, e.Expiry, true
	r.bequest(s, e.Will)
	if s.out != nil {
		s.out.sent = 0
		s.keep(e.May)
	}
	r.unpark(s)
	s.pump(time.Now())
	s.at.Link.FlushApart()
}

// resubscribe puts the subscriptions of a session that was away into force, where they are not (it was loaded), and ends those
// that the client may not have any more.
func (r *Registry) resubscribe(s *Session, e *Entry, loaded bool) {
	for _, sub := range s.Subscriptions() {
		_, filter, _ := mqtt.Shared(sub.Filter)
		home, ok := HomeOf(filter)
		switch {
		case !ok || !e.May(filter):
			r.Audience.Unsubscribe(home, s, sub.Filter)
		case loaded:
			r.Audience.Subscribe(home, s, sub)
		}
	}
}

// Leave is called when a connection has ended: the session ends too, or rests. A will that was not discarded is published, at
// once, after its delay, or when the session ends.
func (r *Registry) Leave(s *Session, t *Terms) {
	if !r.postpone(s, t) {
		r.depart(s, t)
	}
}

func (r *Registry) depart(s *Session, t *Terms) {
	s.mu.Lock()
	if s.gone || s.at != t { // another connection has it
		s.mu.Unlock()
		return
	}
	if s.expiry == 0 {
		r.finish(s)
		return
	}
	r.part(s)
	if err := r.save(context.Background(), s); err != nil {
		r.Logger.Warn("gateway: a session is held by this gateway alone", "err", err)
	}
}

// part lets a session rest that has lost its connection. Callers hold its lock, which is given up.
func (r *Registry) part(s *Session) {
	s.at = nil
	var will *Will
	if s.will != nil && s.will.Delay == 0 {
		will, s.will = s.will, nil
	}
	s.rest = &resting{since: time.Now(), changed: true, index: -1}
	r.bequest(s, s.will)
	tooMany := r.park(s)
	s.mu.Unlock()
	r.PublishWill(will)
	for _, old := range tooMany {
		r.end(old)
	}
}

// EndOf ends the sessions that rest here of those who shall not come back, and says how many. What was said of somebody by another gateway, or before
// a restart, is not known here.
func (r *Registry) EndOf(gone func(who any) bool) int {
	r.mu.Lock()
	all := slices.Clone(r.due.all)
	r.mu.Unlock()
	n := 0
	for _, s := range all {
		s.mu.Lock()
		over := s.at == nil && s.who != nil && gone(s.who)
		s.mu.Unlock()
		if over {
			r.end(s)
			n++
		}
	}
	return n
}

// end ends a session at once, if its client is away.
func (r *Registry) end(s *Session) {
	s.mu.Lock()
	if s.gone || s.at != nil {
		s.mu.Unlock()
		return
	}
	r.finish(s)
}

// finish ends a session. Callers hold its lock, which is given up.
func (r *Registry) finish(s *Session) {
	s.gone, s.at = true, nil
	r.unpark(s)
	subs, will, out := s.subs, s.will, s.out
	s.subs, s.out, s.in = nil, nil, nil
	r.bequest(s, nil)
	if out != nil {
		out.release(r)
	}
	s.mu.Unlock()
	ended := r.ending(s)
	defer ended()
	if r.Ended != nil {
		defer r.Ended(s)
	}
	r.Audience.forget(s, subs)
	if out != nil {
		r.Audience.passOn(out.flight, out.queue)
	}
	r.PublishWill(will)
	if r.Store == nil {
		return
	}
	saving := r.lockStore(s.Key)
	defer saving.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), r.StoreTime)
	defer cancel()
	if err := r.Store.Delete(ctx, s.Key); err != nil {
		r.Logger.Warn("gateway: a session that has ended could not be deleted; it will be found expired", "client", s.Key.Client, "err", err)
	}
}

// ending removes a session that is being ended. Until done is called, no other session of its key is loaded: it
// would find what is about to be deleted.
func (r *Registry) ending(s *Session) (done func()) {
	r.mu.Lock()
	if r.sessions[s.Key] == s {
		delete(r.sessions, s.Key)
	}
	if r.Store == nil {
		r.mu.Unlock()
		return func() {}
	}
	over, before := make(chan struct{}), r.ends[s.Key]
	r.ends[s.Key] = over
	r.mu.Unlock()
	return func() {
		if before != nil {
			<-before
		}
		r.mu.Lock()
		if r.ends[s.Key] == over {
			delete(r.ends, s.Key)
		}
		r.mu.Unlock()
		close(over)
	}
}

func (r *Registry) remove(s *Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions[s.Key] == s {
		delete(r.sessions, s.Key)
	}
}

// Kept is the number of QoS 1 and 2 messages that are kept for clients, those in flight among them, and their bytes.
func (r *Registry) Kept() (messages, bytes int64) { return r.messages.Load(), r.bytes.Load() }

// Len is the number of sessions, and how many of their clients are away.
func (r *Registry) Len() (all, away int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions), len(r.due.all)
}
