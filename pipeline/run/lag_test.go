package run

import (
	"context"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearthline/flow"
	"hearthline/streams"
)

// TestLag: what no process of this machine has taken is counted from what the group has committed, or from the beginning.
func TestLag(t *testing.T) {
	plan := testPlan()
	plan.Spec.Partitions = 2
	c := streams.New()
	c.Brokers = []string{broker(t)}
	client, err := streams.Dial(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r := &Runner{Plan: plan, Client: client, Log: slog.New(slog.DiscardHandler), Meter: NewMeter()}
	if err := r.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := client.NewProducer()
	for i := range int64(5) {
		b := flow.Batch{Kind: flow.KindHeartbeat, Lineage: flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: i}}}
		if _, err := p.Publish(t.Context(), "raw", int32(i%2), b); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, raw ...int64) {
		t.Helper()
		lag, err := r.Lag(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(raw, lag["sieve"]["raw"]); d != "" {
			t.Errorf("%s: lag (-want +got):\n%s", what, d)
		}
		for _, s := range plan.Sinks {
			for _, name := range s.Streams {
				if d := cmp.Diff([]int64{0, 0}, lag[s.Name][name]); d != "" {
					t.Errorf("%s: lag of %s on %s (-want +got):\n%s", what, s.Name, name, d)
				}
			}
		}
	}
	want("nothing is taken", 3, 2)
	ctx, leave := context.WithCancel(t.Context())
	err = client.Join(ctx, streams.GroupConfig{ID: r.group("sieve"), Streams: []string{"raw"}}, func(ctx context.Context, g *streams.Assignment) error {
		if g.Partition() != 0 {
			<-ctx.Done()
			return nil
		}
		defer leave()
		return g.Commit(ctx, []streams.Commit{{Stream: "raw", Partition: 0, Offset: 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
	want("another process has committed", 2, 2)
	r.Meter.Node("sieve").partition("raw", 0).Offset.Store(2)
	want("this process is further", 1, 2)
	r.Meter.Node("sieve").partition("raw", 1).Offset.Store(2)
	want("this process has it all", 1, 0)
}
