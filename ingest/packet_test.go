package ingest

import (
	"bytes"
	"testing"

	"hearthline/ingest/mqtt"

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
		if version != mqtt.V5 {
			version = mqtt.V311
		}
		kind, flags, body, size, err := mqtt.Frame(data, 1<<16)
		if err != nil || size == 0 {
			return
		}
		if size > len(data) || len(body) > size {
			t.Fatalf("a frame of %d in %d bytes", size, len(data))
		}
		switch kind {
		case mqtt.TypeConnect:
			fuzzConnect(t, body)
		case mqtt.TypePublish:
			fuzzPublish(t, version, flags, body)
		case mqtt.TypePuback:
			p, err := mqtt.ParseAck(version, body)
			if pk, merr := decode(kind, flags, version, bytes.Clone(body)); err == nil && merr == nil && (p.Id != pk.PacketID || p.Code != pk.ReasonCode) {
				t.Fatalf("%+v; mochi %d %#x: % x", p, pk.PacketID, pk.ReasonCode, body)
			}
		case mqtt.TypeSubscribe, mqtt.TypeUnsubscribe:
			fuzzSubscribe(t, version, kind, flags, body)
		case mqtt.TypeDisconnect:
			code, _, err := mqtt.ParseDisconnect(version, body)
			if pk, merr := decode(kind, flags, version, bytes.Clone(body)); err == nil && merr == nil && version == mqtt.V5 && code != pk.ReasonCode {
				t.Fatalf("%#x; mochi %#x: % x", code, pk.ReasonCode, body)
			}
		}
	})
}

func fuzzConnect(t *testing.T, body []byte) {
	p, err := mqtt.ParseConnect(body)
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
	if p.Version == mqtt.V5 {
		same = same && pk.Properties.ReceiveMaximum == p.Props.ReceiveMaximum && pk.Properties.MaximumPacketSize == p.Props.MaximumPacket && pk.Properties.SessionExpiryInterval == p.Props.SessionExpiry
	}
	if !same {
		t.Fatalf("%+v; mochi %+v %+v: % x", p, c, pk.Properties, body)
	}
	if p.Will != nil {
		willProps(&p.Will.Props)
	}
}

func fuzzPublish(t *testing.T, version, flags byte, body []byte) {
	var p mqtt.PublishPacket
	if err := mqtt.ParsePublish(version, flags, body, &p); err != nil {
		return
	}
	pk, merr := decode(packets.Publish, flags, version, bytes.Clone(body))
	if merr != nil {
		t.Fatalf("only the gateway accepts: %v: % x", merr, body)
	}
	if pk.TopicName != string(p.Topic) || !bytes.Equal(pk.Payload, p.Payload) || pk.PacketID != p.Id || version == mqtt.V5 && (pk.Properties.TopicAlias != p.Props.TopicAlias || pk.Properties.ContentType != string(p.Props.ContentType) || pk.Properties.ResponseTopic != string(p.Props.ResponseTopic)) {
		t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
	}
	if version != mqtt.V5 {
		return
	}
	// What is handed on must be read by others as what came in, without the alias.
	m := mqtt.Message{Topic: "t", Payload: p.Payload, Props: p.Props.Forwarded(nil)}
	out := mqtt.AppendPublish(nil, mqtt.V5, &m, 0, 0)
	if len(out) > m.Size() {
		t.Fatalf("a message of %d bytes; said to be %d at most", len(out), m.Size())
	}
	_, oflags, obody, size, err := mqtt.Frame(out, 1<<20)
	if err != nil || size != len(out) {
		t.Fatal(err, size)
	}
	back, merr := decode(packets.Publish, oflags, mqtt.V5, obody)
	if merr != nil || back.Properties.TopicAliasFlag || back.Properties.ContentType != pk.Properties.ContentType || len(back.Properties.User) != len(pk.Properties.User) || !bytes.Equal(back.Properties.CorrelationData, pk.Properties.CorrelationData) || !bytes.Equal(back.Payload, pk.Payload) {
		t.Fatalf("handed on as %+v, %v; came in as %+v", back, merr, pk)
	}
}

func fuzzSubscribe(t *testing.T, version, kind, flags byte, body []byte) {
	p, err := mqtt.ParseSubscribe(version, body, kind == mqtt.TypeUnsubscribe)
	if err != nil {
		return
	}
	pk, merr := decode(kind, flags, version, bytes.Clone(body))
	if merr != nil {
		t.Fatalf("only the gateway accepts: %v: % x", merr, body)
	}
	if pk.PacketID != p.Id || len(pk.Filters) != len(p.Filters) {
		t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
	}
	for i := range p.Filters {
		if pk.Filters[i].Filter != string(p.Filters[i]) || kind == mqtt.TypeSubscribe && pk.Filters[i].Qos != p.Options[i]&mqtt.SubQoS {
			t.Fatalf("%+v; mochi %+v: % x", p, pk, body)
		}
		mqtt.BadFilter(string(p.Filters[i]))
	}
}
