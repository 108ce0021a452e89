package ingest

import (
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/flow"
	"hearthline/ingest/mqtt"
)

const (
	sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	madeOf  = "00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-01"
)

// notedSpans is a tracer that keeps what it is told.
type notedSpans struct {
	mu    sync.Mutex
	from  [][]string
	ended []error
}

func (n *notedSpans) Span(name string, _ time.Time, from []string, _ ...slog.Attr) (string, func(error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.from = append(n.from, slices.Clone(from))
	return madeOf, func(err error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.ended = append(n.ended, err)
	}
}

// TestABatchFollowsFromItsMessages, over both doors; what is not sampled, or is no traceparent, is left alone.
func TestABatchFollowsFromItsMessages(t *testing.T) {
	spans := &notedSpans{}
	r := newRig(t, func(g *Gateway) { g.Tracer, g.Linger = spans, 0 })
	r.post("anna", mediaJSON, []byte(deviceReading), "traceparent", sampled)
	p := r.connect(5, "anna", "a")
	for id, value := range []string{sampled, sampled[:53] + "00", "nonsense"} {
		pk := publishOf(lampTopic, reading, 1, uint16(id+1))
		pk.Properties.User = []packets.UserProperty{{Key: "other", Val: "1"}, {Key: "traceparent", Val: value}}
		p.send(pk)
		p.want(packets.Puback)
	}
	spans.mu.Lock()
	defer spans.mu.Unlock()
	want := [][]string{{sampled}, {sampled}, nil, nil}
	if !slices.EqualFunc(spans.from, want, slices.Equal) || len(spans.ended) != 4 {
		t.Errorf("spans follow from %v (%d ended); want %v", spans.from, len(spans.ended), want)
	}
	traced := 0
	r.road.mu.Lock()
	defer r.road.mu.Unlock()
	for _, batches := range r.road.batches {
		for _, b := range batches {
			if b.Record != nil && b.Trace == madeOf {
				traced++
			}
		}
	}
	if traced != 4 {
		t.Errorf("%d batches carry their span; want 4", traced)
	}
}

// TestNobodyTraces: then a message costs no allocation for it.
func TestNobodyTraces(t *testing.T) {
	c := &connection{g: &Gateway{}}
	p := &mqtt.PublishPacket{}
	p.Props.Raw = []byte(traceProperty + "\x00\x37" + sampled)
	if n := testing.AllocsPerRun(100, func() {
		if c.traces(p) != nil || c.g.traced(sampled) != nil {
			t.Error("it traces")
		}
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
	c.g.Tracer = &notedSpans{}
	if got := c.traces(p); len(got) != 1 || got[0] != sampled {
		t.Error(got)
	}
}

// BenchmarkTracing is what a message of a sampled trace costs beside one of none, from its property to the batch.
func BenchmarkTracing(b *testing.B) {
	p := &mqtt.PublishPacket{}
	p.Props.Raw = []byte(traceProperty + "\x00\x37" + sampled)
	for name, tracer := range map[string]flow.Tracer{"off": nil, "on": &notedSpans{}} {
		b.Run(name, func(b *testing.B) {
			c := &connection{g: &Gateway{Tracer: tracer}}
			b.ReportAllocs()
			for b.Loop() {
				c.traces(p)
			}
		})
	}
}
