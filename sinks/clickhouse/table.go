package clickhouse

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// Tables that the migrations make.
const (
	tableReadings = "readings"
	tableLate     = "late"
	tableFeatures = "features"
	tableScores   = "scores"
	tableAlerts   = "alerts"
	tableDead     = "dead"
)

// column is a column of a table, with the server's name of its type.
type column struct {
	name, server string
	optional     bool // the table fills it in when a stream has no such column
}

// known are the tables that the migrations make and streams go into, so that lint can check a stream's schema without a
// server. A test holds this list to the migrations.
var known = map[string][]column{
	tableReadings: readingColumns,
	tableLate:     readingColumns,
	tableFeatures: columnsOf("", "time, received DateTime64(6, 'UTC')", "home, device, metric, window LowCardinality(String)",
		"window_end DateTime64(6, 'UTC')", "count Int64", "mean, std, min, max, last, slope, rate, since_last Nullable(Float64)"),
	tableScores: columnsOf("seq", "time, received DateTime64(6, 'UTC')", "home, device, metric LowCardinality(String)",
		"value Nullable(Float64)", "seq Nullable(Int64)", "score Nullable(Float64)", "model LowCardinality(String)"),
	tableAlerts: columnsOf("", "time, received DateTime64(6, 'UTC')", "home, device, metric LowCardinality(String)", "id String",
		"state, severity LowCardinality(String)", "score, value, threshold Nullable(Float64)", "started DateTime64(6, 'UTC')"),
	tableDead: columnsOf("", "time, received DateTime64(6, 'UTC')", "stage, reason, stream LowCardinality(String)", "partition Int32",
		"offset Int64", "row Int32", "home, device LowCardinality(String)", "body String"),
}

// A stream of readings may come from before enrich, and then has no room, kind, model and zone.
var readingColumns = columnsOf("seq text unit attributes room kind model zone",
	"time, received DateTime64(6, 'UTC')", "home, device, metric LowCardinality(String)", "value Nullable(Float64)",
	"text, unit LowCardinality(String)", "seq Nullable(Int64)", "attributes Map(LowCardinality(String), String)",
	"room, kind, model, zone LowCardinality(String)")

// columnsOf reads "a, b Type" groups; optional names the columns that a stream may lack.
func columnsOf(optional string, groups ...string) []column {
	var all []column
	for _, g := range groups {
		// The names end at the first space that follows no comma.
		end := strings.Index(strings.ReplaceAll(g, ", ", ",,"), " ")
		names, server := g[:end], g[end+1:]
		for name := range strings.SplitSeq(names, ", ") {
			all = append(all, column{name, server, strings.Contains(" "+optional+" ", " "+name+" ")})
		}
	}
	return all
}

// tableOf says which table a stream goes into: the one set for it, dead for all dead letters, else that of its name.
func (s *Sink) tableOf(stream string) string {
	if t, ok := s.Tables[stream]; ok {
		return t
	}
	if strings.HasSuffix(stream, ".dead") {
		return tableDead
	}
	return tableName(stream)
}

// tableName makes a name for a table of a stream's: what is no letter, digit or _ becomes _.
func tableName(stream string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, stream)
}

// plan is how records of one schema go into one table.
type plan struct {
	table  string
	schema *arrow.Schema
	query  string
	fields []planField
}

type planField struct {
	name     string
	at       int // index in the schema
	fill     filler
	nullFree bool // a null cannot be stored in it
}

