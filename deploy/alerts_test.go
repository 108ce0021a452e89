package deploy_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"

	"hearthline/deploy/promtest"
)

// What each alert is raised by, and what it is silent at, as series of half an hour at a sample each 15 s: start+step×samples. Time begins at 0,
// and alerts are asked at 1800.
var alertCases = map[string]struct{ raised, silent []string }{
	"HearthlineIsGone":       {nil, []string{`hearthline_ready 0x120`}},
	"HearthlineNotReady":     {[]string{`hearthline_ready 0x120`}, []string{`hearthline_ready 1x120`}},
	"HearthlinePanics":       {[]string{`hearthline_gateway_panics_total 0x90 1x30`}, []string{`hearthline_gateway_panics_total 7x120`}},
	"HearthlineCannotReload": {[]string{`hearthline_gateway_reload_errors_total 0x90 1+1x30`}, []string{`hearthline_gateway_reload_errors_total 7x120`}},
	"HearthlineRestartsOften": {
		[]string{`process_start_time_seconds{job="monitoring/hearthline-homes"} 1x20 2x20 3x20 4x20 5x20`},
		[]string{`process_start_time_seconds{job="monitoring/hearthline-homes"} 1x60 2x60`, `hearthline_restarts_total{node="score"} 1x120`},
	},
	"HearthlineCertificateExpires":     {[]string{`hearthline_gateway_certificate_expires_timestamp_seconds{certificate="peers"} 1000000x120`}, []string{`hearthline_gateway_certificate_expires_timestamp_seconds 2000000x120`}},
	"HearthlineCertificateExpiresSoon": {[]string{`hearthline_gateway_certificate_expires_timestamp_seconds 100000x120`}, []string{`hearthline_gateway_certificate_expires_timestamp_seconds 1000000x120`}},
	"HearthlineBrokerAway":             {[]string{`hearthline_kafka_requests_failed_total 0+3x120`}, []string{`hearthline_kafka_requests_failed_total 3x60 4x60`}},
	"HearthlineRowsWait": {
		[]string{`hearthline_gateway_rows_waiting 90x120`, `hearthline_gateway_rows_durable_total 1000x120`},
		[]string{`hearthline_gateway_rows_waiting 90x120`, `hearthline_gateway_rows_durable_total 1000+100x120`},
	},
	"HearthlineBadMessages":     {[]string{`hearthline_kafka_bad_messages_total 0x90 1x30`}, []string{`hearthline_kafka_bad_messages_total 1x120`}},
	"HearthlineConnectionsFall": {[]string{`hearthline_gateway_connections{instance="a"} 1000x118 0x2`, `hearthline_gateway_connections{instance="b"} 1000x118 100x2`}, []string{`hearthline_gateway_connections{instance="a"} 1000x118 0x2`, `hearthline_gateway_connections{instance="b"} 1000x118 1900x2`}},
	"HearthlineGatewayFull":     {[]string{`hearthline_gateway_listener_full_total 0+1x120`}, []string{`hearthline_gateway_listener_full_total 5x120`}},
	"HearthlineGatewayRefuses": {
		[]string{`hearthline_gateway_refused_total{reason="signature"} 0+300x120`, `hearthline_gateway_messages_total 0+1500x120`, `hearthline_gateway_live_messages_total 0x120`, `hearthline_gateway_requests_total 0x120`},
		[]string{`hearthline_gateway_refused_total{reason="signature"} 0+30x120`, `hearthline_gateway_messages_total 0+1500x120`, `hearthline_gateway_live_messages_total 0x120`, `hearthline_gateway_requests_total 0x120`},
	},
	"HearthlineHandshakesSlow":     {slow("hearthline_gateway_listener_handshake_seconds", `listener="mqtt"`, 4), slow("hearthline_gateway_listener_handshake_seconds", `listener="mqtt"`, 1)},
	"HearthlineAcknowledgesSlowly": {slow("hearthline_gateway_acknowledge_seconds", `instance="a"`, 2), slow("hearthline_gateway_acknowledge_seconds", `instance="a"`, 0.5)},
	"HearthlineCommandsSlow":       {slow("hearthline_gateway_command_seconds", `until="delivered"`, 2), slow("hearthline_gateway_command_seconds", `until="executed"`, 2)},
	"HearthlineCheckpointsSlow":    {slow("hearthline_checkpoint_seconds", `node="score"`, 8), slow("hearthline_checkpoint_seconds", `node="score"`, 2)},
	"HearthlineServerErrors": {
		[]string{`hearthline_gateway_http_answers_total{route="/v1/telemetry",class="5xx"} 0+2x120`, `hearthline_gateway_http_answers_total{route="/v1/telemetry",class="2xx"} 0+98x120`},
		[]string{`hearthline_gateway_http_answers_total{route="/v1/telemetry",class="5xx"} 0+2x120`, `hearthline_gateway_http_answers_total{route="/v1/telemetry",class="2xx"} 0+998x120`},
	},
	"HearthlineGatewaysApart": {[]string{`hearthline_gateway_peers_known 3x120`, `hearthline_gateway_peers_connected 2x120`}, []string{`hearthline_gateway_peers_known 3x120`, `hearthline_gateway_peers_connected 3x120`}},
	"HearthlineTableSilent":   {[]string{`hearthline_gateway_table_silence_seconds{table="commands"} 40x120`}, []string{`hearthline_gateway_table_silence_seconds{table="commands"} 1x120`}},
	"HearthlineTableFills":    {[]string{`hearthline_gateway_table_bytes{table="queues"} 95x120`, `hearthline_gateway_table_bytes_max{table="queues"} 100x120`}, []string{`hearthline_gateway_table_bytes{table="queues"} 50x120`, `hearthline_gateway_table_bytes_max{table="queues"} 100x120`}},
	"HearthlineCommandsExpire": {
		[]string{`hearthline_gateway_commands_total{state="expired"} 0+1x120`, `hearthline_gateway_commands_total{state="accepted"} 0+10x120`},
		[]string{`hearthline_gateway_commands_total{state="expired"} 0+1x120`, `hearthline_gateway_commands_total{state="accepted"} 0+100x120`},
	},
	"HearthlineCommandsUnaudited": {[]string{`hearthline_gateway_commands_audit_dropped_total 0x90 4x30`}, []string{`hearthline_gateway_commands_audit_dropped_total 4x120`}},
	"HearthlineBehind": {
		[]string{`hearthline_watermark_seconds{node="score",partition="0"} 0+15x120`, `hearthline_watermark_seconds{node="score",partition="1"} 900x120`},
		[]string{`hearthline_watermark_seconds{node="score",partition="0"} 0+15x120`, `hearthline_watermark_seconds{node="score",partition="1"} 0x120`}, // nothing has come there yet
	},
	"HearthlineLagGrows": {[]string{`hearthline_watermark_seconds{node="score"} 1+10x120`}, []string{`hearthline_watermark_seconds{node="score"} 1+14.9x120`}},
	"HearthlineStalled":  {[]string{`hearthline_waiting{node="clickhouse"} 1x120`}, []string{`hearthline_waiting{node="clickhouse"} 0x120`}},
	"HearthlineDeadLetters": {
		[]string{`hearthline_bad_rows_total{node="normalize"} 0+1x120`, `hearthline_rows_total{node="normalize",stream="raw",direction="in"} 0+100x120`},
		[]string{`hearthline_bad_rows_total{node="normalize"} 0+1x120`, `hearthline_rows_total{node="normalize",stream="raw",direction="in"} 0+10000x120`},
	},
}

