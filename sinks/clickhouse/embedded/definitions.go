package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Version 26.7.3 of the library takes no notice of a write that fails because the disk is full. A table or a database that
// is made or changed then gets an empty definition (`data/metadata/database.sql`, `data/metadata/database/table.sql`) that
// takes the place of the good one, and the engine says that it was done: write = ENOSPC, fdatasync, rename (seen with
// strace). It goes on with what it has in memory, but would not start any more.
//
// So a second name, a hard link, is given to each good definition, which takes no room: the engine never writes into one that has
// its name. An empty definition is replaced by it, and rewritten by the engine from what it has in memory when there is room.
// What was not to be had before has an empty definition only: its table holds no row that a sink put there, since sinks look
// at the definition first. Where there are no rows without a definition it is taken away, for which the engine is started
// anew, and is made again by whoever needs it (docs/decisions/0043).
const keptDir = "kept_definitions"

const (
	// keepStep is how soon a new definition is kept, and an empty one found.
	keepStep = 200 * time.Millisecond
	// lostStep is how often at most an engine is started anew because of empty definitions.
	lostStep = time.Minute
	// renewWait is how long the engine is asked to write a definition again.
	renewWait = time.Minute
)

const definitionEnding = ".sql"

// formatVersion is what the engine writes into the file of that name in a table's directory, when it makes one.
const formatVersion = "1"

// blockSize is what a disk that becomes full has taken a multiple of.
const blockSize = 512

// definitions are those of one data directory.
type definitions struct {
	data   string // the engine's directory, with metadata and store
	logger *slog.Logger

	mu   sync.Mutex
	told bool                 // that no second name can be given
	old  map[string]time.Time // put back: the engine has newer ones in memory, and has been asked for them since
}

func newDefinitions(s *Server) *definitions {
	return &definitions{data: filepath.Join(s.Dir, dataDir), logger: s.Logger, old: map[string]time.Time{}}
}

