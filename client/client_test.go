package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"hearthline/flow"
	"hearthline/ingest"
	"hearthline/ingest/identity"
	"hearthline/ingest/identity/identitytest"
)

// road is a log that keeps rows in memory.
type road struct {
	mu      sync.Mutex
	rows    []flow.Event
	failing atomic.Bool
}

func (r *road) Publish(_ context.Context, _ string, _ int32, batches ...flow.Batch) (int64, error) {
	if r.failing.Load() {
		return 0, errors.New("no broker")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range batches {
		if b.Record == nil {
			continue
		}
		e, err := flow.EventsOf(b.Record)
		if err != nil {
			return 0, err
		}
		for i := range e.Time {
			r.rows = append(r.rows, flow.Event{Time: flow.Micros(e.Time[i]), Home: strings.Clone(e.Home.Value(i)), Device: strings.Clone(e.Device.Value(i)),
				Metric: strings.Clone(e.Metric.Value(i)), Value: e.Value.Value(i), Text: strings.Clone(e.Text.Value(i)), Seq: e.Seq.Value(i)})
		}
	}
	return 0, nil
}

func (r *road) all() []flow.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]flow.Event(nil), r.rows...)
}

// gateway is a real one, with users hub and app of home h1.
type gateway struct {
	road      *road
	at        ingest.Addresses
	tls       *tls.Config
	ca        string
	passwords map[string]string
}

func newGateway(t *testing.T, set ...func(*ingest.Gateway)) *gateway {
	t.Helper()
	dir := t.TempDir()
	certs, err := identity.DevCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	file, passwords, err := identity.DevCredentials(dir, identity.DevUser{User: "hub", Home: "h1"}, identity.DevUser{User: "app", Home: "h1", Role: identity.RoleApp})
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(certs.CA)
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA", err)
	}
	gw := &gateway{road: &road{}, tls: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ca: certs.CA, passwords: passwords}
	g := ingest.New()
	g.MQTT, g.HTTP, g.Certificate, g.Key, g.Credentials = "127.0.0.1:0", "127.0.0.1:0", certs.Certificate, certs.Key, file
	g.Publisher, g.Partitions, g.Instance = gw.road, 2, "test"
	for _, set := range set {
		set(g)
	}
	ready := make(chan ingest.Addresses, 1)
	g.Ready = func(at ingest.Addresses) { ready <- at }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	select {
	case gw.at = <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		gw.road.failing.Store(false)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return gw
}

// client gives one that comes in by url, and is not patient.
func (g *gateway) client(url string) *Client {
	c := New(url)
	c.TLS, c.User, c.Password, c.Home = g.tls, "hub", g.passwords["hub"], "h1"
	c.backoff = func(int) time.Duration { return rand.N(50 * time.Millisecond) }
	if testing.Verbose() {
		c.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return c
}

func run(t *testing.T, c *Client) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// cutter passes bytes on, and cuts connections after a random time.
func cutter(t *testing.T, to string, after func() time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			cut := func() { in.Close(); out.Close() }
			time.AfterFunc(after(), cut)
			go func() { io.Copy(out, in); cut() }()
			go func() { io.Copy(in, out); cut() }()
		}
	}()
	return l.Addr().String()
}

func flush(t *testing.T, c *Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Flush(ctx); err != nil {
		t.Fatalf("%v: %d readings wait", err, c.Waiting())
	}
}

// TestEveryReadingArrivesThoughConnectionsAreCut, over both doors, with its number: what arrives twice is the same row.
func TestEveryReadingArrivesThoughConnectionsAreCut(t *testing.T) {
	for _, scheme := range []string{"mqtts", "wss", "https"} {
		t.Run(scheme, func(t *testing.T) {
			g := newGateway(t)
			to := g.at.MQTT.String()
			if scheme != "mqtts" {
				to = g.at.HTTP.String()
			}
			cuts := atomic.Int64{}
			c := g.client(scheme + "://" + cutter(t, to, func() time.Duration { cuts.Add(1); return 10*time.Millisecond + rand.N(120*time.Millisecond) }) + map[string]string{"wss": "/mqtt"}[scheme])
			c.BatchRows = 20
			run(t, c)
			const devices, each = 5, 600
			for i := range each {
				for d := range devices {
					if err := c.Send(t.Context(), Reading{Device: fmt.Sprint("d", d), Metric: "m", Value: float64(i)}); err != nil {
						t.Fatal(err)
					}
				}
				if i%20 == 0 {
					time.Sleep(5 * time.Millisecond)
				}
			}
			flush(t, c)
			held := map[string]float64{}
			all := g.road.all()
			for _, e := range all {
				id := fmt.Sprint(e.Device, " ", e.Seq)
				if v, twice := held[id]; twice && v != e.Value {
					t.Errorf("%s is %g and %g", id, v, e.Value)
				}
				held[id] = e.Value
			}
			if len(held) != devices*each {
				t.Errorf("%d readings; want %d", len(held), devices*each)
			}
			if cuts.Load() < 5 {
				t.Errorf("only %d connections", cuts.Load())
			}
			t.Logf("%d connections, %d rows came twice", cuts.Load(), len(all)-len(held))
		})
	}
}

