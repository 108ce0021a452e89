package ingest

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/ingest/mqtt"
	"hearthline/ingest/session"
)

// connack connects and gives the CONNACK.
func (r *rig) connack(version byte, user, client string, change ...func(*packets.Packet)) (*peer, packets.Packet) {
	r.t.Helper()
	p := r.dial()
	p.version = version
	pk := connectPacketOf(r, user, client)
	for _, f := range change {
		f(&pk)
	}
	p.send(pk)
	return p, p.want(packets.Connack)
}

func TestSessionPresent(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.SessionExpiryMax = time.Hour })
	expiry := func(seconds uint32) func(*packets.Packet) {
		return func(pk *packets.Packet) { persistent(pk); pk.Properties.SessionExpiryInterval = seconds }
	}
	clean := func(pk *packets.Packet) { pk.Connect.Clean = true }
	for i, c := range []struct {
		version byte
		change  func(*packets.Packet)
		present bool
		told    uint32 // session expiry interval of CONNACK, where it is another than was asked for
	}{
		{5, expiry(60), false, 0}, {5, expiry(60), true, 0}, {4, persistent, true, 0}, {5, expiry(0xffffffff), true, 3600}, {5, expiry(7200), true, 3600},
		{5, clean, false, 0}, {5, expiry(60), false, 0}, {4, clean, false, 0}, {4, persistent, false, 0}, {4, persistent, true, 0}, {5, expiry(0), true, 0}, {5, expiry(0), false, 0},
	} {
		p, ack := r.connack(c.version, "anna", "c", c.change)
		if ack.ReasonCode != 0 || ack.SessionPresent != c.present || ack.Properties.SessionExpiryInterval != c.told {
			t.Errorf("step %d: %#x, present %t, expiry %d; want %t, %d", i, ack.ReasonCode, ack.SessionPresent, ack.Properties.SessionExpiryInterval, c.present, c.told)
		}
		p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
		eventually(t, "it has left", func() bool { all, away := r.registry.Len(); return all == away })
	}
}

func TestDisconnectChangesTheExpiry(t *testing.T) {
	r := newRig(t, nil)
	bye := func(seconds uint32) packets.Packet {
		return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, Properties: packets.Properties{SessionExpiryInterval: seconds, SessionExpiryIntervalFlag: true}}
	}
	p := r.connect(5, "anna", "c", persistent)
	p.send(bye(0))
	p.wantEnd()
	eventually(t, "the session has ended", func() bool { all, _ := r.registry.Len(); return all == 0 })
	p = r.connect(5, "anna", "c")
	p.send(bye(10))
	if code := p.wantEnd(); code != 0x82 {
		t.Errorf("[MQTT-3.14.2-2] %#x; want 0x82", code)
	}
}

// TestMessagesWaitForAClient queues for sessions of both versions, and gives them to a connection of the other.
func TestMessagesWaitForAClient(t *testing.T) {
	for _, v := range [][2]byte{{4, 4}, {4, 5}, {5, 4}, {5, 5}} {
		t.Run(fmt.Sprintf("v%d then v%d", v[0], v[1]), func(t *testing.T) {
			r := newRig(t, nil)
			sub := r.connect(v[0], "app", "s", persistent)
			sub.send(subscribeOf(1, 1, "homes/h1/#"))
			sub.want(packets.Suback)
			sub.conn.Close()
			eventually(t, "it is away", func() bool { _, away := r.registry.Len(); return away == 1 })
			p := r.connect(5, "anna", "a")
			for i := range 5 {
				pk := publishOf("homes/h1/x", fmt.Sprint(i), byte(i%3), uint16(i+1))
				pk.Properties.MessageExpiryInterval = 600
				pk.Properties.User = []packets.UserProperty{{Key: "k", Val: fmt.Sprint(i)}}
				pk.Properties.ResponseTopic, pk.Properties.CorrelationData = "homes/h1/answer", []byte{byte(i)}
				p.send(pk)
				if i%3 > 0 {
					p.read()
				}
			}
			p.silent()
			sub, ack := r.connack(v[1], "app", "s", persistent)
			if !ack.SessionPresent {
				t.Fatal("no session")
			}
			for _, want := range []int{1, 2, 4} { // QoS 0 does not wait
				m := sub.want(packets.Publish)
				if string(m.Payload) != fmt.Sprint(want) || m.FixedHeader.Qos != 1 || m.FixedHeader.Dup {
					t.Errorf("%+v; want %d", m, want)
				}
				if x := m.Properties; v[1] == 5 && (x.MessageExpiryInterval > 600 || x.MessageExpiryInterval < 590 || len(x.User) != 1 || x.User[0].Val != fmt.Sprint(want) || x.ResponseTopic != "homes/h1/answer" || len(x.CorrelationData) != 1) {
					t.Errorf("%+v", x)
				}
				sub.send(ackOf(packets.Puback, m.PacketID))
			}
			sub.silent()
		})
	}
}