// watch keeps good definitions and puts them back, until ctx ends. While there is an empty one that has to be taken away, and
// there is room for another, whoever receives from lost is told.
func (d *definitions) watch(ctx context.Context, ends Endpoints, lost chan<- struct{}) {
	tick := time.NewTicker(keepStep)
	defer tick.Stop()
	var last time.Time
	for {
		empty := d.keep()
		if diskFree(d.data) > keepFree(d.data) {
			renewed := d.renew(ctx, ends)
			if renewed && time.Since(last) > lostStep && slices.ContainsFunc(empty, func(name string) bool { return d.checkOrphans(name) == nil }) {
				select {
				case lost <- struct{}{}:
					last = time.Now()
				default: // the engine is being started, or stopped
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *definitions) path(name string) string { return filepath.Join(d.data, "metadata", name) }
func (d *definitions) kept(name string) string { return filepath.Join(d.data, keptDir, name) }

// definitionsIn are the names of definitions in dir: `database.sql`, `database/table.sql`. Those of tables come first.
func definitionsIn(dir string) (names []string, err error) {
	over, err := os.ReadDir(dir)
	if err != nil {
		return nil, unlessGone(err)
	}
	var databases []string
	for _, e := range over {
		if strings.HasSuffix(e.Name(), definitionEnding) {
			databases = append(databases, e.Name())
			continue
		}
		// A database's directory is a symbolic link.
		if info, err := os.Stat(filepath.Join(dir, e.Name())); err != nil || !info.IsDir() {
			continue
		}
		in, err := os.ReadDir(filepath.Join(dir, e.Name()))
		if err := unlessGone(err); err != nil {
			return nil, err
		}
		for _, table := range in {
			if strings.HasSuffix(table.Name(), definitionEnding) {
				names = append(names, filepath.Join(e.Name(), table.Name()))
			}
		}
	}
	return append(names, databases...), nil
}

func isDatabase(name string) bool { return filepath.Dir(name) == "." }

// keep gives each good definition its second name, takes that from what was dropped, and puts good ones in the place of
// empty ones. It returns the empty ones of which no good one was kept.
func (d *definitions) keep() (lost []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names, err := definitionsIn(d.path(""))
	if err == nil {
		for _, name := range names {
			kept, e := d.keepOne(name)
			if !kept {
				lost = append(lost, name)
			}
			err = errors.Join(err, e)
		}
		err = errors.Join(err, d.forget(names))
	}
	if err != nil && !d.told {
		d.told = true
		d.logger.Warn("clickhouse: definitions of tables cannot be kept; should one be changed while the disk is full, a person has to write it again", "error", err)
	}
	return lost
}

// keepOne does so for one. It is kept also where it was dropped meanwhile.
func (d *definitions) keepOne(name string) (kept bool, err error) {
	path, second := d.path(name), d.kept(name)
	now, err := os.Stat(path)
	if err != nil {
		return true, unlessGone(err)
	}
	if before, err := os.Stat(second); err == nil && os.SameFile(now, before) {
		return true, nil
	}
	good, err := whole(path)
	switch {
	case err != nil:
		return true, unlessGone(err)
	case good:
		return true, unlessGone(d.second(path, second))
	case d.usable(name):
		if err = d.putBack(second, path); err == nil {
			d.old[name] = time.Now()
			d.logger.Error("clickhouse: the engine emptied a definition, as it does when its disk is full; the one of before was put back", "definition", name)
		}
		err = unlessGone(err)
		return err == nil, err
	case isDatabase(name) && d.databaseUUID(name) != "":
		err = d.writeDatabase(name)
		return err == nil, err
	}
	return false, nil
}

// whole says whether a definition was written to its end, where the engine puts a line break.
func whole(path string) (bool, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- a file of the engine's own data
	return len(b)%blockSize != 0 || len(b) > 0 && b[len(b)-1] == '\n', err
}

func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// second makes name the second name of a good definition.
func (d *definitions) second(path, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	tmp, err := d.link(path)
	if err != nil {
		return err
	}
	// The engine may have put another one there since it was looked at.
	if good, err := whole(tmp); err != nil || !good {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, name)
}

// putBack puts a kept definition in the place of an empty one, which must be there still.
func (d *definitions) putBack(kept, path string) error {
	tmp, err := d.link(kept)
	if err != nil {
		return err
	}
	err = exchange(tmp, path)
	if err == nil {
		// The engine may have put a good one there since it was looked at.
		if good, e := whole(tmp); e == nil && good {
			err = exchange(tmp, path)
		}
	}
	return errors.Join(err, unlessGone(os.Remove(tmp)))
}

// link gives a file one more name, apart from those of the engine: it would not start with one among them that it does not know.
func (d *definitions) link(path string) (string, error) {
	tmp := d.kept("new")
	if err := unlessGone(os.Remove(tmp)); err != nil {
		return "", err
	}
	return tmp, os.Link(path, tmp)
}

// forget takes away what was kept of definitions that are not there any more.
func (d *definitions) forget(there []string) error {
	names, err := definitionsIn(d.kept(""))
	for _, name := range names {
		if slices.Contains(there, name) {
			continue
		}
		delete(d.old, name)
		err = errors.Join(err, unlessGone(os.Remove(d.kept(name))))
		if !isDatabase(name) {
			_ = os.Remove(filepath.Dir(d.kept(name))) // if it is empty
		}
	}
	return err
}

// definedUUID is how a definition names what it is of, and the directory in store that holds it.
var definedUUID = regexp.MustCompile(`^ATTACH [A-Z ]+? _ UUID '([0-9a-f-]{36})'`)

func uuidOf(path string) string {
	b, err := os.ReadFile(path) // #nosec G304 -- a file of the engine's own data
	if err != nil {
		return ""
	}
	if m := definedUUID.FindSubmatch(b); m != nil {
		return string(m[1])
	}
	return ""
}

// usable says whether what was kept of name is of what has that name now: an empty definition does not say of what it is.
// Something else with that name was made after the one of before was dropped, or given another name.
func (d *definitions) usable(name string) bool {
	uuid := uuidOf(d.kept(name))
	if uuid == "" {
		return false
	}
	if isDatabase(name) {
		return d.databaseUUID(name) == uuid
	}
	if _, err := os.Stat(filepath.Join(d.data, "store", uuid[:3], uuid)); err != nil {
		return false
	}
	defined, err := d.defined()
	return err == nil && !defined[uuid]
}

// defined are the UUIDs of all that has a definition, and of what was dropped and is being cleared away.
func (d *definitions) defined() (map[string]bool, error) {
	names, err := definitionsIn(d.path(""))
	if err != nil {
		return nil, err
	}
	all := map[string]bool{}
	for _, name := range names {
		all[uuidOf(d.path(name))] = true
		if isDatabase(name) {
			all[d.databaseUUID(name)] = true
		}
	}
	dropped, err := definitionsIn(filepath.Join(d.data, "metadata_dropped"))
	for _, name := range dropped { // database.table.UUID.sql
		all[strings.TrimPrefix(filepath.Ext(strings.TrimSuffix(name, definitionEnding)), ".")] = true
	}
	return all, err
}

// databaseUUID is what the link to the directory of a database's tables ends in.
func (d *definitions) databaseUUID(name string) string {
	dir, err := os.Readlink(strings.TrimSuffix(d.path(name), definitionEnding))
	if err != nil {
		return ""
	}
	return filepath.Base(dir)
}

// writeDatabase writes the definition of a database again, which says no more than its UUID.
func (d *definitions) writeDatabase(name string) error {
	tmp := d.kept("new")
	if err := os.MkdirAll(filepath.Dir(tmp), 0o700); err != nil {
		return err
	}
	definition := "ATTACH DATABASE _ UUID '" + d.databaseUUID(name) + "'\nENGINE = Atomic\n"
	if err := errors.Join(unlessGone(os.Remove(tmp)), os.WriteFile(tmp, []byte(definition), 0o600)); err != nil {
		return err
	}
	if err := os.Rename(tmp, d.path(name)); err != nil {
		return err
	}
	d.logger.Error("clickhouse: the definition of a database was empty, as after it was made on a full disk; it was written again", "definition", name)
	return nil
}

// checkOrphans says why an empty definition may not be taken away: there are rows that may be of it.
func (d *definitions) checkOrphans(name string) error {
	if isDatabase(name) && d.databaseUUID(name) != "" {
		return errors.New("the definition of a database is empty, and cannot be written again")
	}
	defined, err := d.defined()
	if err != nil {
		return err
	}
	tables, err := fs.Glob(os.DirFS(d.data), "store/*/*")
	for _, table := range tables {
		if defined[path.Base(table)] {
			continue
		}
		if rows, e := partsIn(filepath.Join(d.data, table)); e != nil || len(rows) > 0 {
			return errors.Join(e, fmt.Errorf("its definition is empty, and %s holds rows without one: write the definition again from another server or a backup, with that UUID, or move the directory away", table))
		}
	}
	return err
}

// mend has an engine start whose disk was full. No engine may run.
func (d *definitions) mend() error {
	empty := d.keep()
	d.mu.Lock()
	clear(d.old) // what the engine had in memory is gone
	d.mu.Unlock()
	for _, name := range empty {
		if err := d.checkOrphans(name); err != nil {
			return fmt.Errorf("clickhouse: %s: %w", d.path(name), err)
		}
		d.logger.Warn("clickhouse: what was made while the disk was full has an empty definition, which is taken away", "definition", name)
		if err := unlessGone(os.Remove(d.path(name))); err != nil {
			return fmt.Errorf("clickhouse: mend definitions: %w", err)
		}
	}
	versions, err := fs.Glob(os.DirFS(d.data), "store/*/*/format_version.txt")
	for _, version := range versions {
		path := filepath.Join(d.data, version)
		if info, e := os.Stat(path); e == nil && info.Size() == 0 {
			err = errors.Join(err, os.WriteFile(path, []byte(formatVersion), 0o600)) // the file is there, and keeps its mode
		}
	}
	if err != nil { // the engine says what it cannot do without
		d.logger.Warn("clickhouse: the version of a table's format cannot be written", "error", err)
	}
	return nil
}

// renew has the engine write again the definitions that were put back: it has newer ones in memory. It returns whether none
// is left.
func (d *definitions) renew(ctx context.Context, ends Endpoints) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, since := range d.old {
		err := renewOne(ctx, ends, name)
		if err != nil && time.Since(since) < renewWait {
			return false // an engine that does not answer is not asked for each
		}
		delete(d.old, name)
		if err != nil {
			d.logger.Warn("clickhouse: a definition that was put back could not be renewed; what was changed is gone after the next start", "definition", name, "error", err)
			continue
		}
		d.logger.Info("clickhouse: the definition was written again", "definition", name)
	}
	return len(d.old) == 0
}

// renewOne has the engine change nothing in a table, for which it writes its definition.
func renewOne(ctx context.Context, ends Endpoints, name string) error {
	if isDatabase(name) {
		return nil
	}
	database, err := url.PathUnescape(filepath.Dir(name))
	if err != nil {
		return err
	}
	table, err := url.PathUnescape(strings.TrimSuffix(filepath.Base(name), definitionEnding))
	if err != nil {
		return err
	}
	text := strings.NewReplacer("\\", "\\\\", "'", "\\'", "`", "\\`")
	comment, err := query(ctx, ends, ends.Admin, "SELECT concat('=', comment) FROM system.tables WHERE database = '"+text.Replace(database)+"' AND name = '"+text.Replace(table)+"' AND engine LIKE '%MergeTree' FORMAT RawBLOB")
	if err != nil || comment == "" {
		return err // a view, which has no column of its own
	}
	_, err = query(ctx, ends, ends.Admin, "ALTER TABLE `"+text.Replace(database)+"`.`"+text.Replace(table)+"` MODIFY COMMENT '"+text.Replace(comment[1:])+"'")
	return err
}
