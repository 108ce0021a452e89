package ingest

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	paho5 "github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"
	"github.com/gofrs/flock"
)

// Versions of the clients that registries give.
const (
	pahoPython = "2.2.0"
	mqttJS     = "5.16.0"
)

// Limits of fetching a client, and of anything that one does.
const (
	fetchMax = 3 * time.Minute
	doMax    = 20 * time.Second
)

// device is a real MQTT client. What it does has been acknowledged when it returns; connections end on their own or by drop (the
// network goes) and leave (DISCONNECT).
type device interface {
	connect(id string, clean bool, will string) (present bool, err error)
	subscribe(filter string, qos byte) error
	publish(topic, payload string, qos byte, retain bool) error
	drop()
	leave()
	heard() *mailbox
}

// heard is a message that a device got.
type heard struct {
	Topic, Payload string
	Qos            byte
	Retain         bool
}

// mailbox holds what a device got, and tells when its connection has ended.
type mailbox struct {
	messages chan heard
	closed   chan int // reason code, where the client is told
}

func newMailbox() *mailbox { return &mailbox{make(chan heard, 1000), make(chan int, 100)} }

func (m *mailbox) heard() *mailbox { return m }

func (m *mailbox) next(t *testing.T) heard {
	t.Helper()
	select {
	case x := <-m.messages:
		return x
	case <-time.After(doMax):
		t.Fatal("no message came")
		return heard{}
	}
}

func (m *mailbox) end(t *testing.T) int {
	t.Helper()
	select {
	case code := <-m.closed:
		return code
	case <-time.After(doMax):
		t.Fatal("the connection did not end")
		return 0
	}
}

// makers make a device of each client and version, as a user of the rig.
func makers(t *testing.T) map[string]func(t *testing.T, r *rig, user string) device {
	all := map[string]func(t *testing.T, r *rig, user string) device{
		"paho Go, 4": func(t *testing.T, r *rig, user string) device {
			return &goDevice3{r: r, user: user, mailbox: newMailbox()}
		},
		"paho Go, 5": func(t *testing.T, r *rig, user string) device {
			return &goDevice5{r: r, user: user, mailbox: newMailbox()}
		},
	}
	for _, version := range []string{"4", "5"} {
		all["paho Python, "+version] = func(t *testing.T, r *rig, user string) device {
			return told(t, r, user, fetched(t, python), filepath.Join("testdata", "clients", "python.py"), nil, version)
		}
		all["MQTT.js, "+version] = func(t *testing.T, r *rig, user string) device {
			return told(t, r, user, "node", filepath.Join("testdata", "clients", "mqttjs.mjs"), []string{fetched(t, javascript)}, version)
		}
	}
	return all
}

// TestRealClients runs every client through what a home needs of MQTT.
func TestRealClients(t *testing.T) {
	for name, make := range makers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			one, two := make(t, r, "anna"), make(t, r, "app")
			for _, part := range []struct {
				name string
				run  func(t *testing.T, r *rig, one, two device)
			}{
				{"telemetry", clientTelemetry}, {"every QoS", clientQoS}, {"retained", clientRetained}, {"will", clientWill},
				{"session", clientSession}, {"shared subscription", clientShared}, {"takeover", clientTakeover},
			} {
				t.Run(part.name, func(t *testing.T) { part.run(t, r, one, two) })
			}
		})
	}
}

