// Package wire drives TLS connections: it holds no buffer, and on Linux no goroutine, while nothing comes in, writes
// without waiting for slow readers, and knows no protocol.
package wire

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Wire is the TCP side of a TLS connection. It lets crypto/tls be used without a buffer, and without a goroutine
// blocked in it, while nothing comes in: wait returns when the socket is readable and holds what it gave; Read then
// gives that to crypto/tls, and errNothing after it. During the handshake it blocks like any connection, and gives
// back the handshake slot while it does: slots are held to compute, never to wait for a stranger.
type Wire struct {
	net.Conn
	raw  syscall.RawConn
	in   *[]byte // ciphertext read ahead; nil while there is none
	rest []byte  // What is left of in
	Mode wireMode
	Slot *Slot

	Closed chan struct{} // of a blocking wire: closed by Close, and by Leave
	Left   bool          // Leave was called; to be read when Closed is closed
	once   sync.Once     // of Closed
}

// Leave ends what is done with a blocking wire before it is closed: somebody else goes on with it.
func (w *Wire) Leave() {
	w.once.Do(func() {
		w.Left = true
		close(w.Closed)
	})
}

// Close implements net.Conn.
func (w *Wire) Close() error {
	if w.Closed != nil {
		w.once.Do(func() { close(w.Closed) })
	}
	return w.Conn.Close()
}

type wireMode uint8

const (
	wireHandshake wireMode = iota
	WireBlocking           // as net.Conn: what net/http wants
	wirePolled             // Read gives what wait found
)

// errNothing says that nothing is there to be read now. crypto/tls goes on after errors that are Temporary.
var errNothing net.Error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing to read" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

// readAhead is the size of the buffer that a readable socket is read into: a whole TLS record and its overhead.
const readAhead = 17 << 10

var readAheads = sync.Pool{New: func() any { b := make([]byte, readAhead); return &b }}

func NewWire(c net.Conn, s *Slot) (*Wire, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, errors.New("a connection without a file descriptor")
	}
	raw, err := sc.SyscallConn()
	return &Wire{Conn: c, raw: raw, Slot: s}, err
}

// Read implements net.Conn for crypto/tls.
func (w *Wire) Read(p []byte) (int, error) {
	switch w.Mode {
	case WireBlocking:
		return w.Conn.Read(p)
	case wireHandshake:
		w.Slot.Release()
		n, err := w.Conn.Read(p)
		if err == nil {
			err = w.Slot.Acquire()
		}
		return n, err
	}
	if len(w.rest) == 0 {
		return 0, errNothing
	}
	n := copy(p, w.rest)
	if w.rest = w.rest[n:]; len(w.rest) == 0 {
		readAheads.Put(w.in)
		w.in = nil
	}
	return n, nil
}

// wait blocks until the socket has given something, its end or the deadline. The buffer is taken inside
// RawConn.Read, when there is data: testing outside it could miss the edge that the poller reports only once.
func (w *Wire) wait(deadline time.Time, stopped func() bool) error {
	if len(w.rest) > 0 {
		return nil
	}
	if err := w.Conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	if stopped() { // after the deadline is set: whoever stops us sets it to the past, after saying so
		return ErrDraining
	}
	var n int
	var rerr error
	err := w.raw.Read(func(fd uintptr) bool {
		if w.in == nil {
			w.in = readAheads.Get().(*[]byte)
		}
		for {
			if n, rerr = syscall.Read(int(fd), *w.in); rerr != syscall.EINTR {
				break
			}
		}
		if rerr == syscall.EAGAIN {
			readAheads.Put(w.in)
			w.in = nil
			return false
		}
		return true
	})
	switch {
	case err != nil:
	case rerr != nil:
		err = rerr
	case n <= 0:
		err = io.EOF
	default:
		w.rest = (*w.in)[:n]
		return nil
	}
	w.drop()
	return err
}

// drop gives the read-ahead back. Only the connection's reader calls it.
func (w *Wire) drop() {
	if w.in != nil {
		readAheads.Put(w.in)
		w.in, w.rest = nil, nil
	}
}
