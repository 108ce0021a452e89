package ingest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/flow"
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
	pk.ProtocolVersion = version
	var buf bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&buf)
	case packets.Publish:
		err = pk.PublishEncode(&buf)
	case packets.Puback:
		err = pk.PubackEncode(&buf)
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
		kind, flags, body, size, err := frame(p.buf, 1<<20)
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

func TestStrangersCostNothing(t *testing.T) {
	r := newRig(t, func(g *Gateway) {
		g.ConnectTimeout = 500 * time.Millisecond
		g.HandshakeTimeout = 500 * time.Millisecond
	})
	t.Run("five bytes claiming 256 MB", func(t *testing.T) {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for range 10 {
			p := r.dial()
			p.write(0x10, 0xff, 0xff, 0xff, 0x7f)
			p.wantEnd()
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 20<<20 {
			t.Errorf("%d bytes allocated for ten such clients", got)
		}
	})
	t.Run("slow CONNECT", func(t *testing.T) {
		p := r.dial()
		all := encode(t, 5, connectPacketOf(r, "anna", "slow"))
		start := time.Now()
		for _, b := range all {
			if _, err := p.conn.Write([]byte{b}); err != nil {
				break
			}
			<-time.After(20 * time.Millisecond)
		}
		p.wantEnd()
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("it was left alone for %s", took)
		}
		if r.Stats().Connections != 0 {
			t.Error("it was let in")
		}
	})
	t.Run("silence instead of a handshake holds up nobody", func(t *testing.T) {
		var silent []net.Conn
		for range 4 * r.HandshakesMax {
			c, err := net.Dial("tcp", r.at.MQTT.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write([]byte{0x16, 3}) // the beginning of a ClientHello
			silent = append(silent, c)
		}
		r.connect(5, "anna", "in-between").conn.Close()
		for _, c := range silent {
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("a silent connection was not closed")
			}
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		c := r.tls()
		c.MaxVersion = tls.VersionTLS12
		if _, err := tls.Dial("tcp", r.at.MQTT.String(), c); err == nil {
			t.Error("it was let in")
		}
	})
}

func TestConnectIsAnswered(t *testing.T) {
	r := newRig(t, nil)
	will := func(topic string, qos byte, retain bool) func(*packets.Packet) {
		return func(p *packets.Packet) {
			p.Connect.WillFlag, p.Connect.WillTopic, p.Connect.WillPayload, p.Connect.WillQos, p.Connect.WillRetain = true, topic, []byte("x"), qos, retain
		}
	}
	for _, c := range []struct {
		name     string
		change   func(*packets.Packet)
		v5, v311 byte
	}{
		{"good", func(*packets.Packet) {}, 0, 0},
		{"wrong password", func(p *packets.Packet) { p.Connect.Password = []byte("no") }, 0x86, 5},
		{"unknown user", func(p *packets.Packet) { p.Connect.Username = []byte("nobody") }, 0x86, 5},
		{"no user", func(p *packets.Packet) { p.Connect.UsernameFlag, p.Connect.PasswordFlag = false, false }, 0x86, 5},
		{"will of another home", will("homes/h2/x", 0, false), 0x87, 5},
		{"will of QoS 2", will("homes/h1/x", 2, false), 0x9b, 3},
		{"will as telemetry", will(lampTopic, 1, false), 0x90, 3},
		{"will with a wildcard", will("homes/h1/#", 1, false), 0x90, 3},
	} {
		for version, want := range map[byte]byte{5: c.v5, 4: c.v311} {
			t.Run(fmt.Sprintf("%s v%d", c.name, version), func(t *testing.T) {
				p := r.dial()
				p.version = version
				pk := connectPacketOf(r, "anna", "c")
				c.change(&pk)
				p.send(pk)
				if ack := p.want(packets.Connack); ack.ReasonCode != want {
					t.Errorf("CONNACK %#x; want %#x", ack.ReasonCode, want)
				}
				if want != 0 {
					p.wantEnd()
				}
			})
		}
	}
	t.Run("MQTT 3.1", func(t *testing.T) {
		p := r.dial()
		p.version = 4
		p.write(0x10, 12+2, 0, 6, 'M', 'Q', 'I', 's', 'd', 'p', 3, 2, 0, 60, 0, 0)
		if ack := p.want(packets.Connack); ack.ReasonCode != 1 {
			t.Errorf("CONNACK %#x", ack.ReasonCode)
		}
	})
	t.Run("client ids", func(t *testing.T) {
		p := r.dial()
		p.send(connectPacketOf(r, "anna", ""))
		ack := p.want(packets.Connack)
		if ack.ReasonCode != 0 || ack.Properties.AssignedClientID == "" || ack.Properties.ReceiveMaximum != 256 || ack.Properties.MaximumQos != 1 || ack.Properties.RetainAvailable != 0 {
			t.Errorf("%#x %+v", ack.ReasonCode, ack.Properties)
		}
		p = r.dial()
		p.version = 4
		pk := connectPacketOf(r, "anna", "")
		pk.Connect.Clean = false
		p.send(pk)
		if ack := p.want(packets.Connack); ack.ReasonCode != 2 {
			t.Errorf("CONNACK %#x; want 2", ack.ReasonCode)
		}
	})
}

// TestWrongPackets sends what MQTT forbids, after a good CONNECT.
func TestWrongPackets(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.ReceiveMaximum = 4 })
	alias := func(topic string, a uint16) []byte {
		pk := publishOf(topic, reading, 0, 0)
		pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = a, true
		return encode(t, 5, pk)
	}
	retained := publishOf(lampTopic, reading, 1, 1)
	retained.FixedHeader.Retain = true
	huge := []byte{0x32, 0x80, 0xad, 0xe2, 0x04, 0, 1} // says 10,000,000 bytes
	for _, c := range []struct {
		name string
		send []byte
		code byte
	}{
		{"10 MB payload", huge, 0x95},
		{"payload over the limit, packet not", encode(t, 5, publishOf(lampTopic, strings.Repeat(" ", 256<<10)+"{}", 1, 1)), 0x95},
		{"QoS 2", encode(t, 5, publishOf(lampTopic, reading, 2, 1)), 0x9b},
		{"QoS 3", []byte{0x36, 2, 0, 0}, 0x81},
		{"retained", encode(t, 5, retained), 0x9a},
		{"empty topic", encode(t, 5, publishOf("", reading, 0, 0)), 0x90},
		{"wildcard topic", encode(t, 5, publishOf("homes/h1/+", reading, 0, 0)), 0x90},
		{"alias 0", []byte{0x30, 7, 0, 1, 'a', 3, 0x23, 0, 0}, 0x94},
		{"alias too high", alias(lampTopic, 17), 0x94},
		{"alias not set", alias("", 3), 0x82},
		{"packet id 0", []byte{0x32, 6, 0, 1, 'a', 0, 0, 0}, 0x82},
		{"foreign topic, QoS 0", encode(t, 5, publishOf("homes/h2/devices/a/telemetry", reading, 0, 0)), 0x87},
		{"type 0", []byte{0, 0}, 0x81},
		{"CONNACK", []byte{0x20, 2, 0, 0}, 0x82},
		{"PUBREL", []byte{0x62, 2, 0, 1}, 0x82},
		{"AUTH", []byte{0xf0, 0}, 0x82},
		{"second CONNECT", encode(t, 5, connectPacketOf(r, "anna", "again")), 0x82},
		{"SUBSCRIBE flags", []byte{0x80, 0}, 0x81},
		{"SUBSCRIBE of nothing", []byte{0x82, 3, 0, 1, 0}, 0x82},
		{"remaining length of 5 bytes", []byte{0x30, 0xff, 0xff, 0xff, 0xff, 1}, 0x81},
		{"property of another packet", []byte{0x30, 6, 0, 1, 'a', 2, 0x17, 0}, 0x81},
		{"property twice", []byte{0x30, 8, 0, 1, 'a', 4, 0x01, 0, 0x01, 0}, 0x82},
		{"payload format", append([]byte{0x30, 7, 0, 1, 'a', 2, 0x01, 1}, 0xff), 0x99},
		{"topic with U+0000", []byte{0x30, 5, 0, 2, 'a', 0, 0}, 0x81},
		{"topic not UTF-8", []byte{0x30, 5, 0, 2, 'a', 0xff, 0}, 0x81},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := r.Stats()
			p := r.connect(5, "anna", "wrong")
			p.t = t
			p.conn.Write(c.send) // it may be cut off in the middle
			if code := p.wantEnd(); code != c.code {
				t.Errorf("DISCONNECT %#x; want %#x", code, c.code)
			}
			eventually(t, "it is counted", func() bool {
				sum := func(s Stats) (n uint64) {
					for _, v := range s.Refused {
						n += v
					}
					return n
				}
				return sum(r.Stats()) == sum(before)+1
			})
		})
	}
	if n := len(r.road.events()); n != 0 {
		t.Errorf("%d rows in the log", n)
	}
}

