package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/sourcegraph/conc"
)

// The child's command line: KIND PATH DIR HTTPADDR. Its file descriptor 3 is the lifeline: a pipe that nobody
// writes to, whose other end the parent holds. When it ends, the parent wants the child to stop, or is dead.
const (
	kindLibrary = "library"
	kindBinary  = "binary"
	lifelineFD  = 3
)

// Main is what the child process runs; args are what follows the hidden verb. It returns the exit code.
// It uses up the process: nothing else should run in it.
func Main(args []string) int {
	if err := child(args); err != nil {
		fmt.Fprintln(os.Stderr, "clickhouse:", err)
		return 1
	}
	return 0
}

func child(args []string) error {
	if len(args) != 4 {
		return errors.New("this verb is for hearthline itself: it runs the ClickHouse engine as a child process")
	}
	kind, path, dir, addr := args[0], args[1], args[2], args[3]
	// The parent reads our stderr. If it dies we still have a server to stop in order.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Read with plain calls: this process ends without waiting for its goroutines.
	conc.NewWaitGroup().Go(func() {
		_, _ = io.Copy(io.Discard, os.NewFile(lifelineFD, "lifeline"))
		stop()
	})

	lock := flock.New(filepath.Join(dir, engineLockFile), flock.SetPermissions(0o600))
	if ok, err := lock.TryLockContext(ctx, pollStep); !ok {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	defer lock.Close()
	if kind == kindBinary {
		return runBinary(ctx, path, dir)
	}
	keys, err := readSecrets(dir)
	if err != nil {
		return err
	}
	conc.NewWaitGroup().Go(func() {
		<-ctx.Done()
		stopLibrary(addr, keys)
	})
	return runLibrary(ctx, path, filepath.Join(dir, configFile))
}

// runBinary runs an installed ClickHouse and stops it when ctx ends. Should this process be killed, the kernel
// kills the server: it is tied to the thread that started it, hence the lock.
func runBinary(ctx context.Context, path, dir string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, path, "server", "--config-file="+filepath.Join(dir, configFile)) // #nosec G204 -- runs the engine that the operator names, without a shell
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = dieWithParent()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopWait
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("%s ended: %w", path, err)
}

// stopLibrary ends the query that holds the engine; its session is the only one whose user is ”. An engine that
// does not end in time is ended with the process: what it has acknowledged is safe on disk.
func stopLibrary(addr string, keys secrets) {
	time.AfterFunc(stopWait, func() {
		fmt.Fprintln(os.Stderr, "clickhouse: did not stop in", stopWait)
		os.Exit(2) // the main goroutine is inside the library and cannot be asked
	})
	// No connection is kept: the engine waits for those that are open.
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequest(http.MethodPost, "http://"+dialable(addr), strings.NewReader("KILL QUERY WHERE user = ''"))
		if err != nil {
			return
		}
		req.Header.Set("X-ClickHouse-User", adminUser)
		req.Header.Set("X-ClickHouse-Key", keys.Admin)
		// Again and again: asked while it starts, the engine has no query to kill yet.
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
		}
		time.Sleep(pollStep * 4)
	}
}
