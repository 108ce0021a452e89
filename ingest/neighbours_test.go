package ingest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/sourcegraph/conc"

	"hearthline/ingest/commands"
	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/session"
	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

// pair is two gateways that share their tables; clients trust both.
func pair(t testing.TB, set ...func(*Gateway)) (a, b *rig) {
	t.Helper()
	logs := map[string]*tabletest.Log{}
	for _, name := range Tables {
		logs[name] = tabletest.NewLog(4)
	}
	certs, err := identity.DevCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	one := func(name string) *rig {
		return newRig(t, func(g *Gateway) {
			g.Instance, g.CommandsTo = name, ""
			g.Logs = func(name string) table.Log { return logs[name] }
			g.Peers.Listen, g.Peers.Certificate, g.Peers.Key, g.Peers.CA = "127.0.0.1:0", certs.Certificate, certs.Key, certs.CA
			g.Peers.Heartbeat = 50 * time.Millisecond
			for _, set := range set {
				set(g)
			}
		})
	}
	a, b = one("a"), one("b")
	for _, r := range []*rig{a, b} {
		eventually(t, "both know each other", func() bool { return r.near.mesh.Stats().Others == 1 })
	}
	return a, b
}

// request does an HTTP request and gives the status and the answer.
func (r *rig) request(user, method, path, body string) (int, map[string]any) {
	r.t.Helper()
	status, answer, _ := r.do(method, path, strings.NewReader(body), nil, "Authorization", r.basic(user))
	var got map[string]any
	if err := json.Unmarshal([]byte(answer), &got); err != nil {
		r.t.Fatalf("%s: %v", answer, err)
	}
	return status, got
}

const commandFilter = "homes/h1/devices/+/commands"

// hub is a connected hub that hears commands.
func (r *rig) hub(user, client string) *peer {
	r.t.Helper()
	p := r.connect(5, user, client)
	p.send(subscribeOf(1, 1, commandFilter))
	p.want(packets.Suback)
	return p
}

func puback(id uint16) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: id}
}

func TestCommandsCrossGateways(t *testing.T) {
	a, b := pair(t)
	hub := a.hub("anna", "hub")
	eventually(t, "b knows where the hub is", func() bool { return b.near.mesh.Heard("h1", "homes/h1/devices/lamp/commands") })
	status, got := b.request("app", "POST", "/v1/devices/lamp/commands", `{"id":"one","name":"on","arguments":{"level":3},"ttl":30}`)
	if status != 202 || got["id"] != "one" {
		t.Fatalf("%d %v", status, got)
	}
	pk := hub.want(packets.Publish)
	var sent struct {
		ID, Name  string
		Arguments map[string]any
		Deadline  time.Time
	}
	if err := json.Unmarshal(pk.Payload, &sent); err != nil || sent.ID != "one" || sent.Name != "on" || sent.Arguments["level"] != 3.0 || time.Until(sent.Deadline) < 20*time.Second {
		t.Errorf("the hub was sent %s (%v)", pk.Payload, err)
	}
	if pk.TopicName != "homes/h1/devices/lamp/commands" || pk.FixedHeader.Qos != 1 || pk.Properties.MessageExpiryInterval == 0 || pk.Properties.ContentType != "application/json" || len(pk.Properties.User) != 1 {
		t.Errorf("the hub was sent %+v", pk)
	}
	reaches := func(state string) {
		t.Helper()
		eventually(t, "it is "+state, func() bool {
			_, got := b.request("app", "GET", "/v1/devices/lamp/commands/one", "")
			return got["state"] == state
		})
	}
	reaches("sent")
	hub.send(puback(pk.PacketID))
	reaches("delivered")
	hub.send(publishOf("homes/h1/devices/lamp/commands/one/status", `{"state":"executed"}`, 1, 7))
	if ack := hub.want(packets.Puback); ack.ReasonCode != 0 || ack.PacketID != 7 {
		t.Errorf("the report is answered %#x", ack.ReasonCode)
	}
	reaches("executed")
	// Again, by the same id, on the other gateway: nothing is sent.
	if status, got := a.request("app", "POST", "/v1/devices/lamp/commands", `{"id":"one","name":"on","arguments":{"level":3}}`); status != 200 || got["state"] != "executed" {
		t.Errorf("again: %d %v", status, got)
	}
	hub.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	hub.want(packets.Pingresp)
}

