package wire

import (
	"sync"
	"time"
)

// GoroutineLoop holds one goroutine for each connection, and a buffer only while it holds part of a packet.
type GoroutineLoop struct {
	Settings
	mu    sync.Mutex
	wires map[*Wire]struct{} // to be woken
}

// Run implements Loop. The connections' goroutines are their callers': they may go on for a while.
func (g *GoroutineLoop) Run() error {
	<-g.Stop
	g.mu.Lock()
	defer g.mu.Unlock()
	for w := range g.wires {
		w.Conn.SetReadDeadline(time.Unix(1, 0))
	}
	return nil
}

// Serve implements Loop: it returns after the handler's End.
func (g *GoroutineLoop) Serve(l *Link, h Handler) {
	l.Wire.Mode = wirePolled
	g.mu.Lock()
	if g.wires == nil {
		g.wires = make(map[*Wire]struct{})
	}
	g.wires[l.Wire] = struct{}{}
	g.mu.Unlock()
	err := g.drive(l, h)
	g.mu.Lock()
	delete(g.wires, l.Wire)
	g.mu.Unlock()
	h.End(err)
}

func (g *GoroutineLoop) drive(l *Link, h Handler) (err error) {
	var buf []byte // nil while nothing is held
	have := 0
	defer contained(&err)
	defer func() {
		giveBuffer(buf)
		l.Wire.drop()
	}()
	for {
		if buf == nil {
			buf = takeBuffer(len(l.Wire.rest) > bufferSmall)
		} else if have == len(buf) {
			buf = g.grow(buf)
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
		tlsBuffers.reclaim(l.Tls)
		if err := l.Wire.wait(h.Deadline(), g.stopped); err != nil {
			if g.stopped() { // it was woken to be told so
				return ErrDraining
			}
			return err
		}
		tlsBuffers.lend(l.Tls)
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
