package ingest

import (
	"bytes"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// FuzzPackets holds packet parsing to mochi-mqtt's codec: of a packet that both accept, both must have understood the
// same. Where only mochi accepts, the gateway is stricter, which the standard asks for; where only the gateway
// accepts, one of the causes listed here must hold.
func FuzzPackets(f *testing.F) {
	r := &rig{passwords: map[string]string{"anna": "secret"}}
	for _, version := range []byte{4, 5} {
		will := connectPacketOf(r, "anna", "c")
		will.Connect.WillFlag, will.Connect.WillTopic, will.Connect.WillPayload, will.Connect.WillQos = true, "homes/h1/gone", []byte("bye"), 1
		props := publishOf(lampTopic, reading, 1, 5)
		props.Properties = packets.Properties{ContentType: "application/json", TopicAlias: 3, TopicAliasFlag: true, CorrelationData: []byte{1}, User: []packets.UserProperty{{Key: "a", Val: "b"}}, PayloadFormat: 1, PayloadFormatFlag: true, MessageExpiryInterval: 9}
		for _, pk := range []packets.Packet{
			connectPacketOf(r, "anna", "c"), will, publishOf(lampTopic, reading, 0, 0), props, subscribeOf(3, 1, "homes/h1/#", "a/+"),
			{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: 7, ReasonCode: 0x10},
			{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 8, Filters: packets.Subscriptions{{Filter: "a"}}},
			{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}},
		} {
			f.Add(version, encode(f, version, pk))
		}
	}
	f.Add(byte(5), []byte{0x30, 5, 0, 1, 'a', 1, 0x23})
	f.Fuzz(func(t *testing.T, version byte, data []byte) {
		if version != v5 {
			version = v311
		}
		kind, flags, body, size, err := frame(data, 1<<16)
		if err != nil || size == 0 {
			return
		}
		if size > len(data) || len(body) > size {
			t.Fatalf("a frame of %d in %d bytes", size, len(data))
		}
		switch kind {
		case ptConnect:
			fuzzConnect(t, body)
		case ptPublish:
			fuzzPublish(t, version, flags, body)
		case ptPuback:
			p, err := parseAck(version, body)
			if pk, merr := decode(kind, flags, version, bytes.Clone(body)); err == nil && merr == nil && (p.id != pk.PacketID || p.code != pk.ReasonCode) {
				t.Fatalf("%+v; mochi %d %#x: % x", p, pk.PacketID, pk.ReasonCode, body)
			}
		case ptSubscribe, ptUnsubscribe:
			fuzzSubscribe(t, version, kind, flags, body)
		case ptDisconnect:
			code, _, err := parseDisconnect(version, body)
			if pk, merr := decode(kind, flags, version, bytes.Clone(body)); err == nil && merr == nil && version == v5 && code != pk.ReasonCode {
				t.Fatalf("%#x; mochi %#x: % x", code, pk.ReasonCode, body)
			}
		}
	})
}

func fuzzConnect(t *testing.T, body []byte) {
	p, err := parseConnect(body)
	if err != nil {
		return
	}
	pk, merr := decode(packets.Connect, 0, p.version, bytes.Clone(body))
	if merr != nil {
		t.Fatalf("only the gateway accepts: %v: % x", merr, body)
	}
	c := pk.Connect
	same := c.ClientIdentifier == string(p.clientID) && c.Keepalive == p.keepAlive && c.Clean == p.clean && c.UsernameFlag == p.hasUser &&
		bytes.Equal(c.Username, p.user) && bytes.Equal(c.Password, p.password) && c.WillFlag == (p.will != nil)
	if p.will != nil {
		same = same && c.WillTopic == string(p.will.topic) && bytes.Equal(c.WillPayload, p.will.payload) && c.WillQos == p.will.qos && c.WillRetain == p.will.retain
	}
	if p.version == v5 {
		same = same && pk.Properties.ReceiveMaximum == p.props.receiveMaximum && pk.Properties.MaximumPacketSize == p.props.maximumPacket && pk.Properties.SessionExpiryInterval == p.props.sessionExpiry
	}
	if !same {
		t.Fatalf("%+v; mochi %+v %+v: % x", p, c, pk.Properties, body)
	}
	if p.will != nil {
		willProps(&p.will.props)
	}
}

func fuzzPublish(t *testing.T, version, flags byte, body []byte) {
	var p publishPacket
	if err := parsePublish(version, flags, body, &p); err != nil {
		return
	}
	pk, merr := decode(packets.Publish, flags, version, bytes.Clone(body))
	if merr != nil {
		t.Fatalf("only the gateway accepts: %v: % x", merr, body)
	}
	if pk.TopicName != string(p.topic) || !bytes.Equal(pk.Payload, p.payload) || pk.PacketID != p.id || version == v5 && (pk.Properties.TopicAlias != p.props.topicAlias || pk.Properties.ContentType != string(p.props.contentType) || pk.Properties.ResponseTopic != string(p.props.responseTopic)) {
		t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
	}
	if version != v5 {
		return
	}
	// What is handed on must be read by others as what came in, without the alias.
	m := message{topic: "t", payload: p.payload, props: p.props.forwarded(nil)}
	out := appendPublish(nil, v5, &m, 0, 0)
	if len(out) > m.size() {
		t.Fatalf("a message of %d bytes; said to be %d at most", len(out), m.size())
	}
	_, oflags, obody, size, err := frame(out, 1<<20)
	if err != nil || size != len(out) {
		t.Fatal(err, size)
	}
	back, merr := decode(packets.Publish, oflags, v5, obody)
	if merr != nil || back.Properties.TopicAliasFlag || back.Properties.ContentType != pk.Properties.ContentType || len(back.Properties.User) != len(pk.Properties.User) || !bytes.Equal(back.Properties.CorrelationData, pk.Properties.CorrelationData) || !bytes.Equal(back.Payload, pk.Payload) {
		t.Fatalf("handed on as %+v, %v; came in as %+v", back, merr, pk)
	}
}

func fuzzSubscribe(t *testing.T, version, kind, flags byte, body []byte) {
	p, err := parseSubscribe(version, body, kind == ptUnsubscribe)
	if err != nil {
		return
	}
	pk, merr := decode(kind, flags, version, bytes.Clone(body))
	if merr != nil {
		t.Fatalf("only the gateway accepts: %v: % x", merr, body)
	}
	if pk.PacketID != p.id || len(pk.Filters) != len(p.filters) {
		t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
	}
	for i := range p.filters {
		if pk.Filters[i].Filter != string(p.filters[i]) || kind == ptSubscribe && pk.Filters[i].Qos != p.options[i]&subQoS {
			t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
		}
		badFilter(string(p.filters[i]))
	}
}
