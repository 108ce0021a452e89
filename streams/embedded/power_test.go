package embedded_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/blobs/disktest"
	"hearthline/streams"
	"hearthline/streams/embedded"
	"hearthline/streams/streamstest"
)

// TestPowerCut: with SyncWrites, what the broker has acknowledged outlives a power cut: batches, commits and the
// stream itself. Without, it is lost: the test's disk does lose what is not synced.
func TestPowerCut(t *testing.T) {
	for name, sync := range map[string]string{"synced": "1", "not synced": ""} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(childDir+"_SYNC", sync)
			disk := disktest.New(t, 64)
			kill, addr := child(t, filepath.Join(disk.Dir, "kafka"), "127.0.0.1:0")
			cl := streamstest.Cluster{Brokers: []string{addr}, Config: func(c *streams.Config) { c.RequestTimeout = 2 * time.Second }}
			before := cl.Dial(t)
			stream := streamstest.Stream(t, before, 1)
			id, err := before.Info(streamstest.Context(t), stream)
			if err != nil {
				t.Fatal(err)
			}
			p := before.NewProducer()
			const batches = 60
			for i := range int64(batches) {
				streamstest.Publish(t, p, stream, 0, 3, i)
			}
			if got := member(t, before, stream, &streams.Commit{Stream: stream, Offset: 42, Metadata: "mine"}); got.Metadata != "" {
				t.Errorf("committed by nobody: %v", got)
			}
			disk.Cut()
			kill()
			disk.Restore()

			_, _ = child(t, filepath.Join(disk.Dir, "kafka"), addr)
			after := cl.Dial(t)
			again, err := after.Info(streamstest.Context(t), stream)
			if sync == "" {
				if err == nil && again == id && len(streamstest.Lineages(t, after, stream, 0)) == batches {
					t.Error("nothing was lost without syncing: this disk proves nothing")
				}
				return
			}
			if err != nil || again != id {
				t.Fatalf("the stream was %v and is %v: %v", id, again, err)
			}
			if got := streamstest.Lineages(t, after, stream, 0); len(got) != batches || !slices.IsSorted(got) {
				t.Errorf("%d of %d acknowledged batches are there: %v", len(got), batches, got)
			}
			if got := member(t, after, stream, nil); got != (streams.Committed{Offset: 42, Metadata: "mine"}) {
				t.Errorf("committed: %v", got)
			}
			streamstest.Publish(t, after.NewProducer(), stream, 0, 3, batches)
		})
	}
}

// member joins a group, says what it finds committed, commits, and leaves.
func member(t *testing.T, c *streams.Client, stream string, commit *streams.Commit) (found streams.Committed) {
	t.Helper()
	ctx, cancel := context.WithCancel(streamstest.Context(t))
	defer cancel()
	var failed error
	var work conc.WaitGroup
	work.Go(func() {
		_ = c.Join(ctx, streams.GroupConfig{ID: "g", Streams: []string{stream}}, func(gen context.Context, g *streams.Assignment) error {
			found = g.Committed()[stream]
			if commit != nil {
				failed = g.Commit(gen, []streams.Commit{*commit})
			}
			cancel()
			<-gen.Done()
			return nil
		})
	})
	work.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	return found
}

// BenchmarkDurability is what an acknowledgement costs: a batch of a thousand rows, one after the other.
func BenchmarkDurability(b *testing.B) {
	for name, sync := range map[string]bool{"process": false, "power": true} {
		b.Run(name, func(b *testing.B) {
			broker := embedded.New()
			broker.Dir, broker.Addr, broker.SyncWrites = b.TempDir(), "127.0.0.1:0", sync
			ready, ended := make(chan string, 1), make(chan error, 1)
			broker.Ready = func(addr string) { ready <- addr }
			ctx, stop := context.WithCancel(b.Context())
			defer stop()
			go func() { ended <- broker.Run(ctx) }()
			cl := streamstest.Cluster{Brokers: []string{<-ready}}
			c := cl.Dial(b)
			stream := streamstest.Stream(b, c, 1)
			p := c.NewProducer()
			i := int64(0)
			for b.Loop() {
				streamstest.Publish(b, p, stream, 0, 1000, i)
				i++
			}
			b.ReportMetric(float64(i)*1000/b.Elapsed().Seconds(), "rows/s")
			stop()
			if err := <-ended; err != nil {
				b.Error(err)
			}
		})
	}
}
