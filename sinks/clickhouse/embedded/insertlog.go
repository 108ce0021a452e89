package embedded

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A table remembers the blocks it was given in its deduplication log: text files of ADD and DROP records, each with the
// part that holds the block. The engine writes the record first, then gives the part its name, and syncs the part alone.
// Dying between the two it would remember rows that it does not have, and refuse them when they come again; after a
// power cut it would have rows that it does not remember, and take them twice (ClickHouse issue 111577, seen with 26.7).
// So the logs are written through to the disk, which makes a record older than its part; and before an engine starts,
// records without a part are taken back.
const insertLogDir = "deduplication_logs"

// Operations of a record.
const (
	opAdd  = "1"
	opDrop = "2"
)

var (
	insertLogFile = regexp.MustCompile(`^deduplication_log_(\d+)\.txt$`)
	// partition_min_max_level, and the mutation where there was one. What is under way or put aside has other names.
	partDir = regexp.MustCompile(`^([^_]+)_(\d+)_(\d+)_\d+(?:_\d+)?$`)
)

// part is the blocks [first, last] of a partition.
type part struct {
	partition   string
	first, last uint64
}

func partOf(name string) (part, bool) {
	m := partDir.FindStringSubmatch(name)
	if m == nil {
		return part{}, false
	}
	first, err1 := strconv.ParseUint(m[2], 10, 64)
	last, err2 := strconv.ParseUint(m[3], 10, 64)
	return part{m[1], first, last}, err1 == nil && err2 == nil
}

// insertLogs are the directories of all tables' logs.
func insertLogs(dir string) ([]string, error) {
	return filepath.Glob(filepath.Join(dir, dataDir, "store", "*", "*", insertLogDir))
}

// mendInsertLogs makes what every table remembers agree with the parts it has. No engine may run on dir.
func (s *Server) mendInsertLogs() error {
	logs, err := insertLogs(s.Dir)
	if err != nil {
		return err
	}
	for _, dir := range logs {
		m, err := mendInsertLog(dir)
		if err != nil {
			return fmt.Errorf("clickhouse: mend %s: %w", dir, err)
		}
		if m != (mended{}) {
			s.Logger.Warn("clickhouse: the engine died within an insert: blocks that it did not get to keep are taken when they come again",
				"log", dir, "blocks", m.forgotten, "torn_bytes", m.torn)
		}
	}
	return nil
}

// mended says what was wrong with a log.
type mended struct {
	forgotten int   // records whose part is not there
	torn      int64 // bytes at the end of a file that are no records
}

func mendInsertLog(dir string) (m mended, err error) {
	files, err := logFiles(dir)
	if err != nil || len(files) == 0 {
		return m, err
	}
	blocks := map[string]string{} // block: part that holds it
	for _, path := range files {
		b, err := os.ReadFile(path) // #nosec G304 -- a file of the engine's own data
		if err != nil {
			return m, err
		}
		whole := readRecords(b, blocks)
		if whole == len(b) {
			continue
		}
		// The engine would stop reading here for ever, and forget all that it writes behind it.
		m.torn += int64(len(b) - whole)
		if err := os.Truncate(path, int64(whole)); err != nil {
			return m, err
		}
	}
	have, err := partsIn(filepath.Dir(dir))
	if err != nil {
		return m, err
	}
	var drops bytes.Buffer
	for block, name := range blocks {
		if p, ok := partOf(name); !ok || have.hold(p) {
			continue
		}
		m.forgotten++
		fmt.Fprintf(&drops, "%s\t%s\t%s\n", opDrop, name, block)
	}
	if m == (mended{}) {
		return m, nil
	}
	return m, appendSynced(files[len(files)-1], drops.Bytes())
}

// logFiles are the files of a log, oldest first.
func logFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	type numbered struct {
		path   string
		number int
	}
	var files []numbered
	for _, e := range entries {
		if m := insertLogFile.FindStringSubmatch(e.Name()); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil {
				files = append(files, numbered{filepath.Join(dir, e.Name()), n})
			}
		}
	}
	slices.SortFunc(files, func(a, b numbered) int { return a.number - b.number })
	paths := make([]string, len(files))
	for i, f := range files {
		paths[i] = f.path
	}
	return paths, nil
}

