package clickhouse

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/sourcegraph/conc"
)

// TestEveryTableRemembersTokens: one table or view target without a window, and retries would count twice there.
func TestEveryTableRemembersTokens(t *testing.T) {
	s := openSink(t)
	write(t, s, "novel", 0, fill(t, checkedMem(t), allTypes(), 1, 3))
	result, err := s.Query(context.Background(), 100, `SELECT name, engine_full FROM system.tables
		WHERE database = ? AND engine LIKE '%MergeTree' AND name != 'schema_migrations'
		AND NOT (engine_full LIKE ? AND engine_full LIKE '%fsync_after_insert = 1%')`, s.Database, fmt.Sprintf("%%non_replicated_deduplication_window = %d%%", dedupWindow))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range result.Rows {
		t.Errorf("table %s may lose or double rows: %s", row[0], row[1])
	}
	if n := scalar(t, s, "SELECT count() FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"); n != "11" {
		t.Errorf("%s tables were looked at; want 11", n)
	}
}

// TestSameRowsInOtherRecords: only the range counts, not how its rows lie in records.
func TestSameRowsInOtherRecords(t *testing.T) {
	s := openSink(t)
	rec := readings(t, checkedMem(t), 5, 3000, testDay.Add(23*time.Hour+30*time.Minute))
	write(t, s, "readings", 0, rec)
	want := state(t, s)
	a, b, c := rec.NewSlice(0, 1), rec.NewSlice(1, 2000), rec.NewSlice(2000, 3000)
	defer a.Release()
	defer b.Release()
	defer c.Release()
	write(t, s, "readings", 0, a, b, c)
	if got := state(t, s); got != want {
		t.Errorf("cut into other records: %s; want %s", got, want)
	}
	write(t, s, "readings", 0, b)
	if got := state(t, s); got != want {
		t.Errorf("the token beats the content, so this should have been dropped: %s; want %s", got, want)
	}
	write(t, s, "readings", 10, rec)
	if got := scalar(t, s, "SELECT count() FROM readings"); got != "6000" {
		t.Errorf("the same rows as another range: %s rows; want 6000", got)
	}
}

// TestTwoWritersOfOneRange: a process that was thought dead and its successor write the same range at once.
func TestTwoWritersOfOneRange(t *testing.T) {
	s := openSink(t)
	mem := checkedMem(t)
	for n := range int64(10) {
		rec := readings(t, mem, uint64(n), 2000, testDay)
		var wg conc.WaitGroup
		for range 4 {
			own := rec.NewSlice(0, rec.NumRows()) // Arrow makes dictionaries when they are first looked at
			defer own.Release()
			wg.Go(func() { write(t, s, "readings", 10*n, own) })
		}
		wg.Wait()
	}
	if got := scalar(t, s, "SELECT count() FROM readings"); got != "20000" {
		t.Errorf("%s rows; want 20000", got)
	}
	if got := scalar(t, s, "SELECT sum(rows) = (SELECT count(value) FROM readings) FROM readings_1m"); got != "1" {
		t.Error("the rollup counts other rows than the table")
	}
}

// TestManyDaysInOneRange: a hub that was away for a year sends more days than ClickHouse takes in one insert by default.
func TestManyDaysInOneRange(t *testing.T) {
	s := openSink(t)
	mem := checkedMem(t)
	var recs []arrow.Record
	for day := range 150 {
		recs = append(recs, readings(t, mem, uint64(day), 4, testDay.AddDate(0, 0, -day)))
	}
	for range 2 {
		write(t, s, "readings", 0, recs...)
	}
	if got := scalar(t, s, "SELECT (count(), uniqExact(toDate(time))) FROM readings"); got != "(600,150)" {
		t.Errorf("rows and days: %s; want (600,150)", got)
	}
}

// TestRangeBeyondABlock writes more rows than a block holds, twice.
func TestRangeBeyondABlock(t *testing.T) {
	s := openSink(t)
	schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(checkedMem(t), schema)
	defer b.Release()
	var recs []arrow.Record
	for i := range 3 {
		xs := make([]int64, 700_001)
		for j := range xs {
			xs[j] = int64(i*len(xs) + j)
		}
		b.Field(0).(*array.Int64Builder).AppendValues(xs, nil)
		rec := b.NewRecord()
		defer rec.Release()
		recs = append(recs, rec)
	}
	for range 2 {
		write(t, s, "big", 0, recs...)
	}
	if got := scalar(t, s, "SELECT (count(), uniqExact(x), max(x)) FROM big"); got != "(2100003,2100003,2100002)" {
		t.Errorf("rows, distinct, largest: %s", got)
	}
	if got := s.Stats(); got.Inserts != 6 || got.Rows != 2*2_100_003 {
		t.Errorf("stats: %+v; want 3 blocks of each writing", got)
	}
	// The server left the blocks as they were: two full ones and a rest, before merges.
	if got := scalar(t, s, "SELECT max(rows) FROM system.parts WHERE database = currentDatabase() AND table = 'big' AND level = 0"); got != fmt.Sprint(blockRows) {
		t.Errorf("the largest part that no merge made has %s rows; want %d", got, blockRows)
	}
}

func TestCut(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 6))
	mem := checkedMem(t)
	schema := arrow.NewSchema([]arrow.Field{{Name: "s", Type: arrow.BinaryTypes.String}}, nil)
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	for range 200 {
		var recs []arrow.Record
		var parts []part
		total := 0
		for range 1 + rng.IntN(5) {
			n := rng.IntN(50)
			for range n {
				b.Field(0).(*array.StringBuilder).Append(string(make([]byte, rng.IntN(40))))
			}
			rec := b.NewRecord()
			recs = append(recs, rec)
			if n > 0 {
				parts = append(parts, part{rec, 0, n, total})
			}
			total += n
		}
		rowsMax, bytesMax := 1+rng.IntN(60), int64(1+rng.IntN(1000))
		blocks := cut(parts, rowsMax, bytesMax)
		if again := cut(parts, rowsMax, bytesMax); !slices.EqualFunc(blocks, again, slices.Equal) {
			t.Errorf("seed %d: cut twice, two ways", seed)
		}
		rows, last := 0, part{}
		for i, block := range blocks {
			n := 0
			for _, p := range block {
				if p.rec == last.rec && p.from != last.to || p.from >= p.to || p.place != rows+n {
					t.Errorf("seed %d: part %v after %v", seed, p, last)
				}
				n, last = n+p.to-p.from, p
			}
			if n > rowsMax || n == 0 && total > 0 {
				t.Errorf("seed %d: block %d has %d rows; at most %d", seed, i, n, rowsMax)
			}
			rows += n
		}
		if rows != total {
			t.Errorf("seed %d: %d rows in blocks; want %d", seed, rows, total)
		}
		for _, rec := range recs {
			rec.Release()
		}
	}
}
