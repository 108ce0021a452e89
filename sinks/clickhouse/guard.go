package clickhouse

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// This file looks for what somebody has changed by hand, and says what it was.

// changedSince says in what a known table differs from what the migrations made; "" for tables that nobody knows.
func (s *Sink) changedSince(table string, columns []column) string {
	if known[table] == nil {
		return ""
	}
	var wrong []string
	for _, want := range known[table] {
		i := slices.IndexFunc(columns, func(c column) bool { return c.name == want.name })
		switch {
		case i < 0:
			wrong = append(wrong, fmt.Sprintf("ALTER TABLE %s.%s ADD COLUMN %s %s", quote(s.Database), quote(table), quote(want.name), want.server))
		case columns[i].server != want.server:
			wrong = append(wrong, fmt.Sprintf("ALTER TABLE %s.%s MODIFY COLUMN %s %s", quote(s.Database), quote(table), quote(want.name), want.server))
		}
	}
	if len(wrong) == 0 {
		return ""
	}
	return "; the table was changed since Hearthline made it, and the rows wait: " + strings.Join(wrong, "; ")
}

var (
	windowOf = regexp.MustCompile(`non_replicated_deduplication_window = (\d+)`)
	targetOf = regexp.MustCompile(`^CREATE MATERIALIZED VIEW \S+(?: UUID '[^']*')? TO (?:(\S+?)\.)?([^\s(]+)`)
)

// checkMemory refuses a table that would not know a range that is written again, and warns of tables of others that
// materialized views fill from it.
func (s *Sink) checkMemory(ctx context.Context, table string) error {
	rows, err := s.queries.Query(ctx, `WITH (SELECT arrayMap((d, t) -> (d, t), dependencies_database, dependencies_table) FROM system.tables WHERE database = ? AND name = ?) AS views
		SELECT database, name, engine, engine_full, create_table_query FROM system.tables WHERE database = ? AND name = ? OR has(views, (database, name))`,
		s.Database, table, s.Database, table)
	if err != nil {
		return fmt.Errorf("settings of table %s: %w", table, err)
	}
	defer rows.Close()
	var targets [][2]string
	for rows.Next() {
		var database, name, engine, full, create string
		if err := rows.Scan(&database, &name, &engine, &full, &create); err != nil {
			return fmt.Errorf("settings of table %s: %w", table, err)
		}
		if create == "" {
			return noDefinition(database, name)
		}
		if m := targetOf.FindStringSubmatch(create); engine == "MaterializedView" && m != nil {
			targets = append(targets, [2]string{strings.Trim(orElse(m[1], database), "`"), strings.Trim(m[2], "`")})
		}
		if name == table && database == s.Database {
			if err := remembers(database, table, engine, full); err != nil {
				return err
			}
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("settings of table %s: %w", table, err)
	}
	for _, target := range targets {
		if err := s.checkTarget(ctx, table, target[0], target[1]); err != nil {
			return err
		}
	}
	return nil
}

// checkTarget looks at a table that a view fills. Ours must remember inserts; of others, the owner is told.
func (s *Sink) checkTarget(ctx context.Context, table, database, target string) error {
	var engine, full string
	if err := s.queries.QueryRow(ctx, "SELECT engine, engine_full FROM system.tables WHERE database = ? AND name = ?", database, target).Scan(&engine, &full); err != nil {
		s.Logger.Warn("clickhouse: a materialized view fills a table that this user cannot see", "from", table, "to", database+"."+target, "error", err)
		return nil
	}
	err := remembers(database, target, engine, full)
	if err != nil && database == s.Database && reserved[target] {
		return err
	}
	if err != nil {
		s.Logger.Warn("clickhouse: a materialized view may count rows twice", "from", table, "error", err)
	}
	return nil
}

// remembers says whether a table knows an insert that comes again.
func remembers(database, table, engine, full string) error {
	if !strings.HasSuffix(engine, "MergeTree") || strings.HasPrefix(engine, "Replicated") || strings.HasPrefix(engine, "Shared") {
		return nil // others keep no rows, or remember inserts by other settings
	}
	window := 0
	if m := windowOf.FindStringSubmatch(full); m != nil {
		window, _ = strconv.Atoi(m[1])
	}
	if window >= dedupWindow {
		return nil
	}
	return fmt.Errorf("table %s.%s remembers %d inserts and should remember %d: what is written again after a crash would count twice; "+
		"ALTER TABLE %s.%s MODIFY SETTING non_replicated_deduplication_window = %d", database, table, window, dedupWindow, quote(database), quote(table), dedupWindow)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
