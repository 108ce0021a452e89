package ingest

import "encoding/binary"

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
	return appendText(append(b, propReasonString), why)
}

// connack is what a CONNACK says (section 3.2). Sessions are never present: the gateway keeps none yet.
type connack struct {
	code           byte
	why            string // reason string of a refusal
	assigned       string // client id the gateway chose
	receiveMaximum int
	packetMax      int
	aliasMax       int
	keepAlive      int  // seconds the server demands; 0: as the client said
	sessionExpires bool // the client asked for a session to be kept, and is told that it is not
}

func appendConnack(b []byte, version byte, c *connack) []byte {
	if version != v5 {
		return append(b, ptConnack<<4, 2, 0, connack311(c.code))
	}
	var p []byte
	if c.code != rcSuccess {
		if c.why != "" {
			p = appendText(append(p, propReasonString), c.why)
		}
	} else {
		p = binary.BigEndian.AppendUint16(append(p, propReceiveMaximum), uint16(c.receiveMaximum))
		p = append(p, propMaximumQoS, 1, propRetainAvailable, 0, propSubIDAvailable, 0, propSharedAvailable, 0)
		p = binary.BigEndian.AppendUint32(append(p, propMaximumPacketSize), uint32(c.packetMax))
		p = binary.BigEndian.AppendUint16(append(p, propTopicAliasMaximum), uint16(c.aliasMax))
		if c.assigned != "" {
			p = appendText(append(p, propAssignedClientID), c.assigned)
		}
		if c.keepAlive > 0 {
			p = binary.BigEndian.AppendUint16(append(p, propServerKeepAlive), uint16(c.keepAlive))
		}
		if c.sessionExpires {
			p = binary.BigEndian.AppendUint32(append(p, propSessionExpiry), 0)
		}
	}
	return appendFrame(b, ptConnack<<4, []byte{0, c.code}, appendVarint(nil, len(p)), p)
}

// connack311 is the return code of version 3.1.1 (its section 3.2.2.3) that comes closest.
func connack311(code byte) byte {
	switch code {
	case rcSuccess:
		return 0
	case rcUnsupportedVersion:
		return 1
	case rcClientID:
		return 2
	case rcBadCredentials, rcNotAuthorized:
		return 5
	}
	return 3
}

func appendPuback(b []byte, version byte, id uint16, code byte, why string) []byte {
	if version != v5 || code == rcSuccess && why == "" {
		return append(b, ptPuback<<4, 2, byte(id>>8), byte(id))
	}
	if why == "" {
		return append(b, ptPuback<<4, 3, byte(id>>8), byte(id), code)
	}
	return appendFrame(b, ptPuback<<4, []byte{byte(id >> 8), byte(id), code}, appendReason(nil, why))
}

// appendSuback appends a SUBACK or UNSUBACK with one code a filter. An UNSUBACK of version 3.1.1 has none.
func appendSuback(b []byte, version, kind byte, id uint16, codes []byte) []byte {
	head := []byte{byte(id >> 8), byte(id)}
	switch {
	case version == v5:
		return appendFrame(b, kind<<4, head, []byte{0}, codes)
	case kind == ptUnsuback:
		return appendFrame(b, kind<<4, head)
	}
	for i, c := range codes {
		if c > 1 {
			codes[i] = 0x80
		}
	}
	return appendFrame(b, kind<<4, head, codes)
}

func appendDisconnect(b []byte, code byte, why string) []byte {
	if why == "" {
		return append(b, ptDisconnect<<4, 1, code)
	}
	return appendFrame(b, ptDisconnect<<4, []byte{code}, appendReason(nil, why))
}

// message is a PUBLISH on its way to subscribers.
type message struct {
	topic   string
	payload []byte
	qos     byte
	props   []byte // properties to hand on, encoded; for version 5 receivers
}

// size is the length of the PUBLISH that appendPublish makes, at most.
func (m *message) size() int { return 5 + 2 + len(m.topic) + 2 + 4 + len(m.props) + len(m.payload) }

func appendPublish(b []byte, version byte, m *message, qos byte, id uint16) []byte {
	n := 2 + len(m.topic) + len(m.payload)
	if qos > 0 {
		n += 2
	}
	if version == v5 {
		n += len(appendVarint(nil, len(m.props))) + len(m.props)
	}
	b = appendVarint(append(b, ptPublish<<4|qos<<1), n)
	b = appendText(b, m.topic)
	if qos > 0 {
		b = binary.BigEndian.AppendUint16(b, id)
	}
	if version == v5 {
		b = append(appendVarint(b, len(m.props)), m.props...)
	}
	return append(b, m.payload...)
}
