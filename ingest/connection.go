package ingest

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/payload"
	"hearthline/ingest/reason"
	"hearthline/ingest/session"
	"hearthline/ingest/wire"
)

// connection is one MQTT client's connection: the protocol, as a [wire.Handler]. What outlives it is its session's. Its fields
// are the reader's alone, but for those under mu.
type connection struct {
	door    *listenerCounters // it came in by
	g       *Gateway
	link    *wire.Link
	from    string             // address without port
	id      *identity.Identity // nil until CONNECT was accepted
	session *session.Session   // likewise
	terms   session.Terms

	lastPacket time.Duration // after epoch; before CONNECT when the connection was accepted
	partial    time.Duration // after epoch: when a packet began that is not complete; 0: none
	keepAlive  time.Duration // 0: none
	aliases    []string      // inbound topic aliases, from 1
	explains   bool          // the client wants reason strings
	persists   bool          // its CONNECT asked for a session that outlives it
	ended      bool          // it said DISCONNECT, or was told

	retired atomic.Bool // the gateway drains, and it is this client's turn
	parting sync.Once

	mu         sync.Mutex
	settling   bool // settle is going to be called
	acks       ackQueue
	unreleased int           // QoS 2 messages answered on this connection by a PUBREC, and not released
	space      chan struct{} // Closed when the window has room; nil unless the reader waits
	idle       chan struct{} // Closed when no message waits for the log; nil unless the drain waits
}

// epoch is what connections count time from: two words less each than with time.Time.
var epoch = time.Now()

// Deadline implements wire.Handler.
func (c *connection) Deadline() time.Time {
	if c.id == nil {
		return epoch.Add(c.lastPacket + c.g.ConnectTimeout)
	}
	var by time.Duration
	if c.keepAlive > 0 {
		by = c.lastPacket + c.keepAlive*3/2
	}
	if c.partial != 0 {
		if p := c.partial + c.g.PacketTimeout; by == 0 || p < by {
			by = p
		}
	}
	if by == 0 {
		return time.Time{}
	}
	return epoch.Add(by)
}

// Receive implements wire.Handler: it takes as many whole packets as there are, and answers them in one write.
func (c *connection) Receive(data []byte) (used int, h wire.Hold, err error) {
	defer c.link.Flush()
	d := decoders.Get().(*payload.Decoder)
	defer decoders.Put(d)
	for used < len(data) {
		if c.retired.Load() {
			return used, wire.Hold{}, wire.ErrDraining
		}
		bytesMax := c.g.packetMax()
		if c.id == nil {
			bytesMax = connectBytesMax
		}
		kind, flags, body, size, err := mqtt.Frame(data[used:], bytesMax)
		if err != nil {
			return used, wire.Hold{}, err
		}
		if size == 0 {
			if c.partial == 0 {
				c.partial = time.Since(epoch)
			}
			return used, wire.Hold{}, nil
		}
		h, err := c.packet(kind, flags, body, d)
		if err != nil || !h.Empty() {
			if !h.Empty() {
				c.g.count.held.Add(1)
			}
			c.lastPacket, c.partial = time.Since(epoch), 0
			return used, h, err
		}
		used += size
	}
	c.lastPacket, c.partial = time.Since(epoch), 0
	return used, wire.Hold{}, nil
}

// connectBytesMax bounds what a stranger can make the gateway hold.
const connectBytesMax = 16 << 10

var decoders = sync.Pool{New: func() any { return new(payload.Decoder) }}

// packet handles one packet. With a hold it has changed nothing.
func (c *connection) packet(kind, flags byte, body []byte, d *payload.Decoder) (wire.Hold, error) {
	if c.id == nil {
		if kind != mqtt.TypeConnect {
			return wire.Hold{}, mqtt.Broken(mqtt.CodeProtocolError, "packet type %d before CONNECT", kind)
		}
		return wire.Hold{}, c.connect(body)
	}
	switch kind {
	case mqtt.TypePublish:
		return c.publish(flags, body, d)
	case mqtt.TypePuback, mqtt.TypePubrec, mqtt.TypePubcomp:
		p, err := mqtt.ParseAck(c.terms.Version, kind, body)
		if err == nil {
			err = c.session.Acknowledged(&c.terms, kind, p)
		}
		return wire.Hold{}, err
	case mqtt.TypePubrel:
		return wire.Hold{}, c.release(body)
	case mqtt.TypeSubscribe:
		return wire.Hold{}, c.subscribe(body)
	case mqtt.TypeUnsubscribe:
		return wire.Hold{}, c.unsubscribe(body)
	case mqtt.TypePingreq:
		if len(body) > 0 {
			return wire.Hold{}, mqtt.Broken(mqtt.CodeMalformed, "a PINGREQ with a body")
		}
		c.session.Retry()
		return wire.Hold{}, c.answer(2, func(b []byte) []byte { return append(b, mqtt.TypePingresp<<4, 0) })
	case mqtt.TypeDisconnect:
		return wire.Hold{}, c.disconnect(body)
	case mqtt.TypeAuth:
		return wire.Hold{}, mqtt.Broken(mqtt.CodeProtocolError, "AUTH without an authentication method")
	}
	return wire.Hold{}, mqtt.Broken(mqtt.CodeProtocolError, "packet type %d is not for a client to send here", kind)
}

