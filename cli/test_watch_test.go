package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

// TestWatch saves a stage while its cases are watched: each time they run again, those of no other stage do, and nothing that is wrong ends it.
func TestWatch(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	i := clitest.New(t)
	for _, name := range []string{"warm", "other"} {
		if code, said := verb(t, i.Dir, "new", "stage", name); code != 0 {
			t.Fatal(code, said)
		}
	}
	folder := filepath.Join(i.Dir, "stages", "warm")
	read := func(file string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	r := i.Start("test", "--watch")
	r.Expect("other, warm; waiting for what is saved next", time.Minute)
	settled := func(stage string, before int) {
		t.Helper()
		line := regexp.MustCompile(`(?m)^\d.*\b` + stage + `\b.*; waiting for what is saved next$`)
		for begun := time.Now(); !line.MatchString(r.Out.String()[before:]); time.Sleep(20 * time.Millisecond) {
			if time.Since(begun) > time.Minute {
				t.Fatalf("%s was saved, and nothing ran:\n%s", stage, r.Out.String())
			}
		}
	}
	saved := func(file, text string, want ...string) {
		t.Helper()
		before := len(r.Out.String())
		begun := time.Now()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		stage, _, _ := strings.Cut(filepath.ToSlash(filepath.Join("warm", file)), "/")
		settled(stage, before)
		t.Logf("%s: said %v after it was saved", file, time.Since(begun).Round(10*time.Millisecond))
		for _, w := range want {
			if !strings.Contains(r.Out.String()[before:], w) {
				t.Errorf("%s was saved: it does not say %q:\n%s", file, w, r.Out.String()[before:])
			}
		}
	}
	code, first := read("stage.py"), read("cases/first.yaml")
	saved("stage.py", strings.Replace(code, "pc.greater(", "pc.less(", 1), "FAIL  ", "what is above the limit passes", "FAIL  warm: 1 cases, 1 failed")
	saved("stage.py", strings.Replace(code, "def process(", "def process", 1), "SyntaxError", "FAIL  warm")
	saved("stage.py", code, "ok    warm: 1 cases, 0 failed")
	saved("cases/second.yaml", strings.Replace(first, "name: what", "nam: what", 1), "FAIL  ", "second.yaml: line 1: unknown key \"nam\"")
	saved("cases/second.yaml", first, "ok    warm: 2 cases, 0 failed")
	saved("stage.sql", "SELECT 1 AS one", "holds a stage.py and a stage.sql")
	before := len(r.Out.String())
	if err := os.Remove(filepath.Join(folder, "stage.sql")); err != nil {
		t.Fatal(err)
	}
	settled("warm", before)
	saved("../third/stage.py", code) // a stage without cases is let be
	saved("../third/cases/first.yaml", first, "ok    third: 1 cases, 0 failed")
	if n := strings.Count(r.Out.String(), "ok    other: "); n != 1 {
		t.Errorf("the cases of a stage that nobody saved ran %d times", n)
	}
	r.Terminate()
}
