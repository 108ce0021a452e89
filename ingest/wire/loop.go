package wire

import (
	"errors"
	"fmt"
	"runtime/debug"
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
	// End is called once, after the last Receive, with why: an error of Receive, io.EOF, ErrClosed, ErrDraining,
	// os.ErrDeadlineExceeded, a *Panic, or what the network says. It finishes the link, and may wait.
	End(err error)
}

// Slow is a Handler whose next Receive may take long: it checks a password, say. It is then called on a goroutine of
// its own, so that it holds up no other connection. Once it is not slow, it is never again.
type Slow interface{ Slow() bool }

// Hold makes a publisher wait: until the channel is closed, or for so long, whichever is given and comes first.
type Hold struct {
	Until  <-chan struct{}
	AtMost time.Duration
}

// Empty says that there is nothing to wait for.
func (h Hold) Empty() bool { return h.Until == nil && h.AtMost == 0 }

// Loop drives connections.
type Loop interface {
	// Run blocks until the loop's Stop is closed and it reads from no connection any more.
	Run() error
	// Serve takes over a connection whose handshake is done, until its handler's End. It may return before that, or
	// then.
	Serve(l *Link, h Handler)
}

var (
	// ErrDraining ends connections when Stop is closed. They are then still open for writing.
	ErrDraining = errors.New("the gateway is going down")
	// ErrClosed ends connections that were closed from this side.
	ErrClosed = errors.New("the connection was closed")
)

// Panic is a bug that a handler met. It ends the one connection.
type Panic struct {
	Value any
	Stack []byte
}

func (p *Panic) Error() string { return fmt.Sprintf("panic: %v\n%s", p.Value, p.Stack) }

// contained gives a panic as an error. It is deferred.
func contained(err *error) {
	if v := recover(); v != nil {
		*err = &Panic{Value: v, Stack: debug.Stack()}
	}
}

// Names of the loops, as settings know them.
const (
	Epoll      = "epoll"
	Goroutines = "goroutines"
)

// Settings are what every loop needs.
type Settings struct {
	Stop     <-chan struct{} // Closed when nothing is to be read any more
	BytesMax int             // of one packet
}

func (s *Settings) stopped() bool {
	select {
	case <-s.Stop:
		return true
	default:
		return false
	}
}

// wait waits out a hold, unless the connection ends or the loop stops before.
func (s *Settings) wait(l *Link, h Hold) error {
	var timer <-chan time.Time
	if h.AtMost > 0 {
		t := time.NewTimer(h.AtMost)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-h.Until:
	case <-timer:
	case <-l.Gone():
		return ErrClosed
	case <-s.Stop:
		return ErrDraining
	}
	return nil
}

// Read buffers come in two sizes; a larger packet gets a buffer of its own, doubled as its bytes come in.
const (
	bufferSmall = 4 << 10
	bufferLarge = 32 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([bufferSmall]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([bufferLarge]byte) }}
)

func takeBuffer(large bool) []byte {
	if large {
		return largeBuffers.Get().(*[bufferLarge]byte)[:]
	}
	return smallBuffers.Get().(*[bufferSmall]byte)[:]
}

func giveBuffer(b []byte) {
	switch cap(b) {
	case bufferSmall:
		smallBuffers.Put((*[bufferSmall]byte)(b[:bufferSmall]))
	case bufferLarge:
		largeBuffers.Put((*[bufferLarge]byte)(b[:bufferLarge]))
	}
}

// grow gives a full buffer room, at most what a packet may need.
func (s *Settings) grow(b []byte) []byte {
	grown := make([]byte, min(2*len(b), s.BytesMax+bufferSmall))
	copy(grown, b)
	giveBuffer(b)
	return grown
}
