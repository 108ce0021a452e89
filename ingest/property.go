package ingest

// Identifiers of MQTT 5 properties (section 2.2.2.2).
const (
	propPayloadFormat     = 0x01
	propMessageExpiry     = 0x02
	propContentType       = 0x03
	propResponseTopic     = 0x08
	propCorrelationData   = 0x09
	propSubscriptionID    = 0x0B
	propSessionExpiry     = 0x11
	propAssignedClientID  = 0x12
	propServerKeepAlive   = 0x13
	propAuthMethod        = 0x15
	propAuthData          = 0x16
	propRequestProblem    = 0x17
	propWillDelay         = 0x18
	propRequestResponse   = 0x19
	propReasonString      = 0x1F
	propReceiveMaximum    = 0x21
	propTopicAliasMaximum = 0x22
	propTopicAlias        = 0x23
	propMaximumQoS        = 0x24
	propRetainAvailable   = 0x25
	propUser              = 0x26
	propMaximumPacketSize = 0x27
	propWildcardAvailable = 0x28
	propSubIDAvailable    = 0x29
	propSharedAvailable   = 0x2A
	propLast              = propSharedAvailable
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
var propertyRules = [propLast + 1]struct{ kind, in byte }{
	propPayloadFormat:     {byteProperty, inPublish | inWill},
	propMessageExpiry:     {u32Property, inPublish | inWill},
	propContentType:       {textProperty, inPublish | inWill},
	propResponseTopic:     {textProperty, inPublish | inWill},
	propCorrelationData:   {binaryProperty, inPublish | inWill},
	propSubscriptionID:    {varintProperty, inSubscribe},
	propSessionExpiry:     {u32Property, inConnect | inDisconnect},
	propAuthMethod:        {textProperty, inConnect},
	propAuthData:          {binaryProperty, inConnect},
	propRequestProblem:    {byteProperty, inConnect},
	propWillDelay:         {u32Property, inWill},
	propRequestResponse:   {byteProperty, inConnect},
	propReasonString:      {textProperty, inAck | inDisconnect},
	propReceiveMaximum:    {u16Property, inConnect},
	propTopicAliasMaximum: {u16Property, inConnect},
	propTopicAlias:        {u16Property, inPublish},
	propUser:              {pairProperty, inConnect | inWill | inPublish | inAck | inSubscribe | inUnsubscribe | inDisconnect},
	propMaximumPacketSize: {u32Property, inConnect},
}

// properties are those of one packet that the gateway acts on. Byte slices point into the packet.
type properties struct {
	seen            uint64 // bit of each property's identifier
	raw             []byte // the whole section, without its length
	contentType     []byte
	responseTopic   []byte
	receiveMaximum  uint16
	topicAlias      uint16
	aliasMaximum    uint16
	maximumPacket   uint32
	sessionExpiry   uint32
	payloadFormat   byte
	requestProblem  byte
	requestResponse byte
}

func (p *properties) has(id byte) bool { return p.seen>>id&1 != 0 }

// parse reads a property section. What may not stand in the packet is malformed, what stands twice or holds a value
// that is not allowed is a protocol error (section 2.2.2).
func (p *properties) parse(c *cursor, in byte) {
	section := cursor{b: c.bytes(int(c.varint()))}
	if c.err != nil {
		return
	}
	p.raw = section.b
	for len(section.b) > 0 && section.err == nil {
		id := section.varint()
		if section.err != nil {
			break
		}
		if id > propLast || propertyRules[id].in&in == 0 {
			section.fail("property 0x%02X is not for this packet", id)
			break
		}
		if p.has(byte(id)) && id != propUser {
			section.err = broken(rcProtocolError, "property 0x%02X stands twice", id)
			break
		}
		p.seen |= 1 << id
		p.value(&section, byte(id))
	}
	if c.err = section.err; c.err != nil {
		c.b = nil
	}
}

func (p *properties) value(c *cursor, id byte) {
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
		number = c.varint()
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
	case propPayloadFormat:
		p.payloadFormat = byte(number)
	case propContentType:
		p.contentType = data
	case propResponseTopic:
		p.responseTopic = data
	case propReceiveMaximum:
		p.receiveMaximum = uint16(number)
	case propTopicAlias:
		p.topicAlias = uint16(number)
	case propTopicAliasMaximum:
		p.aliasMaximum = uint16(number)
	case propMaximumPacketSize:
		p.maximumPacket = number
	case propSessionExpiry:
		p.sessionExpiry = number
	case propRequestProblem:
		p.requestProblem = byte(number)
	case propRequestResponse:
		p.requestResponse = byte(number)
	}
	p.within(c, id, number)
}

// within checks the values that the standard limits.
func (p *properties) within(c *cursor, id byte, number uint32) {
	bad := false
	switch id {
	case propPayloadFormat, propRequestProblem, propRequestResponse:
		bad = number > 1
	case propReceiveMaximum, propMaximumPacketSize, propSubscriptionID:
		bad = number == 0
	case propTopicAlias:
		if number == 0 {
			c.err = broken(rcTopicAlias, "topic alias 0")
		}
	case propResponseTopic:
		bad = badTopic(view(p.responseTopic)) != ""
	}
	if bad {
		c.err = broken(rcProtocolError, "property 0x%02X may not be that", id)
	}
}

// forwarded appends the properties of a PUBLISH that its receivers must get (section 3.3.2.3): all but the alias.
func (p *properties) forwarded(to []byte) []byte {
	if !p.has(propTopicAlias) {
		return append(to, p.raw...)
	}
	c := cursor{b: p.raw}
	for len(c.b) > 0 {
		before := c.b
		id := byte(c.varint())
		var skip properties
		skip.value(&c, id)
		if id != propTopicAlias {
			to = append(to, before[:len(before)-len(c.b)]...)
		}
	}
	return to
}
