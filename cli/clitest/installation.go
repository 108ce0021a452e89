// Package clitest is the kit of tests that run the product as its users do: the built binary, as processes of its own, on
// real ports, with the real broker protocol, the real ClickHouse and TLS. What a test starts ends with it.
package clitest

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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearthline/blobs"
	"hearthline/ingest/identity"
	"hearthline/simulator"
)

// build makes the binary once a test process, without the race detector: its rooms have been tested with it.
var build = sync.OnceValues(func() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "hearthline-test-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "hearthline")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return binary, nil
})

// Root is the module's folder, in which pipeline.yaml is.
var Root = sync.OnceValues(func() (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(mod))), nil
})

// Main is the TestMain of a package that uses the kit: it removes the binary when the tests have run.
func Main(m *testing.M) {
	code := m.Run()
	if binary, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(binary))
	}
	os.Exit(code)
}

// Installation is a data folder, a pipeline file and the addresses of one `hearthline up`.
type Installation struct {
	t                             *testing.T
	Binary                        string // of hearthline
	Dir                           string // everything of this installation, removed with the test
	Data                          string // what --data names
	Pipeline                      string // its pipeline.yaml
	Kafka, MQTT, HTTP, Console    string // host:port each
	ClickHouseHTTP, ClickHouseTCP string // host:port each
}

