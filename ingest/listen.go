package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"hearthline/ingest/reason"
	"hearthline/ingest/wire"
)

// accept takes connections until the listener is closed, shakes hands and calls serve with each, on a goroutine of
// its own. Connections over the limits are closed before the handshake: it is what costs. serve sees to it that
// closed is called in the end.
func (g *Gateway) accept(ln net.Listener, door *tlsDoor, serve func(*tls.Conn, *wire.Wire)) error {
	var pause time.Duration
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil { // out of file descriptors, most likely: it passes
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			g.Logger.Warn("gateway: accept failed; trying again", "in", pause, "err", err)
			time.Sleep(pause)
			continue
		}
		pause = 0
		since := time.Now()
		g.count.accepted.Add(1)
		door.count.accepted.Add(1)
		if g.count.sockets.Add(1) > int64(g.ConnectionsMax) {
			g.count.sockets.Add(-1)
			door.count.full.Add(1)
			g.count.refused[reason.Connections].Add(1)
			c.Close()
			continue
		}
		g.tasks.Go(func() { g.enter(c, door, since, serve) })
	}
}

// enter lets a connection in as far as its handshake, and has it served.
func (g *Gateway) enter(c net.Conn, door *tlsDoor, since time.Time, serve func(*tls.Conn, *wire.Wire)) {
	known, why, err := g.admit(c)
	if err != nil {
		g.count.refused[why].Add(1)
		g.Logger.Debug("gateway: turned away", "from", c.RemoteAddr(), "err", err)
		g.count.sockets.Add(-1)
		c.Close()
		return
	}
	from := known.RemoteAddr().String()
	conn, w, err := g.shake(known, door)
	if err != nil {
		g.closed(from)
		return
	}
	door.count.shaken(conn, since)
	door.count.open.Add(1)
	// A goroutine of its own: the handshake's has grown a stack that an idle connection would go on holding.
	g.tasks.Go(func() { serve(conn, w) })
}

// admit finds out whose connection it is and has it wait for its turn. With an error it is not counted for its address.
func (g *Gateway) admit(c net.Conn) (known net.Conn, why reason.Reason, err error) {
	if known, err = g.origin(c, g.HandshakeTimeout); err != nil {
		return nil, reason.Protocol, err
	}
	from := keyOf(known.RemoteAddr().String())
	if why, ok := g.gate.enter(from, time.Now()); !ok {
		return nil, why, errAddress
	}
	if err := g.gate.wait(g.open); err != nil {
		g.gate.leave(from)
		return nil, reason.Rate, err
	}
	return known, 0, nil
}

var errAddress = errors.New("too many connections of this address")

// closed is called once for each connection that was let in, with where it came from, when it has ended.
func (g *Gateway) closed(from string) {
	g.gate.leave(keyOf(from))
	g.count.sockets.Add(-1) // last: who sees that there is room finds it
}

// shake is handshake, with failures counted and panics contained.
func (g *Gateway) shake(c net.Conn, door *tlsDoor) (conn *tls.Conn, w *wire.Wire, err error) {
	err = wire.ErrClosed // What a panic leaves
	defer g.contain(c)
	if conn, w, err = g.handshake(c, door); err != nil {
		g.count.handshakesFailed.Add(1)
		door.count.handshakesFailed.Add(1)
		g.Logger.Debug("gateway: handshake failed", "from", c.RemoteAddr(), "err", err)
		c.Close()
	}
	return conn, w, err
}

// contain keeps a bug met by one connection from ending the others.
func (g *Gateway) contain(c net.Conn) {
	if p := recover(); p != nil {
		g.count.panics.Add(1)
		g.Logger.Error("gateway: a connection ended by a panic; this is a bug", "from", c.RemoteAddr(), "panic", p)
		c.Close()
	}
}

func (g *Gateway) handshake(c net.Conn, door *tlsDoor) (*tls.Conn, *wire.Wire, error) {
	ctx, cancel := context.WithTimeout(g.open, g.HandshakeTimeout)
	defer cancel()
	s := &wire.Slot{Ctx: ctx, Free: g.handshakes}
	w, err := wire.NewWire(c, s)
	if err != nil {
		return nil, nil, err
	}
	conn := tls.Server(w, door.now.Load())
	defer s.Release()
	if err := s.Acquire(); err != nil {
		return nil, nil, fmt.Errorf("handshake: no slot in time: %w", err)
	}
	if abandoned(c) {
		return nil, nil, errors.New("handshake: the client has given up waiting")
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", err)
	}
	w.Slot = nil
	return conn, w, nil
}

// handed is a net.Listener whose connections come from accept, handshake done: what http.Server serves.
type handed struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHanded(addr net.Addr) *handed {
	return &handed{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handed) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handed) Addr() net.Addr { return h.addr }
