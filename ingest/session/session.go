package session

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hearthline/ingest/mqtt"
)

// Link is a connection's way out, as [hearthline/ingest/wire.Link] is one. Its methods do not wait for the client.
type Link interface {
	Add(size int, encode func(b []byte) []byte) bool
	FlushApart()
	FinishApart()
}

// Terms are what one connection of a client takes. A session knows its connection by them.
type Terms struct {
	Link      Link
	PacketMax int    // bytes of a packet that the client takes
	Window    uint16 // QoS 1 and 2 messages that it takes at once
	AliasMax  uint16 // topic aliases that it keeps
	Version   byte
	Who       any // whom it speaks for; for [Audience.Hand] to choose by

	aliases map[string]uint16 // given out on this connection; guarded by the session's lock
}

// Session is the state of one client, which its connection comes and goes with. Its methods may be called by any goroutine.
type Session struct {
	Key   Key
	Mark  atomic.Uint64 // of whoever holds it: the number of its claim
	owner *Registry

	mu     sync.Mutex
	at     *Terms // nil while the client is away
	who    any    // of its last connection here: [Terms.Who]
	will   *Will
	out    *outbox  // nil while nothing was ever on its way
	in     *inbox   // nil unless the client sends QoS 2
	rest   *resting // nil unless it is away
	subs   []Subscription
	expiry uint32
	last   uint16 // packet id given out
	begun  bool   // it was loaded, or has had a connection
	gone   bool   // it has ended
	willed bool   // its will was said to [Registry.Willed], and not taken back
	number uint64 // of its will
	lent   bool   // another gateway was given it, whose claim has not been seen yet
}

// resting is what is known of a session whose client is away.
type resting struct {
	since   time.Time
	changed bool // since it was saved
	index   int  // in the registry's heap
	due     time.Time
}

// Expire changes how long the session outlives its connection t: a DISCONNECT may say so. It does nothing once another
// connection has the session.
func (s *Session) Expire(t *Terms, seconds uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == t {
		s.expiry = seconds
	}
}

// DiscardWill takes back the will of connection t [MQTT-3.14.4-3]. It is done when the client says goodbye, and not only when its
// connection has ended: it may be back under its id in between, and a takeover publishes the will. It does nothing once
// another connection has the session.
func (s *Session) DiscardWill(t *Terms) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == t {
		s.will = nil
	}
}

// Subscriptions are those the session holds.
func (s *Session) Subscriptions() []Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Subscription(nil), s.subs...)
}

// state is the session as it is stored. Messages that wait for the log to take them are not part of it: their client sends
// them again. Callers hold mu.
func (s *Session) state() *State {
	st := &State{Key: s.Key, Expiry: s.expiry, Will: s.will}
	if s.rest != nil {
		st.Away = s.rest.since
	}
	st.Subscriptions = append(st.Subscriptions, s.subs...)
	if s.in != nil {
		st.Received = append(st.Received, s.in.received...)
	}
	if s.out != nil {
		handed := func(d Delivery) bool { return d.acked != nil }
		st.Flight = slices.DeleteFunc(append(st.Flight, s.out.flight...), handed)
		st.Queue = slices.DeleteFunc(append(st.Queue, s.out.queue...), handed)
	}
	return st
}

// restore takes over a stored state. Callers hold mu.
func (s *Session) restore(st *State) {
	s.begun, s.expiry, s.will, s.subs = true, st.Expiry, st.Will, st.Subscriptions
	if len(st.Received) > 0 {
		s.in = &inbox{received: st.Received}
	}
	if len(st.Flight)+len(st.Queue) > 0 {
		s.out = &outbox{flight: st.Flight, queue: st.Queue}
		for _, all := range [][]Delivery{st.Flight, st.Queue} {
			for i := range all {
				s.out.hold(s.owner, all[i].size())
			}
		}
		if n := len(st.Flight); n > 0 {
			s.last = st.Flight[n-1].ID
		}
	}
}

// evict ends a connection in favour of another one, or for good.
func evict(t *Terms, code byte, why string) {
	if t.Version == mqtt.V5 {
		if 8+len(why) > t.PacketMax {
			why = ""
		}
		t.Link.Add(8+len(why), func(b []byte) []byte { return mqtt.AppendDisconnect(b, code, why) })
	}
	t.Link.FinishApart()
}
