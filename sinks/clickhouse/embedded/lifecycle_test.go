package embedded

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sourcegraph/conc"
)

var testTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// within polls until ok says yes.
func within(t *testing.T, wait time.Duration, what string, ok func() bool) {
	t.Helper()
	if err := poll(context.Background(), wait, func() (bool, error) { return ok(), nil }); err != nil {
		t.Fatalf("not within %v: %s", wait, what)
	}
}

func TestDataOutlivesTheEngine(t *testing.T) {
	dir := t.TempDir()
	ends, stop := start(t, testServer(t, dir))
	for _, q := range []string{"CREATE DATABASE hearthline", "CREATE TABLE hearthline.t (x Int64) ENGINE = MergeTree ORDER BY x", "INSERT INTO hearthline.t VALUES (7)"} {
		if status, body := ask(t, ends.HTTP, ends.Writer, q); status != 200 {
			t.Fatalf("%s: %s", q, body)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	again, stop := start(t, testServer(t, dir))
	if again.Writer != ends.Writer {
		t.Error("the secrets changed")
	}
	if _, body := ask(t, again.HTTP, again.Writer, "SELECT x FROM hearthline.t"); body != "7" {
		t.Errorf("after a restart: %s; want 7", body)
	}
	fi, err := os.Stat(filepath.Join(dir, secretsFile))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("secrets: %v, %v; want them readable for the owner only", fi.Mode(), err)
	}
	users, err := os.ReadFile(filepath.Join(dir, usersFile))
	if err != nil || strings.Contains(string(users), ends.Writer.Password) {
		t.Errorf("users.xml holds a password as it is (%v)", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestBusyPortAndBusyDirectory(t *testing.T) {
	dir := t.TempDir()
	first := testServer(t, dir)
	l, err := net.Listen("tcp", first.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	err = first.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "cannot listen on "+first.HTTPAddr) {
		t.Errorf("busy port: error %v", err)
	}
	l.Close()
	start(t, first)
	if err := testServer(t, dir).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("busy directory: error %v", err)
	}
}

func TestEngineThatEndsByItself(t *testing.T) {
	s := testServer(t, t.TempDir())
	s.Library = filepath.Join(t.TempDir(), "libchdb.so")
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "engine library") {
		t.Errorf("no library: error %v", err)
	}
	if err := os.WriteFile(s.Library, []byte("no library at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "delete the file to have it fetched again") {
		t.Errorf("a broken library: error %v", err)
	}
	for name, change := range map[string]func(*Server){
		"no port":      func(s *Server) { s.HTTPAddr = "localhost" },
		"two hosts":    func(s *Server) { s.TCPAddr = "127.0.0.2:9000" },
		"no directory": func(s *Server) { s.Dir = "" },
		"no database":  func(s *Server) { s.Database = "a b" },
	} {
		s := testServer(t, t.TempDir())
		change(s)
		if err := s.Run(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if code := Main([]string{"by", "hand"}); code == 0 {
		t.Error("the hidden verb started by hand says nothing")
	}
}

// parentVerb runs a server in a process of its own, for tests that kill that process.
const parentVerb = "test-parent"

func parent(args []string) int {
	s := New(args[0])
	s.HTTPAddr, s.TCPAddr = args[1], args[2]
	s.Ready = func(Endpoints) { fmt.Println("ready") }
	if err := s.Run(context.Background()); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func TestEngineEndsWithItsKilledParent(t *testing.T) {
	dir, http, tcp := t.TempDir(), freeAddr(t), freeAddr(t)
	cmd := exec.Command(os.Args[0], parentVerb, dir, http, tcp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	keys, err := readSecrets(dir)
	if err != nil {
		t.Fatal(err)
	}
	writer := User{writerUser, keys.Writer}
	for _, q := range []string{"CREATE DATABASE hearthline", "CREATE TABLE hearthline.t (x Int64) ENGINE = MergeTree ORDER BY x", "INSERT INTO hearthline.t VALUES (7)"} {
		if status, body := ask(t, http, writer, q); status != 200 {
			t.Fatalf("%s: %s", q, body)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// The successor waits for the orphan, whose directory and ports it takes over.
	s := testServer(t, dir)
	s.HTTPAddr, s.TCPAddr = http, tcp
	ends, stop := start(t, s)
	if _, body := ask(t, ends.HTTP, ends.Writer, "SELECT x FROM hearthline.t"); body != "7" {
		t.Errorf("after the kill: %s; want 7", body)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	within(t, 10*time.Second, "the port is free again", func() bool { return free(context.Background(), http) == nil })
}

// TestInstalledBinaryGoesFirst stands a script in for an installed ClickHouse: what it proves is that it is found, started as a
// server with our configuration, and stopped. It does not prove that a real one likes the configuration.
func TestInstalledBinaryGoesFirst(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\nexec " + os.Args[0] + " " + fakeVerb + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "clickhouse"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	ends, stop := start(t, testServer(t, t.TempDir()))
	if want := filepath.Join(bin, "clickhouse"); ends.Engine != want {
		t.Errorf("engine %s; want %s", ends.Engine, want)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := free(t.Context(), ends.HTTP); err != nil {
		t.Errorf("the server still runs: %v", err)
	}
}

func TestFallenEngineIsStartedAgain(t *testing.T) {
	s := testServer(t, t.TempDir())
	s.RestartsMax = 1
	told := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready, ended := make(chan Endpoints, 1), make(chan error, 1)
	s.Ready = func(e Endpoints) { told++; ready <- e }
	var wg conc.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { ended <- s.Run(ctx) })
	var ends Endpoints
	select {
	case ends = <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	// A command of the engine's own that ends it: the process aborts, as it does for its faults.
	crash := func() {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+ends.HTTP, strings.NewReader("KILL QUERY WHERE user = ''"))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(ends.Admin.Name, ends.Admin.Password)
		req.Close = true
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
		within(t, 20*time.Second, "the engine is gone", func() bool { return !answers(t.Context(), ends) })
	}
	crash()
	within(t, 30*time.Second, "the engine is back", func() bool { return answers(t.Context(), ends) })
	crash()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "2 times within a minute") {
			t.Errorf("fell twice: error %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("fell twice, and Run goes on")
	}
	if told != 1 {
		t.Errorf("Ready was called %d times; want once", told)
	}
}