// planOf joins a schema with the columns of its table. Its error names every column that does not fit and says what to do.
func planOf(stream, table string, schema *arrow.Schema, columns []column) (*plan, error) {
	p := &plan{table: table, schema: schema}
	byName := make(map[string]column, len(columns))
	for _, c := range columns {
		byName[c.name] = c
	}
	var wrong, names []string
	for i, f := range schema.Fields() {
		c, ok := byName[f.Name]
		if !ok {
			wrong = append(wrong, fmt.Sprintf("column %q: the table has none", f.Name))
			continue
		}
		delete(byName, f.Name)
		fill, err := fillerOf(f.Type, f.Nullable, c.server)
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("column %q: %v", f.Name, err))
			continue
		}
		p.fields = append(p.fields, planField{f.Name, i, fill, nullableType(f.Type) && !stringLike(f.Type) && !strings.HasPrefix(c.server, "Nullable(")})
		names = append(names, quote(f.Name))
	}
	for _, c := range columns {
		if _, missing := byName[c.name]; missing && !c.optional {
			wrong = append(wrong, fmt.Sprintf("column %q (%s) is missing", c.name, c.server))
		}
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("stream %s does not fit into table %s: %s; cast or rename in the stage that writes the stream, "+
			"or give it another table (tables: {%s: …})", stream, table, strings.Join(wrong, "; "), stream)
	}
	p.query = "INSERT INTO " + quote(table) + " (" + strings.Join(names, ", ") + ") VALUES"
	return p, nil
}

// plans keeps what was found out about streams; the server is asked once a schema.
type plans struct {
	mu       sync.Mutex
	byStream map[string][]*plan
}

// plansMax bounds the schemas kept a stream; while a stage is rolled out there are two.
const plansMax = 4

func (ps *plans) find(stream string, schema *arrow.Schema) *plan {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.byStream[stream] {
		if p.schema == schema || p.schema.Equal(schema) {
			return p
		}
	}
	return nil
}

func (ps *plans) keep(stream string, p *plan) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.byStream == nil {
		ps.byStream = make(map[string][]*plan)
	}
	all := append(ps.byStream[stream], p)
	ps.byStream[stream] = all[max(0, len(all)-plansMax):]
}

// forget has the server asked again: its table may have changed.
func (ps *plans) forget(stream string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.byStream, stream)
}

// planFor finds out how records of schema go into the stream's table, makes the table when there is none, and adds columns
// that are new.
func (s *Sink) planFor(ctx context.Context, stream string, schema *arrow.Schema) (*plan, error) {
	if p := s.plans.find(stream, schema); p != nil {
		return p, nil
	}
	table := s.tableOf(stream)
	if err := s.checkSchema(stream, table, schema); err != nil {
		return nil, fmt.Errorf("%w: %w", flow.ErrBad, err)
	}
	columns, err := s.serverColumns(ctx, table)
	if err != nil {
		return nil, err
	}
	changed := true
	switch {
	case len(columns) == 0 && known[table] != nil:
		return nil, fmt.Errorf("table %s is missing in database %s, though the migrations made it once: restore it, or drop schema_migrations to have all tables made again", table, s.Database)
	case len(columns) == 0:
		err = s.create(ctx, table, schema)
	default:
		if changed, err = s.extend(ctx, table, schema, columns); err != nil {
			err = fmt.Errorf("%w%s", err, s.changedSince(table, columns))
		}
	}
	if err != nil {
		return nil, err
	}
	if changed {
		if columns, err = s.serverColumns(ctx, table); err != nil {
			return nil, err
		}
	}
	// The rows are as they should be, so what does not fit is the table: they wait until somebody has mended it.
	p, err := planOf(stream, table, schema, columns)
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, s.changedSince(table, columns))
	}
	if err := s.checkMemory(ctx, table); err != nil {
		return nil, err
	}
	s.plans.keep(stream, p)
	return p, nil
}

// serverColumns are the columns of a table as the server has them; none when there is no such table.
func (s *Sink) serverColumns(ctx context.Context, table string) ([]column, error) {
	rows, err := s.queries.Query(ctx, "SELECT name, type, default_kind FROM system.columns WHERE database = ? AND table = ? ORDER BY position", s.Database, table)
	if err != nil {
		return nil, fmt.Errorf("columns of table %s: %w", table, err)
	}
	defer rows.Close()
	var all []column
	for rows.Next() {
		var c column
		var kind string
		if err := rows.Scan(&c.name, &c.server, &kind); err != nil {
			return nil, fmt.Errorf("columns of table %s: %w", table, err)
		}
		if kind == "MATERIALIZED" || kind == "ALIAS" {
			continue // nobody writes these
		}
		// The server fills in what an insert leaves out. A known table needs all of its streams' columns even so, but
		// one that was added by hand is its owner's, and a stream that lost a column leaves it empty.
		c.optional = !slices.ContainsFunc(known[table], func(k column) bool { return k.name == c.name && !k.optional })
		all = append(all, c)
	}
	return all, rows.Err()
}