// What a hub was sent on a connection that broke is sent again on the next, on another gateway, and never after its deadline.
func TestCommandsFollowTheHub(t *testing.T) {
	a, b := pair(t)
	for i, ttl := range []string{"60", "0.5"} {
		if status, got := b.request("app", "POST", "/v1/devices/lamp/commands", fmt.Sprintf(`{"id":"c%d","name":"on","ttl":%s}`, i, ttl)); status != 202 || got["state"] != "accepted" {
			t.Fatalf("%d %v", status, got)
		}
	}
	eventually(t, "the short one has expired", func() bool {
		_, got := a.request("app", "GET", "/v1/devices/lamp/commands/c1", "")
		return got["state"] == "expired"
	})
	// A session that is kept does not keep what was handed to its connection.
	kept := func(p *packets.Packet) {
		p.Properties.SessionExpiryInterval, p.Properties.SessionExpiryIntervalFlag = 100, true
		p.Connect.Clean = false
	}
	hub := a.connect(5, "anna", "hub", kept)
	hub.send(subscribeOf(1, 1, commandFilter))
	hub.want(packets.Suback)
	if pk := hub.want(packets.Publish); !strings.Contains(string(pk.Payload), `"c0"`) {
		t.Fatalf("the hub that came was sent %s", pk.Payload)
	}
	hub.conn.Close()
	eventually(t, "it has gone", func() bool { return a.Stats().Connections == 0 })
	hub = a.connect(5, "anna", "hub", kept)
	if pk := hub.want(packets.Publish); !strings.Contains(string(pk.Payload), `"c0"`) {
		t.Fatalf("the hub that came back was sent %s", pk.Payload)
	}
	again := b.hub("anna", "hub")
	if pk := again.want(packets.Publish); !strings.Contains(string(pk.Payload), `"c0"`) {
		t.Fatalf("the hub that went over was sent %s", pk.Payload)
	}
	if code := hub.wantEnd(); code != mqtt.CodeTakenOver {
		t.Errorf("its old connection ended with %#x", code)
	}
}

func TestCommandsByMQTT(t *testing.T) {
	a, b := pair(t)
	hub := a.hub("anna", "hub")
	eventually(t, "b knows where the hub is", func() bool { return b.near.mesh.Heard("h1", "homes/h1/devices/lamp/commands") })
	app := b.connect(5, "app", "phone")
	app.send(subscribeOf(1, 1, "homes/h1/responses/phone"))
	app.want(packets.Suback)
	ask := publishOf("homes/h1/devices/lamp/commands", `{"id":"one","name":"on"}`, 1, 5)
	ask.Properties.ResponseTopic, ask.Properties.CorrelationData = "homes/h1/responses/phone", []byte("abc")
	app.send(ask)
	pk := hub.want(packets.Publish)
	hub.send(puback(pk.PacketID))
	hub.send(publishOf("homes/h1/devices/lamp/commands/one/status", `{"state":"failed","detail":"jammed"}`, 1, 7))
	hub.want(packets.Puback)
	var states []string
	acked := false
	for len(states) < 4 || !acked {
		pk, err := app.read()
		if err != nil {
			t.Fatal(err, states)
		}
		if pk.FixedHeader.Type == packets.Puback {
			acked = true
			if pk.ReasonCode != 0 || pk.PacketID != 5 {
				t.Errorf("the request is answered %#x", pk.ReasonCode)
			}
			continue
		}
		var got map[string]any
		if err := json.Unmarshal(pk.Payload, &got); err != nil || string(pk.Properties.CorrelationData) != "abc" {
			t.Fatalf("%s, %v, correlation %q", pk.Payload, err, pk.Properties.CorrelationData)
		}
		states = append(states, got["state"].(string))
		app.send(puback(pk.PacketID))
	}
	if got := strings.Join(states, " "); got != "accepted sent delivered failed" {
		t.Errorf("the app was told %s", got)
	}
	// What cannot be: a malformed request, and one of those who may not.
	app.send(publishOf("homes/h1/devices/lamp/commands", `{"nome":"on"}`, 1, 6))
	if ack := app.want(packets.Puback); ack.ReasonCode != mqtt.CodePayloadFormat {
		t.Errorf("a malformed request is answered %#x", ack.ReasonCode)
	}
	hub.send(publishOf("homes/h1/devices/lamp/commands", `{"name":"on"}`, 1, 8))
	if ack := hub.want(packets.Puback); ack.ReasonCode != mqtt.CodeNotAuthorized {
		t.Errorf("a hub that commands is answered %#x", ack.ReasonCode)
	}
	app.send(publishOf("homes/h1/devices/lamp/commands/one/status", `{"state":"executed"}`, 1, 9))
	if ack := app.want(packets.Puback); ack.ReasonCode != mqtt.CodeNotAuthorized {
		t.Errorf("an app that reports is answered %#x", ack.ReasonCode)
	}
}

