package clickhouse

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// The embedded engine's writer has the rights that docs/operations.md grants the sink on a server of one's own: with them
// it does all that a sink ever does, but for the retention, which another user sets.
func TestRightsOfAWriter(t *testing.T) {
	for _, dropped := range []bool{false, true} {
		s := New()
		s.Address, s.Database = engine.ends.TCP, engine.ends.Database
		s.User, s.Password = engine.ends.Writer.Name, engine.ends.Writer.Password
		if !dropped {
			drop(t, s.Database)
		}
		s.RetentionDays = map[bool]int{false: 3650, true: 0}[dropped]
		if err := s.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "GRANT ALTER TTL ON "+s.Database+".readings") {
			t.Errorf("retention set by the writer: error %v; want one that says what it takes", err)
		}
		s = New()
		s.Address, s.Database = engine.ends.TCP, engine.ends.Database
		s.User, s.Password = engine.ends.Writer.Name, engine.ends.Writer.Password
		s.RetentionDays = map[bool]int{false: 3650, true: 0}[dropped]
		s.Keeper, s.KeeperPassword = engine.ends.Admin.Name, engine.ends.Admin.Password
		open(t, s)
		mem := checkedMem(t)
		first := arrow.NewSchema([]arrow.Field{at("time"), key("home")}, nil)
		write(t, s, "novel", 0, fill(t, mem, first, 1, 50))
		write(t, s, "novel", 10, fill(t, mem, arrow.NewSchema(append(first.Fields(), floatN("draught")), nil), 2, 50))
		write(t, s, "readings", 0, readings(t, mem, 1, 100, time.Now().Truncate(24*time.Hour)))
		if counts, err := s.RowCounts(t.Context()); err != nil || counts["readings"] != 100 || counts["novel"] != 100 {
			t.Errorf("counts %v, %v", counts, err)
		}
		ttl := scalar(t, s, "SELECT extract(engine_full, 'TTL (.*?) SETTINGS') FROM system.tables WHERE database = currentDatabase() AND name = 'novel'")
		if s.RetentionDays > 0 && ttl != "toDateTime(time) + toIntervalDay(3650)" {
			t.Errorf("a table that the writer makes has the TTL %q", ttl)
		}
		for _, e := range Examples() {
			if _, err := s.Query(t.Context(), 10, e.SQL); err != nil {
				t.Errorf("example %s: %v", e.Name, err)
			}
		}
		s.Close()
	}
	drop(t, engine.ends.Database)
}

func drop(t *testing.T, database string) {
	t.Helper()
	admin := newSink(t)
	admin.Database = "default"
	opt, err := admin.options()
	if err != nil {
		t.Fatal(err)
	}
	if admin.queries, err = clickhouse.Open(&opt); err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.queries.Exec(t.Context(), "DROP DATABASE IF EXISTS "+quote(database)); err != nil {
		t.Fatal(err)
	}
}

// Who makes tables and who fills them may be two users: filling takes INSERT and SELECT. What a right is missing for is
// said with the GRANT that gives it, the rows wait, and go through once it is given.
func TestRightsOfWhoOnlyFills(t *testing.T) {
	own := newTestEngine(t.TempDir())
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { own.stop() }()
	made := New()
	made.Address, made.User, made.Password = own.ends.TCP, own.ends.Writer.Name, own.ends.Writer.Password
	open(t, made)
	defer made.Close()
	// The engine has no SQL for users: they stand in a file, which it reads when it is started again.
	file := filepath.Join(own.dir, "engine", "users.xml")
	users, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	grant := func(rights string) {
		t.Helper()
		user := "<filler><password>fill</password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>" +
			"<grants><query>GRANT " + rights + " ON hearthline.*</query></grants></filler></users>"
		if err := os.WriteFile(file, []byte(strings.Replace(string(users), "</users>", user, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		own.kill(t)
	}
	s := New()
	s.Address, s.User, s.Password = own.ends.TCP, "filler", "fill"
	rec := readings(t, checkedMem(t), 1, 100, testDay)
	r := rangeOf("readings", 0, 10, 19)

	grant("SELECT")
	open(t, s)
	defer s.Close()
	refuse(t, s, r, rec, "GRANT INSERT", "ON hearthline.readings")
	grant("SELECT, INSERT")
	until(t, s, r, rec)
	until(t, s, r, rec)
	if got := scalar(t, s, "SELECT (count(), (SELECT sum(rows) FROM readings_1m) = countIf(isFinite(value))) FROM readings"); got != "(100,1)" {
		t.Errorf("rows, and whether the minutes have them: %s", got)
	}
	err = s.Write(t.Context(), rangeOf("novel", 0, 0, 9), []arrow.Record{rec})
	if err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "GRANT CREATE TABLE ON hearthline.novel") {
		t.Errorf("a table that it may not make: %v", err)
	}
}
