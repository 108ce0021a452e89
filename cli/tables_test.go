package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
	"hearthline/streams"
	"hearthline/streams/embedded"
)

// tableOn runs a table over a stream of the broker until the test ends, or stop is called.
func tableOn(t *testing.T, client *streams.Client, stream string) (tab *table.Table, stop func()) {
	t.Helper()
	tab = table.New()
	tab.Name, tab.Partitions, tab.Log = stream, 2, tableLog{client, client.NewProducer(), stream}
	return tab, tabletest.Run(t, tab)
}

// A table of few keys that are put again and again stays whole, and the embedded broker's log of it small, while it
// compacts at every moment.
func TestTableIsCompacted(t *testing.T) {
	const keys, rounds = 200, 60
	b := embedded.New()
	b.Dir, b.Addr, b.CleanEvery = t.TempDir(), "127.0.0.1:0", 20*time.Millisecond
	ready := make(chan string, 1)
	b.Ready = func(addr string) { ready <- addr }
	ctx, cancel := context.WithCancel(context.Background())
	var work conc.WaitGroup
	work.Go(func() {
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); work.Wait() })
	cfg := streams.New()
	cfg.Brokers = []string{<-ready}
	client, err := streams.Dial(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Ensure(ctx, []streams.Spec{{Name: "homes.sessions", Partitions: 2, Compacted: true, Rewritten: true}}); err != nil {
		t.Fatal(err)
	}
	a, stopA := tableOn(t, client, "homes.sessions")
	defer stopA()
	follower, stopF := tableOn(t, client, "homes.sessions")
	defer stopF()
	var worst time.Duration
	begun := time.Now()
	for round := range rounds {
		var puts sync.WaitGroup
		for k := range keys {
			puts.Add(1)
			go func() {
				defer puts.Done()
				since := time.Now()
				at, err := a.Put(ctx, fmt.Sprintf("home-%d/x", k), fmt.Appendf(nil, "%d of %d", round, k))
				if err != nil {
					t.Error(err)
				} else if err := follower.Reached(ctx, at); err != nil {
					t.Error(err)
				}
				if k == 0 {
					worst = max(worst, time.Since(since))
				}
			}()
		}
		puts.Wait()
	}
	t.Logf("%d puts in %v, each read by another table; the slowest of some %v", keys*rounds, time.Since(begun).Round(time.Millisecond), worst)
	late, stopL := tableOn(t, client, "homes.sessions")
	defer stopL()
	for k := range keys {
		want := fmt.Sprintf("%d of %d", rounds-1, k)
		for who, tab := range map[string]*table.Table{"writer": a, "follower": follower, "late": late} {
			if r, _ := tab.Get(fmt.Sprintf("home-%d/x", k)); string(r.Value) != want {
				t.Fatalf("%s: key %d holds %q; want %q", who, k, r.Value, want)
			}
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		records := 0
		for p := range int32(2) {
			err := client.Follow(ctx, "homes.sessions", p, func(f streams.Followed) error {
				records += len(f.Notes)
				if f.Whole {
					return context.Canceled
				}
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		if records <= 3*keys {
			t.Logf("%d records stand in the log", records)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d records stand in the log for %d keys: it is not compacted", records, keys)
		}
		<-time.After(20 * time.Millisecond)
	}
}
