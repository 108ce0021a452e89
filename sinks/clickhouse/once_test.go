package clickhouse

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/sourcegraph/conc"
)

// state is everything that a range changes: rows of the table, and what the views made of them.
func state(t testing.TB, s *Sink) string {
	t.Helper()
	var all []string
	for _, sql := range []string{
		"SELECT count(), uniqExact(seq, home, device, metric, time), sum(cityHash64(*)) FROM readings",
		"SELECT sum(rows), round(sum(total), 3), sum(lowest) > 0 FROM readings_1m",
		"SELECT sum(rows), round(sum(total), 3) FROM readings_1h",
		"SELECT count(), sum(cityHash64(*)) FROM latest_view",
	} {
		result, err := s.Query(context.Background(), 1, sql)
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		all = append(all, fmt.Sprint(result.Rows))
	}
	return strings.Join(all, " ")
}

func TestRangeWrittenAgainAfterRestartAndKill(t *testing.T) {
	own := newTestEngine(t.TempDir())
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { own.stop() }()
	s := New()
	s.Address, s.User, s.Password = own.ends.TCP, own.ends.Writer.Name, own.ends.Writer.Password
	open(t, s)
	defer s.Close()
	mem := checkedMem(t)
	var recs []arrow.Record
	for i := range 4 {
		recs = append(recs, readings(t, mem, uint64(i), 2000, testDay.Add(time.Duration(i)*11*time.Hour)))
	}
	for i, rec := range recs {
		write(t, s, "readings", int64(10*i), rec)
	}
	want := state(t, s)
	again := func(after string) {
		t.Helper()
		for i, rec := range recs {
			// Connections of before the restart fail once each; the runtime writes again, and so do we.
			r := rangeOf("readings", 0, int64(10*i), int64(10*i+9))
			err := s.Write(context.Background(), r, []arrow.Record{rec})
			for range s.Connections {
				if err != nil {
					err = s.Write(context.Background(), r, []arrow.Record{rec})
				}
			}
			if err != nil {
				t.Fatalf("after %s: %v", after, err)
			}
		}
		if got := state(t, s); got != want {
			t.Errorf("the same ranges written again after %s:\n got %s\nwant %s", after, got, want)
		}
	}
	again("nothing")
	if err := own.stop(); err != nil {
		t.Fatal(err)
	}
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	again("a restart")
	own.kill(t)
	again("kill -9")
	admin := New() // the writer may not
	admin.Address, admin.User, admin.Password = own.ends.TCP, own.ends.Admin.Name, own.ends.Admin.Password
	open(t, admin)
	defer admin.Close()
	for _, table := range []string{"readings_1m", "readings"} {
		if err := admin.queries.Exec(context.Background(), "OPTIMIZE TABLE "+table+" FINAL"); err != nil {
			t.Fatal(err)
		}
	}
	again("merges")
}

// kill ends the engine's process by force and waits until its successor answers.
func (e *testEngine) kill(t testing.TB) {
	t.Helper()
	pid := enginePID(t, e.dir)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		s := New()
		s.Address, s.User, s.Password = e.ends.TCP, e.ends.Writer.Name, e.ends.Writer.Password
		if next := enginePID(t, e.dir); next != 0 && next != pid && s.CheckServer(context.Background(), "readings", readingsSchema) == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the engine is not back a minute after it was killed")
}

// enginePID finds the child of this process that runs on dir; 0 when there is none.
func enginePID(t testing.TB, dir string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil || !strings.Contains(string(line), filepath.Join(dir, "engine")+"\x00") {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue
		}
		after := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if after[1] == strconv.Itoa(os.Getpid()) {
			return pid
		}
	}
	return 0
}

// TestEveryRowOnceWhileTheEngineIsKilled writes ranges from several partitions, each until it succeeds, as the runtime does,
// while the engine is killed at moments that a seed picks.
func TestEveryRowOnceWhileTheEngineIsKilled(t *testing.T) {
	kills := 6
	if v := os.Getenv("CLICKHOUSE_KILLS"); v != "" {
		kills, _ = strconv.Atoi(v)
	}
	const partitions, rowsEach = 3, 3000
	seed := rand.Uint64()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	rng := rand.New(rand.NewPCG(seed, 3))
	own := newTestEngine(t.TempDir())
	if err := own.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { own.stop() }()
	s := New()
	s.Address, s.User, s.Password = own.ends.TCP, own.ends.Writer.Name, own.ends.Writer.Password
	open(t, s)
	defer s.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	mem := checkedMem(t)
	recs := make([]arrow.Record, partitions)
	for p := range recs {
		recs[p] = readings(t, mem, uint64(p), rowsEach, testDay.Add(23*time.Hour+30*time.Minute)) // two days, so two parts
	}
	written := make([]int64, partitions)
	var wg conc.WaitGroup
	defer wg.Wait()
	defer cancel()
	for p := range recs {
		wg.Go(func() {
			for n := int64(0); ctx.Err() == nil; {
				err := s.Write(context.Background(), rangeOf("readings", int32(p), n, n), recs[p:p+1])
				if err == nil {
					n++
					written[p] = n
				}
			}
		})
	}
	for range kills {
		time.Sleep(time.Duration(100+rng.IntN(300)) * time.Millisecond) // the fault's moment, not a wait
		own.kill(t)
	}
	cancel()
	wg.Wait()
	var ranges int64
	for _, n := range written {
		ranges += n
	}
	t.Logf("%d ranges, %d failed attempts", ranges, s.Stats().Failed)
	if s.Stats().Failed == 0 {
		t.Error("no write failed: the kills hit nothing")
	}
	want := fmt.Sprint(ranges * rowsEach)
	values := int64(0)
	for p, rec := range recs {
		values += written[p] * (rec.NumRows() - int64(rec.Column(5).NullN()))
	}
	for sql, want := range map[string]string{
		"SELECT count() FROM readings":      want,
		"SELECT sum(rows) FROM readings_1m": fmt.Sprint(values),
		"SELECT sum(rows) FROM readings_1h": fmt.Sprint(values),
		"SELECT count() FROM latest_view":   scalar(t, s, "SELECT uniqExact(home, device, metric) FROM readings"),
		"SELECT max(time) FROM latest_view": scalar(t, s, "SELECT max(time) FROM readings"),
	} {
		if got := scalar(t, s, sql); got != want {
			t.Errorf("%s: %s; want %s", sql, got, want)
		}
	}
}
