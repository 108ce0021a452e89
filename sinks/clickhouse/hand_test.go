package clickhouse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// Somebody changes tables by hand while rows flow. What differs is said, with what mends it; the rows wait; and when it
// is mended they are stored once, by the same sink and without a restart.
func TestTablesChangedByHand(t *testing.T) {
	mem := checkedMem(t)
	recs := map[string]arrow.Record{"readings": readings(t, mem, 5, 1000, testDay), "scores": fill(t, mem, scoresSchema, 5, 1000)}
	for _, c := range []struct {
		name, change string
		says         []string // nil: rows go on
		mend         string
	}{
		{"a column dropped", "ALTER TABLE scores DROP COLUMN model", []string{`"model"`, "ADD COLUMN `model` LowCardinality(String)"}, "*"},
		{"a column that streams may lack dropped", "ALTER TABLE scores DROP COLUMN seq", nil, ""}, // it is made again

		{"another type", "ALTER TABLE scores DROP COLUMN value, ADD COLUMN value Array(String)", []string{`"value"`, "Array(String)", "MODIFY COLUMN `value` Nullable(Float64)"},
			"ALTER TABLE scores DROP COLUMN value, ADD COLUMN value Nullable(Float64)"},
		{"a name instead of a number", "ALTER TABLE scores MODIFY COLUMN model Nullable(String)", nil, ""},
		{"a column added with a default", "ALTER TABLE readings ADD COLUMN floor Int32 DEFAULT 3", nil, ""},
		{"a nullable column added", "ALTER TABLE readings ADD COLUMN floor Nullable(Int32)", nil, ""},
		{"a column added without a default", "ALTER TABLE readings ADD COLUMN floor Int32", nil, ""},
		{"another order", "ALTER TABLE readings ADD COLUMN hall LowCardinality(String), MODIFY ORDER BY (home, device, metric, time, hall)", nil, ""},
		{"a table dropped", "RENAME TABLE readings TO away", []string{"table readings is missing"}, "RENAME TABLE away TO readings"},
		{"memory of inserts taken away", "ALTER TABLE readings MODIFY SETTING non_replicated_deduplication_window = 10",
			[]string{"remembers 10 inserts", "MODIFY SETTING non_replicated_deduplication_window = 100000"}, "*"},
		{"memory of a rollup's inserts taken away", "ALTER TABLE readings_1m RESET SETTING non_replicated_deduplication_window",
			[]string{"readings_1m` MODIFY SETTING non_replicated_deduplication_window = 100000"}, "*"},
	} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, running %v", c.name, running), func(t *testing.T) {
				s := openSink(t)
				exec := func(sql string) {
					t.Helper()
					if err := s.queries.Exec(t.Context(), sql); err != nil {
						t.Fatalf("%s: %v", sql, err)
					}
				}
				table := "readings"
				if strings.Contains(c.change, " scores ") {
					table = "scores"
				}
				rec, r := recs[table], rangeOf(table, 0, 10, 19)
				if running {
					write(t, s, table, 0, rec)
				}
				exec(c.change)
				if running && strings.HasPrefix(c.name, "memory") {
					s.plans.forget(table) // it is looked at when a sink meets a stream's schema, not at every insert
				}
				if c.says != nil {
					refuse(t, s, r, rec, c.says...)
					refuse(t, s, r, rec, c.says...)
				}
				if c.mend == "*" { // as the error says
					err := s.Write(t.Context(), r, []arrow.Record{rec})
					_, advice, _ := strings.Cut(err.Error(), "ALTER TABLE")
					exec("ALTER TABLE " + advice)
				} else if c.mend != "" {
					exec(c.mend)
				}
				until(t, s, r, rec)
				if got, want := scalar(t, s, "SELECT count() FROM "+table), fmt.Sprint(map[bool]int{true: 2000, false: 1000}[running]); got != want {
					t.Errorf("%s rows; want %s", got, want)
				}
			})
		}
	}
}

