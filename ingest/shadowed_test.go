package ingest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/shadow"
	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

const (
	deltaFilter   = "homes/h1/devices/+/shadow/delta"
	shadowFilter  = "homes/h1/devices/+/shadow"
	reportedTopic = "homes/h1/devices/lamp/shadow/reported"
	desiredTopic  = "homes/h1/devices/lamp/shadow/desired"
)

// hears subscribes, and gives the client back.
func (p *peer) hears(filter string) *peer {
	p.t.Helper()
	p.send(subscribeOf(1, 1, filter))
	p.want(packets.Suback)
	return p
}

// delta reads a delta, and acknowledges it.
func (p *peer) delta() string {
	p.t.Helper()
	pk := p.want(packets.Publish)
	if pk.TopicName != "homes/h1/devices/lamp/shadow/delta" || pk.FixedHeader.Qos != 1 {
		p.t.Fatalf("want a delta; got %s %s", pk.TopicName, pk.Payload)
	}
	p.send(puback(pk.PacketID))
	var d shadow.Delta
	if err := json.Unmarshal(pk.Payload, &d); err != nil {
		p.t.Fatal(err)
	}
	return string(d.State)
}

// document reads a shadow as apps see it, and acknowledges it.
func (p *peer) document() (d shadow.Document, retained bool) {
	p.t.Helper()
	pk := p.want(packets.Publish)
	if pk.TopicName != "homes/h1/devices/lamp/shadow" {
		p.t.Fatalf("want a shadow; got %s %s", pk.TopicName, pk.Payload)
	}
	if pk.FixedHeader.Qos == 1 {
		p.send(puback(pk.PacketID))
	}
	if err := json.Unmarshal(pk.Payload, &d); err != nil {
		p.t.Fatal(err)
	}
	return d, pk.FixedHeader.Retain
}

// change publishes a change of a shadow, and gives what it is answered.
func (p *peer) change(topic, patch string) byte {
	p.t.Helper()
	p.send(publishOf(topic, patch, 1, 9))
	return p.want(packets.Puback).ReasonCode
}

