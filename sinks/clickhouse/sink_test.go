package clickhouse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc"

	"hearthline/flow"
)

var (
	_ flow.Sink     = (*Sink)(nil)
	_ flow.Opener   = (*Sink)(nil)
	_ flow.Closer   = (*Sink)(nil)
	_ flow.Flushing = (*Sink)(nil)
)

// TestKnownTablesAreThoseOfTheMigrations: lint checks against the list, the server has the migrations.
func TestKnownTablesAreThoseOfTheMigrations(t *testing.T) {
	s := openSink(t)
	for table, want := range known {
		got, err := s.serverColumns(context.Background(), table)
		if err != nil {
			t.Fatal(err)
		}
		name := func(c column) string { return c.name + " " + c.server }
		if !slices.EqualFunc(got, want, func(a, b column) bool { return name(a) == name(b) }) {
			t.Errorf("table %s:\n the server has %v\n the list has   %v", table, got, want)
		}
	}
	for table := range reserved {
		if n := scalar(t, s, "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = '"+table+"'"); n != "1" {
			t.Errorf("%s is reserved, and there is no such table", table)
		}
	}
}

func TestEveryStreamOfThePipelineFits(t *testing.T) {
	s := openSink(t)
	mem := checkedMem(t)
	for stream, schema := range map[string]*arrow.Schema{
		"raw": flow.EventSchema, "readings": readingsSchema, "late": readingsSchema, "features": featuresSchema, "scores": scoresSchema,
		"alerts": alertsSchema, "normalize.dead": flow.DeadSchema, "my-stage.v2.dead": flow.DeadSchema,
	} {
		if err := s.Check(stream, schema); err != nil {
			t.Errorf("check: %v", err)
		}
		if err := s.CheckServer(context.Background(), stream, schema); err != nil {
			t.Errorf("check against the server: %v", err)
		}
		rec := fill(t, mem, schema, 1, 100)
		write(t, s, stream, 0, rec)
		write(t, s, stream, 0, rec)
	}
	counts, err := s.RowCounts(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for table, want := range map[string]uint64{"raw": 100, "readings": 100, "late": 100, "features": 100, "scores": 100, "alerts": 100, "dead": 200} {
		if counts[table] != want {
			t.Errorf("table %s has %d rows; want %d", table, counts[table], want)
		}
	}
	for _, e := range Examples() {
		if e.Name == "" || e.Title == "" || !strings.HasPrefix(e.SQL, "SELECT") {
			t.Errorf("example %+v", e)
		}
		result, err := s.Query(context.Background(), 100, e.SQL)
		if err != nil {
			t.Errorf("example %s: %v", e.Name, err)
		}
		t.Logf("%s: %d rows", e.Title, len(result.Rows))
	}
	if n := len(Examples()); n != 7 {
		t.Errorf("%d examples; want 7", n)
	}
}

func TestCheckNamesWhatDoesNotFit(t *testing.T) {
	change := func(schema *arrow.Schema, name string, f arrow.Field) *arrow.Schema {
		var fields []arrow.Field
		for _, g := range schema.Fields() {
			if g.Name != name {
				fields = append(fields, g)
			}
		}
		if f.Type != nil {
			fields = append(fields, f)
		}
		return arrow.NewSchema(fields, nil)
	}
	for _, c := range []struct {
		name, stream string
		schema       *arrow.Schema
		says         []string // "" in it: fits
	}{
		{"as it is", "readings", readingsSchema, nil},
		{"before enrich", "readings", flow.EventSchema, nil},
		{"a new nullable column", "readings", change(readingsSchema, "-", arrow.Field{Name: "floor", Type: flow.KeyType, Nullable: true}), nil},
		{"a new column that is not", "readings", change(readingsSchema, "-", arrow.Field{Name: "floor", Type: flow.KeyType}), []string{`"floor"`, "the table has none"}},
		{"another type", "readings", change(readingsSchema, "value", arrow.Field{Name: "value", Type: arrow.BinaryTypes.String}), []string{`"value"`, "utf8", "Nullable(Float64)", "cast"}},
		{"milliseconds", "readings", change(readingsSchema, "time", arrow.Field{Name: "time", Type: arrow.FixedWidthTypes.Timestamp_ms}), []string{`"time"`, "DateTime64(6"}},
		{"two faults", "scores", change(change(scoresSchema, "score", arrow.Field{}), "home", arrow.Field{}), []string{`"score"`, `"home"`, "missing"}},
		{"a nullable count", "features", change(featuresSchema, "count", arrow.Field{Name: "count", Type: arrow.PrimitiveTypes.Int64, Nullable: true}), []string{`"count"`, "nullable int64"}},
		{"an unknown stream", "novel", allTypes(), nil},
		{"a type without a column", "novel", arrow.NewSchema([]arrow.Field{{Name: "s", Type: arrow.StructOf(key("a"))}}, nil), []string{`"s"`, "struct"}},
		{"one name twice", "novel", arrow.NewSchema([]arrow.Field{key("a"), key("a")}, nil), []string{`"a"`, "two columns"}},
		{"no columns", "novel", arrow.NewSchema(nil, nil), []string{"no columns"}},
		{"a name that is taken", "latest", readingsSchema, []string{"latest", "keeps for itself"}},
		{"a stream of another's table", "shadow", scoresSchema, []string{"shadow", "table readings", `"value"`}},
	} {
		s := New()
		s.Tables = map[string]string{"shadow": "readings"}
		err := s.Check(c.stream, c.schema)
		if (err == nil) != (c.says == nil) {
			t.Errorf("%s: error %v", c.name, err)
			continue
		}
		for _, part := range c.says {
			if !strings.Contains(err.Error(), part) && part != `"value"` {
				t.Errorf("%s: %v; want %s in it", c.name, err, part)
			}
		}
	}
}

func TestStreamThatNobodyKnowsGrows(t *testing.T) {
	s := openSink(t)
	mem := checkedMem(t)
	first := arrow.NewSchema([]arrow.Field{at("time"), at("received"), key("home"), float("comfort")}, nil)
	grown := arrow.NewSchema(append(first.Fields(), floatN("draught"), arrow.Field{Name: "why", Type: flow.AttributesType, Nullable: true}), nil)
	write(t, s, "comfort.v1", 0, fill(t, mem, first, 1, 50))
	write(t, s, "comfort.v1", 10, fill(t, mem, grown, 2, 50))
	write(t, s, "comfort.v1", 20, fill(t, mem, first, 3, 50)) // the old version still runs somewhere
	if got := scalar(t, s, "SELECT (count(), countIf(draught IS NULL) >= 100, countIf(comfort != 0)) FROM comfort_v1"); got != "(150,1,150)" {
		t.Errorf("rows, without draught, with comfort: %s", got)
	}
	engine := scalar(t, s, "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = 'comfort_v1'")
	if !strings.Contains(engine, "PARTITION BY toYYYYMMDD(received) ORDER BY (home, time)") {
		t.Errorf("made as %s", engine)
	}
	strict := arrow.NewSchema(append(first.Fields(), float("strict")), nil)
	changed := arrow.NewSchema([]arrow.Field{at("time"), at("received"), key("home"), {Name: "comfort", Type: arrow.BinaryTypes.String}}, nil)
	for name, schema := range map[string]*arrow.Schema{"not nullable": strict, "another type": changed} {
		err := s.Write(context.Background(), rangeOf("comfort.v1", 0, 30, 39), []arrow.Record{fill(t, mem, schema, 4, 5)})
		if err == nil || errors.Is(err, flow.ErrBad) {
			t.Errorf("%s: error %v; want one of the world: the rows wait until stage and table fit", name, err)
		}
		if err := s.CheckServer(context.Background(), "comfort.v1", schema); err == nil || errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: check against the server: %v", name, err)
		}
	}
}