// New makes an installation with addresses that were free a moment ago. Nothing runs yet.
func New(t *testing.T) *Installation {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	i := &Installation{t: t, Binary: binary, Dir: dir, Data: filepath.Join(dir, "data"), Pipeline: filepath.Join(dir, "pipeline.yaml"),
		Kafka: FreeAddr(t), MQTT: FreeAddr(t), HTTP: FreeAddr(t), Console: FreeAddr(t), ClickHouseHTTP: FreeAddr(t), ClickHouseTCP: FreeAddr(t)}
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	plan, err := os.ReadFile(filepath.Join(root, "pipeline.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// The product's own plan, but for the one address that has no variable, and faster sinks.
	text := strings.Replace(string(plan), "kafka:\n", "kafka:\n  listen: "+i.Kafka+"\n", 1)
	text = strings.Replace(text, "      to: ${HEARTHLINE_DATA:-data}/parquet\n", "      to: ${HEARTHLINE_DATA:-data}/parquet\n      flush_wait: 1s\n", 1)
	i.Write(text)
	return i
}

// Write puts text in the place of the installation's pipeline.yaml.
func (i *Installation) Write(pipeline string) {
	i.t.Helper()
	if err := os.WriteFile(i.Pipeline, []byte(pipeline), 0o644); err != nil {
		i.t.Fatal(err)
	}
}

// Running is one process of an installation.
type Running struct {
	t    *testing.T
	Cmd  *exec.Cmd
	Out  fmt.Stringer  // what it has said until now; safe at any time
	Done chan struct{} // closed when it has ended
	Err  error         // how, once Done is closed
	Ops  string        // where a role answers /readyz and /metrics
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

// Start runs a verb. The process is ended with the test, whatever happens.
func (i *Installation) Start(args ...string) *Running {
	i.t.Helper()
	r := &Running{t: i.t}
	r.Cmd = exec.Command(i.Binary, append(args, "--pipeline", i.Pipeline, "--data", i.Data)...)
	r.Cmd.Dir = i.Dir
	r.Cmd.Env = append(os.Environ(), "HEARTHLINE_MQTT="+i.MQTT, "HEARTHLINE_HTTP="+i.HTTP, "HEARTHLINE_CONSOLE="+i.Console)
	i.run(r, args)
	return r
}

// run starts a process and sees to its end.
func (i *Installation) run(r *Running, args []string) {
	i.t.Helper()
	out := &lockedBuffer{}
	r.Cmd.Stdout, r.Cmd.Stderr = out, out
	r.Out, r.Done = out, make(chan struct{})
	if err := r.Cmd.Start(); err != nil {
		i.t.Fatal(err)
	}
	go func() { // a test's own watcher; it ends with the process
		r.Err = r.Cmd.Wait()
		close(r.Done)
	}()
	i.t.Cleanup(func() {
		_ = r.Cmd.Process.Kill()
		<-r.Done
		if i.t.Failed() {
			i.t.Logf("hearthline %s said:\n%s", strings.Join(args, " "), LastLines(r.Out.String(), 60))
		}
	})
}

func LastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Up starts everything and waits until it is up.
func (i *Installation) Up(args ...string) *Running {
	i.t.Helper()
	r := i.Start(append([]string{"up", "--plain", "--clickhouse-http", i.ClickHouseHTTP, "--clickhouse-tcp", i.ClickHouseTCP}, args...)...)
	r.Expect("Hearthline is up", 3*time.Minute)
	return r
}

// Expect waits until the process has said something.
func (r *Running) Expect(what string, limit time.Duration) {
	r.t.Helper()
	deadline := time.Now().Add(limit)
	for !strings.Contains(r.Out.String(), what) {
		select {
		case <-r.Done:
			if strings.Contains(r.Out.String(), what) {
				return
			}
			r.t.Fatalf("ended (%v) without saying %q:\n%s", r.Err, what, r.Out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("did not say %q within %v:\n%s", what, limit, LastLines(r.Out.String(), 60))
		}
	}
}

// Kill ends the process as a power cut would.
func (r *Running) Kill() {
	r.t.Helper()
	if err := r.Cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	<-r.Done
}

// Exit waits for the process to end and gives its exit code.
func (r *Running) Exit(limit time.Duration) int {
	r.t.Helper()
	select {
	case <-r.Done:
	case <-time.After(limit):
		_ = r.Cmd.Process.Signal(syscall.SIGQUIT) // its goroutines say where it stands
		<-r.Done
		r.t.Fatalf("did not end within %v:\n%s", limit, LastLines(r.Out.String(), 200))
	}
	return r.Cmd.ProcessState.ExitCode()
}

// Stop is Ctrl-C: the process drains and exits with 0.
func (r *Running) Stop() {
	r.t.Helper()
	if err := r.Cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
	if code := r.Exit(2 * time.Minute); code != 0 {
		r.t.Fatalf("exit code %d after Ctrl-C:\n%s", code, LastLines(r.Out.String(), 40))
	}
}

// Query asks the embedded ClickHouse and gives the rows, tab separated.
func (i *Installation) Query(sql string) []string {
	i.t.Helper()
	secrets, err := os.ReadFile(filepath.Join(i.Data, "clickhouse", "secrets.json"))
	if err != nil {
		i.t.Fatal(err)
	}
	var password struct{ Dashboard string }
	if err := json.Unmarshal(secrets, &password); err != nil {
		i.t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+i.ClickHouseHTTP+"/?database=hearthline", strings.NewReader(sql))
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

// Homes are simulated hubs that outlive the pipeline, as real ones do. They play a fixed amount of work.
func (i *Installation) Homes(homes int, rounds, recordedRows int64) *simulator.Simulator {
	i.t.Helper()
	s := simulator.New()
	s.Homes, s.Rounds, s.Interval, s.History = homes, rounds, 500*time.Millisecond, time.Duration(rounds)*500*time.Millisecond
	s.Recorded, s.RecordedRows, s.Speed = recordedRows > 0, recordedRows, 0
	s.Gateway, s.CAFile, s.JournalDir = i.MQTT, filepath.Join(i.Data, "gateway", "ca.pem"), filepath.Join(i.Dir, "simulator")
	s.BackoffMax, s.AckTimeout = 2*time.Second, 10*time.Second
	var users []identity.DevUser
	for _, home := range s.HomeNames() {
		users = append(users, identity.DevUser{User: home, Home: home})
	}
	if _, err := identity.DevCertificates(filepath.Join(i.Data, "gateway")); err != nil {
		i.t.Fatal(err)
	}
	_, passwords, err := identity.DevCredentials(filepath.Join(i.Data, "gateway"), users...)
	if err != nil {
		i.t.Fatal(err)
	}
	s.Credentials = func(home string) (string, string) { return home, passwords[home] }
	return s
}

// Play runs the homes beside the pipeline. The channel gives how it ended.
func Play(ctx context.Context, s *simulator.Simulator) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return ended
}

// More waits until so many more rows of the homes that [Play] runs are acknowledged.
func More(t *testing.T, s *simulator.Simulator, ended <-chan error, rows int64) {
	t.Helper()
	want, deadline := s.Stats().Acknowledged+rows, time.Now().Add(2*time.Minute)
	for s.Stats().Acknowledged < want {
		select {
		case err := <-ended:
			t.Fatalf("the homes' work ended too early for the test: %v, %+v", err, s.Stats())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %d rows more within 2 minutes: %+v", rows, s.Stats())
		}
	}
}

// ParquetStore is where the installation's Parquet files are.
func (i *Installation) ParquetStore() blobs.Store {
	i.t.Helper()
	store, err := blobs.Dir(filepath.Join(i.Data, "parquet"))
	if err != nil {
		i.t.Fatal(err)
	}
	return store
}

// Drained is what `up` says when it has drained: rows acknowledged, in ClickHouse, in Parquet.
var Drained = regexp.MustCompile(`drained\.  rows acknowledged (\S+)   in ClickHouse (\S+)   in Parquet (\S+) `)

// Eventually waits until ask gives want.
func (i *Installation) Eventually(what, want string, ask func() string) {
	i.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	got := ask()
	for got != want {
		if time.Now().After(deadline) {
			i.t.Fatalf("%s: %s, want %s", what, got, want)
		}
		time.Sleep(100 * time.Millisecond)
		got = ask()
	}
}

// Terminate is what Kubernetes does to a pod: the role finishes, leaves and exits with 0.
func (r *Running) Terminate() {
	r.t.Helper()
	if err := r.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		r.t.Fatalf("%s: %v", strings.Join(r.Cmd.Args[1:3], " "), err)
	}
	if code := r.Exit(time.Minute); code != 0 {
		r.t.Errorf("%s: exit code %d after SIGTERM", fmt.Sprint(r.Cmd.Args[1:3]), code)
	}
}

// KillEngine kills the ClickHouse of a running `up` as a crash would.
func (i *Installation) KillEngine(up *Running) {
	i.t.Helper()
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(up.Cmd.Process.Pid)).Output()
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