func TestWhatIsForwarded(t *testing.T) {
	r := newRig(t, nil)
	sub := r.connect(5, "app", "s", func(pk *packets.Packet) { pk.Properties.TopicAliasMaximum = 5 })
	pk := subscribeOf(1, 1, "homes/h1/#")
	pk.Properties.SubscriptionIdentifier = []int{77}
	sub.send(pk)
	sub.want(packets.Suback)
	p := r.connect(5, "anna", "a")
	for i := range 2 {
		m := publishOf("homes/h1/x", "é", 1, 1)
		m.Properties = packets.Properties{PayloadFormat: 1, PayloadFormatFlag: true, ContentType: "text/plain", ResponseTopic: "r", CorrelationData: []byte{1, 2}, User: []packets.UserProperty{{Key: "b", Val: "1"}, {Key: "a", Val: "2"}, {Key: "b", Val: "3"}}}
		p.send(m)
		p.want(packets.Puback)
		got := sub.want(packets.Publish)
		x := got.Properties
		if x.PayloadFormat != 1 || x.ContentType != "text/plain" || x.ResponseTopic != "r" || len(x.CorrelationData) != 2 || fmt.Sprint(x.User) != "[{b 1} {a 2} {b 3}]" || fmt.Sprint(x.SubscriptionIdentifier) != "[77]" {
			t.Errorf("%+v", x)
		}
		if want := []string{"homes/h1/x", ""}[i]; got.TopicName != want || x.TopicAlias != 1 {
			t.Errorf("topic %q, alias %d; want %q, 1", got.TopicName, x.TopicAlias, want)
		}
		sub.send(ackOf(packets.Puback, got.PacketID))
	}
}

func TestResponseInformation(t *testing.T) {
	r := newRig(t, nil)
	asks := func(pk *packets.Packet) { pk.Properties.RequestResponseInfo = 1 }
	one, a := r.connack(5, "anna", "one", asks)
	_, b := r.connack(5, "anna", "two", asks)
	_, none := r.connack(5, "anna", "three")
	if a.Properties.ResponseInfo == "" || a.Properties.ResponseInfo == b.Properties.ResponseInfo || none.Properties.ResponseInfo != "" {
		t.Errorf("%q, %q, %q", a.Properties.ResponseInfo, b.Properties.ResponseInfo, none.Properties.ResponseInfo)
	}
	one.send(subscribeOf(1, 1, a.Properties.ResponseInfo+"#"))
	if ack := one.want(packets.Suback); ack.ReasonCodes[0] != 1 {
		t.Errorf("%#x", ack.ReasonCodes[0])
	}
}

// TestClientsTakeWhatTheySaidTheyTake holds the gateway to a client's receive maximum and maximum packet size.
func TestClientsTakeWhatTheySaidTheyTake(t *testing.T) {
	r := newRig(t, nil)
	sub := r.connect(5, "app", "s", func(pk *packets.Packet) {
		pk.Properties.ReceiveMaximum, pk.Properties.MaximumPacketSize = 2, 60
	})
	sub.send(subscribeOf(1, 1, "homes/h1/#"))
	sub.want(packets.Suback)
	for _, payload := range []string{"1", "a message that is much too large for a client which takes sixty bytes", "2", "3"} {
		r.Send("h1", "x", []byte(payload), 1)
	}
	first := sub.want(packets.Publish)
	if m := sub.want(packets.Publish); string(first.Payload) != "1" || string(m.Payload) != "2" {
		t.Errorf("%q, %q", first.Payload, m.Payload)
	}
	sub.silent()
	sub.send(ackOf(packets.Puback, first.PacketID))
	if m := sub.want(packets.Publish); string(m.Payload) != "3" {
		t.Errorf("%q", m.Payload)
	}
	// A reason string that would be too large is left out.
	sub.send(publishOf("homes/h2/a-topic-of-another-home-with-a-long-name", "x", 1, 9))
	if ack := sub.want(packets.Puback); ack.ReasonCode != 0x87 || ack.Properties.ReasonString != "" {
		t.Errorf("%+v", ack)
	}
}

