package mqtt

import "hearthline/ingest/names"

// Identifiers of MQTT 5 properties (section 2.2.2.2).
const (
	PropPayloadFormat       = 0x01
	PropMessageExpiry       = 0x02
	PropContentType         = 0x03
	PropResponseTopic       = 0x08
	PropCorrelationData     = 0x09
	PropSubscriptionID      = 0x0B
	PropSessionExpiry       = 0x11
	PropAssignedClientID    = 0x12
	PropServerKeepAlive     = 0x13
	PropAuthMethod          = 0x15
	PropAuthData            = 0x16
	PropRequestProblem      = 0x17
	PropWillDelay           = 0x18
	PropRequestResponse     = 0x19
	PropResponseInformation = 0x1A
	PropServerReference     = 0x1C
	PropReasonString        = 0x1F
	PropReceiveMaximum      = 0x21
	PropTopicAliasMaximum   = 0x22
	PropTopicAlias          = 0x23
	PropMaximumQoS          = 0x24
	PropRetainAvailable     = 0x25
	PropUser                = 0x26
	PropMaximumPacketSize   = 0x27
	PropWildcardAvailable   = 0x28
	PropSubIDAvailable      = 0x29
	PropSharedAvailable     = 0x2A
	PropLast                = PropSharedAvailable
)

// Where a property may stand, among the packets that clients send.
const (
	inConnect = 1 << iota
	inWill
	inPublish
	inAck
	inSubscribe
	inUnsubscribe
	inDisconnect
)

// Types of property values.
const (
	byteProperty = 1 + iota
	u16Property
	u32Property
	varintProperty
	textProperty
	binaryProperty
	pairProperty
)

// propertyRules says of each property that a client may send its type and its packets.
var propertyRules = [PropLast + 1]struct{ kind, in byte }{
	PropPayloadFormat:     {byteProperty, inPublish | inWill},
	PropMessageExpiry:     {u32Property, inPublish | inWill},
	PropContentType:       {textProperty, inPublish | inWill},
	PropResponseTopic:     {textProperty, inPublish | inWill},
	PropCorrelationData:   {binaryProperty, inPublish | inWill},
	PropSubscriptionID:    {varintProperty, inSubscribe},
	PropSessionExpiry:     {u32Property, inConnect | inDisconnect},
	PropAuthMethod:        {textProperty, inConnect},
	PropAuthData:          {binaryProperty, inConnect},
	PropRequestProblem:    {byteProperty, inConnect},
	PropWillDelay:         {u32Property, inWill},
	PropRequestResponse:   {byteProperty, inConnect},
	PropReasonString:      {textProperty, inAck | inDisconnect},
	PropReceiveMaximum:    {u16Property, inConnect},
	PropTopicAliasMaximum: {u16Property, inConnect},
	PropTopicAlias:        {u16Property, inPublish},
	PropUser:              {pairProperty, inConnect | inWill | inPublish | inAck | inSubscribe | inUnsubscribe | inDisconnect},
	PropMaximumPacketSize: {u32Property, inConnect},
}

// Properties are those of one packet that the gateway acts on. Byte slices point into the packet.
type Properties struct {
	seen            uint64 // bit of each property's identifier
	Raw             []byte // the whole section, without its length
	ContentType     []byte
	ResponseTopic   []byte
	ReceiveMaximum  uint16
	TopicAlias      uint16
	AliasMaximum    uint16
	MaximumPacket   uint32
	SessionExpiry   uint32 // seconds
	MessageExpiry   uint32 // seconds
	WillDelay       uint32 // seconds
	SubscriptionID  uint32
	payloadFormat   byte
	RequestProblem  byte
	RequestResponse byte
}

func (p *Properties) Has(id byte) bool { return p.seen>>id&1 != 0 }

