package session

import "slices"

// inbox knows the packet ids of the QoS 2 messages that a client has sent and not released (MQTT 5, section 4.3.3). Both
// lists are sorted, and hold an id at most once between them: 128 KiB at the worst.
type inbox struct {
	received []uint16      // taken: PUBREC has been sent, or is due
	pending  []uint16      // being taken: they wait for the log, or for the acknowledgements before theirs
	settled  chan struct{} // Closed when a pending one is taken; nil unless somebody waits
}

func insert(ids []uint16, id uint16) []uint16 {
	if i, found := slices.BinarySearch(ids, id); !found {
		ids = slices.Insert(ids, i, id)
	}
	return ids
}

func remove(ids []uint16, id uint16) ([]uint16, bool) {
	i, found := slices.BinarySearch(ids, id)
	if !found {
		return ids, false
	}
	if len(ids) == 1 {
		return nil, true
	}
	return slices.Delete(ids, i, i+1), true
}

// Seen says of a QoS 2 message whether it was taken before, and is now sent again. When it still waits for the log,
// the channel is closed once it is worth asking again.
func (s *Session) Seen(id uint16) (taken bool, wait <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in == nil {
		return false, nil
	}
	if _, found := slices.BinarySearch(s.in.pending, id); found {
		if s.in.settled == nil {
			s.in.settled = make(chan struct{})
		}
		return false, s.in.settled
	}
	_, taken = slices.BinarySearch(s.in.received, id)
	return taken, nil
}

// Pend notes a QoS 2 message that a connection is about to take. It says false when the session has another connection by
// now: its client sends the message again there.
func (s *Session) Pend(t *Terms, id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at != t {
		return false
	}
	if s.in == nil {
		s.in = new(inbox)
	}
	s.in.pending = insert(s.in.pending, id)
	return true
}

// Unpend takes Pend back: the message was not taken.
func (s *Session) Unpend(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in == nil {
		return
	}
	s.in.pending, _ = remove(s.in.pending, id)
	s.in.wake()
	if len(s.in.received)+len(s.in.pending) == 0 {
		s.in = nil
	}
}

// Take notes a QoS 2 message that the gateway answers for from now on: a repetition is not taken again until the client
// releases it.
func (s *Session) Take(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in == nil {
		s.in = new(inbox)
	}
	s.in.pending, _ = remove(s.in.pending, id)
	s.in.received = insert(s.in.received, id)
	s.in.wake()
	if s.rest != nil {
		s.rest.changed = true
	}
}

func (in *inbox) wake() {
	if in.settled != nil {
		close(in.settled)
		in.settled = nil
	}
}

// Release forgets a QoS 2 message, and says whether it was known: its client sends it no more.
func (s *Session) Release(id uint16) (known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in == nil {
		return false
	}
	s.in.received, known = remove(s.in.received, id)
	if len(s.in.received)+len(s.in.pending) == 0 && s.in.settled == nil {
		s.in = nil
	}
	return known
}
