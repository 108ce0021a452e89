package simulator

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/sourcegraph/conc"
)

// reading is what the test's gateway understands of a message.
type reading struct {
	Metric *string  `json:"metric"`
	Value  *float64 `json:"value"`
	Text   *string  `json:"text"`
	Unit   string   `json:"unit"`
	Time   string   `json:"time"`
	Seq    int64    `json:"seq"`
}

type seriesKey struct{ home, device, metric string }

type stored struct {
	body  string // the reading as JSON: what is sent again must be equal
	times int
}

// gateway is an MQTT server over TLS that keeps what it is sent: an independent implementation of the protocol (mochi).
type gateway struct {
	tb     testing.TB
	addr   string
	caFile string
	cert   tls.Certificate

	mu       sync.Mutex
	server   *mqtt.Server
	rows     map[seriesKey]map[int64]*stored
	order    map[seriesKey][]int64 // sequences as they came
	bad      map[string]int        // messages that cannot be stored, by reason
	copies   int                   // rows that came again
	behind   int64                 // the most that one came again behind its series' highest
	differ   []string              // rows that came again with another content
	future   []string              // rows that came before they happened
	logins   map[string]int        // by user and outcome
	failNext int                   // that many good messages are refused (v5)
	delay    func() time.Duration  // before a message is acknowledged
	lose     func() bool           // drop the connection instead of acknowledging, after storing
}

func newGateway(tb testing.TB) *gateway {
	tb.Helper()
	g := &gateway{tb: tb, rows: map[seriesKey]map[int64]*stored{}, order: map[seriesKey][]int64{}, bad: map[string]int{}, logins: map[string]int{}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(tb, err)
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	must(tb, err)
	g.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	g.caFile = filepath.Join(tb.TempDir(), "ca.pem")
	must(tb, os.WriteFile(g.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	g.addr = freeAddress(tb)
	g.start()
	tb.Cleanup(g.stop)
	return g
}

// spawn runs f beside the test.
func spawn(f func()) { new(conc.WaitGroup).Go(f) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// freeAddress is a loopback address that nobody listens at, below the range that clients' ports are taken from.
func freeAddress(tb testing.TB) string {
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+mathrand.N(12000))
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	tb.Fatal("no free port between 20000 and 31999")
	return ""
}

func (g *gateway) start() {
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = 1 << 20
	s := mqtt.New(&mqtt.Options{Capabilities: caps, Logger: slog.New(slog.DiscardHandler)})
	must(g.tb, s.AddHook(&hook{g: g}, nil))
	must(g.tb, s.AddListener(listeners.NewTCP(listeners.Config{ID: "t", Address: g.addr, TLSConfig: &tls.Config{Certificates: []tls.Certificate{g.cert}}})))
	must(g.tb, s.Serve())
	g.mu.Lock()
	g.server = s
	g.mu.Unlock()
}

func (g *gateway) stop() {
	g.mu.Lock()
	s := g.server
	g.server = nil
	g.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

// count is the number of different rows stored.
func (g *gateway) count() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	var n int64
	for _, s := range g.rows {
		n += int64(len(s))
	}
	return n
}

// check fails the test where rows came again with another content, too late, or before they happened.
func (g *gateway) check() {
	g.tb.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.differ {
		g.tb.Errorf("came again with another content: %s", d)
	}
	for _, f := range g.future {
		g.tb.Errorf("came before it happened: %s", f)
	}
	if g.behind > 1024 {
		g.tb.Errorf("a row came again %d sequences behind its series; a dedupe stage remembers 1024", g.behind)
	}
}

// forget drops what a home sent after its first rounds.
func (g *gateway) forget(home string, rounds int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, rows := range g.rows {
		for seq := range rows {
			if key.home == home && seq > rounds {
				delete(rows, seq)
			}
		}
	}
}

type hook struct {
	mqtt.HookBase
	g *gateway
}

func (*hook) ID() string { return "gateway" }
func (*hook) Provides(b byte) bool {
	return bytes.Contains([]byte{mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnPublish}, []byte{b})
}

func passwordOf(home string) string { return "secret of " + home }

func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	user := string(pk.Connect.Username)
	ok := string(pk.Connect.Password) == passwordOf(user) && cl.ID == user
	h.g.mu.Lock()
	defer h.g.mu.Unlock()
	h.g.logins[fmt.Sprint(ok)]++
	return ok
}

func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	if !write && (topic == "homes/"+cl.ID+"/devices/+/commands" || topic == "homes/"+cl.ID+"/devices/+/shadow/delta") {
		return true
	}
	ok := write && strings.HasPrefix(topic, "homes/"+cl.ID+"/devices/")
	if !ok {
		h.g.mu.Lock()
		h.g.bad["acl"]++
		h.g.mu.Unlock()
	}
	return ok
}

func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	g := h.g
	if g.delay != nil {
		<-time.After(g.delay()) // the server reads on only after this, so acknowledgements come late
	}
	var rows []json.RawMessage
	parts := strings.Split(pk.TopicName, "/")
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failNext > 0 {
		g.failNext--
		return pk, packets.ErrQuotaExceeded
	}
	if err := json.Unmarshal(pk.Payload, &rows); err != nil {
		g.bad["json"]++
		return pk, nil
	}
	reason := ""
	for _, raw := range rows {
		if r := g.store(parts[1], parts[3], raw); r != "" {
			reason = r
		}
	}
	if reason != "" {
		g.bad[reason]++
	}
	if g.lose != nil && g.lose() {
		cl.Net.Conn.Close()
	}
	return pk, nil
}

// store keeps a reading, or says why not. g.mu is held.
func (g *gateway) store(home, device string, raw json.RawMessage) string {
	var r reading
	if err := json.Unmarshal(raw, &r); err != nil {
		return "json"
	}
	at, err := time.Parse(time.RFC3339Nano, r.Time)
	switch {
	case err != nil || r.Metric == nil || r.Value == nil && r.Text == nil:
		return "field"
	case r.Unit == "parsec":
		return "unit"
	case at.Year() == 1970 || at.Year() == 2090:
		return "clock"
	}
	if at.After(time.Now()) {
		g.future = append(g.future, string(raw))
	}
	key := seriesKey{home, device, *r.Metric}
	if g.rows[key] == nil {
		g.rows[key] = map[int64]*stored{}
	}
	g.order[key] = append(g.order[key], r.Seq)
	if old := g.rows[key][r.Seq]; old != nil {
		old.times++
		g.copies++
		if old.body != string(raw) {
			g.differ = append(g.differ, fmt.Sprintf("%v: %s, before %s", key, raw, old.body))
		}
		var highest int64
		for s := r.Seq; g.rows[key][s] != nil; s++ {
			highest = s
		}
		g.behind = max(g.behind, highest-r.Seq)
		return ""
	}
	g.rows[key][r.Seq] = &stored{body: string(raw), times: 1}
	return ""
}

// simulate gives settings for tests against g: fast, small, everything counted.
func (g *gateway) simulate(dir string) *Simulator {
	s := New()
	s.Gateway, s.CAFile, s.JournalDir = g.addr, g.caFile, dir
	s.Credentials = func(home string) (string, string) { return home, passwordOf(home) }
	s.Homes, s.Recorded = 4, false
	s.Interval, s.Rounds = time.Second, 50
	s.History = 50 * time.Second
	s.BackoffMin, s.BackoffMax = 5*time.Millisecond, 50*time.Millisecond
	s.OfflineFor = 50 * time.Millisecond
	s.JournalEvery = 20 * time.Millisecond
	s.Faults = Faults{}
	return s
}
