package ingest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/payload"
	"hearthline/ingest/reason"
	"hearthline/ingest/wire"
)

// session is one MQTT client's connection: the protocol, as a [wire.Handler]. Its fields are the reader's alone, but for
// those under mu.
type session struct {
	g    *Gateway
	link *wire.Link
	from string // address without port

	connectBy  time.Time
	version    byte
	id         *identity.Identity // nil until CONNECT was accepted
	clientID   string
	keepAlive  time.Duration // 0: none
	lastPacket time.Time
	partial    time.Time // when a packet began that is not complete; zero: none
	will       *mqtt.Message
	aliases    []string // inbound topic aliases, from 1
	explains   bool     // the client wants reason strings
	ended      bool     // it said DISCONNECT, or was told
	listens    int      // topic filters; under the gateway's audienceMu

	peerPacketMax int // What the client takes
	outWindow     int // QoS 1 messages it takes at once

	mu       sync.Mutex
	acks     ackQueue
	settling bool          // settle is going to be called
	space    chan struct{} // Closed when the window has room; nil unless the reader waits
	idle     chan struct{} // Closed when no message waits for the log; nil unless the drain waits
	sent     map[uint16]struct{}
	lastSent uint16
	backlog  []mqtt.Message // QoS 1, waiting for room in outWindow
	behind   int            // Bytes of backlog
}

// backlogMax is how many QoS 1 messages wait for a slow client, besides those in its window. Their bytes are bounded by
// OutboundBytesMax.
const backlogMax = 1024

// outWindowMax bounds the QoS 1 messages on their way to one client, whatever it asks for.
const outWindowMax = 64

// ackQueue holds the QoS 1 messages that were taken, in their order, so that they are acknowledged in it (MQTT 5,
// section 4.6), whatever order they become durable in.
type ackQueue struct {
	q    []ack
	head int
	base uint64 // token of q[head]
}

type ack struct {
	why  string
	id   uint16
	code byte
	done bool
}

func (a *ackQueue) len() int { return len(a.q) - a.head }

func (a *ackQueue) push(x ack) (token uint64) {
	if a.head == len(a.q) {
		a.q, a.head = a.q[:0], 0
	} else if len(a.q) == cap(a.q) && a.head > 0 {
		a.q, a.head = a.q[:copy(a.q, a.q[a.head:])], 0
	}
	a.q = append(a.q, x)
	return a.base + uint64(a.len()) - 1
}

func (a *ackQueue) done(token uint64) {
	if i := token - a.base; i < uint64(a.len()) {
		a.q[a.head+int(i)].done = true
	}
}

// pop removes the oldest if it is done.
func (a *ackQueue) pop() (ack, bool) {
	if a.len() == 0 || !a.q[a.head].done {
		return ack{}, false
	}
	x := a.q[a.head]
	a.q[a.head] = ack{}
	a.head++
	a.base++
	if a.len() == 0 && cap(a.q) > 16 {
		a.q, a.head = nil, 0 // an idle connection holds nothing
	}
	return x, true
}

// Deadline implements wire.Handler.
func (s *session) Deadline() time.Time {
	if s.id == nil {
		return s.connectBy
	}
	var by time.Time
	if s.keepAlive > 0 {
		by = s.lastPacket.Add(s.keepAlive * 3 / 2)
	}
	if !s.partial.IsZero() {
		if p := s.partial.Add(s.g.PacketTimeout); by.IsZero() || p.Before(by) {
			by = p
		}
	}
	return by
}

// Receive implements wire.Handler: it takes as many whole packets as there are, and answers them in one write.
func (s *session) Receive(data []byte) (used int, h wire.Hold, err error) {
	defer s.link.Flush()
	d := decoders.Get().(*payload.Decoder)
	defer decoders.Put(d)
	for used < len(data) {
		bytesMax := s.g.packetMax()
		if s.id == nil {
			bytesMax = connectBytesMax
		}
		kind, flags, body, size, err := mqtt.Frame(data[used:], bytesMax)
		if err != nil {
			return used, wire.Hold{}, err
		}
		if size == 0 {
			if s.partial.IsZero() {
				s.partial = time.Now()
			}
			return used, wire.Hold{}, nil
		}
		h, err := s.packet(kind, flags, body, d)
		if err != nil || !h.Empty() {
			if !h.Empty() {
				s.g.count.held.Add(1)
			}
			s.lastPacket, s.partial = time.Now(), time.Time{}
			return used, h, err
		}
		used += size
	}
	s.lastPacket, s.partial = time.Now(), time.Time{}
	return used, wire.Hold{}, nil
}

// connectBytesMax bounds what a stranger can make the gateway hold.
const connectBytesMax = 16 << 10

