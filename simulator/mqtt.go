package simulator

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The MQTT a hub needs: MQTT 3.1.1 (OASIS, 2014) and MQTT 5.0 (OASIS, 2019). Section numbers are those of MQTT 5.0.

const (
	packetConnect    = 1
	packetConnack    = 2
	packetPublish    = 3
	packetPuback     = 4
	packetSubscribe  = 8
	packetSuback     = 9
	packetPingreq    = 12
	packetPingresp   = 13
	packetDisconnect = 14

	version311 = 4
	version5   = 5
)

// packetMax is the largest packet a hub takes; it says so in CONNECT (Maximum Packet Size, 3.1.2.11.4). It is sent
// acknowledgements, a few bytes each, with perhaps a reason in words, commands, and deltas of a whole shadow.
const packetMax = 64 << 10

var errProtocol = errors.New("the server broke the protocol")

// appendConnect writes CONNECT (3.1). The session is always a new one (Clean Start): a hub keeps its outstanding
// messages itself, so the server need hold nothing for it.
func appendConnect(b []byte, version byte, keepAlive uint16, id, user, password string) []byte {
	properties := 0
	if version == version5 {
		properties = 1 + 5
	}
	n := 10 + properties + 2 + len(id) + 2 + len(user) + 2 + len(password)
	b = appendHeader(b, packetConnect<<4, n)
	b = appendString(b, "MQTT")
	b = append(b, version, 0x80|0x40|0x02) // user name, password, clean start
	b = binary.BigEndian.AppendUint16(b, keepAlive)
	if version == version5 {
		b = append(b, 5, 0x27)
		b = binary.BigEndian.AppendUint32(b, packetMax)
	}
	b = appendString(b, id)
	b = appendString(b, user)
	return appendString(b, password)
}

// appendPublishHead writes a QoS 1 PUBLISH (3.3) up to its payload of size bytes, which the caller adds.
func appendPublishHead(b []byte, version byte, again bool, topic string, id uint16, size int) []byte {
	first := byte(packetPublish<<4 | 1<<1)
	if again {
		first |= 1 << 3 // DUP
	}
	n := 2 + len(topic) + 2 + size
	if version == version5 {
		n++
	}
	b = appendHeader(b, first, n)
	b = appendString(b, topic)
	b = binary.BigEndian.AppendUint16(b, id)
	if version == version5 {
		b = append(b, 0) // no properties
	}
	return b
}

