package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

// page is a document that is followed to the letter: what it says to write is written, what it says to run is run.
type page struct {
	t  *testing.T
	i  *clitest.Installation
	up *clitest.Running
}

var block = regexp.MustCompile("(?ms)^```(\\w+)(?: (\\S+))?\n(.*?)^```$")

// TestTutorial does what docs/tutorial.md says, with the recorded office played faster.
func TestTutorial(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	text, err := os.ReadFile("../docs/tutorial.md")
	if err != nil {
		t.Fatal(err)
	}
	p := &page{t: t, i: clitest.New(t)}
	if err := os.Mkdir(filepath.Join(p.i.Dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(p.i.Binary, filepath.Join(p.i.Dir, "bin", "hearthline")); err != nil {
		t.Fatal(err)
	}
	p.up = p.i.Up("--homes", "2", "--faults", "none", "--speed", "4000")
	var asked string
	blocks := block.FindAllStringSubmatch(string(text), -1)
	for _, b := range blocks {
		switch kind, file, body := b[1], b[2], b[3]; {
		case kind == "sh":
			p.run(strings.TrimSpace(body))
		case kind == "sql":
			asked = strings.ReplaceAll(body, "\n", " ")
			p.right(asked, 2000, 0.55, 0.99)
		case file == "pipeline.yaml":
			p.edit(body)
		case file != "":
			p.write(file, body)
		default:
			t.Fatalf("a block of %s that is neither run nor written", kind)
		}
	}
	p.right(asked+" AND o.occupied NOT IN (0, 1)", 2500, 0.95, 1)
	saved, err := os.ReadFile(p.i.Pipeline)
	if err != nil || !strings.Contains(string(saved), "use: occupied2") || strings.Contains(string(saved), "shadow:") {
		t.Errorf("pipeline.yaml after the promotion: %v\n%s", err, saved)
	}
	p.up.Stop()
	p.up = p.i.Up("--no-homes")
	for _, sql := range []string{
		"SELECT count() - uniqExact(home, room, time) FROM occupied WHERE home = 'recorded-office'",
		"SELECT (SELECT count() FROM readings WHERE home = 'recorded-office' AND metric = 'light') - (SELECT count() FROM occupied WHERE home = 'recorded-office')",
		"SELECT count() FROM dead",
	} {
		if got := p.i.Query(sql)[0]; got != "0" {
			t.Errorf("%s gives %s", sql, got)
		}
	}
	p.up.Stop()
}

func (p *page) run(line string) {
	p.t.Helper()
	cmd := exec.Command("bash", "-euc", line)
	cmd.Dir = p.i.Dir
	cmd.Env = append(os.Environ(), "HEARTHLINE_MQTT="+p.i.MQTT, "HEARTHLINE_HTTP="+p.i.HTTP, "HEARTHLINE_CONSOLE="+p.i.Console)
	begun := time.Now()
	out, err := cmd.CombinedOutput()
	p.t.Logf("$ %s   (%v)\n%s", line, time.Since(begun).Round(10*time.Millisecond), out)
	if err != nil {
		p.t.Fatalf("%s: %v", line, err)
	}
}

func (p *page) write(file, text string) {
	p.t.Helper()
	path := filepath.Join(p.i.Dir, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// edit puts a line under stages, in the place of the one that is there, and waits until what runs goes on with it.
func (p *page) edit(line string) {
	p.t.Helper()
	raw, err := os.ReadFile(p.i.Pipeline)
	if err != nil {
		p.t.Fatal(err)
	}
	text := string(raw)
	if old := regexp.MustCompile(`(?m)^  occupied: .*\n`).FindString(text); old != "" {
		text = strings.Replace(text, old, line, 1)
	} else {
		text = strings.Replace(text, "stages:\n", "stages:\n"+line, 1)
		text = edit(p.t, text, "from: [readings, features, late,", "from: [readings, features, late, occupied,")
	}
	before := len(p.up.Out.String())
	begun := time.Now()
	p.i.Write(text)
	for !strings.Contains(p.up.Out.String()[before:], "sinks go on with it") {
		if time.Since(begun) > time.Minute {
			p.t.Fatalf("what runs does not go on with the file:\n%s", clitest.LastLines(p.up.Out.String(), 30))
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.t.Logf("live %v after it was saved", time.Since(begun).Round(10*time.Millisecond))
}

// right asks which share of the minutes was judged rightly, once there are enough.
func (p *page) right(sql string, minutes int, least, most float64) {
	p.t.Helper()
	deadline := time.Now().Add(4 * time.Minute)
	for p.i.Query("EXISTS TABLE occupied")[0] != "1" && time.Now().Before(deadline) { // it is made with its first rows
		time.Sleep(100 * time.Millisecond)
	}
	for ; ; time.Sleep(200 * time.Millisecond) {
		fields := strings.Split(p.i.Query(sql)[0], "\t")
		share, err := strconv.ParseFloat(fields[0], 64)
		n, nerr := strconv.Atoi(fields[1])
		if nerr == nil && n >= minutes {
			p.t.Logf("right in %v of %d minutes", share, n)
			if err != nil || share < least || share > most {
				p.t.Errorf("right in %v; want %v to %v", share, least, most)
			}
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: %v; want %d minutes", sql, fields, minutes)
		}
	}
}