// A constraint that somebody added is broken by some rows: they are named, and the others stored, once however often the range
// comes, and also where the constraint is dropped in between. Where it is broken by many, their block is refused as a whole.
func TestConstraintAddedByHand(t *testing.T) {
	s := openSink(t)
	rec := readings(t, checkedMem(t), 5, 100, testDay)
	var recs []arrow.Record
	for _, k := range [][2]int64{{0, 41}, {41, 42}, {42, 100}} {
		piece := rec.NewSlice(k[0], k[1])
		defer piece.Release()
		recs = append(recs, piece)
	}
	exec := func(sql string) {
		t.Helper()
		if err := s.queries.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// What a device says stands in the server's error, and is not taken for the server's words.
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{at("time"), {Name: "text", Type: arrow.BinaryTypes.String}}, nil))
	defer b.Release()
	said := func(texts ...string) arrow.Record {
		for _, text := range texts {
			b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(testDay.UnixMicro()))
			b.Field(1).(*array.StringBuilder).Append(text)
		}
		return b.NewRecord()
	}
	write(t, s, "said", 0, said("fine"))
	exec("ALTER TABLE said ADD CONSTRAINT strange CHECK text = 'fine'")
	err := s.Write(t.Context(), rangeOf("said", 0, 11, 19), []arrow.Record{said("fine", ": while pushing to view home", "Constraint x for table y is violated at row 1. Expression", "fine")})
	var words *flow.BadRows
	if !errors.As(err, &words) || !slices.Equal(words.Rows, []int{1, 2}) {
		t.Errorf("rows that hold the server's words: error %v", err)
	}

	named := func(first int64) []int {
		t.Helper()
		err := s.Write(t.Context(), rangeOf("readings", 0, first, first+9), recs)
		for deadline := time.Now().Add(time.Minute); err != nil && !errors.Is(err, flow.ErrBad) && time.Now().Before(deadline); {
			time.Sleep(200 * time.Millisecond) // other tests make the engine fall
			err = s.Write(t.Context(), rangeOf("readings", 0, first, first+9), recs)
		}
		var rows *flow.BadRows
		if !errors.As(err, &rows) {
			t.Fatalf("error %v; want rows by number", err)
		}
		if !strings.Contains(rows.Reasons[0], "strange") {
			t.Errorf("the reason %q does not name the constraint", rows.Reasons[0])
		}
		return rows.Rows
	}
	const stored = "SELECT concat(toString(count()), ' ', toString(uniqExact(time)), ' ', toString(countIf(seq IN (3, 40, 41, 99)))) FROM readings"
	for _, c := range []struct {
		check string
		want  []int
		says  string
	}{
		{"seq IS NULL OR seq NOT IN (3, 40, 41, 99)", []int{3, 40, 41, 99}, "96 96 0"},
		{"seq IS NULL OR seq < 20", slices.Collect(func(yield func(int) bool) {
			for i := range 100 {
				if !yield(i) {
					return
				}
			}
		}), "0 0 0"},
	} {
		exec("TRUNCATE TABLE readings")
		exec("ALTER TABLE readings ADD CONSTRAINT strange CHECK " + c.check)
		first := int64(len(c.want)) * 100
		for range 2 {
			if got := slices.Sorted(slices.Values(named(first))); !slices.Equal(got, c.want) {
				t.Errorf("%s: rows %v are refused; want %v", c.check, got, c.want)
			}
			if got := scalar(t, s, stored); got != c.says {
				t.Errorf("%s: the table holds %s; want %s (rows, times, rows that break it)", c.check, got, c.says)
			}
		}
		exec("ALTER TABLE readings DROP CONSTRAINT strange")
		if len(c.want) < 100 {
			until(t, s, rangeOf("readings", 0, first, first+9), recs...)
			if got := scalar(t, s, stored); got != c.says {
				t.Errorf("written again without the constraint, the table holds %s; want %s", got, c.says)
			}
		}
	}
}

// The whole database is dropped: the rows wait, and a sink that is started again makes everything anew.
func TestDatabaseDroppedByHand(t *testing.T) {
	s := openSink(t)
	rec := readings(t, checkedMem(t), 5, 1000, testDay)
	write(t, s, "readings", 0, rec)
	if err := s.queries.Exec(t.Context(), "DROP DATABASE "+quote(s.Database)); err != nil {
		t.Fatal(err)
	}
	refuse(t, s, rangeOf("readings", 0, 10, 19), rec, s.Database)
	again := newSink(t)
	again.Database = s.Database
	open(t, again)
	defer again.Close()
	until(t, again, rangeOf("readings", 0, 10, 19), rec)
	if got := scalar(t, again, "SELECT count() FROM readings"); got != "1000" {
		t.Errorf("%s rows; want 1000", got)
	}
}

// A view of ours that was dropped fails no insert: its rollup would just stand still. It is said at the start.
func TestViewDroppedByHand(t *testing.T) {
	s := openSink(t)
	if err := s.queries.Exec(t.Context(), "DROP VIEW readings_1m_mv"); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	again := newSink(t)
	again.Database, again.Logger = s.Database, slog.New(slog.NewTextHandler(&log, nil))
	open(t, again)
	defer again.Close()
	if !strings.Contains(log.String(), "readings_1m_mv") || !strings.Contains(log.String(), "missing") {
		t.Errorf("it says\n%s", log.String())
	}
}

