package clickhouse

import (
	"context"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// Drop removes the sink's database with all tables in it. The sink need not be open. What is not there is no error.
func (s *Sink) Drop(ctx context.Context) error {
	if err := s.checkSettings(); err != nil {
		return err
	}
	opt, err := s.options()
	if err != nil {
		return err
	}
	opt.Auth.Database = ""
	conn, err := clickhouse.Open(&opt)
	if err != nil {
		return fmt.Errorf("clickhouse at %s: %w", s.Address, err)
	}
	defer conn.Close()
	if err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+quote(s.Database)+" SYNC"); err != nil {
		return fmt.Errorf("clickhouse at %s: drop database %s: %w%s", s.Address, s.Database, err, hint(err))
	}
	return nil
}
