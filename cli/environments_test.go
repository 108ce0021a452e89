package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hearthline/cli/clitest"
)

// TestRolesWithoutPython renders a plan with stages in Python and SQL, and reads it where there is no Python, as a role in the static image
// does: it fits together as it did, and who is to run such a stage says that it cannot. A plan that was changed since is not taken.
func TestRolesWithoutPython(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	dir := t.TempDir()
	const plan = `pipeline: p
kafka: {brokers: "${HEARTHLINE_KAFKA:-embedded}"}
gateway: {to: readings, settings: {mqtt: "${HEARTHLINE_MQTT:-127.0.0.1:8883}", http: "${HEARTHLINE_HTTP:-127.0.0.1:8443}"}}
stages:
  warm: {from: readings, to: warm, settings: {above: 20}, workers: {processes: 1}}
  cold: {sql: "SELECT time, received, home, value FROM input WHERE value < 0", from: readings, to: cold}
sinks:
  parquet: {from: [warm, cold], settings: {to: data/parquet}}
`
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("pipeline.yaml", plan)
	write("stages/warm/stage.py", warmStage)
	for _, args := range []string{"render compose --out out", "render image --out image"} {
		if code, said := verb(t, dir, strings.Fields(args)...); code != 0 {
			t.Fatal(args, code, said)
		}
	}
	for name, want := range map[string]string{"image/Dockerfile": `RUN ["/hearthline", "environments", "--sql"]`, "image/stages/warm/stage.py": "def process", "out/compose.yaml": "hearthline-stages:latest"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v %s", name, err, text)
		}
	}
	without := func(args ...string) (int, string) {
		t.Helper()
		cmd := exec.Command(clitest.New(t).Binary, args...)
		cmd.Dir, cmd.Env = filepath.Join(dir, "out"), append(os.Environ(), "HEARTHLINE_PYTHON=python-that-is-not-there")
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	if code, said := without("lint"); code != 0 || !strings.Contains(said, "6 streams, 2 stages") {
		t.Error(code, said)
	}
	if code, said := without("stage", "warm"); code != 2 || !strings.Contains(said, "stage warm runs in Python or SQL, and there is no python3 here") {
		t.Error(code, said)
	}
	write("out/pipeline.yaml", strings.Replace(plan, "above: 20", "above: 21", 1))
	if code, said := without("lint"); code != 2 || !strings.Contains(said, "pipeline.yaml:5:") || !strings.Contains(said, "was made of another plan: render it anew") {
		t.Error(code, said)
	}
	if err := os.Remove(filepath.Join(dir, "out", "stages.lock")); err != nil {
		t.Fatal(err)
	}
	if code, said := without("lint"); code != 2 || !strings.Contains(said, `there is no stage "warm"`) {
		t.Error(code, said)
	}
}
