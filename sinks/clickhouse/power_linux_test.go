package clickhouse

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"golang.org/x/sys/unix"

	"hearthline/blobs/disktest"
)

// ownSink is a sink of the writer on an engine of the test's own.
func ownSink(t *testing.T, own *testEngine) *Sink {
	t.Helper()
	s := New()
	s.Address, s.User, s.Password = own.ends.TCP, own.ends.Writer.Name, own.ends.Writer.Password
	open(t, s)
	return s
}

// writeAgain writes what has been written before, as the runtime does after a start.
func writeAgain(t *testing.T, own *testEngine, recs []arrow.Record) string {
	t.Helper()
	s := ownSink(t, own)
	defer s.Close()
	for i, rec := range recs {
		write(t, s, "readings", int64(10*i), rec)
	}
	return state(t, s)
}

// The power goes right after inserts were acknowledged, and before anybody has noted that: the ranges come again, and count
// once, in the table and in what its views made of them.
func TestPowerCut(t *testing.T) {
	disk := disktest.New(t, 1024)
	own := newTestEngine(disk.Dir)
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { own.stop() }()
	s := ownSink(t, own)
	syscall.Sync() // tables are made once, long before
	waitForThrough(t, own)
	mem := checkedMem(t)
	var recs []arrow.Record
	for i := range 6 {
		rec := readings(t, mem, uint64(i), 2000, testDay.Add(time.Duration(i)*11*time.Hour))
		recs = append(recs, rec)
		write(t, s, "readings", int64(10*i), rec)
	}
	want := state(t, s)
	s.Close()
	disk.Cut()
	own.end(t)
	disk.Restore()
	own.dir = disk.Dir
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	if got := writeAgain(t, own, recs); got != want {
		t.Errorf("after a power cut:\n got %s\nwant %s", got, want)
	}
}

// waitForThrough waits until every table's deduplication log is written through to the disk.
func waitForThrough(t *testing.T, own *testEngine) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for _, dir := range glob(t, own, "deduplication_logs") {
		for {
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			const synchronous = 0x8 // FS_SYNC_FL
			if flags&synchronous != 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is not written through", dir)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// glob finds files in the directories of the engine's tables.
func glob(t *testing.T, own *testEngine, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(own.dir, "engine", "data", "store", "*", "*", pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("%v %v", found, err)
	}
	return found
}

// end kills the engine and does not let it come back.
func (e *testEngine) end(t *testing.T) {
	t.Helper()
	pid := enginePID(t, e.dir)
	e.cancel()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-e.ended
}

// An engine that is killed after it noted a block, and before it gave the part its name, has lost the rows: it must take
// them when they come again.
func TestKilledWithinAnInsert(t *testing.T) {
	own := newTestEngine(t.TempDir())
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { own.stop() }()
	s := ownSink(t, own)
	mem := checkedMem(t)
	var recs []arrow.Record
	for i := range 3 {
		rec := readings(t, mem, uint64(i), 1000, testDay)
		recs = append(recs, rec)
		write(t, s, "readings", int64(10*i), rec)
	}
	want := state(t, s)
	s.Close()
	own.end(t)
	unnamed := 0
	for _, log := range glob(t, own, "deduplication_logs/*.txt") { // the last part of each table as it was a moment before
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		records := strings.Split(strings.TrimSpace(string(b)), "\n")
		last := strings.Split(records[len(records)-1], "\t")
		if len(last) != 3 {
			continue // a table without rows
		}
		table := filepath.Dir(filepath.Dir(log))
		if err := os.Rename(filepath.Join(table, last[1]), filepath.Join(table, "tmp_insert_"+last[1])); err != nil {
			t.Fatalf("merged so soon? %v", err)
		}
		unnamed++
	}
	if unnamed < 4 {
		t.Fatalf("%d tables have parts, want readings and the tables of its views", unnamed)
	}
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	lost := ownSink(t, own)
	defer lost.Close()
	if got, err := lost.Query(context.Background(), 1, "SELECT count() FROM readings"); err != nil || got.Rows[0][0] != uint64(2000) {
		t.Fatalf("%v rows before they come again, want 2000; %v", got.Rows, err)
	}
	if got := writeAgain(t, own, recs); got != want {
		t.Errorf("after a death within an insert:\n got %s\nwant %s", got, want)
	}
}
