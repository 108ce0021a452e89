package cli

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearthline/sinks/parquet"
)

// What goes wrong at the start is said at once: what, where, and what to do.
func TestWhatIsWrongAtTheStart(t *testing.T) {
	busy := func(addr func(*installation) string) func(*testing.T, *installation) {
		return func(t *testing.T, i *installation) {
			l, err := net.Listen("tcp", addr(i))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}
	}
	edit := func(old, new string) func(*testing.T, *installation) {
		return func(t *testing.T, i *installation) {
			b, err := os.ReadFile(i.pipeline)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(b, []byte(old)) {
				t.Fatalf("pipeline.yaml holds no %q", old)
			}
			i.write(strings.Replace(string(b), old, new, 1))
		}
	}
	for name, c := range map[string]struct {
		wrong func(*testing.T, *installation)
		args  []string
		code  int
		says  []string
	}{
		"the MQTT port is busy":          {wrong: busy(func(i *installation) string { return i.mqtt }), code: exitFailed, says: []string{"MQTT", "address already in use"}},
		"the console's port is busy":     {wrong: busy(func(i *installation) string { return i.console }), code: exitFailed, says: []string{"CONSOLE", "console.listen"}},
		"the broker's port is busy":      {wrong: busy(func(i *installation) string { return i.kafka }), code: exitFailed, says: []string{"KAFKA", "kafka.listen"}},
		"ClickHouse's HTTP port is busy": {wrong: busy(func(i *installation) string { return i.chHTTP }), code: exitFailed, says: []string{"CHHTTP", "--clickhouse-http"}},
		"a stage nobody has":             {wrong: edit("  score:   ", "  scroe:   "), code: exitUsage, says: []string{"pipeline.yaml:", "scroe", "did you mean score?"}},
		"a setting nobody has":           {wrong: edit("windows:", "window:"), code: exitUsage, says: []string{"pipeline.yaml:", `"window"`, "did you mean windows?"}},
		"a stream nobody writes":         {wrong: edit("from: scores", "from: score"), code: exitUsage, says: []string{"pipeline.yaml:", "score"}},
		"a fault nobody has":             {args: []string{"--faults", "meteor"}, code: exitUsage, says: []string{"meteor"}},
		"a flag nobody has":              {args: []string{"--hoems", "3"}, code: exitUsage, says: []string{"--hoems", "try: hearthline up --help"}},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation(t)
			if c.wrong != nil {
				c.wrong(t, i)
			}
			args := append([]string{"up", "--plain", "--no-homes", "--clickhouse-http", i.chHTTP, "--clickhouse-tcp", i.chTCP}, c.args...)
			r := i.start(args...)
			if code := r.exit(2 * time.Minute); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			fill := strings.NewReplacer("MQTT", i.mqtt, "CONSOLE", i.console, "KAFKA", i.kafka, "CHHTTP", i.chHTTP)
			for _, want := range c.says {
				if want := fill.Replace(want); !strings.Contains(r.out.String(), want) {
					t.Errorf("it does not say %q but:\n%s", want, r.out)
				}
			}
			if strings.Contains(r.out.String(), "goroutine ") {
				t.Errorf("it says where it crashed, not what is wrong:\n%s", r.out)
			}
		})
	}
}

func TestOneProcessADataFolder(t *testing.T) {
	i := newInstallation(t)
	first := i.up("--no-homes")
	second := *i
	second.mqtt, second.http, second.console, second.chHTTP, second.chTCP = freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	r := second.start("up", "--plain", "--no-homes", "--clickhouse-http", second.chHTTP, "--clickhouse-tcp", second.chTCP)
	if code := r.exit(time.Minute); code != exitFailed || !strings.Contains(r.out.String(), i.data) {
		t.Errorf("exit code %d, and it says:\n%s", code, r.out)
	}
	first.stop()
}

