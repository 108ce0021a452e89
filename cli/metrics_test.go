package cli

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"hearthline/ingest"
)

// Every metric of the gateway is there, named and labelled as Prometheus wants it.
func TestMetricsOfTheGateway(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	var s ingest.Stats
	s.Listeners = map[string]ingest.ListenerStats{"mqtt": {Open: 3}, "http": {}}
	s.Routes = map[string]ingest.RouteStats{"/v1/telemetry": {Answers: [6]uint64{2: 5, 4: 1}}}
	registry.MustRegister(gatewayCollector{func() ingest.Stats { return s }})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, f := range families {
		text += f.String() + "\n"
	}
	for _, want := range []string{"hearthline_gateway_listener_connections", "hearthline_gateway_listener_handshake_seconds", `"2xx"`, "hearthline_gateway_acknowledge_seconds"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing", want)
		}
	}
}
