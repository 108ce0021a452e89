package ingest

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"hearthline/ingest/mqtt"

	"github.com/mochi-mqtt/server/v2/packets"
)

// connection is the one of a client of anna's.
func (r *rig) connection(client string) *connection {
	r.t.Helper()
	var found *connection
	eventually(r.t, client+" is connected", func() bool {
		r.connectionsMu.Lock()
		defer r.connectionsMu.Unlock()
		for c := range r.connections {
			if c.session.Key.Client == client && c.id.User == "anna" {
				found = c
			}
		}
		return found != nil
	})
	return found
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
	waiting := func() int { n, _ := r.connection("a").session.InFlight(); return n }
	if waiting() != 1 {
		t.Error("the command was taken for acknowledged")
	}
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: m.PacketID})
	eventually(t, "it is acknowledged", func() bool { return waiting() == 0 })
}

func TestSlowConsumer(t *testing.T) {
	const backlogMax = 100
	r := newRig(t, func(g *Gateway) { g.SessionQueueMax = backlogMax })
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
		p := r.connect(4, "anna", "forever", func(pk *packets.Packet) { pk.Connect.Keepalive = 0 })
		if c := r.connection("forever"); c.keepAlive != 0 {
			t.Error(c.keepAlive)
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
	for version, want := range map[byte][]byte{5: {0, 0, 0x87, 0x87, 0x87, 0, 0x8f}, 4: {0, 0, 0x80, 0x80, 0x80, 0, 0x80}} {
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
		eventually(t, "it is forgotten, with its subscriptions", func() bool { return r.Stats().Connections == 0 && r.audience.Len() == 0 })
	}
	p := r.connect(5, "anna", "many")
	for i := range r.SubscriptionsMax + 1 {
		p.send(subscribeOf(uint16(i+1), 1, fmt.Sprintf("homes/h1/%d", i)))
		want := byte(1)
		if i == r.SubscriptionsMax {
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
		if got := mqtt.Matches(c.filter, c.topic); got != c.want {
			t.Errorf("matches(%q, %q) = %t", c.filter, c.topic, got)
		}
	}
}
