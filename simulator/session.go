package simulator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

var (
	errRefused = errors.New("the gateway refused a good message")
	errSilent  = errors.New("the gateway does not answer")
)

// spoiltError ends a connection that was spoilt on purpose, or that a bad message has cost: no failure.
type spoiltError struct{ by Fault }

func (e spoiltError) Error() string { return "spoilt by " + e.by.String() }

func spoilt(err error) bool {
	var s spoiltError
	return errors.As(err, &s)
}

const (
	connectTimeout = 10 * time.Second // TCP, TLS and CONNACK together
	writeTimeout   = 30 * time.Second
	burstBytes     = 16 << 10 // messages are written together up to about this
	oversizeBytes  = 10 << 20
)

// bursts are the buffers messages are put together in, held only while writing: an idle hub has none.
var bursts = sync.Pool{New: func() any { b := make([]byte, 0, burstBytes+4096); return &b }}

// link is one connection.
type link struct {
	raw       *net.TCPConn
	tls       *tls.Conn
	version   byte
	in        inbox
	keepAlive time.Duration
	wrote     time.Time
	pinged    time.Time // when a ping went out that is not answered; zero for none
	bad       Fault     // the bad message that is out, Good for none
}

// session is one connection, from dial to its end. nil says that the work is done or stopped.
func (h *hub) session(stop, hard context.Context) error {
	until := hard
	if h.finished(true) {
		until = stop // nothing is outstanding: a stopped run need not wait for this connection
	}
	l, err := h.connect(until, h.password)
	if err != nil {
		return err
	}
	if h.seen {
		h.r.count.reconnects.Add(1)
	}
	h.seen = true
	h.r.count.connected.Add(1)
	defer h.r.count.connected.Add(-1)
	// A read that waits is woken when stop or hard ends. The loop sets its deadline first and looks at them after, so
	// that no wake-up is lost.
	wake := func() { l.raw.SetReadDeadline(time.Unix(1, 0)) }
	defer context.AfterFunc(stop, wake)()
	defer context.AfterFunc(hard, wake)()
	err = h.converse(stop, hard, l)
	if l.bad != Good && err != nil {
		err = errors.Join(spoiltError{l.bad}, err)
	}
	var s spoiltError
	if errors.As(err, &s) && s.by == HalfOpen {
		if h.ghost != nil {
			h.ghost.Close()
		}
		h.ghost = l.raw // neither read nor closed: the server cannot know
		return err
	}
	l.raw.Close()
	if s.by == WrongPassword {
		h.knock(hard)
	}
	return err
}

// knock logs in once with a wrong password.
func (h *hub) knock(hard context.Context) {
	l, err := h.connect(hard, "not "+h.password)
	if err == nil {
		l.raw.Close()
		return
	}
	if errors.Is(err, errLogin) {
		h.r.count.refused[WrongPassword].Add(1)
	}
}

// gateway is the one to try: each hub has its own, and goes on to the next when that cannot be had.
func (h *hub) gateway() string {
	all := strings.Split(h.r.s.Gateway, ",")
	return strings.TrimSpace(all[(h.number+h.tries)%len(all)])
}

var errLogin = errors.New("the gateway refused the login")

// connect dials, and logs in.
func (h *hub) connect(hard context.Context, password string) (_ *link, err error) {
	select {
	case h.r.connects <- struct{}{}:
	case <-hard.Done():
		return nil, hard.Err()
	}
	defer func() { <-h.r.connects }()
	ctx, cancel := context.WithTimeout(hard, connectTimeout)
	defer cancel()
	var d net.Dialer
	gateway := h.gateway()
	conn, err := d.DialContext(ctx, "tcp", gateway)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	l := &link{raw: conn.(*net.TCPConn), tls: tls.Client(conn, h.r.tls), version: h.version}
	defer func() {
		if err != nil {
			l.raw.Close()
		}
	}()
	if err := l.tls.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", gateway, err)
	}
	deadline, _ := ctx.Deadline()
	if err := l.raw.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	l.keepAlive = h.r.s.KeepAlive
	hello := appendConnect(nil, h.version, uint16(l.keepAlive/time.Second), h.plan.name, h.user, password)
	if err := l.write(hello); err != nil {
		return nil, fmt.Errorf("log in: %w", err)
	}
	for {
		p, ok, err := l.in.next()
		if err != nil {
			return nil, fmt.Errorf("log in: %w", err)
		}
		if ok {
			return l, h.welcome(l, p)
		}
		n, err := l.tls.Read(l.in.space())
		if err != nil {
			return nil, fmt.Errorf("log in as %s: %w", h.user, err)
		}
		l.in.end += n
	}
}

