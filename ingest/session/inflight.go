package session

import (
	"slices"
	"time"

	"hearthline/ingest/mqtt"
)

// WindowMax bounds the QoS 1 and 2 messages in flight to one client, whatever it asks for.
const WindowMax = 64

// aliasMax bounds the topic aliases that the gateway gives out on one connection.
const aliasMax = 16

// outbox holds the QoS 1 and 2 messages on their way to a client: in flight, then waiting. Packet ids are of the gateway's
// own count: the client's count for what it publishes is another one (MQTT 5, section 2.2.1).
type outbox struct {
	flight []Delivery // in the order in which they were first sent
	queue  []Delivery // in the order of arrival
	sent   int        // of flight, from the first: on this connection
	bytes  int
}

// post is a message that goes to several sessions. It is borrowed until one of them must keep it, and copied once.
type post struct {
	m   *mqtt.Message
	own bool
}

func (p *post) keep() *mqtt.Message {
	if !p.own {
		p.m, p.own = clone(p.m), true
	}
	return p.m
}

func (d *Delivery) size() int {
	if d.Message == nil {
		return 8
	}
	return d.Message.Size() + 5*len(d.IDs)
}

// hold counts a message that is kept, or one that is not kept any more: then bytes is below zero.
func (o *outbox) hold(r *Registry, bytes int) {
	o.bytes += bytes
	r.bytes.Add(int64(bytes))
	if bytes < 0 {
		r.messages.Add(-1)
	} else {
		r.messages.Add(1)
	}
}

// release counts all its messages off.
func (o *outbox) release(r *Registry) {
	r.bytes.Add(-int64(o.bytes))
	r.messages.Add(-int64(len(o.flight) + len(o.queue)))
	o.bytes = 0
}

// fits says whether a message may wait, behind what is there already.
func (o *outbox) fits(r *Registry, bytes int) bool {
	if len(o.flight)+len(o.queue) == 0 {
		return true
	}
	return len(o.queue) < r.QueueMax && o.bytes+bytes <= r.QueueBytesMax && r.bytes.Load()+int64(bytes) <= int64(r.BytesMax)
}

// outcome is what became of a message for one session.
type outcome uint8

const (
	onItsWay outcome = iota
	noRoom           // the client is too slow, or takes no packet of that size
	missed           // QoS 0, and the client is away
)

// deliver sends a message to the client, or keeps it for the client if its QoS is not 0.
func (s *Session) deliver(p *post, d Delivery) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || s.at == nil && (d.Qos == 0 || s.expiry == 0) {
		return missed
	}
	d.Message = p.m
	now := time.Now()
	if s.at != nil {
		if d.size() > s.at.PacketMax {
			return noRoom
		}
		defer s.at.Link.FlushApart()
	}
	if d.Qos == 0 {
		if !s.publish(&d, false, now) {
			return noRoom
		}
		return onItsWay
	}
	if s.out == nil {
		s.out = new(outbox)
	}
	if !s.out.fits(s.owner, d.size()) {
		return noRoom
	}
	d.Message = p.keep()
	s.out.hold(s.owner, d.size())
	s.out.queue = append(s.out.queue, d)
	if s.rest != nil {
		s.rest.changed = true
	}
	s.pump(now)
	return onItsWay
}

// pump sends what the client has room for: first, after a new connection, what was in flight on the one before, in its
// order (MQTT 5, section 4.4), then what waits. Callers hold mu.
func (s *Session) pump(now time.Time) {
	o := s.out
	if o == nil || s.at == nil {
		return
	}
	for o.sent < len(o.flight) {
		d := &o.flight[o.sent]
		switch {
		case d.Released:
			if !s.acknowledge(mqtt.TypePubrel, d.ID, mqtt.CodeSuccess) {
				return
			}
		case d.size() > s.at.PacketMax: // the client takes less than on its last connection: section 3.1.2.11.4
			s.drop(o.sent)
			continue
		case o.sent >= int(s.at.Window) || !s.publish(d, true, now):
			return
		}
		o.sent++
	}
	for len(o.queue) > 0 && len(o.flight) < int(s.at.Window) {
		d := o.queue[0]
		if !d.Message.Expired(now) && d.size() <= s.at.PacketMax {
			d.ID = s.nextID()
			if !s.publish(&d, false, now) {
				return
			}
			o.flight = append(o.flight, d)
			o.sent++
		} else {
			o.hold(s.owner, -d.size())
		}
		o.queue[0] = Delivery{}
		o.queue = o.queue[1:]
	}
	if len(o.queue) == 0 {
		o.queue = nil // an idle session holds nothing
	}
}

