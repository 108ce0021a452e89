package ingest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/ingest/mqtt"
	"hearthline/ingest/session"
	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

// knows waits until a gateway knows who has a session.
func (s *shared) knows(user, client string, holder *shared) {
	s.t.Helper()
	key := sessionKey(session.Key{User: user, Client: client}) + "/" + holder.Instance + "~"
	eventually(s.t, s.Instance+" knows who has the session", func() bool { return len(s.near.tables[1].Scan(key)) > 0 })
}

// TestALiveSessionMoves lets a client connect to one gateway while another still has its connection: it gets all of its session.
func TestALiveSessionMoves(t *testing.T) {
	for _, v := range [][2]byte{{4, 4}, {5, 5}, {4, 5}} {
		t.Run(fmt.Sprintf("v%d then v%d", v[0], v[1]), func(t *testing.T) {
			n := newNeighbourhood(t)
			a, b := n.start("a", nil), n.start("b", nil)
			window := func(pk *packets.Packet) { persistent(pk); pk.Properties.ReceiveMaximum = 3 }
			old := a.connect(v[0], "app", "moves", window)
			old.send(subscribeOf(1, 2, "homes/h1/news"))
			old.want(packets.Suback)
			for i := range 4 {
				if n, err := a.Send("h1", "news", []byte(fmt.Sprint(i)), byte(1+i%2)); n != 1 || err != nil {
					t.Fatal(n, err)
				}
			}
			var ids []uint16
			for range map[byte]int{4: 4, 5: 3}[v[0]] { // MQTT 3.1.1 has no receive maximum
				ids = append(ids, old.want(packets.Publish).PacketID)
			}
			old.send(ackOf(packets.Pubrec, ids[1]))
			old.wantID(packets.Pubrel, ids[1], 0)
			old.send(publishOf("homes/h1/x", "once", 2, 9)) // and no PUBREL
			old.wantID(packets.Pubrec, 9, 0)
			b.knows("app", "moves", a)
			before := b.Stats().LiveMessages

			fresh, ack := b.connack(v[1], "app", "moves", window)
			if !ack.SessionPresent {
				t.Fatal("the session is not there")
			}
			if code := old.wantEnd(); v[0] == 5 && code != mqtt.CodeTakenOver {
				t.Errorf("the old connection ended with %#x", code)
			}
			if m := fresh.want(packets.Publish); m.PacketID != ids[0] || !m.FixedHeader.Dup || string(m.Payload) != "0" || m.FixedHeader.Qos != 1 {
				t.Errorf("first %+v", m)
			}
			fresh.wantID(packets.Pubrel, ids[1], 0)
			if m := fresh.want(packets.Publish); m.PacketID != ids[2] || !m.FixedHeader.Dup || string(m.Payload) != "2" {
				t.Errorf("third %+v", m)
			}
			fresh.send(ackOf(packets.Puback, ids[0]))
			m := fresh.want(packets.Publish)
			if string(m.Payload) != "3" || m.FixedHeader.Qos != 2 || m.FixedHeader.Dup != (v[0] == 4) {
				t.Errorf("what waited: %+v", m)
			}
			// A QoS 2 message that the first gateway has taken is not taken again.
			fresh.send(again(publishOf("homes/h1/x", "once", 2, 9)))
			fresh.wantID(packets.Pubrec, 9, 0)
			fresh.send(ackOf(packets.Pubrel, 9))
			fresh.wantID(packets.Pubcomp, 9, 0)
			if now := b.Stats().LiveMessages; now != before {
				t.Error("the message is taken twice")
			}
			if n, err := b.Send("h1", "news", []byte("here"), 0); n != 1 || err != nil {
				t.Errorf("the subscription is not in force: %d, %v", n, err)
			}
			eventually(t, "the first has let go", func() bool { all, _ := a.registry.Len(); return all == 0 && a.audience.Len() == 0 })
			if a.Stats().SessionsLost > 0 {
				t.Error("something was lost")
			}
		})
	}
}

