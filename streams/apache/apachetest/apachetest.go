// Package apachetest runs Apache Kafka for as long as a test runs.
package apachetest

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/streams/apache"
)

// Start runs a cluster until the test ends and gives the addresses of its brokers. Without Java or Maven the test is
// skipped, loudly; in CI it fails. It must be called by the test's own goroutine, before other cleanups that need the
// cluster to be gone.
func Start(t testing.TB, c *apache.Cluster) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, failed := make(chan []string, 1), make(chan error, 1)
	c.Ready = func(addrs []string) { ready <- addrs }
	var work conc.WaitGroup
	work.Go(func() { failed <- c.Run(ctx) })
	begun := time.Now()
	select {
	case addrs := <-ready:
		t.Logf("Apache Kafka: %d brokers serve after %v", len(addrs), time.Since(begun).Round(10*time.Millisecond))
		t.Cleanup(func() {
			cancel()
			work.Wait()
			if err := <-failed; err != nil {
				t.Error(err)
			}
		})
		return addrs
	case err := <-failed:
		cancel()
		work.Wait()
		if errors.Is(err, apache.ErrMissing) && os.Getenv("CI") == "" {
			t.Skipf("NOT TESTED: %v", err)
		}
		t.Fatal(err)
	}
	return nil
}