func mustConnect(t *testing.T, d device, id string, clean bool) (present bool) {
	t.Helper()
	present, err := d.connect(id, clean, "")
	if err != nil {
		t.Fatal(err)
	}
	return present
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func done(t *testing.T, all ...device) {
	t.Helper()
	for _, d := range all {
		d.leave()
		d.heard().end(t)
	}
}

func clientTelemetry(t *testing.T, r *rig, one, _ device) {
	mustConnect(t, one, "one", true)
	before := len(r.road.events())
	for qos := range byte(3) {
		must(t, one.publish(lampTopic, reading, qos, false))
		if qos > 0 && len(r.road.events()) < before+int(qos) {
			t.Errorf("QoS %d is acknowledged, and not in the log", qos)
		}
	}
	eventually(t, "all are in the log", func() bool { return len(r.road.events()) == before+3 })
	done(t, one)
}

func clientQoS(t *testing.T, _ *rig, one, two device) {
	mustConnect(t, one, "one", true)
	mustConnect(t, two, "two", true)
	for sub := range byte(3) {
		must(t, two.subscribe("homes/h1/qos", sub))
		for pub := range byte(3) {
			must(t, one.publish("homes/h1/qos", fmt.Sprint(pub, sub), pub, false))
			if m := two.heard().next(t); m.Payload != fmt.Sprint(pub, sub) || m.Qos != min(pub, sub) || m.Retain {
				t.Errorf("published with %d, subscribed with %d: %+v", pub, sub, m)
			}
		}
	}
	done(t, one, two)
}

func clientRetained(t *testing.T, _ *rig, one, two device) {
	mustConnect(t, one, "one", true)
	must(t, one.publish("homes/h1/retained", "kept", 1, true))
	mustConnect(t, two, "two", true)
	must(t, two.subscribe("homes/h1/retained", 1))
	if m := two.heard().next(t); m.Payload != "kept" || !m.Retain {
		t.Errorf("%+v", m)
	}
	must(t, one.publish("homes/h1/retained", "", 1, true))
	if m := two.heard().next(t); m.Payload != "" || m.Retain {
		t.Errorf("%+v", m)
	}
	done(t, one, two)
}

func clientWill(t *testing.T, r *rig, one, two device) {
	mustConnect(t, two, "two", true)
	must(t, two.subscribe("homes/h1/gone", 1))
	for _, politely := range []bool{true, false} {
		_, err := one.connect("willed", true, "homes/h1/gone")
		must(t, err)
		if politely {
			one.leave()
		} else {
			one.drop()
		}
		one.heard().end(t)
		// The next one has the same client id. Before the goodbye has come it would take over from this one, and its will be right.
		eventually(t, "the gateway has heard its goodbye", func() bool { return r.Stats().Connections == 1 })
	}
	if m := two.heard().next(t); m.Payload != "will" || m.Qos != 1 {
		t.Errorf("%+v", m)
	}
	mustConnect(t, one, "one", true)
	must(t, one.publish("homes/h1/gone", "one will only", 1, false))
	if m := two.heard().next(t); m.Payload != "one will only" {
		t.Errorf("%+v", m)
	}
	done(t, one, two)
}

func clientSession(t *testing.T, r *rig, one, two device) {
	if mustConnect(t, two, "kept", false) {
		t.Error("a session out of nothing")
	}
	must(t, two.subscribe("homes/h1/kept/#", 2))
	two.drop()
	two.heard().end(t)
	eventually(t, "it is away", func() bool { _, away := r.registry.Len(); return away == 1 })
	mustConnect(t, one, "one", true)
	var want, got [3][]string // by QoS: between two of them there is no order
	for i := range 20 {
		must(t, one.publish("homes/h1/kept/x", fmt.Sprint(i), byte(i%3), false))
		if i%3 > 0 {
			want[i%3] = append(want[i%3], fmt.Sprint(i))
		}
	}
	if !mustConnect(t, two, "kept", false) {
		t.Error("the session is lost")
	}
	for range len(want[1]) + len(want[2]) {
		m := two.heard().next(t)
		got[m.Qos] = append(got[m.Qos], m.Payload)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v; want %v", got, want)
	}
	done(t, two)
	if mustConnect(t, two, "kept", true) {
		t.Error("a clean start has a session")
	}
	done(t, one, two)
}

func clientShared(t *testing.T, _ *rig, one, two device) {
	mustConnect(t, one, "one", true)
	mustConnect(t, two, "two", true)
	for _, d := range []device{one, two} {
		must(t, d.subscribe("$share/g/homes/h1/shared", 1))
	}
	var got []string
	for i := range 20 {
		must(t, one.publish("homes/h1/shared", fmt.Sprint(i), 1, false))
	}
	for _, d := range []device{one, two} {
		for range 10 {
			got = append(got, d.heard().next(t).Payload)
		}
	}
	if all := slices.Sorted(slices.Values(got)); len(slices.Compact(all)) != 20 {
		t.Errorf("not each message once: %q", got)
	}
	done(t, one, two)
}

func clientTakeover(t *testing.T, r *rig, one, _ device) {
	before := r.Stats().Takeovers
	mustConnect(t, one, "same", false)
	must(t, one.subscribe("homes/h1/mine", 1))
	second := r.connect(5, "anna", "same", persistent)
	if code := one.heard().end(t); strings.Contains(t.Name(), "5") && code != 0x8e {
		t.Errorf("it is told %#x; want 0x8e", code)
	}
	second.silent()
	if r.Stats().Takeovers != before+1 {
		t.Error("no takeover is counted")
	}
	second.conn.Close()
	eventually(t, "the second has left", func() bool { return r.Stats().Connections == 0 })
	if !mustConnect(t, one, "same", false) {
		t.Error("the session is lost by the takeover")
	}
	done(t, one)
}

// goDevice3 is Eclipse Paho's Go client of MQTT 3.1.1.
type goDevice3 struct {
	*mailbox
	r      *rig
	user   string
	client paho3.Client
	conn   net.Conn
}

func wait3(tok paho3.Token) error {
	if !tok.WaitTimeout(doMax) {
		return errors.New("no answer in time")
	}
	return tok.Error()
}

func (d *goDevice3) connect(id string, clean bool, will string) (bool, error) {
	o := paho3.NewClientOptions().AddBroker("ssl://" + d.r.at.MQTT.String()).SetClientID(id).SetUsername(d.user).SetPassword(d.r.passwords[d.user])
	o.SetProtocolVersion(4).SetCleanSession(clean).SetAutoReconnect(false).SetConnectTimeout(doMax)
	o.SetCustomOpenConnectionFn(func(*url.URL, paho3.ClientOptions) (c net.Conn, err error) {
		d.conn, err = tls.Dial("tcp", d.r.at.MQTT.String(), d.r.tls())
		return d.conn, err
	})
	o.SetDefaultPublishHandler(func(_ paho3.Client, m paho3.Message) {
		d.messages <- heard{m.Topic(), string(m.Payload()), m.Qos(), m.Retained()}
	})
	o.SetConnectionLostHandler(func(paho3.Client, error) { d.closed <- 0 })
	if will != "" {
		o.SetWill(will, "will", 1, false)
	}
	d.client = paho3.NewClient(o)
	tok := d.client.Connect().(*paho3.ConnectToken)
	err := wait3(tok)
	return tok.SessionPresent(), err
}

func (d *goDevice3) subscribe(filter string, qos byte) error {
	return wait3(d.client.Subscribe(filter, qos, nil))
}

func (d *goDevice3) publish(topic, payload string, qos byte, retain bool) error {
	return wait3(d.client.Publish(topic, qos, retain, payload))
}

// drop is the network's doing: a connection that is closed here, the client takes for its own doing.
func (d *goDevice3) drop() {
	tcp := d.conn.(*tls.Conn).NetConn().(*net.TCPConn)
	tcp.CloseWrite()
	tcp.CloseRead()
}
func (d *goDevice3) leave() { d.client.Disconnect(200); d.closed <- 0 }

// goDevice5 is Eclipse Paho's Go client of MQTT 5.
type goDevice5 struct {
	*mailbox
	r      *rig
	user   string
	client *paho5.Client
	conn   net.Conn
	gone   func(code int) // of this connection: the first counts
}

func (d *goDevice5) connect(id string, clean bool, will string) (bool, error) {
	conn, err := tls.Dial("tcp", d.r.at.MQTT.String(), d.r.tls())
	if err != nil {
		return false, err
	}
	var once sync.Once
	gone := func(code int) { once.Do(func() { d.closed <- code }) }
	d.conn, d.gone = conn, gone
	d.client = paho5.NewClient(paho5.ClientConfig{
		ClientID: id, Conn: packets5.NewThreadSafeConn(conn), // it writes a packet in parts, from several goroutines
		OnPublishReceived: []func(paho5.PublishReceived) (bool, error){func(p paho5.PublishReceived) (bool, error) {
			d.messages <- heard{p.Packet.Topic, string(p.Packet.Payload), p.Packet.QoS, p.Packet.Retain}
			return true, nil
		}},
		OnServerDisconnect: func(p *paho5.Disconnect) { gone(int(p.ReasonCode)) },
		OnClientError: func(error) { // may be told before what the server said
			<-time.After(300 * time.Millisecond)
			gone(0)
		},
	})
	expiry := uint32(300)
	if clean {
		expiry = 0
	}
	c := &paho5.Connect{ClientID: id, KeepAlive: 60, CleanStart: clean, UsernameFlag: true, Username: d.user, PasswordFlag: true, Password: []byte(d.r.passwords[d.user]),
		Properties: &paho5.ConnectProperties{SessionExpiryInterval: &expiry}}
	if will != "" {
		c.WillMessage = &paho5.WillMessage{Topic: will, Payload: []byte("will"), QoS: 1}
	}
	ctx, cancel := context.WithTimeout(context.Background(), doMax)
	defer cancel()
	ack, err := d.client.Connect(ctx, c)
	return ack != nil && ack.SessionPresent, err
}

func (d *goDevice5) subscribe(filter string, qos byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), doMax)
	defer cancel()
	_, err := d.client.Subscribe(ctx, &paho5.Subscribe{Subscriptions: []paho5.SubscribeOptions{{Topic: filter, QoS: qos}}})
	return err
}