// TestASessionGoesBackAndForth moves a session between gateways while messages wait: each arrives, and none again that was answered.
func TestASessionGoesBackAndForth(t *testing.T) {
	n := newNeighbourhood(t)
	at := []*shared{n.start("a", nil), n.start("b", nil), n.start("c", nil)}
	answered := map[string]bool{}
	p := at[0].connect(5, "app", "moves", persistent)
	p.send(subscribeOf(1, 2, "homes/h1/news"))
	p.want(packets.Suback)
	at[1].knows("app", "moves", at[0])
	at[2].knows("app", "moves", at[0])
	// hear answers so many messages, and leaves those that come behind them.
	hear := func(most int) {
		t.Helper()
		for asked := most == 0; ; {
			if asked {
				p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
				asked = false
			}
			pk, err := p.read()
			if err != nil {
				t.Fatal(err)
			}
			switch kind := pk.FixedHeader.Type; {
			case kind == packets.Pingresp:
				return
			case kind == packets.Pubrel:
				p.send(ackOf(packets.Pubcomp, pk.PacketID))
			case kind != packets.Publish:
				t.Fatalf("packet type %d", kind)
			case answered[string(pk.Payload)]:
				t.Errorf("%s comes again", pk.Payload)
			case most > 0:
				answered[string(pk.Payload)] = true
				p.send(ackOf(map[byte]byte{1: packets.Puback, 2: packets.Pubrec}[pk.FixedHeader.Qos], pk.PacketID))
				most--
				asked = most == 0
			}
		}
	}
	const moves, each = 12, 5
	for i := range moves {
		here, next := at[i%3], at[(i+1)%3]
		for k := range each {
			// To this gateway alone: what is passed on between gateways just now may be lost, or come twice.
			m := &mqtt.Message{Topic: "homes/h1/news", Payload: []byte(fmt.Sprint(i, ".", k)), Qos: byte(1 + k%2)}
			if n, _ := here.audience.Publish("h1", m, nil); n != 1 {
				t.Fatalf("move %d: the subscription is not in force", i)
			}
		}
		hear(i % each)
		var ack packets.Packet
		if p, ack = next.connack(5, "app", "moves", persistent); !ack.SessionPresent {
			t.Fatalf("move %d: the session is lost", i)
		}
	}
	hear(moves*each - len(answered))
	p.silent()
}

// TestTheLastHolderSaves: a gateway that stood still while its client went elsewhere does not write over what its session is now.
func TestTheLastHolderSaves(t *testing.T) {
	n := newNeighbourhood(t)
	a, b := n.start("a", nil), n.start("b", nil)
	old := a.connect(5, "app", "moves", persistent)
	old.send(subscribeOf(1, 1, "homes/h1/old"))
	old.want(packets.Suback)
	b.knows("app", "moves", a)
	a.stall()
	start := time.Now()
	fresh, ack := b.connack(5, "app", "moves", persistent)
	if took := time.Since(start); ack.SessionPresent || took > 3*time.Second {
		t.Errorf("present %t after %s; nothing was stored", ack.SessionPresent, took)
	}
	fresh.send(subscribeOf(1, 1, "homes/h1/new"))
	fresh.want(packets.Suback)
	fresh.conn.Close()
	key := sessionKey(session.Key{User: "app", Client: "moves"})
	stored := func(r *shared) string {
		rec, _ := r.Sessions.(*sharedSessions).table.Get(key)
		return string(rec.Value)
	}
	eventually(t, "what it is now is stored", func() bool { return strings.Contains(stored(b), "homes/h1/new") })
	old.conn.Close() // the gateway that stands still lets it rest, and wants to store it
	a.gate.unshut()
	eventually(t, "who stood still has let go", func() bool { all, _ := a.registry.Len(); return all == 0 })
	late := session.State{Key: session.Key{User: "app", Client: "moves"}, Expiry: 100, Away: time.Now()}
	if err := a.Sessions.Save(t.Context(), &late); err != nil {
		t.Error(err)
	}
	_, ack = a.connack(5, "app", "moves", persistent)
	if n, _ := a.Send("h1", "new", []byte("x"), 1); !ack.SessionPresent || n != 1 {
		t.Errorf("present %t, %d sessions: %s", ack.SessionPresent, n, stored(a))
	}
}

