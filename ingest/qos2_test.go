package ingest

import (
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func ackOf(kind byte, id uint16, code ...byte) packets.Packet {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: kind}, PacketID: id}
	if kind == packets.Pubrel {
		pk.FixedHeader.Qos = 1
	}
	if len(code) > 0 {
		pk.ReasonCode = code[0]
	}
	return pk
}

// again is a PUBLISH sent again.
func again(pk packets.Packet) packets.Packet {
	pk.FixedHeader.Dup = true
	return pk
}

// persistent asks for a session of an hour; version 3.1.1 can only ask for one that is kept.
func persistent(pk *packets.Packet) {
	pk.Connect.Clean = false
	pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 3600, true
}

func (p *peer) wantID(kind byte, id uint16, code byte) {
	p.t.Helper()
	if pk := p.want(kind); pk.PacketID != id || pk.ReasonCode != code {
		p.t.Fatalf("packet type %d of id %d, %#x; want %d, %#x", kind, pk.PacketID, pk.ReasonCode, id, code)
	}
}

// silent says that nothing more comes, by a PINGRESP that comes first.
func (p *peer) silent() {
	p.t.Helper()
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	p.want(packets.Pingresp)
}

// TestQoS2IntoTheLog publishes telemetry with QoS 2: it is answered when the log has it, and is there once however often it is sent.
func TestQoS2IntoTheLog(t *testing.T) {
	for _, version := range []byte{4, 5} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			r := newRig(t, nil)
			p := r.connect(version, "anna", "a", persistent)
			first := publishOf(lampTopic, reading, 2, 7)
			p.send(first)
			p.wantID(packets.Pubrec, 7, 0)
			if n := len(r.road.events()); n != 1 {
				t.Fatalf("%d rows in the log when PUBREC comes", n)
			}
			p.send(again(first))
			p.wantID(packets.Pubrec, 7, 0)

			r.road.failing.Store(true)
			second := publishOf(lampTopic, reading, 2, 8)
			p.send(second)
			p.silent()
			p.conn.Close() // before the log has it
			p = r.connect(version, "anna", "a", persistent)
			p.send(again(first))
			p.wantID(packets.Pubrec, 7, 0)
			p.send(again(second)) // waits for the log, not taken again
			eventually(t, "it is held", func() bool { return r.Stats().Held > 0 })
			r.road.failing.Store(false)
			p.wantID(packets.Pubrec, 8, 0)
			for _, id := range []uint16{7, 8} {
				p.send(ackOf(packets.Pubrel, id))
				p.wantID(packets.Pubcomp, id, 0)
			}
			if n := len(r.road.events()); n != 2 {
				t.Errorf("%d rows in the log; want 2", n)
			}
			p.send(first) // released: the id is free for another message
			p.wantID(packets.Pubrec, 7, 0)
			if n := len(r.road.events()); n != 3 {
				t.Errorf("%d rows in the log; want 3", n)
			}
			unknown := byte(0)
			if version == 5 {
				unknown = 0x92
			}
			p.send(ackOf(packets.Pubrel, 99))
			p.wantID(packets.Pubcomp, 99, unknown)
		})
	}
}

func TestQoS2IsRefusedByItsPUBREC(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect(5, "anna", "a")
	for _, c := range []struct {
		topic, payload string
		code           byte
	}{{lampTopic, "{", 0x99}, {"homes/h2/x", "x", 0x87}} {
		for range 2 { // a refused id is free at once
			p.send(publishOf(c.topic, c.payload, 2, 5))
			p.wantID(packets.Pubrec, 5, c.code)
		}
	}
	old := r.connect(4, "anna", "b")
	old.send(publishOf(lampTopic, "{", 2, 5)) // 3.1.1 can only say yes
	old.wantID(packets.Pubrec, 5, 0)
	old.send(ackOf(packets.Pubrel, 5))
	old.wantID(packets.Pubcomp, 5, 0)
}

