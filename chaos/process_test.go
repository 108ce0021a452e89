package chaos

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is one role, started again whenever it ends, as an orchestrator would, until it is told to stop.
type process struct {
	name string
	path string
	args []string
	env  []string
	log  string // file that every life appends to

	mu     sync.Mutex
	cmd    *exec.Cmd
	done   chan struct{} // of this life
	begun  time.Time     // this life
	unsaid int64         // the size of the log while this life has said nothing
	wanted bool          // start it again
	hold   time.Duration // before the next start
	asked  bool          // this life was told to stop, or killed
	lives  int
	exits  []string // what nobody asked for
	peakKB int
	frozen bool
}

// restartAfter is the pause before a process that ended is started again.
const restartAfter = 300 * time.Millisecond

func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = true
	return p.launch()
}

// launch begins a life. Callers hold mu.
func (p *process) launch() error {
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append(append(os.Environ(), "GOMEMLIMIT=360MiB"), p.env...) // nine tenths of memoryMaxMB, as a pod is told of its limit
	cmd.Stdout, cmd.Stderr = out, out
	// Whatever happens to the harness, nothing is left behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p.lives++
	fmt.Fprintf(out, "=== %s life %d of %s\n", time.Now().Format("15:04:05.000"), p.lives, p.name)
	head, err := out.Stat()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.begun, p.unsaid = time.Now(), head.Size()
	p.cmd, p.done, p.asked, p.hold, p.frozen = cmd, make(chan struct{}), false, restartAfter, false
	go p.watch(cmd, p.done, ownPeakKB())
	go p.weigh(cmd.Process.Pid, p.done)
	return nil
}

// weigh looks now and then at what a life holds at most, until it is over: what its end tells counts only where it is more than this
// process's own.
func (p *process) weigh(pid int, done <-chan struct{}) {
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return
		}
		_, rest, _ := strings.Cut(string(status), "VmHWM:")
		var kb int
		if _, err := fmt.Sscanf(rest, "%d kB", &kb); err == nil { // one that has just ended holds nothing
			p.mu.Lock()
			p.peakKB = max(p.peakKB, kb)
			p.mu.Unlock()
		}
		select {
		case <-done:
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ownPeakKB is what this process has held at most. Linux counts it as held by each process that it starts, too, since that begins as
// its copy; under the race detector it is more than roles take.
func ownPeakKB() int {
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		return math.MaxInt
	}
	return int(own.Maxrss)
}

// watch waits for the end of a life and begins the next.
func (p *process) watch(cmd *exec.Cmd, done chan struct{}, inherited int) {
	err := cmd.Wait()
	p.mu.Lock()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok && int(usage.Maxrss) > inherited {
		p.peakKB = max(p.peakKB, int(usage.Maxrss))
	}
	if !p.asked {
		p.exits = append(p.exits, fmt.Sprintf("life %d: %v", p.lives, err))
	}
	hold, wanted := p.hold, p.wanted
	close(done)
	p.mu.Unlock()
	if !wanted {
		return
	}
	time.Sleep(hold)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted && p.cmd == cmd {
		if err := p.launch(); err != nil {
			p.exits = append(p.exits, err.Error())
		}
	}
}

func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	select {
	case <-p.done:
		return
	default:
	}
	switch sig {
	case syscall.SIGKILL, syscall.SIGTERM:
		p.asked = true
	case syscall.SIGSTOP:
		p.frozen = true
	case syscall.SIGCONT:
		p.frozen = false
	}
	_ = p.cmd.Process.Signal(sig)
}

// kill ends a life as a power cut would; the next begins after a while.
func (p *process) kill(hold time.Duration) {
	p.mu.Lock()
	p.hold = hold
	p.mu.Unlock()
	p.signal(syscall.SIGKILL)
}

// pause stops a life for a while. It does not know of it, and goes on as if nothing had been.
func (p *process) pause(ctx context.Context, lasts time.Duration) {
	p.signal(syscall.SIGSTOP)
	wait(ctx, lasts)
	p.signal(syscall.SIGCONT)
}

// terminate is what an orchestrator does to a pod; hold 0 starts it again at once.
func (p *process) terminate(hold time.Duration) {
	p.mu.Lock()
	p.hold = hold
	p.mu.Unlock()
	p.signal(syscall.SIGTERM)
}

// beginsWithin is how long a life may take to its first words; brokers and engines say none.
const beginsWithin = 5 * time.Second

// awaken waits until this life has said something, or should have: one that is told to stop in its first milliseconds knows of no
// signals yet, and ends by this one, as any program would. It has taken nothing then, and nothing of how it stops is seen.
func (p *process) awaken() {
	p.mu.Lock()
	begun, unsaid, done := p.begun, p.unsaid, p.done
	p.mu.Unlock()
	for time.Since(begun) < beginsWithin {
		if log, err := os.Stat(p.log); err != nil || log.Size() > unsaid {
			return
		}
		select {
		case <-done:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// end tells the process to stop for good and says how it ended.
func (p *process) end(limit time.Duration) error {
	p.mu.Lock()
	p.wanted = false
	cmd, done, told := p.cmd, p.done, p.asked
	p.mu.Unlock()
	if cmd == nil {
		return nil
	}
	select {
	case <-done:
		return nil // it was between two lives: nothing to be told
	default:
	}
	p.signal(syscall.SIGCONT)
	if !told { // one that is on its way out would be ended at once by a second signal
		p.awaken()
		p.signal(syscall.SIGTERM)
	}
	select {
	case <-done:
	case <-time.After(limit):
		p.signal(syscall.SIGQUIT) // its goroutines say where it stands
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			p.signal(syscall.SIGKILL)
			<-done
		}
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.name, limit)
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s: exit code %d after SIGTERM", p.name, code)
	}
	return nil
}

// destroy ends it at once and for good.
func (p *process) destroy() {
	p.mu.Lock()
	p.wanted = false
	done := p.done
	p.mu.Unlock()
	p.signal(syscall.SIGKILL)
	if done != nil {
		<-done
	}
}

// wait sleeps, no longer than ctx.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
