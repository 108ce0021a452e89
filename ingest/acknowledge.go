package ingest

import (
	"hearthline/ingest/mqtt"
)

// ackQueue holds the QoS 1 and 2 messages that were taken, in their order, so that they are acknowledged in it (MQTT 5,
// section 4.6), whatever order they become durable in.
type ackQueue struct {
	q    []ack
	head int
	base uint64 // token of q[head]
}

// ack is a PUBACK or PUBREC to come.
type ack struct {
	why  string
	id   uint16
	kind byte
	code byte
	done bool
}

// ackKind is what answers a message of QoS 1 or 2.
func ackKind(qos byte) byte {
	if qos == 2 {
		return mqtt.TypePubrec
	}
	return mqtt.TypePuback
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

// unpush takes back the last push.
func (a *ackQueue) unpush() { a.q = a.q[:len(a.q)-1] }

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

// durable implements waiter. It may come when the connection has ended: a QoS 2 message is then known to the session, and
// not taken again when the client comes back and repeats it.
func (c *connection) durable(token uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acks.done(token)
	c.drainAcks()
	was := c.settling
	c.settling = true
	return !was
}

// settle implements waiter: it writes the acknowledgements, on a goroutine of the connection's own.
func (c *connection) settle() {
	c.mu.Lock()
	c.settling = false
	c.mu.Unlock()
	c.link.FlushApart()
}

// drainAcks adds the acknowledgements that are due. Callers hold mu.
func (c *connection) drainAcks() {
	for {
		a, ok := c.acks.pop()
		if !ok {
			break
		}
		switch {
		case a.kind != mqtt.TypePubrec:
		case a.code < mqtt.CodeUnspecified || c.terms.Version == mqtt.V311:
			c.session.Take(a.id)
			c.unreleased++
		default: // refused: the id is free
			c.session.Unpend(a.id)
		}
		if 8+len(a.why) > c.terms.PacketMax {
			a.why = ""
		}
		if !c.link.Add(8+len(a.why), func(b []byte) []byte { return mqtt.AppendAck(b, c.terms.Version, a.kind, a.id, a.code, a.why) }) {
			c.link.FinishApart() // it sends and never reads: what it sent is safe, and sent again
		}
	}
	if c.space != nil && c.acks.len() < c.g.ReceiveMaximum {
		close(c.space)
		c.space = nil
	}
	if c.idle != nil && c.acks.len() == 0 {
		close(c.idle)
		c.idle = nil
	}
}

// settleAll waits until everything taken from the client is durable and acknowledged, or until the drain's limit.
func (c *connection) settleAll() {
	c.mu.Lock()
	if c.acks.len() == 0 {
		c.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	c.idle = idle
	c.mu.Unlock()
	select {
	case <-idle:
	case <-c.link.Gone():
	case <-c.g.live.Done():
	}
}

// acknowledgeNow queues the answer to a message that waits for nothing.
func (c *connection) acknowledgeNow(p *mqtt.PublishPacket, code byte, why string) {
	if !c.explains {
		why = ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acks.push(ack{id: p.ID, kind: ackKind(p.Qos), code: code, why: why, done: true})
	c.drainAcks()
}

// release handles PUBREL: the client sends a QoS 2 message no more.
func (c *connection) release(body []byte) error {
	p, err := mqtt.ParseAck(c.terms.Version, mqtt.TypePubrel, body)
	if err != nil {
		return err
	}
	code := byte(mqtt.CodeUnknownID)
	if c.session.Release(p.ID) {
		code = mqtt.CodeSuccess
		c.mu.Lock()
		c.unreleased = max(0, c.unreleased-1) // one of an earlier connection is not counted
		c.mu.Unlock()
	}
	return c.answer(5, func(b []byte) []byte { return mqtt.AppendAck(b, c.terms.Version, mqtt.TypePubcomp, p.ID, code, "") })
}