// TestLaterClaim holds the rule of stored sessions to what it must do, over a log that is compacted.
func TestLaterClaim(t *testing.T) {
	log := tabletest.NewLog(1)
	rule := func(tab *table.Table) { tab.Rule = laterClaim }
	one, _ := tabletest.Start(t, log, rule)
	two, _ := tabletest.Start(t, log, rule)
	record := func(at place, client string) []byte {
		text, err := json.Marshal(kept{Place: at, State: &session.State{Key: session.Key{User: "u", Client: client}}})
		if err != nil || placeOf(text) != at {
			t.Fatalf("%s is read as %v, not as %v: %v", text, placeOf(text), at, err)
		}
		return text
	}
	for _, step := range []struct {
		at    place
		stays bool
	}{{place{7, 1, 0}, true}, {place{7, 2, 1700000000}, true}, {place{6, 99, 0}, false}, {place{7, 1, 0}, false}, {place{12, 1, 5}, true}, {place{7, 3, 0}, false}} {
		was, _ := one.Get("u/c")
		text := record(step.at, fmt.Sprint(step.at))
		at, err := two.Put(t.Context(), "u/c", text)
		if err != nil || one.Reached(t.Context(), at) != nil {
			t.Fatal(err)
		}
		if is, _ := one.Get("u/c"); (string(is.Value) == string(text)) != step.stays || !step.stays && string(is.Value) != string(was.Value) {
			t.Errorf("after %v: %s", step.at, is.Value)
		}
	}
	eventually(t, "compaction does not bring it back", func() bool {
		log.Compact()
		late, stop := tabletest.Start(t, log, rule)
		rec, _ := late.Get("u/c")
		stop()
		return placeOf(rec.Value) == place{12, 1, 5}
	})
	for _, text := range []string{"", "{}", `{"place":[`, `{"place":[1`, `{"place":["x"]}`, `{"place":[1,2,3,4,5]}`} {
		if at := placeOf([]byte(text)); at[0] > 1 {
			t.Errorf("%q is read as %v", text, at)
		}
	}
}

// TestSessionsThatHaveEndedAreSweptAway deletes what is past its time, and nothing else.
func TestSessionsThatHaveEndedAreSweptAway(t *testing.T) {
	n := newNeighbourhood(t)
	a := n.start("a", nil)
	store := a.Sessions.(*sharedSessions)
	for _, c := range []struct {
		client string
		expiry uint32
	}{{"short", 1}, {"long", 10000}, {"ends", 10000}} {
		p := a.connect(5, "app", c.client, persistent, func(pk *packets.Packet) { pk.Properties.SessionExpiryInterval = c.expiry })
		p.conn.Close()
	}
	eventually(t, "all are stored", func() bool { return len(store.table.Scan("app/")) == 3 })
	a.connect(5, "app", "ends") // a clean start
	sweep := func(after time.Duration) string {
		if err := store.table.SweepOnce(t.Context(), func(rec table.Record) bool { return expired(rec, time.Now().Add(sweepAfter+after)) }); err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, rec := range store.table.Scan("app/") {
			left = append(left, strings.TrimPrefix(rec.Key, "app/"))
		}
		return strings.Join(left, " ")
	}
	if got := sweep(-time.Minute); got != "ends long short" {
		t.Errorf("%s is left", got)
	}
	eventually(t, "the short one goes", func() bool { return sweep(time.Minute) == "ends long" })
	eventually(t, "then what is remembered of an end", func() bool { return sweep(endedKeep+time.Minute) == "long" })
}

