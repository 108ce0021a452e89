package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sourcegraph/conc"
)

// engine is what the child runs.
type engine struct{ kind, path string }

// engine chooses what to run: the library that was set, an installed ClickHouse, the fetched library.
func (s *Server) engine(ctx context.Context) (engine, error) {
	if s.Library != "" {
		if _, err := os.Stat(s.Library); err != nil {
			return engine{}, fmt.Errorf("clickhouse: engine library: %w", err)
		}
		return engine{kindLibrary, s.Library}, nil
	}
	if path, err := exec.LookPath("clickhouse"); err == nil {
		return engine{kindBinary, path}, nil
	}
	path, err := Fetch(ctx, s.Cache, s.Logger, s.Progress)
	return engine{kindLibrary, path}, err
}

// supervise runs the child until ctx ends. An engine that served and then ended by itself is started again: it is made to
// survive sudden death, and whoever writes to it tries again. It did not serve: that is for a person to see. One that
// lost a definition is stopped, and started again.
func (s *Server) supervise(ctx context.Context, eng engine, ends Endpoints, defs *definitions, lost <-chan struct{}) error {
	var falls []time.Time
	for {
		if err := errors.Join(defs.mend(), s.mendInsertLogs()); err != nil {
			return err
		}
		served, err := s.runChild(ctx, eng, ends, lost)
		if errors.Is(err, errLost) {
			s.Logger.Warn("clickhouse: the engine is started again", "why", err)
			continue
		}
		if err == nil || !served {
			return err
		}
		now := time.Now()
		falls = slices.DeleteFunc(append(falls, now), func(t time.Time) bool { return now.Sub(t) > time.Minute })
		if len(falls) > s.RestartsMax {
			return fmt.Errorf("%w; it ended %d times within a minute", err, len(falls))
		}
		s.Logger.Error("clickhouse: the engine fell and is started again", "error", err, "falls", len(falls))
	}
}

// errLost is why an engine is stopped that has a table whose definition is not to be had.
var errLost = errors.New("clickhouse: the engine keeps an empty definition, as of something that was made while its disk was full")

// runChild runs one child. served says that it answered queries.
func (s *Server) runChild(ctx context.Context, eng engine, ends Endpoints, lost <-chan struct{}) (served bool, err error) {
	exe := s.Executable
	if exe == "" {
		self, err := os.Executable()
		if err != nil {
			return false, fmt.Errorf("clickhouse: own executable: %w", err)
		}
		exe = self
	}
	dir, err := filepath.Abs(s.Dir)
	if err != nil {
		return false, fmt.Errorf("clickhouse: data directory: %w", err)
	}
	lifeline, hold, err := os.Pipe()
	if err != nil {
		return false, fmt.Errorf("clickhouse: lifeline: %w", err)
	}
	defer hold.Close()
	said := &lines{logger: s.Logger}
	cmd := exec.Command(exe, append(append([]string(nil), s.Args...), eng.kind, eng.path, dir, s.HTTPAddr)...) // #nosec G204 -- runs this binary, or what the operator names, without a shell
	cmd.ExtraFiles = []*os.File{lifeline}                                                                      // descriptor 3
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = time.Second
	// A group of its own: Ctrl-C in the terminal is for the parent, which stops its sinks before the engine.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		lifeline.Close()
		return false, fmt.Errorf("clickhouse: start %s: %w", exe, err)
	}
	lifeline.Close()

	ended := make(chan error, 1)
	var wg conc.WaitGroup
	wg.Go(func() { ended <- cmd.Wait() })
	defer wg.Wait()

	served, err = s.serve(ctx, ends, ended, lost, said)
	hold.Close()
	select {
	case <-ended:
	case <-time.After(stopWait + 5*time.Second):
		_ = cmd.Process.Kill()
		s.Logger.Warn("clickhouse: the engine did not stop and was killed")
	}
	return served, err
}

// serve returns when the child is to be stopped, with no error when ctx has ended. It puts back what it took from ended.
func (s *Server) serve(ctx context.Context, ends Endpoints, ended chan error, lost <-chan struct{}, said *lines) (served bool, err error) {
	gone := func(err error) error {
		ended <- err
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("clickhouse: the engine ended (%v)%s", err, said.last())
	}
	begun := time.Now()
	err = poll(ctx, s.StartWait, func() (bool, error) {
		select {
		case err := <-ended:
			return false, gone(err)
		default:
		}
		return answers(ctx, ends), nil
	})
	switch {
	case errors.Is(err, errLate):
		return false, fmt.Errorf("clickhouse: the engine does not answer at %s after %v%s", ends.HTTP, s.StartWait, said.last())
	case ctx.Err() != nil:
		return false, nil
	case err != nil:
		return false, err
	}
	s.Logger.Info("clickhouse: ready", "native", ends.TCP, "http", ends.HTTP, "engine", ends.Engine, "start", time.Since(begun).Round(time.Millisecond))
	if s.Ready != nil {
		s.told.Do(func() { s.Ready(ends) })
	}
	select {
	case <-ctx.Done():
		return true, nil
	case <-lost:
		return true, errLost
	case err := <-ended:
		return true, gone(err)
	}
}

// answers says whether the server takes queries of the writer, over HTTP, and its native door is open too.
func answers(ctx context.Context, ends Endpoints) bool {
	if body, err := query(ctx, ends, ends.Writer, "SELECT 1"); err != nil || strings.TrimSpace(body) != "1" {
		return false
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", dialable(ends.TCP))
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// query asks the engine over HTTP, for an answer of a megabyte at most.
func query(ctx context.Context, ends Endpoints, as User, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+dialable(ends.HTTP), strings.NewReader(sql))
	if err != nil {
		return "", err
	}
	req.Header.Set("X-ClickHouse-User", as.Name)
	req.Header.Set("X-ClickHouse-Key", as.Password)
	req.Close = true // the engine waits for open connections when it stops
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}

// dialable is where a listening address is reached from this machine.
func dialable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host != "" && host != "0.0.0.0" && host != "::" {
		return addr
	}
	return net.JoinHostPort("127.0.0.1", port)
}

// lines logs what the engine says, line by line, and keeps the last few for an error.
type lines struct {
	logger *slog.Logger
	mu     sync.Mutex
	part   []byte
	tail   []string
}

// stackFrame is a line of the engine's stack traces, whose addresses say nothing to anybody.
var stackFrame = regexp.MustCompile(`(^|: )\d+\. .* @ 0x[0-9a-f]+$|(^|: +)\(version [0-9.]+\)$`)

const (
	tailMax      = 8
	lineBytesMax = 2000
)

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, p...)
	for {
		i := bytes.IndexByte(l.part, '\n')
		if i < 0 && len(l.part) < lineBytesMax {
			return len(p), nil
		}
		if i < 0 {
			i = len(l.part) - 1
		}
		line := strings.TrimSpace(string(l.part[:min(i, lineBytesMax)]))
		l.part = l.part[i+1:]
		if line == "" || stackFrame.MatchString(line) {
			continue
		}
		l.logger.Debug("clickhouse says", "line", line)
		l.tail = append(l.tail, line)
		l.tail = l.tail[max(0, len(l.tail)-tailMax):]
	}
}

// last is what the engine said last, for the end of an error.
func (l *lines) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.tail
	if s := strings.TrimSpace(string(l.part)); s != "" {
		all = append(all, s)
	}
	if len(all) == 0 {
		return ""
	}
	return "; it said:\n  " + strings.Join(all, "\n  ")
}
