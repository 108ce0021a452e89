package python

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/sourcegraph/conc"
	"golang.org/x/sys/unix"

	"hearthline/flow"
)

// worker is a process that runs a stage's function on one batch at a time.
type worker struct {
	host  *host
	print string     // of the files that it runs
	state *stateTold // what it keeps; nil for nothing
	cmd   *exec.Cmd
	wire  net.Conn
	said  *said
	out   conc.WaitGroup // those who read what it prints
	once  sync.Once
	ended error
	used  atomic.Int64 // bytes of memory for which it was killed
	early bool         // it is being told what to be
}

// errNotUp says that a worker died before it could work: of the world, or of what the stage does when it is loaded.
var errNotUp = errors.New("its worker did not come up")

// start makes a worker and waits until it can work. describe has it say what it is, without settings.
func (h *host) start(ctx context.Context, print string, describe bool) (*worker, error) {
	w := h.adopt(print)
	if w == nil {
		var err error
		if w, err = h.launch(ctx, print); err != nil {
			return nil, fmt.Errorf("%s: %w", h.name, cmp.Or(ctx.Err(), err))
		}
	}
	failed, err := w.open(ctx, describe)
	if err == nil && failed == nil {
		return w, nil
	}
	w.end()
	if ctx.Err() != nil { // nobody waits for it any more: that says nothing of the stage
		return nil, fmt.Errorf("%s: %w", h.name, ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", h.name, errNotUp, w.why(err))
	}
	if failed.Settings {
		return nil, errors.New(failed.Said)
	}
	return nil, failed.at(fmt.Errorf("%s: %s", h.name, failed.line()))
}

func (h *host) launch(ctx context.Context, print string) (*worker, error) {
	interpreter, err := h.interpreter(ctx, print)
	if err != nil {
		return nil, err
	}
	library, err := h.workers.install()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "runtime")
	defer theirs.Close()
	wire, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	args := []string{"-u", "-m", h.module(), "3"} // the first of ExtraFiles
	if h.workers.Debugger != "" {
		args = append([]string{"-Xfrozen_modules=off", "-m", "debugpy", "--listen", h.workers.Debugger, "--wait-for-client"}, args[1:]...)
	}
	cmd := exec.Command(interpreter, args...) // #nosec G204 -- the operator's interpreter
	cmd.Env = append(os.Environ(), "PYTHONPATH="+library, "PYTHONDONTWRITEBYTECODE=1")
	cmd.ExtraFiles = []*os.File{theirs}
	w := &worker{host: h, print: print, cmd: cmd, wire: wire, said: &said{}}
	if h.workers.Terminal {
		return w, w.startHere(interpreter)
	}
	cmd.Env = append(cmd.Env, "PYTHONBREAKPOINT=0")
	cmd.SysProcAttr = apart()
	stdout, err1 := cmd.StdoutPipe()
	stderr, err2 := cmd.StderrPipe()
	if err := errors.Join(err1, err2); err != nil {
		wire.Close()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		wire.Close()
		return nil, fmt.Errorf("start %s: %w; install Python 3.10 or later", interpreter, err)
	}
	for name, from := range map[string]io.Reader{"stdout": stdout, "stderr": stderr} {
		w.out.Go(func() { w.said.listen(h, name, from) })
	}
	return w, nil
}

// startHere starts a worker that has this process's terminal. It stays in its group: a terminal is read by the group in front alone.
func (w *worker) startHere(interpreter string) error {
	w.cmd.Stdin, w.cmd.Stdout, w.cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := w.cmd.Start(); err != nil {
		w.wire.Close()
		return fmt.Errorf("start %s: %w; install Python 3.10 or later", interpreter, err)
	}
	return nil
}

// open tells the worker what to be. A failure is what the stage itself says.
func (w *worker) open(ctx context.Context, describe bool) (*failure, error) {
	task := w.host.task()
	task["describe"] = describe
	if !describe {
		task["settings"] = json.RawMessage(w.host.settings)
	}
	body, err := json.Marshal(task)
	if err != nil {
		return nil, err
	}
	w.early = true
	done := w.within(ctx, w.host.workers.StartTime)
	defer done()
	if err := writeFrame(w.wire, frameOpen, body); err != nil {
		return nil, err
	}
	kind, body, err := readFrame(w.wire, w.host.workers.FrameMax)
	switch {
	case err != nil:
		return nil, err
	case kind == frameReady:
		told := struct{ State *stateTold }{}
		if err := json.Unmarshal(body, &told); err != nil {
			return nil, err
		}
		w.state, w.early = told.State, false
		return nil, nil
	case kind != frameFailed:
		return nil, fmt.Errorf("frame %q; want to hear that it is ready", kind)
	}
	f := new(failure)
	return f, json.Unmarshal(body, f)
}

// answer is what a worker made of a batch.
type answer struct {
	Outputs []string `json:"outputs"`
	Rows    []int    `json:"rows"`
	Reasons []string `json:"reasons"`

	raised *failure
	made   []flow.Output
	state  arrow.Record // what has changed of the states; nil where it keeps none
}

func (a *answer) release() {
	for _, o := range a.made {
		o.Record.Release()
	}
	a.made = nil
	a.releaseState()
}

func (a *answer) releaseState() {
	if a.state != nil {
		a.state.Release()
		a.state = nil
	}
}

// frame is one on its way to a worker.
type frame struct {
	kind byte
	body []byte
}

// outputsMax bounds what an answer may say it brings.
const outputsMax = 1000

