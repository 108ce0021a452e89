package session

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearthline/ingest/mqtt"
)

func TestMessagesAreSentAgainInOrder(t *testing.T) {
	b := newBench(t)
	c := b.connect("c", terms(func(t *Terms) { t.Window = 4 }))
	c.subscribe("homes/a/#", 2, 0)
	for i, qos := range []byte{1, 2, 2, 1, 2, 1} {
		if n := b.publish(qos, "homes/a/x", fmt.Sprint(i)); n != 1 {
			t.Fatal(n)
		}
	}
	c.want("as many as it takes at once", "CONNACK present=false", "PUBLISH 1 q1 homes/a/x=0", "PUBLISH 2 q2 homes/a/x=1", "PUBLISH 3 q2 homes/a/x=2", "PUBLISH 4 q1 homes/a/x=3")
	c.ack(mqtt.TypePubrec, 3)
	c.want("PUBREC makes no room", "PUBREL 3")
	c.ack(mqtt.TypePuback, 1)
	c.want("PUBACK does", "PUBLISH 5 q2 homes/a/x=4")
	c.leave(false)
	b.publish(1, "homes/a/x", "away")
	b.publish(0, "homes/a/x", "lost")
	c = b.connect("c", terms(func(t *Terms) { t.Window = 4 }))
	c.want("again, in order, then what waited", "CONNACK present=true", "PUBLISH 2 q2 dup homes/a/x=1", "PUBREL 3", "PUBLISH 4 q1 dup homes/a/x=3", "PUBLISH 5 q2 dup homes/a/x=4")
	c.ack(mqtt.TypePubcomp, 3)
	c.want("PUBCOMP makes room", "PUBLISH 6 q1 homes/a/x=5")
	c.ack(mqtt.TypePubrec, 2)
	c.ack(mqtt.TypePubrec, 5, 0x83)
	c.want("a PUBREC that refuses ends it", "PUBREL 2", "PUBLISH 7 q1 homes/a/x=away")
	for _, id := range []uint16{4, 6, 7} {
		c.ack(mqtt.TypePuback, id)
	}
	c.ack(mqtt.TypePubcomp, 2)
	c.leave(false)
	c = b.connect("c")
	c.want("nothing is left", "CONNACK present=true")
	if messages, n := b.Kept(); messages != 0 || n != 0 {
		t.Errorf("%d bytes are held for nothing", n)
	}
}

func TestAcknowledgementsThatDoNotFit(t *testing.T) {
	b := newBench(t)
	c := b.connect("c")
	c.subscribe("homes/a/#", 2, 0)
	b.publish(1, "homes/a/x", "1")
	b.publish(2, "homes/a/x", "2")
	c.said(t)
	c.ack(mqtt.TypePubrec, 9)
	c.want("[MQTT-4.3.3] PUBREC of an unknown id", "PUBREL 9 0x92")
	c.ack(mqtt.TypePuback, 9)
	c.ack(mqtt.TypePubcomp, 9)
	for _, x := range []struct {
		kind byte
		id   uint16
	}{{mqtt.TypePubrec, 1}, {mqtt.TypePubcomp, 1}, {mqtt.TypePuback, 2}, {mqtt.TypePubcomp, 2}} {
		if err := c.Acknowledged(c.terms, x.kind, mqtt.AckPacket{ID: x.id}); err == nil {
			t.Errorf("packet type %d of id %d is taken", x.kind, x.id)
		}
	}
	if sent, _ := c.InFlight(); sent != 2 {
		t.Errorf("%d in flight", sent)
	}
	old := c
	c = b.connect("c")
	if err := old.Acknowledged(old.terms, mqtt.TypePuback, mqtt.AckPacket{ID: 1}); err != nil {
		t.Error(err)
	}
	if sent, _ := c.InFlight(); sent != 2 {
		t.Error("the connection that was taken over acknowledges for the new one")
	}
}

func TestPacketIdentifiersWrapAroundWhatIsInFlight(t *testing.T) {
	b := newBench(t)
	c := b.connect("c", terms(func(t *Terms) { t.Window = 2 }))
	c.subscribe("homes/a/#", 1, 0)
	b.publish(1, "homes/a/x", "stays")
	c.said(t)
	for i := range 65536 + 10 {
		b.publish(1, "homes/a/x", "")
		said := c.said(t)
		id := uint16(0)
		if len(said) != 1 {
			t.Fatal(i, said)
		}
		fmt.Sscanf(said[0], "PUBLISH %d", &id)
		if id == 0 || id == 1 {
			t.Fatalf("message %d has the id %d", i, id)
		}
		c.ack(mqtt.TypePuback, id)
	}
}

