package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// Check says whether a stream's schema fits its table, by what this package knows of the tables it makes. It asks no server:
// see CheckServer.
func (s *Sink) Check(stream string, schema *arrow.Schema) error {
	if err := s.checkSettings(); err != nil {
		return err
	}
	return s.checkSchema(stream, s.tableOf(stream), schema)
}

// checkSchema checks against a known table, or that a table could be made. Nullable columns that a known table lacks are fine: they
// will be added.
func (s *Sink) checkSchema(stream, table string, schema *arrow.Schema) error {
	seen := make(map[string]bool)
	for _, f := range schema.Fields() {
		if seen[f.Name] {
			return fmt.Errorf("stream %s has two columns named %q", stream, f.Name)
		}
		seen[f.Name] = true
	}
	if table == "" || reserved[table] {
		return fmt.Errorf("stream %s would go into table %q, which Hearthline keeps for itself; give it another (tables: {%s: …})", stream, table, stream)
	}
	columns := known[table]
	if columns == nil {
		_, _, err := s.createSQL(table, schema)
		if err == nil && len(schema.Fields()) == 0 {
			err = errors.New("it has no columns")
		}
		if err != nil {
			return fmt.Errorf("stream %s cannot be made a table: %w", stream, err)
		}
		return nil
	}
	columns, err := withNew(columns, schema)
	if err == nil {
		_, err = planOf(stream, table, schema, columns)
	}
	return err
}

// reserved are tables that views fill, or that the migrations need.
var reserved = map[string]bool{
	"readings_1m": true, "readings_1h": true, "latest": true, "schema_migrations": true,
	"readings_1m_mv": true, "readings_1h_mv": true, "latest_mv": true,
	"readings_1m_view": true, "readings_1h_view": true, "latest_view": true, "alerts_view": true,
}

// withNew are columns and those that extend would add for schema.
func withNew(columns []column, schema *arrow.Schema) ([]column, error) {
	have := make(map[string]bool, len(columns))
	for _, c := range columns {
		have[c.name] = true
	}
	all := columns[:len(columns):len(columns)]
	for _, f := range schema.Fields() {
		if have[f.Name] || !f.Nullable {
			continue // planOf will say that a column that is not nullable has no place
		}
		server, err := columnType(f)
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", f.Name, err)
		}
		all = append(all, column{name: f.Name, server: server, optional: true})
	}
	return all, nil
}

// ErrUnreachable says that CheckServer could not ask the server: nothing is known to be wrong.
var ErrUnreachable = errors.New("clickhouse cannot be reached")

// checkWait bounds how long lint waits for a server.
const checkWait = 10 * time.Second

// CheckServer says whether a stream's schema fits the table as the server has it. It changes nothing, and needs no Open. A
// server that cannot be asked is an error that Is ErrUnreachable.
func (s *Sink) CheckServer(ctx context.Context, stream string, schema *arrow.Schema) error {
	if err := s.Check(stream, schema); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkWait)
	defer cancel()
	opt, err := s.options()
	if err != nil {
		return err
	}
	opt.Auth.Database = "" // ours may not be there yet
	conn, err := clickhouse.Open(&opt)
	if err != nil {
		return fmt.Errorf("clickhouse at %s: %w", s.Address, err)
	}
	defer conn.Close()
	asking := Sink{Database: s.Database, queries: conn}
	table := s.tableOf(stream)
	columns, err := asking.serverColumns(ctx, table)
	if err != nil {
		return fmt.Errorf("%w at %s: %w%s", ErrUnreachable, s.Address, err, hint(err))
	}
	if len(columns) == 0 {
		return nil // it will be made
	}
	if columns, err = withNew(columns, schema); err != nil {
		return err
	}
	if _, err := planOf(stream, table, schema, columns); err != nil {
		return fmt.Errorf("clickhouse at %s: %w", s.Address, err)
	}
	return nil
}

var _ flow.Checker = (*Sink)(nil)
