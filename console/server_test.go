package console

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hearthline/flow"
	"hearthline/pipeline/run"
)

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited 20 s for: %s", what)
		}
	}
}

// freePort finds an address below the ports that the kernel gives away by itself.
func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port between 20000 and 32000")
	return ""
}

// serve runs s until the test ends.
func serve(t testing.TB, s *Server) (base string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 1), make(chan error, 1)
	s.Listen = freePort(t)
	s.Ready = func(addr string) { ready <- addr }
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run did not end within 10 s of its context")
		}
	})
	select {
	case addr := <-ready:
		return "http://" + addr
	case err := <-done:
		done <- nil
		t.Fatalf("Run ended: %v", err)
	}
	return ""
}

func get(t testing.TB, url string) (status int, body string, header http.Header) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

func ask[T any](t testing.TB, url string) T {
	t.Helper()
	var v T
	status, body, header := get(t, url)
	if status != 200 || !strings.HasPrefix(header.Get("Content-Type"), "application/json") {
		t.Fatalf("GET %s: %d %s", url, status, body)
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return v
}

// demo is a server of a made-up pipeline that has run for some seconds.
func demo(w *world) *Server {
	return &Server{Plan: w.plan, Lag: w.lags, statuses: w.statuses, Taps: &Taps{}, Log: slog.New(slog.DiscardHandler)}
}

func TestStatusTellsWhatRuns(t *testing.T) {
	w := newWorld(homesPlan())
	w.step(time.Now(), 5)
	s := demo(w)
	s.Numbers = func(context.Context) ([]Number, error) {
		return []Number{{Label: "sent", Value: 7, Same: "rows"}, {Label: "kept", Value: 5, Same: "rows"}, {Label: "hubs", Value: 3}},
			errors.New("parquet is away")
	}
	s.Alerts = func(context.Context) ([]Alert, error) { return nil, errors.New("clickhouse is away") }
	base := serve(t, s)
	var status Status
	eventually(t, "two samples with a rate", func() bool {
		w.step(time.Now(), 0.01)
		status = ask[Status](t, base+"/api/status")
		return len(status.Edges) > 0 && status.Edges[0].Rate > 0
	})
	if len(status.Numbers) != 3 || len(status.Agreement) != 1 || status.Agreement[0] != (Agreement{"rows", false, 2}) {
		t.Errorf("numbers %v, agreement %v", status.Numbers, status.Agreement)
	}
	want := []Problem{{"numbers", "parquet is away"}, {"alerts", "clickhouse is away"}}
	if !slices.Equal(status.Problems, want) {
		t.Errorf("problems %v", status.Problems)
	}
	if status.Verdict.Level != "ok" || !strings.HasPrefix(status.Verdict.Text, "Moving: ") {
		t.Errorf("verdict %+v", status.Verdict)
	}
	byEdge := map[string]EdgeView{}
	for _, e := range status.Edges {
		byEdge[e.Stream+" "+e.Reader] = e
	}
	if e := byEdge["readings clickhouse"]; e.Lag < 0 || len(e.Lags) != 4 || e.WatermarkAge < 0 || e.Rows == 0 {
		t.Errorf("readings → clickhouse: %+v", e)
	}
	if e := byEdge["clean dedupe"]; e.Lag != -1 || e.WatermarkAge != -1 || e.Rate == 0 {
		t.Errorf("clean → dedupe, a plain call: %+v", e)
	}
}

func TestGraphOfTheShippedPipeline(t *testing.T) {
	g := ask[graphAnswer](t, serve(t, demo(newWorld(homesPlan())))+"/api/graph")
	if len(g.Nodes) != 10 || len(g.Units) != 4 || len(g.Streams) != 17 {
		t.Errorf("%d nodes, %d units, %d streams; want 10, 4, 17", len(g.Nodes), len(g.Units), len(g.Streams))
	}
	if s := g.stream("clean"); s.Unit != "normalize+dedupe+enrich" || s.Writer != "normalize" || len(s.Fields) != 10 {
		t.Errorf("clean: %+v", s)
	}
	if s := g.stream("score.dead"); !s.Dead || s.Fields[3].Name != "reason" {
		t.Errorf("score.dead: %+v", s)
	}
	if !g.Panels.Graph || !g.Panels.Lag || !g.Panels.Taps || g.Panels.Numbers || g.Panels.Alerts || g.Panels.Metrics {
		t.Errorf("panels: %+v", g.Panels)
	}
}

func TestAnEmptyServerServes(t *testing.T) {
	base := serve(t, &Server{})
	for path, want := range map[string]int{
		"/": 200, "/console.js": 200, "/healthz": 200, "/readyz": 200, "/api/graph": 200, "/api/status": 200,
		"/metrics": 404, "/api/tap?stream=x": 404, "/page/index.html": 404, "/index.html": 404, "/../server.go": 404,
	} {
		if got, body, _ := get(t, base+path); got != want {
			t.Errorf("GET %s: %d %s; want %d", path, got, body, want)
		}
	}
}

func TestOperationsEndpoints(t *testing.T) {
	registry := prometheus.NewRegistry()
	meter := run.NewMeter()
	meter.Node("enrich").Out("readings").Rows.Add(42)
	registry.MustRegister(meter)
	base := serve(t, &Server{
		Gatherer: registry, Meter: meter,
		Live:     func() error { return nil },
		ReadyErr: func() error { return errors.New("clickhouse 127.0.0.1:9000: connection refused") },
	})
	if status, body, _ := get(t, base+"/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", status, body)
	}
	status, body, header := get(t, base+"/readyz")
	if status != 503 || body != "clickhouse 127.0.0.1:9000: connection refused\n" || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") {
		t.Errorf("/readyz: %d %q %q", status, body, header.Get("Content-Type"))
	}
	if _, body, _ := get(t, base+"/metrics"); !strings.Contains(body, `hearthline_rows_total{direction="out",node="enrich",stream="readings"} 42`) {
		t.Errorf("/metrics: %s", body)
	}
}

