package session

import (
	"context"
	"time"

	"hearthline/ingest/mqtt"
)

// HandOver gives a session to another gateway, to which its client has connected: its connection here is told to go (0x8E), and when
// what it sent with QoS 2 has been settled, as long as settleMax at most, the session's state is given out. The session rests here
// until [Registry.Surrender] says that the other gateway has claimed it: if that dies before, nothing is lost. ended says that
// the session has ended with its connection; here is false when it is not known here.
func (r *Registry) HandOver(ctx context.Context, key Key) (st *State, ended, here bool) {
	s := r.find(key)
	if s == nil {
		return nil, false, false
	}
	s.mu.Lock()
	if s.gone || !s.begun {
		s.mu.Unlock()
		return nil, false, false
	}
	if s.at != nil {
		evict(s.at, mqtt.CodeTakenOver, "another connection uses this client id")
		if s.expiry == 0 {
			r.finish(s)
			return nil, true, true
		}
		r.part(s)
	} else {
		s.mu.Unlock()
	}
	s.settle(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || s.at != nil { // it ended, or its client is back, in between
		return nil, false, false
	}
	s.lent = true
	return s.state(), false, true
}

// settleMax is how long the log may take for QoS 2 messages of a session that is being handed over. What it has not taken by then
// the client sends again, and may be taken twice.
const settleMax = time.Second

// settle waits until no QoS 2 message of a client waits for the log.
func (s *Session) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	for {
		s.mu.Lock()
		if s.in == nil || len(s.in.pending) == 0 {
			s.mu.Unlock()
			return
		}
		if s.in.settled == nil {
			s.in.settled = make(chan struct{})
		}
		settled := s.in.settled
		s.mu.Unlock()
		select {
		case <-settled:
		case <-ctx.Done():
			return
		}
	}
}

// Surrender lets go of a session that another gateway has claimed: a connection here is told to go (0x8E), and a will without
// a delay published. mark is the session's: another one of the same key stays. It says false when the session is not here, and lost when
// the other gateway was not given its state.
func (r *Registry) Surrender(key Key, mark uint64) (lost, here bool) {
	s := r.find(key)
	if s == nil {
		return false, false
	}
	s.mu.Lock()
	if s.gone || !s.begun || s.Mark.Load() != mark {
		s.mu.Unlock()
		return false, false
	}
	var will *Will
	if s.at != nil {
		evict(s.at, mqtt.CodeTakenOver, "another connection uses this client id")
		if s.will != nil && s.will.Delay == 0 {
			will = s.will
		}
	}
	lost = !s.lent && s.expiry > 0
	subs := r.drop(s)
	s.mu.Unlock()
	r.remove(s)
	r.Audience.forget(s, subs)
	r.PublishWill(will)
	return lost, true
}

// drop ends what a session is here. Callers hold its lock, and remove it from the registry and from the audience.
func (r *Registry) drop(s *Session) (subs []Subscription) {
	subs = s.subs
	s.gone, s.at = true, nil
	if s.out != nil {
		s.out.release(r)
	}
	s.subs, s.out, s.in = nil, nil, nil
	r.bequest(s, nil)
	r.unpark(s)
	return subs
}

// forgo lets go of a session whose client has come back here from the gateway that it was handed over to: it may have gone on there.
// What is known of it here is stored, for the case that the other gateway is no more.
func (r *Registry) forgo(ctx context.Context, s *Session) error {
	if err := r.save(ctx, s); err != nil {
		return err
	}
	s.mu.Lock()
	if s.gone || s.at != nil {
		s.mu.Unlock()
		return nil
	}
	subs := r.drop(s)
	s.mu.Unlock()
	r.remove(s)
	r.Audience.forget(s, subs)
	return nil
}

// find gives the session of a key, if it is here.
func (r *Registry) find(key Key) *Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[key]
}
