package ingest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/ingest/payload/payloadtest"

	"github.com/klauspost/compress/zstd"
)

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	z.Write(b)
	z.Close()
	return buf.Bytes()
}

func zstded(b []byte) []byte {
	var buf bytes.Buffer
	z, _ := zstd.NewWriter(&buf)
	z.Write(b)
	z.Close()
	return buf.Bytes()
}

const deviceReading = `{"device":"lamp","metric":"power","value":7}`

func TestHTTPTakesEveryFormat(t *testing.T) {
	r := newRig(t, nil)
	lines := []byte(deviceReading + "\n" + deviceReading + "\n")
	fresh := fmt.Sprintf(`[{"bn":"lamp/","bt":%d,"n":"power","v":7},{"n":"power","v":7}]`, time.Now().Unix())
	for _, c := range []struct {
		name, media string
		body        []byte
		header      []string
		rows        int
	}{
		{"object", mediaJSON, []byte(deviceReading), nil, 1},
		{"array", "application/json; charset=utf-8", []byte("[" + deviceReading + "," + deviceReading + "]"), nil, 2},
		{"NDJSON", mediaLines, lines, nil, 2},
		{"NDJSON gzip", mediaLines, gzipped(lines), []string{"Content-Encoding", "gzip"}, 2},
		{"NDJSON zstd", mediaLines, zstded(lines), []string{"Content-Encoding", "zstd"}, 2},
		{"SenML", mediaSenML, []byte(fresh), nil, 2},
		{"Bearer", mediaJSON, []byte(deviceReading), []string{"Authorization", "Bearer anna:" + r.passwords["anna"]}, 1},
		{"many rows", mediaLines, bytes.Repeat([]byte(deviceReading+"\n"), 20_000), nil, 20_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(r.road.events())
			status, body, _ := r.post("anna", c.media, c.body, c.header...)
			var got receipt
			if err := json.Unmarshal([]byte(body), &got); err != nil || status != 200 || got.Accepted != c.rows || got.Refused != 0 {
				t.Fatalf("%d %s", status, body)
			}
			all := r.road.events()
			if len(all)-before != c.rows {
				t.Fatalf("%d rows in the log; want %d", len(all)-before, c.rows)
			}
			if e := all[len(all)-1]; e.Home != "h1" || e.Device != "lamp" || e.Metric != "power" || e.Value != 7 {
				t.Errorf("%+v", e)
			}
		})
	}
	t.Run("Arrow", func(t *testing.T) {
		before := len(r.road.events())
		if status, body, _ := r.post("anna", mediaArrow, payloadtest.Arrow(t)); status != 200 && !strings.Contains(body, `"time"`) {
			t.Errorf("%d %s", status, body)
		} else if status == 200 && len(r.road.events())-before != 3 {
			t.Error(len(r.road.events()) - before)
		}
	})
}

func TestHTTPKeepsGoodRowsBesideBadOnes(t *testing.T) {
	r := newRig(t, nil)
	body := strings.Join([]string{deviceReading, `{"device":"lamp","metric":"power","value":NaN}`, `{"home":"h2","device":"lamp","metric":"power","value":1}`, `{nonsense`, `{"metric":"power","value":1}`, deviceReading}, "\n")
	status, answer, _ := r.post("anna", mediaLines, []byte(body))
	var got receipt
	if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 || got.Accepted != 2 || got.Refused != 4 {
		t.Fatalf("%d %s", status, answer)
	}
	for i, want := range []verdict{{Row: 1, Reason: "not_finite"}, {Row: 2, Reason: "home"}, {Row: 3, Reason: "malformed"}, {Row: 4, Reason: "missing"}} {
		if g := got.Rows[i]; g.Row != want.Row || g.Reason != want.Reason || g.Detail == "" {
			t.Errorf("%+v; want %+v", g, want)
		}
	}
	if n := len(r.road.events()); n != 2 {
		t.Errorf("%d rows in the log", n)
	}
	s := r.Stats()
	if s.RowsAccepted != 2 || s.RowsDurable != 2 || s.RowsRefused["not_finite"] != 1 || s.RowsRefused["home"] != 1 {
		t.Errorf("%+v", s)
	}
}

