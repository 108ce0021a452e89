package ingest

import (
	"errors"
	"sync"
	"time"
)

// A handler is one connection's protocol as a state machine: bytes in, nothing else. It neither reads nor waits for
// its peer, so that whatever drives it may hold a goroutine for each connection or for none.
type handler interface {
	// receive takes what has been read so far and says how much of it is used up; the rest, part of a packet, is
	// given again with what follows. A hold that is not empty says that nothing more is to be read, and receive to
	// be called again, only when it is over. data is borrowed.
	receive(data []byte) (used int, h hold, err error)
	// deadline is when the next packet must be complete. Zero is never.
	deadline() time.Time
}

// hold makes a publisher wait: until the channel is closed, or for so long, whichever is given and comes first.
type hold struct {
	until  <-chan struct{}
	atMost time.Duration
}

func (h hold) empty() bool { return h.until == nil && h.atMost == 0 }

// loop drives connections. goroutineLoop is one; an epoll loop would be another.
type loop interface {
	// serve drives one connection until it ends, and says why. errDraining is what it says when the gateway stops
	// reading; the connection is then still open for writing.
	serve(l *link, h handler) error
}

var errDraining = errors.New("the gateway is going down")

// goroutineLoop holds one goroutine for each connection, and a buffer only while it holds part of a packet.
type goroutineLoop struct {
	stop     <-chan struct{} // closed when the gateway drains
	bytesMax int             // of one packet
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

func (g *goroutineLoop) stopped() bool {
	select {
	case <-g.stop:
		return true
	default:
		return false
	}
}

func (g *goroutineLoop) serve(l *link, h handler) error {
	var buf []byte // nil while nothing is held
	have := 0
	defer func() {
		giveBuffer(buf)
		l.wire.drop()
	}()
	for {
		if buf == nil {
			buf = takeBuffer(len(l.wire.rest) > bufferSmall)
		} else if have == len(buf) {
			grown := make([]byte, min(2*len(buf), g.bytesMax+bufferSmall))
			copy(grown, buf)
			giveBuffer(buf)
			buf = grown
		}
		n, err := l.tls.Read(buf[have:])
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
		if err := l.wire.wait(h.deadline(), g.stopped); err != nil {
			if g.stopped() { // it was woken to be told so
				return errDraining
			}
			return err
		}
	}
}

// receive gives data to the handler until it wants more, waiting out its holds.
func (g *goroutineLoop) receive(l *link, h handler, data []byte) (used int, err error) {
	for {
		n, wait, err := h.receive(data[used:])
		used += n
		if err != nil || wait.empty() {
			return used, err
		}
		if err := g.wait(l, wait); err != nil {
			return used, err
		}
	}
}

func (g *goroutineLoop) wait(l *link, h hold) error {
	var timer <-chan time.Time
	if h.atMost > 0 {
		t := time.NewTimer(h.atMost)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-h.until:
	case <-timer:
	case <-l.gone:
		return errClosed
	case <-g.stop:
		return errDraining
	}
	return nil
}

var errClosed = errors.New("the connection was closed")
