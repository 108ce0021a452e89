package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hearthline/cli/clitest"
)

// verb runs a verb in a folder with a pipeline.yaml, and gives its exit code and what it printed.
func verb(t *testing.T, dir string, args ...string) (int, string) {
	t.Helper()
	i := clitest.New(t)
	cmd := exec.Command(i.Binary, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// TestNewStageInPython begins a stage as an author does, and follows what is printed: the case passes, the line fits, and a mistake is
// found by the case.
func TestNewStageInPython(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	dir := t.TempDir()
	plan, err := os.ReadFile("../pipeline.yaml")
	if err != nil {
		t.Fatal(err)
	}
	code, said := verb(t, dir, "new", "stage", "warm")
	if code != 0 {
		t.Fatal(code, said)
	}
	if code, said := verb(t, dir, "test"); code != 0 || !strings.Contains(said, "ok    warm: 1 cases, 0 failed") {
		t.Error(code, said)
	}
	text := strings.Replace(string(plan), "stages:\n", "stages:\n  warm: {from: readings, to: warm, settings: {above: 25}}\n", 1)
	text = strings.Replace(text, "from: [readings, ", "from: [readings, warm, ", 1)
	if err := os.WriteFile(filepath.Join(dir, "pipeline.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, said := verb(t, dir, "lint"); code != 0 || !strings.Contains(said, "it fits together") {
		t.Error(code, said)
	}
	file := filepath.Join(dir, "stages", "warm", "stage.py")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ from, to, says string }{
		"a wrong limit":       {"pc.greater(", "pc.less(", "out"},
		"it raises":           {"    warm =", "    1 / 0\n    warm =", "ZeroDivisionError"},
		"it looks at batches": {"return readings.filter(warm)", "return readings.filter(warm).slice(0, readings.num_rows - 2)", "cut"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, bytes.Replace(good, []byte(c.from), []byte(c.to), 1), 0o644); err != nil {
				t.Fatal(err)
			}
			if code, said := verb(t, dir, "test", "warm"); code != 1 || !strings.Contains(said, "FAIL  ") || !strings.Contains(said, "first.yaml:1: what is above the limit passes") || !strings.Contains(said, c.says) {
				t.Error(code, said)
			}
		})
	}
	first := filepath.Join(dir, "stages", "warm", "cases", "first.yaml")
	was, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	rewritten := func(code string) string {
		t.Helper()
		if err := os.WriteFile(file, []byte(code), 0o644); err != nil {
			t.Fatal(err)
		}
		_, said := verb(t, dir, "test", "warm", "--update")
		return said
	}
	// What is not the same where rows come together in another way is no result, and is not written.
	said = rewritten(strings.Replace(string(good), "return readings.filter(warm)", "return readings.filter(warm).slice(0, readings.num_rows - 2)", 1))
	if now, err := os.ReadFile(first); err != nil || !bytes.Equal(now, was) || !strings.Contains(said, "not updated, since it does not hold") {
		t.Errorf("%v: %s\n%s", err, said, now)
	}
	said = rewritten(strings.Replace(string(good), "pc.greater(", "pc.less(", 1))
	if !strings.Contains(said, "- {time: 0s, home: h1, device: d1, value: 19.5}") || !strings.Contains(said, "ok    warm: 1 cases, 0 failed") {
		t.Error(said)
	}
	if code, said := verb(t, dir, "test", "warm", "--run", "above"); code != 0 || !strings.Contains(said, "ok    warm: 1 cases, 0 failed") {
		t.Error(code, said)
	}
	if err := os.WriteFile(file, good, 0o644); err != nil {
		t.Fatal(err)
	}
	if code, said := verb(t, dir, "test", "warm"); code != 1 || !strings.Contains(said, "row  line  column  got") || !strings.Contains(said, "value   20.5") {
		t.Error("the difference, column by column: ", code, said)
	}
	for _, c := range []struct{ args, says string }{
		{"new stage warm", "is there already"}, {"new stage score", "there is a stage score already"}, {"new stage Warm!", "is no name for a stage"},
		{"new stage x --lang cobol", "there are python, sql and go"}, {"new stage x --lang go", "in a checkout of Hearthline"}, {"test nobody", "there is no stage nobody"},
		{"new stage warm_2 --lang go", "is no name for a stage"}, {"new stage warm-", "is no name for a stage"}, {"test --watch --update", "take one of both"}, {"test nobody --watch", "there is no stage nobody"},
		{"test score", "has no cases"}, {"test warm --run nothing", "no case has a name like"}, {"test warm --run (", "--run: error parsing regexp"},
	} {
		if code, said := verb(t, dir, strings.Fields(c.args)...); code == 0 || !strings.Contains(said, c.says) {
			t.Errorf("%s: %d %s; want %q", c.args, code, said, c.says)
		}
	}
}