var decoders = sync.Pool{New: func() any { return new(payload.Decoder) }}

// packet handles one packet. With a hold it has changed nothing.
func (s *session) packet(kind, flags byte, body []byte, d *payload.Decoder) (wire.Hold, error) {
	if s.id == nil {
		if kind != mqtt.TypeConnect {
			return wire.Hold{}, mqtt.Broken(mqtt.CodeProtocolError, "packet type %d before CONNECT", kind)
		}
		return wire.Hold{}, s.connect(body)
	}
	switch kind {
	case mqtt.TypePublish:
		return s.publish(flags, body, d)
	case mqtt.TypePuback:
		p, err := mqtt.ParseAck(s.version, body)
		if err == nil {
			s.acknowledged(p.Id)
		}
		return wire.Hold{}, err
	case mqtt.TypeSubscribe:
		return wire.Hold{}, s.subscribe(body)
	case mqtt.TypeUnsubscribe:
		return wire.Hold{}, s.unsubscribe(body)
	case mqtt.TypePingreq:
		if len(body) > 0 {
			return wire.Hold{}, mqtt.Broken(mqtt.CodeMalformed, "a PINGREQ with a body")
		}
		return wire.Hold{}, s.answer(2, func(b []byte) []byte { return append(b, mqtt.TypePingresp<<4, 0) })
	case mqtt.TypeDisconnect:
		return wire.Hold{}, s.disconnect(body)
	case mqtt.TypeAuth:
		return wire.Hold{}, mqtt.Broken(mqtt.CodeProtocolError, "AUTH without an authentication method")
	}
	return wire.Hold{}, mqtt.Broken(mqtt.CodeProtocolError, "packet type %d is not for a client to send here", kind)
}

var errGoodbye = errors.New("the client said goodbye")

func (s *session) disconnect(body []byte) error {
	code, props, err := mqtt.ParseDisconnect(s.version, body)
	if err != nil {
		return err
	}
	if props.Has(mqtt.PropSessionExpiry) && props.SessionExpiry != 0 {
		return mqtt.Broken(mqtt.CodeProtocolError, "a session expiry in DISCONNECT where CONNECT had none")
	}
	if code != mqtt.CodeDisconnectWithWill {
		s.will = nil
	}
	s.ended = true
	return errGoodbye
}

// answer adds a packet to what is written at the end of receive.
func (s *session) answer(size int, encode func(b []byte) []byte) error {
	if !s.link.Add(size, encode) {
		s.g.count.refused[reason.SlowConsumer].Add(1)
		return errSlow
	}
	return nil
}

var errSlow = errors.New("the client does not read what it is sent")

// Slow implements wire.Slow: CONNECT has its password checked.
func (s *session) Slow() bool { return s.id == nil }

// End implements wire.Handler: it takes leave, publishes the will and forgets the session.
func (s *session) End(err error) {
	g := s.g
	defer g.count.sockets.Add(-1)
	var bug *wire.Panic
	if errors.As(err, &bug) {
		g.count.panics.Add(1)
		g.Logger.Error("gateway: a connection ended by a panic; this is a bug", "from", s.from, "panic", bug.Value, "stack", string(bug.Stack))
	}
	if errors.Is(err, wire.ErrDraining) && s.id != nil {
		s.settleAll()
		s.leave(mqtt.CodeShuttingDown, "the gateway is going down")
		s.will = nil // the home has not gone: its connection moves to another gateway
	}
	var p *mqtt.ProtocolError
	switch {
	case errors.As(err, &p):
		g.count.refused[reasonOf(p.Code)].Add(1)
		s.leave(p.Code, p.What)
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.leave(mqtt.CodeKeepAlive, "nothing was heard in time")
	}
	s.link.Finish()
	if s.id == nil {
		return
	}
	g.forget(s)
	g.count.connections.Add(-1)
	s.id.Sessions.Add(-1)
	if s.will != nil {
		g.count.wills.Add(1)
		g.fanOut(identity.HomeOf(s.will.Topic), s.will, nil)
	}
	if !s.ended && err != io.EOF && !errors.Is(err, wire.ErrClosed) {
		g.Logger.Debug("gateway: connection ended", "user", s.id.User, "client", s.clientID, "from", s.from, "err", err)
	}
}

func reasonOf(code byte) reason.Reason {
	switch code {
	case mqtt.CodeTooLarge:
		return reason.Payload
	case mqtt.CodeNotAuthorized:
		return reason.Topic
	case mqtt.CodeQoSUnsupported:
		return reason.QoS
	}
	return reason.Protocol
}

