package mqtt

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// seeds are packets as mochi-mqtt writes them, one of each kind and more.
func seeds() []packets.Packet {
	head := func(kind, qos byte) packets.FixedHeader { return packets.FixedHeader{Type: kind, Qos: qos} }
	user := []packets.UserProperty{{Key: "a", Val: "b"}}
	connect := packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: "c", UsernameFlag: true, PasswordFlag: true, Username: []byte("anna"), Password: []byte("secret"), Keepalive: 60}
	will := connect
	will.WillFlag, will.WillTopic, will.WillPayload, will.WillQos, will.WillRetain = true, "homes/h1/gone", []byte("bye"), 2, true
	will.WillProperties = packets.Properties{WillDelayInterval: 7, MessageExpiryInterval: 9, ContentType: "text/plain", User: user}
	asks := packets.Properties{SessionExpiryInterval: 60, SessionExpiryIntervalFlag: true, ReceiveMaximum: 10, MaximumPacketSize: 1000, TopicAliasMaximum: 5, RequestResponseInfo: 1, RequestProblemInfo: 1, RequestProblemInfoFlag: true, User: user}
	return []packets.Packet{
		{FixedHeader: head(packets.Connect, 0), Connect: connect},
		{FixedHeader: head(packets.Connect, 0), Connect: will, Properties: asks},
		{FixedHeader: head(packets.Publish, 0), TopicName: "a/b", Payload: []byte("x")},
		{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2, Retain: true, Dup: true}, TopicName: "a/b", Payload: []byte("x"), PacketID: 9},
		{FixedHeader: head(packets.Publish, 1), TopicName: "a", Payload: []byte("x"), PacketID: 5, Properties: packets.Properties{ContentType: "application/json", ResponseTopic: "r", TopicAlias: 3, TopicAliasFlag: true, CorrelationData: []byte{1}, User: user, PayloadFormat: 1, PayloadFormatFlag: true, MessageExpiryInterval: 9}},
		{FixedHeader: head(packets.Puback, 0), PacketID: 7, ReasonCode: 0x10},
		{FixedHeader: head(packets.Pubrec, 0), PacketID: 7, ReasonCode: 0x97, Properties: packets.Properties{ReasonString: "full", User: user}},
		{FixedHeader: head(packets.Pubrel, 1), PacketID: 7}, {FixedHeader: head(packets.Pubrel, 1), PacketID: 7, ReasonCode: 0x92},
		{FixedHeader: head(packets.Pubcomp, 0), PacketID: 7, ReasonCode: 0x92, Properties: packets.Properties{ReasonString: "never heard of"}},
		{FixedHeader: head(packets.Subscribe, 1), PacketID: 3, Filters: packets.Subscriptions{{Filter: "homes/h1/#", Qos: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 2}, {Filter: "$share/g/a/+", Qos: 1}}, Properties: packets.Properties{SubscriptionIdentifier: []int{300}, User: user}},
		{FixedHeader: head(packets.Unsubscribe, 1), PacketID: 8, Filters: packets.Subscriptions{{Filter: "a"}}},
		{FixedHeader: head(packets.Disconnect, 0)},
		{FixedHeader: head(packets.Disconnect, 0), ReasonCode: 4, Properties: packets.Properties{SessionExpiryInterval: 9, SessionExpiryIntervalFlag: true, ReasonString: "bye", User: user}},
	}
}

