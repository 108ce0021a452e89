// Package mqtt is the codec of MQTT 3.1.1 and 5: packets, properties, reason codes, topic names and filters. It holds no
// state and knows nothing of homes; section numbers are those of the OASIS standard for version 5.
package mqtt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// MQTT control packet types (MQTT 5.0, section 2.1.2). The codec knows versions 3.1.1 and 5; section numbers below
// are those of the OASIS standard for version 5.
const (
	TypeConnect     = 1
	TypeConnack     = 2
	TypePublish     = 3
	TypePuback      = 4
	TypePubrec      = 5
	TypePubrel      = 6
	TypePubcomp     = 7
	TypeSubscribe   = 8
	TypeSuback      = 9
	TypeUnsubscribe = 10
	TypeUnsuback    = 11
	TypePingreq     = 12
	TypePingresp    = 13
	TypeDisconnect  = 14
	TypeAuth        = 15
)

// Protocol levels.
const (
	V311 = 4
	V5   = 5
)

// Reason codes (section 2.4).
const (
	CodeSuccess            = 0x00
	CodeDisconnectWithWill = 0x04
	CodeNoMatch            = 0x10
	CodeNoSubscription     = 0x11
	CodeUnspecified        = 0x80
	CodeMalformed          = 0x81
	CodeProtocolError      = 0x82
	CodeImplementation     = 0x83
	CodeUnsupportedVersion = 0x84
	CodeClientID           = 0x85
	CodeBadCredentials     = 0x86
	CodeNotAuthorized      = 0x87
	CodeUnavailable        = 0x88
	CodeBusy               = 0x89
	CodeShuttingDown       = 0x8B
	CodeBadAuthMethod      = 0x8C
	CodeKeepAlive          = 0x8D
	CodeTakenOver          = 0x8E
	CodeTopicFilter        = 0x8F
	CodeTopicName          = 0x90
	CodeIDInUse            = 0x91
	CodeUnknownID          = 0x92
	CodeReceiveMaximum     = 0x93
	CodeTopicAlias         = 0x94
	CodeTooLarge           = 0x95
	CodeQuota              = 0x97
	CodeAdministrative     = 0x98
	CodePayloadFormat      = 0x99
	CodeUseAnother         = 0x9C
	CodeRate               = 0x9F
)

// ProtocolError ends a connection: the reason code is what a version 5 client is told.
type ProtocolError struct {
	Code byte
	What string
}

func (e *ProtocolError) Error() string { return fmt.Sprintf("%s (reason code 0x%02X)", e.What, e.Code) }

func Broken(code byte, format string, args ...any) error {
	return &ProtocolError{Code: code, What: fmt.Sprintf(format, args...)}
}

// Frame cuts the first packet off b: its type, its flags, its body (in b), and the bytes it takes in all. size 0 says
// that b holds only part of it. A packet of more than bytesMax is refused by its header alone, before a byte of it is
// waited for.
func Frame(b []byte, bytesMax int) (kind, flags byte, body []byte, size int, err error) {
	if len(b) < 2 {
		return 0, 0, nil, 0, nil
	}
	kind, flags = b[0]>>4, b[0]&15
	if kind == 0 {
		return 0, 0, nil, 0, Broken(CodeMalformed, "packet type 0")
	}
	if want := fixedFlags(kind); kind != TypePublish && flags != want {
		return 0, 0, nil, 0, Broken(CodeMalformed, "packet type %d with flags %04b; want %04b", kind, flags, want)
	}
	remaining, n := 0, 0
	for {
		if n == 4 {
			return 0, 0, nil, 0, Broken(CodeMalformed, "a remaining length of more than 4 bytes")
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
		return 0, 0, nil, 0, Broken(CodeTooLarge, "a packet of %d bytes; at most %d", size, bytesMax)
	}
	if len(b) < size {
		return kind, flags, nil, 0, nil
	}
	return kind, flags, b[1+n : size], size, nil
}

func fixedFlags(kind byte) byte {
	if kind == TypeSubscribe || kind == TypeUnsubscribe || kind == TypePubrel {
		return 0b0010
	}
	return 0
}

// Cursor reads a packet's body. After the first thing that does not fit, err is set and everything reads as zero.
type Cursor struct {
	B   []byte
	err error
}

func (c *Cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = Broken(CodeMalformed, format, args...)
	}
	c.B = nil
}

