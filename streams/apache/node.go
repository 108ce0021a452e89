package apache

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// node is one broker: its settings and, while it runs, its process.
type node struct {
	id                         int
	dir, java, jars, clusterID string
	heap                       int
	restarts                   bool   // started again when it has ended by itself
	scratch                    bool   // nobody will read the data again
	listen, addr               string // for clients: where it listens, what they are told
	internal, controller       string // for the brokers among each other
	internalAt, controllerAt   string // where the others find these
	env                        []string

	start chan struct{} // holds one order to start again

	mu    sync.Mutex
	proc  *os.Process   // nil while it is down
	ended chan struct{} // closed when proc has ended
	told  bool          // to end
}

// restartPause is how long a broker that fell by itself stays down.
const restartPause = time.Second

// stopMax is how long a broker may take to stop in order.
const stopMax = 15 * time.Second

const log4j = `status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
`

// write leaves the settings in the broker's directory.
func (n *node) write(properties map[string]string) error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(&b, "%s=%s\n", k, strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(properties[k]))
	}
	return errors.Join(os.WriteFile(n.path("server.properties"), []byte(b.String()), 0o600),
		os.WriteFile(n.path("log4j2.properties"), []byte(log4j), 0o600))
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

// command is Java on one of Kafka's main classes.
func (n *node) command(args ...string) *exec.Cmd {
	flags := append(small(n.heap), "-Dlog4j2.configurationFile="+n.path("log4j2.properties"), "-cp", filepath.Join(n.jars, "*"))
	cmd := exec.Command(n.java, append(flags, args...)...)
	cmd.Dir, cmd.Env = n.dir, append(os.Environ(), n.env...)
	cmd.SysProcAttr = apart()
	return cmd
}

// run keeps the broker as it was told until ctx ends: it is started, and after a Kill or Stop again at a Restart. It
// stays on one thread, since the kernel ties the child's life to the thread that started it.
func (n *node) run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := n.format(); err != nil {
		return err
	}
	for {
		err := n.runOnce(ctx)
		if ctx.Err() != nil || err != nil && !n.restarts {
			return err
		}
		var fallen <-chan time.Time
		if err != nil {
			fallen = time.After(restartPause)
		}
		select {
		case <-n.start:
		case <-fallen:
		case <-ctx.Done():
			return nil
		}
	}
}

// format makes an empty log directory, or leaves the one that is there.
func (n *node) format() error {
	if _, err := os.Stat(n.path("data/meta.properties")); err == nil {
		return nil
	}
	out, err := n.command("kafka.tools.StorageTool", "format", "-t", n.clusterID, "-c", n.path("server.properties")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("kafka: format the data of broker %d: %w: %s", n.id, err, bytes.TrimSpace(out))
	}
	return nil
}

// runOnce runs the broker's process to its end. It is an error when nobody told it to end.
func (n *node) runOnce(ctx context.Context) error {
	out, err := os.OpenFile(n.path("kafka.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("kafka: log of broker %d: %w", n.id, err)
	}
	defer out.Close()
	cmd := n.command("kafka.Kafka", n.path("server.properties"))
	cmd.Stdout, cmd.Stderr = out, out
	n.mu.Lock()
	if err := cmd.Start(); err != nil {
		n.mu.Unlock()
		return fmt.Errorf("kafka: start broker %d: %w", n.id, err)
	}
	ended := make(chan struct{})
	n.proc, n.ended, n.told = cmd.Process, ended, false
	select {
	case <-n.start: // ordered while it was being started anyway
	default:
	}
	n.mu.Unlock()

	stop := context.AfterFunc(ctx, n.end)
	err = cmd.Wait()
	stop()
	n.mu.Lock()
	told := n.told
	n.proc = nil
	close(ended)
	n.mu.Unlock()
	if told || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("kafka: broker %d ended (%v)%s", n.id, err, n.lastWords())
}

// end has the process end: in order if its data is kept, at once if not.
func (n *node) end() {
	_ = n.resume()
	if n.scratch {
		_ = n.kill()
		return
	}
	_ = n.stop()
}

// ErrDown says that a broker is down already.
var ErrDown = errors.New("it does not run")

// signal sends a signal to the process that runs. The channel is closed when that process has ended.
func (n *node) signal(sig syscall.Signal, ending bool) (ended chan struct{}, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc == nil {
		return nil, ErrDown
	}
	n.told = n.told || ending
	return n.ended, n.proc.Signal(sig)
}

func (n *node) kill() error {
	ended, err := n.signal(syscall.SIGKILL, true)
	if err != nil {
		return err
	}
	<-ended
	return nil
}

func (n *node) stop() error {
	ended, err := n.signal(syscall.SIGTERM, true)
	if err != nil {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-time.After(stopMax):
		return n.kill()
	}
}

func (n *node) pause() error  { _, err := n.signal(syscall.SIGSTOP, false); return err }
func (n *node) resume() error { _, err := n.signal(syscall.SIGCONT, false); return err }

func (n *node) restart() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc != nil && n.restarts {
		return nil
	}
	if n.proc != nil {
		return errors.New("it runs: Kill or Stop comes first")
	}
	select {
	case n.start <- struct{}{}:
	default: // ordered already
	}
	return nil
}

// lastWords is what the broker logged last.
func (n *node) lastWords() string {
	b, err := os.ReadFile(n.path("kafka.log"))
	if err != nil || len(b) == 0 {
		return ""
	}
	return fmt.Sprintf("; broker %d said: %s", n.id, bytes.TrimSpace(b[max(0, len(b)-3000):]))
}

// clusterID is random, made once a data directory.
func clusterID(dir string) (string, error) {
	path := filepath.Join(dir, "cluster.id")
	b, err := os.ReadFile(path)
	if err == nil {
		return string(b), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("kafka: %w", err)
	}
	raw := make([]byte, 16)
	_, _ = rand.Read(raw)
	raw[0] &= 0x7f // ids that begin with '-' look like flags
	id := base64.RawURLEncoding.EncodeToString(raw)
	if err := os.WriteFile(path, []byte(id), 0o600); err != nil {
		return "", fmt.Errorf("kafka: %w", err)
	}
	return id, nil
}
