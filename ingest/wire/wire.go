// Package wire drives TLS connections: it reads without a buffer while nothing comes in, writes without waiting for slow
// readers, and knows no protocol.
package wire

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/sourcegraph/conc"
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

	Closed chan struct{} // of a blocking wire: closed by Close
	once   sync.Once
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
	WirePolled             // Read gives what wait found
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

// Link is one MQTT connection's way out: bytes are appended by any goroutine, and written by whoever flushes first
// while the others go on. A client that does not read holds up nobody but itself.
type Link struct {
	Tls      *tls.Conn
	Wire     *Wire
	Tasks    *conc.WaitGroup
	BytesMax int           // waiting to be written
	Timeout  time.Duration // of one write

	mu      sync.Mutex
	out     []byte // from outBuffers; nil while empty
	writing bool
	closing bool // close when out is written
	closed  bool
	Gone    chan struct{} // Closed when the connection is
}

var outBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

// outKeep is the largest buffer that goes back to the pool.
const outKeep = 64 << 10

// Add appends to what is to be written. It says false, and adds nothing, when the client is too far behind (it
// would then hold more than bytesMax), or gone.
func (l *Link) Add(size int, encode func(b []byte) []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing || l.closed || len(l.out)+size > l.BytesMax {
		return false
	}
	if l.out == nil {
		l.out = (*outBuffers.Get().(*[]byte))[:0]
	}
	l.out = encode(l.out)
	return true
}

// Flush writes what was added, on this goroutine, unless another one is at it.
func (l *Link) Flush() {
	if l.begin() {
		l.write()
	}
}

// FlushApart writes on a goroutine of its own: for callers that serve more than this connection.
func (l *Link) FlushApart() {
	if l.begin() {
		l.Tasks.Go(l.write)
	}
}

func (l *Link) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing || l.closed || len(l.out) == 0 && !l.closing {
		return false
	}
	l.writing = true
	return true
}

func (l *Link) write() {
	for {
		l.mu.Lock()
		out := l.out
		l.out = nil
		if len(out) == 0 || l.closed {
			l.writing = false
			end := l.closing && !l.closed
			l.mu.Unlock()
			if end {
				l.close()
			}
			return
		}
		l.mu.Unlock()
		l.Tls.SetWriteDeadline(time.Now().Add(l.Timeout))
		_, err := l.Tls.Write(out)
		if cap(out) <= outKeep {
			outBuffers.Put(&out)
		}
		if err != nil {
			l.close()
		}
	}
}

// Finish writes what was added and closes, without waiting for the client longer than one write's timeout.
func (l *Link) Finish() {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	l.Flush()
}

// FinishApart is finish on a goroutine of its own.
func (l *Link) FinishApart() {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	l.FlushApart()
}

// close ends the connection at once, and wakes its reader.
func (l *Link) close() {
	l.mu.Lock()
	was := l.closed
	l.closed, l.out = true, nil
	l.mu.Unlock()
	if !was {
		close(l.Gone)
		l.Tls.Close()
	}
}
