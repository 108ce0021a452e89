package ingest

import "context"

// slot is the right to compute one handshake. It is held by one goroutine.
type slot struct {
	ctx  context.Context // of the handshake
	free chan struct{}   // shared: its capacity is the number of slots
	held bool
}

func (s *slot) acquire() error {
	select {
	case s.free <- struct{}{}:
		s.held = true
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *slot) release() {
	if s.held {
		<-s.free
		s.held = false
	}
}