func TestSubscribersOnOtherGateways(t *testing.T) {
	a, b := pair(t)
	app := b.connect(5, "app", "phone")
	app.send(subscribeOf(1, 1, "homes/h1/#"))
	app.want(packets.Suback)
	stranger := b.connect(5, "bert", "phone")
	stranger.send(subscribeOf(1, 1, "homes/h2/#"))
	stranger.want(packets.Suback)
	eventually(t, "a knows who listens", func() bool { return a.near.mesh.Heard("h1", "homes/h1/x") })
	hub := a.connect(5, "anna", "hub")
	hub.send(publishOf(lampTopic, reading, 1, 1))
	hub.want(packets.Puback)
	if pk := app.want(packets.Publish); pk.TopicName != lampTopic || string(pk.Payload) != reading || pk.FixedHeader.Qos != 1 {
		t.Errorf("the app on the other gateway got %+v", pk)
	} else {
		app.send(puback(pk.PacketID))
	}
	state := publishOf("homes/h1/state", "on", 1, 2)
	state.FixedHeader.Retain = true
	hub.send(state)
	hub.want(packets.Puback)
	if pk := app.want(packets.Publish); pk.TopicName != "homes/h1/state" || string(pk.Payload) != "on" {
		t.Errorf("the app on the other gateway got %+v", pk)
	}
	// Retained messages are everywhere.
	eventually(t, "b has the retained message", func() bool {
		n := 0
		b.Retained.Match("h1", "homes/h1/state", func(*mqtt.Message) { n++ })
		return n == 1
	})
	late := b.connect(5, "app", "tablet")
	late.send(subscribeOf(1, 1, "homes/h1/state"))
	late.want(packets.Suback)
	if pk := late.want(packets.Publish); string(pk.Payload) != "on" || !pk.FixedHeader.Retain {
		t.Errorf("who subscribes later got %+v", pk)
	}
	stranger.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	stranger.want(packets.Pingresp)
}

func TestTakeoverAcrossGateways(t *testing.T) {
	a, b := pair(t)
	first := a.connect(5, "anna", "hub")
	eventually(t, "the claim is known", func() bool { return b.near.mesh.Stats().Others == 1 && len(b.near.tables[1].Scan("")) == 1 })
	second := b.connect(5, "anna", "hub")
	if code := first.wantEnd(); code != mqtt.CodeTakenOver {
		t.Errorf("the first connection ended with %#x", code)
	}
	second.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	second.want(packets.Pingresp)
	other := a.connect(5, "bert", "hub") // the same client id, another user
	other.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	other.want(packets.Pingresp)
	second.conn.Close()
	eventually(t, "what has ended is let go of", func() bool { return len(a.near.tables[1].Scan("")) == 1 })
}