func TestDelayedWillOverTheWire(t *testing.T) {
	r := newRig(t, nil)
	sub := r.connect(5, "app", "s")
	sub.send(subscribeOf(1, 2, "homes/h1/gone"))
	sub.want(packets.Suback)
	will := func(delay uint32) func(*packets.Packet) {
		return func(pk *packets.Packet) {
			pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload, pk.Connect.WillQos, pk.Connect.WillRetain = true, "homes/h1/gone", []byte(fmt.Sprint(delay)), 2, true
			pk.Connect.WillProperties.WillDelayInterval = delay
		}
	}
	r.connect(5, "anna", "back", persistent, will(1)).conn.Close()
	eventually(t, "it is away", func() bool { _, away := r.registry.Len(); return away == 1 })
	back := r.connect(5, "anna", "back", persistent, will(0))
	r.connect(5, "anna", "gone", persistent, will(2)).conn.Close()
	start := time.Now()
	m := sub.want(packets.Publish)
	if took := time.Since(start); string(m.Payload) != "2" || m.FixedHeader.Qos != 2 || m.FixedHeader.Retain || took < 1500*time.Millisecond {
		t.Errorf("%+v after %s", m, took)
	}
	back.conn.Close()
	if m := sub.want(packets.Publish); string(m.Payload) != "0" {
		t.Errorf("%q", m.Payload)
	}
	late := r.connect(5, "app", "late")
	late.send(subscribeOf(1, 0, "homes/h1/gone"))
	late.want(packets.Suback)
	if m := late.want(packets.Publish); string(m.Payload) != "0" || !m.FixedHeader.Retain {
		t.Errorf("the will was not retained: %+v", m)
	}
}

// TestManyClientsComeAndGo makes connections, takeovers, subscriptions and messages meet in every order, and looks for what is
// left behind. It is worth most under the race detector.
func TestManyClientsComeAndGo(t *testing.T) {
	r := newRig(t, nil)
	var all sync.WaitGroup
	for i := range 6 {
		all.Add(1)
		go func() {
			defer all.Done()
			for n := range 12 {
				change := persistent
				if (i+n)%4 == 0 {
					change = func(*packets.Packet) {}
				}
				c := r.dial()
				pk := connectPacketOf(r, "anna", fmt.Sprint("c", (i+n)%4)) // four client ids for six clients
				change(&pk)
				c.conn.Write(encode(t, 5, pk))
				sub := subscribeOf(1, byte(n%3), "homes/h1/#", fmt.Sprintf("$share/g%d/homes/h1/x", n%2))
				c.conn.Write(encode(t, 5, sub))
				for id := range uint16(5) {
					c.conn.Write(encode(t, 5, publishOf("homes/h1/x", "x", byte(id%3), id+1)))
				}
				<-time.After(time.Duration(n) * time.Millisecond)
				c.conn.Close()
			}
		}()
	}
	all.Wait()
	eventually(t, "all have left", func() bool { return r.Stats().Connections == 0 && r.Stats().Sockets == 0 })
	for i := range 4 {
		p := r.connect(5, "anna", fmt.Sprint("c", i)) // a clean start ends what is left
		p.conn.Close()
	}
	eventually(t, "no session is left", func() bool { n, away := r.registry.Len(); return n == 0 && away == 0 && r.audience.Len() == 0 })
	if n, _ := r.Send("h1", "x", []byte("x"), 1); n != 0 {
		t.Errorf("%d sessions hear what nobody has subscribed to", n)
	}
}

// drawer is a session.Store that outlives a gateway.
type drawer struct {
	mu   sync.Mutex
	text map[session.Key][]byte
}

func (d *drawer) Load(_ context.Context, key session.Key) (*session.State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	text, ok := d.text[key]
	if !ok {
		return nil, nil
	}
	st := new(session.State)
	return st, json.Unmarshal(text, st)
}

func (d *drawer) Save(_ context.Context, st *session.State) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	text, err := json.Marshal(st)
	d.text[st.Key] = text
	return err
}

func (d *drawer) Delete(_ context.Context, key session.Key) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.text, key)
	return nil
}

