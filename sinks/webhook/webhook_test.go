package webhook_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"hearthline/flow"
	"hearthline/sinks/sinktest"
	"hearthline/sinks/webhook"
)

var alerts = arrow.NewSchema([]arrow.Field{
	{Name: flow.ColTime, Type: flow.InstantType},
	{Name: flow.ColReceived, Type: flow.InstantType},
	{Name: flow.ColHome, Type: flow.KeyType},
	{Name: flow.ColDevice, Type: flow.KeyType},
	{Name: flow.ColMetric, Type: flow.KeyType},
	{Name: "id", Type: arrow.BinaryTypes.String},
	{Name: "state", Type: flow.KeyType},
	{Name: "severity", Type: flow.KeyType},
	{Name: "score", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
	{Name: "value", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
	{Name: "threshold", Type: arrow.PrimitiveTypes.Float64},
	{Name: "started", Type: flow.InstantType, Nullable: true},
}, nil)

// receiver is what a sink posts to. It keeps a body once for each webhook-id, as the specification asks.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	bodies map[string][]byte
	posts  []post
	// answer decides what to answer; nil or 0 is 200, and only 2xx keeps the body.
	answer func(n int, w http.ResponseWriter, r *http.Request) int
}

type post struct {
	header http.Header
	body   []byte
}

func newReceiver(t *testing.T, tls bool) *receiver {
	t.Helper()
	r := &receiver{bodies: make(map[string][]byte)}
	r.Server = httptest.NewUnstartedServer(r)
	must(t, r.Listener.Close())
	r.Listener = listen(t)
	r.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if tls {
		r.StartTLS()
	} else {
		r.Start()
	}
	t.Cleanup(r.Close)
	return r
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	for range 200 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err == nil {
			return l
		}
	}
	t.Fatal("no free port between 20000 and 32000")
	return nil
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the sender broke off
	}
	r.mu.Lock()
	n := len(r.posts)
	r.posts = append(r.posts, post{req.Header.Clone(), body})
	answer := r.answer
	r.mu.Unlock()
	status := 0
	if answer != nil {
		status = answer(n, w, req)
	}
	if status == 0 {
		status = http.StatusOK
	}
	if status/100 == 2 {
		r.mu.Lock()
		r.bodies[req.Header.Get("webhook-id")] = body
		r.mu.Unlock()
	}
	w.WriteHeader(status)
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.posts)
}

