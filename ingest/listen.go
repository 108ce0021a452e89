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
// its own. Connections over the limit are closed before the handshake: it is what costs. serve sees to it that
// the connection is not counted any more in the end.
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
		g.tasks.Go(func() {
			conn, w, err := g.shake(c, door)
			if err != nil {
				g.count.sockets.Add(-1)
				return
			}
			door.count.shaken(conn, since)
			door.count.open.Add(1)
			// A goroutine of its own: the handshake's has grown a stack that an idle connection would go on holding.
			g.tasks.Go(func() { serve(conn, w) })
		})
	}
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