// parse reads a property section. What may not stand in the packet is malformed, what stands twice or holds a value
// that is not allowed is a protocol error (section 2.2.2).
func (p *Properties) parse(c *Cursor, in byte) {
	section := Cursor{B: c.bytes(int(c.Varint()))}
	if c.err != nil {
		return
	}
	p.Raw = section.B
	for len(section.B) > 0 && section.err == nil {
		id := section.Varint()
		if section.err != nil {
			break
		}
		if id > PropLast || propertyRules[id].in&in == 0 {
			section.fail("property 0x%02X is not for this packet", id)
			break
		}
		if p.Has(byte(id)) && id != PropUser {
			section.err = Broken(CodeProtocolError, "property 0x%02X stands twice", id)
			break
		}
		p.seen |= 1 << id
		p.Value(&section, byte(id))
	}
	if c.err = section.err; c.err != nil {
		c.B = nil
	}
}

func (p *Properties) Value(c *Cursor, id byte) {
	var number uint32
	var data []byte
	switch propertyRules[id].kind {
	case byteProperty:
		number = uint32(c.u8())
	case u16Property:
		number = uint32(c.u16())
	case u32Property:
		number = c.u32()
	case varintProperty:
		number = c.Varint()
	case textProperty:
		data = c.text()
	case binaryProperty:
		data = c.binary()
	case pairProperty:
		c.text()
		c.text()
	}
	if c.err != nil {
		return
	}
	switch id {
	case PropPayloadFormat:
		p.payloadFormat = byte(number)
	case PropContentType:
		p.ContentType = data
	case PropResponseTopic:
		p.ResponseTopic = data
	case PropReceiveMaximum:
		p.ReceiveMaximum = uint16(number)
	case PropTopicAlias:
		p.TopicAlias = uint16(number)
	case PropTopicAliasMaximum:
		p.AliasMaximum = uint16(number)
	case PropMaximumPacketSize:
		p.MaximumPacket = number
	case PropSessionExpiry:
		p.SessionExpiry = number
	case PropMessageExpiry:
		p.MessageExpiry = number
	case PropWillDelay:
		p.WillDelay = number
	case PropSubscriptionID:
		p.SubscriptionID = number
	case PropRequestProblem:
		p.RequestProblem = byte(number)
	case PropRequestResponse:
		p.RequestResponse = byte(number)
	}
	p.within(c, id, number)
}

// within checks the values that the standard limits.
func (p *Properties) within(c *Cursor, id byte, number uint32) {
	bad := false
	switch id {
	case PropPayloadFormat, PropRequestProblem, PropRequestResponse:
		bad = number > 1
	case PropReceiveMaximum, PropMaximumPacketSize, PropSubscriptionID:
		bad = number == 0
	case PropTopicAlias:
		if number == 0 {
			c.err = Broken(CodeTopicAlias, "topic alias 0")
		}
	case PropResponseTopic:
		bad = BadTopic(names.View(p.ResponseTopic)) != ""
	}
	if bad {
		c.err = Broken(CodeProtocolError, "property 0x%02X may not be that", id)
	}
}

// Binary gives a text or binary property that is not kept apart, nil when it is not there. It points into the packet.
func (p *Properties) Binary(id byte) []byte {
	if !p.Has(id) {
		return nil
	}
	c := Cursor{B: p.Raw}
	for len(c.B) > 0 && c.err == nil {
		at := byte(c.Varint())
		if at == id {
			return c.binary()
		}
		var skip Properties
		skip.Value(&c, at)
	}
	return nil
}

// Forwarded appends the properties of a PUBLISH or a will that its receivers must get as they are (section 3.3.2.3): all
// but alias and will delay, which are not for them, and message expiry, which is told anew.
func (p *Properties) Forwarded(to []byte) []byte {
	if !p.Has(PropTopicAlias) && !p.Has(PropMessageExpiry) && !p.Has(PropWillDelay) {
		return append(to, p.Raw...)
	}
	c := Cursor{B: p.Raw}
	for len(c.B) > 0 {
		before := c.B
		id := byte(c.Varint())
		var skip Properties
		skip.Value(&c, id)
		if id != PropTopicAlias && id != PropMessageExpiry && id != PropWillDelay {
			to = append(to, before[:len(before)-len(c.B)]...)
		}
	}
	return to
}
