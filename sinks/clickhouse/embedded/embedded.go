// Package embedded runs a real ClickHouse server beside Hearthline, with nothing installed: the engine comes as
// one shared library (libchdb), is fetched once, checked and cached, and runs in a child process, which is this
// binary executed again with a hidden verb. Both of ClickHouse's doors are open, the native one and HTTP.
//
// A `clickhouse` binary found on PATH is run in place of the library, with the same configuration.
//
// What the library does not have: users made by SQL (they stand in users.xml), the system.*_log tables, Keeper
// and Replicated tables. It also has a fault: a wrong password at its native door (not the HTTP one) makes it
// abort. Nothing that was acknowledged is lost, and it is back in a second, but do not open that door to strangers. It is the
// engine of one machine; beyond that, set the address of a ClickHouse cluster.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/sourcegraph/conc"
)

// Server is a ClickHouse server in a child process. Its data, configuration and secrets are in Dir.
type Server struct {
	// Dir is the data directory, made when missing, used by one server at a time.
	Dir string
	// HTTPAddr and TCPAddr are host:port of the HTTP and the native door. Both name the same host.
	HTTPAddr, TCPAddr string
	// Database that the writer may change and the dashboard user may read.
	Database string
	// Library is the path of libchdb.so. "" means: a `clickhouse` on PATH, else the library from the cache,
	// fetched when it is not there.
	Library string
	// Cache is the directory of fetched libraries; "" is [cachedir.Find].
	Cache string
	// Executable and Args are run as the child process; the child calls Main with what follows Args.
	// Executable "" is the running binary.
	Executable string
	Args       []string
	// Logger gets what the engine says, at debug, and what happens to it, at info.
	Logger *slog.Logger
	// Progress is told how much of the library has been fetched, in bytes; it may be nil.
	Progress func(done, total int64)
	// Ready is called once, when the server answers queries; it may be nil.
	Ready func(Endpoints)
	// StartWait is how long the server may take to answer its first query.
	StartWait time.Duration
	// RestartsMax is how many times within a minute an engine that ended by itself is started again.
	RestartsMax int

	told sync.Once // Ready was called
}

// Verb is the hidden verb under which the child process is started by default.
const Verb = "clickhouse-server"

// New returns a server of the data directory dir with the defaults.
func New(dir string) *Server {
	return &Server{
		Dir:       dir,
		HTTPAddr:  "127.0.0.1:8123",
		TCPAddr:   "127.0.0.1:9000",
		Database:  "hearthline",
		Args:      []string{Verb},
		Logger:    slog.New(slog.DiscardHandler),
		StartWait: 2 * time.Minute,

		RestartsMax: 5,
	}
}

// Endpoints say where a running server answers, and to whom.
type Endpoints struct {
	HTTP, TCP string // host:port
	Database  string
	Engine    string // what runs: the library's or the binary's path
	Admin     User   // everything
	Writer    User   // tables of Database: make, add columns, fill, read
	Dashboard User   // reads Database, may set limits on its own queries, changes nothing
}

// User is a name and its secret.
type User struct{ Name, Password string }

// Files in Server.Dir.
const (
	lockFile       = "lock"        // held by the process that calls Run
	engineLockFile = "engine.lock" // held by the child
	secretsFile    = "secrets.json"
	configFile     = "config.xml"
	usersFile      = "users.xml"
	dataDir        = "data"
)

// An engine that lost its parent stops within stopWait, or is ended by its own watchdog. A new one waits a little
// longer than that for the directory.
const (
	stopWait = 30 * time.Second
	lockWait = stopWait + 5*time.Second
)