func TestTopicAliases(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect(5, "anna", "a")
	for i, topic := range []string{lampTopic, "", "homes/h1/devices/oven/telemetry", ""} {
		pk := publishOf(topic, reading, 1, uint16(i+1))
		pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = 1, true
		p.send(pk)
		if ack := p.want(packets.Puback); ack.ReasonCode != 0 || ack.PacketID != uint16(i+1) {
			t.Fatalf("%+v", ack)
		}
	}
	var got []string
	for _, e := range r.road.events() {
		got = append(got, e.Device)
	}
	if fmt.Sprint(got) != "[lamp lamp oven oven]" {
		t.Error(got)
	}
	// What goes out to others bears the topic, and no alias of ours.
	sub := r.connect(5, "app", "s")
	sub.send(subscribeOf(1, 0, "homes/h1/#"))
	sub.want(packets.Suback)
	pk := publishOf("", reading, 0, 0)
	pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = 1, true
	pk.Properties.User = []packets.UserProperty{{Key: "k", Val: "v"}}
	p.send(pk)
	if m := sub.want(packets.Publish); m.TopicName != "homes/h1/devices/oven/telemetry" || m.Properties.TopicAliasFlag || len(m.Properties.User) != 1 {
		t.Errorf("%+v", m)
	}
}

