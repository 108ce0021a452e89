package run

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow"
)

// wider is rec with its last column once more, as a newer version of a stage might write it.
func wider(rec arrow.Record) arrow.Record {
	fields := append(slices.Clone(rec.Schema().Fields()), arrow.Field{Name: "again", Type: arrow.PrimitiveTypes.Int64})
	return array.NewRecord(arrow.NewSchema(fields, nil), append(slices.Clone(rec.Columns()), rec.Column(2)), rec.NumRows())
}

// fussy refuses the rows of every range that holds a number it does not like, for ever.
type fussy struct{ *life }

func (f fussy) Write(ctx context.Context, r flow.Range, recs []arrow.Record) error {
	for _, rec := range recs {
		if slices.Contains(valuesOf(rec), 5) {
			return flow.Badf("five is not allowed")
		}
	}
	return f.life.Write(ctx, r, recs)
}

// A sink's ranges hold rows of one schema each, though the stream's changes; its dead letters travel in batches of a
// size that a broker takes; messages that nobody can read count as rows. All of that under kills.
func TestRangesAndDeadLettersOfASink(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld()
		gateway := &life{world: w, uses: -1}
		rows := 0
		for i := range int64(60) {
			b := flow.Batch{Watermark: flow.Micros(i)}
			b.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: i}}
			var values []int64
			for n := range int64(1 + i%4) {
				values = append(values, 10+n)
			}
			switch {
			case i == 7:
				values = make([]int64, 3*deadRowsMax)
				values[17] = 5
			case i%3 == 0:
				b.Kind = unreadable
			}
			if b.Kind == flow.KindRows {
				b.Record = numbersOf(values)
				if i%10 > 5 {
					b.Record = wider(b.Record)
				}
				rows += len(values)
			}
			_, _ = gateway.Publish(t.Context(), "raw", 0, b)
		}
		end := flow.Batch{Kind: flow.KindEnd, Run: "r"}
		end.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: 1000}}
		_, _ = gateway.Publish(t.Context(), "raw", 0, end)

		plan := testPlan()
		plan.Sinks[0].FlushWait = time.Hour // only what is in the ranges ends them
		plan.Sinks[0].FlushRows = 12
		dice := rand.New(rand.NewPCG(seed, 0))
		born := 0
		_, err := live(t.Context(), w, plan, "keep", []string{"raw"}, dice, func() int { born++; return 2 + dice.IntN(10+born) },
			func(ctx context.Context, r *Runner, g *generation, l *life) (bool, error) {
				return r.runSinkTask(ctx, g, plan.Sinks[0], fussy{l}, "raw", 0)
			})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		stored := len(w.rows(t, "raw"))
		refused, broken := deadLettersOf(t, w.streams["keep.dead"])
		if stored+refused != rows || refused < 3*deadRowsMax || broken != 20 {
			t.Errorf("seed %d: %d rows stored and %d refused of %d; %d messages unreadable of 20", seed, stored, refused, rows, broken)
		}
	}
}

// deadLettersOf counts the rows and the messages among dead letters, each once.
func deadLettersOf(t *testing.T, batches []flow.Batch) (rows, messages int) {
	t.Helper()
	m := newMarks()
	for _, b := range batches {
		if !m.take(&b) || b.Record == nil {
			continue
		}
		if b.Record.NumRows() > deadRowsMax {
			t.Errorf("%d dead letters in a batch", b.Record.NumRows())
		}
		for i := range int(b.Record.NumRows()) {
			if b.Record.Column(10).ValueStr(i) == "null" {
				messages++
			} else {
				rows++
			}
		}
	}
	return rows, messages
}