func (c *Cursor) bytes(n int) []byte {
	if n > len(c.B) {
		c.fail("a packet ends too early")
		return nil
	}
	out := c.B[:n:n]
	c.B = c.B[n:]
	return out
}

func (c *Cursor) u8() byte {
	if b := c.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *Cursor) u16() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *Cursor) u32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// Varint reads a variable byte integer of the fewest bytes (section 1.5.5).
func (c *Cursor) Varint() uint32 {
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
func (c *Cursor) binary() []byte { return c.bytes(int(c.u16())) }

// text reads a UTF-8 string (section 1.5.4): no U+0000, no surrogates.
func (c *Cursor) text() []byte {
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

func (c *Cursor) done() error {
	if c.err == nil && len(c.B) > 0 {
		c.fail("%d bytes more than the packet holds", len(c.B))
	}
	return c.err
}

// ConnectPacket is a CONNECT (section 3.1). Byte slices point into the packet.
type ConnectPacket struct {
	Version                  byte
	Clean                    bool
	KeepAlive                uint16
	ClientID, User, Password []byte
	HasUser, HasPassword     bool
	Will                     *Will
	Props                    Properties
}

// Will is the message a client leaves behind.
type Will struct {
	Topic, Payload []byte
	Qos            byte
	Retain         bool
	Props          Properties
}

func ParseConnect(body []byte) (p ConnectPacket, err error) {
	c := Cursor{B: body}
	name := c.binary()
	p.Version = c.u8()
	if c.err != nil {
		return p, c.err
	}
	if string(name) != "MQTT" || p.Version != V311 && p.Version != V5 {
		if string(name) != "MQTT" && string(name) != "MQIsdp" {
			return p, Broken(CodeMalformed, "protocol name %.20q", name)
		}
		return p, Broken(CodeUnsupportedVersion, "protocol %s level %d; want MQTT 3.1.1 or 5", name, p.Version)
	}
	flags := c.u8()
	p.KeepAlive = c.u16()
	p.Clean, p.HasUser, p.HasPassword = flags&2 != 0, flags&0x80 != 0, flags&0x40 != 0
	willQoS := flags >> 3 & 3
	switch {
	case flags&1 != 0:
		c.fail("the reserved connect flag is set")
	case willQoS == 3 || flags&4 == 0 && flags&0x38 != 0:
		c.fail("will flags that fit no will")
	case p.Version == V311 && p.HasPassword && !p.HasUser:
		c.fail("a password without a user name")
	}
	if p.Version == V5 {
		p.Props.parse(&c, inConnect)
	}
	p.ClientID = c.text()
	if flags&4 != 0 {
		p.Will = &Will{Qos: willQoS, Retain: flags&0x20 != 0}
		if p.Version == V5 {
			p.Will.Props.parse(&c, inWill)
		}
		p.Will.Topic = c.text()
		p.Will.Payload = c.binary()
	}
	if p.HasUser {
		p.User = c.text()
	}
	if p.HasPassword {
		p.Password = c.binary()
	}
	return p, c.done()
}

// PublishPacket is a PUBLISH (section 3.3). Byte slices point into the packet.
type PublishPacket struct {
	Topic, Payload []byte
	ID             uint16 // zero for QoS 0
	Qos            byte
	Retain, Dup    bool
	Props          Properties
}

func ParsePublish(version, flags byte, body []byte, p *PublishPacket) error {
	*p = PublishPacket{Qos: flags >> 1 & 3, Retain: flags&1 != 0, Dup: flags&8 != 0}
	if p.Qos == 3 || p.Qos == 0 && p.Dup {
		return Broken(CodeMalformed, "publish flags %04b", flags)
	}
	c := Cursor{B: body}
	p.Topic = c.text()
	if p.Qos > 0 {
		if p.ID = c.u16(); p.ID == 0 && c.err == nil {
			return Broken(CodeProtocolError, "packet identifier 0")
		}
	}
	if version == V5 {
		p.Props.parse(&c, inPublish)
	}
	p.Payload = c.B
	if c.err == nil && p.Props.Has(PropPayloadFormat) && p.Props.payloadFormat == 1 && !utf8.Valid(p.Payload) {
		return Broken(CodePayloadFormat, "the payload is said to be UTF-8 and is not")
	}
	return c.err
}

// AckPacket is a PUBACK, PUBREC, PUBREL or PUBCOMP (sections 3.4 to 3.7).
type AckPacket struct {
	ID   uint16
	Code byte
}

// ParseAck reads the acknowledgement of a kind.
func ParseAck(version, kind byte, body []byte) (p AckPacket, err error) {
	c := Cursor{B: body}
	p.ID = c.u16()
	if version == V5 && len(c.B) > 0 {
		p.Code = c.u8()
		if !ackCode(kind, p.Code) {
			c.fail("reason code 0x%02X in a packet of type %d", p.Code, kind)
		}
		if len(c.B) > 0 {
			var props Properties
			props.parse(&c, inAck)
		}
	}
	if c.err == nil && p.ID == 0 {
		return p, Broken(CodeProtocolError, "packet identifier 0")
	}
	return p, c.done()
}

// ackCode says whether a reason code may stand in an acknowledgement of a kind.
func ackCode(kind, code byte) bool {
	if kind == TypePubrel || kind == TypePubcomp {
		return code == CodeSuccess || code == CodeUnknownID
	}
	switch code {
	case CodeSuccess, CodeNoMatch, CodeUnspecified, CodeImplementation, CodeNotAuthorized, CodeTopicName, CodeIDInUse, CodeQuota, CodePayloadFormat:
		return true
	}
	return false
}

// subscribePacket is a SUBSCRIBE or UNSUBSCRIBE (sections 3.8, 3.10). options is empty for the latter.
type subscribePacket struct {
	ID      uint16
	Filters [][]byte
	Options []byte
	Props   Properties
}

// Subscription options (section 3.8.3.1).
const (
	SubQoS            = 0b0000_0011
	SubNoLocal        = 0b0000_0100
	SubAsPublished    = 0b0000_1000
	SubRetainHandling = 0b0011_0000
	SubRetainIfNew    = 0b0001_0000
	SubRetainNever    = 0b0010_0000
)

func ParseSubscribe(version byte, body []byte, un bool) (p subscribePacket, err error) {
	c := Cursor{B: body}
	if p.ID = c.u16(); p.ID == 0 && c.err == nil {
		return p, Broken(CodeProtocolError, "packet identifier 0")
	}
	if version == V5 {
		if un {
			p.Props.parse(&c, inUnsubscribe)
		} else {
			p.Props.parse(&c, inSubscribe)
		}
	}
	for c.err == nil && len(c.B) > 0 {
		p.Filters = append(p.Filters, c.text())
		if un {
			continue
		}
		o := c.u8()
		switch {
		case version == V311 && o > 2, o&0xc0 != 0:
			c.fail("subscription options %08b", o)
		case o&SubQoS == 3 || o&SubRetainHandling == SubRetainHandling, o&SubNoLocal != 0 && bytes.HasPrefix(p.Filters[len(p.Filters)-1], []byte(sharePrefix)):
			if c.err == nil { // what does not fit at all is malformed
				return p, Broken(CodeProtocolError, "subscription options %08b", o)
			}
		}
		p.Options = append(p.Options, o)
	}
	if c.err == nil && len(p.Filters) == 0 {
		return p, Broken(CodeProtocolError, "a subscription without a topic filter")
	}
	return p, c.done()
}

// ParseDisconnect gives the reason code of a client's DISCONNECT (section 3.14).
func ParseDisconnect(version byte, body []byte) (code byte, props Properties, err error) {
	c := Cursor{B: body}
	if version == V5 && len(c.B) > 0 {
		if code = c.u8(); !disconnectCode(code) {
			c.fail("reason code 0x%02X in a DISCONNECT", code)
		}
		if len(c.B) > 0 {
			props.parse(&c, inDisconnect)
		}
	}
	return code, props, c.done()
}

// disconnectCode says whether a client may give a reason code in its DISCONNECT.
func disconnectCode(code byte) bool {
	switch code {
	case CodeSuccess, CodeDisconnectWithWill, CodeUnspecified, CodeMalformed, CodeProtocolError, CodeImplementation, CodeTopicName,
		CodeReceiveMaximum, CodeTopicAlias, CodeTooLarge, CodeRate, CodeQuota, CodeAdministrative, CodePayloadFormat:
		return true
	}
	return false
}