func (r *rig) desire(patch string) {
	r.t.Helper()
	if status, got := r.request("app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":`+patch+`}`); status != 200 {
		r.t.Fatalf("%d %v", status, got)
	}
}

func TestShadowsCrossGateways(t *testing.T) {
	a, b := pair(t)
	hub := a.connect(5, "anna", "hub").hears(deltaFilter)
	app := b.connect(5, "app", "phone").hears(shadowFilter)
	b.desire(`{"power":"on","level":40}`)
	if got := hub.delta(); got != `{"level":40,"power":"on"}` {
		t.Errorf("the hub was told %s", got)
	}
	if d, retained := app.document(); string(d.Desired) != `{"level":40,"power":"on"}` || string(d.Delta) != string(d.Desired) || retained || d.Metadata.Desired.By != "app" {
		t.Errorf("the app sees %+v", d)
	}
	if code := hub.change(reportedTopic, `{"power":"on","level":40,"battery":81}`); code != 0 {
		t.Errorf("a report is answered %#x", code)
	}
	if d, _ := app.document(); d.Delta != nil || string(d.Reported) != `{"battery":81,"level":40,"power":"on"}` || d.Metadata.Reported.By != "anna" {
		t.Errorf("the app sees %+v", d)
	}
	// By MQTT, what one client wants.
	if code := b.connect(5, "app", "tablet").change(desiredTopic, `{"level":30}`); code != 0 {
		t.Errorf("a wish is answered %#x", code)
	}
	if got := hub.delta(); got != `{"level":30}` {
		t.Errorf("the hub was told %s", got)
	}
	// By hand: the hub takes back what was desired, and reports.
	app.document()
	if code := hub.change(desiredTopic, `{"power":null}`); code != 0 {
		t.Errorf("taking back is answered %#x", code)
	}
	app.document()
	if code := hub.change(reportedTopic, `{"power":"off","level":30}`); code != 0 {
		t.Errorf("a report is answered %#x", code)
	}
	if d, _ := app.document(); d.Delta != nil || string(d.Desired) != `{"level":30}` || string(d.Reported) != `{"battery":81,"level":30,"power":"off"}` {
		t.Errorf("the app sees %+v", d)
	}
	// Who comes later, on the other gateway, sees what stands.
	late := a.connect(4, "app", "other").hears(shadowFilter)
	if d, retained := late.document(); !retained || string(d.Desired) != `{"level":30}` {
		t.Errorf("an app that comes later sees %+v, retained %t", d, retained)
	}
	if s := a.near.shadow.Stats(); s.Deltas != 2 {
		t.Errorf("%d deltas: %+v", s.Deltas, s)
	}
}

// What was wanted while the hub was away, or on a connection that broke, is told where it comes back.
func TestDeltasFollowTheHub(t *testing.T) {
	a, b := pair(t)
	b.desire(`{"power":"on"}`)
	a.desire(`{"level":1}`)
	b.desire(`{"level":2}`)
	kept := func(p *packets.Packet) {
		p.Properties.SessionExpiryInterval, p.Properties.SessionExpiryIntervalFlag = 100, true
		p.Connect.Clean = false
	}
	hub := a.connect(5, "anna", "hub", kept)
	hub.send(subscribeOf(1, 1, deltaFilter))
	hub.want(packets.Suback)
	const all = `{"level":2,"power":"on"}`
	if got := hub.delta(); got != all {
		t.Errorf("the hub that came was told %s", got)
	}
	hub.conn.Close()
	eventually(t, "it has gone", func() bool { return a.Stats().Connections == 0 })
	a.desire(`{"level":3}`) // nothing is kept for it: it is told what stands when it comes
	a.desire(`{"level":2}`)
	hub = a.connect(5, "anna", "hub", kept) // it has subscribed before
	if got := hub.delta(); got != all {
		t.Errorf("the hub that came back was told %s", got)
	}
	moved := b.connect(5, "anna", "hub", kept) // with its session, to the other gateway, while this one has its connection still
	if got := moved.delta(); got != all {
		t.Errorf("moved to the other gateway it was told %s", got)
	}
	over := b.connect(5, "anna", "hub2").hears(deltaFilter)
	if got := over.delta(); got != all {
		t.Errorf("on the other gateway it was told %s", got)
	}
	if code := over.change(reportedTopic, all); code != 0 {
		t.Errorf("a report is answered %#x", code)
	}
	done := b.connect(5, "anna", "hub3").hears(deltaFilter)
	done.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	done.want(packets.Pingresp) // nothing differs: nothing was sent
}

// While the log takes nothing, no report is acknowledged as kept: version 5 is told, version 3.1.1 loses its connection and sends it again.
func TestReportsWhileTheLogIsAway(t *testing.T) {
	logs := map[string]*tabletest.Log{}
	for _, name := range Tables {
		logs[name] = tabletest.NewLog(4)
	}
	r := newRig(t, func(g *Gateway) {
		g.Logs = func(name string) table.Log { return logs[name] }
		g.StoreTimeout = time.Second
	})
	logs[tableShadows].SetDown(true)
	if status, got := r.request("app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":{"a":1}}`); status != 503 {
		t.Errorf("%d %v", status, got)
	}
	if code := r.connect(5, "anna", "five").change(reportedTopic, `{"a":1}`); code != mqtt.CodeUnspecified {
		t.Errorf("version 5 is told %#x", code)
	}
	for _, qos := range []byte{1, 2} {
		kept := func(p *packets.Packet) { p.Connect.Clean = false }
		p := r.connect(4, "anna", "four", kept)
		p.send(publishOf(reportedTopic, fmt.Sprintf(`{"a":%d}`, qos), qos, 7))
		if pk, err := p.read(); err == nil {
			t.Errorf("version 3.1.1, QoS %d, is answered by packet type %d", qos, pk.FixedHeader.Type)
		}
		logs[tableShadows].SetDown(false)
		p = r.connect(4, "anna", "four", kept)
		p.send(publishOf(reportedTopic, fmt.Sprintf(`{"a":%d}`, qos), qos, 7))
		if ack := p.want(packets.Puback + qos - 1); ack.PacketID != 7 {
			t.Errorf("sent again, it is answered %+v", ack)
		}
		logs[tableShadows].SetDown(true)
	}
}