func TestWindow(t *testing.T) {
	t.Run("a version 5 client that exceeds it is cut off", func(t *testing.T) {
		r := newRig(t, func(g *Gateway) { g.ReceiveMaximum = 4 })
		r.road.failing.Store(true)
		p := r.connect(5, "anna", "a")
		for id := range uint16(5) {
			p.send(publishOf(lampTopic, reading, 1, id+1))
		}
		if code := p.wantEnd(); code != 0x93 {
			t.Errorf("%#x", code)
		}
		r.road.failing.Store(false)
	})
	t.Run("a version 3.1.1 client waits", func(t *testing.T) {
		r := newRig(t, func(g *Gateway) { g.ReceiveMaximum = 4 })
		r.road.failing.Store(true)
		p := r.connect(4, "anna", "a")
		for id := range uint16(50) {
			p.send(publishOf(lampTopic, reading, 1, id+1))
		}
		eventually(t, "it is held", func() bool { return r.Stats().Held > 0 })
		if n := r.Stats().RowsAccepted; n > 4 {
			t.Errorf("%d rows taken", n)
		}
		r.road.failing.Store(false)
		for id := range uint16(50) {
			if ack := p.want(packets.Puback); ack.PacketID != id+1 {
				t.Fatalf("PUBACK %d; want %d: they are out of order", ack.PacketID, id+1)
			}
		}
	})
}

func TestAcknowledgementsKeepTheirOrder(t *testing.T) {
	r := newRig(t, nil)
	r.road.delay.Store(int64(30 * time.Millisecond))
	p := r.connect(5, "anna", "a")
	payloads := []struct {
		topic, payload string
		code           byte
	}{
		{lampTopic, reading, 0}, {lampTopic, "{", 0x99}, {"homes/h1/live", "x", 0}, {"homes/h2/x", "x", 0x87}, {lampTopic, reading, 0},
		{lampTopic, `[{"metric":"a","value":1},{"metric":"b"}]`, 0}, {lampTopic, `[{"metric":"b"}]`, 0x99},
	}
	var all []byte
	for i, m := range payloads {
		all = append(all, encode(t, 5, publishOf(m.topic, m.payload, 1, uint16(100-i)))...)
	}
	p.write(all...)
	for i, m := range payloads {
		ack := p.want(packets.Puback)
		if ack.PacketID != uint16(100-i) || ack.ReasonCode != m.code {
			t.Errorf("PUBACK %d, %#x, %q; want %d, %#x", ack.PacketID, ack.ReasonCode, ack.Properties.ReasonString, 100-i, m.code)
		}
		if i == 5 && !strings.Contains(ack.Properties.ReasonString, "1 of 2") {
			t.Errorf("reason %q", ack.Properties.ReasonString)
		}
	}
	if n := len(r.road.events()); n != 3 {
		t.Errorf("%d rows in the log", n)
	}
}