// welcome reads CONNACK.
func (h *hub) welcome(l *link, p packet) error {
	a, err := p.read(l.version)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	if p.kind != packetConnack {
		return fmt.Errorf("log in: %w: packet type %d before CONNACK", errProtocol, p.kind)
	}
	if a.code != 0 {
		return fmt.Errorf("%w of %s: %s", errLogin, h.user, a.words())
	}
	if err := h.attend(l); err != nil {
		return err
	}
	h.window = h.r.s.Window
	if a.receiveMax > 0 {
		h.window = min(h.window, int(a.receiveMax))
	}
	if a.keepAlive >= 0 {
		l.keepAlive = time.Duration(a.keepAlive) * time.Second
	}
	return l.raw.SetDeadline(time.Time{})
}

// converse sends what is due and takes the answers, until the end of the connection.
func (h *hub) converse(stop, hard context.Context, l *link) error {
	for {
		stopping := stop.Err() != nil
		if err := hard.Err(); err != nil {
			return err
		}
		now := time.Now()
		again, err := h.speak(l, now, stopping)
		if err != nil {
			return err
		}
		if h.finished(stopping) {
			return l.leave()
		}
		deadline, err := h.patience(l, now, again)
		if err != nil {
			return err
		}
		if err := l.raw.SetReadDeadline(deadline); err != nil {
			return fmt.Errorf("wait for the gateway: %w", err)
		}
		if (stop.Err() != nil) != stopping || hard.Err() != nil {
			continue
		}
		n, err := l.tls.Read(l.in.space())
		l.in.end += n
		if err := h.listen(l); err != nil {
			return err
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			if errors.Is(err, io.EOF) {
				err = errors.New("the gateway closed the connection")
			}
			return fmt.Errorf("read from the gateway: %w", err)
		}
	}
}

// speak writes all that may be written now, and says when there may be more (zero: after an answer).
func (h *hub) speak(l *link, now time.Time, stopping bool) (again time.Time, err error) {
	for {
		buf := bursts.Get().(*[]byte)
		b := (*buf)[:0]
		var e *entry
		var after Fault
		for len(b) < burstBytes {
			e, after, again = h.pick(now, stopping)
			if e == nil {
				break
			}
			if e.times > 0 {
				h.r.count.resent.Add(1)
			}
			b = h.publish(b, l.version, e)
			e.at = now
			e.times = min(e.times+1, 255)
			if e.kind.Bad() {
				l.bad = e.kind
			}
			if after != Good || e.kind == Oversize {
				break
			}
		}
		if len(b) > 0 {
			err = l.write(b)
		}
		*buf = b
		bursts.Put(buf)
		if err == nil && e != nil && e.kind == Oversize {
			err = l.flood()
		}
		if err == nil && after != Good {
			err = h.spoil(l, after)
		}
		if err != nil || e == nil {
			return again, err
		}
	}
}

// publish appends a message's packet; of an oversized one all but its filling.
func (h *hub) publish(b []byte, version byte, e *entry) []byte {
	var space [1024]byte
	var topic [160]byte
	home := h.plan.name
	if e.kind == OtherHome {
		home = h.plan.other
	}
	t := append(append(append(topic[:0], "homes/"...), home...), "/devices/"...)
	t = append(append(t, h.plan.device(e.device)...), "/telemetry"...)
	if e.kind == Oversize {
		return append(appendPublishHead(b, version, false, string(t), e.id, oversizeBytes), '[')
	}
	payload := h.plan.payload(space[:0], e.message)
	b = appendPublishHead(b, version, e.times > 0, string(t), e.id, len(payload))
	return append(b, payload...)
}