// TestProofs comes in by a token, anew for each connection, and by the device's own certificate.
func TestProofs(t *testing.T) {
	w := identitytest.New(t)
	gw := newGateway(t, func(g *ingest.Gateway) { g.Credentials, g.Revocations, g.ClientCertificates, g.Tokens = w.Settings() })
	var asked atomic.Int64
	withToken := func(c *Client) {
		c.User, c.Password, c.ClientID, c.Token = "", "", "by-token", func() (string, error) { asked.Add(1); return w.Token("new", "hub", "hub", time.Hour), nil }
	}
	withCertificate := func(c *Client) {
		c.User, c.Password, c.ClientID = "", "", "by-certificate"
		c.TLS = c.TLS.Clone()
		c.TLS.Certificates = []tls.Certificate{w.Device("hub-1")}
	}
	sent := 0
	for _, c := range []struct {
		name, url string
		prove     func(*Client)
	}{
		{"a token over MQTT", "mqtts://" + gw.at.MQTT.String(), withToken},
		{"a token over HTTP", "https://" + gw.at.HTTP.String(), withToken},
		{"a certificate over MQTT", "mqtts://" + gw.at.MQTT.String(), withCertificate},
		{"a certificate over WebSocket", "wss://" + gw.at.HTTP.String() + "/mqtt", withCertificate},
		{"a certificate over HTTP", "https://" + gw.at.HTTP.String(), withCertificate},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := gw.client(c.url)
			c.prove(cl)
			stop := run(t, cl)
			defer stop()
			if err := cl.Send(t.Context(), Reading{Device: "lamp", Metric: "power", Value: 3}); err != nil {
				t.Fatal(err)
			}
			sent++
			flush(t, cl)
			if n := len(gw.road.all()); n != sent {
				t.Errorf("%d readings came; %d were acknowledged", n, sent)
			}
		})
	}
	if asked.Load() < 2 {
		t.Errorf("%d tokens were asked for", asked.Load())
	}
}

// TestKilled kills the process that sends, again and again: what Send has returned for is in the files, and arrives.
func TestKilled(t *testing.T) {
	g := newGateway(t)
	dir := t.TempDir()
	sent := 0
	for life := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestProcess$", "-test.v")
		cmd.Env = append(os.Environ(), "CLIENT_TEST_URL=mqtts://"+g.at.MQTT.String(), "CLIENT_TEST_DIR="+dir, "CLIENT_TEST_CA="+g.ca,
			"CLIENT_TEST_PASSWORD="+g.passwords["hub"], "CLIENT_TEST_FIRST="+strconv.Itoa(sent), "CLIENT_TEST_LAST="+strconv.FormatBool(life == 4))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		g.road.failing.Store(life == 1 || life == 2) // two lives that nobody hears
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if life < 4 {
			time.AfterFunc(time.Duration(300+rand.IntN(400))*time.Millisecond, func() { cmd.Process.Kill() })
		}
		said, _ := io.ReadAll(out)
		err = cmd.Wait()
		for line := range strings.Lines(string(said)) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "sent "); ok {
				sent, _ = strconv.Atoi(n)
			}
		}
		if life == 4 && err != nil {
			t.Fatalf("%v: %s", err, said)
		}
	}
	if sent < 100 {
		t.Fatalf("only %d readings in five lives", sent)
	}
	held := map[int]int{}
	for _, e := range g.road.all() {
		held[int(e.Value)]++
	}
	twice := 0
	for n := 1; n <= sent; n++ {
		if held[n] == 0 {
			t.Errorf("reading %d of %d was sent, and is not there", n, sent)
		}
		twice += max(0, held[n]-1)
	}
	t.Logf("%d readings in 5 lives, %d came twice", sent, twice)
	if left, err := filepath.Glob(filepath.Join(dir, "*.outbox")); err != nil || len(left) != 0 {
		t.Errorf("%v %v are left of what is acknowledged", left, err)
	}
}