// A materialized view of somebody else's fails. The rows are in the table already, perhaps, and in views that came
// before it; nothing is taken for bad data; and when the view is mended or gone, all holds every row once. Also when the
// server was started again between: what views remember is on disk.
func TestViewThatFails(t *testing.T) {
	own := newTestEngine(t.TempDir())
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { own.stop() }()
	s := New()
	s.Address, s.User, s.Password = own.ends.TCP, own.ends.Admin.Name, own.ends.Admin.Password
	open(t, s)
	defer s.Close()
	exec := func(sql string) {
		t.Helper()
		if err := s.queries.Exec(context.Background(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	rec := readings(t, checkedMem(t), 5, 2000, testDay)
	n := int64(0)
	for _, c := range []struct{ name, make, target string }{
		{"its SELECT throws", "CREATE MATERIALIZED VIEW %s_mv TO %s AS SELECT throwIf(1) AS x FROM readings", "CREATE TABLE %s (x UInt8) ENGINE = MergeTree ORDER BY x"},
		{"it casts what cannot be cast", "CREATE MATERIALIZED VIEW %s_mv TO %s AS SELECT toInt32(home) AS x FROM readings", "CREATE TABLE %s (x Int32) ENGINE = MergeTree ORDER BY x"},
		{"its target refuses the rows", "CREATE MATERIALIZED VIEW %s_mv TO %s AS SELECT count() AS x FROM readings", "CREATE TABLE %s (x UInt64, CONSTRAINT none CHECK x = 0) ENGINE = MergeTree ORDER BY x"},
		{"its target lost a column", "CREATE MATERIALIZED VIEW %s_mv TO %s AS SELECT count() AS x, 1 AS y FROM readings", "CREATE TABLE %s (x UInt64, y UInt8) ENGINE = MergeTree ORDER BY x"},
	} {
		for _, restart := range []bool{false, true} {
			for _, name := range []string{"aaa", "zzz"} { // views run in the order of their names: before ours, and after
				if restart && c.name != "its SELECT throws" {
					continue // they remember in one way
				}
				n++
				exec(fmt.Sprintf(c.target, name))
				exec(fmt.Sprintf(c.make, name, name))
				if c.name == "its target lost a column" {
					exec("ALTER TABLE " + name + " DROP COLUMN y")
				}
				if c.name == "its target lost a column" {
					// ClickHouse leaves out what the target lacks: nothing fails.
					until(t, s, rangeOf("readings", 0, 10*n, 10*n+9), rec)
				} else {
					refuse(t, s, rangeOf("readings", 0, 10*n, 10*n+9), rec, name+"_mv")
					refuse(t, s, rangeOf("readings", 0, 10*n, 10*n+9), rec, "mend it, or drop it")
				}
				if restart {
					if err := own.stop(); err != nil {
						t.Fatal(err)
					}
					if err := own.start(); err != nil {
						t.Fatal(err)
					}
					answers(t, s)
				}
				exec("DROP VIEW " + name + "_mv")
				exec("DROP TABLE " + name)
				until(t, s, rangeOf("readings", 0, 10*n, 10*n+9), rec)
				until(t, s, rangeOf("readings", 0, 10*n, 10*n+9), rec)
				got := scalar(t, s, "SELECT (count(), (SELECT sum(rows) FROM readings_1m) = countIf(isFinite(value)), (SELECT sum(rows) FROM readings_1h) = countIf(isFinite(value))) FROM readings")
				if want := fmt.Sprintf("(%d,1,1)", 2000*n); got != want {
					t.Errorf("%s (%s, restart %v): rows, and whether minutes and hours have them: %s; want %s", c.name, name, restart, got, want)
				}
			}
		}
	}
}

// A view of somebody else's whose target does not remember inserts: they are told, since it would count twice.
func TestViewOfOthersThatForgets(t *testing.T) {
	s := openSink(t)
	for _, sql := range []string{
		"CREATE TABLE mine (home String, rows UInt64) ENGINE = SummingMergeTree ORDER BY home",
		"CREATE MATERIALIZED VIEW mine_mv TO mine AS SELECT home, count() AS rows FROM readings GROUP BY home",
	} {
		if err := s.queries.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	s.Logger = slog.New(slog.NewTextHandler(&log, nil))
	rec := readings(t, checkedMem(t), 5, 1000, testDay)
	write(t, s, "readings", 0, rec)
	write(t, s, "readings", 0, rec)
	if !strings.Contains(log.String(), "mine") || !strings.Contains(log.String(), "non_replicated_deduplication_window") {
		t.Errorf("it says\n%s", log.String())
	}
	if got := scalar(t, s, "SELECT sum(rows) FROM mine"); got != "2000" {
		t.Errorf("%s rows: a target without memory counts right after all, so the warning is wrong", got)
	}
	if err := s.queries.Exec(t.Context(), "ALTER TABLE mine MODIFY SETTING non_replicated_deduplication_window = 100000"); err != nil {
		t.Fatal(err)
	}
	write(t, s, "readings", 10, rec)
	write(t, s, "readings", 10, rec)
	if got := scalar(t, s, "SELECT sum(rows) FROM mine"); got != "3000" {
		t.Errorf("%s rows as the warning advises; want 3000", got)
	}
}
