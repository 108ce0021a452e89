package ingest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/ingest/mqtt"
)

// leaves makes a CONNECT that leaves a will, named in its payload.
func leaves(name string, delay, expiry uint32) func(*packets.Packet) {
	return func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload, pk.Connect.WillQos, pk.Connect.WillRetain = true, "homes/h1/gone", []byte(name), 1, true
		pk.Connect.WillProperties.WillDelayInterval = delay
		if expiry > 0 {
			persistent(pk)
			pk.Properties.SessionExpiryInterval = expiry
		}
	}
}

// watch subscribes to the wills, and gives those that come until then.
func (s *shared) watch() *peer {
	s.t.Helper()
	p := s.connect(5, "app", "watch-"+s.Instance)
	p.send(subscribeOf(1, 0, "homes/h1/gone"))
	p.want(packets.Suback)
	return p
}

// wills waits until so many wills of clients are written down, as a gateway sees it.
func (s *shared) wills(n int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%s knows %d wills", s.Instance, n), func() bool {
		found := 0
		for _, rec := range s.near.tables[1].Scan("") {
			if strings.Contains(rec.Key, "/will/") {
				found++
			}
		}
		return found == n
	})
}

// TestWillsOfAGatewayThatIsKilled: another one publishes them, each once and when its delay is over, but for those of clients that said goodbye, or
// are back.
func TestWillsOfAGatewayThatIsKilled(t *testing.T) {
	n := newNeighbourhood(t)
	a, b := n.start("a", nil), n.start("b", nil)
	watch := b.watch()
	var clients []*peer
	for _, c := range []struct {
		name          string
		delay, expiry uint32
	}{{"now", 0, 0}, {"later", 2, 100}, {"back", 60, 100}, {"short", 60, 1}, {"ends", 60, 0}, {"bye", 0, 100}} {
		clients = append(clients, a.connect(5, "anna", c.name, leaves(c.name, c.delay, c.expiry)))
	}
	b.wills(6)
	bye := clients[5]
	bye.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	bye.wantEnd()
	b.wills(5)
	start := time.Now()
	a.kill(clients[:5]...)
	first := map[string]bool{}
	for range 2 {
		first[string(watch.want(packets.Publish).Payload)] = true
	}
	if !first["now"] || !first["ends"] {
		t.Errorf("at once: %v", first)
	}
	b.connect(5, "anna", "back", persistent)
	for _, want := range []struct {
		name string
		min  time.Duration
	}{{"short", time.Second}, {"later", 2 * time.Second}} {
		m := watch.want(packets.Publish)
		if took := time.Since(start); string(m.Payload) != want.name || took < want.min {
			t.Errorf("%s after %s; want %s after %s", m.Payload, took, want.name, want.min)
		}
	}
	b.wills(0)
	c := n.start("c", func(g *Gateway) { g.Peers.Heartbeat = 50 * time.Millisecond })
	eventually(t, "the retained one is everywhere", func() bool {
		last := ""
		c.Retained.Match("h1", "homes/h1/gone", func(m *mqtt.Message) { last = string(m.Payload) })
		return last == "later"
	})
	watch.silent()
}

// TestAWillComesBeforeItsClientIsBack: who takes up the session of a gateway that is dead, and not known to be, publishes the will first:
// what the client says of itself then comes behind it.
func TestAWillComesBeforeItsClientIsBack(t *testing.T) {
	n := newNeighbourhood(t)
	slow := func(g *Gateway) { g.Peers.Heartbeat, g.Peers.CallTimeout = 400*time.Millisecond, 200*time.Millisecond }
	a, b := n.start("a", slow), n.start("b", slow)
	watch := b.watch()
	hub := a.connect(5, "anna", "hub", leaves("gone", 0, 100))
	a.connect(5, "anna", "other", leaves("other", 60, 100)).conn.Close()
	store := b.Sessions.(*sharedSessions)
	eventually(t, "it is stored", func() bool { return len(store.table.Scan("anna/")) == 1 })
	other := a.connect(5, "anna", "other", leaves("other", 60, 100))
	eventually(t, "it is back", func() bool { _, away := a.registry.Len(); return away == 0 })
	b.wills(2)
	a.kill(hub, other)
	hub = b.connect(5, "anna", "hub", leaves("gone again", 0, 100))
	hub.send(retainedOf("homes/h1/gone", "back", 1, 1))
	hub.want(packets.Puback)
	for _, want := range []string{"gone", "back"} {
		if m := watch.want(packets.Publish); string(m.Payload) != want {
			t.Errorf("%s; want %s", m.Payload, want)
		}
	}
	// A clean start ends the session that the other left, and its will need not wait.
	b.connect(5, "anna", "other")
	if m := watch.want(packets.Publish); string(m.Payload) != "other" {
		t.Errorf("%s", m.Payload)
	}
	eventually(t, "what it had is taken away", func() bool { return b.near.mesh.Stats().Retired == 1 })
	watch.silent()
	b.wills(1)
}

// TestWillsOutliveARestart: of a client that had left before, in time, and of one that was connected.
func TestWillsOutliveARestart(t *testing.T) {
	n := newNeighbourhood(t)
	a := n.start("a", nil)
	start := time.Now()
	a.connect(5, "anna", "left", leaves("left", 8, 100)).conn.Close()
	a.wills(1)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	n.all = nil
	a = n.start("a", nil)
	watch := a.watch()
	if m := watch.want(packets.Publish); string(m.Payload) != "left" || time.Since(start) < 8*time.Second {
		t.Errorf("%s after %s", m.Payload, time.Since(start))
	}
	a.wills(0)
	here := a.connect(5, "anna", "here", leaves("here", 0, 100))
	a.wills(1)
	a.kill(here)
	a = n.start("a", nil)
	watch = a.watch()
	if m := watch.want(packets.Publish); string(m.Payload) != "here" && !(m.FixedHeader.Retain && string(watch.want(packets.Publish).Payload) == "here") {
		t.Errorf("%s", m.Payload)
	}
	a.wills(0)
	watch.silent()
}

// TestAGatewayThatWakesUpRepeatsNoWill: the others took it for dead, and have published what its clients left.
func TestAGatewayThatWakesUpRepeatsNoWill(t *testing.T) {
	n := newNeighbourhood(t)
	a, b := n.start("a", nil), n.start("b", nil)
	watch := b.watch()
	hub := a.connect(5, "anna", "hub", leaves("gone", 0, 100))
	stays := a.connect(5, "anna", "stays", leaves("stays", 0, 100))
	b.wills(2)
	a.stall()
	eventually(t, "it does not know what is", func() bool { return !a.near.mesh.Sure() })
	hub.conn.Close()
	for range 2 {
		watch.want(packets.Publish)
	}
	b.wills(0) // one that woke up in between would find them
	a.gate.unshut()
	eventually(t, "it has let the client go", func() bool { return a.Stats().Connections == 1 })
	eventually(t, "it is back", func() bool { return b.near.mesh.Stats().Others == 1 && a.near.mesh.Sure() })
	stays.conn.Close()
	eventually(t, "both are away", func() bool { _, away := a.registry.Len(); return away == 2 })
	watch.silent()
}
