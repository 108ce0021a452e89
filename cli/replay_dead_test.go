package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

const pickyStage = `
import pyarrow as pa
import pyarrow.compute as pc

def process(readings: pa.RecordBatch) -> pa.RecordBatch:
    light = pc.equal(readings["metric"], "light")
    if pc.any(light).as_py():
        seen = readings.filter(light).num_rows
        breakpoint()
        raise ValueError("nobody told me of light")
    return readings.select(["time", "home", "device", "value"])
`

// A batch that a stage failed on is given to it again, here: with a debugger, as a case, and after it was mended. The stage runs
// together with others, so that the batch is one of theirs.
func TestDeadLettersAreGivenToTheirStageAgain(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	i := clitest.New(t)
	plan, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(plan), "  score: ", "  picky:\n    from: readings\n    to: picked\n  score: ", 1)
	text = strings.Replace(text, "[normalize, dedupe, enrich]", "[normalize, dedupe, enrich, picky]", 1)
	i.Write(strings.Replace(text, "from: [readings, features, late,", "from: [readings, features, late, picked,", 1))
	file := filepath.Join(i.Dir, "stages", "picky", "stage.py")
	if err := os.MkdirAll(filepath.Join(filepath.Dir(file), "cases"), 0o755); err != nil {
		t.Fatal(err)
	}
	save := func(code string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(code), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	save(pickyStage)
	homes := i.Homes(1, 5, 300) // the recorded room measures light
	up := i.Up("--no-homes")
	if err := homes.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	up.Stop() // a breakpoint that was forgotten has stopped nothing

	r := i.Start("replay", "dead", "picky")
	if code := r.Exit(time.Minute); code != exitChanges {
		t.Fatalf("exit code %d", code)
	}
	for _, want := range []string{"rows of raw/", "picky is given", "refused: all of it", "nobody told me of light", "stage.py, line 10", "raise ValueError"} {
		if !strings.Contains(r.Out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, r.Out.String())
		}
	}
	r = i.Start("replay", "dead", "picky", "--where", "no such reason")
	if code := r.Exit(time.Minute); code != exitFailed || !strings.Contains(r.Out.String(), "no dead letter that fits") {
		t.Errorf("exit code %d: %s", code, r.Out.String())
	}

	// The author looks into it: pdb has the terminal.
	cmd := exec.Command(i.Binary, "replay", "dead", "picky", "--debug", "--pipeline", i.Pipeline, "--data", i.Data)
	cmd.Dir = i.Dir
	cmd.Stdin = strings.NewReader("p 'there are', seen > 0\nnext\nc\n")
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != exitChanges || !strings.Contains(string(out), "('there are', True)") || !strings.Contains(string(out), "(Pdb)") {
		t.Errorf("exit code %d; the debugger said:\n%s", code, out)
	}

	// Or with an editor, which sets its breakpoint without a change of the file.
	lookedIntoByAnEditor(t, i, file)

	// A case of it fails until the stage is mended.
	written := filepath.Join(filepath.Dir(file), "cases", "light.yaml")
	r = i.Start("replay", "dead", "picky", "--save-case", written)
	if code := r.Exit(time.Minute); code != exitChanges {
		t.Errorf("exit code %d", code)
	}
	if r = i.Start("test", "picky"); r.Exit(2*time.Minute) != exitFailed || !strings.Contains(r.Out.String(), "nobody told me of light") {
		t.Errorf("the case does not fail as it must:\n%s", r.Out.String())
	}
	save(strings.Replace(pickyStage, `        raise ValueError("nobody told me of light")`, "", 1))
	if r = i.Start("test", "picky"); r.Exit(2*time.Minute) != 0 {
		t.Errorf("the case fails, though the stage is mended:\n%s", r.Out.String())
	}
	r = i.Start("replay", "dead", "picky")
	if code := r.Exit(time.Minute); code != 0 || !strings.Contains(r.Out.String(), "refuses none of the rows any more") {
		t.Errorf("exit code %d: %s", code, r.Out.String())
	}
}
