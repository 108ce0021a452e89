package python

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// line gives a stage of a query as pipeline.yaml has it.
func (a *author) line(sql, settings string, streams ...string) *Stage {
	a.t.Helper()
	s := a.workers.SQL("warm", sql, streams)().(*Stage)
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(settings), &n); err != nil {
		a.t.Fatal(err)
	}
	if len(n.Content) == 1 {
		if err := s.UnmarshalYAML(n.Content[0]); err != nil {
			a.t.Fatal(err)
		}
	}
	return s
}

func (a *author) openLine(sql, settings string, streams ...string) *Stage {
	a.t.Helper()
	s := a.line(sql, settings, streams...)
	if err := s.Open(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { s.Close() })
	return s
}

// TestSQLColumns gives columns through, alone and in a star, and makes others: they come back as the pipeline has them, without rows too.
func TestSQLColumns(t *testing.T) {
	a := newAuthor(t)
	event := func(name string) arrow.Field { return flow.EventSchema.Field(flow.EventSchema.FieldIndices(name)[0]) }
	made := func(name string, kind arrow.DataType) arrow.Field {
		return arrow.Field{Name: name, Type: kind, Nullable: true}
	}
	text := arrow.BinaryTypes.String
	for sql, want := range map[string][]arrow.Field{
		"SELECT * FROM readings": flow.EventSchema.Fields(),
		"SELECT time, device AS thing, value * 2 AS twice FROM input":                    {event("time"), {Name: "thing", Type: flow.KeyType}, made("twice", arrow.PrimitiveTypes.Float64)},
		"SELECT i.* EXCLUDE (attributes, text, unit, seq), seq + 1 AS next FROM input i": append(slices.Clone(flow.EventSchema.Fields()[:6]), made("next", arrow.PrimitiveTypes.Int64)),
		"SELECT lower(device) AS device, upper(home) AS loud FROM input":                 {made("device", flow.KeyType), made("loud", text)},
		"SELECT date_trunc('hour', time) AS hour, time::TIMESTAMP AS plain FROM input":   {made("hour", flow.InstantType), made("plain", flow.InstantType)},
		"SELECT seq::TINYINT AS a, value::FLOAT AS b, value > 1 AS c FROM input":         {made("a", arrow.PrimitiveTypes.Int32), made("b", arrow.PrimitiveTypes.Float64), made("c", arrow.FixedWidthTypes.Boolean)},
		"SELECT attributes['room'] AS room, attributes FROM input":                       {made("room", text), event("attributes")},
		"SELECT home, count(*) AS n FROM input GROUP BY home":                            {event("home"), made("n", arrow.PrimitiveTypes.Int64)},
		"SELECT home, count(*) AS n FROM input GROUP BY CUBE (home)":                     {made("home", flow.KeyType), made("n", arrow.PrimitiveTypes.Int64)},
		"SELECT a.time FROM input a LEFT JOIN input b ON a.seq = b.seq + 1":              {made("time", flow.InstantType)},
		"WITH few AS (SELECT * FROM input WHERE seq > 1) SELECT home FROM few":           {made("home", flow.KeyType)},
	} {
		s := a.openLine(sql, "", "readings")
		for _, rows := range []int{0, 4} {
			out, err := a.process(s, rows)
			if err != nil {
				t.Errorf("%s: %v", sql, err)
				continue
			}
			if got := arrow.NewSchema(want, nil); !out[0].Record.Schema().Equal(got) {
				t.Errorf("%s\ngives %v\nwant  %v", sql, out[0].Record.Schema(), got)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSQLValues: what comes through is what went in, to the bit; what is computed is right.
func TestSQLValues(t *testing.T) {
	a := newAuthor(t)
	s := a.openLine("SELECT * FROM input WHERE value >= $least AND home IN $homes AND time >= $since::TIMESTAMPTZ", "{least: 2, homes: [home0, home2], since: '2023-11-14T22:13:20Z'}")
	in := events(9)
	defer in.Release()
	part := in.NewSlice(1, 9) // not from the first row on
	defer part.Release()
	out, err := s.Process(t.Context(), part)
	if err != nil {
		t.Fatal(err)
	}
	defer out[0].Record.Release()
	var got, want []string
	for i := range int(out[0].Record.NumRows()) {
		got = append(got, row(out[0].Record, i))
	}
	for _, i := range []int{2, 3, 5, 6, 8} {
		want = append(want, row(in, i))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func row(rec arrow.Record, i int) string {
	var b strings.Builder
	for _, col := range rec.Columns() {
		if d, ok := col.(*array.Dictionary); ok && !col.IsNull(i) {
			fmt.Fprintf(&b, "%s ", d.Dictionary().ValueStr(d.GetValueIndex(i)))
			continue
		}
		fmt.Fprintf(&b, "%s ", col.ValueStr(i))
	}
	return b.String()
}

// TestSQLOrder: rows stand in an order that the rows alone decide, whatever the engine does: that of the batch, or sorted.
func TestSQLOrder(t *testing.T) {
	a := newAuthor(t)
	mem := memory.DefaultAllocator
	const rows = 5000
	builder := array.NewRecordBuilder(mem, arrow.NewSchema([]arrow.Field{{Name: "k", Type: flow.KeyType}, {Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil))
	defer builder.Release()
	for i := range rows {
		if err := builder.Field(0).(*array.BinaryDictionaryBuilder).AppendString(fmt.Sprintf("k%d", i*7919%1000)); err != nil {
			t.Fatal(err)
		}
		builder.Field(1).(*array.Int64Builder).Append(int64(i * 31 % rows))
	}
	in := builder.NewRecord()
	defer in.Release()
	compare := map[string]func(x, y string) bool{
		"SELECT n FROM input WHERE n % 2 = 0":                                   nil,
		"SELECT k, nullif(n % 3, 1) AS d, nullif(n::DOUBLE, 2) AS e FROM input": nil, // nothing is as defined as something
		"SELECT k, count(*) AS c FROM input GROUP BY k":                         func(x, y string) bool { return x <= y },
		"SELECT DISTINCT k FROM input":                                          func(x, y string) bool { return x <= y },
		"SELECT k, row_number() OVER (PARTITION BY k) AS c FROM input":          func(x, y string) bool { return x <= y },
		"SELECT k FROM input UNION SELECT k || 'x' FROM input":                  func(x, y string) bool { return x <= y },
		"SELECT k, n FROM input ORDER BY n % 10 DESC":                           nil,
		"SELECT k, max(n) AS m FROM input GROUP BY k LIMIT 10":                  func(x, y string) bool { return x <= y },
	}
	for sql, sorted := range compare {
		s := a.openLine(sql, "")
		var first []byte
		for range 3 {
			out, err := s.Process(t.Context(), in)
			if err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
			data, err := encode(out[0].Record)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = data
			}
			if !bytes.Equal(first, data) {
				t.Errorf("%s: other bytes the second time", sql)
			}
			var lines []string
			for i := range int(out[0].Record.NumRows()) {
				lines = append(lines, out[0].Record.Column(0).ValueStr(i))
				if d, ok := out[0].Record.Column(0).(*array.Dictionary); ok {
					lines[i] = d.Dictionary().ValueStr(d.GetValueIndex(i))
				}
			}
			if sorted != nil && !slices.IsSorted(lines) {
				t.Errorf("%s: not sorted: %.100q", sql, lines)
			}
			if strings.HasSuffix(sql, "LIMIT 10") && (len(lines) != 10 || lines[0] != "k0") {
				t.Errorf("%s: not the first ten: %q", sql, lines)
			}
			if strings.Contains(sql, "WHERE") && (lines[0] != "0" || lines[1] != "62") { // n of rows 0, 2: as in the batch
				t.Errorf("%s: not in the order of the batch: %q", sql, lines[:3])
			}
			if strings.Contains(sql, "DESC") {
				n := out[0].Record.Column(1).(*array.Int64)
				for i := 1; i < n.Len(); i++ {
					x, y := n.Value(i-1), n.Value(i)
					if x%10 < y%10 || x%10 == y%10 && (lines[i-1] > lines[i] || lines[i-1] == lines[i] && x > y) {
						t.Fatalf("%s: row %d, (%s, %d) after (%s, %d)", sql, i, lines[i], y, lines[i-1], x)
					}
				}
			}
			out[0].Record.Release()
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// asked has one process look at many queries, each on so many of the events that it is given.
func (a *author) asked(queries []asking) []answered {
	a.t.Helper()
	all := a.workers.SQL("it", "", nil)().(*Stage).hosts
	interpreter, err := all.foundInterpreter(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	library, err := a.workers.install()
	if err != nil {
		a.t.Fatal(err)
	}
	rec := events(8)
	defer rec.Release()
	batch, err := encode(rec)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write("batch", string(batch))
	text, err := json.Marshal(queries)
	if err != nil {
		a.t.Fatal(err)
	}
	cmd := exec.Command(interpreter, "-c", asks, filepath.Join(a.dir, "batch"))
	cmd.Env = append(os.Environ(), "PYTHONPATH="+library)
	cmd.Stdin = bytes.NewReader(text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		a.t.Fatalf("%v: %s", err, stderr.String())
	}
	var answers []answered
	if err := json.Unmarshal(out, &answers); err != nil || len(answers) != len(queries) {
		a.t.Fatalf("%v: %s", err, out)
	}
	return answers
}

type asking struct {
	SQL  string `json:"sql"`
	Rows int    `json:"rows"` // below 0: the query is not run
}

type answered struct {
	Error string `json:"error"`
	Place int    `json:"place"`
}

const asks = `
import json, os, sys
import pyarrow as pa
from hearthline import _sql

batch = pa.ipc.open_stream(open(sys.argv[1], "rb")).read_next_batch()
answers = []
for one in json.load(sys.stdin):
    try:
        query = _sql.Query(one["sql"], {}, ["readings"])
        if one["rows"] >= 0:
            query.run(batch.slice(0, one["rows"]))
        answers.append({"error": "", "place": -1})
    except _sql.QueryError as e:
        answers.append({"error": str(_sql.located(e, one["sql"], "sql")), "place": e.place})
print(json.dumps(answers), flush=True)
os._exit(0)
`

// TestSQLRefused: what would not come out the same after a crash, or reaches outside, is said before anything runs, and where.
func TestSQLRefused(t *testing.T) {
	a := newAuthor(t)
	secret := filepath.Join(t.TempDir(), "secret.csv")
	if err := os.WriteFile(secret, []byte("a\n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.unfit([]unfit{
		{"SELECT now() AS n FROM input", -1, 7, "line 1, column 8: now() depends on more than its rows"},
		{"SELECT time\nFROM input\nWHERE value > random()", -1, 37, "line 3, column 15: random()"},
		{"SELECT uuid() AS u FROM input", -1, 7, "uuid()"},
		{"SELECT current_date AS d FROM input", -1, 7, "current_date is the clock's"},
		{"SELECT CURRENT_TIMESTAMP AS d FROM input", -1, 7, "the clock's"},
		{"SELECT localtimestamp AS d FROM input", -1, 7, "the clock's"},
		{"SELECT ago(INTERVAL 1 DAY) AS d FROM input", -1, 7, "ago()"},
		{"SELECT age(time::TIMESTAMP) AS d FROM input", -1, 7, "age()"},
		{"SELECT reservoir_quantile(value, 0.5, 2) AS d FROM input", -1, 7, "a sample by chance"},
		{"SELECT list_transform([1], x -> x + random()) AS d FROM input", -1, 36, "random()"},
		{"SELECT * FROM input WHERE seq IN (SELECT floor(random()) FROM input)", -1, 47, "random()"},
		{"SELECT * FROM input ORDER BY random()", -1, 29, "random()"},
		{"SELECT * FROM input TABLESAMPLE 10%", -1, 14, "drawn by chance"},
		{"SELECT * FROM input USING SAMPLE 3", -1, -1, "drawn by chance"},
		{"SELECT * FROM read_csv('" + secret + "')", -1, 14, "read_csv() is not for stages"},
		{"SELECT * FROM '" + secret + "'", -1, 14, "there is no table"},
		{"SELECT * FROM glob('*')", -1, 14, "glob() is not for stages"},
		{"SELECT * FROM query('SELECT now()')", -1, 14, "query() is not for stages"},
		{"SELECT * FROM duckdb_settings()", -1, 14, "is not for stages"},
		{"SELECT * FROM pg_class", -1, 14, "there is no table pg_class"},
		{"SELECT * FROM information_schema.tables", -1, 14, "there is no table"},
		{"SELECT nextval('s') AS n FROM input", -1, 7, "nextval()"},
		{"SELECT current_setting('threads') AS n FROM input", -1, 7, "current_setting()"},
		{"SELECT version() AS n FROM input", -1, 7, "tells of the engine"},
		{"SELECT main.random() AS n FROM input", -1, 7, "leave it out"},
		{"SELECT * FROM redings", -1, 14, "the batch is called input or readings"},
		{"CREATE TABLE x (a INT)", -1, -1, "want one query"},
		{"COPY input TO '/tmp/x'", -1, -1, "want one query"},
		{"ATTACH '" + secret + "' AS x", -1, -1, "want one query"},
		{"INSTALL httpfs", -1, -1, "want one query"},
		{"SET threads = 4", -1, -1, "want one query"},
		{"SELECT 1; SELECT 2", -1, -1, "want one query; these are 2"},
		{" ", -1, -1, "want one query; these are 0"},
		{"SELECT 1 AS x FROM input WHERE", -1, 25, "line 1, column 26: syntax error"},
		{"SELECT größe FROM input WHERE (", -1, 32, "line 1, column 31: syntax error"},
		{"SELECT $1 AS x FROM input", -1, 7, "parameters have names"},
		{"SELECT ? AS x FROM input", -1, 7, "parameters have names"},
		{"DESCRIBE input", -1, -1, "has no place in a stage"},
		{"SELECT error('x')::VARCHAR AS ok FROM input", 0, -1, ""}, // it gives no value at all
		{"SELECT age(time, time) < INTERVAL 1 DAY AS ok FROM input", 8, -1, ""},
		{"SELECT now.value FROM input AS now", 8, -1, ""},
	})
}

// unfit is a query that is not taken as it is written (rows < 0), or not with so many rows of the events; or is, where nothing is to be said.
type unfit struct {
	sql   string
	rows  int
	place int
	says  string
}

func (a *author) unfit(all []unfit) {
	a.t.Helper()
	var queries []asking
	for _, q := range all {
		queries = append(queries, asking{q.sql, q.rows})
	}
	for i, got := range a.asked(queries) {
		if want := all[i]; got.Place != want.place || !strings.Contains(got.Error, want.says) || (got.Error == "") != (want.says == "") {
			a.t.Errorf("%.80s: at byte %d, %q; want %d, %q", want.sql, got.Place, got.Error, want.place, want.says)
		}
	}
}

// TestSQLUnfit: what only shows with the columns of a stream is said on zero rows, as lint asks; what shows with a row sets its batch aside.
func TestSQLUnfit(t *testing.T) {
	a := newAuthor(t)
	a.unfit([]unfit{
		{"SELECT valu FROM input", 0, 7, `"valu" not found`},
		{"SELECT foo(value) AS x FROM input", 0, 7, "foo does not exist"},
		{"SELECT value FROM input WHERE value > home", 0, 30, "an explicit cast is required"},
		{"SELECT time, sum(seq) AS n FROM input", 0, 7, "must appear in the GROUP BY"},
		{"SELECT sum(seq) AS n FROM input", 0, 7, "CAST(… AS BIGINT)"},
		{"SELECT 1.5 AS n FROM input", 0, 7, "CAST(… AS DOUBLE)"},
		{"SELECT home, time::DATE AS d FROM input", 0, 17, "CAST(… AS TIMESTAMPTZ)"},
		{"SELECT [1, 2] AS l FROM input", 0, 7, "take it apart into columns"},
		{"SELECT NULL AS n FROM input", 0, 7, "CAST(NULL AS DOUBLE)"},
		{"SELECT time, time FROM input", 0, 13, "two columns are called time"},
		{"SELECT home::INTEGER AS n FROM input", 0, -1, ""},
		{"SELECT home::INTEGER AS n FROM input", 1, 11, "Could not convert string"},
		{"SELECT error('no ' || home)::VARCHAR AS e FROM input", 1, -1, "no home0"},
	})
	for sql, says := range map[string]string{"SELECT home::INTEGER AS n FROM input": "sql, line 1, column 12: Could not convert string 'home0'", wide(1001): "it makes 1001 columns in out; at most 1000"} {
		s := a.openLine(sql, "")
		if _, err := a.process(s, 3); !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60s: %v; want %q", sql, err, says)
		}
	}
	err := a.line("SELECT now() AS n FROM input", "").Check("readings", flow.EventSchema)
	if placed := (*queryError)(nil); !errors.As(err, &placed) || placed.Place() != 7 {
		t.Errorf("the place of an error: %v", err)
	}
}

// wide is a query with so many columns.
func wide(columns int) string {
	var all []string
	for i := range columns {
		all = append(all, fmt.Sprintf("value AS v%d", i))
	}
	return "SELECT " + strings.Join(all, ", ") + " FROM input"
}

func TestSQLSettings(t *testing.T) {
	a := newAuthor(t)
	for settings, want := range map[string]string{
		"{abov: 3}":            "abov is no setting of this query; it has: above",
		"{}":                   "above must be set: the query uses $above",
		"{above: 1, other: 2}": "other is no setting",
		"{above: {a: 1}}":      "above is a mapping",
		"{above: 3}":           "",
	} {
		err := a.line("SELECT value FROM input WHERE value > $above", settings).Check("readings", flow.EventSchema)
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", settings, err, want)
		}
	}
	s := a.openLine("SELECT value FROM input WHERE value > $above", "{above: high}")
	if _, err := a.process(s, 3); !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "high") {
		t.Errorf("a text for a number: %v", err)
	}
}

// TestSQLWithoutEnd: a query that would take all memory, or all time, is ended; its batch is set aside, and the next is worked on.
func TestSQLWithoutEnd(t *testing.T) {
	a := newAuthor(t)
	a.workers.Timeout, a.workers.Attempts = 3*time.Second, 2
	s := a.openLine("WITH RECURSIVE counted(n, seven) AS (SELECT 1, max(value) FROM input UNION ALL SELECT 1, seven FROM counted WHERE seven > 6) SELECT count(*) AS n FROM counted", "")
	if _, err := a.process(s, 8); !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "did not answer within 3s") && !strings.Contains(err.Error(), "Memory") {
		t.Errorf("a query without end: %v", err)
	}
	if _, err := a.process(s, 2); err != nil {
		t.Errorf("the next batch: %v", err)
	}
	a.workers.Timeout = time.Minute
	s = a.openLine("SELECT count(DISTINCT a.range * 1000003 + b.range) AS n FROM input, range(300000) a, range(1000) b WHERE value > 6", "")
	if _, err := a.process(s, 8); !errors.Is(err, flow.ErrBad) || !strings.Contains(strings.ToLower(err.Error()), "memory") {
		t.Errorf("a query that takes all memory: %v", err)
	}
	if _, err := a.process(s, 2); err != nil {
		t.Errorf("the next batch: %v", err)
	}
}

// TestSQLFile: a longer query stands in a file; saved, it works from the next batch on, and an error in it holds batches up until it is mended.
func TestSQLFile(t *testing.T) {
	a := newAuthor(t)
	a.write("it/stage.sql", "SELECT value FROM input -- all\n")
	found, err := a.workers.Stages(a.dir)
	if err != nil || found["it"] == nil {
		t.Fatal(found, err)
	}
	s := found["it"]().(*Stage)
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rows := func() (int64, error) {
		out, err := a.process(s, 10)
		if err != nil {
			return 0, err
		}
		return out[0].Record.NumRows(), nil
	}
	if n, err := rows(); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	for text, want := range map[string]struct {
		rows int64
		says string
	}{
		"SELECT value\nFROM input\nWHERE value > 6": {3, ""},
		"SELECT value\nFROM input\nWHERE":           {0, "stage.sql, line 3, column 1: syntax error"},
	} {
		a.write("it/stage.sql", text)
		for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			n, err := rows()
			if want.says == "" && n == want.rows && err == nil || want.says != "" && err != nil && !errors.Is(err, flow.ErrBad) && strings.Contains(err.Error(), want.says) {
				break
			}
			if time.Since(begun) > 20*time.Second {
				t.Fatalf("%s: %d rows, %v", text, n, err)
			}
		}
	}
	a.write("it/stage.py", "")
	if _, err := a.workers.Stages(a.dir); err == nil || !strings.Contains(err.Error(), "holds a stage.py and a stage.sql") {
		t.Errorf("both: %v", err)
	}
}

// TestSQLWorkersThatDie: the engine is a process of its own. One that is killed is replaced, and its batch comes out all the same.
func TestSQLWorkersThatDie(t *testing.T) {
	a := newAuthor(t)
	s := a.openLine("SELECT value FROM input", "")
	for range 3 {
		s.host.mu.Lock()
		for _, w := range s.host.idle {
			if err := w.cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
		s.host.mu.Unlock()
		rec := events(5)
		out, err := s.Process(context.Background(), rec)
		rec.Release()
		if err != nil || out[0].Record.NumRows() != 5 {
			t.Fatal(out, err)
		}
		out[0].Record.Release()
	}
}

// BenchmarkSQL is a filter over batches of the pipeline's own rows, on one worker process.
func BenchmarkSQL(b *testing.B) {
	w := New("")
	w.Max = 1
	s := w.SQL("warm", "SELECT time, home, device, value FROM input WHERE metric = 'power' AND value > 1000", nil)()
	if err := s.(flow.Opener).Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer s.(flow.Closer).Close()
	for _, rows := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("%d rows", rows), func(b *testing.B) {
			rec := events(rows)
			defer rec.Release()
			b.ReportAllocs()
			for b.Loop() {
				out, err := s.Process(b.Context(), rec)
				if err != nil {
					b.Fatal(err)
				}
				out[0].Record.Release()
			}
			b.ReportMetric(float64(b.N)*float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
