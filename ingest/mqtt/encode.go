package mqtt

import (
	"encoding/binary"
	"math"
	"time"
)

// appendFrame appends a packet whose body is given in parts.
func appendFrame(b []byte, head byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b = appendVarint(append(b, head), n)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func appendVarint(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// appendReason appends a property section that holds at most a reason string.
func appendReason(b []byte, why string) []byte {
	if why == "" {
		return append(b, 0)
	}
	b = appendVarint(b, 3+len(why))
	return appendText(append(b, PropReasonString), why)
}

// Connack is what a CONNACK says (section 3.2).
type Connack struct {
	Code           byte
	Present        bool   // a session was found
	Why            string // reason string of a refusal
	Assigned       string // client id the gateway chose
	ResponseInfo   string // what a client that asked for it begins its response topics with
	ReceiveMaximum int
	PacketMax      int
	AliasMax       int
	KeepAlive      int    // seconds the server demands; 0: as the client said
	TellExpiry     bool   // the session expires otherwise than the client asked for: after
	Expiry         uint32 // seconds
}

func AppendConnack(b []byte, version byte, c *Connack) []byte {
	flags := byte(0)
	if c.Present {
		flags = 1
	}
	if version != V5 {
		return append(b, TypeConnack<<4, 2, flags, connack311(c.Code))
	}
	var p []byte
	if c.Code != CodeSuccess {
		if c.Why != "" {
			p = appendText(append(p, PropReasonString), c.Why)
		}
	} else {
		p = binary.BigEndian.AppendUint16(append(p, PropReceiveMaximum), uint16(c.ReceiveMaximum))
		p = append(p, PropRetainAvailable, 1, PropWildcardAvailable, 1, PropSubIDAvailable, 1, PropSharedAvailable, 1) // no maximum QoS: it is 2
		p = binary.BigEndian.AppendUint32(append(p, PropMaximumPacketSize), uint32(c.PacketMax))
		p = binary.BigEndian.AppendUint16(append(p, PropTopicAliasMaximum), uint16(c.AliasMax))
		if c.Assigned != "" {
			p = appendText(append(p, PropAssignedClientID), c.Assigned)
		}
		if c.KeepAlive > 0 {
			p = binary.BigEndian.AppendUint16(append(p, PropServerKeepAlive), uint16(c.KeepAlive))
		}
		if c.TellExpiry {
			p = binary.BigEndian.AppendUint32(append(p, PropSessionExpiry), c.Expiry)
		}
		if c.ResponseInfo != "" {
			p = appendText(append(p, PropResponseInformation), c.ResponseInfo)
		}
	}
	return appendFrame(b, TypeConnack<<4, []byte{flags, c.Code}, appendVarint(nil, len(p)), p)
}

// connack311 is the return code of version 3.1.1 (its section 3.2.2.3) that comes closest.
func connack311(code byte) byte {
	switch code {
	case CodeSuccess:
		return 0
	case CodeUnsupportedVersion:
		return 1
	case CodeClientID:
		return 2
	case CodeBadCredentials, CodeNotAuthorized:
		return 5
	}
	return 3
}

// AppendAck appends a PUBACK, PUBREC, PUBREL or PUBCOMP (sections 3.4 to 3.7).
func AppendAck(b []byte, version, kind byte, id uint16, code byte, why string) []byte {
	head := kind<<4 | fixedFlags(kind)
	if version != V5 || code == CodeSuccess && why == "" {
		return append(b, head, 2, byte(id>>8), byte(id))
	}
	if why == "" {
		return append(b, head, 3, byte(id>>8), byte(id), code)
	}
	return appendFrame(b, head, []byte{byte(id >> 8), byte(id), code}, appendReason(nil, why))
}

// AppendSuback appends a SUBACK or UNSUBACK with one code a filter. An UNSUBACK of version 3.1.1 has none.
func AppendSuback(b []byte, version, kind byte, id uint16, codes []byte) []byte {
	head := []byte{byte(id >> 8), byte(id)}
	switch {
	case version == V5:
		return appendFrame(b, kind<<4, head, []byte{0}, codes)
	case kind == TypeUnsuback:
		return appendFrame(b, kind<<4, head)
	}
	for i, c := range codes {
		if c > 2 {
			codes[i] = 0x80
		}
	}
	return appendFrame(b, kind<<4, head, codes)
}

func AppendDisconnect(b []byte, code byte, why string) []byte {
	if why == "" {
		return append(b, TypeDisconnect<<4, 1, code)
	}
	return appendFrame(b, TypeDisconnect<<4, []byte{code}, appendReason(nil, why))
}

// AppendUseAnother is DISCONNECT with the address of a server to go to instead (sections 3.14.2.2.5 and 4.13).
func AppendUseAnother(b []byte, why, server string) []byte {
	p := appendText([]byte{PropServerReference}, server)
	if why != "" {
		p = appendText(append(p, PropReasonString), why)
	}
	return appendFrame(b, TypeDisconnect<<4, []byte{CodeUseAnother}, appendVarint(nil, len(p)), p)
}

// Message is an application message: what a PUBLISH carries from its publisher to all its receivers.
type Message struct {
	Topic   string    `json:"topic"`
	Payload []byte    `json:"payload,omitempty"`
	Qos     byte      `json:"qos,omitempty"`
	Retain  bool      `json:"retain,omitempty"`
	Expires time.Time `json:"expires,omitzero"`     // Zero: never
	Props   []byte    `json:"properties,omitempty"` // Properties to hand on to version 5 receivers, encoded: without alias, expiry and subscription identifiers
}

// Sending is what a PUBLISH says to one receiver, besides the message.
type Sending struct {
	Qos         byte
	Dup, Retain bool
	ID          uint16   // of QoS 1 and 2
	Alias       uint16   // Zero: none
	Aliased     bool     // the receiver knows the alias: the topic is left out
	IDs         []uint32 // of the subscriptions that it matches
	Now         time.Time
}

// Size is the length of the message's PUBLISH, at most, but for subscription identifiers.
func (m *Message) Size() int {
	return 5 + 2 + len(m.Topic) + 2 + 4 + 3 + 5 + len(m.Props) + len(m.Payload)
}

// Expired says that nobody must get the message any more.
func (m *Message) Expired(now time.Time) bool { return !m.Expires.IsZero() && !now.Before(m.Expires) }

// AppendPublish appends a PUBLISH (section 3.3). The message expiry that it tells is what is left of it.
func AppendPublish(b []byte, version byte, m *Message, to *Sending) []byte {
	topic := m.Topic
	if to.Aliased {
		topic = ""
	}
	var own [24]byte
	props := own[:0]
	n := 2 + len(topic) + len(m.Payload)
	if to.Qos > 0 {
		n += 2
	}
	if version == V5 {
		props = appendSending(props, m, to)
		n += varintSize(len(props)+len(m.Props)) + len(props) + len(m.Props)
	}
	head := byte(TypePublish<<4) | to.Qos<<1
	if to.Dup {
		head |= 8
	}
	if to.Retain {
		head |= 1
	}
	b = appendText(appendVarint(append(b, head), n), topic)
	if to.Qos > 0 {
		b = binary.BigEndian.AppendUint16(b, to.ID)
	}
	if version == V5 {
		b = appendVarint(b, len(props)+len(m.Props))
		b = append(append(b, props...), m.Props...)
	}
	return append(b, m.Payload...)
}

// appendSending appends the properties that differ from one receiver to the other.
func appendSending(p []byte, m *Message, to *Sending) []byte {
	if !m.Expires.IsZero() {
		left := max(0, m.Expires.Sub(to.Now)+time.Second-1) / time.Second
		p = binary.BigEndian.AppendUint32(append(p, PropMessageExpiry), uint32(min(left, math.MaxUint32)))
	}
	if to.Alias > 0 {
		p = binary.BigEndian.AppendUint16(append(p, PropTopicAlias), to.Alias)
	}
	for _, id := range to.IDs {
		p = appendVarint(append(p, PropSubscriptionID), int(id))
	}
	return p
}

func varintSize(n int) int {
	size := 1
	for n >= 0x80 {
		n >>= 7
		size++
	}
	return size
}
