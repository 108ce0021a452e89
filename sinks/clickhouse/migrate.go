package clickhouse

import (
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"hearthline/flow"
)

// Migrations are files NNNN_name.sql of statements that end in ";" at the end of a line. They are applied in their
// order, each once a database. ClickHouse has no transactions and no locks for that, so every statement must be
// harmless when it runs twice or twice at once (IF NOT EXISTS, OR REPLACE): a test runs all of them so. A file that
// was released is never changed; a new one is added.
//
//go:embed migrations/*.sql
var migrationFiles embed.FS

// dedupWindow is how many inserted blocks a table remembers, of all writers together; a block that touches several
// partitions counts once for each. It bounds how long a range may stay half written: 128 partitions, one
// insert a second each and two days to a block, pass it in six and a half minutes of another writer's outage.
const dedupWindow = 100_000

// tableSettings are those of every table that inserts reach, directly or through a view. ClickHouse's default window is 0:
// no deduplication. By default it also leaves it to the kernel when rows reach the disk; with fsync an insert that was
// acknowledged survives a power cut (measured: 10 ms more for an insert of 10,000 rows).
var tableSettings = fmt.Sprintf("non_replicated_deduplication_window = %d, fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1", dedupWindow)

type migration struct {
	number     uint32
	name       string
	checksum   string // SHA-256 of the file, hex
	statements []string
}

// fillIn completes a migration's text. A view is not replaced but made where there is none, since replacing takes the right
// to drop tables, which a sink should not have.
var fillIn = strings.NewReplacer("{{settings}}", tableSettings, "CREATE OR REPLACE VIEW", "CREATE VIEW IF NOT EXISTS")

func migrations() ([]migration, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	var all []migration
	for _, name := range names {
		b, err := migrationFiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		digits, _, _ := strings.Cut(path.Base(name), "_")
		number, err := strconv.ParseUint(digits, 10, 32)
		if err != nil || int(number) != len(all)+1 {
			return nil, fmt.Errorf("migration %s: the number must be %04d", name, len(all)+1)
		}
		all = append(all, migration{
			number:     uint32(number),
			name:       path.Base(name),
			checksum:   fmt.Sprintf("%x", sha256.Sum256(b)),
			statements: statements(fillIn.Replace(string(b))),
		})
	}
	return all, nil
}

// statements cuts SQL at every ";" that ends a line, and leaves out comment lines.
func statements(sql string) []string {
	var all []string
	var b strings.Builder
	for line := range strings.Lines(sql) {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "--") {
			continue
		}
		if end, ok := strings.CutSuffix(trimmed, ";"); ok {
			b.WriteString(end)
			all = append(all, b.String())
			b.Reset()
			continue
		}
		b.WriteString(line)
	}
	return all
}

const migrationsTable = `CREATE TABLE IF NOT EXISTS schema_migrations (
    number UInt32, name String, checksum String, applied DateTime DEFAULT now()
) ENGINE = ReplacingMergeTree(applied) ORDER BY number`

// migrate applies what has not been applied yet, then sets the retention.
func (s *Sink) migrate(ctx context.Context, conn driver.Conn) error {
	all, err := migrations()
	if err != nil {
		return err
	}
	var there uint64
	if err := conn.QueryRow(ctx, "SELECT count() FROM system.tables WHERE database = ? AND name = 'schema_migrations'", s.Database).Scan(&there); err != nil {
		return fmt.Errorf("look for schema_migrations: %w", err)
	}
	if there == 0 {
		if err := s.define(ctx, conn, migrationsTable); err != nil {
			return fmt.Errorf("make schema_migrations: %w", err)
		}
	}
	applied, err := appliedMigrations(ctx, conn)
	if err != nil {
		return err
	}
	for _, m := range all {
		if sum, ok := applied[m.number]; ok {
			if sum != m.checksum {
				return fmt.Errorf("%w: migration %s was applied in another form: a released migration must not be edited; use the hearthline it came from, or another database", errSchema, m.name)
			}
			continue
		}
		for _, sql := range m.statements {
			if err := s.define(ctx, conn, sql); err != nil {
				return fmt.Errorf("migration %s: %s: %w", m.name, firstLine(sql), err)
			}
		}
		if err := conn.Exec(ctx, "INSERT INTO schema_migrations (number, name, checksum) VALUES (?, ?, ?)", m.number, m.name, m.checksum); err != nil {
			return fmt.Errorf("migration %s: note that it was applied: %w", m.name, err)
		}
		s.Logger.Info("clickhouse: migration applied", "name", m.name, "database", s.Database)
	}
	if n := len(applied); n > len(all) {
		s.Logger.Warn("clickhouse: the database was made by a newer hearthline", "migrations", n, "known", len(all))
	}
	if err := s.missing(ctx, conn); err != nil {
		return err
	}
	for _, table := range []string{tableReadings, tableLate, tableFeatures, tableScores, tableDead} {
		if err := s.retain(ctx, conn, table, known[table]); err != nil {
			return err
		}
	}
	return nil
}

