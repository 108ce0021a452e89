package ingest

import (
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
)

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
		{"will of QoS 2", will("homes/h1/x", 2, false), 0, 0},
		{"retained will", will("homes/h1/x", 1, true), 0, 0},
		{"will as telemetry", will(lampTopic, 1, false), 0x90, 3},
		{"will as a command", will("homes/h1/devices/lamp/commands", 1, false), 0x90, 3},
		{"will as a report", will("homes/h1/devices/lamp/commands/1/status", 1, true), 0x90, 3},
		{"will as a shadow's report", will("homes/h1/devices/lamp/shadow/reported", 1, false), 0x90, 3},
		{"will as a delta", will("homes/h1/devices/lamp/shadow/delta", 1, false), 0x90, 3},
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
		if ack.ReasonCode != 0 || ack.Properties.AssignedClientID == "" || ack.Properties.ReceiveMaximum != 256 || ack.Properties.MaximumQosFlag || ack.Properties.RetainAvailable != 1 || ack.Properties.SharedSubAvailable != 1 || ack.Properties.SubIDAvailable != 1 {
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
	huge := []byte{0x32, 0x80, 0xad, 0xe2, 0x04, 0, 1} // says 10,000,000 bytes
	for _, c := range []struct {
		name string
		send []byte
		code byte
	}{
		{"10 MB payload", huge, 0x95},
		{"payload over the limit, packet not", encode(t, 5, publishOf(lampTopic, strings.Repeat(" ", 256<<10)+"{}", 1, 1)), 0x95},
		{"QoS 3", []byte{0x36, 2, 0, 0}, 0x81},
		{"empty topic", encode(t, 5, publishOf("", reading, 0, 0)), 0x90},
		{"wildcard topic", encode(t, 5, publishOf("homes/h1/+", reading, 0, 0)), 0x90},
		{"alias 0", []byte{0x30, 7, 0, 1, 'a', 3, 0x23, 0, 0}, 0x94},
		{"alias too high", alias(lampTopic, 17), 0x94},
		{"alias not set", alias("", 3), 0x82},
		{"packet id 0", []byte{0x32, 6, 0, 1, 'a', 0, 0, 0}, 0x82},
		{"foreign topic, QoS 0", encode(t, 5, publishOf("homes/h2/devices/a/telemetry", reading, 0, 0)), 0x87},
		{"type 0", []byte{0, 0}, 0x81},
		{"CONNACK", []byte{0x20, 2, 0, 0}, 0x82},
		{"PUBREL flags", []byte{0x60, 2, 0, 1}, 0x81},
		{"PUBREL of packet id 0", []byte{0x62, 2, 0, 0}, 0x82},
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
