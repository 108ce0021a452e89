package clickhouse

import (
	"context"
	_ "embed"
	"fmt"
	"reflect"
	"strings"
)

// RowCounts is the number of rows of every table of the database, as the server keeps it: exact, and read without
// reading the tables. Tables that do not exist are not in it. Rollups count parts of sums, not minutes.
func (s *Sink) RowCounts(ctx context.Context) (map[string]uint64, error) {
	rows, err := s.queries.Query(ctx, "SELECT name, assumeNotNull(total_rows) FROM system.tables WHERE database = ? AND total_rows IS NOT NULL", s.Database)
	if err != nil {
		return nil, fmt.Errorf("clickhouse: row counts: %w", err)
	}
	defer rows.Close()
	counts := make(map[string]uint64)
	for rows.Next() {
		var name string
		var n uint64
		if err := rows.Scan(&name, &n); err != nil {
			return nil, fmt.Errorf("clickhouse: row counts: %w", err)
		}
		counts[name] = n
	}
	return counts, rows.Err()
}

// Result is the answer to a query: a value a column a row, of the Go type nearest the server's; nil is NULL.
type Result struct {
	Columns []string
	Rows    [][]any
}

// Query asks the database, as the sink's own user, and returns at most limit rows.
func (s *Sink) Query(ctx context.Context, limit int, sql string, args ...any) (Result, error) {
	rows, err := s.queries.Query(ctx, sql, args...)
	if err != nil {
		return Result{}, fmt.Errorf("clickhouse: query: %w", err)
	}
	defer rows.Close()
	result := Result{Columns: rows.Columns()}
	types := rows.ColumnTypes()
	for len(result.Rows) < limit && rows.Next() {
		targets := make([]any, len(types))
		for i, t := range types {
			targets[i] = reflect.New(t.ScanType()).Interface()
		}
		if err := rows.Scan(targets...); err != nil {
			return Result{}, fmt.Errorf("clickhouse: query: %w", err)
		}
		row := make([]any, len(targets))
		for i, t := range targets {
			v := reflect.ValueOf(t).Elem()
			if v.Kind() == reflect.Pointer { // a nullable column
				if v.IsNil() {
					continue
				}
				v = v.Elem()
			}
			row[i] = v.Interface()
		}
		result.Rows = append(result.Rows, row)
	}
	return result, rows.Err()
}

//go:embed examples.sql
var examplesSQL string

// Example is a query worth pasting.
type Example struct {
	Name  string // short, stable
	Title string // what it shows
	SQL   string // without the semicolon
}

// Examples are queries for a console or a manual, in the order of examples.sql. They name tables without a database.
func Examples() []Example {
	var all []Example
	for block := range strings.SplitSeq(examplesSQL, "\n\n") {
		head, sql, _ := strings.Cut(strings.TrimSpace(block), "\n")
		name, title, _ := strings.Cut(strings.TrimPrefix(head, "-- "), ": ")
		all = append(all, Example{Name: name, Title: title, SQL: strings.TrimSuffix(sql, ";")})
	}
	return all
}