func TestPacketIdentifiersOfBothWaysAreApart(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect(5, "anna", "a")
	p.send(subscribeOf(1, 1, "homes/h1/devices/+/commands"))
	p.want(packets.Suback)
	if _, err := r.Send("h1", "devices/lamp/commands", []byte("on"), 1); err != nil {
		t.Fatal(err)
	}
	m := p.want(packets.Publish)
	p.send(publishOf(lampTopic, reading, 1, m.PacketID)) // the same number, not acknowledged yet
	if ack := p.want(packets.Puback); ack.PacketID != m.PacketID {
		t.Fatal(ack.PacketID)
	}
	r.sessionsMu.Lock()
	s := r.sessions["anna\x00a"]
	r.sessionsMu.Unlock()
	waiting := func() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.sent) }
	if waiting() != 1 {
		t.Error("the command was taken for acknowledged")
	}
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: m.PacketID})
	eventually(t, "it is acknowledged", func() bool { return waiting() == 0 })
}

func TestSlowConsumer(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.OutboundBytesMax = 64 << 10 })
	p := r.connect(5, "anna", "a", func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = 2 })
	p.send(subscribeOf(1, 1, "homes/h1/#"))
	p.want(packets.Suback)
	sent := 0
	for range 2000 {
		if n, _ := r.Send("h1", "commands", []byte("on"), 1); n == 1 {
			sent++
		}
	}
	if sent != 2+backlogMax {
		t.Errorf("%d messages taken for a client that acknowledges none; want %d", sent, 2+backlogMax)
	}
	for range sent {
		m := p.want(packets.Publish)
		p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: m.PacketID})
	}
	if r.Stats().Refused["slow_consumer"] != uint64(2000-sent) {
		t.Error(r.Stats().Refused)
	}
}

func TestTakeoverIsBoundToTheIdentity(t *testing.T) {
	r := newRig(t, nil)
	first := r.connect(5, "anna", "same")
	stranger := r.connect(5, "bert", "same")
	second := r.connect(5, "anna", "same")
	if code := first.wantEnd(); code != 0x8e {
		t.Errorf("%#x; want 0x8e", code)
	}
	for _, p := range []*peer{stranger, second} {
		p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		p.want(packets.Pingresp)
	}
	eventually(t, "two are left", func() bool { return r.Stats().Connections == 2 && r.Stats().Takeovers == 1 })
}

func TestKeepAlive(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.PacketTimeout = 700 * time.Millisecond })
	for _, version := range []byte{4, 5} {
		p := r.connect(version, "anna", "k", func(pk *packets.Packet) { pk.Connect.Keepalive = 1 })
		start := time.Now()
		if code := p.wantEnd(); version == 5 && code != 0x8d {
			t.Errorf("%#x; want 0x8d", code)
		}
		if took := time.Since(start); took < time.Second || took > 6*time.Second {
			t.Errorf("closed after %s; want 1.5 s", took)
		}
	}
	t.Run("a packet that never ends", func(t *testing.T) {
		p := r.connect(5, "anna", "k")
		p.write(0x30, 100, 0)
		if code := p.wantEnd(); code != 0x8d {
			t.Errorf("%#x; want 0x8d", code)
		}
	})
	t.Run("none for 3.1.1 when it says so", func(t *testing.T) {
		p := r.connect(4, "anna", "k", func(pk *packets.Packet) { pk.Connect.Keepalive = 0 })
		r.sessionsMu.Lock()
		s := r.sessions["anna\x00k"]
		r.sessionsMu.Unlock()
		if s.keepAlive != 0 {
			t.Error(s.keepAlive)
		}
		p.conn.Close()
	})
}

func TestWill(t *testing.T) {
	r := newRig(t, nil)
	sub := r.connect(5, "app", "s")
	sub.send(subscribeOf(1, 1, "homes/h1/#"))
	sub.want(packets.Suback)
	will := func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload, pk.Connect.WillQos = true, "homes/h1/gone", []byte("bye"), 1
	}
	p := r.connect(5, "anna", "polite", will)
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	p.wantEnd()
	p = r.connect(4, "anna", "rude", will)
	p.conn.Close()
	if m := sub.want(packets.Publish); m.TopicName != "homes/h1/gone" || string(m.Payload) != "bye" || m.FixedHeader.Qos != 1 {
		t.Errorf("%+v", m)
	}
	if n := r.Stats().Wills; n != 1 {
		t.Errorf("%d wills; want 1", n)
	}
}