// appendHeader writes packet type and flags, and the remaining length as a variable byte integer (1.5.5).
func appendHeader(b []byte, first byte, n int) []byte {
	b = append(b, first)
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// packet is one received packet; its body lies in the inbox until the next one is taken.
type packet struct {
	kind, flags byte
	body        []byte
}

// inbox gathers received bytes into packets.
type inbox struct {
	buf        []byte
	begin, end int
}

// space is where the next bytes are read to; never empty after a next that found no packet.
func (in *inbox) space() []byte {
	if in.begin == in.end {
		in.begin, in.end = 0, 0
	}
	if in.begin > 0 && in.end == len(in.buf) {
		in.end = copy(in.buf, in.buf[in.begin:in.end])
		in.begin = 0
	}
	if in.end == len(in.buf) { // one packet fills it all: packetMax bounds this
		in.buf = append(in.buf, make([]byte, max(len(in.buf), 128))...)
	}
	return in.buf[in.end:]
}

// next takes a packet; ok is false when its bytes are not all there yet.
func (in *inbox) next() (p packet, ok bool, err error) {
	b := in.buf[in.begin:in.end]
	n, used := 0, 1
	for shift := 0; ; shift += 7 {
		if used >= len(b) {
			return p, false, nil
		}
		if shift > 21 {
			return p, false, fmt.Errorf("%w: a remaining length of more than 4 bytes", errProtocol)
		}
		c := b[used]
		used++
		n |= int(c&0x7f) << shift
		if c < 0x80 {
			break
		}
	}
	if used+n > packetMax {
		return p, false, fmt.Errorf("%w: a packet of %d bytes, where %d is the most", errProtocol, used+n, packetMax)
	}
	if len(b) < used+n {
		return p, false, nil
	}
	in.begin += used + n
	return packet{kind: b[0] >> 4, flags: b[0] & 0xf, body: b[used : used+n]}, true, nil
}

// answer is what the server says in CONNACK, PUBACK or DISCONNECT.
type answer struct {
	id   uint16 // of a PUBACK
	code byte   // reason code (2.4); of 3.1.1 the return code of CONNACK
	why  string // reason string, if any

	receiveMax uint16 // of CONNACK: 0 where not said
	keepAlive  int    // likewise; -1 where not said
}

// read understands the body of a CONNACK, PUBACK or DISCONNECT.
func (p packet) read(version byte) (answer, error) {
	a := answer{keepAlive: -1}
	b := p.body
	short := fmt.Errorf("%w: a packet of type %d is too short", errProtocol, p.kind)
	switch p.kind {
	case packetConnack:
		if len(b) < 2 {
			return a, short
		}
		a.code, b = b[1], b[2:]
	case packetPuback:
		if len(b) < 2 {
			return a, short
		}
		a.id, b = binary.BigEndian.Uint16(b), b[2:]
		if len(b) > 0 {
			a.code, b = b[0], b[1:]
		}
	case packetDisconnect:
		if len(b) > 0 {
			a.code, b = b[0], b[1:]
		}
	}
	if version < version5 || len(b) == 0 {
		return a, nil
	}
	return a, a.properties(b)
}

// properties reads the properties (2.2.2) that matter here and steps over the others.
func (a *answer) properties(b []byte) error {
	bad := fmt.Errorf("%w: properties that cannot be read", errProtocol)
	n, used := binary.Uvarint(b)
	if used <= 0 || uint64(len(b)-used) < n {
		return bad
	}
	b = b[used : used+int(n)]
	for len(b) > 0 {
		id := b[0]
		b = b[1:]
		size := propertySize(id, b)
		if size < 0 || size > len(b) {
			return bad
		}
		switch id {
		case 0x21:
			a.receiveMax = binary.BigEndian.Uint16(b)
		case 0x13:
			a.keepAlive = int(binary.BigEndian.Uint16(b))
		case 0x1f:
			a.why = string(b[2:size])
		}
		b = b[size:]
	}
	return nil
}

// propertySize is the length of a property's value at the start of b (table 2-4), -1 if it cannot be known.
func propertySize(id byte, b []byte) int {
	text := func(at int) int {
		if len(b) < at+2 {
			return -1
		}
		return at + 2 + int(binary.BigEndian.Uint16(b[at:]))
	}
	switch id {
	case 0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2a:
		return 1
	case 0x13, 0x21, 0x22, 0x23:
		return 2
	case 0x02, 0x11, 0x18, 0x27:
		return 4
	case 0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1a, 0x1c, 0x1f:
		return text(0)
	case 0x26:
		if first := text(0); first >= 0 && first <= len(b) {
			return text(first)
		}
	}
	return -1
}

// words says what a reason code means: those that a publishing client meets.
func (a answer) words() string {
	name, ok := map[byte]string{
		0x01: "unacceptable protocol version", 0x02: "client identifier rejected", 0x03: "server unavailable",
		0x04: "bad user name or password", 0x05: "not authorized",
		0x80: "unspecified error", 0x81: "malformed packet", 0x82: "protocol error", 0x83: "implementation specific error",
		0x84: "unsupported protocol version", 0x85: "client identifier not valid", 0x86: "bad user name or password",
		0x87: "not authorized", 0x88: "server unavailable", 0x89: "server busy", 0x8a: "banned", 0x8b: "server shutting down",
		0x8d: "keep alive timeout", 0x8e: "session taken over", 0x90: "topic name invalid", 0x93: "receive maximum exceeded",
		0x95: "packet too large", 0x96: "message rate too high", 0x97: "quota exceeded", 0x98: "administrative action",
		0x99: "payload format invalid", 0x9b: "QoS not supported", 0x9c: "use another server", 0x9d: "server moved",
		0x9f: "connection rate exceeded",
	}[a.code]
	if !ok {
		name = "reason"
	}
	if a.why != "" {
		return fmt.Sprintf("%s (0x%02x): %s", name, a.code, a.why)
	}
	return fmt.Sprintf("%s (0x%02x)", name, a.code)
}
