package ingest

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// MQTT control packet types (MQTT 5.0, section 2.1.2). The codec knows versions 3.1.1 and 5; section numbers below
// are those of the OASIS standard for version 5.
const (
	ptConnect     = 1
	ptConnack     = 2
	ptPublish     = 3
	ptPuback      = 4
	ptPubrec      = 5
	ptPubrel      = 6
	ptPubcomp     = 7
	ptSubscribe   = 8
	ptSuback      = 9
	ptUnsubscribe = 10
	ptUnsuback    = 11
	ptPingreq     = 12
	ptPingresp    = 13
	ptDisconnect  = 14
	ptAuth        = 15
)

// Protocol levels.
const (
	v311 = 4
	v5   = 5
)

// Reason codes (section 2.4).
const (
	rcSuccess            = 0x00
	rcGrantedQoS1        = 0x01
	rcDisconnectWithWill = 0x04
	rcNoSubscription     = 0x11
	rcUnspecified        = 0x80
	rcMalformed          = 0x81
	rcProtocolError      = 0x82
	rcUnsupportedVersion = 0x84
	rcClientID           = 0x85
	rcBadCredentials     = 0x86
	rcNotAuthorized      = 0x87
	rcBusy               = 0x89
	rcShuttingDown       = 0x8B
	rcBadAuthMethod      = 0x8C
	rcKeepAlive          = 0x8D
	rcTakenOver          = 0x8E
	rcTopicFilter        = 0x8F
	rcTopicName          = 0x90
	rcReceiveMaximum     = 0x93
	rcTopicAlias         = 0x94
	rcTooLarge           = 0x95
	rcQuota              = 0x97
	rcPayloadFormat      = 0x99
	rcRetainUnsupported  = 0x9A
	rcQoSUnsupported     = 0x9B
	rcSharedUnsupported  = 0x9E
	rcRate               = 0x9F
	rcSubIDsUnsupported  = 0xA1
)

// protocolError ends a connection: the reason code is what a version 5 client is told.
type protocolError struct {
	code byte
	what string
}

func (e *protocolError) Error() string { return fmt.Sprintf("%s (reason code 0x%02X)", e.what, e.code) }

func broken(code byte, format string, args ...any) error {
	return &protocolError{code: code, what: fmt.Sprintf(format, args...)}
}

// frame cuts the first packet off b: its type, its flags, its body (in b), and the bytes it takes in all. size 0 says
// that b holds only part of it. A packet of more than bytesMax is refused by its header alone, before a byte of it is
// waited for.
func frame(b []byte, bytesMax int) (kind, flags byte, body []byte, size int, err error) {
	if len(b) < 2 {
		return 0, 0, nil, 0, nil
	}
	kind, flags = b[0]>>4, b[0]&15
	if kind == 0 {
		return 0, 0, nil, 0, broken(rcMalformed, "packet type 0")
	}
	if want := fixedFlags(kind); kind != ptPublish && flags != want {
		return 0, 0, nil, 0, broken(rcMalformed, "packet type %d with flags %04b; want %04b", kind, flags, want)
	}
	remaining, n := 0, 0
	for {
		if n == 4 {
			return 0, 0, nil, 0, broken(rcMalformed, "a remaining length of more than 4 bytes")
		}
		if 1+n >= len(b) {
			return kind, flags, nil, 0, nil
		}
		c := b[1+n]
		remaining |= int(c&0x7f) << (7 * n)
		n++
		if c < 0x80 {
			break
		}
	}
	size = 1 + n + remaining
	if size > bytesMax {
		return 0, 0, nil, 0, broken(rcTooLarge, "a packet of %d bytes; at most %d", size, bytesMax)
	}
	if len(b) < size {
		return kind, flags, nil, 0, nil
	}
	return kind, flags, b[1+n : size], size, nil
}

func fixedFlags(kind byte) byte {
	if kind == ptSubscribe || kind == ptUnsubscribe || kind == ptPubrel {
		return 0b0010
	}
	return 0
}

// cursor reads a packet's body. After the first thing that does not fit, err is set and everything reads as zero.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = broken(rcMalformed, format, args...)
	}
	c.b = nil
}