// TestQoS2CountsUntilItIsReleased holds a version 5 client to the receive maximum (section 4.9).
func TestQoS2CountsUntilItIsReleased(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.ReceiveMaximum = 3 })
	p := r.connect(5, "anna", "a", persistent)
	for round := range 3 {
		for id := range uint16(3) {
			p.send(publishOf("homes/h1/x", "x", 2, id+1))
			p.wantID(packets.Pubrec, id+1, 0)
		}
		if round < 2 {
			for id := range uint16(3) {
				p.send(ackOf(packets.Pubrel, id+1))
				p.wantID(packets.Pubcomp, id+1, 0)
			}
		}
	}
	p.send(publishOf("homes/h1/x", "x", 2, 4))
	if code := p.wantEnd(); code != 0x93 {
		t.Errorf("%#x", code)
	}
	p = r.connect(5, "anna", "a", persistent) // a new connection has its quota anew
	for id := range uint16(3) {
		p.send(publishOf("homes/h1/x", "x", 2, id+10))
		p.wantID(packets.Pubrec, id+10, 0)
	}
}

func TestQoS2ToASubscriber(t *testing.T) {
	for _, version := range []byte{4, 5} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			r := newRig(t, nil)
			sub := r.connect(version, "app", "s", persistent)
			sub.send(subscribeOf(1, 2, "homes/h1/#"))
			if ack := sub.want(packets.Suback); ack.ReasonCodes[0] != 2 {
				t.Fatalf("granted %#x", ack.ReasonCodes[0])
			}
			p := r.connect(version, "anna", "a")
			p.send(publishOf("homes/h1/x", "once", 2, 1))
			p.send(publishOf("homes/h1/x", "once", 2, 1)) // the client had no answer
			p.wantID(packets.Pubrec, 1, 0)
			p.wantID(packets.Pubrec, 1, 0)
			m := sub.want(packets.Publish)
			if m.FixedHeader.Qos != 2 || m.FixedHeader.Dup || string(m.Payload) != "once" {
				t.Fatalf("%+v", m)
			}
			sub.silent() // the repetition was not delivered
			sub.conn.Close()
			sub = r.connect(version, "app", "s", persistent)
			if d := sub.want(packets.Publish); d.PacketID != m.PacketID || !d.FixedHeader.Dup {
				t.Fatalf("%+v", d)
			}
			sub.send(ackOf(packets.Pubrec, m.PacketID))
			sub.wantID(packets.Pubrel, m.PacketID, 0)
			sub.conn.Close()
			sub = r.connect(version, "app", "s", persistent)
			sub.wantID(packets.Pubrel, m.PacketID, 0) // and not the message
			sub.send(ackOf(packets.Pubcomp, m.PacketID))
			sub.silent()
		})
	}
}

// TestQoS2InAnOutage publishes while the log comes and goes, on connections that are cut at any time.
func TestQoS2InAnOutage(t *testing.T) {
	r := newRig(t, nil)
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				r.road.failing.Store(false)
				return
			case <-time.After(7 * time.Millisecond):
				r.road.failing.Store(i%4 == 0) // seldom enough that no message meets it ten times in a row, with pauses that grow
			}
		}
	}()
	const messages = 60
	p := r.connect(5, "anna", "a", persistent)
	for id := uint16(1); id <= messages; id++ {
		pk := publishOf(lampTopic, fmt.Sprintf(`{"metric":"power","value":%d}`, id), 2, id)
		if id%3 == 0 { // cut before the answer, and sent again
			p.send(pk)
			p.conn.Close()
			p = r.connect(5, "anna", "a", persistent)
			pk = again(pk)
		}
		p.send(pk)
		p.wantID(packets.Pubrec, id, 0)
		if id%5 == 0 {
			p.conn.Close()
			p = r.connect(5, "anna", "a", persistent)
			p.send(again(pk))
			p.wantID(packets.Pubrec, id, 0)
		}
		p.send(ackOf(packets.Pubrel, id))
		p.wantID(packets.Pubcomp, id, 0)
	}
	close(stop)
	<-stopped
	seen := map[float64]int{}
	for _, e := range r.road.events() {
		seen[e.Value]++
	}
	for id := range messages {
		if n := seen[float64(id+1)]; n != 1 {
			t.Errorf("message %d is in the log %d times", id+1, n)
		}
	}
}