// TestWhoMayChangeShadows: by MQTT and by HTTP.
func TestWhoMayChangeShadows(t *testing.T) {
	one, _ := pair(t)
	for _, c := range []struct {
		user, topic, payload string
		code                 byte
	}{
		{"app", "homes/h1/devices/lamp/shadow/reported", `{"a":1}`, 0x87},
		{"app", "homes/h1/devices/lamp/shadow", `{"a":1}`, 0x87},
		{"app", "homes/h1/devices/lamp/shadow/delta", `{"a":1}`, 0x87},
		{"anna", "homes/h1/devices/lamp/shadow/delta", `{"a":1}`, 0x87},
		{"anna", "homes/h1/devices/lamp/shadow/other", `{"a":1}`, 0x87},
		{"bert", "homes/h1/devices/lamp/shadow/reported", `{"a":1}`, 0x87},
		{"app", "homes/h1/devices/lamp/shadow/desired", `[1]`, 0x99},
		{"app", "homes/h1/devices/lamp/shadow/desired", ``, 0x99},
		{"anna", "homes/h1/devices/lamp/shadow/reported", strings.Repeat("[", 10_000), 0x99},
		{"anna", "homes/h1/devices/lamp/shadow/reported", `{"a":"` + strings.Repeat("x", 9_000) + `"}`, 0x99},
	} {
		p := one.connect(5, c.user, c.user)
		if code := p.change(c.topic, c.payload); code != c.code {
			t.Errorf("%s to %s: %#x; want %#x", c.user, c.topic, code, c.code)
		}
	}
	for i, c := range []struct {
		user, method, path, body, match string
		status                          int
	}{
		{"app", "GET", "/v1/devices/lamp/shadow", ``, "", 404},
		{"app", "DELETE", "/v1/devices/lamp/shadow", ``, "", 404},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":{"a":1}}`, `"1"`, 412},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":{"a":1}}`, `*`, 412},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":{"a":1},"version":0}`, "", 200},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":{"a":2}}`, `"1"`, 200},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":{"a":3},"version":1}`, "", 412},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":{"a":3}}`, `"x"`, 412},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"reported":{"a":1}}`, "", 403},
		{"anna", "PATCH", "/v1/devices/lamp/shadow", `{"reported":{"a":1}}`, "", 200},
		{"anna", "PATCH", "/v1/devices/lamp/shadow", `{"desired":null}`, "", 200},
		{"anna", "DELETE", "/v1/devices/lamp/shadow", ``, "", 403},
		{"bert", "PATCH", "/v1/devices/lamp/shadow?home=h1", `{"reported":{"a":1}}`, "", 403},
		{"bert", "GET", "/v1/devices/lamp/shadow?home=h1", ``, "", 403},
		{"bert", "GET", "/v1/homes/h1/shadows", ``, "", 403},
		{"bert", "GET", "/v1/devices/lamp/shadow", ``, "", 404},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{}`, "", 400},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":{},"reported":{}}`, "", 400},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":1}`, "", 400},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":{},"more":1}`, "", 400},
		{"app", "PATCH", "/v1/devices/lamp/shadow", `{"desired":` + strings.Repeat("[", 9000), "", 400},
		{"app", "PATCH", "/v1/devices/lamp/shadow", strings.Repeat("x", 1<<20), "", 413},
		{"app", "POST", "/v1/devices/lamp/shadow", `{}`, "", 404},
		{"app", "GET", "/v1/homes/h1/shadows", ``, "", 200},
		{"app", "DELETE", "/v1/devices/lamp/shadow", ``, `"1"`, 412},
		{"app", "DELETE", "/v1/devices/lamp/shadow", ``, `"3"`, 204},
		{"app", "GET", "/v1/devices/lamp/shadow", ``, "", 404},
	} {
		header := []string{"Authorization", one.basic(c.user)}
		if c.match != "" {
			header = append(header, "If-Match", c.match)
		}
		status, answer, got := one.do(c.method, c.path, strings.NewReader(c.body), nil, header...)
		if status != c.status {
			t.Errorf("%d: %s %s %s %.60s: %d %s; want %d", i, c.user, c.method, c.path, c.body, status, answer, c.status)
		}
		if c.path == "/v1/devices/lamp/shadow" && status == http.StatusOK && !strings.HasPrefix(got.Get("ETag"), `"`) {
			t.Errorf("%d: ETag %s", i, got.Get("ETag"))
		}
	}
}