// TestWhatAuthorsGetWrong: whatever it is, the case says the stage, the case, its line, and what to do.
func TestWhatAuthorsGetWrong(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	dir := t.TempDir()
	if code, said := verb(t, dir, "new", "stage", "warm"); code != 0 {
		t.Fatal(code, said)
	}
	for name, c := range map[string]struct {
		file, from, to string
		says           []string
	}{
		"a setting of another type":       {"cases/first.yaml", "{above: 20}", "{above: high}", []string{"line 2: open: above is 'high'; want a number"}},
		"an unknown setting":              {"cases/first.yaml", "{above: 20}", "{abov: 20}", []string{"line 2: open: abov is no setting of this stage; it has: above"}},
		"no batch":                        {"stage.py", "return readings.filter(warm)", "return 3 #", []string{"process returned int as out; want a batch"}},
		"another schema without rows":     {"stage.py", "    return ", "    if readings.num_rows == 0:\n        return readings\n    return ", []string{"of this batch it makes other columns of out than before"}},
		"too many columns":                {"stage.py", "    return ", "    return pa.table({f'c{i}': pa.array([], pa.int64()) for i in range(1001)})\n    return ", []string{"it makes 1001 columns in out; at most 1000"}},
		"a column that is not there":      {"stage.py", "[\"value\"]", "[\"valu\"]", []string{"stage.py, line 8: KeyError", "valu"}},
		"a requirement that there is not": {"requirements.txt", "", "no-such-package-of-anybody==99.9\n", []string{"warm: ", "requirements.txt cannot be installed", "no-such-package-of-anybody"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, "stages", "warm", c.file)
			good, err := os.ReadFile(file)
			if err != nil && c.from != "" {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(strings.Replace(string(good), c.from, c.to, 1)), 0o644); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := os.WriteFile(file, good, 0o644); err != nil {
					t.Error(err)
				}
			}()
			code, said := verb(t, dir, "test", "warm")
			for _, want := range append(c.says, "FAIL  stages/warm/cases/first.yaml:1: what is above the limit passes") {
				if code != 1 || !strings.Contains(said, want) {
					t.Errorf("exit code %d, want %q in\n%s", code, want, said)
				}
			}
		})
	}
}