// create makes a table of the schema, sorted like the known ones as far as it has their columns.
func (s *Sink) create(ctx context.Context, table string, schema *arrow.Schema) error {
	sql, columns, err := s.createSQL(table, schema)
	if err != nil {
		return fmt.Errorf("%w: %w", flow.ErrBad, err)
	}
	if err := s.define(ctx, s.queries, sql); err != nil {
		return fmt.Errorf("make table %s: %w", table, err)
	}
	s.Logger.Info("clickhouse: table made", "table", table, "columns", len(columns))
	return nil
}

func (s *Sink) createSQL(table string, schema *arrow.Schema) (string, []column, error) {
	var lines, order []string
	var columns []column
	for _, f := range schema.Fields() {
		server, err := columnType(f)
		if err != nil {
			return "", nil, fmt.Errorf("column %q: %w", f.Name, err)
		}
		columns = append(columns, column{name: f.Name, server: server})
		lines = append(lines, "    "+quote(f.Name)+" "+server+codec(server))
	}
	has := func(name, prefix string) bool {
		for _, c := range columns {
			if c.name == name && strings.HasPrefix(c.server, prefix) {
				return true
			}
		}
		return false
	}
	for _, name := range []string{flow.ColHome, flow.ColDevice, flow.ColMetric, "window"} {
		if has(name, "LowCardinality(") || has(name, "String") {
			order = append(order, quote(name))
		}
	}
	partition := ""
	for _, name := range []string{flow.ColTime, flow.ColReceived} {
		if !has(name, "DateTime64(") {
			continue
		}
		if name == flow.ColTime {
			order = append(order, quote(name))
		}
		// received, when there is one: nobody has looked at the event times of a stream that is not known.
		partition = "PARTITION BY toYYYYMMDD(" + quote(name) + ")\n"
	}
	ttl := ""
	if at := ttlColumn(table, columns); at != "" && s.RetentionDays > 0 {
		ttl = "TTL " + s.ttl(at) + "\n" // with the table, or a sink that ends in between leaves it without
	}
	return "CREATE TABLE IF NOT EXISTS " + quote(table) + " (\n" + strings.Join(lines, ",\n") + "\n) ENGINE = MergeTree\n" +
		partition + "ORDER BY (" + strings.Join(order, ", ") + ")\n" + ttl + "SETTINGS " + tableSettings, columns, nil
}

// codec is the compression that was measured best for a type, in tables sorted by series.
func codec(server string) string {
	switch {
	case strings.HasPrefix(server, "DateTime64("), server == "Int64", server == "Nullable(Int64)":
		return " CODEC(Delta(8), ZSTD(1))"
	case strings.HasPrefix(server, "LowCardinality("):
		return ""
	}
	return " CODEC(ZSTD(1))"
}

// extend adds the columns of schema that the table lacks. Only a nullable one may come later: the rows
// that are there already have no value for it.
func (s *Sink) extend(ctx context.Context, table string, schema *arrow.Schema, columns []column) (bool, error) {
	have := make(map[string]bool, len(columns))
	for _, c := range columns {
		have[c.name] = true
	}
	var adds []string
	for _, f := range schema.Fields() {
		if have[f.Name] {
			continue
		}
		if !f.Nullable {
			return false, fmt.Errorf("column %q of the stream is not nullable, and table %s has none: make it nullable in the stage, add it to the table, or give the stream another table", f.Name, table)
		}
		server, err := columnType(f)
		if err != nil {
			return false, fmt.Errorf("column %q: %w", f.Name, err)
		}
		adds = append(adds, "ADD COLUMN IF NOT EXISTS "+quote(f.Name)+" "+server+codec(server))
	}
	if len(adds) == 0 {
		return false, nil
	}
	if err := s.define(ctx, s.queries, "ALTER TABLE "+quote(table)+" "+strings.Join(adds, ", ")); err != nil {
		return false, fmt.Errorf("add columns to table %s: %w", table, err)
	}
	s.Logger.Info("clickhouse: columns added", "table", table, "added", len(adds))
	return true, nil
}