// TestProcess is the process that TestKilled kills.
func TestProcess(t *testing.T) {
	url := os.Getenv("CLIENT_TEST_URL")
	if url == "" {
		return // nothing to be tested by itself
	}
	pem, err := os.ReadFile(os.Getenv("CLIENT_TEST_CA"))
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA", err)
	}
	c := New(url)
	c.TLS, c.User, c.Password, c.Home, c.Dir = &tls.Config{RootCAs: roots, ServerName: "localhost"}, "hub", os.Getenv("CLIENT_TEST_PASSWORD"), "h1", os.Getenv("CLIENT_TEST_DIR")
	run(t, c)
	first, _ := strconv.Atoi(os.Getenv("CLIENT_TEST_FIRST"))
	for n := first + 1; ; n++ {
		if err := c.Send(t.Context(), Reading{Device: "d", Metric: "m", Value: float64(n)}); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\nsent %d\n", n)
		time.Sleep(time.Millisecond)
		if os.Getenv("CLIENT_TEST_LAST") == "true" && n > first+50 {
			flush(t, c)
			return
		}
	}
}

func TestTheOutboxIsBounded(t *testing.T) {
	g := newGateway(t)
	g.road.failing.Store(true)
	c := g.client("mqtts://" + g.at.MQTT.String())
	c.OutboxBytes = 50_000
	run(t, c)
	n, err := 0, error(nil)
	for ; n < 10_000 && err == nil; n++ {
		err = c.Send(t.Context(), Reading{Device: "d", Metric: "m", Value: float64(n)})
	}
	if !errors.Is(err, ErrFull) || n < 50 || n > 500 {
		t.Errorf("%v after %d readings", err, n)
	}
	g.road.failing.Store(false)
	flush(t, c)
	if err := c.Send(t.Context(), Reading{Device: "d", Metric: "m"}); err != nil {
		t.Error(err)
	}
}