func TestNullWhereTheSchemaSaysNone(t *testing.T) {
	s := openSink(t)
	mem := memory.NewGoAllocator()
	rec := fill(t, mem, arrow.NewSchema([]arrow.Field{floatN("x")}, nil), 1, 100)
	lying := arrow.NewSchema([]arrow.Field{float("x")}, nil)
	bad := array.NewRecord(lying, rec.Columns(), rec.NumRows())
	defer bad.Release()
	err := s.Write(context.Background(), rangeOf("lies", 0, 0, 0), []arrow.Record{bad})
	if !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), `"x" holds a null`) {
		t.Errorf("error %v", err)
	}
}

func TestTableThatChangedUnderUs(t *testing.T) {
	s := openSink(t)
	mem := checkedMem(t)
	ctx := context.Background()
	exec := func(sql string) {
		t.Helper()
		if err := s.queries.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	schema := arrow.NewSchema([]arrow.Field{at("time"), key("home"), floatN("x")}, nil)
	write(t, s, "shifting", 0, fill(t, mem, schema, 1, 10))
	exec("ALTER TABLE shifting DROP COLUMN x")
	write(t, s, "shifting", 10, fill(t, mem, schema, 2, 10))
	exec("DROP TABLE shifting SYNC")
	write(t, s, "shifting", 20, fill(t, mem, schema, 3, 10))
	exec("ALTER TABLE shifting DROP COLUMN x, ADD COLUMN x Array(String)")
	last := fill(t, mem, schema, 4, 10)
	refuse(t, s, rangeOf("shifting", 0, 30, 39), last, `"x"`, "Array(String)")
	exec("ALTER TABLE shifting DROP COLUMN x")
	write(t, s, "shifting", 30, last)
	// A known table that is gone is for a person to bring back, and then the range goes through.
	exec("RENAME TABLE scores TO scores_away")
	rec := fill(t, mem, scoresSchema, 5, 10)
	if err := s.Write(ctx, rangeOf("scores", 0, 0, 0), []arrow.Record{rec}); err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a table that is gone: error %v; want one of the world", err)
	}
	exec("RENAME TABLE scores_away TO scores")
	write(t, s, "scores", 0, rec)
}

