package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// conn is one connection of an epollLoop, and the net.Conn under its TLS. Reading and writing never block: Read
// gives errNothing, Write keeps what the socket does not take.
//
// Whoever owns it reads, and calls the handler: the poller it belongs to, or a goroutine that may wait. Its
// descriptor is closed when reading is over and the link is closed, by whichever of the two comes last, so that no
// other connection's socket can be met under its number.
type conn struct {
	link       *Link
	handler    Handler
	poller     *poller
	slot       int32
	generation int32
	state      atomic.Uint32

	// The owner's.
	held    []byte // not used up by the handler: part of a packet; nil while there is none
	have    int
	quick   bool // the handler is not Slow any more
	drained bool // the socket had less than was asked for
	more    bool // it may have more than was read in this turn
	reads   int  // in this turn

	// Under poller.mu; due may be read without.
	next, prev *conn
	due        atomic.Int64

	waiting   atomic.Bool  // pending is not nil
	stalledBy atomic.Int64 // when the link is closed if it still waits, Unix ns

	mu      sync.Mutex // protects what follows, and every use of fd but the owner's
	fd      int        // -1: closed
	shut    bool       // Close was called
	over    bool       // nobody reads any more
	pending []byte     // not taken by the socket; nil while there is none
}

// States of a conn.
const (
	owned uint32 = 1 << iota // somebody reads
	again                    // something has happened since; the owner looks again
	ended                    // reading is over
	hung                     // the peer has closed its side: what is there must be read to the end
)

// Limits of one turn, and of what crypto/tls may have waiting beside the link's writes: answers to key updates, alerts.
const (
	readsMax   = 16 // then other connections have their turn
	pendingMax = 4 * writeChunk
)

// adopt takes the socket over from Go's own poller.
func (c *conn) adopt(w *Wire) error {
	fd, err := -1, error(nil)
	cerr := w.raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(cerr, err); err != nil {
		return err
	}
	old := w.Conn
	c.fd = fd
	w.Conn, w.raw, w.Mode = c, nil, WireBlocking
	return old.Close() // the socket lives on under its other descriptor
}

// ready is called by the poller with what epoll says.
func (c *conn) ready(events uint32) {
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.state.Or(hung)
	}
	if events&unix.EPOLLOUT != 0 && c.waits() {
		c.flush()
	}
	c.poke()
}

// poke has the owner look again. When there is none, it reads.
func (c *conn) poke() {
	if c.take() {
		c.serve()
	}
}

// serve is run, on a goroutine apart if it may take long.
func (c *conn) serve() {
	if !c.quick {
		if s, ok := c.handler.(Slow); ok && s.Slow() {
			c.link.Tasks.Go(c.run)
			return
		}
		c.quick = true
	}
	c.run()
}

// take makes the caller the owner. When there is one already, it is told to look again.
func (c *conn) take() bool {
	for {
		s := c.state.Load()
		switch {
		case s&ended != 0:
			return false
		case s&owned == 0:
			if c.state.CompareAndSwap(s, s|owned) {
				return true
			}
		case s&again != 0 || c.state.CompareAndSwap(s, s|again):
			return false
		}
	}
}

// release ends ownership, unless there is something to look at again.
func (c *conn) release() bool {
	for {
		s := c.state.Load()
		if s&again != 0 {
			c.state.And(^again)
			return false
		}
		if c.state.CompareAndSwap(s, s&^owned) {
			return true
		}
	}
}

// run is the owner's: it reads what there is and waits for nothing.
func (c *conn) run() {
	for {
		h, err := c.turn()
		if err != nil {
			c.end(err)
			return
		}
		if !h.Empty() {
			c.link.Tasks.Go(func() {
				if err := c.poller.loop.wait(c.link, h); err != nil {
					c.end(err)
					return
				}
				c.run()
			})
			return
		}
		c.poller.wake(c, c.handler.Deadline())
		more := c.more
		if !c.release() {
			continue
		}
		if more {
			c.rearm()
		}
		return
	}
}

// rearm has epoll say again what it has said: there is more to read.
func (c *conn) rearm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		// It fails only when the loop has ended, and then every connection has.
		_ = c.poller.control(unix.EPOLL_CTL_MOD, c)
	}
}

// turn reads and gives to the handler what is there now.
func (c *conn) turn() (h Hold, err error) {
	defer contained(&err)
	switch {
	case c.poller.loop.stopped():
		return h, ErrDraining
	case c.link.isClosed():
		return h, ErrClosed
	}
	c.drained, c.more, c.reads = false, false, 0
	tlsBuffers.lend(c.link.Tls)
	defer tlsBuffers.reclaim(c.link.Tls)
	buf, have := c.held, c.have
	defer func() {
		if have == 0 || err != nil {
			giveBuffer(buf)
			buf, have = nil, 0
		}
		c.held, c.have = buf, have
	}()
	if buf == nil {
		buf = takeBuffer(false)
	}
	for {
		if have == len(buf) {
			buf = c.poller.loop.grow(buf)
		}
		n, rerr := c.link.Tls.Read(buf[have:])
		have += n
		if rerr == nil && have < len(buf) && have < bufferSmall {
			continue // more records may be there: decode them together
		}
		used, h, err := c.handler.Receive(buf[:have])
		have = copy(buf, buf[used:have])
		switch {
		case err != nil:
			return h, err
		case !h.Empty():
			return h, nil
		case rerr == error(errNothing):
			return h, nil
		case rerr != nil:
			return h, rerr
		}
	}
}