func TestSubscriptions(t *testing.T) {
	r := newRig(t, nil)
	filters := []string{"homes/h1/devices/lamp/commands", "homes/h1/#", "homes/h2/#", "#", "homes/+/x", "$share/g/homes/h1/#", "homes/h1/a#"}
	for version, want := range map[byte][]byte{5: {0, 0, 0x87, 0x87, 0x87, 0x9e, 0x8f}, 4: {0, 0, 0x80, 0x80, 0x80, 0x80, 0x80}} {
		p := r.connect(version, "anna", "s")
		p.send(subscribeOf(7, 0, filters...))
		if ack := p.want(packets.Suback); !bytes.Equal(ack.ReasonCodes, want) || ack.PacketID != 7 {
			t.Errorf("v%d: %x; want %x", version, ack.ReasonCodes, want)
		}
		un := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 8, Filters: packets.Subscriptions{{Filter: "homes/h1/#"}, {Filter: "never"}}}
		p.send(un)
		if ack := p.want(packets.Unsuback); version == 5 && !bytes.Equal(ack.ReasonCodes, []byte{0, 0x11}) {
			t.Errorf("%x", ack.ReasonCodes)
		}
		p.conn.Close()
		eventually(t, "it is forgotten", func() bool { return r.Stats().Connections == 0 })
	}
	if r.listeners.Load() != 0 || len(r.audience) != 0 {
		t.Errorf("%d subscriptions, %d homes are left behind", r.listeners.Load(), len(r.audience))
	}
	p := r.connect(5, "anna", "many")
	for i := range subscriptionsMax + 1 {
		p.send(subscribeOf(uint16(i+1), 1, fmt.Sprintf("homes/h1/%d", i)))
		want := byte(1)
		if i == subscriptionsMax {
			want = 0x97
		}
		if ack := p.want(packets.Suback); ack.ReasonCodes[0] != want {
			t.Fatalf("subscription %d: %#x", i, ack.ReasonCodes[0])
		}
	}
}

func TestTopicFilters(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/c", false}, {"a/+", "a/b", true}, {"a/+", "a/b/c", false}, {"a/#", "a", true}, {"a/#", "a/b/c", true},
		{"a/#", "ab", false}, {"+/b", "a/b", true}, {"a/+/c", "a//c", true}, {"#", "a", true}, {"a", "a/b", false}, {"a/b", "a", false}, {"a/+", "a", false}, {"a/+/#", "a", false},
	} {
		if got := matches(c.filter, c.topic); got != c.want {
			t.Errorf("matches(%q, %q) = %t", c.filter, c.topic, got)
		}
	}
}

func TestDrainLosesNothingAcknowledged(t *testing.T) {
	r := newRig(t, nil)
	r.road.delay.Store(int64(100 * time.Millisecond))
	p := r.connect(5, "anna", "a")
	const n = 100
	for id := range uint16(n) {
		p.send(publishOf(lampTopic, fmt.Sprintf(`{"metric":"power","value":%d,"seq":%d}`, id, id), 1, id+1))
	}
	eventually(t, "all are taken", func() bool { return r.Stats().RowsAccepted == n })
	done := make(chan error, 1)
	go func() { done <- r.stop() }()
	acked := 0
	for {
		pk, err := p.read()
		if err != nil {
			break
		}
		if pk.FixedHeader.Type == packets.Puback {
			acked++
		} else if pk.ReasonCode != 0x8b {
			t.Errorf("DISCONNECT %#x; want 0x8b", pk.ReasonCode)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if acked != n || len(r.road.events()) != n {
		t.Errorf("%d acknowledged, %d in the log; want %d", acked, len(r.road.events()), n)
	}
	if got := r.road.kinds(flow.KindEnd); got != 4 {
		t.Errorf("%d ends; want one for each of 4 partitions", got)
	}
	for p, all := range r.road.batches {
		if last := all[len(all)-1]; last.Kind != flow.KindEnd || last.Run != "run-1" {
			t.Errorf("partition %d ends with %s of run %q", p, last.Kind, last.Run)
		}
	}
	if err := r.Health(); err == nil {
		t.Error("a gateway that has ended says it lives")
	}
}

func TestDrainIsBounded(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.DrainTimeout = 500 * time.Millisecond })
	r.road.failing.Store(true)
	p := r.connect(5, "anna", "a")
	p.send(publishOf(lampTopic, reading, 1, 1))
	eventually(t, "it is taken", func() bool { return r.Stats().RowsAccepted == 1 })
	start := time.Now()
	err := r.stop()
	if err == nil || !strings.Contains(err.Error(), "drain took longer") {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("it took %s", took)
	}
	for {
		pk, err := p.read()
		if err != nil {
			break
		}
		if pk.FixedHeader.Type == packets.Puback {
			t.Error("a row that the log does not have was acknowledged")
		}
	}
	*r = rig{Gateway: r.Gateway, t: r.t, road: r.road, stop: func() error { return nil }}
}
