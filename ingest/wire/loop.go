package wire

import (
	"errors"
	"sync"
	"time"
)

// A Handler is one connection's protocol as a state machine: bytes in, nothing else. It neither reads nor waits for
// its peer, so that whatever drives it may hold a goroutine for each connection or for none.
type Handler interface {
	// Receive takes what has been read so far and says how much of it is used up; the rest, part of a packet, is
	// given again with what follows. A hold that is not empty says that nothing more is to be read, and Receive to
	// be called again, only when it is over. data is borrowed.
	Receive(data []byte) (used int, h Hold, err error)
	// Deadline is when the next packet must be complete. Zero is never.
	Deadline() time.Time
}

// Hold makes a publisher wait: until the channel is closed, or for so long, whichever is given and comes first.
type Hold struct {
	Until  <-chan struct{}
	AtMost time.Duration
}

func (h Hold) Empty() bool { return h.Until == nil && h.AtMost == 0 }

// Loop drives connections. goroutineLoop is one; an epoll loop would be another.
type Loop interface {
	// Serve drives one connection until it ends, and says why. errDraining is what it says when the gateway stops
	// reading; the connection is then still open for writing.
	Serve(l *Link, h Handler) error
}

var ErrDraining = errors.New("the gateway is going down")

// GoroutineLoop holds one goroutine for each connection, and a buffer only while it holds part of a packet.
type GoroutineLoop struct {
	Stop     <-chan struct{} // Closed when the gateway drains
	BytesMax int             // of one packet
}

// Read buffers come in two sizes; a larger packet gets a buffer of its own, doubled as its bytes come in.
const (
	bufferSmall = 4 << 10
	bufferLarge = 32 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, bufferSmall); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, bufferLarge); return &b }}
)

func takeBuffer(large bool) []byte {
	if large {
		return *largeBuffers.Get().(*[]byte)
	}
	return *smallBuffers.Get().(*[]byte)
}

func giveBuffer(b []byte) {
	switch cap(b) {
	case bufferSmall:
		smallBuffers.Put(&b)
	case bufferLarge:
		largeBuffers.Put(&b)
	}
}

func (g *GoroutineLoop) stopped() bool {
	select {
	case <-g.Stop:
		return true
	default:
		return false
	}
}

func (g *GoroutineLoop) Serve(l *Link, h Handler) error {
	var buf []byte // nil while nothing is held
	have := 0
	defer func() {
		giveBuffer(buf)
		l.Wire.drop()
	}()
	for {
		if buf == nil {
			buf = takeBuffer(len(l.Wire.rest) > bufferSmall)
		} else if have == len(buf) {
			grown := make([]byte, min(2*len(buf), g.BytesMax+bufferSmall))
			copy(grown, buf)
			giveBuffer(buf)
			buf = grown
		}
		n, err := l.Tls.Read(buf[have:])
		have += n
		if err == nil && have < len(buf) && have < bufferSmall {
			continue // more records may be there: decode them together
		}
		used, rerr := g.receive(l, h, buf[:have])
		if rerr != nil {
			return rerr
		}
		if used > 0 {
			have = copy(buf, buf[used:have])
		}
		switch {
		case err == nil:
			continue
		case err != error(errNothing):
			return err
		}
		if have == 0 {
			giveBuffer(buf)
			buf = nil
		}
		if err := l.Wire.wait(h.Deadline(), g.stopped); err != nil {
			if g.stopped() { // it was woken to be told so
				return ErrDraining
			}
			return err
		}
	}
}

// receive gives data to the handler until it wants more, waiting out its holds.
func (g *GoroutineLoop) receive(l *Link, h Handler, data []byte) (used int, err error) {
	for {
		n, wait, err := h.Receive(data[used:])
		used += n
		if err != nil || wait.Empty() {
			return used, err
		}
		if err := g.wait(l, wait); err != nil {
			return used, err
		}
	}
}

func (g *GoroutineLoop) wait(l *Link, h Hold) error {
	var timer <-chan time.Time
	if h.AtMost > 0 {
		t := time.NewTimer(h.AtMost)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-h.Until:
	case <-timer:
	case <-l.Gone:
		return ErrClosed
	case <-g.Stop:
		return ErrDraining
	}
	return nil
}

var ErrClosed = errors.New("the connection was closed")
