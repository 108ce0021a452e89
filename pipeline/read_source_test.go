package pipeline

import (
	"strings"
	"testing"
	"time"
)

const sourceHead = "pipeline: p\ngateway: {to: raw}\nsinks: {all: {use: shelf, from: raw}}\nkafka: {brokers: \"k1:9092\"}\n"

func TestSources(t *testing.T) {
	spec, findings := ReadBytes("p.yaml", []byte(sourceHead+`sources:
  here: {topic: a}
  there: {topic: b, brokers: ["x:1", "y:2"], tls: {}, group: g, begin: last, format: lines, home: key, device: "header:d", linger: 1s}
`), nil)
	if len(findings) != 0 || len(spec.Sources) != 2 {
		t.Fatal(findings, spec.Sources)
	}
	here, there := spec.Sources[0], spec.Sources[1]
	if here.Foreign || here.Group != "p.source.here" || here.Begin != "first" || here.Format != "json" || here.Home != PlaceRow || here.Linger != 100*time.Millisecond || here.Kafka.Brokers[0] != "k1:9092" {
		t.Errorf("%+v", here)
	}
	if !there.Foreign || there.Group != "g" || there.Kafka.TLS == nil || len(there.Kafka.Brokers) != 2 || there.Home != PlaceKey || there.Device.Header() != "d" {
		t.Errorf("%+v", there)
	}
	for text, says := range map[string]string{
		"{}":                           "topic",
		"{topic: a, begin: now}":       "begin",
		"{topic: a, format: xml}":      "format",
		"{topic: a, home: header}":     "header:NAME",
		"{topic: a, device: column}":   "header:NAME",
		"{topic: a, linger: 1h}":       "linger",
		"{topic: a, brokers: nowhere}": "brokers",
		"{topic: a, tls: {}}":          "brokers of its own",
		"{topic: a, colour: red}":      "colour",
	} {
		_, findings := ReadBytes("p.yaml", []byte(sourceHead+"sources:\n  s: "+text+"\n"), nil)
		if len(findings) == 0 || !strings.Contains(findings[0].String(), says) {
			t.Errorf("%s: %v; want %q", text, findings, says)
		}
	}
}