// slow is a histogram whose durations are all just below a bound.
func slow(metric, label string, seconds float64) (series []string) {
	for _, le := range []float64{0.25, 0.5, 1, 2, 4, 8} {
		step := 0
		if le >= seconds {
			step = 10
		}
		series = append(series, fmt.Sprintf(`%s_bucket{%s,le="%g"} 0+%dx120`, metric, label, le, step))
	}
	return append(series, fmt.Sprintf(`%s_bucket{%s,le="+Inf"} 0+10x120`, metric, label))
}

// Prometheus itself takes the alerts, and each is raised by what it is for, and by nothing else.
func TestAlertsAreRaised(t *testing.T) {
	text, err := os.ReadFile("monitoring/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(text, false, model.LegacyValidation, promtest.Language, nil)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	raised := func(expr string, texts []string) bool {
		series, err := promtest.Read(texts...)
		if err != nil {
			t.Fatal(err)
		}
		v, err := promtest.Ask(t.Context(), expr, time.Unix(1800, 0), series)
		if err != nil {
			t.Fatal(err)
		}
		return len(v.(promql.Vector)) > 0
	}
	seen := map[string]bool{}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			c, ok := alertCases[r.Alert]
			if seen[r.Alert] = true; !ok {
				t.Errorf("%s has no case", r.Alert)
				continue
			}
			if !raised(r.Expr, c.raised) {
				t.Errorf("%s is not raised by %s", r.Alert, strings.Join(c.raised, "; "))
			}
			if raised(r.Expr, c.silent) {
				t.Errorf("%s is raised by %s", r.Alert, strings.Join(c.silent, "; "))
			}
			if r.Alert != "HearthlineIsGone" && raised(r.Expr, nil) {
				t.Errorf("%s is raised by nothing", r.Alert)
			}
			if !slices.Contains([]string{"page", "ticket"}, r.Labels["severity"]) || r.Annotations["summary"] == "" {
				t.Errorf("%s: severity %q, summary %q", r.Alert, r.Labels["severity"], r.Annotations["summary"])
			}
		}
	}
	for name := range alertCases {
		if !seen[name] {
			t.Errorf("there is no alert %s", name)
		}
	}
}
