package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

// fenced is a block of code of a page: its language and its text.
var fenced = regexp.MustCompile("(?s)```(\\w+)\n(.*?)```")

// TestWindowsAndJoinsPage follows docs/windows-and-joins.md: its stages pass their case, fit into the product's own plan, and run in
// it, killed with -9 under way. What they made is then what ClickHouse makes of the readings themselves, each row once.
func TestWindowsAndJoinsPage(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	page, err := os.ReadFile("../docs/windows-and-joins.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := fenced.FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 3 || blocks[0][1] != "yaml" || blocks[1][1] != "python" || blocks[2][1] != "yaml" {
		t.Fatalf("%d blocks of code on the page; this test follows three: stages, stage.py, a case", len(blocks))
	}
	i := clitest.New(t)
	plan, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(plan), "stages:\n", blocks[0][2], 1)
	i.Write(strings.Replace(text, "from: [readings, features, late,", "from: [readings, features, late, minutes, overdue, visits, recent, climate, everywhere,", 1))
	for name, code := range map[string]string{"stage.py": blocks[1][2], "cases/visits.yaml": blocks[2][2]} {
		path := filepath.Join(i.Dir, "stages", "visits", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(code), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if code, said := verb(t, i.Dir, "test", "visits"); code != 0 || !strings.Contains(said, "ok    visits: 1 cases, 0 failed") {
		t.Error(code, said)
	}
	if code, said := verb(t, i.Dir, "lint"); code != 0 || !strings.Contains(said, "it fits together") {
		t.Fatal(code, said)
	}
	homes := i.Homes(6, 400, 0) // three minutes of each, told as fast as they are taken
	up := i.Up("--no-homes")
	ended := clitest.Play(t.Context(), homes)
	clitest.More(t, homes, ended, 3000)
	up.Kill()
	up = i.Up("--no-homes")
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(3 * time.Minute):
		t.Fatalf("the homes' work is not acknowledged: %+v", homes.Stats())
	}
	up.Stop() // drains
	want, err := homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	up = i.Up("--no-homes")
	overdue := "(SELECT * FROM readings WHERE 0)" // the sink makes the table with its first row
	if i.Query("EXISTS TABLE overdue")[0] == "1" {
		overdue = "overdue"
	}
	for _, check := range []struct{ what, sql, want string }{
		{"readings", "SELECT count() FROM readings", strconv.FormatInt(want, 10)},
		{"minutes told twice", "SELECT count() - uniqExact(home, device, metric, time) FROM minutes", "0"},
		{"minutes that count other rows than those that were in time", `SELECT count() FROM minutes AS m
			JOIN (SELECT home, device, metric, toStartOfMinute(time) AS minute, count() AS n FROM readings GROUP BY ALL) AS r ON r.home = m.home AND r.device = m.device AND r.metric = m.metric AND r.minute = m.time
			LEFT JOIN (SELECT home, device, metric, toStartOfMinute(time) AS minute, count() AS n FROM ` + overdue + ` GROUP BY ALL) AS l ON l.home = m.home AND l.device = m.device AND l.metric = m.metric AND l.minute = m.time
			WHERE m.count + l.n != r.n`, "0"},
		{"visits told twice", "SELECT count() - uniqExact(home, device, time) FROM visits", "0"},
		{"readings that were looked up", "SELECT count() FROM recent", strconv.FormatInt(want, 10)},
		{"readings that were looked up twice", "SELECT count() - uniqExact(home, device, metric, time, seq) FROM recent", i.Query("SELECT count() - uniqExact(home, device, metric, time, seq) FROM readings")[0]},
		{"pairs of temperature and humidity", "SELECT count() FROM climate", i.Query(`SELECT count() FROM (SELECT * FROM readings WHERE metric = 'temperature') AS l
			JOIN (SELECT * FROM readings WHERE metric = 'humidity') AS r ON l.home = r.home AND l.device = r.device
			WHERE abs(toUnixTimestamp64Micro(l.time) - toUnixTimestamp64Micro(r.time)) <= 5000000 AND abs(toUnixTimestamp64Micro(l.received) - toUnixTimestamp64Micro(r.received)) <= 35000000`)[0]},
		{"pairs that were told twice", "SELECT count() - uniqExact(home, device, time, right_time) FROM climate", "0"},
		{"tens of seconds told twice", "SELECT count() - uniqExact(metric, time) FROM everywhere", "0"},
		{"rows of all homes that are neither in their ten seconds nor late", `SELECT sum(r.n - e.count) - (SELECT count() FROM dead WHERE stage = 'everywhere') FROM everywhere AS e
			JOIN (SELECT metric, toStartOfInterval(time, INTERVAL 10 SECOND) AS ten, count() AS n FROM readings WHERE value IS NOT NULL GROUP BY ALL) AS r ON r.metric = e.metric AND r.ten = e.time`, "0"},
		{"other dead letters", "SELECT count() FROM dead WHERE stage NOT IN ('everywhere', 'visits')", "0"},
	} {
		if got := i.Query(check.sql)[0]; got != check.want {
			t.Errorf("%s: %s gives %s, want %s", check.what, check.sql, got, check.want)
		}
	}
	for _, table := range []string{"minutes", "visits", "climate", "everywhere"} {
		if i.Query("SELECT count() FROM " + table)[0] == "0" {
			t.Errorf("nothing came of %s", table)
		}
	}
	if i.Query("SELECT count() FROM recent WHERE mean IS NOT NULL")[0] == "0" {
		t.Error("no reading found the mean of its last minute")
	}
	up.Stop()
}
