package cli

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

// Who is told to stop while it still waits for Kafka has nothing to finish: it has done what it was told.
func TestStoppedBeforeKafkaIsThere(t *testing.T) {
	t.Parallel() // it is mostly processes that wait
	i := clitest.New(t)
	raw, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	nowhere := clitest.FreeAddr(t)
	i.Write(edit(t, string(raw), "brokers: ${HEARTHLINE_KAFKA:-embedded}", "brokers: "+nowhere))
	for _, verb := range []string{"up --plain --no-homes --clickhouse-http " + i.ClickHouseHTTP + " --clickhouse-tcp " + i.ClickHouseTCP, "stage score --ops " + clitest.FreeAddr(t), "sink parquet --ops " + clitest.FreeAddr(t)} {
		r := i.Start(strings.Fields(verb)...)
		r.Expect("not ready, waiting", time.Minute)
		if err := r.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := r.Exit(time.Minute); code != 0 {
			t.Errorf("%s: exit code %d after SIGTERM:\n%s", verb, code, r.Out.String())
		}
	}
}
