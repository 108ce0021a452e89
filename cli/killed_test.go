package cli

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
	"hearthline/sinks/parquet"
)

const kills = 10

// The whole process is killed ten times in mid-flow and started again. In the end every row that was acknowledged
// to a device is in ClickHouse and in Parquet, once by (home, device, metric, sequence), and what is derived from
// the rows is there once too.
func TestKilledTenTimesEveryAcknowledgedRowIsStoredOnce(t *testing.T) {
	i := clitest.New(t)
	seed := uint64(time.Now().UnixNano())
	dice := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	// Enough work that it is under way at every kill: a pipeline's life here is a few seconds.
	homes := i.Homes(20, 2400, 4000)
	homes.Rounds, homes.History = 2400, 0
	homes.Interval = 50 * time.Millisecond
	up := i.Up("--no-homes")
	ended := clitest.Play(t.Context(), homes)
	before := int64(0)
	for kill := range kills {
		// In mid-flow: rows have been acknowledged in this life, and more are outstanding.
		deadline := time.Now().Add(time.Minute)
		for homes.Stats().Acknowledged < before+500 {
			if time.Now().After(deadline) {
				t.Fatalf("seed %d, life %d: only %d rows acknowledged; %+v", seed, kill, homes.Stats().Acknowledged-before, homes.Stats())
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Duration(dice.IntN(3000)) * time.Millisecond)
		up.Kill()
		before = homes.Stats().Acknowledged
		up = i.Up("--no-homes")
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Minute):
		t.Fatalf("seed %d: the homes' work is not acknowledged: %+v", seed, homes.Stats())
	}
	up.Stop()
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	stats := homes.Stats()
	t.Logf("%d rows acknowledged, %d messages sent again, %d reconnects", want, stats.Resent, stats.Reconnects)
	if stats.Reconnects < kills {
		t.Errorf("seed %d: %d reconnects in %d kills: the homes were not in mid-flow", seed, stats.Reconnects, kills)
	}

	files, err := parquet.Count(t.Context(), i.ParquetStore(), "readings")
	if err != nil || files.Rows != want {
		t.Errorf("seed %d: %d rows in Parquet, %d acknowledged; %v", seed, files.Rows, want, err)
	}
	up = i.Up("--no-homes")
	for _, check := range []struct{ what, sql, want string }{
		{"rows in ClickHouse", "SELECT count() FROM readings", strconv.FormatInt(want, 10)},
		{"distinct rows", "SELECT uniqExact(home, device, metric, seq) FROM readings", strconv.FormatInt(want, 10)},
		{"rows in the rollup by the minute", "SELECT sum(count) FROM readings_1m_view", strconv.FormatInt(want, 10)},
		{"scores", "SELECT count() - uniqExact(home, device, metric, seq) FROM scores", "0"},
		{"windows", "SELECT count() - uniqExact(home, device, metric, window, time) FROM features", "0"},
		{"alerts", "SELECT count() - uniqExact(id, state, severity) FROM alerts", "0"},
		{"dead letters", "SELECT count() FROM dead", "0"},
	} {
		if got := i.Query(check.sql)[0]; got != check.want {
			t.Errorf("seed %d: %s: %s gives %s, want %s", seed, check.what, check.sql, got, check.want)
		}
	}
	up.Stop()
}

// `up` with homes of its own is killed with them; they, too, go on where they were.
func TestKilledWithItsHomes(t *testing.T) {
	i := clitest.New(t)
	args := []string{"--homes", "30", "--interval", "200ms", "--speed", "5000"}
	for range 3 {
		up := i.Up(args...)
		up.Expect("acknowledged", time.Minute)
		up.Kill()
	}
	up := i.Start(append([]string{"up", "--plain", "--clickhouse-http", i.ClickHouseHTTP, "--clickhouse-tcp", i.ClickHouseTCP, "--duration", "5s"}, args...)...)
	if code := up.Exit(3 * time.Minute); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	said := clitest.Drained.FindStringSubmatch(up.Out.String())
	if said == nil || said[1] != said[2] || said[2] != said[3] || !strings.Contains(up.Out.String(), "equal: ") {
		t.Errorf("the last run ended with %q", said)
	}
}