// missing says which views were dropped since the migrations made them: no insert fails of that, but what they fill
// stands still.
func (s *Sink) missing(ctx context.Context, conn driver.Conn) error {
	rows, err := conn.Query(ctx, "SELECT name FROM system.tables WHERE database = ?", s.Database)
	if err != nil {
		return fmt.Errorf("tables of %s: %w", s.Database, err)
	}
	defer rows.Close()
	there := make(map[string]bool)
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return fmt.Errorf("tables of %s: %w", s.Database, err)
		}
		there[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(reserved)) {
		if !there[name] {
			s.Logger.Warn("clickhouse: a table or view is missing, though the migrations made it: what it held or filled stands still; "+
				"restore it, or drop schema_migrations and restart to have it made again", "name", name, "database", s.Database)
		}
	}
	return rows.Err()
}

func appliedMigrations(ctx context.Context, conn driver.Conn) (map[uint32]string, error) {
	rows, err := conn.Query(ctx, "SELECT number, checksum FROM schema_migrations FINAL")
	if err != nil {
		return nil, fmt.Errorf("read schema_migrations: %w", err)
	}
	defer rows.Close()
	applied := make(map[uint32]string)
	for rows.Next() {
		var number uint32
		var checksum string
		if err := rows.Scan(&number, &checksum); err != nil {
			return nil, fmt.Errorf("read schema_migrations: %w", err)
		}
		applied[number] = checksum
	}
	return applied, rows.Err()
}

// retain makes a table's TTL what RetentionDays says, and touches nothing when it is that already: a change makes the
// server go through all rows.
func (s *Sink) retain(ctx context.Context, conn driver.Conn, table string, columns []column) error {
	at := ttlColumn(table, columns)
	if at == "" {
		return nil
	}
	var engine string
	err := conn.QueryRow(ctx, "SELECT engine_full FROM system.tables WHERE database = ? AND name = ?", s.Database, table).Scan(&engine)
	if err != nil {
		return fmt.Errorf("retention of %s: %w", table, err)
	}
	ttl := s.ttl(at)
	var change string
	switch has := strings.Contains(engine, " TTL "); {
	case s.RetentionDays == 0 && has:
		change = "REMOVE TTL"
	case s.RetentionDays > 0 && !strings.Contains(engine, ttl):
		change = "MODIFY TTL " + ttl
	default:
		return nil
	}
	if s.Keeper != "" {
		opt, err := s.options()
		if err != nil {
			return err
		}
		opt.Auth.Username, opt.Auth.Password = s.Keeper, s.KeeperPassword
		if conn, err = clickhouse.Open(&opt); err != nil {
			return fmt.Errorf("retention of %s: %w", table, err)
		}
		defer conn.Close()
	}
	if err := s.define(ctx, conn, "ALTER TABLE "+quote(table)+" "+change); err != nil {
		return fmt.Errorf("retention of %s: %w", table, err)
	}
	s.Logger.Info("clickhouse: retention set", "table", table, "days", s.RetentionDays)
	return nil
}

// ttlColumn is the time by which rows of a table go, "" if it has none.
func ttlColumn(table string, columns []column) string {
	at := ""
	for _, c := range columns {
		if !strings.HasPrefix(c.server, "DateTime64(") {
			continue // nor can one go by a time that may be null
		}
		if c.name == flow.ColTime || c.name == flow.ColReceived && at == "" {
			at = c.name
		}
	}
	if table == tableDead {
		at = flow.ColReceived // a refused row's own time may be any year
	}
	return at
}

func (s *Sink) ttl(column string) string {
	return fmt.Sprintf("toDateTime(%s) + toIntervalDay(%d)", column, s.RetentionDays)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
