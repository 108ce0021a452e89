package python

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestWhatAStageSays: what it logs and prints comes out as lines of the log with its name, whatever it is, and costs no batch.
func TestWhatAStageSays(t *testing.T) {
	a := newAuthor(t)
	s := a.open(`
import logging, os, sys

log = logging.getLogger("rooms")

def process(batch):
    if batch.num_rows:
        log.warning("row %d is\nodd", 3)
        logging.error("the room is on fire")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("it went wrong")
        print("two\nlines")
        print("to stderr", file=sys.stderr)
        sys.stdout.flush()
        os.write(1, bytes(range(256)) * 4 + b"\n" + b"\x00\xff\xfe" * 3000000 + b"\n")
        os.write(2, b"\x1e{not a record\n" + b"x" * 20000 + b"\n")
        print("the end")
    return batch
`, "")
	worker := s.host.idle[0].cmd.Process.Pid
	for range 2 {
		if out, err := a.process(s, 3); err != nil || out[0].Record.NumRows() != 3 {
			t.Fatal(out, err)
		}
	}
	if pid := s.host.idle[0].cmd.Process.Pid; pid != worker {
		t.Errorf("worker %d was replaced by %d", worker, pid)
	}
	want := []string{
		`level=WARN msg="row 3 is\nodd" stage=it logger=rooms`, `level=ERROR msg="the room is on fire" stage=it logger=root`,
		"it went wrong\\nTraceback", "ZeroDivisionError: division by zero", `msg=two stage=it from=stdout`, `msg=lines stage=it from=stdout`, `msg="to stderr" stage=it from=stderr`, `msg="the end" stage=it`, "\uFFFD",
	}
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		log := a.log.String()
		missing := ""
		for _, w := range want {
			if !strings.Contains(log, w) {
				missing = w
			}
		}
		if missing == "" && strings.Count(log, `msg="the end"`) == 2 && strings.Contains(log, strings.Repeat("x", 1000)) {
			break
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("the log does not have %q: %.2000s", missing, log)
		}
	}
	for line := range strings.Lines(a.log.String()) {
		if len(line) > 5*lineMax { // binary is escaped
			t.Errorf("a line of %d bytes: %.200s", len(line), line)
		}
	}
}

// TestWhatAStageStarts is ended with it: processes that it forked and that would stay, and those that are not of its making alone.
func TestWhatAStageStarts(t *testing.T) {
	a := newAuthor(t)
	a.workers.Timeout = time.Second
	s := a.open(`
import os, subprocess, time

def process(batch):
    if batch.num_rows:
        mark = os.path.join(os.path.dirname(__file__), "children")
        child = os.fork()
        if not child:
            time.sleep(600)
        with open(mark, "a") as f:
            print(child, subprocess.Popen(["sleep", "600"]).pid, file=f, flush=True)
        time.sleep(600 if batch.num_rows == 3 else 0)
    return batch
`, "")
	if _, err := a.process(s, 3); err == nil || !strings.Contains(err.Error(), "3 workers died of this batch") {
		t.Error(err)
	}
	if _, err := a.process(s, 2); err != nil { // one that is not killed, but told to go
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(filepath.Join(a.dir, "it", "children"))
	if err != nil {
		t.Fatal(err)
	}
	pids := regexp.MustCompile(`\d+`).FindAllString(string(text), -1)
	if len(pids) != 8 {
		t.Errorf("%d processes were started; want 8", len(pids))
	}
	for _, pid := range pids {
		n, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		for begun := time.Now(); alive(n); time.Sleep(20 * time.Millisecond) {
			if time.Since(begun) > 10*time.Second {
				t.Errorf("process %d, which a worker started, lives on", n)
				break
			}
		}
	}
}

// alive says whether a process runs; one that is dead and waits for its parent does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return syscall.Kill(pid, 0) == nil && !os.IsNotExist(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
