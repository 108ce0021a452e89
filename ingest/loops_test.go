package ingest

import (
	"flag"
	"os"
	"os/exec"
	"testing"

	"hearthline/ingest/wire"
)

var overLoop = flag.String("loop", "", "run every test over this loop, "+wire.Epoll+" or "+wire.Goroutines+"; \"\": the default")

// The loop of goroutines is what other systems than Linux have, and what the epoll loop is measured by: every test of
// this package holds over both.
func TestEverythingOverGoroutines(t *testing.T) {
	if *overLoop != "" || wire.Best == wire.Goroutines || testing.Short() {
		return // this is that run, or the first was
	}
	t.Parallel()
	out, err := exec.Command(os.Args[0], "-test.timeout=10m", "-loop="+wire.Goroutines).CombinedOutput() // #nosec G204 -- this test itself
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
