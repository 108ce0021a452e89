package cli

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"hearthline/ingest"
	"hearthline/ingest/commands"
	"hearthline/ingest/live"
	"hearthline/ingest/peers"
	"hearthline/ingest/shadow"
	"hearthline/ingest/table"
	"hearthline/streams"
)

// Every metric of a gateway and of a process is there, named, explained and labelled as Prometheus wants it, and each number stands
// where it belongs.
func TestMetricsOfTheGateway(t *testing.T) {
	s := ingest.Stats{
		Listeners: map[string]ingest.ListenerStats{"mqtt": {Open: 3}, "http": {}},
		Routes:    map[string]ingest.RouteStats{"/v1/telemetry": {Answers: [6]uint64{2: 5, 4: 1}}},
		Sessions:  9, SessionsAway: 2, KeptMessages: 11, KeptBytes: 1200, CertificateExpires: time.Unix(2e9, 0), AuditDropped: 4,
		Peers:    &peers.Stats{Others: 23, Connected: 22, Queued: 5, Sent: 6, Lost: 7, Received: 8, Failed: 12, Expires: time.Unix(2e9+1, 0)},
		Tables:   map[string]table.Stats{"queues": {Keys: 13, Lag: 14, Repairs: 15, Silence: 1500 * time.Millisecond}},
		Commands: &commands.Stats{Executed: 16, Expired: 17, Open: [commands.Executed]int64{commands.Sent: 18}, Rerouted: 19},
	}
	s.Shadow, s.Live = &shadow.Stats{Reported: 22, Owed: 23, Pending: 24}, &live.Stats{Open: 25, Slow: 26}
	s.Commands.UntilExecuted.Buckets[3], s.Commands.UntilExecuted.Count, s.Commands.UntilExecuted.Sum = 20, 20, time.Second
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(gatewayCollector{func() ingest.Stats { return s }},
		processCollector{func() error { return errors.New("no") }, func() (streams.Stats, bool) { return streams.Stats{Failures: 21}, true }})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += "{" + l.GetName() + "=" + l.GetValue() + "}"
			}
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			got = append(got, strings.TrimPrefix(f.GetName(), "hearthline_")+labels+" "+strconv.FormatFloat(v, 'f', -1, 64))
		}
	}
	for _, want := range []string{
		"gateway_listener_connections{listener=mqtt} 3", "gateway_http_answers_total{class=2xx}{route=/v1/telemetry} 5",
		"gateway_sessions{state=connected} 7", "gateway_sessions{state=resting} 2", "gateway_session_messages 11", "gateway_session_bytes 1200",
		"gateway_certificate_expires_timestamp_seconds{certificate=gateway} 2000000000", "gateway_certificate_expires_timestamp_seconds{certificate=peers} 2000000001",
		"gateway_peers_known 23", "gateway_peers_connected 22", "gateway_peers_queued_messages 5", "gateway_peers_calls_failed_total 12",
		"gateway_peers_messages_total{direction=sent} 6", "gateway_peers_messages_total{direction=lost} 7", "gateway_peers_messages_total{direction=received} 8",
		"gateway_table_records{table=queues} 13", "gateway_table_lag_records{table=queues} 14", "gateway_table_rewrites_total{table=queues} 15", "gateway_table_silence_seconds{table=queues} 1.5",
		"gateway_commands_total{state=executed} 16", "gateway_commands_total{state=expired} 17", "gateway_commands_open{state=sent} 18", "gateway_commands_rerouted_total 19",
		"gateway_command_seconds{until=executed} 20", "gateway_commands_audit_dropped_total 4", "ready 0",
		"gateway_shadow_changes_total{half=reported} 22", "gateway_shadow_deltas_total{state=owed} 23", "gateway_shadow_pending 24", "gateway_live_streams 25", "gateway_live_slow_total 26",
		"kafka_requests_failed_total 21",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in\n%s", want, strings.Join(got, "\n"))
		}
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