// encode writes a packet by mochi's codec.
func encode(t testing.TB, version byte, pk packets.Packet) []byte {
	t.Helper()
	pk.ProtocolVersion, pk.Mods.AllowResponseInfo = version, true
	var buf bytes.Buffer
	err := map[byte]func(*bytes.Buffer) error{
		packets.Connect: pk.ConnectEncode, packets.Publish: pk.PublishEncode, packets.Puback: pk.PubackEncode, packets.Pubrec: pk.PubrecEncode, packets.Pubrel: pk.PubrelEncode,
		packets.Pubcomp: pk.PubcompEncode, packets.Subscribe: pk.SubscribeEncode, packets.Unsubscribe: pk.UnsubscribeEncode, packets.Disconnect: pk.DisconnectEncode,
	}[pk.FixedHeader.Type](&buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// decode reads a packet by mochi's codec.
func decode(kind, flags, version byte, body []byte) (packets.Packet, error) {
	pk := packets.Packet{ProtocolVersion: version, FixedHeader: packets.FixedHeader{Type: kind, Remaining: len(body), Qos: flags >> 1 & 3, Retain: flags&1 != 0, Dup: flags&8 != 0}}
	err := map[byte]func([]byte) error{
		packets.Connect: pk.ConnectDecode, packets.Connack: pk.ConnackDecode, packets.Publish: pk.PublishDecode, packets.Puback: pk.PubackDecode, packets.Pubrec: pk.PubrecDecode, packets.Pubrel: pk.PubrelDecode,
		packets.Pubcomp: pk.PubcompDecode, packets.Subscribe: pk.SubscribeDecode, packets.Suback: pk.SubackDecode, packets.Unsubscribe: pk.UnsubscribeDecode, packets.Unsuback: pk.UnsubackDecode, packets.Disconnect: pk.DisconnectDecode,
	}[kind](body)
	return pk, err
}

// FuzzPackets holds packet parsing to mochi-mqtt's codec: of a packet that both accept, both must have understood the
// same. Where only mochi accepts, the gateway is stricter, which the standard asks for; where only the gateway
// accepts, it is wrong.
func FuzzPackets(f *testing.F) {
	for _, version := range []byte{V311, V5} {
		for _, pk := range seeds() {
			f.Add(version, encode(f, version, pk))
		}
	}
	f.Add(byte(5), []byte{0x30, 5, 0, 1, 'a', 1, 0x23})
	f.Fuzz(func(t *testing.T, version byte, data []byte) {
		if version != V5 {
			version = V311
		}
		kind, flags, body, size, err := Frame(data, 1<<16)
		if err != nil || size == 0 {
			return
		}
		if size > len(data) || len(body) > size {
			t.Fatalf("a frame of %d in %d bytes", size, len(data))
		}
		switch kind {
		case TypeConnect:
			fuzzConnect(t, body)
		case TypePublish:
			fuzzPublish(t, version, flags, body)
		case TypePuback, TypePubrec, TypePubrel, TypePubcomp:
			fuzzAck(t, version, kind, flags, body)
		case TypeSubscribe, TypeUnsubscribe:
			fuzzSubscribe(t, version, kind, flags, body)
		case TypeDisconnect:
			code, props, err := ParseDisconnect(version, body)
			if len(body) == 1 { // a reason code and no properties: mochi does not read it
				return
			}
			if pk, merr := decode(kind, flags, version, bytes.Clone(body)); err == nil && merr == nil && version == V5 && (code != pk.ReasonCode || props.SessionExpiry != pk.Properties.SessionExpiryInterval) {
				t.Fatalf("%#x; mochi %#x: % x", code, pk.ReasonCode, body)
			}
		}
	})
}

func fuzzAck(t *testing.T, version, kind, flags byte, body []byte) {
	p, err := ParseAck(version, kind, body)
	if err != nil {
		return
	}
	pk, merr := decode(kind, flags, version, bytes.Clone(body))
	if merr != nil {
		t.Fatalf("only the gateway accepts: %v: % x", merr, body)
	}
	if p.ID != pk.PacketID || p.Code != pk.ReasonCode {
		t.Fatalf("%+v; mochi %d %#x: % x", p, pk.PacketID, pk.ReasonCode, body)
	}
	out := AppendAck(nil, version, kind, p.ID, p.Code, "why")
	okind, oflags, obody, size, err := Frame(out, 1<<10)
	if err != nil || size != len(out) || okind != kind {
		t.Fatal(err, size, okind)
	}
	back, merr := decode(kind, oflags, version, obody)
	if merr != nil || back.PacketID != p.ID || version == V5 && (back.ReasonCode != p.Code || back.Properties.ReasonString != "why") {
		t.Fatalf("written as % x, which mochi reads as %+v, %v", out, back, merr)
	}
}

func fuzzConnect(t *testing.T, body []byte) {
	p, err := ParseConnect(body)
	if err != nil {
		return
	}
	pk, merr := decode(packets.Connect, 0, p.Version, bytes.Clone(body))
	if merr != nil {
		t.Fatalf("only the gateway accepts: %v: % x", merr, body)
	}
	c := pk.Connect
	same := c.ClientIdentifier == string(p.ClientID) && c.Keepalive == p.KeepAlive && c.Clean == p.Clean && c.UsernameFlag == p.HasUser &&
		bytes.Equal(c.Username, p.User) && bytes.Equal(c.Password, p.Password) && c.WillFlag == (p.Will != nil)
	if p.Will != nil {
		same = same && c.WillTopic == string(p.Will.Topic) && bytes.Equal(c.WillPayload, p.Will.Payload) && c.WillQos == p.Will.Qos && c.WillRetain == p.Will.Retain
	}
	if p.Version == V5 {
		same = same && pk.Properties.ReceiveMaximum == p.Props.ReceiveMaximum && pk.Properties.MaximumPacketSize == p.Props.MaximumPacket && pk.Properties.SessionExpiryInterval == p.Props.SessionExpiry && pk.Properties.TopicAliasMaximum == p.Props.AliasMaximum && pk.Properties.RequestResponseInfo == p.Props.RequestResponse
	}
	if p.Will != nil && p.Version == V5 {
		w := &p.Will.Props
		same = same && c.WillProperties.WillDelayInterval == w.WillDelay && c.WillProperties.MessageExpiryInterval == w.MessageExpiry
	}
	if !same {
		t.Fatalf("%+v; mochi %+v %+v: % x", p, c, pk.Properties, body)
	}
}

func fuzzPublish(t *testing.T, version, flags byte, body []byte) {
	var p PublishPacket
	if err := ParsePublish(version, flags, body, &p); err != nil {
		return
	}
	pk, merr := decode(packets.Publish, flags, version, bytes.Clone(body))
	if merr != nil {
		t.Fatalf("only the gateway accepts: %v: % x", merr, body)
	}
	if pk.TopicName != string(p.Topic) || !bytes.Equal(pk.Payload, p.Payload) || pk.PacketID != p.ID || version == V5 && (pk.Properties.TopicAlias != p.Props.TopicAlias || pk.Properties.ContentType != string(p.Props.ContentType) || pk.Properties.ResponseTopic != string(p.Props.ResponseTopic)) {
		t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
	}
	if version != V5 {
		return
	}
	if pk.Properties.MessageExpiryInterval != p.Props.MessageExpiry || pk.FixedHeader.Dup != p.Dup || pk.FixedHeader.Retain != p.Retain {
		t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
	}
	// What is handed on must be read by others as what came in, with what is their own.
	now := time.Unix(1, 0)
	m := Message{Topic: "t", Payload: p.Payload, Props: p.Props.Forwarded(nil), Expires: now.Add(1500 * time.Millisecond)}
	to := Sending{Qos: 1, Retain: true, Dup: true, ID: 3, Alias: 4, IDs: []uint32{1, 300}, Now: now}
	out := AppendPublish(nil, V5, &m, &to)
	if len(out) > m.Size()+5*len(to.IDs) {
		t.Fatalf("a message of %d bytes; said to be %d at most", len(out), m.Size())
	}
	_, oflags, obody, size, err := Frame(out, 1<<20)
	if err != nil || size != len(out) {
		t.Fatal(err, size)
	}
	back, merr := decode(packets.Publish, oflags, V5, obody)
	b, i := back.Properties, pk.Properties
	if merr != nil || b.TopicAlias != 4 || b.MessageExpiryInterval != 2 || !slices.Equal(b.SubscriptionIdentifier, []int{1, 300}) || back.PacketID != 3 || oflags != 0b1011 {
		t.Fatalf("handed on as %+v, %v; came in as %+v", back, merr, pk)
	}
	if b.ContentType != i.ContentType || b.ResponseTopic != i.ResponseTopic || !slices.Equal(b.User, i.User) || !bytes.Equal(b.CorrelationData, i.CorrelationData) || b.PayloadFormat != i.PayloadFormat || !bytes.Equal(back.Payload, pk.Payload) {
		t.Fatalf("handed on as %+v; came in as %+v", back, pk)
	}
}

func fuzzSubscribe(t *testing.T, version, kind, flags byte, body []byte) {
	p, err := ParseSubscribe(version, body, kind == TypeUnsubscribe)
	if err != nil {
		return
	}
	pk, merr := decode(kind, flags, version, bytes.Clone(body))
	if merr != nil {
		t.Fatalf("only the gateway accepts: %v: % x", merr, body)
	}
	if pk.PacketID != p.ID || len(pk.Filters) != len(p.Filters) {
		t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
	}
	for i := range p.Filters {
		if pk.Filters[i].Filter != string(p.Filters[i]) || kind == TypeSubscribe && optionsOf(pk.Filters[i]) != p.Options[i] {
			t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
		}
		BadFilter(string(p.Filters[i]))
	}
}

func optionsOf(s packets.Subscription) byte {
	o := s.Qos | s.RetainHandling<<4
	if s.NoLocal {
		o |= SubNoLocal
	}
	if s.RetainAsPublished {
		o |= SubAsPublished
	}
	return o
}
