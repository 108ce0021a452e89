package cli

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"hearthline/cli/clitest"
	"hearthline/flow"
)

// A reading that comes with a sampled trace is followed from the gateway through the stages into the sinks; others leave no span.
func TestTracesFollowAReading(t *testing.T) {
	var mu sync.Mutex
	spans := map[string][]*traces.Span{}
	otlp := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &req)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Error(r.URL.Path, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					spans[s.Name] = append(spans[s.Name], s)
				}
			}
		}
	}))
	defer otlp.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.URL)
	t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
	i := clitest.New(t)
	up := i.Up("--no-homes")
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	post := func(traceparent string) {
		t.Helper()
		req, err := http.NewRequest("POST", "https://"+i.HTTP+"/v1/telemetry", strings.NewReader(`{"device":"lamp","metric":"power","value":7.5,"unit":"W","seq":`+traceparent[len(traceparent)-1:]+`}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("traceparent", traceparent)
		req.SetBasicAuth("demo", demoPassword(t, i))
		res, err := demoClient(t, i).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(res.Body)
			t.Fatal(res.Status, string(body))
		}
	}
	post("00-11111111111111111111111111111111-1111111111111111-00") // not sampled
	time.Sleep(300 * time.Millisecond)                              // or both would be in one batch
	post("00-" + trace + "-00f067aa0ba902b7-01")
	i.Eventually("spans of the way", "true", func() string {
		mu.Lock()
		defer mu.Unlock()
		for _, name := range []string{"gateway.publish", "stage.process", "sink.write"} {
			if len(spans[name]) == 0 {
				return name + " is missing"
			}
		}
		return "true"
	})
	up.Stop()
	mu.Lock()
	defer mu.Unlock()
	for name, all := range spans {
		for _, s := range all {
			if hex.EncodeToString(s.TraceId) != trace || s.EndTimeUnixNano < s.StartTimeUnixNano {
				t.Errorf("%s is of trace %x", name, s.TraceId)
			}
		}
	}
	if g := spans["gateway.publish"]; len(g) != 1 || hex.EncodeToString(g[0].ParentSpanId) != "00f067aa0ba902b7" {
		t.Errorf("gateway.publish: %v", g)
	}
	if len(spans["sink.write"]) < 2 {
		t.Errorf("%d sinks have written it; want ClickHouse and Parquet", len(spans["sink.write"]))
	}
}

func demoPassword(t *testing.T, i *clitest.Installation) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(i.Data, "gateway", "passwords.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(text, []byte(`"demo"`))
	return string(bytes.Split(rest, []byte(`"`))[1])
}

func demoClient(t *testing.T, i *clitest.Installation) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(i.Data, "gateway", "ca.pem"))
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA", err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// Without the variables nobody traces, and there is nothing that could cost.
func TestTracesAreOffByDefault(t *testing.T) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"} {
		t.Setenv(name, "")
	}
	tracer, end, err := openTracer(t.Context(), "gateway")
	if tracer != nil || err != nil || end(t.Context()) != nil {
		t.Error(tracer, err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_SDK_DISABLED", "true")
	if tracer, _, _ := openTracer(t.Context(), "gateway"); tracer != nil {
		t.Error("it traces although it is told not to")
	}
	for s, want := range map[string]bool{
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01": true, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00": false,
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": false, "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01": false,
		"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01": false, "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01": false, "": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0b": true, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0a": false,
	} {
		if flow.Traced(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}