// leave tells a version 5 client why it is cut off. Version 3.1.1 has no word for it.
func (s *session) leave(code byte, why string) {
	if s.id == nil || s.version != mqtt.V5 || s.ended {
		return
	}
	s.ended = true
	if !s.explains {
		why = ""
	}
	s.link.Add(8+len(why), func(b []byte) []byte { return mqtt.AppendDisconnect(b, code, why) })
}

// evict ends the connection from another goroutine.
func (s *session) evict(code byte, why string) {
	if s.version == mqtt.V5 {
		s.link.Add(8+len(why), func(b []byte) []byte { return mqtt.AppendDisconnect(b, code, why) })
	}
	s.link.FinishApart()
}

// durable implements waiter.
func (s *session) durable(token uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acks.done(token)
	s.drainAcks()
	was := s.settling
	s.settling = true
	return !was
}

// settle implements waiter: it writes the acknowledgements, on a goroutine of the connection's own.
func (s *session) settle() {
	s.mu.Lock()
	s.settling = false
	s.mu.Unlock()
	s.link.FlushApart()
}

// drainAcks adds the PUBACKs that are due. Callers hold mu.
func (s *session) drainAcks() {
	for {
		a, ok := s.acks.pop()
		if !ok {
			break
		}
		if !s.link.Add(8+len(a.why), func(b []byte) []byte { return mqtt.AppendPuback(b, s.version, a.id, a.code, a.why) }) {
			s.link.FinishApart() // it sends and never reads: what it sent is safe, and sent again
		}
	}
	if s.space != nil && s.acks.len() < s.g.ReceiveMaximum {
		close(s.space)
		s.space = nil
	}
	if s.idle != nil && s.acks.len() == 0 {
		close(s.idle)
		s.idle = nil
	}
}

// settleAll waits until everything taken from the client is durable and acknowledged, or until the drain's limit.
func (s *session) settleAll() {
	s.mu.Lock()
	if s.acks.len() == 0 {
		s.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	s.idle = idle
	s.mu.Unlock()
	select {
	case <-idle:
	case <-s.link.Gone():
	case <-s.g.live.Done():
	}
}

// acknowledgeNow queues the answer to a message that waits for nothing.
func (s *session) acknowledgeNow(id uint16, code byte, why string) {
	if !s.explains {
		why = ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acks.push(ack{id: id, code: code, why: why, done: true})
	s.drainAcks()
}

// deliver sends a message to the client, from any goroutine. qos is at most 1. It says whether the message is on its
// way; with QoS 1 it may wait for room in the client's window.
func (s *session) deliver(m *mqtt.Message, qos byte) bool {
	if m.Size() > s.peerPacketMax {
		return false
	}
	ok := false
	if qos == 0 {
		ok = s.link.Add(m.Size(), func(b []byte) []byte { return mqtt.AppendPublish(b, s.version, m, 0, 0) })
	} else {
		s.mu.Lock()
		switch {
		case len(s.sent) < s.outWindow:
			ok = s.send(m)
		case len(s.backlog) < backlogMax && s.behind+m.Size() <= s.link.BytesMax:
			keep := *m
			keep.Payload, keep.Props = append([]byte(nil), m.Payload...), append([]byte(nil), m.Props...)
			keep.Topic = strings.Clone(m.Topic)
			s.backlog = append(s.backlog, keep)
			s.behind += m.Size()
			ok = true
		}
		s.mu.Unlock()
	}
	if ok {
		s.g.count.delivered.Add(1)
	} else {
		s.g.count.refused[reason.SlowConsumer].Add(1)
	}
	s.link.FlushApart()
	return ok
}

// send writes a QoS 1 message. Its packet identifier is of the gateway's own count: the client's count for what it
// publishes is another one (MQTT 5, section 2.2.1). Callers hold mu.
func (s *session) send(m *mqtt.Message) bool {
	for {
		s.lastSent++
		if _, used := s.sent[s.lastSent]; s.lastSent != 0 && !used {
			break
		}
	}
	id := s.lastSent
	if !s.link.Add(m.Size(), func(b []byte) []byte { return mqtt.AppendPublish(b, s.version, m, 1, id) }) {
		return false
	}
	if s.sent == nil {
		s.sent = make(map[uint16]struct{})
	}
	s.sent[id] = struct{}{}
	return true
}

// acknowledged handles a PUBACK of the client.
func (s *session) acknowledged(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sent, id)
	for len(s.backlog) > 0 && len(s.sent) < s.outWindow {
		if !s.send(&s.backlog[0]) {
			break
		}
		s.behind -= s.backlog[0].Size()
		s.backlog[0] = mqtt.Message{}
		s.backlog = s.backlog[1:]
	}
	if len(s.backlog) == 0 {
		s.backlog = nil
	}
}

func (s *session) String() string { return fmt.Sprintf("%s (%s)", s.clientID, s.from) }
