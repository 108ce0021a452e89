package cli

import (
	"bytes"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/blobs/disktest"
	"hearthline/cli/clitest"
	"hearthline/simulator"
	"hearthline/sinks/parquet"
)

// What goes wrong at the start is said at once: what, where, and what to do.
func TestWhatIsWrongAtTheStart(t *testing.T) {
	busy := func(addr func(*clitest.Installation) string) func(*testing.T, *clitest.Installation) {
		return func(t *testing.T, i *clitest.Installation) {
			l, err := net.Listen("tcp", addr(i))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}
	}
	edit := func(old, new string) func(*testing.T, *clitest.Installation) {
		return func(t *testing.T, i *clitest.Installation) {
			b, err := os.ReadFile(i.Pipeline)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(b, []byte(old)) {
				t.Fatalf("pipeline.yaml holds no %q", old)
			}
			i.Write(strings.Replace(string(b), old, new, 1))
		}
	}
	for name, c := range map[string]struct {
		wrong func(*testing.T, *clitest.Installation)
		args  []string
		code  int
		says  []string
	}{
		"the MQTT port is busy":          {wrong: busy(func(i *clitest.Installation) string { return i.MQTT }), code: exitFailed, says: []string{"MQTT", "address already in use"}},
		"the console's port is busy":     {wrong: busy(func(i *clitest.Installation) string { return i.Console }), code: exitFailed, says: []string{"CONSOLE", "console.listen"}},
		"the broker's port is busy":      {wrong: busy(func(i *clitest.Installation) string { return i.Kafka }), code: exitFailed, says: []string{"KAFKA", "kafka.listen"}},
		"ClickHouse's HTTP port is busy": {wrong: busy(func(i *clitest.Installation) string { return i.ClickHouseHTTP }), code: exitFailed, says: []string{"CHHTTP", "--clickhouse-http"}},
		"a stage nobody has":             {wrong: edit("  score:   ", "  scroe:   "), code: exitUsage, says: []string{"pipeline.yaml:", "scroe", "did you mean score?"}},
		"a setting nobody has":           {wrong: edit("windows:", "window:"), code: exitUsage, says: []string{"pipeline.yaml:", `"window"`, "did you mean windows?"}},
		"a stream nobody writes":         {wrong: edit("from: scores", "from: score"), code: exitUsage, says: []string{"pipeline.yaml:", "score"}},
		"a fault nobody has":             {args: []string{"--faults", "meteor"}, code: exitUsage, says: []string{"meteor"}},
		"a flag nobody has":              {args: []string{"--hoems", "3"}, code: exitUsage, says: []string{"--hoems", "try: hearthline up --help"}},
	} {
		t.Run(name, func(t *testing.T) {
			i := clitest.New(t)
			if c.wrong != nil {
				c.wrong(t, i)
			}
			args := append([]string{"up", "--plain", "--no-homes", "--clickhouse-http", i.ClickHouseHTTP, "--clickhouse-tcp", i.ClickHouseTCP}, c.args...)
			r := i.Start(args...)
			if code := r.Exit(2 * time.Minute); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			fill := strings.NewReplacer("MQTT", i.MQTT, "CONSOLE", i.Console, "KAFKA", i.Kafka, "CHHTTP", i.ClickHouseHTTP)
			for _, want := range c.says {
				if want := fill.Replace(want); !strings.Contains(r.Out.String(), want) {
					t.Errorf("it does not say %q but:\n%s", want, r.Out)
				}
			}
			if strings.Contains(r.Out.String(), "goroutine ") {
				t.Errorf("it says where it crashed, not what is wrong:\n%s", r.Out)
			}
		})
	}
}

func TestOneProcessADataFolder(t *testing.T) {
	i := clitest.New(t)
	first := i.Up("--no-homes")
	second := *i
	second.MQTT, second.HTTP, second.Console, second.ClickHouseHTTP, second.ClickHouseTCP = clitest.FreeAddr(t), clitest.FreeAddr(t), clitest.FreeAddr(t), clitest.FreeAddr(t), clitest.FreeAddr(t)
	r := second.Start("up", "--plain", "--no-homes", "--clickhouse-http", second.ClickHouseHTTP, "--clickhouse-tcp", second.ClickHouseTCP)
	if code := r.Exit(time.Minute); code != exitFailed || !strings.Contains(r.Out.String(), i.Data) {
		t.Errorf("exit code %d, and it says:\n%s", code, r.Out)
	}
	first.Stop()
}