func TestBusyPort(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	err = (&Server{Listen: busy.Addr().String()}).Run(context.Background())
	if err == nil {
		t.Fatal("Run on a busy port succeeded")
	}
	for _, want := range []string{busy.Addr().String(), "address already in use", "console.listen", "port 0"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %q", err, want)
		}
	}
	if err := (&Server{Listen: "nowhere"}).Run(context.Background()); err == nil || !strings.Contains(err.Error(), "host:port") {
		t.Errorf("Listen: nowhere: %v", err)
	}
}

func TestGuard(t *testing.T) {
	s := &Server{Listen: "console.home:8080", at: doorNames}
	s.init()
	h := s.handler()
	for _, c := range []struct {
		method, host, site string
		want               int
	}{
		{"GET", "localhost:8080", "", 200},
		{"GET", "LocalHost", "", 200},
		{"GET", "127.0.0.1:8080", "same-origin", 200},
		{"GET", "[::1]:8080", "", 200},
		{"GET", "[::1]", "", 200},
		{"GET", "10.4.0.7:8080", "", 200}, // a kubelet's probe; an address cannot be rebound
		{"GET", "console.home:8080", "", 200},
		{"GET", "console.home.:8080", "", 200},
		{"GET", "console.hearthline.svc:8080", "none", 421},
		{"HEAD", "localhost", "", 200},
		{"GET", "evil.example:8080", "", 421},
		{"GET", "localhost.evil.example", "", 421},
		{"GET", "127.0.0.1.evil.example", "", 421},
		{"GET", "", "", 421},
		{"GET", "localhost:8080", "cross-site", 403},
		{"POST", "localhost:8080", "", 405},
		{"DELETE", "localhost:8080", "", 405},
		{"OPTIONS", "localhost:8080", "", 405},
	} {
		r := httptest.NewRequest(c.method, "/api/status", nil)
		r.Host = c.host
		if c.site != "" {
			r.Header.Set("Sec-Fetch-Site", c.site)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s with Host %q from %q: %d %s; want %d", c.method, c.host, c.site, w.Code, w.Body, c.want)
		}
		if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("Content-Security-Policy: %q", csp)
		}
	}
}

// A page whose files hold no inline script and which never makes text into elements cannot be made to run what a
// device is called.
func TestPageNeverMakesTextIntoElements(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|javascript:|srcdoc|createContextualFragment`)
	inline := regexp.MustCompile(`(?i)<[a-z][^>]*\s(on[a-z]+|style)=|<style|<script(?:\s[^>]*)?>[^<]`)
	addresses := regexp.MustCompile(`https?://[\w.-]+`)
	names, err := fs.Glob(page, "page/*")
	if err != nil || len(names) < 6 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		b, err := page.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if m := forbidden.Find(b); m != nil {
			t.Errorf("%s uses %s", name, m)
		}
		if m := inline.Find(b); strings.HasSuffix(name, ".html") && m != nil {
			t.Errorf("%s has %s, which the policy forbids", name, m)
		}
		for _, url := range addresses.FindAllString(string(b), -1) {
			if url != "http://www.w3.org" { // a namespace, never fetched
				t.Errorf("%s refers to %s; the page must need no network", name, url)
			}
		}
	}
}