// TestSessionsOutliveTheirGateway drains a gateway that holds sessions, of a client that is away and of one that is connected, and
// resumes them on another one that shares its store.
func TestSessionsOutliveTheirGateway(t *testing.T) {
	store := &drawer{text: map[session.Key][]byte{}}
	shared := func(g *Gateway) { g.Sessions = store }
	first := newRig(t, shared)
	for _, client := range []string{"away", "here"} {
		p := first.connect(5, "app", client, persistent)
		p.send(subscribeOf(1, 2, "homes/h1/"+client))
		p.want(packets.Suback)
		if client == "away" {
			p.conn.Close()
		}
	}
	eventually(t, "one is away", func() bool { _, away := first.registry.Len(); return away == 1 })
	hub := first.connect(5, "anna", "hub", persistent)
	hub.send(publishOf(lampTopic, reading, 2, 9))
	hub.wantID(packets.Pubrec, 9, 0)
	for _, client := range []string{"away", "here"} {
		if n, err := first.Send("h1", client, []byte("for "+client), 2); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second := newRig(t, shared)
	for _, client := range []string{"away", "here"} {
		p, ack := second.connack(4, "app", client, persistent)
		if !ack.SessionPresent {
			t.Fatalf("%s: no session", client)
		}
		if m := p.want(packets.Publish); string(m.Payload) != "for "+client || m.FixedHeader.Dup != (client == "here") {
			t.Errorf("%+v", m)
		}
		if n, _ := second.Send("h1", client, []byte("again"), 1); n != 1 {
			t.Errorf("%s: its subscription is lost", client)
		}
	}
	hub, _ = second.connack(5, "anna", "hub", persistent)
	hub.send(again(publishOf(lampTopic, reading, 2, 9)))
	hub.wantID(packets.Pubrec, 9, 0)
	hub.send(ackOf(packets.Pubrel, 9))
	hub.wantID(packets.Pubcomp, 9, 0)
	if n := len(second.road.events()); n != 0 {
		t.Errorf("a message that the first gateway has taken is taken again: %d rows", n)
	}
}

// TestNoPacketIsLargerThanTheClientTakes [MQTT-3.1.2-24]: what may be left out is; where nothing is left to say it with, the connection ends.
func TestNoPacketIsLargerThanTheClientTakes(t *testing.T) {
	r := newRig(t, nil)
	size := func(n uint32) func(*packets.Packet) {
		return func(pk *packets.Packet) {
			pk.Properties.MaximumPacketSize, pk.Properties.RequestResponseInfo, pk.Connect.Keepalive = n, 1, 10
		}
	}
	for n := uint32(1); n < 120; n++ {
		p := r.dial()
		pk := connectPacketOf(r, "anna", "small")
		size(n)(&pk)
		p.send(pk)
		raw, err := p.frame()
		switch {
		case len(raw) > int(n):
			t.Fatalf("a client that takes %d bytes gets %d", n, len(raw))
		case n < 5 && err == nil:
			t.Errorf("a client that takes %d bytes gets an answer: % x", n, raw)
		case n >= 5 && (err != nil || raw[0] != packets.Connack<<4):
			t.Errorf("a client that takes %d bytes: % x, %v", n, raw, err)
		case n >= 5 && n < 20 && raw[3] != mqtt.CodeTooLarge:
			t.Errorf("a client that takes %d bytes is answered %#x", n, raw[3])
		case n >= 30 && raw[3] != 0:
			t.Errorf("a client that takes %d bytes is answered %#x", n, raw[3])
		}
		p.conn.Close()
	}
	p := r.connect(5, "anna", "small", size(30))
	var many []string
	for i := range 25 {
		many = append(many, fmt.Sprint("homes/h1/", i))
	}
	p.send(subscribeOf(1, 0, many...))
	if raw, err := p.frame(); err != nil || raw[0] != packets.Disconnect<<4 || raw[2] != mqtt.CodeTooLarge {
		t.Errorf("a SUBACK that is too large: % x, %v", raw, err)
	}
	first := r.connect(5, "anna", "small", size(30))
	r.connect(5, "anna", "small", size(30))
	if raw, err := first.frame(); err != nil || len(raw) > 30 || raw[0] != packets.Disconnect<<4 || raw[2] != mqtt.CodeTakenOver {
		t.Errorf("a takeover: % x, %v", raw, err)
	}
	wrong := r.dial()
	pk := connectPacketOf(r, "anna", "small")
	pk.Connect.Password = []byte("wrong")
	size(12)(&pk)
	wrong.send(pk)
	if raw, err := wrong.frame(); err != nil || len(raw) > 12 || raw[3] != mqtt.CodeBadCredentials {
		t.Errorf("a refusal: % x, %v", raw, err)
	}
}

// frame gives the next packet as it is on the wire.
func (p *peer) frame() ([]byte, error) {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		_, _, _, size, err := mqtt.Frame(p.buf, 1<<20)
		if err != nil {
			p.t.Fatal(err)
		}
		if size > 0 {
			out := p.buf[:size:size]
			p.buf = p.buf[size:]
			return out, nil
		}
		more := make([]byte, 4096)
		n, err := p.conn.Read(more)
		if err != nil {
			return nil, err
		}
		p.buf = append(p.buf, more[:n]...)
	}
}