// flood writes the filling of an oversized message: white space, and the end of the array.
func (l *link) flood() error {
	filling := make([]byte, 64<<10)
	for i := range filling {
		filling[i] = ' '
	}
	for left := oversizeBytes - 2; left > 0; left -= len(filling) {
		filling = filling[:min(left, len(filling))]
		if err := l.write(filling); err != nil {
			return err
		}
	}
	return l.write([]byte{']'})
}

// spoil does to the connection what was drawn for it.
func (h *hub) spoil(l *link, by Fault) error {
	h.r.count.broken[by].Add(1)
	switch by {
	case Disconnect:
		l.raw.SetLinger(0) // a reset, no farewell; should it fail, a plain close is an abrupt end as well
	case Offline:
		h.rest = h.r.s.OfflineFor
	}
	return spoiltError{by}
}

// patience is how long to wait for the server: until there is more to send, an answer is overdue, or a ping is
// due. It sends the ping.
func (h *hub) patience(l *link, now, again time.Time) (time.Time, error) {
	deadline := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if t.Before(deadline) {
			deadline = t
		}
	}
	if !again.IsZero() {
		sooner(again)
	}
	for i := range h.out[:h.written] {
		if e := &h.out[i]; !e.done {
			sooner(e.at.Add(h.r.s.AckTimeout))
			if now.Sub(e.at) >= h.r.s.AckTimeout {
				return now, fmt.Errorf("%w: no PUBACK within %v", errSilent, h.r.s.AckTimeout)
			}
			break // the others were written later
		}
	}
	if !l.pinged.IsZero() {
		if now.Sub(l.pinged) >= h.r.s.AckTimeout {
			return now, fmt.Errorf("%w: no PINGRESP within %v", errSilent, h.r.s.AckTimeout)
		}
		sooner(l.pinged.Add(h.r.s.AckTimeout))
	} else if l.keepAlive > 0 {
		ping := l.wrote.Add(l.keepAlive * 3 / 4)
		if !ping.After(now) {
			l.pinged = now
			return now.Add(time.Millisecond), l.write([]byte{packetPingreq << 4, 0})
		}
		sooner(ping)
	}
	return deadline, nil
}

// listen takes the packets that have come.
func (h *hub) listen(l *link) error {
	for {
		p, ok, err := l.in.next()
		if err != nil || !ok {
			return err
		}
		if p.kind == packetPublish || p.kind == packetSuback {
			if err := h.heard(l, p); err != nil {
				return err
			}
			continue
		}
		a, err := p.read(l.version)
		if err != nil {
			return err
		}
		switch p.kind {
		case packetPuback:
			if h.reported(a.id) {
				continue
			}
			if err := h.acknowledge(a.id, a.code, time.Now()); err != nil {
				return fmt.Errorf("%w: %s", err, a.words())
			}
			l.bad = Good // it goes alone, so the answer was for it
		case packetPingresp:
			l.pinged = time.Time{}
		case packetDisconnect:
			return fmt.Errorf("the gateway ended the connection: %s", a.words())
		default:
			return fmt.Errorf("%w: packet type %d, which a hub cannot get", errProtocol, p.kind)
		}
	}
}

func (l *link) write(b []byte) error {
	l.wrote = time.Now()
	if err := l.raw.SetWriteDeadline(l.wrote.Add(writeTimeout)); err != nil {
		return fmt.Errorf("write to the gateway: %w", err)
	}
	if _, err := l.tls.Write(b); err != nil {
		return fmt.Errorf("write to the gateway: %w", err)
	}
	return nil
}

// leave says goodbye.
func (l *link) leave() error { return l.write([]byte{packetDisconnect << 4, 0}) }
