package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// screen shows what happens: a table that is redrawn where somebody watches a terminal, lines elsewhere.
type screen struct {
	mu    sync.Mutex
	out   io.Writer
	live  bool
	drawn int // lines of the table that stand on the terminal now
	width int
	// terminal says that somebody looks; what is printed elsewhere is kept, by a log or a file.
	terminal bool
}

func newScreen(out io.Writer, plain bool) *screen {
	s := &screen{out: out, width: 100}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.terminal, s.live = true, !plain && os.Getenv("TERM") != "dumb"
	}
	return s
}

// say prints a line that stays.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	fmt.Fprintf(s.out, format+"\n", args...)
}

// Write prints lines that stay: the log's.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	return s.out.Write(p)
}

// clear takes the table off the terminal: what is printed next stays.
func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
}

// draw shows the table in place of the last one.
func (s *screen) draw(table string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			s.width = w
		}
	}
	s.erase()
	lines := strings.Split(strings.TrimRight(table, "\n"), "\n")
	for _, l := range lines {
		if r := []rune(l); len(r) >= s.width {
			l = string(r[:max(0, s.width-2)]) + "…"
		}
		fmt.Fprintln(s.out, l)
	}
	s.drawn = len(lines)
}

// erase takes the table off the terminal.
func (s *screen) erase() {
	if s.live && s.drawn > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.drawn)
	}
	s.drawn = 0
}

// progress says how far a long fetch is: a line that moves, or one every few seconds.
func (s *screen) progress(what string) func(done, total int64) {
	var last time.Time
	return func(done, total int64) {
		every := 5 * time.Second
		if s.live {
			every = 200 * time.Millisecond
		}
		if time.Since(last) < every && done < total {
			return
		}
		last = time.Now()
		line := fmt.Sprintf("%s: %d of %d MB", what, done>>20, total>>20)
		if s.live && done < total {
			s.draw(line)
			return
		}
		s.say("%s", line)
	}
}

// count writes a number with its thousands apart.
func count(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