func TestQueuesAreBounded(t *testing.T) {
	b := newBench(t, func(r *Registry) { r.QueueMax, r.QueueBytesMax, r.BytesMax = 3, 2000, 3000 })
	c := b.connect("c", terms(func(t *Terms) { t.Window = 1 }))
	c.subscribe("homes/a/#", 1, 0)
	small := 0
	for range 10 {
		small += b.publish(1, "homes/a/x", "x")
	}
	if small != 1+3 {
		t.Errorf("%d messages taken; want one in flight and three that wait", small)
	}
	c.leave(false)
	d := b.connect("d", terms(func(t *Terms) { t.Window = 1 }))
	d.subscribe("homes/b/#", 1, 0)
	large := 0
	for range 10 {
		large += b.publish(1, "homes/b/x", strings.Repeat("x", 900))
	}
	if large != 2 {
		t.Errorf("%d messages of 900 bytes taken; want 2 in 2,000 bytes", large)
	}
	e := b.connect("e")
	e.subscribe("homes/c/#", 1, 0)
	if n := b.publish(1, "homes/c/x", strings.Repeat("x", 2500)); n != 1 {
		t.Error("what fits in no queue is not sent to a client that is not behind")
	}
	if n := b.publish(1, "homes/c/x", "x"); n != 0 {
		t.Errorf("more than BytesMax is held: %d", b.bytes.Load())
	}
	for _, c := range []*client{d, e} {
		c.Expire(c.terms, 0)
		c.leave(false)
	}
	b.connect("c", clean)
	if messages, n := b.Kept(); messages != 0 || n != 0 {
		t.Errorf("%d bytes are held for nothing", n)
	}
}

func TestPacketsLargerThanTheClientTakes(t *testing.T) {
	b := newBench(t)
	c := b.connect("c")
	c.subscribe("homes/a/#", 1, 0)
	b.publish(1, "homes/a/x", strings.Repeat("x", 200))
	b.publish(1, "homes/a/x", "small")
	c.leave(false)
	b.publish(1, "homes/a/x", strings.Repeat("y", 200))
	small := terms(func(t *Terms) { t.PacketMax = 100 })
	c = b.connect("c", small)
	c.want("[MQTT-3.1.2-25] too large is as if delivered", "CONNACK present=true", "PUBLISH 2 q1 dup homes/a/x=small")
	if n := b.publish(0, "homes/a/x", strings.Repeat("z", 200)); n != 0 {
		t.Error("a QoS 0 message that is too large is sent")
	}
	c.ack(mqtt.TypePuback, 2)
	if messages, n := b.Kept(); messages != 0 || n != 0 {
		t.Errorf("%d bytes are held for nothing", n)
	}
}

func TestMessagesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		c := b.connect("c", terms(func(t *Terms) { t.Window = 1 }))
		c.subscribe("homes/a/#", 1, 0)
		in := func(d time.Duration) func(*mqtt.Message) {
			return func(m *mqtt.Message) { m.Expires = time.Now().Add(d) }
		}
		b.publish(1, "homes/a/x", "sent", in(10*time.Second))
		c.leave(false)
		b.publish(1, "homes/a/x", "short", in(10*time.Second))
		b.publish(1, "homes/a/x", "long", in(60*time.Second))
		time.Sleep(20 * time.Second)
		c = b.connect("c")
		c.want("what was in flight is finished, what expired is not begun, the rest is counted down", "CONNACK present=true",
			"PUBLISH 1 q1 dup homes/a/x=sent", "PUBLISH 2 q1 homes/a/x=long expires=40")
	})
}

func TestAliases(t *testing.T) {
	b := newBench(t)
	c := b.connect("c", terms(func(t *Terms) { t.AliasMax = 2 }))
	c.subscribe("homes/a/#", 1, 0)
	c.said(t)
	for _, topic := range []string{"homes/a/x", "homes/a/x", "homes/a/y", "homes/a/z", "homes/a/z", "homes/a/y"} {
		b.publish(0, topic, "")
	}
	c.want("the first two topics", "PUBLISH 0 q0 homes/a/x=", "PUBLISH 0 q0 ~homes/a/x=", "PUBLISH 0 q0 homes/a/y=", "PUBLISH 0 q0 homes/a/z=", "PUBLISH 0 q0 homes/a/z=", "PUBLISH 0 q0 ~homes/a/y=")
	c.full = true
	b.publish(0, "homes/a/x", "")
	c.full = false
	c.leave(false)
	c = b.connect("c", terms(func(t *Terms) { t.AliasMax = 1 }))
	c.line.full = true
	b.publish(0, "homes/a/new", "")
	c.line.full = false
	b.publish(0, "homes/a/new", "")
	c.want("a new connection knows none, nor one whose packet was not sent", "CONNACK present=true", "PUBLISH 0 q0 homes/a/new=")
}

func TestQoS2IsTakenOnce(t *testing.T) {
	b := newBench(t)
	c := b.connect("c")
	if taken, wait := c.Seen(7); taken || wait != nil {
		t.Error("a new message is known")
	}
	if !c.Pend(c.terms, 7) {
		t.Fatal("its own connection may not take it")
	}
	_, wait := c.Seen(7)
	select {
	case <-wait:
		t.Error("the log has it already")
	default:
	}
	c.Take(7)
	<-wait
	c.Pend(c.terms, 8)
	c.Unpend(8)
	if taken, wait := c.Seen(8); taken || wait != nil {
		t.Error("what the log did not take is known")
	}
	old := c
	c = b.connect("c")
	if old.Pend(old.terms, 9) {
		t.Error("a connection that was taken over takes a message, which comes again on the other")
	}
	if taken, _ := c.Seen(7); !taken {
		t.Error("another connection does not know it")
	}
	if !c.Release(7) || c.Release(7) || c.in != nil {
		t.Error("it is not released once")
	}
	for _, id := range []uint16{5, 1, 9, 5} {
		c.Take(id)
	}
	if !slices.Equal(c.in.received, []uint16{1, 5, 9}) {
		t.Error(c.in.received)
	}
}
