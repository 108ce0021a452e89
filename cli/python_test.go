package cli

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

const warmStage = `
import hearthline
import pyarrow as pa
import pyarrow.compute as pc

def process(readings: pa.RecordBatch, above: float = 0.0) -> pa.RecordBatch:
    hearthline.reject(pc.less(readings["value"], -1000), "no sensor measures that")
    warm = pc.and_(pc.equal(readings["metric"], "temperature"), pc.greater(readings["value"], above))
    return readings.filter(warm).select(["time", "home", "device", "value"])
`

// tallyStage numbers the rows of each series: every row has a number of its own, and none is left out, if its state is what it was.
const tallyStage = `
import hearthline
import pyarrow as pa

class Tally(hearthline.State, key=("home", "device", "metric"), ttl="30d"):
    n: int = 0

def process(readings: pa.RecordBatch, tallies: hearthline.Keyed[Tally]) -> pa.RecordBatch:
    numbers = []
    for row in range(readings.num_rows):
        tallies[row].n += 1
        numbers.append(tallies[row].n)
    return readings.select(["time", "home", "device", "metric"]).append_column("n", pa.array(numbers, pa.int64()))
`

const warmQuery = "SELECT time, home, device, value FROM readings WHERE metric = 'temperature' AND value > $above"

// TestAPythonStage puts a folder and a line into the product, and a line of SQL: they run beside the others, new code works within seconds of being
// saved, and whatever is killed, its workers or all, each row counts once.
func TestAPythonStage(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	i := clitest.New(t)
	plan, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(plan), "  score: ", "  warm:\n    from: readings\n    to: warm\n    settings: {above: 0}\n  warmer:\n    from: readings\n    to: warmer\n    sql: "+warmQuery+"\n    settings: {above: 0}\n  tally: {from: readings, to: tallies}\n  score: ", 1)
	i.Write(strings.Replace(text, "from: [readings, features, late,", "from: [readings, features, late, warm, warmer, tallies,", 1))
	file := filepath.Join(i.Dir, "stages", "warm", "stage.py")
	save := func(code string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(code), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	save(warmStage)
	tally := filepath.Join(i.Dir, "stages", "tally")
	if err := errors.Join(os.MkdirAll(tally, 0o755), os.WriteFile(filepath.Join(tally, "stage.py"), []byte(tallyStage), 0o644)); err != nil {
		t.Fatal(err)
	}
	homes := i.Homes(10, 400, 0)
	homes.History, homes.Interval = 0, 50*time.Millisecond
	up := i.Up("--no-homes")
	ended := clitest.Play(t.Context(), homes)
	clitest.More(t, homes, ended, 500)
	for range 3 {
		killWorkers(t, up)
		clitest.More(t, homes, ended, 200)
	}
	begun := time.Now()
	save(warmStage + "\nprint('the new code')\n")
	up.Expect(`msg="the new code"`, 20*time.Second)
	t.Logf("new code worked %v after it was saved", time.Since(begun).Round(10*time.Millisecond))
	up.Kill()
	up = i.Up("--no-homes")
	clitest.More(t, homes, ended, 200)
	killWorkers(t, up)
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Minute):
		t.Fatalf("the homes' work is not acknowledged: %+v", homes.Stats())
	}
	up.Stop() // drains
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	up = i.Up("--no-homes")
	temperatures := i.Query("SELECT count() FROM readings WHERE metric = 'temperature' AND value > 0")[0]
	for _, check := range []struct{ what, sql, want string }{
		{"readings", "SELECT count() FROM readings", strconv.FormatInt(want, 10)},
		{"rows of the Python stage", "SELECT count() FROM warm", temperatures},
		{"rows of it twice", "SELECT count() - uniqExact(home, device, time, value) FROM warm", i.Query("SELECT count() - uniqExact(home, device, time, value) FROM readings WHERE metric = 'temperature' AND value > 0")[0]},
		{"rows of the SQL stage", "SELECT count() FROM warmer", temperatures},
		{"rows of one and not of the other", "SELECT count() FROM (SELECT home, device, time, value FROM warm EXCEPT SELECT home, device, time, value FROM warmer)", "0"},
		{"dead letters", "SELECT count() FROM dead", "0"},
		{"rows that were numbered", "SELECT count() FROM tallies", strconv.FormatInt(want, 10)},
		{"numbers given twice", "SELECT count() - uniqExact(home, device, metric, n) FROM tallies", "0"},
		{"series with a number left out", "SELECT count() FROM (SELECT max(n) AS most, count() AS rows FROM tallies GROUP BY home, device, metric) WHERE most != rows", "0"},
	} {
		if got := i.Query(check.sql)[0]; got != check.want {
			t.Errorf("%s: %s gives %s, want %s", check.what, check.sql, got, check.want)
		}
	}
	if n, err := strconv.Atoi(temperatures); err != nil || n == 0 {
		t.Errorf("%s temperatures: nothing was shown", temperatures)
	}
	up.Stop()
}

// killWorkers kills all worker processes of a running product.
func killWorkers(t *testing.T, up *clitest.Running) {
	t.Helper()
	var pids []string
	for deadline := time.Now().Add(time.Minute); len(pids) == 0; time.Sleep(20 * time.Millisecond) { // they are started when there is work
		out, err := exec.Command("pgrep", "-P", strconv.Itoa(up.Cmd.Process.Pid), "-f", "hearthline[.]_(worker|sql)").Output()
		if pids = strings.Fields(string(out)); len(pids) == 0 && time.Now().After(deadline) {
			t.Fatalf("no worker to kill: %v", err)
		}
	}
	for _, pid := range pids {
		n, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		p, err := os.FindProcess(n)
		if err != nil || p.Kill() != nil {
			t.Logf("worker %d had gone", n)
		}
	}
}

// needPython skips a test where there is no Python, and fails it in CI.
func needPython(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("NOT TESTED: there is no python3")
		}
		t.Fatal("there is no python3; .ci/install-tools installs it")
	}
}
