package ingest

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/ingest/identity"
	"hearthline/ingest/identity/identitytest"
)

// trusting is a rig whose users come in by the proofs of a world.
func trusting(t *testing.T, w *identitytest.World, set func(*Gateway)) *rig {
	return newRig(t, func(g *Gateway) {
		g.Credentials, g.Revocations, g.ClientCertificates, g.Tokens = w.Settings()
		if set != nil {
			set(g)
		}
	})
}

// by connects with a client certificate, or with a password or a token, and gives CONNACK's reason code.
func (r *rig) by(version byte, cert *tls.Certificate, user, password, client string) (*peer, byte) {
	r.t.Helper()
	config := r.tls()
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	c, err := tls.Dial("tcp", r.at.MQTT.String(), config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	p := &peer{t: r.t, conn: c, version: version}
	pk := connectPacketOf(r, user, client)
	pk.Connect.UsernameFlag, pk.Connect.PasswordFlag, pk.Connect.Password = user != "", password != "", []byte(password)
	p.send(pk)
	return p, p.want(packets.Connack).ReasonCode
}

// ask sends a reading with headers and perhaps a certificate.
func (r *rig) ask(cert *tls.Certificate, body io.Reader, header ...string) (int, string) {
	r.t.Helper()
	status, answer, _ := r.do("POST", "/v1/telemetry", body, cert, append([]string{"Content-Type", mediaJSON}, header...)...)
	return status, answer
}

func TestEveryProofAtBothDoors(t *testing.T) {
	w := identitytest.New(t)
	var said lockedText
	r := trusting(t, w, func(g *Gateway) {
		g.Logger = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	hub, stranger := w.Device("hub-1"), identitytest.New(t).Device("hub-1")
	mqtt := []struct {
		name           string
		cert           *tls.Certificate
		user, password string
		code           byte
	}{
		{"a certificate", &hub, "", "", 0},
		{"a certificate and its name", &hub, "hub-1", "", 0},
		{"a certificate and another name", &hub, "bert", "", 0x86},
		{"nothing", nil, "", "", 0x86},
		{"a user alone", nil, "anna", "", 0x86},
		{"a token", nil, "anybody", w.Token("new", "carl", "app", time.Hour), 0},
		{"an old token", nil, "anybody", w.Token("new", "carl", "app", -time.Hour), 0x86},
		{"bcrypt", nil, "bert", "secret", 0},
		{"bcrypt, wrong", nil, "bert", "Secret", 0x86},
		{"a password of one without", nil, "anna", "secret", 0x86},
	}
	for _, c := range mqtt {
		if _, code := r.by(5, c.cert, c.user, c.password, "c"); code != c.code {
			t.Errorf("MQTT, %s: %#x; want %#x", c.name, code, c.code)
		}
	}
	p, err := tls.Dial("tcp", r.at.MQTT.String(), &tls.Config{RootCAs: r.roots, ServerName: "localhost", Certificates: []tls.Certificate{stranger}})
	if err == nil { // TLS 1.3: the client learns it when it reads
		p.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = p.Read(make([]byte, 1))
		p.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate") && !strings.Contains(err.Error(), "authority") {
		t.Error("a certificate of a stranger's authority:", err)
	}
	for _, c := range []struct {
		name   string
		cert   *tls.Certificate
		header []string
		status int
	}{
		{"a certificate", &hub, nil, 200},
		{"an API key as bearer", nil, []string{"Authorization", "Bearer " + w.APIKey}, 200},
		{"an API key", nil, []string{"X-API-Key", w.APIKey}, 200},
		{"a token of a hub", nil, []string{"Authorization", "Bearer " + w.Token("old", "hub", "hub", time.Hour)}, 200},
		{"a token of an app", nil, []string{"Authorization", "Bearer " + w.Token("old", "app", "app", time.Hour)}, 403},
		{"a viewer", nil, []string{"Authorization", "Bearer bert:secret"}, 403},
		{"another key", nil, []string{"X-API-Key", identity.NewKey()}, 401},
		{"an old token", nil, []string{"Authorization", "Bearer " + w.Token("old", "hub", "hub", -time.Hour)}, 401},
		{"nothing", nil, nil, 401},
	} {
		if status, body := r.ask(c.cert, strings.NewReader(deviceReading), c.header...); status != c.status || strings.Contains(body, w.APIKey) {
			t.Errorf("HTTP, %s: %d %s; want %d", c.name, status, body, c.status)
		}
	}
	eventually(t, "the log says something", func() bool { return said.text() != "" })
	for _, c := range mqtt {
		if c.password != "" && len(c.password) > 6 && strings.Contains(said.text(), c.password) {
			t.Errorf("%s is in the log", c.name)
		}
	}
	if strings.Contains(said.text(), w.APIKey) || strings.Contains(said.text(), "eyJ") {
		t.Error("an API key or a token is in the log")
	}
}

// lockedText is a log that may be read while it is written.
type lockedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// However a client has proved who it is: when that is withdrawn, its open connection ends.
func TestRevocationOfEveryKind(t *testing.T) {
	w := identitytest.New(t)
	r := trusting(t, w, nil)
	hub, other := w.Device("hub-1"), w.Device("hub-1")
	kept := []struct {
		cert             *tls.Certificate
		password, client string
	}{{&other, "", "other"}, {nil, w.Token("new", "carl", "app", time.Hour), "kept"}}
	var open []*peer
	for _, k := range kept {
		p, code := r.by(5, k.cert, "", k.password, k.client)
		if code != 0 {
			t.Fatalf("%#x", code)
		}
		open = append(open, p)
	}
	for _, c := range []struct {
		name     string
		cert     *tls.Certificate
		password func() string
		withdraw func()
	}{
		{"a certificate by the list", &hub, func() string { return "" }, func() { w.PublishCRL(hub.Leaf.SerialNumber) }},
		{"a token's key", nil, func() string { return w.Token("old", "dora", "app", time.Hour) }, func() { w.PublishKeys("new") }},
		{"a token by its subject", nil, func() string { return w.Token("new", "eric", "app", time.Hour) }, func() { write(t, w.Dir, "revoked.yaml", "- name: eric\n") }},
		{"a token by its time", nil, func() string { return w.Token("new", "fred", "app", 3*time.Second) }, func() {}},
	} {
		for _, version := range []byte{5, 4} {
			if version == 4 && c.name != "a token by its time" {
				continue
			}
			user, password := "", c.password()
			if password != "" { // 3.1.1 has no password without a user
				user = "anybody"
			}
			p, code := r.by(version, c.cert, user, password, "c")
			if code != 0 {
				t.Fatalf("%s: CONNACK %#x", c.name, code)
			}
			c.withdraw()
			if code, want := p.wantEnd(), map[byte]byte{5: 0x87, 4: 0}[version]; code != want {
				t.Errorf("%s: DISCONNECT %#x; want %#x", c.name, code, want)
			}
			if version == 5 {
				if _, code := r.by(5, c.cert, user, password, "again"); code != 0x86 {
					t.Errorf("%s, again: CONNACK %#x", c.name, code)
				}
			}
		}
	}
	for _, p := range open {
		p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		p.want(packets.Pingresp)
	}
}

// A request that lasts ends with what it was let in by.
func TestRevocationEndsALongRequest(t *testing.T) {
	w := identitytest.New(t)
	r := trusting(t, w, nil)
	body, feed := io.Pipe()
	type answer struct {
		status int
		body   string
	}
	done := make(chan answer, 1)
	go func() {
		status, body := r.ask(nil, body, "X-API-Key", w.APIKey)
		done <- answer{status, body}
	}()
	if _, err := io.WriteString(feed, deviceReading); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request is under way", func() bool { r.connectionsMu.Lock(); defer r.connectionsMu.Unlock(); return len(r.stays) == 1 })
	w.PublishUsers(identity.NewKey())
	select {
	case a := <-done:
		if a.status != 401 || !strings.Contains(a.body, "changed") {
			t.Errorf("%d %s", a.status, a.body)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
	eventually(t, "it is forgotten", func() bool { r.connectionsMu.Lock(); defer r.connectionsMu.Unlock(); return len(r.stays) == 0 })
	if n := len(r.road.events()); n != 0 {
		t.Errorf("%d rows of it are in the log", n)
	}
}

func TestClientIDs(t *testing.T) {
	for _, c := range []struct {
		template string
		fits     map[string]bool
	}{
		{"", map[string]bool{"anything": true, "": true}},
		{"{user}", map[string]bool{"anna": true, "anna2": false, "bert": false, "": false}},
		{"{user}-*", map[string]bool{"anna-1": true, "anna-": true, "anna": false, "bert-1": false, "": false}},
	} {
		t.Run(c.template, func(t *testing.T) {
			r := newRig(t, func(g *Gateway) { g.ClientID = c.template })
			for id, fits := range c.fits {
				p := r.dial()
				p.send(connectPacketOf(r, "anna", id))
				if code := p.want(packets.Connack).ReasonCode; (code == 0) != fits || !fits && code != 0x85 {
					t.Errorf("%q: CONNACK %#x", id, code)
				}
			}
		})
	}
	for _, bad := range []string{"x", "*", "{user}*x"} {
		if err := (&Admission{ClientID: bad}).check(); err == nil {
			t.Errorf("client_id %q is taken", bad)
		}
	}
}

// An event stream that has nothing to say ends too, and at once.
func TestRevocationEndsAnEventStream(t *testing.T) {
	r, _ := pair(t)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+r.at.HTTP.String()+"/v1/homes/h1/commands/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("app", r.passwords["app"])
	client := r.client()
	defer client.CloseIdleConnections()
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 200 || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		t.Fatal(res.Status)
	}
	open := func() int {
		r.connectionsMu.Lock()
		defer r.connectionsMu.Unlock()
		return len(r.stays)
	}
	eventually(t, "it is under way", func() bool { return open() == 1 })
	write(t, r.dir, "credentials.yaml", "- {user: other, home: h1, keys: ['"+identity.HashKey(identity.NewKey())+"']}\n")
	start := time.Now()
	if _, err := io.ReadAll(res.Body); err != nil {
		t.Log(err) // how it ends is the protocol's business
	}
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("it went on for %s", took)
	}
	eventually(t, "it is forgotten", func() bool { return open() == 0 })
}

func TestRevocationEndsAWebSocket(t *testing.T) {
	r := newRig(t, nil)
	b := r.browserConnect(t)
	if err := b.conn.SetReadDeadline(time.Now().Add(8 * time.Second)); err != nil {
		t.Fatal(err)
	}
	write(t, r.dir, "credentials.yaml", "- {user: other, home: h1, keys: ['"+identity.HashKey(identity.NewKey())+"']}\n")
	start := time.Now()
	b.wantClose()
	if took := time.Since(start); took > 7*time.Second {
		t.Errorf("it went on for %s", took)
	}
	eventually(t, "it is gone", func() bool { return r.Stats().Connections == 0 })
}

// TestRevocationEndsSessionsThatRest: what waits for a user that is no more is nobody's. One whose entry has changed keeps it.
func TestRevocationEndsSessionsThatRest(t *testing.T) {
	n := newNeighbourhood(t)
	r := n.start("a", nil)
	store := r.Sessions.(*sharedSessions)
	for _, user := range []string{"anna", "app"} {
		for range 2 { // one is away, one is connected
			p := r.connect(5, user, "kept", persistent)
			p.send(subscribeOf(1, 1, "homes/h1/news"))
			p.want(packets.Suback)
			p.conn.Close()
			eventually(t, "it is away", func() bool { return r.Stats().Connections == 0 })
		}
	}
	if sent, err := r.Send("h1", "news", []byte("secret"), 1); sent != 2 || err != nil {
		t.Fatal(sent, err)
	}
	eventually(t, "they are stored", func() bool {
		stored := 0
		for _, rec := range store.table.Scan("") {
			if strings.Contains(string(rec.Value), `"queue"`) {
				stored++
			}
		}
		return stored == 2
	})
	other := "keys: ['" + identity.HashKey(identity.NewKey()) + "']"
	write(t, r.dir, "credentials.yaml", "- {user: app, home: h1, role: app, "+other+"}\n")
	eventually(t, "the session of who is no more has ended", func() bool { all, away := r.registry.Len(); return all == 1 && away == 1 })
	eventually(t, "nothing of it is left", func() bool {
		rec, _ := store.table.Get("anna/kept")
		return !strings.Contains(string(rec.Value), "queue")
	})
	if rec, _ := store.table.Get("app/kept"); !strings.Contains(string(rec.Value), "queue") {
		t.Errorf("of who is still there: %s", rec.Value)
	}
	write(t, r.dir, "credentials.yaml", "- {user: somebody, home: h1, "+other+"}\n")
	eventually(t, "nobody is left", func() bool { all, _ := r.registry.Len(); return all == 0 })
}