func TestMigrationsRunTwiceAndTogether(t *testing.T) {
	all, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	s := openSink(t)
	for _, m := range all {
		for _, sql := range m.statements {
			if err := s.queries.Exec(context.Background(), sql); err != nil {
				t.Errorf("%s runs no second time: %v", m.name, err)
			}
		}
	}
	first := newSink(t)
	t.Cleanup(func() { _ = s.queries.Exec(context.Background(), "DROP DATABASE IF EXISTS "+quote(first.Database)) })
	var wg conc.WaitGroup
	for range 6 {
		wg.Go(func() {
			other := newSink(t)
			other.Database = first.Database
			open(t, other)
			defer other.Close()
		})
	}
	wg.Wait()
	open(t, first)
	defer first.Close()
	if n := scalar(t, first, "SELECT count() FROM schema_migrations FINAL"); n != fmt.Sprint(len(all)) {
		t.Errorf("%s migrations noted; want %d", n, len(all))
	}
	if err := first.queries.Exec(context.Background(), "INSERT INTO schema_migrations (number, name, checksum, applied) VALUES (1, 'edited', 'x', now() + 10)"); err != nil {
		t.Fatal(err)
	}
	edited := newSink(t)
	edited.Database = first.Database
	if err := edited.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "in another form") {
		t.Errorf("a migration that was edited: error %v", err)
	}
}

