package streams_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc"

	"hearthline/flow"
	"hearthline/streams"
	"hearthline/streams/embedded"
)

// start runs an embedded broker until the test ends, and gives its address.
func start(t testing.TB, change func(*embedded.Broker)) string {
	t.Helper()
	b := embedded.New()
	b.Addr = "127.0.0.1:0"
	if change != nil {
		change(b)
	}
	addr, failed := make(chan string, 1), make(chan error, 1)
	b.Ready = func(a string) { addr <- a }
	ctx, cancel := context.WithCancel(context.Background())
	var work conc.WaitGroup
	work.Go(func() { failed <- b.Run(ctx) })
	t.Cleanup(func() { cancel(); work.Wait() })
	select {
	case a := <-addr:
		return a
	case err := <-failed:
		t.Fatal(err)
	}
	return ""
}

func dial(t testing.TB, addr string, change func(*streams.Config)) *streams.Client {
	t.Helper()
	cfg := streams.New()
	cfg.Brokers = []string{addr}
	if change != nil {
		change(&cfg)
	}
	c, err := streams.Dial(deadline(t), cfg, slog.New(slog.NewTextHandler(testLog{t}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(string(p))
	return len(p), nil
}

// deadline bounds what a test may wait for anything.
func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// events makes a batch of n rows whose values count up from offset.
func events(t testing.TB, mem memory.Allocator, offset int64, n int) flow.Batch {
	t.Helper()
	b := flow.NewEventBuilder(mem)
	defer b.Release()
	at := flow.Micros(1_700_000_000_000_000 + offset*1000)
	for i := range n {
		b.Append(&flow.Event{
			Time: at + flow.Micros(i), Received: at + flow.Micros(i) + 500, Home: "home-" + string(rune('a'+i%7)),
			Device: "device-" + string(rune('a'+i%23)), Metric: "temperature", Value: float64(offset) + float64(i)/1000, HasValue: true,
			Unit: "°C", Seq: offset*1000 + int64(i), HasSeq: true,
		})
	}
	rec, bounds := b.Record()
	return flow.Batch{
		Kind: flow.KindRows, Record: rec, Bounds: bounds, Watermark: at,
		Lineage: flow.Lineage{Source: flow.Source{Producer: "test", Stream: "input", Partition: 3}, Position: flow.Position{Offset: offset, K: 1}},
	}
}

func TestSmoke(t *testing.T) {
	addr := start(t, nil)
	c := dial(t, addr, nil)
	ctx := deadline(t)
	if err := c.Ensure(ctx, []streams.Spec{{Name: "raw", Partitions: 2}}); err != nil {
		t.Fatal(err)
	}
	p := c.NewProducer()
	for i := range 5 {
		b := events(t, memory.DefaultAllocator, int64(i), 100)
		off, err := p.Publish(ctx, "raw", 1, b)
		if err != nil || off != int64(i) {
			t.Fatal(off, err)
		}
		b.Record.Release()
	}
	r := c.NewReader("raw", 1, 2)
	defer r.Close()
	for i := range 3 {
		m, err := r.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if m.Offset != int64(i+2) || m.Batch.Rows() != 100 {
			t.Fatal(m)
		}
		m.Batch.Record.Release()
	}
	gctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := c.Join(gctx, streams.GroupConfig{ID: "g", Streams: []string{"raw"}}, func(ctx context.Context, g *streams.Generation) error {
		t.Log(g.Partitions(), g.ID(), g.Member())
		if err := g.Commit(ctx, []streams.Commit{{Stream: "raw", Partition: 1, Offset: 4, Metadata: "m"}}); err != nil {
			return err
		}
		got, err := g.Committed(ctx)
		t.Log(got, err)
		cancel()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", c.Stats())
}
