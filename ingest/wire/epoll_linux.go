package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/conc"
	"golang.org/x/sys/unix"
)

// epollLoop holds no goroutine and no buffer for a connection that says nothing. A few pollers wait for all of them,
// and call their handlers; what may take long, or has to wait, gets a goroutine for as long as it does.
//
// A connection's socket is taken out of Go's own poller, which keeps a few hundred bytes for each and wakes a
// goroutine for each; the handshake, with its deadlines, still runs on it. The pollers' epoll descriptors are in
// Go's poller in turn: a poller that waits is a parked goroutine, not a blocked thread.
type epollLoop struct {
	Settings
	began   time.Time
	pollers []*poller
	turn    atomic.Uint32 // whose is the next connection

	mu     sync.Mutex
	count  int // connections whose socket is open
	closed bool
	none   sync.Cond // count is 0
}

func newEpollLoop(s Settings) (*epollLoop, error) {
	e := &epollLoop{Settings: s, began: time.Now()}
	e.none.L = &e.mu
	for range runtime.GOMAXPROCS(0) {
		p, err := newPoller(e)
		if err != nil {
			e.close()
			return nil, err
		}
		e.pollers = append(e.pollers, p)
	}
	return e, nil
}

func (e *epollLoop) close() {
	for _, p := range e.pollers {
		p.file.Close()
	}
}

// Run implements Loop. It returns when every connection is closed.
func (e *epollLoop) Run() error {
	var pollers conc.WaitGroup
	failed := make([]error, len(e.pollers))
	for i, p := range e.pollers {
		pollers.Go(func() { failed[i] = p.run() })
	}
	quit := make(chan struct{})
	var clock conc.WaitGroup
	clock.Go(func() { e.watchDeadlines(quit) })
	<-e.Stop
	for _, p := range e.pollers {
		p.each((*conn).poke)
	}
	e.mu.Lock()
	for e.count > 0 {
		e.none.Wait()
	}
	e.closed = true
	e.mu.Unlock()
	close(quit)
	clock.Wait()
	e.close()
	pollers.Wait()
	return errors.Join(failed...)
}

// watchDeadlines ends connections whose deadline has passed.
func (e *epollLoop) watchDeadlines(quit <-chan struct{}) {
	tick := time.NewTicker(wheelTick)
	defer tick.Stop()
	for {
		select {
		case <-quit:
			return
		case <-tick.C:
		}
		for _, p := range e.pollers {
			for _, c := range p.due() {
				c.checkDeadline()
			}
		}
	}
}

func (e *epollLoop) enter() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.count++
	}
	return !e.closed
}

func (e *epollLoop) isClosed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}

func (e *epollLoop) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.count--; e.count == 0 {
		e.none.Broadcast()
	}
}

// Serve implements Loop. It returns when what has come with the handshake is used up.
func (e *epollLoop) Serve(l *Link, h Handler) {
	if !e.enter() {
		h.End(ErrDraining)
		return
	}
	c := &conn{link: l, handler: h, poller: e.pollers[int(e.turn.Add(1))%len(e.pollers)]}
	c.state.Store(owned)
	if err := c.adopt(l.Wire); err != nil {
		e.leave()
		h.End(err)
		return
	}
	l.behind = c
	if err := c.poller.add(c); err != nil {
		c.end(err)
		return
	}
	c.run()
}

// poller waits for the sockets of many connections.
type poller struct {
	loop *epollLoop
	file *os.File // the epoll descriptor, in Go's poller

	mu    sync.Mutex
	conns []*conn // by slot: what epoll gives back
	free  []int32
	wheel wheel
}

func newPoller(e *epollLoop) (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true) // what makes os.NewFile poll it
	}
	if err != nil {
		return nil, fmt.Errorf("epoll: %w; loop: goroutines does without", err)
	}
	return &poller{loop: e, file: os.NewFile(uintptr(fd), "epoll")}, nil
}

// eventsMax is how many ready sockets are taken from the kernel at a time.
const eventsMax = 256

// run serves ready connections until the descriptor is closed.
func (p *poller) run() error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	events := make([]unix.EpollEvent, eventsMax)
	for {
		var n int
		var werr error
		err := raw.Read(func(fd uintptr) bool {
			for {
				if n, werr = unix.EpollWait(int(fd), events, 0); werr != unix.EINTR {
					return n != 0 || werr != nil
				}
			}
		})
		if err != nil && p.loop.isClosed() {
			return nil
		}
		if err = errors.Join(err, werr); err != nil {
			return fmt.Errorf("epoll: %w", err)
		}
		for i := range n {
			if c := p.of(&events[i]); c != nil {
				c.ready(events[i].Events)
			}
		}
	}
}

// of gives the connection of an event, nil if it is gone since.
func (p *poller) of(e *unix.EpollEvent) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.conns[e.Fd]; c != nil && c.generation == e.Pad {
		return c
	}
	return nil
}

// interest is edge-triggered: registered once, no system call for each time that a connection falls idle.
const interest = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// add begins to wait for a connection's socket.
func (p *poller) add(c *conn) error {
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		c.slot = p.free[n-1]
		p.free = p.free[:n-1]
	} else {
		c.slot = int32(len(p.conns))
		p.conns = append(p.conns, nil)
	}
	p.conns[c.slot] = c
	c.generation = generations.Add(1)
	p.mu.Unlock()
	return p.control(unix.EPOLL_CTL_ADD, c)
}

// generations tell a slot's connections apart: an event may be on its way while the slot changes hands.
var generations atomic.Int32

func (p *poller) control(op int, c *conn) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cerr = unix.EpollCtl(int(fd), op, c.fd, &unix.EpollEvent{Events: interest, Fd: c.slot, Pad: c.generation})
	})
	return errors.Join(err, cerr)
}

// remove forgets a connection whose socket is closed.
func (p *poller) remove(c *conn) {
	p.mu.Lock()
	p.wheel.drop(c)
	if p.conns[c.slot] == c {
		p.conns[c.slot] = nil
		p.free = append(p.free, c.slot)
	}
	p.mu.Unlock()
	p.loop.leave()
}

// each calls do with every connection there is.
func (p *poller) each(do func(*conn)) {
	p.mu.Lock()
	all := append([]*conn(nil), p.conns...)
	p.mu.Unlock()
	for _, c := range all {
		if c != nil {
			do(c)
		}
	}
}

// wake has a connection's deadline looked at when by comes, or before. Zero is never.
func (p *poller) wake(c *conn, by time.Time) {
	if by.IsZero() {
		return
	}
	tick := tickOf(by.Sub(p.loop.began))
	if due := c.due.Load(); due != 0 && due <= tick {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if due := c.due.Load(); (due == 0 || due > tick) && p.conns[c.slot] == c {
		p.wheel.put(c, tick)
	}
}

// due gives the connections whose deadline is to be looked at.
func (p *poller) due() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wheel.advance(int64(time.Since(p.loop.began)/wheelTick), nil)
}

// addrOf gives an address of a socket, nil if it has none any more.
func addrOf(sa unix.Sockaddr, err error) net.Addr {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: a.Addr[:], Port: a.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: a.Addr[:], Port: a.Port}
	}
	return nil
}
