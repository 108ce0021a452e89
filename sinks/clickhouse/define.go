package clickhouse

import (
	"context"
	"errors"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// errFullDisk is why nothing is made or changed now. It passes.
var errFullDisk = errors.New("the server's disk is full, or as full as keep_free_space_bytes lets it be: tables are made and changed when there is room")

// define makes or changes a table or a view. A server that cannot write has been seen to acknowledge that all the same and
// to keep an empty definition (chDB 26.7.3), with which it would not start again; so it is not asked while its disk is full, and
// is asked afterwards what it has.
func (s *Sink) define(ctx context.Context, conn driver.Conn, sql string) error {
	if err := checkRoom(ctx, conn); err != nil {
		return err
	}
	if err := conn.Exec(ctx, sql); err != nil {
		return err
	}
	return s.checkDefinitions(ctx, conn)
}

// checkRoom says whether the disk that definitions are on has room for one.
func checkRoom(ctx context.Context, conn driver.Conn) error {
	var full uint64
	// What keep_free_space_bytes keeps is not free here.
	err := conn.QueryRow(ctx, "SELECT count() FROM system.disks WHERE name = 'default' AND type = 'Local' AND free_space = 0").Scan(&full)
	if code(err) == codeAccessDenied {
		return nil // some servers show disks to few; the definition is looked at all the same
	}
	if err != nil {
		return fmt.Errorf("free space of the server: %w", err)
	}
	if full > 0 {
		return errFullDisk
	}
	return nil
}

// checkDefinitions says which of the database's tables and views have none.
func (s *Sink) checkDefinitions(ctx context.Context, conn driver.Conn) error {
	var names []string
	if err := conn.QueryRow(ctx, "SELECT groupArray(name) FROM system.tables WHERE database = ? AND create_table_query = ''", s.Database).Scan(&names); err != nil {
		return fmt.Errorf("definitions of database %s: %w", s.Database, err)
	}
	if len(names) > 0 {
		return noDefinition(s.Database, names...)
	}
	return nil
}

func noDefinition(database string, names ...string) error {
	return fmt.Errorf("the server has no definition of the tables or views %q in database %s, as when its disk was full while they were made: "+
		"it forgets them when it is started again; an embedded engine mends that by itself, on another server drop them", names, database)
}
