package mqtt

import (
	"encoding/binary"
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

// Connack is what a CONNACK says (section 3.2). Sessions are never present: the gateway keeps none yet.
type Connack struct {
	Code           byte
	Why            string // reason string of a refusal
	Assigned       string // client id the gateway chose
	ReceiveMaximum int
	PacketMax      int
	AliasMax       int
	KeepAlive      int  // seconds the server demands; 0: as the client said
	SessionExpires bool // the client asked for a session to be kept, and is told that it is not
}

func AppendConnack(b []byte, version byte, c *Connack) []byte {
	if version != V5 {
		return append(b, TypeConnack<<4, 2, 0, connack311(c.Code))
	}
	var p []byte
	if c.Code != CodeSuccess {
		if c.Why != "" {
			p = appendText(append(p, PropReasonString), c.Why)
		}
	} else {
		p = binary.BigEndian.AppendUint16(append(p, PropReceiveMaximum), uint16(c.ReceiveMaximum))
		p = append(p, PropMaximumQoS, 1, PropRetainAvailable, 0, PropSubIDAvailable, 0, PropSharedAvailable, 0)
		p = binary.BigEndian.AppendUint32(append(p, PropMaximumPacketSize), uint32(c.PacketMax))
		p = binary.BigEndian.AppendUint16(append(p, PropTopicAliasMaximum), uint16(c.AliasMax))
		if c.Assigned != "" {
			p = appendText(append(p, PropAssignedClientID), c.Assigned)
		}
		if c.KeepAlive > 0 {
			p = binary.BigEndian.AppendUint16(append(p, PropServerKeepAlive), uint16(c.KeepAlive))
		}
		if c.SessionExpires {
			p = binary.BigEndian.AppendUint32(append(p, PropSessionExpiry), 0)
		}
	}
	return appendFrame(b, TypeConnack<<4, []byte{0, c.Code}, appendVarint(nil, len(p)), p)
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

func AppendPuback(b []byte, version byte, id uint16, code byte, why string) []byte {
	if version != V5 || code == CodeSuccess && why == "" {
		return append(b, TypePuback<<4, 2, byte(id>>8), byte(id))
	}
	if why == "" {
		return append(b, TypePuback<<4, 3, byte(id>>8), byte(id), code)
	}
	return appendFrame(b, TypePuback<<4, []byte{byte(id >> 8), byte(id), code}, appendReason(nil, why))
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
		if c > 1 {
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

// Message is an application message: what a PUBLISH carries from its publisher to all its receivers.
type Message struct {
	Topic   string    `json:"topic"`
	Payload []byte    `json:"payload,omitempty"`
	Qos     byte      `json:"qos,omitempty"`
	Retain  bool      `json:"retain,omitempty"`
	Expires time.Time `json:"expires,omitzero"`     // Zero: never
	Props   []byte    `json:"properties,omitempty"` // Properties to hand on to version 5 receivers, encoded: without alias, expiry and subscription identifiers
}

// Expired says that nobody must get the message any more.
func (m *Message) Expired(now time.Time) bool { return !m.Expires.IsZero() && !now.Before(m.Expires) }

// Size is the length of the PUBLISH that appendPublish makes, at most.
func (m *Message) Size() int { return 5 + 2 + len(m.Topic) + 2 + 4 + len(m.Props) + len(m.Payload) }

func AppendPublish(b []byte, version byte, m *Message, qos byte, id uint16) []byte {
	n := 2 + len(m.Topic) + len(m.Payload)
	if qos > 0 {
		n += 2
	}
	if version == V5 {
		n += len(appendVarint(nil, len(m.Props))) + len(m.Props)
	}
	b = appendVarint(append(b, TypePublish<<4|qos<<1), n)
	b = appendText(b, m.Topic)
	if qos > 0 {
		b = binary.BigEndian.AppendUint16(b, id)
	}
	if version == V5 {
		b = append(appendVarint(b, len(m.Props)), m.Props...)
	}
	return append(b, m.Payload...)
}
