package wire

import "context"

// Slot is the right to compute one handshake. It is held by one goroutine.
type Slot struct {
	Ctx  context.Context // of the handshake
	Free chan struct{}   // shared: its capacity is the number of slots
	held bool
}

func (s *Slot) Acquire() error {
	select {
	case s.Free <- struct{}{}:
		s.held = true
		return nil
	case <-s.Ctx.Done():
		return s.Ctx.Err()
	}
}

func (s *Slot) Release() {
	if s.held {
		<-s.Free
		s.held = false
	}
}