// rows gives what was kept, in the types that sinktest compares.
func (r *receiver) rows(schema *arrow.Schema) ([]sinktest.Row, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var rows []sinktest.Row
	for _, body := range r.bodies {
		var list []json.RawMessage
		if body[0] == '{' {
			list = []json.RawMessage{body}
		} else if err := json.Unmarshal(body, &list); err != nil {
			return nil, err
		}
		for _, raw := range list {
			row, err := decodeRow(raw, schema)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

func decodeRow(raw []byte, schema *arrow.Schema) (sinktest.Row, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	row := make(sinktest.Row)
	if err := d.Decode(&row); err != nil {
		return nil, err
	}
	for name, v := range row {
		f, _ := schema.FieldsByName(name)
		var err error
		switch n := v.(type) {
		case json.Number:
			if f[0].Type.ID() == arrow.FLOAT64 {
				row[name], err = n.Float64()
			} else {
				row[name], err = n.Int64()
			}
		case string:
			if f[0].Type.ID() == arrow.TIMESTAMP {
				row[name], err = time.Parse(time.RFC3339Nano, n)
			}
		case map[string]any:
			m := make(map[string]string, len(n))
			for k, v := range n {
				m[k] = v.(string)
			}
			row[name] = m
		}
		if err != nil {
			return nil, err
		}
	}
	return row, nil
}

func TestContract(t *testing.T) {
	for name, c := range map[string]struct {
		schema *arrow.Schema
		set    func(*webhook.Sink)
	}{
		"alerts":       {alerts, func(*webhook.Sink) {}},
		"events":       {flow.EventSchema, func(s *webhook.Sink) { s.BatchMax = 1000 }},
		"each its own": {alerts, func(s *webhook.Sink) { s.Single = true }},
	} {
		t.Run(name, func(t *testing.T) {
			sinktest.Run(t, func(t *testing.T) sinktest.Place {
				r := newReceiver(t, false)
				broken := make(chan int, 1)
				broken <- -1
				r.answer = func(int, http.ResponseWriter, *http.Request) int {
					left := <-broken
					defer func() { broken <- left }()
					if left == 0 {
						return http.StatusServiceUnavailable
					}
					left--
					return 0
				}
				return sinktest.Place{
					Stream: "alerts", Schema: c.schema,
					Sink: func() flow.Sink {
						s := newSink(r)
						s.TriesMax = 1
						c.set(s)
						return s
					},
					Rows:  func(context.Context) ([]sinktest.Row, error) { return r.rows(c.schema) },
					Break: func(n int) { <-broken; broken <- n },
				}
			})
		})
	}
}

func newSink(r *receiver) *webhook.Sink {
	s := webhook.New()
	s.URL, s.RetryWaitMax = r.URL+"/hook/s3cret", 5*time.Millisecond
	return s
}

func opened(t *testing.T, s *webhook.Sink) *webhook.Sink {
	t.Helper()
	must(t, s.Open(t.Context()))
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// some makes a record of n alerts with ids from a0 on.
func some(n int) []arrow.Record {
	b := array.NewRecordBuilder(memory.DefaultAllocator, alerts)
	defer b.Release()
	for i := range n {
		for c, f := range alerts.Fields() {
			switch b := b.Field(c).(type) {
			case *array.TimestampBuilder:
				b.Append(arrow.Timestamp(1_795_370_400_000_001 + int64(i)))
			case *array.BinaryDictionaryBuilder:
				_ = b.AppendString(f.Name)
			case *array.StringBuilder:
				b.Append(fmt.Sprintf("a%d", i))
			case *array.Float64Builder:
				b.Append([]float64{1.5, math.NaN(), math.Inf(1)}[i%3])
			}
		}
	}
	return []arrow.Record{b.NewRecord()}
}

var aRange = flow.Range{Stream: "alerts", StreamID: "k7", Partition: 2, First: 10, Last: 19}

func TestRequest(t *testing.T) {
	r := newReceiver(t, false)
	s := newSink(r)
	key := bytes.Repeat([]byte{7}, 32)
	old := bytes.Repeat([]byte{9}, 24)
	s.Secrets = []string{"whsec_" + base64.StdEncoding.EncodeToString(key), "whsec_" + base64.StdEncoding.EncodeToString(old)}
	s.Headers = map[string]string{"Authorization": "Bearer t"}
	s.Now = func() time.Time { return time.Unix(1_795_370_400, 5) }
	s.BatchMax = 2
	opened(t, s)
	must(t, s.Write(t.Context(), aRange, some(3)))
	if len(r.posts) != 2 {
		t.Fatalf("%d requests for 3 rows by 2; want 2", len(r.posts))
	}
	p := r.posts[0]
	want := `[{"time":"2026-11-22T18:00:00.000001Z","received":"2026-11-22T18:00:00.000001Z","home":"home","device":"device","metric":"metric","id":"a0",` +
		`"state":"state","severity":"severity","score":1.5,"value":1.5,"threshold":1.5,"started":"2026-11-22T18:00:00.000001Z"},` +
		`{"time":"2026-11-22T18:00:00.000002Z","received":"2026-11-22T18:00:00.000002Z","home":"home","device":"device","metric":"metric","id":"a1",` +
		`"state":"state","severity":"severity","score":null,"value":null,"threshold":null,"started":"2026-11-22T18:00:00.000002Z"}]`
	if d := cmp.Diff(want, string(p.body)); d != "" {
		t.Error(d)
	}
	for name, want := range map[string]string{"Authorization": "Bearer t", "Content-Type": "application/json", "Webhook-Timestamp": "1795370400"} {
		if got := p.header.Get(name); got != want {
			t.Errorf("header %s: %q; want %q", name, got, want)
		}
	}
	var signatures []string
	for _, k := range [][]byte{key, old} {
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(p.header.Get("webhook-id") + ".1795370400." + want))
		signatures = append(signatures, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	if got := p.header.Get("webhook-signature"); got != strings.Join(signatures, " ") {
		t.Errorf("signature %q; want %q", got, signatures)
	}
	if a, b := r.posts[0].header.Get("webhook-id"), r.posts[1].header.Get("webhook-id"); a == b || strings.Contains(a, ".") {
		t.Errorf("ids %q and %q", a, b)
	}
	if st := s.Stats(); st != (webhook.Stats{Requests: 2, Rows: 3}) {
		t.Errorf("stats %+v", st)
	}
}

// TestSpecExample is the example of the specification's reference libraries.
func TestSpecExample(t *testing.T) {
	got := webhook.Sign("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("signature %q; want %q", got, want)
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name      string
		answers   []int // one a request; the last for all after it
		header    http.Header
		bad       bool
		wantErr   string
		wantPosts int
	}{
		{name: "created", answers: []int{201}, wantPosts: 1},
		{name: "no content", answers: []int{204}, wantPosts: 1},
		{name: "bad request", answers: []int{400}, bad: true, wantErr: "1 rows, the first (row 0)", wantPosts: 1},
		{name: "gone", answers: []int{410}, bad: true, wantErr: "410 Gone", wantPosts: 1},
		{name: "once too many", answers: []int{429, 200}, wantPosts: 2},
		{name: "request timeout", answers: []int{408, 200}, wantPosts: 2},
		{name: "down for long", answers: []int{503}, wantErr: "given up after 4 tries", wantPosts: 4},
		{name: "down, then refused", answers: []int{500, 502, 422}, bad: true, wantErr: "422", wantPosts: 3},
		{name: "asks for an hour", answers: []int{503, 200}, header: http.Header{"Retry-After": {"3600"}}, wantPosts: 2},
		{name: "asks for a date", answers: []int{503, 200}, header: http.Header{"Retry-After": {"Sun, 22 Nov 2099 18:00:00 GMT"}}, wantPosts: 2},
		{name: "asks for nonsense", answers: []int{503, 200}, header: http.Header{"Retry-After": {"soon"}}, wantPosts: 2},
		{name: "redirects", answers: []int{307}, header: http.Header{"Location": {"/elsewhere"}}, wantErr: "redirects are not followed", wantPosts: 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newReceiver(t, false)
			r.answer = func(n int, w http.ResponseWriter, _ *http.Request) int {
				for k, v := range c.header {
					w.Header()[k] = v
				}
				return c.answers[min(n, len(c.answers)-1)]
			}
			s := opened(t, newSink(r))
			err := s.Write(t.Context(), aRange, some(1))
			if (err == nil) != (c.wantErr == "" && !c.bad) || errors.Is(err, flow.ErrBad) != c.bad || err != nil && !strings.Contains(err.Error(), c.wantErr) {
				t.Errorf("error %v; want bad=%v, %q", err, c.bad, c.wantErr)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error gives the URL away: %v", err)
			}
			if n := r.count(); n != c.wantPosts {
				t.Errorf("%d requests; want %d", n, c.wantPosts)
			}
			ids := make(map[string]bool)
			for _, p := range r.posts {
				ids[p.header.Get("webhook-id")] = true
			}
			if len(ids) != 1 {
				t.Errorf("tries of one request had ids %v", ids)
			}
		})
	}
}

// TestOneRefused: a request refused does not keep back the others.
func TestOneRefused(t *testing.T) {
	r := newReceiver(t, false)
	r.answer = func(n int, _ http.ResponseWriter, _ *http.Request) int {
		if n == 1 {
			return http.StatusUnprocessableEntity
		}
		return 0
	}
	s := newSink(r)
	s.BatchMax = 2
	opened(t, s)
	err := s.Write(t.Context(), aRange, some(7))
	if !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "2 rows, the first (row 2)") {
		t.Errorf("error %v", err)
	}
	if st := s.Stats(); st.Rows != 5 || st.Refused != 2 || len(r.bodies) != 3 {
		t.Errorf("stats %+v, %d bodies kept", st, len(r.bodies))
	}
}

// TestBrokenOff: a context that ends stops waiting for the next try and for an answer.
func TestBrokenOff(t *testing.T) {
	t.Run("between tries", func(t *testing.T) {
		r := newReceiver(t, false)
		ctx, cancel := context.WithCancel(t.Context())
		r.answer = func(_ int, w http.ResponseWriter, _ *http.Request) int {
			w.Header().Set("Retry-After", "3600")
			cancel()
			return 503
		}
		s := newSink(r)
		s.RetryWaitMax = time.Hour
		if err := opened(t, s).Write(ctx, aRange, some(1)); !errors.Is(err, context.Canceled) || errors.Is(err, flow.ErrBad) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no answer", func(t *testing.T) {
		r := newReceiver(t, false)
		r.answer = func(_ int, _ http.ResponseWriter, req *http.Request) int { <-req.Context().Done(); return 200 }
		s := newSink(r)
		s.Timeout, s.TriesMax = 30*time.Millisecond, 2
		err := opened(t, s).Write(t.Context(), aRange, some(1))
		if err == nil || errors.Is(err, flow.ErrBad) || strings.Contains(err.Error(), "s3cret") || r.count() != 2 {
			t.Errorf("error %v after %d requests", err, r.count())
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		r := newReceiver(t, false)
		s := opened(t, newSink(r))
		r.Close()
		if err := s.Write(t.Context(), aRange, some(1)); err == nil || errors.Is(err, flow.ErrBad) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("error %v", err)
		}
	})
}

func TestCertificateIsVerified(t *testing.T) {
	r := newReceiver(t, true)
	err := opened(t, newSink(r)).Write(t.Context(), aRange, some(1))
	if err == nil || !strings.Contains(err.Error(), "certificate") || r.count() != 0 {
		t.Errorf("error %v after %d requests; want one of the certificate", err, r.count())
	}
	s := newSink(r)
	s.Transport = r.Client().Transport // knows the receiver's authority
	must(t, opened(t, s).Write(t.Context(), aRange, some(1)))
	if r.count() != 1 {
		t.Errorf("%d requests; want 1", r.count())
	}
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	s := webhook.New()
	s.Log = true
	if err := s.Open(t.Context()); err == nil {
		t.Error("log without a logger opened")
	}
	s.Logger = slog.New(slog.NewTextHandler(&out, nil))
	opened(t, s)
	must(t, s.Write(t.Context(), aRange, some(3)))
	if n := strings.Count(out.String(), "level=INFO"); n != 3 || !strings.Contains(out.String(), "a2") {
		t.Errorf("%d lines logged; want 3:\n%s", n, out.String())
	}
}

func TestSettings(t *testing.T) {
	secret := "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 32))
	for want, set := range map[string]func(*webhook.Sink){
		"":                          func(s *webhook.Sink) { s.Secrets = []string{secret}; s.Headers = map[string]string{"X-A": "b"} },
		"setting url: give the":     func(s *webhook.Sink) { s.URL = "" },
		"log: true":                 func(s *webhook.Sink) { s.URL = "" },
		`scheme "ftp"`:              func(s *webhook.Sink) { s.URL = "ftp://x/s3cret" },
		"names no host":             func(s *webhook.Sink) { s.URL = "https:///s3cret" },
		"not a URL":                 func(s *webhook.Sink) { s.URL = "https://x/s3cret\x7f" },
		"user or password":          func(s *webhook.Sink) { s.URL = "https://u:s3cret@x/" },
		"batch_max: 0":              func(s *webhook.Sink) { s.BatchMax = 0 },
		"timeout: 0s":               func(s *webhook.Sink) { s.Timeout = 0 },
		"tries_max: 0":              func(s *webhook.Sink) { s.TriesMax = 0 },
		"retry_wait_max: -1s":       func(s *webhook.Sink) { s.RetryWaitMax = -time.Second },
		"flush_rows":                func(s *webhook.Sink) { s.FlushRows = 0 },
		"begin with whsec_":         func(s *webhook.Sink) { s.Secrets = []string{"s3cret"} },
		"not base64":                func(s *webhook.Sink) { s.Secrets = []string{"whsec_s3cret!"} },
		"number 2 has 3 bytes":      func(s *webhook.Sink) { s.Secrets = []string{secret, "whsec_AAAA"} },
		"set by the sink itself":    func(s *webhook.Sink) { s.Headers = map[string]string{"Webhook-Id": "s3cret"} },
		"not a header, or its":      func(s *webhook.Sink) { s.Headers = map[string]string{"a b": "s3cret"} },
		"or its value has a line":   func(s *webhook.Sink) { s.Headers = map[string]string{"a": "s3cret\r\nb: c"} },
		`column "d": type date32`:   nil,
		`column "m": map<int64, ut`: nil,
	} {
		s := webhook.New()
		s.URL = "https://example.com/s3cret"
		schema := alerts
		switch {
		case set != nil:
			set(s)
		case strings.Contains(want, "date32"):
			schema = arrow.NewSchema([]arrow.Field{{Name: "d", Type: arrow.FixedWidthTypes.Date32}}, nil)
		default:
			schema = arrow.NewSchema([]arrow.Field{{Name: "m", Type: arrow.MapOf(arrow.PrimitiveTypes.Int64, arrow.BinaryTypes.String)}}, nil)
		}
		err := s.Check("alerts", schema)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("check: %v; want %q", err, want)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error gives a secret away: %v", err)
		}
	}
	must(t, webhook.New().Close()) // never opened
	if rows, wait := webhook.New().Flush(); rows != 1000 || wait != 200*time.Millisecond {
		t.Errorf("flush %d, %s", rows, wait)
	}
}

// TestIDs: the ids follow from the range and the rows, whatever the records.
func TestIDs(t *testing.T) {
	ids := func(r flow.Range, cut func(arrow.Record) []arrow.Record) []string {
		rc := newReceiver(t, false)
		s := newSink(rc)
		s.BatchMax = 3
		must(t, opened(t, s).Write(t.Context(), r, cut(some(8)[0])))
		var ids []string
		for _, p := range rc.posts {
			ids = append(ids, p.header.Get("webhook-id"))
		}
		return ids
	}
	whole := ids(aRange, func(rec arrow.Record) []arrow.Record { return []arrow.Record{rec} })
	rows := ids(aRange, func(rec arrow.Record) []arrow.Record {
		var recs []arrow.Record
		for i := range rec.NumRows() {
			recs = append(recs, rec.NewSlice(i, i+1))
		}
		return recs
	})
	if !slices.Equal(whole, rows) || len(whole) != 3 {
		t.Errorf("ids %v, cut otherwise %v", whole, rows)
	}
	other := aRange
	other.StreamID = "k8"
	for _, id := range ids(other, func(rec arrow.Record) []arrow.Record { return []arrow.Record{rec} }) {
		if slices.Contains(whole, id) {
			t.Errorf("id %s in two incarnations", id)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
