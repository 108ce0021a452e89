package ingest

import (
	"crypto/tls"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/ingest/identity"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.yaml.in/yaml/v3"
)

func TestRevocationTakesEffect(t *testing.T) {
	r := newRig(t, nil)
	anna, bert := r.connect(5, "anna", "a"), r.connect(5, "bert", "b")
	f, err := os.Open(r.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	all, err := identity.ReadCredentials(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(c identity.Credential) bool { return c.User == "anna" })
	text, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	write(t, r.dir, "credentials.yaml", "- {broken")
	eventually(t, "a file that cannot be read is counted", func() bool { return r.Stats().ReloadErrors == 1 })
	write(t, r.dir, "credentials.yaml", string(text))
	if code := anna.wantEnd(); code != 0x87 {
		t.Errorf("%#x; want 0x87", code)
	}
	bert.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	bert.want(packets.Pingresp)
	p := r.dial()
	p.send(connectPacketOf(r, "anna", "a"))
	if ack := p.want(packets.Connack); ack.ReasonCode != 0x86 {
		t.Errorf("%#x", ack.ReasonCode)
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		set func(*Gateway)
		err string
	}{
		{func(g *Gateway) { g.Certificate = "" }, "certificate is not set"},
		{func(g *Gateway) { g.RowsMax = 0 }, "rows_max"},
		{func(g *Gateway) { g.DrainTimeout = 0 }, "drain_timeout"},
		{func(g *Gateway) { g.Publisher = nil }, "publisher"},
		{func(g *Gateway) { g.MQTT, g.HTTP = "", "" }, "neither"},
		{func(g *Gateway) { g.Credentials = "/nonexistent" }, "credentials"},
	} {
		g := New()
		g.Certificate, g.Key, g.Credentials, g.Publisher, g.Partitions = "c", "k", "f", newRoad(), 1
		c.set(g)
		if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v; want %q", err, c.err)
		}
	}
	t.Run("a clock that is two days behind", func(t *testing.T) {
		r := newRig(t, nil)
		g := New()
		g.MQTT, g.Certificate, g.Key, g.Credentials, g.Publisher, g.Partitions = "127.0.0.1:0", r.Certificate, r.Key, r.Credentials, newRoad(), 1
		g.Clock = write(t, r.dir, "clock", strconv.FormatInt(time.Now().Add(48*time.Hour).UnixMicro(), 10))
		if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "set the clock right") {
			t.Error(err)
		}
	})
	t.Run("busy port", func(t *testing.T) {
		r := newRig(t, nil)
		g := New()
		g.MQTT, g.Certificate, g.Key, g.Credentials, g.Publisher, g.Partitions = r.at.MQTT.String(), r.Certificate, r.Key, r.Credentials, newRoad(), 1
		if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), "set mqtt") {
			t.Error(err)
		}
	})
}

func TestConnectionLimit(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.ConnectionsMax = 2 })
	a := r.connect(5, "anna", "a")
	r.connect(5, "anna", "b")
	if c, err := tls.Dial("tcp", r.at.MQTT.String(), r.tls()); err == nil {
		c.Close()
		t.Error("a third was let in")
	}
	a.conn.Close()
	eventually(t, "there is room again", func() bool { return r.Stats().Sockets == 1 })
	r.connect(5, "anna", "c")
	if r.Stats().Refused["connections"] != 1 {
		t.Error(r.Stats().Refused)
	}
}

func TestMessageRate(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.MessagesPerSecond, g.MessagesBurst = 20, 5 })
	p := r.connect(5, "anna", "a")
	start := time.Now()
	for id := range uint16(15) {
		p.send(publishOf(lampTopic, reading, 1, id+1))
	}
	for range 15 {
		p.want(packets.Puback)
	}
	if took := time.Since(start); took < 400*time.Millisecond {
		t.Errorf("15 messages at 5 + 20/s took %s", took)
	}
}
