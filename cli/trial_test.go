package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
	"hearthline/pipeline"
	"hearthline/pipeline/compare"
)

// runVerb runs a verb of an installation to its end, and gives what it printed and its exit code.
func runVerb(t *testing.T, i *clitest.Installation, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(i.Binary, append(args, "--pipeline", i.Pipeline, "--data", i.Data)...)
	cmd.Dir = i.Dir
	cmd.Env = append(os.Environ(), "HEARTHLINE_MQTT="+i.MQTT, "HEARTHLINE_HTTP="+i.HTTP, "HEARTHLINE_CONSOLE="+i.Console)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	t.Logf("hearthline %s: exit code %d\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), clitest.LastLines(string(out), 30), stderr.String())
	return string(out), cmd.ProcessState.ExitCode()
}

// A data scientist's day: score runs for real homes; a second version gets the same readings, is compared, and takes its place
// while hubs send, with one command; features has a canary, which is promoted too, and alert a shadow that is dropped.
// Killed after that, the product goes on with the second versions. In the end every acknowledged reading is in both
// stores once, and every reading has one score.
func TestVersionIsTriedAndPromoted(t *testing.T) {
	i := clitest.New(t)
	raw, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	file := edit(t, string(raw), "  every: 10s ", "  every: 1s ")
	homes := i.Homes(3, 600, 200)
	homes.History, homes.Interval, homes.AckTimeout = 0, 60*time.Millisecond, 5*time.Second
	i.Write(file)
	up := i.Up("--no-homes")
	ended := clitest.Play(t.Context(), homes)
	clitest.More(t, homes, ended, 300)
	up.Kill()

	file = edit(t, file, "    to: scores\n", "    to: scores\n    shadow:               # less patient\n      settings: {warmup: 7}\n")
	file = edit(t, file, "      windows: [1m, 5m/1m]\n", "      windows: [1m, 5m/1m]\n    canary: {percent: 40, settings: {windows: [1m, 5m/1m], lateness: 90s}}\n")
	file = edit(t, file, "    to: alerts\n", "    to: alerts\n    shadow: {}\n")
	i.Write(file)
	up = i.Up("--no-homes")
	clitest.More(t, homes, ended, 500)

	out, code := runVerb(t, i, "compare", "score", "--for", "3s", "--format", "json")
	var report compare.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 {
		t.Fatalf("exit code %d: %v", code, err)
	}
	scores := report.Outputs[0]
	if scores.Stream != "scores" || scores.Paired < 50 || scores.Only != [2]int64{} || scores.GaveUp != 0 || scores.Equal > scores.Paired {
		t.Errorf("%+v", scores)
	}
	for _, c := range scores.Columns {
		if c.Name == "value" && (c.Equal != scores.Paired || c.First.Numbers == nil || *c.First.Numbers != *c.Second.Numbers) {
			t.Errorf("both versions score the same readings: %+v", c)
		}
	}
	if out, code = runVerb(t, i, "compare", "score", "--since", "1m"); code != 0 || !strings.Contains(out, "rows paired") {
		t.Errorf("exit code %d", code)
	}
	if out, code = runVerb(t, i, "promote", "score"); code != 0 || !strings.Contains(out, "score is promoted") {
		t.Fatalf("exit code %d", code)
	}
	clitest.More(t, homes, ended, 200)
	if _, code = runVerb(t, i, "promote", "features"); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if out, code = runVerb(t, i, "drop", "alert", "--streams"); code != 0 || !strings.Contains(out, "deleted: alert-shadow.dead, alerts.shadow") {
		t.Errorf("exit code %d", code)
	}
	up.Kill()
	now, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	want := edit(t, string(raw), "  every: 10s ", "  every: 1s ")
	want = edit(t, want, "    to: scores\n", "    to: scores\n    settings: {warmup: 7}\n")
	want = edit(t, want, "    settings:\n      windows: [1m, 5m/1m]\n", "    settings: {windows: [1m, 5m/1m], lateness: 90s}\n")
	if string(now) != want {
		t.Errorf("pipeline.yaml is now:\n%s", now)
	}
	up = i.Up("--no-homes")
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(3 * time.Minute):
		t.Fatalf("homes did not finish: %+v", homes.Stats())
	}
	if said, code := runVerb(t, i, "plan"); code != 0 {
		t.Errorf("the plan finds: %s", said)
	}
	up.Stop()
	sent := homes.Stats().Acknowledged
	m := clitest.Drained.FindStringSubmatch(up.Out.String())
	if m == nil {
		t.Fatalf("%s", clitest.LastLines(up.Out.String(), 20))
	}
	t.Logf("acknowledged %d; %s", sent, m[0])
	up = i.Up("--no-homes")
	i.Eventually("scores without a twin, and readings that have none", "0\t0", func() string {
		return i.Query("SELECT (SELECT count() - uniqExact(home, device, metric, time, seq) FROM scores), " +
			"(SELECT count() FROM readings WHERE value IS NOT NULL AND coalesce(text, '') = '') - (SELECT count() FROM scores)")[0]
	})
	if n, err := strconv.Atoi(i.Query("SELECT count() FROM scores")[0]); err != nil || n < 500 {
		t.Errorf("%d scores", n)
	}
	up.Stop()
}

// Every command of docs/shadow.md is one of the product's, with flags that it has; every piece of pipeline.yaml in it fits.
func TestShadowDocument(t *testing.T) {
	root, err := clitest.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/shadow.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands, shapes := 0, 0
	for line := range strings.Lines(string(text)) {
		args, is := strings.CutPrefix(strings.TrimSpace(line), "bin/hearthline ")
		if is {
			commands++
			cmd, rest, err := newRoot(&options{}).Find(strings.Fields(args))
			if err == nil {
				err = cmd.ParseFlags(rest)
			}
			if err == nil {
				err = cmd.ValidateArgs(cmd.Flags().Args())
			}
			if err != nil || !cmd.Runnable() {
				t.Errorf("%s: %v", strings.TrimSpace(line), err)
			}
		}
		trial, _, _ := strings.Cut(strings.TrimSpace(line), "   #")
		if !strings.HasPrefix(trial, "shadow: {") && !strings.HasPrefix(trial, "canary: {") {
			continue
		}
		shapes++
		product, err := os.ReadFile(filepath.Join(root, "pipeline.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		file := edit(t, string(product), "    to: scores\n", "    to: scores\n    "+strings.Replace(trial, "score_v2", "score", 1)+"\n")
		spec, findings := pipeline.ReadBytes("pipeline.yaml", []byte(file), os.LookupEnv)
		plan, more := pipeline.NewPlan(t.Context(), spec, newCatalog())
		if plan == nil {
			t.Errorf("%s: %v %v", trial, findings, more)
		}
	}
	if commands < 7 || shapes != 2 {
		t.Errorf("%d commands, %d pieces of pipeline.yaml", commands, shapes)
	}
}