// Run serves until ctx ends, then stops the engine cleanly and returns nil. An engine that ends by itself is started
// again, RestartsMax times a minute at most. Run returns an error when the server cannot start, or falls more often than that. The
// child process ends with its parent, however that ends.
func (s *Server) Run(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.Dir, dataDir), 0o700); err != nil {
		return fmt.Errorf("clickhouse: data directory: %w", err)
	}
	lock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if host, _, _ := net.SplitHostPort(s.TCPAddr); host != "localhost" && !net.ParseIP(host).IsLoopback() {
		s.Logger.Warn("clickhouse: others than this machine reach the embedded engine; without TLS, and a wrong password makes it start anew: run a ClickHouse server for that",
			"http", s.HTTPAddr, "native", s.TCPAddr)
	}
	// Ports before the download: a clear refusal should not take minutes.
	for _, addr := range []string{s.HTTPAddr, s.TCPAddr} {
		if err := free(ctx, addr); err != nil {
			return err
		}
	}
	eng, err := s.engine(ctx)
	if err != nil {
		return err
	}
	ends, err := s.prepare()
	if err != nil {
		return err
	}
	ends.Engine = eng.path
	ctx, cancel := context.WithCancel(ctx)
	var wg conc.WaitGroup
	defer wg.Wait()
	defer cancel()
	defs, lost := newDefinitions(s), make(chan struct{})
	wg.Go(func() { s.keepThrough(ctx) })
	wg.Go(func() { defs.watch(ctx, ends, lost) })
	return s.supervise(ctx, eng, ends, defs, lost)
}

func (s *Server) check() error {
	if s.Dir == "" {
		return errors.New("clickhouse: no data directory set")
	}
	httpHost, _, err := net.SplitHostPort(s.HTTPAddr)
	if err != nil {
		return fmt.Errorf("clickhouse: http address %q: want host:port: %w", s.HTTPAddr, err)
	}
	tcpHost, _, err := net.SplitHostPort(s.TCPAddr)
	if err != nil {
		return fmt.Errorf("clickhouse: native address %q: want host:port: %w", s.TCPAddr, err)
	}
	if httpHost != tcpHost {
		return fmt.Errorf("clickhouse: the engine listens on one host for both doors, but %s and %s name two", s.HTTPAddr, s.TCPAddr)
	}
	if s.Database == "" || strings.ContainsAny(s.Database, "`'\"\\<>&. ") {
		return fmt.Errorf("clickhouse: %q is no name for a database", s.Database)
	}
	return nil
}

// lock takes the directory for this process, and waits until no engine uses it: the engine of a killed process
// goes on for a moment, and two engines on one directory would destroy it. The child takes the engine's lock anew.
func (s *Server) lock(ctx context.Context) (*flock.Flock, error) {
	mine := flock.New(filepath.Join(s.Dir, lockFile), flock.SetPermissions(0o600))
	switch ok, err := mine.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("clickhouse: lock %s: %w", mine.Path(), err)
	case !ok:
		return nil, fmt.Errorf("clickhouse: the data directory %s is in use by another process: stop that one, or set another directory", s.Dir)
	}
	engine := flock.New(filepath.Join(s.Dir, engineLockFile), flock.SetPermissions(0o600))
	defer engine.Close()
	told := false
	err := poll(ctx, lockWait, func() (bool, error) {
		ok, err := engine.TryLock()
		if !ok && err == nil && !told {
			told = true
			s.Logger.Info("clickhouse: waiting for an earlier engine to stop", "dir", s.Dir, "wait_max", lockWait)
		}
		return ok, err
	})
	if errors.Is(err, errLate) {
		err = fmt.Errorf("an earlier engine still runs on it after %v: end that process", lockWait)
	}
	if err != nil {
		mine.Close()
		return nil, fmt.Errorf("clickhouse: data directory %s: %w", s.Dir, err)
	}
	return mine, nil
}

var errLate = errors.New("not in time")

// pollStep is the wait between two looks at something that is not there yet.
const pollStep = 50 * time.Millisecond

// poll calls ok until it says yes or fails, ctx ends, or wait has passed (errLate).
func poll(ctx context.Context, wait time.Duration, ok func() (bool, error)) error {
	late := time.After(wait)
	tick := time.NewTicker(pollStep)
	defer tick.Stop()
	for {
		if done, err := ok(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return errLate
		case <-tick.C:
		}
	}
}

// free says whether addr can be listened on, with a hint when it cannot.
func free(ctx context.Context, addr string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("clickhouse: cannot listen on %s: %w; stop what uses the port, or choose another", addr, err)
	}
	return l.Close()
}