// end is the owner's last: reading is over.
func (c *conn) end(err error) {
	c.state.Or(ended)
	giveBuffer(c.held)
	c.held = nil
	c.link.Tasks.Go(func() {
		var bug error
		func() {
			defer contained(&bug)
			c.handler.End(err)
		}()
		if bug != nil {
			c.link.close()
		}
		c.link.Finish()
		c.mu.Lock()
		c.over = true
		c.mu.Unlock()
		c.free()
	})
}

// free closes the descriptor once nobody reads and the link is closed.
func (c *conn) free() {
	c.mu.Lock()
	gone := c.fd >= 0 && c.shut && c.over
	if gone {
		unix.Close(c.fd)
		c.fd, c.pending = -1, nil
	}
	c.mu.Unlock()
	if gone {
		c.poller.remove(c)
	}
}

// checkDeadline ends the connection if its time is up.
func (c *conn) checkDeadline() {
	now := time.Now()
	if c.waits() {
		by := time.Unix(0, c.stalledBy.Load())
		if !now.Before(by) {
			c.link.close()
			return
		}
		c.poller.wake(c, by)
	}
	if !c.take() { // it is being looked after: whoever does asks for its deadline in the end
		return
	}
	by := c.handler.Deadline()
	if !by.IsZero() && !now.Before(by) {
		c.end(os.ErrDeadlineExceeded)
		return
	}
	c.poller.wake(c, by)
	if !c.release() {
		c.serve()
	}
}

// Read implements net.Conn for crypto/tls. Only the owner's turn calls it.
func (c *conn) Read(p []byte) (int, error) {
	if c.drained {
		return 0, errNothing
	}
	if c.reads++; c.reads > readsMax {
		c.more = true
		return 0, errNothing
	}
	for {
		n, err := unix.Read(c.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			c.drained = true
			return 0, errNothing
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		// What comes after a short read is an edge of its own, but for an end that epoll has told already.
		c.drained = n < len(p) && c.state.Load()&hung == 0
		return n, nil
	}
}

var errBehind = errors.New("the peer does not read")

// Write implements net.Conn for crypto/tls. It takes everything, up to pendingMax.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut || c.fd < 0 {
		return 0, net.ErrClosed
	}
	n := 0
	if c.pending == nil {
		var err error
		if n, err = c.send(p); err != nil {
			return 0, err
		}
	}
	if n == len(p) {
		return n, nil
	}
	if len(c.pending)+len(p)-n > pendingMax {
		return 0, errBehind
	}
	c.pending = append(c.pending, p[n:]...)
	c.waiting.Store(true)
	return len(p), nil
}

// send writes until the socket takes no more. Callers hold mu.
func (c *conn) send(p []byte) (sent int, err error) {
	for sent < len(p) {
		n, err := unix.Write(c.fd, p[sent:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return sent, nil
		case err != nil:
			return sent, os.NewSyscallError("write", err)
		default:
			sent += n
		}
	}
	return sent, nil
}

// waits says whether the socket has not taken everything.
func (c *conn) waits() bool { return c.waiting.Load() }

// retry has flush called when the socket takes more.
func (c *conn) retry(within time.Duration) {
	by := time.Now().Add(within)
	c.stalledBy.Store(by.UnixNano())
	c.poller.wake(c, by)
	c.flush() // it may have taken more before anybody was told to look
}

// flush writes what waits, and lets the link go on after it.
func (c *conn) flush() {
	c.mu.Lock()
	var err error
	if c.pending != nil && !c.shut {
		var n int
		if n, err = c.send(c.pending); n == len(c.pending) {
			c.pending = nil
			c.waiting.Store(false)
		} else if n > 0 {
			c.pending = c.pending[n:]
		}
	}
	done := c.pending == nil
	c.mu.Unlock()
	switch {
	case err != nil:
		c.link.close()
	case done:
		c.link.resume()
	}
}

// Close implements net.Conn for crypto/tls. The owner, or the poller, sees the socket's end and lets go of it.
func (c *conn) Close() error {
	c.mu.Lock()
	if !c.shut && c.fd >= 0 {
		c.shut, c.pending = true, nil
		c.waiting.Store(false)
		// It fails when the peer was faster.
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
	c.mu.Unlock()
	c.free()
	return nil
}

// LocalAddr implements net.Conn. It is nil once the connection is closed.
func (c *conn) LocalAddr() net.Addr { return c.addr(unix.Getsockname) }

// RemoteAddr implements net.Conn. It is nil once the connection is closed.
func (c *conn) RemoteAddr() net.Addr { return c.addr(unix.Getpeername) }

func (c *conn) addr(of func(int) (unix.Sockaddr, error)) net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return addrOf(of(c.fd))
}

// SetDeadline implements net.Conn. Deadlines are the loop's.
func (c *conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
