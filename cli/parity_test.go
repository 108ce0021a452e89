package cli

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/cli/clitest"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/sinks/parquet"
)

// A window's features, computed live (over Kafka, through kills) and stored, equal those that the same stage makes of the
// same readings from Parquet, bit for bit.
func TestFeaturesFromParquetEqualThoseComputedLive(t *testing.T) {
	i := clitest.New(t)
	homes := i.Homes(10, 300, 1200)
	homes.Window = 64
	homes.Faults.Offline, homes.Faults.Reorder, homes.Faults.Duplicate = 0.002, 0.01, 0.01
	homes.OfflineFor = 3 * time.Second
	up := i.Up("--no-homes")
	ended := clitest.Play(t.Context(), homes)
	for homes.Stats().Acknowledged < 2000 {
		time.Sleep(20 * time.Millisecond)
	}
	up.Kill() // live includes a replay
	up = i.Up("--no-homes")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	up.Stop()

	t.Setenv("HEARTHLINE_DATA", i.Data)
	plan, findings, err := pipeline.Lint(t.Context(), i.Pipeline, newCatalog())
	if err != nil || pipeline.Failed(findings) {
		t.Fatal(findings, err)
	}
	live := map[string]bool{}
	readAll(t, i, "features", func(rec arrow.Record, _ int32) {
		for row := range int(rec.NumRows()) {
			live[bits(rec, row)] = true
		}
	})
	again := map[string]bool{}
	stages := map[int32]flow.Stage{}
	keep := func(outputs []flow.Output, err error) {
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range outputs {
			for row := range int(o.Record.NumRows()) {
				if o.To == "features" {
					again[bits(o.Record, row)] = true
				}
			}
			o.Record.Release()
		}
	}
	readAll(t, i, "readings", func(rec arrow.Record, partition int32) {
		if stages[partition] == nil {
			node := plan.Node("features")
			stages[partition] = node.Stages[0].New()
			if o, ok := stages[partition].(flow.Opener); ok {
				if err := o.Open(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		keep(stages[partition].Process(t.Context(), rec))
	})
	for _, s := range stages {
		keep(s.(flow.Timed).Advance(t.Context(), flow.EndOfTime)) // live, the last windows are still open
	}
	missing := 0
	for w := range live {
		if !again[w] {
			if missing++; missing <= 3 {
				t.Errorf("computed live, and not from Parquet: %s", w)
			}
		}
	}
	if missing > 0 || len(live) < 500 {
		t.Errorf("%d of %d windows computed live are not those computed from Parquet", missing, len(live))
	}
	t.Logf("%d windows computed live, %d from Parquet (with those still open)", len(live), len(again))
}

// readAll gives a stream's rows from Parquet, a partition after the other, in the order of the stream.
func readAll(t *testing.T, i *clitest.Installation, stream string, give func(arrow.Record, int32)) {
	t.Helper()
	r := parquet.Reader{Store: i.ParquetStore(), Stream: stream}
	for rows, err := range r.Rows(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		give(rows.Record, rows.Range.Partition)
		rows.Record.Release()
	}
}

// bits is a row, with numbers written as their bits.
func bits(rec arrow.Record, row int) string {
	var s []string
	for c, f := range rec.Schema().Fields() {
		col, v := rec.Column(c), "null"
		switch a := col.(type) {
		case *array.Float64:
			if !a.IsNull(row) {
				v = strconv.FormatUint(math.Float64bits(a.Value(row)), 16)
			}
		default:
			v = col.ValueStr(row)
		}
		s = append(s, f.Name+"="+v)
	}
	slices.Sort(s)
	return fmt.Sprint(s)
}
