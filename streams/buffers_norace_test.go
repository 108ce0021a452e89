//go:build !race

package streams_test

import (
	"runtime"
	"runtime/debug"
	"testing"

	"hearthline/streams"
	"hearthline/streams/streamstest"
)

// TestBuffersComeBack: what a batch is encoded, sent, fetched and decoded in comes from a pool and goes back there. A buffer that does
// not is made anew for every batch. With the race detector pools lose things at random: `make test` runs this test without it.
func TestBuffersComeBack(t *testing.T) {
	const warm, batches, rows = 50, 1000, 200
	for _, compression := range []string{"none", "lz4", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			c := streamstest.Cluster{Brokers: []string{start(t, nil)}, Config: func(c *streams.Config) { c.Compression = compression }}.Dial(t)
			stream := streamstest.Stream(t, c, 1)
			p, r := c.NewProducer(), c.NewReader(stream, 0, 0)
			defer r.Close()
			defer debug.SetGCPercent(debug.SetGCPercent(-1)) // collecting empties the pool: now, and then no more
			runtime.GC()
			runtime.GC()
			made := streams.CountBuffers(t)
			before := int64(0)
			for i := range int64(warm + batches) {
				if i == warm {
					before = made()
				}
				streamstest.Publish(t, p, stream, 0, rows, i)
				m, err := r.Next(streamstest.Context(t))
				if err != nil {
					t.Fatal(err)
				}
				m.Batch.Record.Release()
			}
			n := made() - before
			t.Logf("%d buffers were made for the first %d batches, %d for the next %d", before, warm, n, batches)
			if before == 0 || n > batches/20 { // some: each thread has a pool of its own
				t.Errorf("%d buffers were made for %d batches, after %d for the first %d", n, batches, before, warm)
			}
		})
	}
}
