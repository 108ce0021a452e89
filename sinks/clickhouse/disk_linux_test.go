package clickhouse

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/blobs/disktest"
)

// Tables are made and columns added when the disk has room for them. One that was made without is made again, and rows wait
// for it.
func TestTablesWaitForRoom(t *testing.T) {
	disk := disktest.NewMemory(t, t.TempDir(), 400)
	own := newTestEngine(disk.Dir)
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { own.stop() }()
	s := ownSink(t, own)
	defer s.Close()
	rec := readings(t, checkedMem(t), 1, 100, testDay)
	try := func(stream string) error {
		return s.Write(context.Background(), rangeOf(stream, 0, 0, 9), []arrow.Record{rec})
	}
	eventually := func(stream string) {
		t.Helper()
		var err error
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			if err = try(stream); err == nil {
				break
			}
		}
		if n := scalar(t, s, "SELECT count() FROM "+quote(stream)); err != nil || n != "100" {
			t.Errorf("%s: %s rows, %v; want 100", stream, n, err)
		}
	}

	disk.FillBut(48 << 20) // less than the engine keeps free
	if err := try("first"); !errors.Is(err, errFullDisk) || isBad(err) {
		t.Errorf("a new stream without room: %v; want %v", err, errFullDisk)
	}
	if n := scalar(t, s, "SELECT count() FROM system.tables WHERE name = 'first'"); n != "0" {
		t.Error("a table was made without room")
	}
	disk.Free()
	eventually("first")

	disk.Fill()
	// The disk became full after the sink had looked. An engine that refuses this has no table then, and is right.
	sql, _, err := s.createSQL("second", rec.Schema())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.queries.Exec(context.Background(), sql); err == nil {
		if err := try("second"); err == nil || isBad(err) || !strings.Contains(err.Error(), "no definition") {
			t.Errorf("a table without a definition: %v; want to be told", err)
		}
	}
	disk.Free()
	eventually("second")
	if err := own.stop(); err != nil {
		t.Fatal(err)
	}
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	eventually("first")
	eventually("second")
}