// Homes do everything that goes wrong in the field, and ClickHouse crashes under them. What is good is stored once,
// what a stage refuses is a dead letter with its reason, and nothing else changes.
func TestEverythingGoesWrongAtOnce(t *testing.T) {
	i := newInstallation(t)
	homes := i.homes(12, 300, 0)
	if err := homes.Faults.UnmarshalText([]byte("all")); err != nil {
		t.Fatal(err)
	}
	homes.OfflineFor = 2 * time.Second
	up := i.up("--no-homes")
	ended := play(t.Context(), homes)
	for homes.Stats().Acknowledged < 1000 {
		time.Sleep(10 * time.Millisecond)
	}
	i.killEngine(up)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	bad := homes.Stats().Bad
	i.eventually("rows in ClickHouse", strconv.FormatInt(want, 10), func() string { return i.query("SELECT count() FROM readings")[0] })
	i.eventually("rows of unknown units among the dead letters", strconv.FormatInt(bad["wrong_unit"], 10), func() string {
		return i.query("SELECT count() FROM dead WHERE stage = 'normalize' AND body LIKE '%parsec%'")[0]
	})
	if bad["wrong_unit"] == 0 || bad["malformed"] == 0 || bad["clock_wrong"] == 0 {
		t.Errorf("too little went wrong: %v", bad)
	}
	if got := i.query("SELECT count() FROM dead WHERE body NOT LIKE '%parsec%'")[0]; got != "0" {
		t.Errorf("%s dead letters for other reasons: %v", got, i.query("SELECT stage, reason, body FROM dead WHERE body NOT LIKE '%parsec%' LIMIT 3"))
	}
	up.stop()
	files, err := parquet.Count(t.Context(), i.parquetStore(), "readings")
	if err != nil || files.Rows != want {
		t.Errorf("%d rows in Parquet, want %d; %v", files.Rows, want, err)
	}
	t.Logf("%d rows stored; bad on purpose: %v", want, bad)
}

// killEngine kills the ClickHouse of a running `up` as a crash would.
func (i *installation) killEngine(up *running) {
	i.t.Helper()
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(up.cmd.Process.Pid)).Output()
	if err != nil {
		i.t.Fatalf("children of hearthline up: %v", err)
	}
	for _, field := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			i.t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			i.t.Fatal(err)
		}
	}
}

// A disk that is full stops what needs it, and nothing is acknowledged that is not kept; when there is room again it
// goes on by itself.
func TestFullDisk(t *testing.T) {
	i := newInstallation(t)
	disk := newSmallDisk(t, i.data, 700)
	homes := i.homes(10, 500, 1000)
	homes.Window, homes.AckTimeout = 64, 5*time.Second
	up := i.up("--no-homes")
	disk.fill()
	ended := play(t.Context(), homes)
	select {
	case err := <-ended:
		t.Fatalf("all was acknowledged (%v) on a disk that is full", err)
	case <-time.After(15 * time.Second): // time in which the full disk is met; there is no other sign
	}
	disk.free()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	i.eventually("rows in ClickHouse", strconv.FormatInt(want, 10), func() string { return i.query("SELECT count() FROM readings")[0] })
	up.stop()
	files, err := parquet.Count(t.Context(), i.parquetStore(), "readings")
	if err != nil || files.Rows != want {
		t.Errorf("%d rows in Parquet, want %d; %v", files.Rows, want, err)
	}
}

// smallDisk is a file system of its own, of which all but a little can be filled up.
type smallDisk struct {
	t       *testing.T
	dir     string
	ballast string
}

func newSmallDisk(t *testing.T, dir string, megabytes int) *smallDisk {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.Itoa(megabytes)+"m")
	if errors.Is(err, syscall.EPERM) && os.Getenv("CI") == "" {
		t.Skipf("NOT TESTED: a full disk needs a disk of its own, and only root may mount one (%v)", err)
	}
	if err != nil {
		t.Fatalf("mount a disk for this test: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return &smallDisk{t: t, dir: dir, ballast: filepath.Join(dir, "ballast")}
}

func (d *smallDisk) fill() {
	d.t.Helper()
	f, err := os.Create(d.ballast)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for {
		if _, err := f.Write(block); err != nil {
			return // full: that is the point
		}
	}
}

func (d *smallDisk) free() {
	d.t.Helper()
	if err := os.Remove(d.ballast); err != nil {
		d.t.Fatal(err)
	}
}
