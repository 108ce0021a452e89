package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
)

const (
	warmFour = `
import pyarrow as pa

def process(readings: pa.RecordBatch) -> pa.RecordBatch:
    return readings.select(["time", "home", "device", "value"])
`
	warmFive = `
import pyarrow as pa

def process(readings: pa.RecordBatch) -> pa.RecordBatch:
    return readings.select(["time", "home", "device", "value"]).append_column(pa.field("place", pa.string()), pa.array(["here"] * readings.num_rows, pa.string()))
`
	warmRenamed = `
import pyarrow as pa

def process(readings: pa.RecordBatch) -> pa.RecordBatch:
    return readings.select(["time", "home", "device", "value"]).rename_columns(["time", "home", "device", "v"])
`
	placed = `
import pyarrow as pa

def process(warm: pa.RecordBatch) -> pa.RecordBatch:
    return warm.select(["time", "home", "device", "place"])
`
)

// A stream gets a nullable column: what stands on it from before is taken as if it had been null, by stages and tables. Any other
// change is refused, by lint with its place, by plan, and at the start, until the stage writes another stream.
func TestSchemasEvolve(t *testing.T) {
	t.Parallel() // it is mostly processes that start
	needPython(t)
	i := clitest.New(t)
	original, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	plan := func(stages, streams string) {
		text := strings.Replace(string(original), "  score: ", stages+"  score: ", 1)
		i.Write(strings.Replace(text, "from: [readings, features, late,", "from: [readings, features, late, "+streams+",", 1))
	}
	save := func(stage, code string) {
		t.Helper()
		file := filepath.Join(i.Dir, "stages", stage, "stage.py")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(code), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	says := func(code int, what []string, args ...string) {
		t.Helper()
		r := i.Start(args...)
		got := r.Exit(time.Minute)
		for _, w := range what {
			if got != code || !strings.Contains(r.Out.String(), w) {
				t.Errorf("%q: exit code %d, want %d and %q:\n%s", args, got, code, w, r.Out.String())
			}
		}
	}
	const warm = "  warm:\n    from: readings\n    to: warm\n"
	plan(warm, "warm")
	save("warm", warmFour)
	play := func(rounds int64) { // all in all
		t.Helper()
		homes := i.Homes(2, rounds, 0)
		if err := homes.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	up := i.Up("--no-homes")
	play(40)
	up.Stop()

	save("warm", warmFive)
	save("placed", placed)
	plan(warm+"  placed:\n    from: warm\n    to: placed\n", "warm, placed")
	says(exitChanges, []string{"stream warm: + column place utf8, nullable", "Nothing stands against it"}, "plan")
	up = i.Up("--no-homes") // placed begins with the batches that have no place yet
	before := i.Query("SELECT count() FROM warm")[0]
	i.Eventually("the table placed", "1", func() string { return i.Query("SELECT count() FROM system.tables WHERE name = 'placed'")[0] })
	play(80)
	i.Eventually("the column place of the table warm", "1", func() string {
		return i.Query("SELECT count() FROM system.columns WHERE table = 'warm' AND name = 'place'")[0]
	})
	i.Eventually("rows of placed", "all of warm", func() string {
		if rows := i.Query("SELECT (SELECT count() FROM placed) = (SELECT count() FROM warm) AND (SELECT countIf(place = 'here') FROM warm) > 0")[0]; rows == "1" {
			return "all of warm"
		}
		return strings.Join(i.Query("SELECT (SELECT count() FROM placed), (SELECT count() FROM warm), (SELECT count() FROM dead)"), " ")
	})
	if without := i.Query("SELECT countIf(ifNull(place, '') = '') FROM placed")[0]; without != before || before == "0" {
		t.Errorf("%s rows of placed have no place, and warm had %s before it knew one", without, before)
	}
	says(exitOK, []string{"it fits together"}, "lint")

	save("warm", warmRenamed)
	save("placed", strings.Replace(placed, `, "place"`, "", 1))
	text, err := os.ReadFile(i.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(text), "    to: warm\n")
	says(exitUsage, []string{fmt.Sprintf("pipeline.yaml:%d:9: stream warm holds batches with other columns than warm makes now", strings.Count(head, "\n")+1), "column value is gone (v is new", "placed, clickhouse read it", "docs/schemas.md"}, "lint")
	save("warm", warmFive)
	up.Stop()
	save("warm", warmRenamed)
	says(exitRefused, []string{"stage warm  REFUSED", "column value is gone (v is new", "(to: warm2)", "--allow break-schema:warm"}, "plan")
	started := i.Start("up", "--plain", "--no-homes", "--clickhouse-http", i.ClickHouseHTTP, "--clickhouse-tcp", i.ClickHouseTCP)
	started.Expect("stream warm holds batches with other columns than warm makes now", time.Minute)
	started.Kill()

	plan(strings.Replace(warm, "to: warm", "to: warm2", 1)+"  placed:\n    from: warm2\n    to: placed\n", "warm2, placed")
	says(exitRefused, []string{"stage placed  REFUSED", "column place is gone"}, "plan") // its own output lost a column, too
	plan(strings.Replace(warm, "to: warm", "to: warm2", 1)+"  placed:\n    from: warm2\n    to: placed2\n", "warm2, placed2")
	says(exitChanges, []string{"writes out to warm2, wrote it to warm", "reads warm no more", "Nothing stands against it"}, "plan")
}
