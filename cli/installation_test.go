package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearthline/blobs"
	"hearthline/ingest"
	"hearthline/simulator"
)

// These tests run the product as its users do: the built binary, as processes of its own, on real ports, with the
// real broker protocol, the real ClickHouse and TLS. buildOnce makes the binary, without the race detector: its
// rooms have been tested with it.
var buildOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hearthline-test-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "hearthline")
	build := exec.Command("go", "build", "-o", binary, "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return binary, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if binary, err := buildOnce(); err == nil {
		os.RemoveAll(filepath.Dir(binary))
	}
	os.Exit(code)
}

// installation is a data folder, a pipeline file and the addresses of one `hearthline up`.
type installation struct {
	t        *testing.T
	binary   string
	dir      string
	data     string
	pipeline string
	kafka    string
	mqtt     string
	http     string
	console  string
	chHTTP   string
	chTCP    string
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	binary, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	i := &installation{t: t, binary: binary, dir: dir, data: filepath.Join(dir, "data"), pipeline: filepath.Join(dir, "pipeline.yaml"),
		kafka: freeAddr(t), mqtt: freeAddr(t), http: freeAddr(t), console: freeAddr(t), chHTTP: freeAddr(t), chTCP: freeAddr(t)}
	plan, err := os.ReadFile("../pipeline.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// The product's own plan, but for the one address that has no variable, and faster sinks.
	text := strings.Replace(string(plan), "kafka:\n", "kafka:\n  listen: "+i.kafka+"\n", 1)
	text = strings.Replace(text, "      to: ${HEARTHLINE_DATA:-data}/parquet\n", "      to: ${HEARTHLINE_DATA:-data}/parquet\n      flush_wait: 1s\n", 1)
	i.write(text)
	return i
}

func (i *installation) write(pipeline string) {
	i.t.Helper()
	if err := os.WriteFile(i.pipeline, []byte(pipeline), 0o644); err != nil {
		i.t.Fatal(err)
	}
}

// running is one process of an installation.
type running struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *lockedBuffer
	done chan struct{}
	err  error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a verb. The process is ended with the test, whatever happens.
func (i *installation) start(args ...string) *running {
	i.t.Helper()
	r := &running{t: i.t, out: &lockedBuffer{}, done: make(chan struct{})}
	r.cmd = exec.Command(i.binary, append(args, "--pipeline", i.pipeline, "--data", i.data)...)
	r.cmd.Dir = i.dir
	r.cmd.Env = append(os.Environ(), "HEARTHLINE_MQTT="+i.mqtt, "HEARTHLINE_HTTP="+i.http, "HEARTHLINE_CONSOLE="+i.console)
	i.run(r, args)
	return r
}

// run starts a process and sees to its end.
func (i *installation) run(r *running, args []string) {
	i.t.Helper()
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	if err := r.cmd.Start(); err != nil {
		i.t.Fatal(err)
	}
	go func() { // a test's own watcher; it ends with the process
		r.err = r.cmd.Wait()
		close(r.done)
	}()
	i.t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		<-r.done
		if i.t.Failed() {
			i.t.Logf("hearthline %s said:\n%s", strings.Join(args, " "), lastLines(r.out.String(), 60))
		}
	})
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// up starts everything and waits until it is up.
func (i *installation) up(args ...string) *running {
	i.t.Helper()
	r := i.start(append([]string{"up", "--plain", "--clickhouse-http", i.chHTTP, "--clickhouse-tcp", i.chTCP}, args...)...)
	r.expect("Hearthline is up", 3*time.Minute)
	return r
}

// expect waits until the process has said something.
func (r *running) expect(what string, limit time.Duration) {
	r.t.Helper()
	deadline := time.Now().Add(limit)
	for !strings.Contains(r.out.String(), what) {
		select {
		case <-r.done:
			if strings.Contains(r.out.String(), what) {
				return
			}
			r.t.Fatalf("ended (%v) without saying %q:\n%s", r.err, what, r.out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("did not say %q within %v:\n%s", what, limit, lastLines(r.out.String(), 60))
		}
	}
}

// kill ends the process as a power cut would.
func (r *running) kill() {
	r.t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	<-r.done
}

// exit waits for the process to end and gives its exit code.
func (r *running) exit(limit time.Duration) int {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(limit):
		_ = r.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines say where it stands
		<-r.done
		r.t.Fatalf("did not end within %v:\n%s", limit, lastLines(r.out.String(), 200))
	}
	return r.cmd.ProcessState.ExitCode()
}

// stop is Ctrl-C: the process drains and exits with 0.
func (r *running) stop() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
	if code := r.exit(2 * time.Minute); code != 0 {
		r.t.Fatalf("exit code %d after Ctrl-C:\n%s", code, lastLines(r.out.String(), 40))
	}
}

// query asks the embedded ClickHouse and gives the rows, tab separated.
func (i *installation) query(sql string) []string {
	i.t.Helper()
	secrets, err := os.ReadFile(filepath.Join(i.data, "clickhouse", "secrets.json"))
	if err != nil {
		i.t.Fatal(err)
	}
	var password struct{ Dashboard string }
	if err := json.Unmarshal(secrets, &password); err != nil {
		i.t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+i.chHTTP+"/?database=hearthline", strings.NewReader(sql))
	if err != nil {
		i.t.Fatal(err)
	}
	req.SetBasicAuth("dashboard", password.Dashboard)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		i.t.Fatalf("%s: %s %s %v", sql, res.Status, b, err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// homes are simulated hubs that outlive the pipeline, as real ones do. They play a fixed amount of work.
func (i *installation) homes(homes int, rounds, recordedRows int64) *simulator.Simulator {
	i.t.Helper()
	s := simulator.New()
	s.Homes, s.Rounds, s.Interval, s.History = homes, rounds, 500*time.Millisecond, time.Duration(rounds)*500*time.Millisecond
	s.Recorded, s.RecordedRows, s.Speed = recordedRows > 0, recordedRows, 0
	s.Gateway, s.CAFile, s.JournalDir = i.mqtt, filepath.Join(i.data, "gateway", "ca.pem"), filepath.Join(i.dir, "simulator")
	s.BackoffMax, s.AckTimeout = 2*time.Second, 10*time.Second
	var users []ingest.DevUser
	for _, home := range s.HomeNames() {
		users = append(users, ingest.DevUser{User: home, Home: home})
	}
	if _, err := ingest.DevCertificates(filepath.Join(i.data, "gateway")); err != nil {
		i.t.Fatal(err)
	}
	_, passwords, err := ingest.DevCredentials(filepath.Join(i.data, "gateway"), users...)
	if err != nil {
		i.t.Fatal(err)
	}
	s.Credentials = func(home string) (string, string) { return home, passwords[home] }
	return s
}

// play runs the homes beside the pipeline. The channel gives how it ended.
func play(ctx context.Context, s *simulator.Simulator) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return ended
}

// parquetStore is where the installation's Parquet files are.
func (i *installation) parquetStore() blobs.Store {
	i.t.Helper()
	store, err := blobs.Dir(filepath.Join(i.data, "parquet"))
	if err != nil {
		i.t.Fatal(err)
	}
	return store
}

var drained = regexp.MustCompile(`drained\.  rows acknowledged (\S+)   in ClickHouse (\S+)   in Parquet (\S+) `)