func TestHostileNamesAreEscaped(t *testing.T) {
	const evil = `"><img src=x onerror=alert(1)></script>`
	f := newFakePlan(evil, 1)
	f.stream(evil, gatewayName)
	f.sink("sink"+evil, evil)
	w := newWorld(f.done())
	s := demo(w)
	s.Alerts = func(context.Context) ([]Alert, error) { return []Alert{{Device: evil, Home: evil}}, nil }
	s.ReadyErr = func() error { return errors.New(evil) }
	base := serve(t, s)
	for _, path := range []string{"/api/graph", "/api/status", "/api/tap?stream=%3Cimg+src%3Dx%3E"} {
		_, body, header := get(t, base+path)
		if strings.HasPrefix(header.Get("Content-Type"), "text/html") || header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, header)
		}
		if strings.HasPrefix(header.Get("Content-Type"), "application/json") && strings.ContainsAny(body, "<>") {
			t.Errorf("%s: not escaped: %s", path, body)
		}
	}
	if status := ask[Status](t, base+"/api/status"); status.Alerts[0].Device != evil {
		t.Errorf("device %q", status.Alerts[0].Device)
	}
}

func TestNumbersThatAreNoneAreNull(t *testing.T) {
	nan := 0.0
	nan /= nan
	v := Alert{Score: nan, Value: 1}.view()
	if v.Score != nil || *v.Value != 1 {
		t.Errorf("%+v", v)
	}
	if _, err := json.Marshal(v); err != nil {
		t.Error(err)
	}
}

func TestFeed(t *testing.T) {
	w := newWorld(homesPlan())
	base := serve(t, demo(w))
	res, err := http.Get(base + "/api/status/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Fatalf("Content-Type %q", ct)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	var at []flow.Micros
	for len(at) < 2 && lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var status Status
		if err := json.Unmarshal([]byte(text), &status); err != nil {
			t.Fatal(err)
		}
		if status.History != nil {
			t.Error("an event repeats the history")
		}
		at = append(at, status.At)
	}
	if len(at) < 2 || at[1].Sub(at[0]) < 500*time.Millisecond {
		t.Errorf("events at %v: %v", at, lines.Err())
	}
}

func TestFeedLimit(t *testing.T) {
	s := demo(newWorld(homesPlan()))
	base := serve(t, s)
	var open []*http.Response
	defer func() {
		for _, r := range open {
			r.Body.Close()
		}
	}()
	for range feedsMax {
		res, err := http.Get(base + "/api/status/stream")
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
		open = append(open, res)
	}
	status, body, header := get(t, base+"/api/status/stream")
	if status != 503 || header.Get("Retry-After") == "" || !strings.Contains(body, "/api/status") {
		t.Errorf("one too many: %d %q", status, body)
	}
	open[0].Body.Close()
	open = open[1:]
	eventually(t, "a place to be free again", func() bool {
		res, err := http.Get(base + "/api/status/stream")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, res)
		return res.StatusCode == 200
	})
}

// A page that does not read is cut off; the others notice nothing.
func TestSlowPageIsCutOff(t *testing.T) {
	s := demo(newWorld(homesPlan()))
	s.writeWait = 200 * time.Millisecond
	base := serve(t, s)
	addr := strings.TrimPrefix(base, "http://")
	slow, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	fmt.Fprintf(slow, "GET /api/status/stream HTTP/1.1\r\nHost: %s\r\n\r\n", addr)
	fast, err := http.Get(base + "/api/status/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer fast.Body.Close()
	read := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, fast.Body)
		read <- n
	}()
	readers := func() int {
		s.feed.mu.Lock()
		defer s.feed.mu.Unlock()
		return len(s.feed.readers)
	}
	eventually(t, "both to listen", func() bool { return readers() == 2 })
	big := &Status{Pipeline: strings.Repeat("x", 1<<20)}
	longest := time.Duration(0)
	eventually(t, "the slow one to be cut off", func() bool {
		start := time.Now()
		if err := s.feed.publish(func() *Status { return big }); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(start))
		return readers() == 1
	})
	if longest > 2*time.Second {
		t.Errorf("publishing took %v: it waited for a page", longest)
	}
	fast.Body.Close()
	if n := <-read; n < 2<<20 {
		t.Errorf("the fast page got %d bytes", n)
	}
}

func TestSlowQuestionsDelayNobody(t *testing.T) {
	s := demo(newWorld(homesPlan()))
	s.Numbers = func(ctx context.Context) ([]Number, error) { <-ctx.Done(); return nil, ctx.Err() }
	s.Alerts = func(context.Context) ([]Alert, error) { panic("a bug") }
	base := serve(t, s)
	res, err := http.Get(base + "/api/status/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	start, events := time.Now(), 0
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	panicked := false
	for events < 3 && lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data: ") {
			events++
			panicked = panicked || strings.Contains(lines.Text(), "panicked: a bug")
		}
	}
	if took := time.Since(start); events < 3 || took > pollTimeout {
		t.Errorf("%d events in %v", events, took)
	}
	if !panicked {
		t.Error("a question that panics is not told")
	}
}
