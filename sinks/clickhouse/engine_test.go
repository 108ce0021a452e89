package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/sinks/clickhouse/embedded"
)

// engine is the real ClickHouse that all tests use, each in a database of its own. Tests that kill one start their own.
var engine *testEngine

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == embedded.Verb {
		os.Exit(embedded.Main(os.Args[2:]))
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "clickhouse-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	engine = newTestEngine(dir)
	if err := engine.start(); err != nil {
		fmt.Fprintln(os.Stderr, "these tests need the ClickHouse engine, and it does not start:", err)
		return 1
	}
	defer engine.stop()
	return m.Run()
}

// testEngine is an engine on a data directory that can be stopped, killed and started again on the same ports.
type testEngine struct {
	dir       string
	http, tcp string
	ends      embedded.Endpoints
	cancel    context.CancelFunc
	ended     chan error
	wg        conc.WaitGroup
}

func newTestEngine(dir string) *testEngine {
	return &testEngine{dir: dir, http: freeAddr(), tcp: freeAddr()}
}

func (e *testEngine) start() error {
	s := embedded.New(filepath.Join(e.dir, "engine"))
	s.HTTPAddr, s.TCPAddr = e.http, e.tcp
	s.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s.RestartsMax = 1000
	ready := make(chan embedded.Endpoints, 1)
	s.Ready = func(ends embedded.Endpoints) { ready <- ends }
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel, e.ended = cancel, make(chan error, 1)
	ended := e.ended
	e.wg.Go(func() { ended <- s.Run(ctx) })
	select {
	case e.ends = <-ready:
		return nil
	case err := <-e.ended:
		cancel()
		return err
	case <-time.After(3 * time.Minute):
		cancel()
		return errors.New("not ready after 3 minutes")
	}
}

func (e *testEngine) stop() error {
	e.cancel()
	return <-e.ended
}

// freeAddr is a loopback address nobody listens on, below the range the kernel takes ports from by itself.
func freeAddr() string {
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	panic("no free port")
}

var databases atomic.Int64

// newSink is a sink on a database of its own, not opened.
func newSink(t testing.TB) *Sink {
	t.Helper()
	s := New()
	s.Address = engine.ends.TCP
	s.Database = fmt.Sprintf("test_%d", databases.Add(1))
	s.User, s.Password = engine.ends.Admin.Name, engine.ends.Admin.Password
	s.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	return s
}

// openSink is an open sink on a database of its own, which is dropped in the end.
func openSink(t testing.TB) *Sink {
	t.Helper()
	s := newSink(t)
	open(t, s)
	t.Cleanup(func() {
		if err := s.queries.Exec(context.Background(), "DROP DATABASE IF EXISTS "+quote(s.Database)); err != nil {
			t.Errorf("drop: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func open(t testing.TB, s *Sink) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Open(ctx); err != nil {
		t.Fatalf("open: %v", err)
	}
}

// scalar asks for one value, as text.
func scalar(t testing.TB, s *Sink, sql string, args ...any) string {
	t.Helper()
	result, err := s.Query(context.Background(), 10, "SELECT toString(("+sql+"))", args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if len(result.Rows) != 1 || len(result.Rows[0]) != 1 {
		t.Fatalf("%s: %v", sql, result.Rows)
	}
	return fmt.Sprint(result.Rows[0][0])
}