func (d *goDevice5) publish(topic, payload string, qos byte, retain bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), doMax)
	defer cancel()
	_, err := d.client.Publish(ctx, &paho5.Publish{Topic: topic, Payload: []byte(payload), QoS: qos, Retain: retain})
	return err
}
func (d *goDevice5) drop() { d.conn.Close() }
func (d *goDevice5) leave() {
	d.client.Disconnect(&paho5.Disconnect{})
	d.gone(0)
}

// toldDevice is a client in a process of its own.
type toldDevice struct {
	*mailbox
	in   io.Writer
	done chan said
}

// said is a line of such a process.
type said struct {
	Event          string
	Present        bool
	Code           int
	Text           string
	Topic, Payload string
	Qos            byte
	Retain         bool
}

// told starts a client's process.
func told(t *testing.T, r *rig, user, program, script string, before []string, version string) device {
	t.Helper()
	host, port, _ := net.SplitHostPort(r.at.MQTT.String())
	ctx, cancel := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, program, append(append([]string{script}, before...), host, port, r.ca, user, version)...)
	c.Env = append(os.Environ(), "MQTT_PASSWORD="+r.passwords[user])
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	must(t, err)
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	d := &toldDevice{mailbox: newMailbox(), in: in, done: make(chan said, 10)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var s said
			if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
				t.Errorf("%s says %q", script, lines.Text())
			}
			switch s.Event {
			case "message":
				d.messages <- heard{s.Topic, s.Payload, s.Qos, s.Retain}
			case "closed":
				d.closed <- s.Code
			default:
				d.done <- s
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-read; c.Wait() })
	return d
}