// Homes do everything that goes wrong in the field, and ClickHouse crashes under them. What is good is stored once,
// what a stage refuses is a dead letter with its reason, and nothing else changes.
func TestEverythingGoesWrongAtOnce(t *testing.T) {
	i := clitest.New(t)
	homes := i.Homes(12, 300, 0)
	if err := homes.Faults.UnmarshalText([]byte("all")); err != nil {
		t.Fatal(err)
	}
	homes.OfflineFor = 2 * time.Second
	up := i.Up("--no-homes")
	ended := clitest.Play(t.Context(), homes)
	for homes.Stats().Acknowledged < 1000 {
		time.Sleep(10 * time.Millisecond)
	}
	i.KillEngine(up)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	bad := homes.Stats().Bad
	i.Eventually("rows in ClickHouse", strconv.FormatInt(want, 10), func() string { return i.Query("SELECT count() FROM readings")[0] })
	i.Eventually("rows of unknown units among the dead letters", strconv.FormatInt(bad["wrong_unit"], 10), func() string {
		return i.Query("SELECT count() FROM dead WHERE stage = 'normalize' AND body LIKE '%parsec%'")[0]
	})
	if bad["wrong_unit"] == 0 || bad["malformed"] == 0 || bad["clock_wrong"] == 0 {
		t.Errorf("too little went wrong: %v", bad)
	}
	if got := i.Query("SELECT count() FROM dead WHERE body NOT LIKE '%parsec%'")[0]; got != "0" {
		t.Errorf("%s dead letters for other reasons: %v", got, i.Query("SELECT stage, reason, body FROM dead WHERE body NOT LIKE '%parsec%' LIMIT 3"))
	}
	up.Stop()
	files, err := parquet.Count(t.Context(), i.ParquetStore(), "readings")
	if err != nil || files.Rows != want {
		t.Errorf("%d rows in Parquet, want %d; %v", files.Rows, want, err)
	}
	t.Logf("%d rows stored; bad on purpose: %v", want, bad)
}

// A disk that is full stops what needs it, and nothing is acknowledged that is not kept; when there is room again it
// goes on by itself.
func TestFullDisk(t *testing.T) {
	i := clitest.New(t)
	disk := disktest.NewMemory(t, i.Data, 700)
	homes := i.Homes(10, 500, 1000)
	homes.Window, homes.AckTimeout = 64, 5*time.Second
	up := i.Up("--no-homes")
	ended := clitest.Play(t.Context(), homes)
	clitest.More(t, homes, ended, 200)
	disk.Fill()
	nothingIsAcknowledged(t, homes, ended)
	disk.Free()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	i.Eventually("rows in ClickHouse", strconv.FormatInt(want, 10), func() string { return i.Query("SELECT count() FROM readings")[0] })
	if got := i.Query("SELECT uniqExact(home, device, metric, seq) FROM readings")[0]; got != strconv.FormatInt(want, 10) {
		t.Errorf("%s distinct rows in ClickHouse, want %d", got, want)
	}
	up.Stop()
	files, err := parquet.Count(t.Context(), i.ParquetStore(), "readings")
	if err != nil || files.Rows != want {
		t.Errorf("%d rows in Parquet, want %d; %v", files.Rows, want, err)
	}
}

// nothingIsAcknowledged waits until nothing has been acknowledged for some seconds in which hubs gave up waiting and sent again.
func nothingIsAcknowledged(t *testing.T, homes *simulator.Simulator, ended <-chan error) {
	t.Helper()
	const still = 8 * time.Second // longer than a hub waits
	late, tick := time.After(time.Minute), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	last, since := homes.Stats(), time.Now()
	for {
		select {
		case err := <-ended:
			t.Fatalf("all was acknowledged (%v) on a disk that is full", err)
		case <-late:
			t.Fatalf("acknowledgements go on, or hubs do not, on a disk that is full: %+v", homes.Stats())
		case <-tick.C:
		}
		now := homes.Stats()
		if now.Acknowledged != last.Acknowledged {
			last, since = now, time.Now()
		}
		tried := now.Resent + now.Reconnects + now.Unavailable - last.Resent - last.Reconnects - last.Unavailable
		if time.Since(since) >= still && tried > 0 {
			t.Logf("%d rows acknowledged, none for %v; hubs tried %d times more", now.Acknowledged, still, tried)
			return
		}
	}
}
