package ingest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hearthline/flow"
	"hearthline/ingest/identity"
)

// road is a Publisher that keeps what it is given, and fails when told to.
type road struct {
	mu        sync.Mutex
	batches   map[int32][]flow.Batch
	failing   atomic.Bool
	delay     atomic.Int64 // ns
	calls     atomic.Int64
	busy      map[int32]bool
	positions map[flow.Source]flow.Position
	watermark map[int32]flow.Micros
	faults    []string
}

func newRoad() *road {
	return &road{batches: map[int32][]flow.Batch{}, busy: map[int32]bool{}, positions: map[flow.Source]flow.Position{}, watermark: map[int32]flow.Micros{}}
}

func (r *road) Publish(ctx context.Context, stream string, partition int32, batches ...flow.Batch) (int64, error) {
	r.calls.Add(1)
	r.mu.Lock()
	if r.busy[partition] {
		r.faults = append(r.faults, fmt.Sprintf("two Publish calls at once on partition %d", partition))
	}
	r.busy[partition] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.busy[partition] = false
		r.mu.Unlock()
	}()
	if d := time.Duration(r.delay.Load()); d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if r.failing.Load() {
		return 0, errors.New("no broker")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range batches {
		r.check(stream, partition, b)
		if b.Record != nil {
			b.Record.Retain()
		}
		r.batches[partition] = append(r.batches[partition], b)
	}
	return 0, nil
}

// check holds every batch to the promises of flow/batch.go.
func (r *road) check(stream string, partition int32, b flow.Batch) {
	fault := func(format string, args ...any) { r.faults = append(r.faults, fmt.Sprintf(format, args...)) }
	if stream != "raw" || b.Lineage.Partition != partition || b.Lineage.Stream != "" {
		fault("lineage %v on %s/%d", b.Lineage, stream, partition)
	}
	if last, ok := r.positions[b.Lineage.Source]; ok && !b.Lineage.Position.After(last) {
		fault("position %v after %v", b.Lineage.Position, last)
	}
	r.positions[b.Lineage.Source] = b.Lineage.Position
	before := r.watermark[partition]
	if b.Watermark < before {
		fault("watermark %d after %d", b.Watermark, before)
	}
	r.watermark[partition] = b.Watermark
	if b.Record == nil {
		return
	}
	e, err := flow.EventsOf(b.Record)
	if err != nil {
		fault("%v", err)
		return
	}
	for i := range e.Time {
		if flow.Micros(e.Received[i]) < before || flow.Micros(e.Received[i]) > b.Watermark {
			fault("a row received at %d in a batch between watermarks %d and %d", e.Received[i], before, b.Watermark)
		}
		if t := flow.Micros(e.Time[i]); t < b.Bounds.First || t > b.Bounds.Last {
			fault("time %d outside bounds %v", t, b.Bounds)
		}
		if flow.PartitionOf(e.Home.Value(i), 4) != partition {
			fault("home %s on partition %d", e.Home.Value(i), partition)
		}
	}
}

// events gives all rows, by partition and in order.
func (r *road) events() []flow.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []flow.Event
	for p := int32(0); p < 4; p++ {
		for _, b := range r.batches[p] {
			if b.Record != nil {
				out = append(out, eventsOf(b)...)
			}
		}
	}
	return out
}

func eventsOf(b flow.Batch) []flow.Event {
	e, err := flow.EventsOf(b.Record)
	if err != nil {
		panic(err)
	}
	var out []flow.Event
	for i := range e.Time {
		ev := flow.Event{Time: flow.Micros(e.Time[i]), Received: flow.Micros(e.Received[i]), Home: e.Home.Value(i), Device: e.Device.Value(i), Metric: e.Metric.Value(i), Unit: e.Unit.Value(i)}
		if ev.HasValue = !e.Value.IsNull(i); ev.HasValue {
			ev.Value = e.Value.Value(i)
		}
		if ev.HasText = !e.Text.IsNull(i); ev.HasText {
			ev.Text = e.Text.Value(i)
		}
		if ev.HasSeq = !e.Seq.IsNull(i); ev.HasSeq {
			ev.Seq = e.Seq.Value(i)
		}
		out = append(out, ev)
	}
	return out
}