var errGoodbye = errors.New("the client said goodbye")

func (c *connection) disconnect(body []byte) error {
	code, props, err := mqtt.ParseDisconnect(c.terms.Version, body)
	if err != nil {
		return err
	}
	if props.Has(mqtt.PropSessionExpiry) {
		if props.SessionExpiry != 0 && !c.persists {
			return mqtt.Broken(mqtt.CodeProtocolError, "a session expiry in DISCONNECT where CONNECT had none")
		}
		c.session.Expire(&c.terms, c.g.sessionExpiry(props.SessionExpiry))
	}
	if code != mqtt.CodeDisconnectWithWill {
		c.session.DiscardWill(&c.terms)
	}
	c.ended = true
	return errGoodbye
}

// answer adds a packet to what is written at the end of receive.
func (c *connection) answer(size int, encode func(b []byte) []byte) error {
	if !c.link.Add(size, encode) {
		c.g.count.refused[reason.SlowConsumer].Add(1)
		return errSlow
	}
	return nil
}

var errSlow = errors.New("the client does not read what it is sent")

// Slow implements wire.Slow: CONNECT has its password checked.
func (c *connection) Slow() bool { return c.id == nil }

// End implements wire.Handler: it takes leave, and leaves the session to itself.
func (c *connection) End(err error) {
	g := c.g
	defer func() {
		g.closed(c.from)
		c.door.open.Add(-1)
	}()
	var bug *wire.Panic
	if errors.As(err, &bug) {
		g.count.panics.Add(1)
		g.Logger.Error("gateway: a connection ended by a panic; this is a bug", "from", c.from, "panic", bug.Value, "stack", string(bug.Stack))
	}
	if c.id != nil && (errors.Is(err, wire.ErrDraining) || c.retired.Load()) {
		c.part()
		c.session.DiscardWill(&c.terms) // the home has not gone: its connection moves to another gateway
	}
	var p *mqtt.ProtocolError
	switch {
	case errors.As(err, &p):
		g.count.refused[reasonOf(p.Code)].Add(1)
		c.leave(p.Code, p.What)
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.leave(mqtt.CodeKeepAlive, "nothing was heard in time")
	}
	c.link.Finish()
	if c.id == nil {
		return
	}
	g.forget(c)
	g.count.connections.Add(-1)
	c.id.Sessions.Add(-1)
	g.registry.Leave(c.session, &c.terms)
	if !c.ended && err != io.EOF && !errors.Is(err, wire.ErrClosed) {
		g.Logger.Debug("gateway: connection ended", "user", c.id.User, "client", c.session.Key.Client, "from", c.from, "err", err)
	}
}

func reasonOf(code byte) reason.Reason {
	switch code {
	case mqtt.CodeTooLarge:
		return reason.Payload
	case mqtt.CodeNotAuthorized:
		return reason.Topic
	}
	return reason.Protocol
}

// leave tells a version 5 client why it is cut off. Version 3.1.1 has no word for it.
func (c *connection) leave(code byte, why string) {
	if c.id == nil || c.terms.Version != mqtt.V5 || c.ended {
		return
	}
	c.ended = true
	if !c.explains || 8+len(why) > c.terms.PacketMax {
		why = ""
	}
	c.link.Add(8+len(why), func(b []byte) []byte { return mqtt.AppendDisconnect(b, code, why) })
}

// evict ends the connection from another goroutine.
func (c *connection) evict(code byte, why string) {
	if c.terms.Version == mqtt.V5 {
		if 8+len(why) > c.terms.PacketMax {
			why = ""
		}
		c.link.Add(8+len(why), func(b []byte) []byte { return mqtt.AppendDisconnect(b, code, why) })
	}
	c.link.FinishApart()
}