// readRecords does to blocks what the records of b say, and returns how many bytes are whole records.
func readRecords(b []byte, blocks map[string]string) (whole int) {
	for {
		end := bytes.IndexByte(b[whole:], '\n')
		if end < 0 {
			return whole
		}
		fields := strings.Split(string(b[whole:whole+end]), "\t")
		if len(fields) != 3 || fields[1] == "" || fields[2] == "" {
			return whole
		}
		switch fields[0] {
		case opAdd:
			blocks[fields[2]] = fields[1]
		case opDrop:
			delete(blocks, fields[2])
		default:
			return whole
		}
		whole += end + 1
	}
}

// parts are those of a table, by partition, in the order of their first blocks; the last block of each is the greatest
// up to there.
type parts map[string][]part

// partsIn lists the parts in a table's directory. A merged part holds the blocks of those it was made from.
func partsIn(table string) (parts, error) {
	entries, err := os.ReadDir(table)
	if err != nil {
		return nil, err
	}
	all := parts{}
	for _, e := range entries {
		if p, ok := partOf(e.Name()); ok && e.IsDir() {
			all[p.partition] = append(all[p.partition], p)
		}
	}
	for _, of := range all {
		slices.SortFunc(of, func(a, b part) int { return cmp.Compare(a.first, b.first) })
		for i := 1; i < len(of); i++ {
			of[i].last = max(of[i].last, of[i-1].last)
		}
	}
	return all, nil
}

// hold says whether the blocks of p are in one of the parts.
func (all parts) hold(p part) bool {
	of := all[p.partition]
	// The last part that begins no later than p has, by now, the greatest end of all that do.
	i, _ := slices.BinarySearchFunc(of, p.first, func(q part, first uint64) int {
		if q.first <= first {
			return -1
		}
		return 1
	})
	return i > 0 && of[i-1].last >= p.last
}

// appendSynced adds b to a file and waits for the disk.
func appendSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0) // #nosec G304 -- a file of the engine's own data
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// through marks the logs of tables so that the kernel writes them to the disk before a write returns.
type through struct {
	dir     string               // where tables are: dir/*/*
	changed map[string]time.Time // dir and dir/*: when something was made in it last, as of the last look
	tables  []string
	done    map[string]bool // tables whose log is marked
}

// throughStep is how soon the log of a new table is found. Its first rows hardly come sooner after it was made; should
// they, they are synced when it is.
const throughStep = 200 * time.Millisecond

// keepThrough marks the logs of new tables until ctx ends.
func (s *Server) keepThrough(ctx context.Context) {
	t := through{dir: filepath.Join(s.Dir, dataDir, "store"), done: map[string]bool{}}
	tick := time.NewTicker(throughStep)
	defer tick.Stop()
	for {
		if err := t.look(); err != nil {
			s.Logger.Info("clickhouse: this file system does not write deduplication logs through: after a power cut the last ranges may be in a table twice", "error", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look marks what is new since the last one. It asks for a few times only, for it is called often.
func (t *through) look() error {
	if t.stale() {
		tables, err := filepath.Glob(filepath.Join(t.dir, "*", "*"))
		if err != nil {
			return err
		}
		t.tables = tables
	}
	for _, table := range t.tables {
		if t.done[table] {
			continue
		}
		err := markLog(filepath.Join(table, insertLogDir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		t.done[table] = err == nil
	}
	return nil
}

// stale says whether there may be other tables than at the last look.
func (t *through) stale() bool {
	now := map[string]time.Time{}
	over, _ := filepath.Glob(filepath.Join(t.dir, "*"))
	for _, dir := range append(over, t.dir) {
		if info, err := os.Stat(dir); err == nil {
			now[dir] = info.ModTime()
		}
	}
	same := maps.EqualFunc(now, t.changed, time.Time.Equal)
	t.changed = now
	return !same
}

// markLog marks a log's directory first: what is made in it from then on inherits the mark.
func markLog(dir string) error {
	if err := markSynchronous(dir); err != nil {
		return err
	}
	files, err := logFiles(dir)
	for _, path := range files {
		if e := markSynchronous(path); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
