package embedded

import (
	"fmt"
	"maps"
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