func TestRetention(t *testing.T) {
	s := openSink(t)
	ttl := func(table string) string {
		return scalar(t, s, "SELECT extract(engine_full, 'TTL (.*?) SETTINGS') FROM system.tables WHERE database = currentDatabase() AND name = '"+table+"'")
	}
	again := func(days int) {
		t.Helper()
		other := newSink(t)
		other.Database, other.RetentionDays = s.Database, days
		open(t, other)
		defer other.Close()
		write(t, other, "novel", int64(days), fill(t, memory.NewGoAllocator(), arrow.NewSchema([]arrow.Field{at("time")}, nil), 1, 1))
	}
	for _, days := range []int{30, 30, 7, 0} {
		again(days)
		for table, at := range map[string]string{"readings": "time", "features": "time", "dead": "received"} {
			want := fmt.Sprintf("toDateTime(%s) + toIntervalDay(%d)", at, days)
			if days == 0 {
				want = ""
			}
			if got := ttl(table); got != want {
				t.Errorf("%d days: table %s has TTL %q; want %q", days, table, got, want)
			}
		}
		if got := ttl("alerts") + ttl("readings_1h"); got != "" {
			t.Errorf("alerts and rollups are kept, but have TTL %q", got)
		}
	}
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestServerThatComesLateAndGoes(t *testing.T) {
	own := newTestEngine(t.TempDir())
	var log syncBuffer
	s := New()
	s.Address, s.User = own.tcp, "writer"
	s.PasswordFile = filepath.Join(t.TempDir(), "password")
	s.Logger = slog.New(slog.NewTextHandler(&log, nil))
	// The secret is there before the server: made by a first start.
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.PasswordFile, []byte(own.ends.Writer.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := own.stop(); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	var wg conc.WaitGroup
	wg.Go(func() { opened <- s.Open(t.Context()) })
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(log.String(), "waiting for it") && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { own.stop() }()
	wg.Wait()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n := strings.Count(log.String(), "waiting for it"); n != 1 {
		t.Errorf("waiting was said %d times; want once:\n%s", n, log.String())
	}
	rec := readings(t, checkedMem(t), 1, 100, testDay)
	write(t, s, "readings", 0, rec)
	if err := own.stop(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		err := s.Write(t.Context(), rangeOf("readings", 0, 10, 19), []arrow.Record{rec})
		if err == nil || errors.Is(err, flow.ErrBad) {
			t.Errorf("a server that is gone: error %v; want one of the world", err)
		}
	}
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	for s.Write(t.Context(), rangeOf("readings", 0, 10, 19), []arrow.Record{rec}) != nil && time.Now().Before(deadline.Add(time.Minute)) {
	}
	if n := strings.Count(log.String(), "inserts fail"); n != 1 || strings.Count(log.String(), "go through again") != 1 {
		t.Errorf("the log says %d times that inserts fail:\n%s", n, log.String())
	}
	if got := scalar(t, s, "SELECT count() FROM readings"); got != "200" {
		t.Errorf("%s rows; want 200", got)
	}
}

func TestOpenRefusesWhatWaitingDoesNotMend(t *testing.T) {
	// The dashboard user begins in the server's own database: without it, it cannot even log in.
	own := newSink(t)
	own.Database = engine.ends.Database
	if err := own.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for name, c := range map[string]struct {
		change func(*Sink)
		says   string
	}{
		"a wrong password": {func(s *Sink) { s.Password = "guess" }, "check user, and password_env"},
		"an unknown user":  {func(s *Sink) { s.User = "nobody" }, "check user"},
		"no rights":        {func(s *Sink) { s.User, s.Password = engine.ends.Dashboard.Name, engine.ends.Dashboard.Password }, "can say: GRANT"},
		"no variable":      {func(s *Sink) { s.PasswordEnv = "NO_SUCH_VARIABLE" }, "NO_SUCH_VARIABLE is not set"},
		"no file":          {func(s *Sink) { s.PasswordFile = "/no/such/file" }, "password_file"},
		"two secrets":      {func(s *Sink) { s.PasswordFile, s.PasswordEnv = "a", "b" }, "set one"},
		"no port":          {func(s *Sink) { s.Address = "localhost" }, "want host:port"},
		"no database":      {func(s *Sink) { s.Database = "" }, "no database"},
		"negative days":    {func(s *Sink) { s.RetentionDays = -1 }, "retention_days is -1"},
		"no rows":          {func(s *Sink) { s.FlushRows = 0 }, "flush_rows"},
		"no connections":   {func(s *Sink) { s.Connections = 0 }, "connections is 0"},
		"an odd table":     {func(s *Sink) { s.Tables = map[string]string{"a": "b; DROP"} }, "no name for a table"},
	} {
		s := newSink(t)
		c.change(s)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := s.Open(ctx); err == nil || !strings.Contains(err.Error(), c.says) || ctx.Err() != nil {
			t.Errorf("%s: error %v; want %q in it, at once", name, err, c.says)
		}
		cancel()
	}
	gone := newSink(t)
	gone.Address = freeAddr()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := gone.Open(ctx); err == nil || !strings.Contains(err.Error(), "is the server running") {
		t.Errorf("no server: error %v", err)
	}
	if err := gone.CheckServer(t.Context(), "readings", readingsSchema); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no server: check says %v", err)
	}
	if err := gone.Close(); err != nil {
		t.Error(err)
	}
}