// TestADamagedOutbox: behind what was cut off by a crash nothing was ever said to be sent; what is before it stays.
func TestADamagedOutbox(t *testing.T) {
	dir := t.TempDir()
	c := New("mqtts://nowhere.invalid:8883")
	c.Home, c.Dir = "h1", dir
	for i := range 10 {
		if err := c.Send(t.Context(), Reading{Device: "d", Metric: "m", Value: float64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	c.box.close()
	name := filepath.Join(dir, "000000000001.outbox")
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, st.Size()-5); err != nil {
		t.Fatal(err)
	}
	again := New("mqtts://nowhere.invalid:8883")
	again.Home, again.Dir = "h1", dir
	if n := again.Waiting(); n != 9 {
		t.Fatalf("%d readings are left; want 9 (%v)", n, again.opened)
	}
	if err := again.Send(t.Context(), Reading{Device: "d", Metric: "m"}); err != nil {
		t.Fatal(err)
	}
	if r := again.box.all()[9].Rows[0]; *r.Seq != 10 {
		t.Errorf("numbers go on at %d; want 10", *r.Seq)
	}
	other := New("mqtts://nowhere.invalid:8883")
	if other.Dir = dir; other.Send(t.Context(), Reading{Home: "h", Device: "d", Metric: "m"}) == nil {
		t.Error("two clients in one folder")
	}
}

// TestRefusedForGood: what can never be taken is told, and does not hold up what comes after it.
func TestRefusedForGood(t *testing.T) {
	for _, scheme := range []string{"mqtts", "https"} {
		t.Run(scheme, func(t *testing.T) {
			g := newGateway(t)
			at := g.at.MQTT.String()
			if scheme == "https" {
				at = g.at.HTTP.String()
			}
			c := g.client(scheme + "://" + at)
			refused := make(chan Refusal, 10)
			c.Refused = func(r Refusal) { refused <- r }
			run(t, c)
			old := Reading{Device: "d", Metric: "m", Value: 1, Time: time.Unix(1000, 0)}
			if err := c.Send(t.Context(), old, Reading{Device: "d", Metric: "m", Value: 2}, Reading{Home: "h2", Device: "d", Metric: "m", Value: 3}); err != nil {
				t.Fatal(err)
			}
			flush(t, c)
			if all := g.road.all(); len(all) != 1 || all[0].Value != 2 {
				t.Errorf("%+v", all)
			}
			text := ""
			for len(refused) > 0 {
				text += (<-refused).Reason + "\n"
			}
			if !strings.Contains(text, "time") || !strings.Contains(text, "h2") {
				t.Errorf("told %q", text)
			}
		})
	}
	if err := New("mqtts://x").Send(t.Context(), Reading{Home: "a/b", Device: "d", Metric: "m"}); !errors.Is(err, ErrReading) {
		t.Error(err)
	}
}

// TestWhatTheServerSays is heeded: busy is waited for, another server is gone to.
func TestWhatTheServerSays(t *testing.T) {
	g := newGateway(t)
	cert := serverCertificate(t, g)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"mqtt"}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var codes []byte
	var mu sync.Mutex
	go func() {
		for _, code := range []byte{codeServerBusy, codeQuota, codeUseAnother} {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := packets.ReadPacket(conn); err == nil {
				ack := packets.NewControlPacket(packets.CONNACK)
				ack.Content.(*packets.Connack).ReasonCode = code
				if code == codeUseAnother {
					ack.Content.(*packets.Connack).Properties = &packets.Properties{ServerReference: g.at.MQTT.String()}
				}
				ack.WriteTo(conn)
				mu.Lock()
				codes = append(codes, code)
				mu.Unlock()
			}
			conn.Close()
		}
	}()
	c := g.client("mqtts://" + l.Addr().String())
	waited := atomic.Int64{}
	c.backoff = func(int) time.Duration { waited.Add(1); return time.Millisecond }
	begun := time.Now()
	run(t, c)
	if err := c.Send(t.Context(), Reading{Device: "d", Metric: "m"}); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	mu.Lock()
	defer mu.Unlock()
	if string(codes) != "\x89\x97\x9c" || len(g.road.all()) != 1 {
		t.Errorf("codes %x, %d rows", codes, len(g.road.all()))
	}
	if took := time.Since(begun); took < 2*backoffFirst {
		t.Errorf("busy servers were asked again after %s", took)
	}
}

func serverCertificate(t *testing.T, g *gateway) tls.Certificate {
	t.Helper()
	dir := filepath.Dir(g.ca)
	certs, err := identity.DevCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(certs.Certificate, certs.Key)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestBackoff doubles up to five minutes, and is random from nothing on.
func TestBackoff(t *testing.T) {
	for failures := range 70 {
		limit := min(backoffMost, backoffFirst*time.Duration(1<<min(failures, 20)))
		most, least := time.Duration(0), limit
		for range 300 {
			d := fullJitter(failures)
			most, least = max(most, d), min(least, d)
		}
		if most > limit || most < limit*8/10 || least > limit/5 {
			t.Errorf("after %d failures: %s to %s; want 0 to %s", failures, least, most, limit)
		}
	}
}

// TestCommands: each is executed once however often it comes, none after its deadline, and what came of it is said.
func TestCommands(t *testing.T) {
	g := newGateway(t)
	dir := t.TempDir()
	c := g.client("mqtts://" + g.at.MQTT.String())
	c.Dir = dir
	var mu sync.Mutex
	ran := map[string]int{}
	c.Command = func(ctx context.Context, cmd Command) error {
		mu.Lock()
		defer mu.Unlock()
		ran[cmd.ID]++
		switch cmd.Name {
		case "fail":
			return errors.New("jammed")
		case "panic":
			panic("a bug")
		}
		return nil
	}
	stop := run(t, c)
	words := map[string]string{}
	app := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("ssl://" + g.at.MQTT.String()).SetTLSConfig(g.tls).SetClientID("phone").SetUsername("app").SetPassword(g.passwords["app"]))
	if tok := app.Connect(); !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	defer app.Disconnect(0)
	app.Subscribe("homes/h1/devices/+/commands/+/status", 1, func(_ mqtt.Client, m mqtt.Message) {
		var said struct{ State, Detail string }
		if err := json.Unmarshal(m.Payload(), &said); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		words[strings.Split(m.Topic(), "/")[5]] = said.State + " " + said.Detail
	}).WaitTimeout(10 * time.Second)
	ask := func(id, name string, deadline time.Duration) {
		t.Helper()
		body := fmt.Sprintf(`{"id":%q,"name":%q,"arguments":{"on":true},"deadline":%q}`, id, name, time.Now().Add(deadline).UTC().Format(time.RFC3339Nano))
		if tok := app.Publish("homes/h1/devices/lamp/commands", 1, false, body); !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
			t.Fatal(tok.Error())
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			is := ok()
			mu.Unlock()
			if is {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("it never came true: %s; %v %v", what, ran, words)
			}
		}
	}
	until("the hub listens", func() bool {
		mu.Unlock()
		defer mu.Lock()
		ask("first", "switch", time.Minute)
		time.Sleep(50 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		return ran["first"] > 0
	})
	for range 3 {
		ask("twice", "switch", time.Minute)
	}
	ask("late", "switch", -time.Second)
	ask("bad", "fail", time.Minute)
	ask("worse", "panic", time.Minute)
	until("all have been said", func() bool {
		return words["first"] == "executed " && words["twice"] == "executed " && words["bad"] == "failed jammed" && strings.HasPrefix(words["worse"], "failed panic")
	})
	stop()
	again := g.client(c.URL) // the same hub after a restart
	again.Dir, again.Command = dir, c.Command
	run(t, again)
	mu.Lock()
	delete(words, "twice")
	mu.Unlock()
	until("it is said again, not done again", func() bool {
		mu.Unlock()
		defer mu.Lock()
		ask("twice", "switch", time.Minute)
		time.Sleep(50 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		return words["twice"] == "executed "
	})
	mu.Lock()
	defer mu.Unlock()
	if ran["first"] != 1 || ran["twice"] != 1 || ran["late"] != 0 || ran["bad"] != 1 || words["late"] != "" {
		t.Errorf("executed %v, said %v", ran, words)
	}
}