func (c *cursor) bytes(n int) []byte {
	if n > len(c.b) {
		c.fail("a packet ends too early")
		return nil
	}
	out := c.b[:n:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) u8() byte {
	if b := c.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// varint reads a variable byte integer of the fewest bytes (section 1.5.5).
func (c *cursor) varint() uint32 {
	var v uint32
	for i := range 4 {
		b := c.u8()
		v |= uint32(b&0x7f) << (7 * i)
		if b < 0x80 {
			if i > 0 && b == 0 {
				c.fail("a variable byte integer is longer than needed")
			}
			return v
		}
	}
	c.fail("a variable byte integer of more than 4 bytes")
	return 0
}

// binary reads a length and so many bytes.
func (c *cursor) binary() []byte { return c.bytes(int(c.u16())) }

// text reads a UTF-8 string (section 1.5.4): no U+0000, no surrogates.
func (c *cursor) text() []byte {
	b := c.binary()
	for _, x := range b {
		if x == 0 {
			c.fail("a string holds U+0000")
			return nil
		}
	}
	if !utf8.Valid(b) {
		c.fail("a string is not UTF-8")
		return nil
	}
	return b
}

func (c *cursor) done() error {
	if c.err == nil && len(c.b) > 0 {
		c.fail("%d bytes more than the packet holds", len(c.b))
	}
	return c.err
}

// connectPacket is a CONNECT (section 3.1). Byte slices point into the packet.
type connectPacket struct {
	version                  byte
	clean                    bool
	keepAlive                uint16
	clientID, user, password []byte
	hasUser, hasPassword     bool
	will                     *will
	props                    properties
}

// will is the message a client leaves behind.
type will struct {
	topic, payload []byte
	qos            byte
	retain         bool
	props          properties
}

func parseConnect(body []byte) (p connectPacket, err error) {
	c := cursor{b: body}
	name := c.binary()
	p.version = c.u8()
	if c.err != nil {
		return p, c.err
	}
	if string(name) != "MQTT" || p.version != v311 && p.version != v5 {
		if string(name) != "MQTT" && string(name) != "MQIsdp" {
			return p, broken(rcMalformed, "protocol name %.20q", name)
		}
		return p, broken(rcUnsupportedVersion, "protocol %s level %d; want MQTT 3.1.1 or 5", name, p.version)
	}
	flags := c.u8()
	p.keepAlive = c.u16()
	p.clean, p.hasUser, p.hasPassword = flags&2 != 0, flags&0x80 != 0, flags&0x40 != 0
	willQoS := flags >> 3 & 3
	switch {
	case flags&1 != 0:
		c.fail("the reserved connect flag is set")
	case willQoS == 3 || flags&4 == 0 && flags&0x38 != 0:
		c.fail("will flags that fit no will")
	case p.version == v311 && p.hasPassword && !p.hasUser:
		c.fail("a password without a user name")
	}
	if p.version == v5 {
		p.props.parse(&c, inConnect)
	}
	p.clientID = c.text()
	if flags&4 != 0 {
		p.will = &will{qos: willQoS, retain: flags&0x20 != 0}
		if p.version == v5 {
			p.will.props.parse(&c, inWill)
		}
		p.will.topic = c.text()
		p.will.payload = c.binary()
	}
	if p.hasUser {
		p.user = c.text()
	}
	if p.hasPassword {
		p.password = c.binary()
	}
	return p, c.done()
}

// publishPacket is a PUBLISH (section 3.3). Byte slices point into the packet.
type publishPacket struct {
	topic, payload []byte
	id             uint16 // zero for QoS 0
	qos            byte
	retain, dup    bool
	props          properties
}

func parsePublish(version, flags byte, body []byte, p *publishPacket) error {
	*p = publishPacket{qos: flags >> 1 & 3, retain: flags&1 != 0, dup: flags&8 != 0}
	if p.qos == 3 || p.qos == 0 && p.dup {
		return broken(rcMalformed, "publish flags %04b", flags)
	}
	c := cursor{b: body}
	p.topic = c.text()
	if p.qos > 0 {
		if p.id = c.u16(); p.id == 0 && c.err == nil {
			return broken(rcProtocolError, "packet identifier 0")
		}
	}
	if version == v5 {
		p.props.parse(&c, inPublish)
	}
	p.payload = c.b
	if c.err == nil && p.props.has(propPayloadFormat) && p.props.payloadFormat == 1 && !utf8.Valid(p.payload) {
		return broken(rcPayloadFormat, "the payload is said to be UTF-8 and is not")
	}
	return c.err
}

// ackPacket is a PUBACK (section 3.4).
type ackPacket struct {
	id   uint16
	code byte
}

func parseAck(version byte, body []byte) (p ackPacket, err error) {
	c := cursor{b: body}
	p.id = c.u16()
	if version == v5 && len(c.b) > 0 {
		p.code = c.u8()
		if len(c.b) > 0 {
			var props properties
			props.parse(&c, inAck)
		}
	}
	if c.err == nil && p.id == 0 {
		return p, broken(rcProtocolError, "packet identifier 0")
	}
	return p, c.done()
}

// subscribePacket is a SUBSCRIBE or UNSUBSCRIBE (sections 3.8, 3.10). options is empty for the latter.
type subscribePacket struct {
	id      uint16
	filters [][]byte
	options []byte
	props   properties
}

// Subscription options (section 3.8.3.1).
const (
	subQoS     = 0b0000_0011
	subNoLocal = 0b0000_0100
)

func parseSubscribe(version byte, body []byte, un bool) (p subscribePacket, err error) {
	c := cursor{b: body}
	if p.id = c.u16(); p.id == 0 && c.err == nil {
		return p, broken(rcProtocolError, "packet identifier 0")
	}
	if version == v5 {
		if un {
			p.props.parse(&c, inUnsubscribe)
		} else {
			p.props.parse(&c, inSubscribe)
		}
	}
	for c.err == nil && len(c.b) > 0 {
		p.filters = append(p.filters, c.text())
		if un {
			continue
		}
		o := c.u8()
		if o&3 == 3 || version == v311 && o&^3 != 0 || o&0xc0 != 0 || o>>4&3 == 3 {
			c.fail("subscription options %08b", o)
		}
		p.options = append(p.options, o)
	}
	if c.err == nil && len(p.filters) == 0 {
		return p, broken(rcProtocolError, "a subscription without a topic filter")
	}
	return p, c.done()
}

// parseDisconnect gives the reason code of a DISCONNECT (section 3.14).
func parseDisconnect(version byte, body []byte) (code byte, props properties, err error) {
	c := cursor{b: body}
	if version == v5 && len(c.b) > 0 {
		code = c.u8()
		if len(c.b) > 0 {
			props.parse(&c, inDisconnect)
		}
	}
	return code, props, c.done()
}