func (r *road) kinds(k flow.Kind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, all := range r.batches {
		for _, b := range all {
			if b.Kind == k {
				n++
			}
		}
	}
	return n
}

// rig is a running gateway with users anna (home h1), bert (home h2), app (home h1, role app), lamp (home h1, device
// lamp only), cloud (service of h1, and of the lamp of h2) and family (app of h1, viewer of h2).
type rig struct {
	*Gateway
	t         testing.TB
	road      *road
	at        Addresses
	ca        string
	roots     *x509.CertPool
	dir       string
	passwords map[string]string
	stop      func() error // drains; its result is Run's
}

var rigUsers = []identity.DevUser{
	{User: "anna", Home: "h1"}, {User: "bert", Home: "h2"},
	{User: "app", Home: "h1", Role: identity.RoleApp}, {User: "lamp", Home: "h1", Devices: []string{"lamp"}},
	{User: "cloud", Homes: []identity.Grant{{Home: "h1", Role: identity.RoleService}, {Home: "h2", Role: identity.RoleService, Devices: []string{"lamp"}}}},
	{User: "family", Homes: []identity.Grant{{Home: "h1", Role: identity.RoleApp}, {Home: "h2", Role: identity.RoleViewer}}},
}

func newRig(t testing.TB, set func(*Gateway)) *rig {
	t.Helper()
	dir := t.TempDir()
	certs, err := identity.DevCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	file, passwords, err := identity.DevCredentials(dir, rigUsers...)
	if err != nil {
		t.Fatal(err)
	}
	g := New()
	r := &rig{Gateway: g, t: t, road: newRoad(), ca: certs.CA, dir: dir, passwords: passwords, roots: x509.NewCertPool()}
	pem, err := os.ReadFile(certs.CA)
	if err != nil || !r.roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA", err)
	}
	g.MQTT, g.HTTP = "127.0.0.1:0", "127.0.0.1:0"
	g.Certificate, g.Key, g.Credentials = certs.Certificate, certs.Key, file
	g.Publisher, g.Partitions, g.Instance, g.RunID = r.road, 4, "test", "run-1"
	g.MessagesPerSecond, g.BytesPerSecond = 0, 0
	if *overLoop != "" {
		g.Loop = *overLoop
	}
	if testing.Verbose() {
		g.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if set != nil {
		set(g)
	}
	r.start()
	return r
}

func (r *rig) start() {
	ready := make(chan Addresses, 1)
	r.Gateway.Ready = func(a Addresses) { ready <- a }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Gateway.Run(ctx) }()
	select {
	case r.at = <-ready:
	case err := <-done:
		cancel()
		r.t.Fatal(err)
	}
	var once sync.Once
	var result error
	r.stop = func() error {
		once.Do(func() { cancel(); result = <-done })
		return result
	}
	r.t.Cleanup(func() {
		if err := r.stop(); err != nil {
			r.t.Errorf("drain: %v", err)
		}
		for _, f := range r.road.faults {
			r.t.Error("a promise is broken: ", f)
		}
		if n := r.Gateway.Stats().Panics; n > 0 {
			r.t.Errorf("%d panics", n)
		}
	})
}

func (r *rig) tls() *tls.Config { return &tls.Config{RootCAs: r.roots, ServerName: "localhost"} }

func (r *rig) client() *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: r.tls(), ForceAttemptHTTP2: true}}
}

// post sends telemetry and gives the status and body.
func (r *rig) post(user, media string, body []byte, header ...string) (int, string, http.Header) {
	r.t.Helper()
	return r.do("POST", "/v1/telemetry", bytes.NewReader(body), nil, append([]string{"Content-Type", media, "Authorization", r.basic(user)}, header...)...)
}

func (r *rig) basic(user string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+r.passwords[user]))
}

// do does an HTTP request with headers, names and values in turn, and perhaps a certificate, over a connection of its own.
func (r *rig) do(method, path string, body io.Reader, cert *tls.Certificate, header ...string) (int, string, http.Header) {
	r.t.Helper()
	req, err := http.NewRequest(method, "https://"+r.at.HTTP.String()+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	c := r.client()
	if cert != nil {
		c.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{*cert}
	}
	defer c.CloseIdleConnections()
	res, err := c.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(out), res.Header
}

// eventually polls until ok, and fails when it does not come true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("it never came true: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