func (d *toldDevice) tell(c map[string]any) {
	line, _ := json.Marshal(c)
	d.in.Write(append(line, '\n'))
}

func (d *toldDevice) do(c map[string]any) (said, error) {
	d.tell(c)
	select {
	case s := <-d.done:
		if s.Code > 2 {
			return s, fmt.Errorf("%v: %#x %s", c["do"], s.Code, s.Text)
		}
		return s, nil
	case <-time.After(doMax):
		return said{}, fmt.Errorf("%v: no answer in time", c["do"])
	}
}

func (d *toldDevice) connect(id string, clean bool, will string) (bool, error) {
	s, err := d.do(map[string]any{"do": "connect", "id": id, "clean": clean, "will": will})
	return s.Present, err
}

func (d *toldDevice) subscribe(filter string, qos byte) error {
	_, err := d.do(map[string]any{"do": "subscribe", "topic": filter, "qos": qos})
	return err
}

func (d *toldDevice) publish(topic, payload string, qos byte, retain bool) error {
	_, err := d.do(map[string]any{"do": "publish", "topic": topic, "payload": payload, "qos": qos, "retain": retain})
	return err
}
func (d *toldDevice) drop()  { d.tell(map[string]any{"do": "drop"}) }
func (d *toldDevice) leave() { d.tell(map[string]any{"do": "leave"}) }

// fetch gets a client from its registry.
type fetch struct {
	name string
	made string // file that is there when it is done
	run  [][]string
}

var (
	python = fetch{name: "paho-mqtt-" + pahoPython, made: filepath.Join("bin", "python"), run: [][]string{
		{"python3", "-m", "venv", "."}, {filepath.Join("bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "paho-mqtt==" + pahoPython}}}
	javascript = fetch{name: "mqttjs-" + mqttJS, made: "node_modules", run: [][]string{
		{"npm", "install", "--prefix", ".", "--no-audit", "--no-fund", "--silent", "--ignore-scripts", "mqtt@" + mqttJS}}}
)

// fetched gives the path of what a client is run by, fetched into the user's cache where it is not there.
func fetched(t *testing.T, f fetch) string {
	t.Helper()
	path, err := f.get()
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("NOT TESTED: %s is not to be had here: %v", f.name, err)
	}
	must(t, err)
	return path
}

func (f fetch) get() (string, error) {
	cache := os.Getenv("HEARTHLINE_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no cache directory: %w; set HEARTHLINE_CACHE", err)
		}
		cache = filepath.Join(dir, "hearthline")
	}
	dir := filepath.Join(cache, f.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchMax)
	defer cancel()
	lock := flock.New(filepath.Join(dir, "lock"))
	if _, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return "", fmt.Errorf("wait for another process that fetches it: %w", err)
	}
	defer lock.Close()
	done, path := filepath.Join(dir, "done"), filepath.Join(dir, f.made)
	if _, err := os.Stat(done); err == nil {
		return path, nil
	}
	for _, args := range f.run {
		program := args[0]
		if strings.Contains(program, string(filepath.Separator)) {
			program = filepath.Join(dir, program)
		}
		c := exec.CommandContext(ctx, program, args[1:]...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return path, os.WriteFile(done, nil, 0o600)
}