// ask has a function run on what frames say. After an error the worker is of no use.
func (w *worker) ask(ctx context.Context, frames ...frame) (*answer, error) {
	done := w.within(ctx, w.host.use.Timeout)
	defer done()
	for _, f := range frames {
		if err := writeFrame(w.wire, f.kind, f.body); err != nil {
			return nil, w.why(err)
		}
	}
	kind, body, err := readFrame(w.wire, w.host.workers.FrameMax)
	if err != nil {
		return nil, w.why(err)
	}
	a := new(answer)
	switch kind {
	case frameRaised:
		a.raised = new(failure)
		return a, json.Unmarshal(body, a.raised)
	case frameResult:
	default:
		return nil, fmt.Errorf("frame %q; want a result", kind)
	}
	if err := json.Unmarshal(body, a); err != nil {
		return nil, err
	}
	if len(a.Outputs) > outputsMax {
		return nil, fmt.Errorf("%d outputs; at most %d", len(a.Outputs), outputsMax)
	}
	for _, name := range a.Outputs {
		rec, err := w.record("output " + name)
		if err != nil {
			a.release()
			return nil, err
		}
		a.made = append(a.made, flow.Output{To: name, Record: rec})
	}
	if w.state != nil {
		if a.state, err = w.record("state"); err != nil {
			a.release()
			return nil, err
		}
	}
	return a, nil
}

// record reads a batch of an answer.
func (w *worker) record(what string) (arrow.Record, error) {
	kind, body, err := readFrame(w.wire, w.host.workers.FrameMax)
	if err == nil && kind != frameArrow {
		err = fmt.Errorf("frame %q; want a batch", kind)
	}
	if err != nil {
		return nil, w.why(err)
	}
	rec, err := decode(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return rec, nil
}

// within gives the worker so long, and so much memory; when ctx ends, no longer.
func (w *worker) within(ctx context.Context, wait time.Duration) (done func()) {
	watched := w.watch()
	_ = w.wire.SetDeadline(time.Now().Add(wait)) // of a socket; what cannot be set shows at the next use
	stop := context.AfterFunc(ctx, func() { _ = w.wire.SetDeadline(time.Unix(1, 0)) })
	return func() { stop(); watched() }
}

// measureEvery is how often it is looked what a worker uses, while it works.
const measureEvery = 20 * time.Millisecond

// watch kills the worker when it uses more memory than it may, until done is called.
func (w *worker) watch() (done func()) {
	most := w.host.use.MemoryBytesMax
	if most == 0 {
		return func() {}
	}
	over := make(chan struct{})
	var watching conc.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(measureEvery)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			if used := memoryOf(w.cmd.Process.Pid); used > most {
				w.used.Store(used)
				_ = syscall.Kill(w.cmd.Process.Pid, syscall.SIGKILL) // it may be gone; it is not waited for before the watch is over
				return
			}
		}
	})
	return func() {
		close(over)
		watching.Wait()
	}
}

// waits says whether an idle worker is there, and silent: a batch is to be blamed for the death of one that had it alone.
func (w *worker) waits() bool {
	raw, err := w.wire.(syscall.Conn).SyscallConn()
	if err != nil {
		return false
	}
	silent := false
	err = raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		silent = errors.Is(err, unix.EAGAIN)
	})
	return err == nil && silent
}

// why says of an error what became of the process.
func (w *worker) why(err error) error {
	if used := w.used.Load(); used > 0 {
		return fmt.Errorf("it used %d MiB of memory, and workers.memory_bytes_max is %d MiB", used>>20, w.host.use.MemoryBytesMax>>20)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && w.early {
		return fmt.Errorf("it was not ready within %v: what it imports, or does beside its functions, takes too long", w.host.workers.StartTime)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("it did not answer within %v (workers.timeout)", w.host.use.Timeout)
	}
	ended := w.end()
	last := w.said.last()
	switch {
	case ended != nil && last != "":
		return fmt.Errorf("%w; it said: %s", ended, last)
	case ended != nil:
		return ended
	}
	return err
}

// end kills the process, with all that it has started, and waits for it. It gives how the process ended by itself, if it did.
func (w *worker) end() error {
	w.once.Do(func() {
		w.wire.Close()
		// One that has been told by the closed socket to go may do so; one that hangs, or has forked, is killed.
		exited := make(chan struct{})
		var waiting conc.WaitGroup
		waiting.Go(func() {
			defer close(exited)
			w.out.Wait()
			w.ended = w.cmd.Wait()
		})
		select {
		case <-exited:
		case <-time.After(endWait):
		}
		if w.host.workers.Terminal {
			_ = w.cmd.Process.Kill() // it is in our group
		} else {
			_ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGKILL) // it, and what it forked; they may be gone
		}
		waiting.Wait()
	})
	return w.ended
}

// endWait is how long a worker may take to go by itself.
const endWait = 200 * time.Millisecond

// said is what a worker prints: lines for the log, and the last ones for errors.
type said struct {
	mu    sync.Mutex
	lines []string
}

const (
	lineMax  = 8 << 10 // bytes of a line that are shown
	linesMax = 5       // for errors
)

// listen writes lines to the log until the worker closes its end. What is no text is shown as such; long lines are cut.
func (s *said) listen(h *host, stream string, from io.Reader) {
	log := h.workers.Logger.With("stage", h.name)
	eachLine(from, lineMax, func(line []byte) {
		if rest, ok := bytes.CutPrefix(line, []byte{0x1e}); ok {
			var r struct{ Level, Logger, Message string }
			if json.Unmarshal(rest, &r) == nil {
				log.Log(context.Background(), levelOf(r.Level), r.Message, "logger", r.Logger)
				return
			}
		}
		text := strings.ToValidUTF8(string(line), "\uFFFD")
		if strings.TrimSpace(text) == "" {
			return
		}
		log.Info(text, "from", stream)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.lines = append(s.lines, text); len(s.lines) > linesMax {
			s.lines = s.lines[1:]
		}
	})
}

func (s *said) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, " | ")
}
