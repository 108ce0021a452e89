//go:build demo

package console

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sourcegraph/conc/pool"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
)

// TestDemo serves a made-up pipeline until it is interrupted, for whoever works on the page:
//
//	CONSOLE=127.0.0.1:8090 SCENE=trouble go test -tags demo -run TestDemo -timeout 0 ./console
//
// SCENE is fine (the default), trouble (dead letters, a sink that stands still) or empty.
func TestDemo(t *testing.T) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	scene := os.Getenv("SCENE")
	w := newWorld(homesPlan())
	w.factor = map[string]float64{"features": .05, "late": .002, "alerts": .0003, "scores": 1}
	switch scene {
	case "trouble":
		w.stuck["clickhouse readings/2"], w.stuck["clickhouse readings/1"] = true, true
		w.refuse["normalize"], w.refuse["score"] = .004, .00002
		w.extra["clickhouse"] = run.NodeStatus{Retries: 12, Restarts: 1, Duplicates: 40}
	case "empty":
		w.rate = 0
	}
	taps := &Taps{}
	s := &Server{
		Listen: os.Getenv("CONSOLE"), Plan: w.plan, Log: slog.Default(), Gatherer: prometheus.NewRegistry(), Taps: taps, statuses: w.statuses, Lag: w.lags,
		Links: []Link{
			{Name: "ClickHouse", URL: "http://127.0.0.1:8123/play", User: "default", Note: "no password, loopback only"},
			{Name: "MQTT over TLS", URL: "mqtts://127.0.0.1:8883", User: "home-001", Note: "password and CA in data/credentials"},
			{Name: "HTTP ingest", URL: "https://127.0.0.1:8443/v1/telemetry", User: "home-001"},
			{Name: "Parquet files", URL: "data/parquet/readings/dt=2026-11-22/"},
		},
		Queries: []Query{
			{"Rows a minute", "SELECT toStartOfMinute(time) AS minute, count() AS rows\nFROM hearthline.readings\nWHERE time > now() - INTERVAL 1 HOUR\nGROUP BY minute ORDER BY minute DESC"},
			{"The strangest readings of today", "SELECT time, home, device, metric, value, score\nFROM hearthline.scores\nWHERE time >= today()\nORDER BY score DESC LIMIT 20"},
		},
		Numbers: func(context.Context) ([]Number, error) {
			w.mu.Lock()
			in := int64(w.rows["gateway out raw"])
			w.mu.Unlock()
			if scene == "trouble" {
				return nil, errors.New("clickhouse 127.0.0.1:9000: connection refused")
			}
			return []Number{
				{Label: "Acknowledged to devices", Value: in, Unit: "rows", Same: "readings"},
				{Label: "In ClickHouse", Value: in - int64(rand.IntN(2))*312, Unit: "rows", Same: "readings"},
				{Label: "In Parquet", Value: in - in%5000, Unit: "rows", Note: "", Same: "readings"},
				{Label: "Parquet files", Value: in / 5000, Note: "41.7 MB"},
				{Label: "Hubs connected", Value: 204},
				{Label: "Anomalies", Value: in / 3000, Note: "score above 0.85"},
			}, nil
		},
		Alerts: func(context.Context) ([]Alert, error) {
			now := flow.MicrosOf(time.Now())
			if scene == "empty" {
				return nil, nil
			}
			return []Alert{
				{Time: now.Add(-3 * time.Second), Home: "home-017", Device: "kitchen/thermo-2", Metric: "temperature", State: "firing", Severity: "critical", Score: .97, Value: 48.2, Threshold: .9},
				{Time: now.Add(-40 * time.Second), Home: "home-113", Device: "bath-humidity", Metric: "humidity", State: "firing", Severity: "warning", Score: .91, Value: 93.1, Threshold: .85},
				{Time: now.Add(-2 * time.Minute), Home: "home-002", Device: `<img src=x onerror=alert(1)>`, Metric: "co2", State: "resolved", Severity: "warning", Score: .31, Value: 611, Threshold: .85},
				{Time: now.Add(-9 * time.Minute), Home: "room_occupancy", Device: "S5_CO2", Metric: "co2", State: "resolved", Severity: "critical", Score: .22, Value: 390, Threshold: .9},
			}, nil
		},
		Ready: func(addr string) { t.Log("http://" + addr) },
	}
	p := pool.New().WithContext(ctx).WithCancelOnError()
	p.Go(s.Run)
	p.Go(func(ctx context.Context) error {
		for tick := time.NewTicker(250 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				return nil
			case now := <-tick.C:
				if scene != "empty" {
					w.mu.Lock()
					w.rate = max(300, min(2600, w.rate+100*(rand.Float64()-.5)))
					w.mu.Unlock()
				}
				w.step(now, .25)
				for name := range w.plan.Streams {
					rec := demoRecord(t, w.plan.Streams[name])
					taps.Offer(name, 0, rec)
					rec.Release()
				}
			}
		}
	})
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
}

// demoRecord makes a few rows of whatever schema a stream has.
func demoRecord(t testing.TB, s *pipeline.Stream) arrow.Record {
	if s.Schema == flow.EventSchema {
		return eventRecord(t, memory.DefaultAllocator, 3, []string{"kitchen/thermo-2", "bath-humidity", "<b>bold</b>"}[rand.IntN(3)])
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, s.Schema)
	defer b.Release()
	for _, f := range b.Fields() {
		switch f := f.(type) {
		case *array.TimestampBuilder:
			f.Append(arrow.Timestamp(time.Now().UnixMicro()))
		case *array.BinaryDictionaryBuilder:
			_ = f.AppendString("home-017")
		case *array.Float64Builder:
			f.Append(rand.Float64() * 30)
		case *array.Int64Builder:
			f.Append(rand.Int64N(60))
		case *array.StringBuilder:
			f.Append(`{"time":"2090-01-01T00:00:00Z","home":"home-017","device":"x"}`)
		default:
			f.AppendNull()
		}
	}
	return b.NewRecord()
}