// keep drops the messages on topics that the client may not see any more, and those that were handed to its last
// connection alone. Callers hold mu.
func (s *Session) keep(may func(topic string) bool) {
	o := s.out
	gone := func(d Delivery) bool {
		if d.acked == nil && (d.Message == nil || may(d.Message.Topic)) {
			return false
		}
		o.hold(s.owner, -d.size())
		return true
	}
	o.flight, o.queue = slices.DeleteFunc(o.flight, gone), slices.DeleteFunc(o.queue, gone)
}

func (s *Session) nextID() uint16 {
	for {
		s.last++
		if s.last != 0 && s.find(s.last) < 0 {
			return s.last
		}
	}
}

func (s *Session) find(id uint16) int {
	if s.out == nil {
		return -1
	}
	return slices.IndexFunc(s.out.flight, func(d Delivery) bool { return d.ID == id })
}

// drop takes a message out of flight. Callers hold mu.
func (s *Session) drop(i int) {
	o := s.out
	o.hold(s.owner, -o.flight[i].size())
	o.flight = slices.Delete(o.flight, i, i+1)
	if i < o.sent {
		o.sent--
	}
	if len(o.flight) == 0 && cap(o.flight) > 4 {
		o.flight = nil
	}
}

// publish writes a PUBLISH. Callers hold mu.
func (s *Session) publish(d *Delivery, dup bool, now time.Time) bool {
	t := s.at
	to := mqtt.Sending{Qos: d.Qos, Dup: dup, Retain: d.Retain, ID: d.ID, IDs: d.IDs, Now: now}
	if t.AliasMax > 0 {
		to.Alias, to.Aliased = t.alias(d.Message.Topic)
	}
	if !t.Link.Add(d.size(), func(b []byte) []byte { return mqtt.AppendPublish(b, t.Version, d.Message, &to) }) {
		return false
	}
	if to.Alias > 0 && !to.Aliased {
		if t.aliases == nil {
			t.aliases = make(map[string]uint16)
		}
		t.aliases[clone(d.Message).Topic] = to.Alias
	}
	return true
}

// alias is a topic's alias (MQTT 5, section 3.3.2.3.4), and whether the client knows it. The first topics of a connection
// get one each.
func (t *Terms) alias(topic string) (alias uint16, known bool) {
	if a, ok := t.aliases[topic]; ok {
		return a, true
	}
	if n := len(t.aliases); n < int(min(t.AliasMax, aliasMax)) {
		return uint16(n + 1), false
	}
	return 0, false
}

// acknowledge writes a packet of the QoS 2 handshake. Callers hold mu.
func (s *Session) acknowledge(kind byte, id uint16, code byte) bool {
	t := s.at
	return t.Link.Add(5, func(b []byte) []byte { return mqtt.AppendAck(b, t.Version, kind, id, code, "") })
}

// Acknowledged handles a PUBACK, PUBREC or PUBCOMP that came by a connection. An id that is not in flight is none to worry
// about: the message may have been dropped meanwhile. The error is that of a protocol broken.
func (s *Session) Acknowledged(t *Terms, kind byte, ack mqtt.AckPacket) error {
	acked, err := s.acknowledged(t, kind, ack)
	if acked != nil {
		acked()
	}
	return err
}

func (s *Session) acknowledged(t *Terms, kind byte, ack mqtt.AckPacket) (acked func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at != t {
		return nil, nil
	}
	i := s.find(ack.ID)
	if i < 0 {
		if kind == mqtt.TypePubrec && ack.Code < mqtt.CodeUnspecified && !s.acknowledge(mqtt.TypePubrel, ack.ID, mqtt.CodeUnknownID) {
			t.Link.FinishApart() // it sends and never reads
		}
		return nil, nil
	}
	d := &s.out.flight[i]
	if (kind == mqtt.TypePuback) != (d.Qos == 1) || kind == mqtt.TypePubcomp && !d.Released {
		return nil, mqtt.Broken(mqtt.CodeProtocolError, "packet type %d for packet identifier %d, a message of QoS %d", kind, ack.ID, d.Qos)
	}
	if kind != mqtt.TypePubcomp && ack.Code < mqtt.CodeUnspecified {
		acked = d.acked
	}
	if kind == mqtt.TypePubrec && ack.Code < mqtt.CodeUnspecified {
		s.out.hold(s.owner, -d.size())
		d.Released, d.Message, d.IDs, d.Share = true, nil, nil, ""
		s.out.hold(s.owner, d.size())
		if !s.acknowledge(mqtt.TypePubrel, ack.ID, mqtt.CodeSuccess) {
			t.Link.FinishApart()
		}
		return acked, nil
	}
	s.drop(i)
	s.pump(time.Now())
	return acked, nil
}

// Retry sends what waits, if the client has room by now.
func (s *Session) Retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pump(time.Now())
}

// InFlight is how many messages were sent and not acknowledged, and how many wait behind them.
func (s *Session) InFlight() (sent, waiting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out == nil {
		return 0, 0
	}
	return len(s.out.flight), len(s.out.queue)
}
