package ingest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"hearthline/ingest/mqtt"

	"github.com/mochi-mqtt/server/v2/packets"
)

// peer is a client that can be made to say anything. It speaks by mochi-mqtt's codec, which shares no line with the
// gateway's.
type peer struct {
	t       testing.TB
	conn    *tls.Conn
	version byte
	buf     []byte
}

func (r *rig) dial() *peer {
	r.t.Helper()
	c, err := tls.Dial("tcp", r.at.MQTT.String(), r.tls())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return &peer{t: r.t, conn: c, version: 5}
}

func (p *peer) write(b ...byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// encode writes a packet by mochi's codec.
func encode(t testing.TB, version byte, pk packets.Packet) []byte {
	t.Helper()
	pk.ProtocolVersion, pk.Mods.AllowResponseInfo = version, true
	var buf bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&buf)
	case packets.Publish:
		err = pk.PublishEncode(&buf)
	case packets.Puback:
		err = pk.PubackEncode(&buf)
	case packets.Pubrec:
		err = pk.PubrecEncode(&buf)
	case packets.Pubrel:
		err = pk.PubrelEncode(&buf)
	case packets.Pubcomp:
		err = pk.PubcompEncode(&buf)
	case packets.Subscribe:
		err = pk.SubscribeEncode(&buf)
	case packets.Unsubscribe:
		err = pk.UnsubscribeEncode(&buf)
	case packets.Pingreq:
		err = pk.PingreqEncode(&buf)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&buf)
	default:
		t.Fatal("no encoder for", pk.FixedHeader.Type)
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func (p *peer) send(pk packets.Packet) { p.t.Helper(); p.write(encode(p.t, p.version, pk)...) }

// read gives the next packet, decoded by mochi's codec.
func (p *peer) read() (packets.Packet, error) {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		kind, flags, body, size, err := mqtt.Frame(p.buf, 1<<20)
		if err != nil {
			p.t.Fatal(err)
		}
		if size > 0 {
			body = bytes.Clone(body)
			p.buf = p.buf[size:]
			return decode(kind, flags, p.version, body)
		}
		more := make([]byte, 4096)
		n, err := p.conn.Read(more)
		if err != nil {
			return packets.Packet{}, err
		}
		p.buf = append(p.buf, more[:n]...)
	}
}

func decode(kind, flags, version byte, body []byte) (packets.Packet, error) {
	pk := packets.Packet{ProtocolVersion: version, FixedHeader: packets.FixedHeader{Type: kind, Remaining: len(body), Qos: flags >> 1 & 3, Retain: flags&1 != 0, Dup: flags&8 != 0}}
	var err error
	switch kind {
	case packets.Connect:
		err = pk.ConnectDecode(body)
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Pubrec:
		err = pk.PubrecDecode(body)
	case packets.Pubrel:
		err = pk.PubrelDecode(body)
	case packets.Pubcomp:
		err = pk.PubcompDecode(body)
	case packets.Subscribe:
		err = pk.SubscribeDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsubscribe:
		err = pk.UnsubscribeDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	case packets.Pingresp:
	default:
		err = fmt.Errorf("packet type %d", kind)
	}
	return pk, err
}

// want reads a packet of a type.
func (p *peer) want(kind byte) packets.Packet {
	p.t.Helper()
	pk, err := p.read()
	if err != nil || pk.FixedHeader.Type != kind {
		p.t.Fatalf("want packet type %d; got %d, reason %#x %q, error %v", kind, pk.FixedHeader.Type, pk.ReasonCode, pk.Properties.ReasonString, err)
	}
	return pk
}

// wantEnd reads until the connection ends, and gives the reason code of the DISCONNECT before it; 0 for none.
func (p *peer) wantEnd() byte {
	p.t.Helper()
	code := byte(0)
	for {
		pk, err := p.read()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				p.t.Fatal("the connection was not closed")
			}
			return code
		}
		if pk.FixedHeader.Type == packets.Disconnect {
			code = pk.ReasonCode
		}
	}
}

func connectPacketOf(r *rig, user, client string) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, Connect: packets.ConnectParams{
		ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: client, UsernameFlag: true, PasswordFlag: true,
		Username: []byte(user), Password: []byte(r.passwords[user]), Keepalive: 60,
	}}
}

func (r *rig) connect(version byte, user, client string, change ...func(*packets.Packet)) *peer {
	r.t.Helper()
	p := r.dial()
	p.version = version
	pk := connectPacketOf(r, user, client)
	for _, f := range change {
		f(&pk)
	}
	p.send(pk)
	if ack := p.want(packets.Connack); ack.ReasonCode != 0 {
		r.t.Fatalf("CONNACK %#x %s", ack.ReasonCode, ack.Properties.ReasonString)
	}
	return p
}

func publishOf(topic, payload string, qos byte, id uint16) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, TopicName: topic, Payload: []byte(payload), PacketID: id}
}

const reading = `{"metric":"power","value":1}`
const lampTopic = "homes/h1/devices/lamp/telemetry"

func subscribeOf(id uint16, qos byte, filters ...string) packets.Packet {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: id}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: qos})
	}
	return pk
}
