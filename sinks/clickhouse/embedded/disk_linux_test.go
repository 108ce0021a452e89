package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hearthline/blobs/disktest"
)

// TestFullDisk fills the disk under the engine again and again while rows are inserted and parts are merged. What it said
// it has, it has afterwards, and every part of it can be read.
func TestFullDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 s")
	}
	// In memory: there, unlike on ext4, the engine's inserts and merges end in empty files if they find the disk full.
	disk := disktest.NewMemory(t, t.TempDir(), 300)
	disk.Gently = 90 << 20 // else what the engine leaves free is gone while a merge that it began before still writes
	ends, stop := start(t, testServer(t, disk.Dir))
	must := func(query string) string {
		t.Helper()
		code, body := ask(t, ends.HTTP, ends.Admin, query)
		if code != 200 {
			t.Fatalf("%s: %s", query, body)
		}
		return body
	}
	must("CREATE DATABASE d")
	must("CREATE TABLE d.t (time DateTime64(6), k String, a UInt64, b Float64, c Float64, d Float64) ENGINE = MergeTree ORDER BY (k, time)")
	disk.FillBut(48 << 20)
	if code, body := ask(t, ends.HTTP, ends.Admin, "INSERT INTO d.t SELECT now64(6), 'x', 0, 0, 0, 0"); code == 200 || !strings.Contains(body, "Code: 243.") {
		t.Errorf("an insert with 48 MiB left: %d %s; want NOT_ENOUGH_SPACE (243)", code, body)
	}
	disk.Free()
	enough := disk.FillAgain(400*time.Millisecond, 700*time.Millisecond)
	rows, refused := 0, map[string]int{}
	for begun := time.Now(); time.Since(begun) < 20*time.Second; {
		code, body := ask(t, ends.HTTP, ends.Admin, fmt.Sprintf("INSERT INTO d.t SELECT now64(6), toString(number), %d + number, rand(), rand(), rand() FROM numbers(50)", rows))
		if code == 200 {
			rows += 50
			continue
		}
		why, _, _ := strings.Cut(body, "DB::")
		refused[why]++
	}
	enough()
	t.Logf("%d rows taken, refused: %v", rows, refused)
	if got, want := must("SELECT count(), uniqExact(a), sum(a) FROM d.t"), fmt.Sprintf("%d\t%d\t%d", rows, rows, rows*(rows-1)/2); got != want {
		t.Errorf("%s rows, different ones, and their sum; want %s", got, want)
	}
	if broken := must("SELECT count() FROM system.detached_parts"); broken != "0" {
		t.Errorf("%s parts were found broken", broken)
	}
	if !slices.Equal(slices.Collect(maps.Keys(refused)), []string{"Code: 243. "}) {
		t.Errorf("refused with %v; want only NOT_ENOUGH_SPACE (243), which the sink waits out", refused)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A table is made, and one with rows is changed, on a disk without room for either. Neither rows nor the engine are lost: with
// room, and after a restart, the rows are there, and what was not made can be made.
func TestDefinitionsOutliveAFullDisk(t *testing.T) {
	disk := disktest.NewMemory(t, t.TempDir(), 300)
	ends, stop := start(t, testServer(t, disk.Dir))
	query := func(sql string) (string, bool) {
		code, body := ask(t, ends.HTTP, ends.Admin, sql)
		return body, code == 200
	}
	must := func(sql string) string {
		t.Helper()
		body, ok := query(sql)
		if !ok {
			t.Fatalf("%s: %s", sql, body)
		}
		return body
	}
	const makeTable = "CREATE TABLE IF NOT EXISTS d.made (a UInt64) ENGINE = MergeTree ORDER BY a"
	const addColumn = "ALTER TABLE d.changed ADD COLUMN IF NOT EXISTS b Nullable(UInt64)"
	must("CREATE DATABASE d")
	must("CREATE TABLE d.changed (a UInt64) ENGINE = MergeTree ORDER BY a")
	must("INSERT INTO d.changed VALUES (1)")
	definition := filepath.Join(disk.Dir, dataDir, "metadata", "d", "changed.sql")
	within(t, time.Minute, "the definition is kept", func() bool {
		_, err := os.Stat(filepath.Join(disk.Dir, dataDir, keptDir, "d", "changed.sql"))
		return err == nil
	})
	before, err := os.ReadFile(definition)
	if err != nil {
		t.Fatal(err)
	}
	disk.Fill()
	// A later engine may refuse both.
	_, made := query(makeTable)
	_, changed := query(addColumn)
	t.Logf("without any room: made %v, changed %v", made, changed)
	within(t, time.Minute, "no definition of what was there is empty", func() bool {
		b, err := os.ReadFile(definition)
		return err == nil && len(b) > 0
	})
	disk.Free()
	if changed {
		within(t, time.Minute, "the definition is that of the table", func() bool {
			b, err := os.ReadFile(definition)
			return err == nil && bytes.Contains(b, []byte("`b` Nullable(UInt64)"))
		})
	}
	within(t, time.Minute, "no definition is empty", func() bool {
		info, err := os.Stat(filepath.Join(disk.Dir, dataDir, "metadata", "d", "made.sql"))
		return errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() > 0
	})
	within(t, time.Minute, "the engine answers", func() bool { return answers(t.Context(), ends) })
	must(makeTable)
	must("INSERT INTO d.made VALUES (2)")
	if !changed {
		must(addColumn)
	}
	must("INSERT INTO d.changed VALUES (3, 4)")
	for range 2 {
		if got := must("SELECT a, b FROM d.changed ORDER BY a FORMAT CSV") + ";" + must("SELECT a FROM d.made"); got != "1,\\N\n3,4;2" {
			t.Errorf("rows %q", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		ends, stop = start(t, testServer(t, disk.Dir))
	}
	must("DROP TABLE d.made SYNC")
	within(t, time.Minute, "what was dropped is not kept", func() bool {
		_, err := os.Stat(filepath.Join(disk.Dir, dataDir, keptDir, "d", "made.sql"))
		return errors.Is(err, fs.ErrNotExist)
	})
	must(makeTable)
	if got := must("SELECT count() FROM d.made"); got != "0" {
		t.Errorf("%s rows in a table that was made again", got)
	}

	// The definition of before was put back after the column had been filled.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(definition), os.WriteFile(definition, before, 0o640)); err != nil {
		t.Fatal(err)
	}
	ends, _ = start(t, testServer(t, disk.Dir))
	if got := must("SELECT * FROM d.changed ORDER BY a FORMAT CSV"); got != "1\n3" {
		t.Errorf("by the definition of before: %q", got)
	}
	must(addColumn)
	if got := must("SELECT * FROM d.changed ORDER BY a FORMAT CSV"); got != "1,\\N\n3,4" {
		t.Errorf("with the column added again: %q", got)
	}
}

// An engine that was killed with a full disk starts again: what was changed is as before, what was made is not there.
func TestEngineStartsAfterAFullDisk(t *testing.T) {
	dir := t.TempDir()
	ends, stop := start(t, testServer(t, dir))
	for _, sql := range []string{"CREATE DATABASE d", "CREATE TABLE d.t (a UInt64) ENGINE = MergeTree ORDER BY a", "INSERT INTO d.t VALUES (1)", "CREATE TABLE d.u (a UInt64) ENGINE = MergeTree ORDER BY a"} {
		if code, body := ask(t, ends.HTTP, ends.Admin, sql); code != 200 {
			t.Fatalf("%s: %s", sql, body)
		}
	}
	kept := filepath.Join(dir, dataDir, keptDir, "d")
	within(t, time.Minute, "the definitions are kept", func() bool {
		_, err := os.Stat(filepath.Join(kept, "u.sql"))
		_, err2 := os.Stat(filepath.Join(kept, "t.sql"))
		return err == nil && err2 == nil
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// As the engine leaves them.
	metadata := filepath.Join(dir, dataDir, "metadata")
	if err := os.Remove(filepath.Join(kept, "u.sql")); err != nil {
		t.Fatal(err)
	}
	for name, left := range map[string][]byte{"d/t.sql": nil, "d/u.sql": nil, "d.sql": bytes.Repeat([]byte("x"), blockSize), "e.sql": nil} {
		if err := errors.Join(unlessGone(os.Remove(filepath.Join(metadata, name))), os.WriteFile(filepath.Join(metadata, name), left, 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	versions, err := filepath.Glob(filepath.Join(dir, dataDir, "store", "*", "*", "format_version.txt"))
	if err != nil || len(versions) == 0 {
		t.Fatal(versions, err)
	}
	for _, path := range versions {
		if b, err := os.ReadFile(path); err != nil || string(b) != formatVersion {
			t.Fatalf("%s: %q %v; want %q, which is written where it is empty", path, b, err, formatVersion)
		}
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	ends, stop = start(t, testServer(t, dir))
	for sql, want := range map[string]string{
		"SELECT a FROM d.t": "1",
		"SELECT count() FROM system.tables WHERE database = 'd' AND name = 'u'": "0",
		"SELECT count() FROM system.databases WHERE name = 'e'":                 "0",
	} {
		if code, body := ask(t, ends.HTTP, ends.Admin, sql); code != 200 || body != want {
			t.Errorf("%s: %s; want %s", sql, body, want)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	// Nothing was kept. A database's definition is known even so; that of a table with rows is not.
	forget := func(name string) {
		t.Helper()
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, dataDir, keptDir)), os.Truncate(filepath.Join(metadata, name), 0)); err != nil {
			t.Fatal(err)
		}
	}
	forget("d.sql")
	ends, stop = start(t, testServer(t, dir))
	if code, body := ask(t, ends.HTTP, ends.Admin, "SELECT a FROM d.t"); code != 200 || body != "1" {
		t.Errorf("of a database whose definition was not kept: %s", body)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	forget("d/t.sql")
	if err := testServer(t, dir).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "holds rows") {
		t.Errorf("a table with rows and without a definition: %v; want to be told what to do", err)
	}
}

// A definition is put back only for what it is of.
func TestDefinitionIsOfAnotherTable(t *testing.T) {
	const (
		database = "11111111-0000-0000-0000-000000000000"
		dropped  = "22222222-0000-0000-0000-000000000000"
		renamed  = "33333333-0000-0000-0000-000000000000"
		good     = "44444444-0000-0000-0000-000000000000"
		gone     = "55555555-0000-0000-0000-000000000000"
	)
	d := newDefinitions(testServer(t, t.TempDir()))
	text := func(uuid string) []byte { return []byte("ATTACH TABLE _ UUID '" + uuid + "'\n(\n    `a` UInt64\n)\n") }
	in := filepath.Join(d.data, "store", database[:3], database)
	for _, dir := range []string{in, filepath.Join(d.data, "metadata"), filepath.Join(d.data, "metadata_dropped")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../store/"+database[:3]+"/"+database, d.path("d")); err != nil {
		t.Fatal(err)
	}
	for _, uuid := range []string{dropped, renamed, good} {
		if err := os.MkdirAll(filepath.Join(d.data, "store", uuid[:3], uuid), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	put := func(path string, b []byte) {
		t.Helper()
		if err := errors.Join(unlessGone(os.Remove(path)), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put(d.path("d.sql"), []byte("ATTACH DATABASE _ UUID '"+database+"'\nENGINE = Atomic\n"))
	for name, uuid := range map[string]string{"dropped": dropped, "renamed": renamed, "good": good, "gone": gone} {
		put(filepath.Join(in, name+".sql"), text(uuid))
	}
	if lost := d.keep(); d.told || len(lost) > 0 {
		t.Fatal(d.told, lost)
	}
	for _, name := range []string{"dropped", "renamed", "good", "gone"} {
		put(filepath.Join(in, name+".sql"), nil)
	}
	put(filepath.Join(in, "other.sql"), text(renamed))
	put(filepath.Join(d.data, "metadata_dropped", "d.dropped."+dropped+".sql"), text(dropped))
	lost := d.keep()
	slices.Sort(lost)
	if want := []string{"d/dropped.sql", "d/gone.sql", "d/renamed.sql"}; d.told || !slices.Equal(lost, want) {
		t.Errorf("lost %v; want %v", lost, want)
	}
	if b, err := os.ReadFile(filepath.Join(in, "good.sql")); err != nil || !bytes.Equal(b, text(good)) {
		t.Errorf("%q %v", b, err)
	}

	// What is dropped is forgotten.
	if err := errors.Join(os.RemoveAll(in), os.Remove(d.path("d.sql")), os.Remove(d.path("d"))); err != nil {
		t.Fatal(err)
	}
	if lost := d.keep(); d.told || len(lost) > 0 {
		t.Error(d.told, lost)
	}
	if left, err := definitionsIn(d.kept("")); err != nil || len(left) > 0 {
		t.Errorf("kept of what was dropped: %v %v", left, err)
	}
}
