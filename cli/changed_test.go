package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
	"hearthline/sinks/parquet"
)

// change runs `hearthline plan` with another file and gives what it says and its exit code. The file becomes the
// installation's.
func change(t *testing.T, i *clitest.Installation, binary, file string, args ...string) (string, int) {
	t.Helper()
	i.Write(file)
	cmd := exec.Command(binary, append([]string{"plan", "--pipeline", i.Pipeline, "--data", i.Data}, args...)...)
	cmd.Dir = i.Dir
	cmd.Env = append(os.Environ(), "HEARTHLINE_MQTT="+i.MQTT, "HEARTHLINE_HTTP="+i.HTTP, "HEARTHLINE_CONSOLE="+i.Console)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	t.Logf("hearthline plan %s: exit code %d\n%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), out)
	return string(out), cmd.ProcessState.ExitCode()
}

// mustSay fails unless the plan ended with code and said all of words.
func mustSay(t *testing.T, said string, code, want int, words ...string) {
	t.Helper()
	if code != want {
		t.Errorf("exit code %d, want %d", code, want)
	}
	for _, w := range words {
		if !strings.Contains(said, w) {
			t.Errorf("the plan does not say %q", w)
		}
	}
}

// edit replaces one text of a pipeline.yaml, which must be there.
func edit(t *testing.T, file, old, now string) string {
	t.Helper()
	if strings.Count(file, old) != 1 {
		t.Fatalf("%q stands %d times in the file", old, strings.Count(file, old))
	}
	return strings.Replace(file, old, now, 1)
}

// A pipeline is changed step by step while its hubs go on sending: a stage added, one renamed, another version of the binary
// with another setting, windows that the state does not fit, another grouping, a stage and a sink removed, more partitions.
// Each time the plan is shown first. In the end every acknowledged row is in both stores once.
func TestPipelineIsChangedUnderLoad(t *testing.T) {
	i := clitest.New(t)
	raw, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	file := string(raw)
	other := otherVersion(t)
	homes := i.Homes(4, 1400, 500)
	homes.History, homes.Interval = 0, 50*time.Millisecond
	homes.AckTimeout = 5 * time.Second

	plan := func(args ...string) (string, int) { t.Helper(); return change(t, i, i.Binary, file, args...) }
	said, code := plan()
	mustSay(t, said, code, 3, "nothing of this pipeline has run")
	up := i.Up("--no-homes", "--follow=false")
	ended := clitest.Play(t.Context(), homes)
	clitest.More(t, homes, ended, 150)
	said, code = plan()
	mustSay(t, said, code, 0, "are what runs")

	// Added, and renamed: seen while it runs, and started with no more ado.
	file = edit(t, file, "  alert: ", "  overheat:\n    use: alert\n    from: scores\n    to: hot\n  alert: ")
	file = edit(t, file, "alerts, commands, \"*.dead\"]", "alerts, commands, hot, \"*.dead\"]")
	file = edit(t, file, "  score: ", "  rate:\n    use: score\n    was: score ")
	said, code = plan()
	mustSay(t, said, code, 3, "+ stage overheat", "begins at the oldest batch kept of scores", "was called score", "keeps hot too")
	up.Stop()
	up = i.Up("--no-homes", "--follow=false")
	clitest.More(t, homes, ended, 150)

	// Another version, another setting that the state fits. The old version comes back.
	file = edit(t, file, "    was: score ", "    was: score\n    settings: {warmup: 30}\n    # ")
	said, code = change(t, i, other, file)
	mustSay(t, said, code, 3, "settings: warmup: 30 (was not set)", "→ v-other", "was read with the new settings and code: it fits")
	up.Stop()
	ours := i.Binary
	i.Binary = other
	up = i.Up("--no-homes", "--follow=false")
	clitest.More(t, homes, ended, 150)
	up.Kill() // and a crash in between: the next version goes on from the last one's checkpoint
	i.Binary = ours
	up = i.Up("--no-homes", "--follow=false")
	clitest.More(t, homes, ended, 150)

	// Windows that the state does not fit: refused by the plan, and by a start; allowed, they begin anew.
	file = edit(t, file, "windows: [1m, 5m/1m]", "windows: [1m, 10m]")
	said, code = plan("--apply")
	mustSay(t, said, code, 4, "REFUSED", "does not fit", "lose-state:features")
	said, code = plan("--apply", "--allow", "lose-state:features")
	mustSay(t, said, code, 4, "features runs", "stop it first")
	up.Stop()
	said, code = plan("--apply", "--allow", "lose-state:features")
	mustSay(t, said, code, 0, "carried out: 1")

	// Grouped otherwise: refused by a start, and by --apply while there is something left to read.
	file = edit(t, file, "[normalize, dedupe, enrich]", "[dedupe, enrich]")
	said, code = plan()
	mustSay(t, said, code, 3, "from now on: normalize\n", "from now on: dedupe+enrich", "by --apply")
	refused := i.Start("up", "--plain", "--no-homes", "--follow=false", "--clickhouse-http", i.ClickHouseHTTP, "--clickhouse-tcp", i.ClickHouseTCP)
	refused.Expect("ran in the group normalize+dedupe+enrich before", 2*time.Minute)
	clitest.More(t, homes, ended, 100) // the gateway takes rows that nobody reads
	refused.Kill()
	said, code = plan("--apply")
	mustSay(t, said, code, 4, "has not taken all of raw")
	file = edit(t, file, "[dedupe, enrich]", "[normalize, dedupe, enrich]")
	i.Write(file)
	up = i.Up("--no-homes", "--follow=false")
	clitest.More(t, homes, ended, 150)
	up.Stop()
	file = edit(t, file, "[normalize, dedupe, enrich]", "[dedupe, enrich]")
	said, code = plan("--apply")
	mustSay(t, said, code, 0, "carried out: 1")
	up = i.Up("--no-homes", "--follow=false")
	clitest.More(t, homes, ended, 150)
	up.Stop()

	// Removed, with the sink that kept it; then forgotten.
	file = edit(t, file, "  overheat:\n    use: alert\n    from: scores\n    to: hot\n", "")
	file = edit(t, file, "alerts, commands, hot, \"*.dead\"]", "alerts, commands, \"*.dead\"]")
	said, code = plan()
	mustSay(t, said, code, 3, "- stage overheat", "--forget overheat deletes them")
	said, code = plan("--apply", "--forget", "overheat")
	mustSay(t, said, code, 0, "carried out: 1")

	// The hubs finish: what a hub has sent and was not told of it sends again, and dedupe, which drops it, forgets with
	// the partitions.
	file = edit(t, file, "[dedupe, enrich]", "[normalize, dedupe, enrich]") // and back together
	said, code = plan("--apply")
	mustSay(t, said, code, 0, "carried out: 1")
	up = i.Up("--no-homes", "--follow=false")
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(4 * time.Minute):
		t.Fatalf("the homes' work is not acknowledged: %+v", homes.Stats())
	}
	up.Stop()

	// More partitions: told, and only when everything has flown through.
	file = edit(t, file, "partitions: 4", "partitions: 6")
	said, code = plan("--apply")
	mustSay(t, said, code, 4, "partitions 4 → 6", "--allow repartition")
	said, code = plan("--apply", "--allow", "repartition")
	mustSay(t, said, code, 0, "carried out: 1")
	up = i.Up("--no-homes", "--follow=false")
	said, code = plan()
	mustSay(t, said, code, 0, "are what runs")
	up.Stop()
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	files, err := parquet.Count(t.Context(), i.ParquetStore(), "readings")
	if err != nil || files.Rows != want {
		t.Errorf("%d rows in Parquet, %d acknowledged; %v", files.Rows, want, err)
	}
	up = i.Up("--no-homes", "--follow=false")
	for _, check := range []struct{ what, sql, want string }{
		{"rows in ClickHouse", "SELECT count() FROM readings", strconv.FormatInt(want, 10)},
		{"distinct rows", "SELECT uniqExact(home, device, metric, seq) FROM readings", strconv.FormatInt(want, 10)},
		{"readings with a number that have no score", "SELECT count() FROM readings WHERE value IS NOT NULL AND coalesce(text, '') = '' AND " +
			"(home, device, metric, seq) NOT IN (SELECT home, device, metric, seq FROM scores)", "0"},
		{"scores of no reading", "SELECT count() FROM scores WHERE (home, device, metric, seq) NOT IN (SELECT home, device, metric, seq FROM readings)", "0"},
		{"scores there twice", "SELECT count() - uniqExact(home, device, metric, seq) FROM scores", "0"},
		{"dead letters", "SELECT count() FROM dead", "0"},
	} {
		if got := i.Query(check.sql)[0]; got != check.want {
			t.Errorf("%s: %s gives %s, want %s", check.what, check.sql, got, check.want)
		}
	}
	scores := i.Query("SELECT count() FROM scores")[0]
	if scores == "0" {
		t.Error("no score was made")
	}
	up.Stop()
	t.Logf("%d rows, %s scores", want, scores)
}

// otherVersion builds the binary as another version.
func otherVersion(t *testing.T) string {
	t.Helper()
	root, err := clitest.Root()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "hearthline")
	build := exec.Command("go", "build", "-ldflags", "-X hearthline/cli.version=v-other", "-o", binary, ".")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}