// TestRealClientsMoveBetweenGateways has each client connect to one gateway while another still has its connection, and go back.
func TestRealClientsMoveBetweenGateways(t *testing.T) {
	for name, make := range makers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNeighbourhood(t)
			a, b := n.start("a", nil), n.start("b", nil)
			one, two := make(t, a.rig, "anna"), make(t, b.rig, "anna")
			if mustConnect(t, one, "moves", false) {
				t.Error("a session out of nothing")
			}
			must(t, one.subscribe("homes/h1/news", 2))
			b.knows("anna", "moves", a)
			if !mustConnect(t, two, "moves", false) {
				t.Fatal("the session is lost")
			}
			if code := one.heard().end(t); strings.Contains(name, "5") && code != mqtt.CodeTakenOver {
				t.Errorf("it is told %#x; want 0x8e", code)
			}
			if sent, err := b.Send("h1", "news", []byte("over there"), 2); sent != 1 || err != nil {
				t.Error(sent, err)
			}
			if m := two.heard().next(t); m.Payload != "over there" || m.Qos != 2 {
				t.Errorf("%+v", m)
			}
			eventually(t, "it has answered", func() bool { return b.Stats().KeptMessages == 0 })
			two.drop()
			two.heard().end(t)
			eventually(t, "it is away", func() bool { _, away := b.registry.Len(); return away == 1 })
			if sent, err := b.Send("h1", "news", []byte("while away"), 1); sent != 1 || err != nil {
				t.Error(sent, err)
			}
			eventually(t, "the first has let go", func() bool { all, _ := a.registry.Len(); return all == 0 })
			if !mustConnect(t, one, "moves", false) {
				t.Fatal("the session is lost on its way back")
			}
			if m := one.heard().next(t); m.Payload != "while away" || m.Qos != 1 {
				t.Errorf("%+v", m)
			}
			done(t, one)
		})
	}
}

// TestLargeSessionsAreStoredInParts: what waits for a client is stored however much it is; what is stored in the end is whole, and nothing
// is left of what was before.
func TestLargeSessionsAreStoredInParts(t *testing.T) {
	n := newNeighbourhood(t)
	a := n.start("a", nil)
	store := a.Sessions.(*sharedSessions)
	k := session.Key{User: "app", Client: "large"}
	p := a.connect(5, "app", "large", persistent)
	p.send(subscribeOf(1, 1, "homes/h1/news"))
	p.want(packets.Suback)
	p.conn.Close()
	eventually(t, "it is away", func() bool { _, away := a.registry.Len(); return away == 1 })
	const messages = 12
	stored := func(t *testing.T, want int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d messages are stored", want), func() bool {
			st, err := store.stored(k)
			if err != nil {
				t.Fatal(err)
			}
			return st != nil && len(st.Queue) == want
		})
	}
	for i := range messages {
		body := strings.Repeat(fmt.Sprint(i%10), 80_000)
		if n, err := a.Send("h1", "news", []byte(body), 1); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if i%4 == 3 {
			stored(t, i+1)
		}
	}
	parts := len(store.table.Scan(sessionKey(k) + "/"))
	if rec, _ := store.table.Get(sessionKey(k)); parts != int(placeOf(rec.Value)[placeParts]) || parts < 3 {
		t.Errorf("%d parts stand there, %v are meant", parts, placeOf(rec.Value))
	}
	// A part of a later save that was cut short changes nothing.
	cut, err := json.Marshal(kept{Place: place{placeEpoch: 1 << 40}})
	rec, _ := store.table.Get(sessionKey(k))
	if _, err2 := store.table.Put(t.Context(), partKey(k, 1-placeOf(rec.Value)[placeSlot], 0), cut); err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	stored(t, messages)
	a.kill()
	b := n.start("b", nil)
	p, ack := b.connack(5, "app", "large", persistent)
	if !ack.SessionPresent {
		t.Fatal("the session is lost")
	}
	for i := range messages {
		m := p.want(packets.Publish)
		if len(m.Payload) != 80_000 || string(m.Payload[:1]) != fmt.Sprint(i%10) {
			t.Fatalf("message %d: %d bytes of %s", i, len(m.Payload), m.Payload[:1])
		}
		p.send(ackOf(packets.Puback, m.PacketID))
	}
	p.silent()
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	p.wantEnd()
	later := b.Sessions.(*sharedSessions)
	eventually(t, "what was stored before is gone", func() bool {
		rec, _ := later.table.Get(sessionKey(k))
		return len(later.table.Scan(sessionKey(k)+"/")) == 0 && placeOf(rec.Value)[placeParts] == 0 && len(rec.Value) < 10_000
	})
	if a.Stats().SessionsUnsaved > 0 {
		t.Error("it could not be stored at times")
	}
}