// Changes of a shadow by many connections on both gateways, over TLS, all come to stand, and every subscriber ends with the same.
func TestShadowsUnderLoad(t *testing.T) {
	a, b := pair(t)
	app := a.connect(5, "app", "phone").hears(shadowFilter)
	const each = 40
	done := make(chan error, 4)
	for i := range 4 {
		r := []*rig{a, b}[i%2]
		p := r.connect(5, "anna", fmt.Sprint("hub", i))
		go func() {
			for k := range each {
				p.send(publishOf(reportedTopic, fmt.Sprintf(`{"p%d":%d}`, i, k), 1, uint16(k+1)))
			}
			for range each {
				if pk, err := p.read(); err != nil || pk.ReasonCode != 0 {
					done <- fmt.Errorf("%#x %w", pk.ReasonCode, err)
					return
				}
			}
			done <- nil
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	want := fmt.Sprintf(`{"p0":%[1]d,"p1":%[1]d,"p2":%[1]d,"p3":%[1]d}`, each-1)
	last := int64(0)
	for deadline := time.Now().Add(20 * time.Second); ; {
		d, _ := app.document()
		if d.Version < last {
			t.Errorf("version %d after %d", d.Version, last)
		}
		if last = d.Version; string(d.Reported) == want {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it ends with %s", d.Reported)
		}
	}
	if last != 4*each {
		t.Errorf("version %d after %d changes", last, 4*each)
	}
}

// TestLive: an app's one stream, over TLS, on the other gateway than its hub: what stands, what changes, how a command fares,
// and why it ends.
func TestLive(t *testing.T) {
	a, b := pair(t)
	b.desire(`{"power":"on"}`)
	hub := a.connect(5, "anna", "hub").hears(deltaFilter)
	hub.delta()
	l := b.live("app", "")
	if e := l.next(); e.name != "snapshot" || !strings.Contains(e.data, `"delta":{"power":"on"}`) || !strings.Contains(e.data, `"commands":[]`) {
		t.Fatalf("it begins with %+v", e)
	}
	if code := hub.change(reportedTopic, `{"power":"on"}`); code != 0 {
		t.Fatalf("%#x", code)
	}
	if e := l.next(); e.name != "shadow" || strings.Contains(e.data, `"delta"`) || !strings.Contains(e.data, `"reported":{"power":"on"}`) {
		t.Errorf("then %+v", e)
	}
	if status, got := b.request("app", "POST", "/v1/devices/lamp/commands", `{"id":"one","name":"on","ttl":30}`); status != 202 {
		t.Fatalf("%d %v", status, got)
	}
	last := l.next()
	if last.name != "command" || !strings.Contains(last.data, `"state":"accepted"`) {
		t.Errorf("then %+v", last)
	}
	a.desire(`{"power":"off"}`)
	if e := l.next(); e.name != "shadow" || !strings.Contains(e.data, `"delta":{"power":"off"}`) {
		t.Errorf("then %+v", e)
	}
	// Another connection, to the other gateway, goes on behind the command.
	eventually(t, "the other gateway has read as far", func() bool {
		_, got := a.request("app", "GET", "/v1/devices/lamp/commands/one", "")
		return got["id"] == "one"
	})
	again := a.live("app", last.id)
	if e := again.next(); e.name != "shadow" || !strings.Contains(e.data, `"delta":{"power":"off"}`) {
		t.Errorf("the stream that went on begins with %+v", e)
	}
	write(t, b.dir, "credentials.yaml", "- {user: other, home: h1, keys: ['"+identity.HashKey(identity.NewKey())+"']}\n")
	if e := l.next(); e.name != "end" || !strings.Contains(e.data, "reason") {
		t.Errorf("revoked, it ends with %+v", e)
	}
}

// onlooker reads an app's stream.
type onlooker struct {
	t     testing.TB
	lines *bufio.Scanner
}

type liveEvent struct{ name, id, data string }

func (r *rig) live(user, lastEvent string) *onlooker {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), "GET", "https://"+r.at.HTTP.String()+"/v1/homes/h1/live", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.SetBasicAuth(user, r.passwords[user])
	if lastEvent != "" {
		req.Header.Set("Last-Event-ID", lastEvent)
	}
	client := r.client()
	res, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { res.Body.Close(); client.CloseIdleConnections() })
	if res.StatusCode != 200 {
		r.t.Fatal(res.Status)
	}
	l := &onlooker{t: r.t, lines: bufio.NewScanner(res.Body)}
	l.lines.Buffer(nil, 1<<20)
	return l
}

// next gives the next event.
func (l *onlooker) next() (e liveEvent) {
	l.t.Helper()
	for l.lines.Scan() {
		name, value, _ := strings.Cut(l.lines.Text(), ": ")
		switch name {
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			e.data = value
		case "":
			if e.name != "" && value == "" && l.lines.Text() == "" {
				return e
			}
		}
	}
	l.t.Fatal("the stream ended: ", l.lines.Err())
	return e
}

// TestAReaderThatTakesNothing: over HTTP/2, whose deadlines are not those of a connection, and with all the room that sockets have.
func TestAReaderThatTakesNothing(t *testing.T) {
	a, _ := pair(t)
	hub := a.connect(5, "anna", "hub")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: a.tls(), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+a.at.HTTP.String()+"/v1/homes/h1/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("app", a.passwords["app"])
	res, err := client.Do(req)
	if err != nil || res.ProtoMajor != 2 {
		t.Fatal(res, err)
	}
	defer res.Body.Close()
	begun := time.Now()
	large := strings.Repeat("x", 8000)
	for i := 0; a.near.live.Stats().Slow == 0; i++ { // its body is never read
		if time.Since(begun) > time.Minute {
			t.Fatalf("it goes on: %+v", a.near.live.Stats())
		}
		if code := hub.change(reportedTopic, fmt.Sprintf(`{"n":%d,"large":%q}`, i, large)); code != 0 {
			t.Fatalf("%#x", code)
		}
		time.Sleep(time.Millisecond)
	}
	if took := time.Since(begun); took < 9*time.Second {
		t.Errorf("it was given up after %s", took)
	}
	eventually(t, "nothing of it is left", func() bool { s := a.near.live.Stats(); return s.Open == 0 })
}