// TestNewStageInSQL begins a stage, and has a second one as a line of pipeline.yaml, whose cases stand in its folder likewise.
func TestNewStageInSQL(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	dir := t.TempDir()
	plan, err := os.ReadFile("../pipeline.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if code, said := verb(t, dir, "new", "stage", "warm", "--lang", "sql"); code != 0 || !strings.Contains(said, "a stage in SQL") {
		t.Fatal(code, said)
	}
	page, err := os.ReadFile("../docs/sql.md")
	if err != nil {
		t.Fatal(err)
	}
	written := func(from string) string {
		t.Helper()
		_, example, _ := strings.Cut(string(page), from)
		example, _, _ = strings.Cut(example, "\n")
		if !strings.Contains(example, "sql: ") {
			t.Fatal("an example of docs/sql.md is gone: ", from)
		}
		return example
	}
	example := written("  warm: {")
	means := "  means: {" + written("  means: {") + "\n"
	text := strings.Replace(string(plan), "stages:\n", "stages:\n"+means+"  hot: {"+strings.Replace(example, "to: warm", "to: hot", 1)+"\n  warm: {from: readings, to: warm, settings: {above: 25}}\n  cold: {from: readings, to: cold, sql: SELECT * FROM readings WHERE value < 0}\n", 1)
	text = strings.Replace(text, "from: [readings, ", "from: [readings, means, hot, warm, cold, ", 1)
	save := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	save("pipeline.yaml", text)
	save("stages/cold/cases/frost.yaml", "name: frost\neach: {home: h1, device: d1, metric: temperature}\nsteps:\n- in: [{time: 0s, value: -1}, {time: 1s, value: 1}]\n  want: {out: [{value: -1}]}\n")
	save("stages/means/cases/five.yaml", "name: means of five minutes\nwindow: {size: 5m, by: [home, device]}\neach: {home: h1, device: d1, metric: temperature}\nsteps:\n"+
		"- in: [{time: 0s, value: 20}, {time: 1m, value: 22}, {time: 2m, metric: humidity, value: 60}]\n- advance: 1h\n  want: {out: [{time: 5m, mean: 21}]}\n")
	if code, said := verb(t, dir, "test"); code != 0 || !strings.Contains(said, "ok    means: 1 cases") || !strings.Contains(said, "ok    warm: 1 cases") || !strings.Contains(said, "ok    cold: 1 cases") {
		t.Error(code, said)
	}
	if code, said := verb(t, dir, "lint"); code != 0 || !strings.Contains(said, "it fits together") {
		t.Error(code, said)
	}
	save("pipeline.yaml", strings.Replace(text, "value < 0}", "valu < 0}", 1))
	if code, said := verb(t, dir, "lint"); code == 0 || !strings.Contains(said, "pipeline.yaml:42:70: stage cold: sql, line 1, column 30: Referenced column \"valu\" not found") {
		t.Error(code, said)
	}
	save("stages/warm/stage.sql", "SELECT device, count(*) AS value, 'h1' AS home, min(time) AS time FROM input\nGROUP BY device")
	if code, said := verb(t, dir, "test", "warm"); code != 1 || !strings.Contains(said, "above is no setting of this query") {
		t.Error(code, said)
	}
	save("stages/warm/stage.sql", "SELECT device, count(*)::DOUBLE + 18.5 AS value, 'h1' AS home, max(time) AS time FROM input\nWHERE value > $above - 10 AND metric = 'temperature' GROUP BY device")
	if code, said := verb(t, dir, "test", "warm"); code != 1 || !strings.Contains(said, "cut at random") {
		t.Error("a query over what happens to be one batch: ", code, said)
	}
}

// TestNewStageInGo compiles what is written, and runs its case.
func TestNewStageInGo(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	sum, err := os.ReadFile("../go.sum")
	if err != nil {
		t.Fatal(err)
	}
	mod = bytes.Replace(mod, []byte("module hearthline"), []byte("module scratch\n\nrequire hearthline v0.0.0\n\nreplace hearthline => "+root), 1)
	for name, text := range map[string]string{"go.mod": string(mod), "go.sum": string(sum), "stages/catalog.go": "package stages\n"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if code, said := verb(t, dir, "new", "stage", "overheat", "--lang", "go"); code != 0 || !strings.Contains(said, `"overheat": overheat.New,`) {
		t.Fatal(code, said)
	}
	for _, args := range [][]string{{"test"}, {"test", "overheat"}} { // not passed over in silence
		if code, said := verb(t, dir, args...); code != exitUsage || !strings.Contains(said, "stages/overheat is a stage in Go, and not part of this binary: put it into stages/catalog.go, then make build") {
			t.Error(args, code, said)
		}
	}
	test := exec.Command("go", "test", "-mod=mod", "./stages/overheat")
	test.Dir = dir
	if out, err := test.CombinedOutput(); err != nil || !strings.Contains(string(out), "ok") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestOwnCases runs the cases of this project's own stages as `hearthline test` does.
func TestOwnCases(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	if code, said := verb(t, "..", "test"); code != 0 || strings.Count(said, "ok ") < 6 {
		t.Error(code, said)
	}
}

// TestThePageOfStages: what docs/stages.md shows is what `hearthline new stage` writes, which other tests run.
func TestThePageOfStages(t *testing.T) {
	page, err := os.ReadFile("../docs/stages.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"python": pythonStage, "sql": sqlStage, "go": strings.ReplaceAll(goStage, "NAME", "warm"), "yaml": strings.ReplaceAll(firstCase, "OUTPUT", "out")} {
		if !strings.Contains(string(page), "```"+name+"\n"+text+"```") {
			t.Errorf("docs/stages.md has another %s than is written:\n%s", name, text)
		}
	}
}