func TestHTTPSaysWhatIsWrong(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.DecompressedBytesMax = 8 << 20; g.HTTPRowsMax = 50_000 })
	bomb := gzipped(bytes.Repeat([]byte(" "), 9<<20))
	for _, c := range []struct {
		name, user, media string
		body              []byte
		header            []string
		status            int
		says              string
	}{
		{"no JSON", "anna", mediaJSON, []byte(`{"device"`), nil, 400, "malformed"},
		{"empty body", "anna", mediaJSON, nil, nil, 400, "empty"},
		{"no row usable", "anna", mediaLines, []byte(`{"device":"d","metric":"m"}`), nil, 400, `"reason":"value"`},
		{"wrong password", "anna", mediaJSON, []byte(deviceReading), []string{"Authorization", "Basic YW5uYTpubw=="}, 401, "wrong password"},
		{"no credentials", "anna", mediaJSON, []byte(deviceReading), []string{"Authorization", ""}, 401, "needed"},
		{"another home", "anna", mediaJSON, []byte(`{"home":"h2","device":"d","metric":"m","value":1}`), nil, 403, `"reason":"home"`},
		{"another device", "lamp", mediaJSON, []byte(`{"device":"oven","metric":"m","value":1}`), nil, 403, `"reason":"device"`},
		{"an app", "app", mediaJSON, []byte(deviceReading), nil, 403, "may not send"},
		{"10 MB", "anna", mediaJSON, bytes.Repeat([]byte(" "), 10<<20), nil, 413, "at most 4194304"},
		{"a gzip bomb", "anna", mediaJSON, bomb, []string{"Content-Encoding", "gzip"}, 413, "decompressed"},
		{"a zstd bomb", "anna", mediaJSON, zstded(bytes.Repeat([]byte(" "), 9<<20)), []string{"Content-Encoding", "zstd"}, 413, "decompressed"},
		{"too many rows", "anna", mediaLines, bytes.Repeat([]byte("{}\n"), 50_001), nil, 413, "50000"},
		{"no gzip", "anna", mediaJSON, []byte("{}"), []string{"Content-Encoding", "gzip"}, 400, "cannot be read"},
		{"brotli", "anna", mediaJSON, []byte("{}"), []string{"Content-Encoding", "br"}, 415, "gzip, zstd"},
		{"XML", "anna", "application/xml", []byte("<a/>"), nil, 415, "want application/json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body, header := r.post(c.user, c.media, c.body, c.header...)
			if status != c.status || !strings.Contains(body, c.says) {
				t.Errorf("%d %s; want %d and %q", status, body, c.status, c.says)
			}
			var p problem
			if err := json.Unmarshal([]byte(body), &p); err != nil || header.Get("Content-Type") != "application/problem+json" || p.Status != status || p.Type == "" || p.Title == "" {
				t.Errorf("no problem document: %v %s", err, body)
			}
			if status == 401 && header.Get("WWW-Authenticate") == "" {
				t.Error("no challenge")
			}
		})
	}
	if n := len(r.road.events()); n != 0 {
		t.Errorf("%d rows in the log", n)
	}
	c := r.client()
	defer c.CloseIdleConnections()
	for _, x := range []struct {
		method, path string
		status       int
	}{{"GET", "/v1/telemetry", 405}, {"POST", "/v1/nothing", 404}} {
		req, _ := http.NewRequest(x.method, "https://"+r.at.HTTP.String()+x.path, nil)
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != x.status || x.status == 405 && res.Header.Get("Allow") != "POST" {
			t.Errorf("%s %s: %d", x.method, x.path, res.StatusCode)
		}
		if res.ProtoMajor != 2 {
			t.Errorf("HTTP/%d", res.ProtoMajor)
		}
	}
}

func TestHTTPRate(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.MessagesPerSecond, g.MessagesBurst = 0.5, 2 })
	for i, want := range []int{200, 200, 429} {
		status, body, header := r.post("anna", mediaJSON, []byte(deviceReading))
		if status != want {
			t.Fatalf("request %d: %d %s", i, status, body)
		}
		if after, err := strconv.Atoi(header.Get("Retry-After")); want == 429 && (err != nil || after < 1 || after > 2) {
			t.Errorf("Retry-After %q", header.Get("Retry-After"))
		}
	}
	if status, _, _ := r.post("bert", mediaJSON, []byte(deviceReading)); status != 200 {
		t.Errorf("another user pays for it: %d", status)
	}
}

func TestHTTPWhenTheLogIsAway(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.StoreTimeout = 300 * time.Millisecond })
	r.road.failing.Store(true)
	status, body, header := r.post("anna", mediaJSON, []byte(deviceReading))
	if status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("%d %s", status, body)
	}
	eventually(t, "it says that it is not ready", func() bool { return r.Readiness() != nil })
	if err := r.Health(); err != nil {
		t.Error("it should live on:", err)
	}
	r.road.failing.Store(false)
	eventually(t, "it takes rows again", func() bool {
		status, _, _ := r.post("anna", mediaJSON, []byte(deviceReading))
		return status == 200
	})
	eventually(t, "it is ready", func() bool { return r.Readiness() == nil })
}
