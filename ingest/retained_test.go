package ingest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

func retainedOf(topic, payload string, qos byte, id uint16) packets.Packet {
	pk := publishOf(topic, payload, qos, id)
	pk.FixedHeader.Retain = true
	return pk
}

// all gives what comes until the client is answered a ping, sorted: "topic=payload r" with r where it is retained.
func (p *peer) all() []string {
	p.t.Helper()
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	out := []string{}
	for {
		pk, err := p.read()
		if err != nil {
			p.t.Fatal(err)
		}
		switch pk.FixedHeader.Type {
		case packets.Pingresp:
			slices.Sort(out)
			return out
		case packets.Publish:
			m := pk.TopicName + "=" + string(pk.Payload)
			if pk.FixedHeader.Retain {
				m += " r"
			}
			out = append(out, m)
			if pk.FixedHeader.Qos == 1 {
				p.send(ackOf(packets.Puback, pk.PacketID))
			}
		}
	}
}

func TestRetained(t *testing.T) {
	for _, version := range []byte{4, 5} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			r := newRig(t, nil)
			p := r.connect(version, "anna", "a")
			for i, pk := range []packets.Packet{
				retainedOf("homes/h1/lamp", "on", 1, 1), retainedOf("homes/h1/oven", "cold", 1, 2), retainedOf("homes/h1/lamp", "off", 1, 3),
				retainedOf(lampTopic, reading, 1, 4), publishOf("homes/h1/lamp", "blinks", 1, 5), retainedOf("homes/h1/oven", "", 1, 6),
			} {
				p.send(pk)
				p.wantID(packets.Puback, uint16(i+1), 0)
			}
			if n := len(r.road.events()); n != 1 {
				t.Errorf("%d rows in the log", n)
			}
			sub := r.connect(version, "app", "s")
			sub.send(subscribeOf(1, 1, "homes/h1/#"))
			sub.want(packets.Suback)
			want := []string{"homes/h1/devices/lamp/telemetry=" + reading + " r", "homes/h1/lamp=off r"}
			if got := sub.all(); !slices.Equal(got, want) {
				t.Errorf("%q; want %q", got, want)
			}
			p.send(retainedOf("homes/h1/lamp", "new", 0, 0))
			p.silent()
			if got := sub.all(); !slices.Equal(got, []string{"homes/h1/lamp=new"}) {
				t.Errorf("[MQTT-3.3.1-12] a live message is not retained: %q", got)
			}
			stranger := r.connect(version, "bert", "s")
			stranger.send(subscribeOf(1, 1, "homes/h2/#", "homes/h1/#"))
			stranger.want(packets.Suback)
			if got := stranger.all(); len(got) != 0 {
				t.Errorf("another home sees %q", got)
			}
		})
	}
}

func TestRetainHandling(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect(5, "anna", "a")
	p.send(retainedOf("homes/h1/lamp", "on", 1, 1))
	p.want(packets.Puback)
	sub := r.connect(5, "app", "s")
	subscribe := func(filter string, handling byte, asPublished bool) []string {
		sub.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1,
			Filters: packets.Subscriptions{{Filter: filter, Qos: 1, RetainHandling: handling, RetainAsPublished: asPublished}}})
		if ack := sub.want(packets.Suback); ack.ReasonCodes[0] != 1 {
			t.Fatalf("%#x", ack.ReasonCodes[0])
		}
		return sub.all()
	}
	on := []string{"homes/h1/lamp=on r"}
	for i, c := range []struct {
		filter   string
		handling byte
		want     []string
	}{
		{"homes/h1/lamp", 0, on}, {"homes/h1/lamp", 0, on}, {"homes/h1/lamp", 1, nil}, {"homes/h1/lamp", 2, nil},
		{"homes/h1/+", 1, on}, {"homes/h1/+", 1, nil}, {"homes/h1/#", 2, nil}, {"$share/g/homes/h1/lamp", 0, nil},
	} {
		if got := subscribe(c.filter, c.handling, false); !slices.Equal(got, c.want) {
			t.Errorf("step %d: %q; want %q", i, got, c.want)
		}
	}
	subscribe("homes/h1/lamp", 2, true)
	p.send(retainedOf("homes/h1/lamp", "off", 0, 0))
	p.silent()
	if got := sub.all(); !slices.Contains(got, "homes/h1/lamp=off r") {
		t.Errorf("[MQTT-3.3.1-13] retain as published: %q", got)
	}
}

func TestRetainedMessagesAreBounded(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.RetainedMax = 2 })
	sub := r.connect(5, "app", "s")
	sub.send(subscribeOf(1, 0, "homes/h1/#"))
	sub.want(packets.Suback)
	p, old := r.connect(5, "anna", "a"), r.connect(4, "anna", "old")
	for i, code := range []byte{0, 0, 0x97} {
		p.send(retainedOf(fmt.Sprint("homes/h1/", i), "x", 1, 1))
		p.wantID(packets.Puback, 1, code)
	}
	p.send(retainedOf("homes/h1/2", "x", 2, 1))
	p.wantID(packets.Pubrec, 1, 0x97)
	old.send(retainedOf("homes/h1/3", "x", 1, 1)) // 3.1.1 can only say yes
	old.wantID(packets.Puback, 1, 0)
	p.send(retainedOf(lampTopic, reading, 1, 1)) // telemetry counts; its last value is no reason to lose it
	p.wantID(packets.Puback, 1, 0)
	if got := sub.all(); len(got) != 4 {
		t.Errorf("%q; want what was taken", got)
	}
	if n := r.Stats().Refused["quota"]; n != 4 {
		t.Errorf("%d counted", n)
	}
	if n := len(r.road.events()); n != 1 {
		t.Errorf("%d rows", n)
	}
	p.send(retainedOf("homes/h1/0", "", 1, 1)) // room again
	p.wantID(packets.Puback, 1, 0)
	p.send(retainedOf("homes/h1/2", "x", 1, 1))
	p.wantID(packets.Puback, 1, 0)
}