// TestSessionsMoveBetweenGateways lets a client come back to another gateway than the one that kept its messages.
func TestSessionsMoveBetweenGateways(t *testing.T) {
	a, b := pair(t)
	p := a.connect(5, "app", "moves", persistent)
	p.send(subscribeOf(1, 2, "homes/h1/news"))
	p.want(packets.Suback)
	p.conn.Close()
	key := sessionKey(session.Key{User: "app", Client: "moves"})
	eventually(t, "b can find it", func() bool { _, ok := b.Sessions.(*sharedSessions).table.Get(key); return ok })
	if n, err := a.Send("h1", "news", []byte("while away"), 2); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	eventually(t, "what waits is stored", func() bool {
		rec, _ := b.Sessions.(*sharedSessions).table.Get(key)
		return strings.Contains(string(rec.Value), `"queue"`)
	})
	p, ack := b.connack(5, "app", "moves", persistent)
	if m := p.want(packets.Publish); !ack.SessionPresent || string(m.Payload) != "while away" || m.FixedHeader.Qos != 2 {
		t.Errorf("present %t, %+v", ack.SessionPresent, m)
	}
	eventually(t, "a has let go of it", func() bool { all, _ := a.registry.Len(); return all == 0 })
	p.conn.Close()
	_, ack = b.connack(5, "app", "moves")
	if ack.SessionPresent {
		t.Error("a clean start has a session")
	}
	eventually(t, "its end is known", func() bool {
		rec, _ := a.Sessions.(*sharedSessions).table.Get(key)
		return !strings.Contains(string(rec.Value), `"key"`)
	})
}

// TestWhoMayCommand: a hub tells no other hub what to do, and an app reports nothing executed.
func TestWhoMayCommand(t *testing.T) {
	one, _ := pair(t)
	for _, c := range []struct{ user, topic, payload string }{
		{"anna", "homes/h1/devices/lamp/commands", `{"id": "1", "name": "set"}`},
		{"app", "homes/h1/devices/lamp/commands/1/status", `{"state": "executed"}`},
		{"bert", "homes/h1/devices/lamp/commands", `{"id": "1", "name": "set"}`},
	} {
		p := one.connect(5, c.user, c.user)
		p.send(publishOf(c.topic, c.payload, 1, 1))
		if ack := p.want(packets.Puback); ack.ReasonCode != 0x87 {
			t.Errorf("%s to %s: %#x %s", c.user, c.topic, ack.ReasonCode, ack.Properties.ReasonString)
		}
	}
	if _, all := one.request("app", "GET", "/v1/devices/lamp/commands", ""); len(all["commands"].([]any)) != 0 {
		t.Errorf("commands: %v", all)
	}
}

// What a gateway counts may be asked for at any time, before it has begun as after; what it shares with others is counted, too.
func TestStatsAtAnyTime(t *testing.T) {
	over := make(chan struct{})
	var asking conc.WaitGroup
	defer asking.Wait()
	defer close(over)
	a, b := pair(t, func(g *Gateway) {
		asking.Go(func() {
			for {
				g.Stats()
				select {
				case <-over:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
	})
	a.hub("anna", "hub")
	eventually(t, "b knows where the hub is", func() bool { return b.near.mesh.Heard("h1", "homes/h1/devices/lamp/commands") })
	if status, got := b.request("app", "POST", "/v1/devices/lamp/commands", `{"id":"one","name":"on","ttl":30}`); status != 202 {
		t.Fatal(status, got)
	}
	eventually(t, "both count it", func() bool {
		here, there := a.Stats(), b.Stats()
		return here.Sessions == 1 && here.KeptMessages == 1 && here.KeptBytes > 0 && here.Peers.Others == 1 && there.Peers.Connected == 1 &&
			there.Commands.Accepted == 1 && here.Commands.Sent == 1 && there.Commands.Open[commands.Sent] == 1 && there.Tables[tableCommands].Keys == 1
	})
	if s := b.Stats(); s.Peers.Call.Count != 1 || time.Until(s.CertificateExpires) < time.Hour || time.Until(s.Peers.Expires) < time.Hour || s.Tables[tableCommands].Silence > 30*time.Second {
		t.Errorf("%+v", s)
	}
}
