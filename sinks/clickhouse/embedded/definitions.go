package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
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
// So a second name, a hard link, is given to each good definition, which takes no room. An empty one is replaced by it, and the
// engine, which never writes into a definition that has its name, goes on from there. What was not to be had before has an
// empty definition only: its table holds no row that a sink put there, since sinks look at the definition first. It is taken
// away, for which the engine is started anew, and is made again by whoever needs it.
const keptDir = "kept_definitions"

// keepStep is how soon a new definition is kept, and an empty one found.
const keepStep = 200 * time.Millisecond

const definitionEnding = ".sql"

// formatVersion is what the engine writes into the file of that name in a table's directory, when it makes one.
const formatVersion = "1"

// definitions are those of one data directory.
type definitions struct {
	data   string // the engine's directory, with metadata and store
	logger *slog.Logger
	mu     sync.Mutex
	told   bool // that no second name can be given
}

func newDefinitions(s *Server) *definitions {
	return &definitions{data: filepath.Join(s.Dir, dataDir), logger: s.Logger}
}

// watch keeps good definitions and puts them back, until ctx ends. While there is an empty one that cannot be put back, and there is
// room for another, whoever receives from lost is told.
func (d *definitions) watch(ctx context.Context, lost chan<- struct{}) {
	tick := time.NewTicker(keepStep)
	defer tick.Stop()
	for {
		if empty := d.keep(); len(empty) > 0 && diskFree(d.data) > keepFree(d.data) {
			select {
			case lost <- struct{}{}:
			default: // the engine is being started, or stopped
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

// list are the names of definitions in dir: `database.sql`, `database/table.sql`.
func list(dir string) ([]string, error) {
	var names []string
	for _, pattern := range []string{"*" + definitionEnding, filepath.Join("*", "*"+definitionEnding)} {
		found, err := filepath.Glob(filepath.Join(dir, pattern)) // through a database's directory, a symbolic link
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			name, err := filepath.Rel(dir, path)
			if err != nil {
				return nil, err
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// keep gives each good definition its second name, takes that from what was dropped, and puts good ones in the place of
// empty ones. It returns the empty ones of which no good one was kept.
func (d *definitions) keep() (lost []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names, err := list(d.path(""))
	for _, name := range names {
		kept, e := d.keepOne(name)
		if !kept {
			lost = append(lost, name)
		}
		err = errors.Join(err, e)
	}
	if err == nil {
		err = d.forget(names)
	}
	if err != nil && !d.told {
		d.told = true
		d.logger.Warn("clickhouse: definitions of tables cannot be kept; should one be changed while the disk is full, its rows may be lost", "error", err)
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
	before, err := os.Stat(second)
	if err == nil && os.SameFile(now, before) {
		return true, nil
	}
	if good, e := whole(path); e != nil || good {
		if e == nil {
			e = d.link(path, second)
		}
		return true, unlessGone(e)
	}
	if err != nil {
		return false, unlessGone(err)
	}
	d.logger.Error("clickhouse: the engine emptied a definition, as it does when its disk is full; the one of before was put back", "definition", name)
	return true, d.link(second, path)
}

// pageSize is what a disk that becomes full has taken a multiple of.
const pageSize = 4096

// whole says whether a definition was written to its end, where the engine puts a line break.
func whole(path string) (bool, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- a file of the engine's own data
	return len(b)%pageSize != 0 || len(b) > 0 && b[len(b)-1] == '\n', err
}

func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// forget takes away what was kept of definitions that are not there any more.
func (d *definitions) forget(there []string) error {
	names, err := list(d.kept(""))
	for _, name := range names {
		if !slices.Contains(there, name) {
			err = errors.Join(err, unlessGone(os.Remove(d.kept(name))))
		}
	}
	return err
}

// link makes name another name of the file path, in the place of the file that had it.
func (d *definitions) link(path, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	tmp := d.kept("new") // not beside the engine's own: it would not start with a file there that it does not know
	if err := unlessGone(os.Remove(tmp)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(tmp), 0o700); err != nil {
		return err
	}
	if err := os.Link(path, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// mend has an engine start whose disk was full. No engine may run.
func (d *definitions) mend() error {
	for _, name := range d.keep() {
		if err := d.takeAway(name); err != nil {
			return fmt.Errorf("clickhouse: mend %s: %w", d.path(name), err)
		}
	}
	versions, err := filepath.Glob(filepath.Join(d.data, "store", "*", "*", "format_version.txt"))
	for _, path := range versions {
		if info, e := os.Stat(path); e == nil && info.Size() == 0 {
			err = errors.Join(err, os.WriteFile(path, []byte(formatVersion), 0o600)) // the file is there, and keeps its mode
		}
	}
	if err != nil {
		return fmt.Errorf("clickhouse: mend definitions: %w", err)
	}
	return nil
}

// takeAway removes an empty definition. That of a database with tables is for a person: they would be lost with it.
func (d *definitions) takeAway(name string) error {
	if filepath.Dir(name) == "." {
		folder := strings.TrimSuffix(d.path(name), definitionEnding)
		if tables, err := filepath.Glob(filepath.Join(folder, "*"+definitionEnding)); err != nil || len(tables) > 0 {
			return errors.Join(err, fmt.Errorf("the definition of a database with tables is empty, and none was kept: write \"ATTACH DATABASE _ UUID '...' ENGINE = Atomic\" into it, with the UUID at the end of where %s leads to", folder))
		}
	}
	d.logger.Warn("clickhouse: what was made while the disk was full has an empty definition, which is taken away", "definition", name)
	return os.Remove(d.path(name))
}
