package run

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
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

// fussy refuses numbers that it does not like, for ever: the rows of fives, and the whole range of a six.
type fussy struct{ *life }

func (f fussy) Write(ctx context.Context, r flow.Range, recs []arrow.Record) error {
	var bad flow.BadRows
	var good []arrow.Record
	first := 0
	for _, rec := range recs {
		values := valuesOf(rec)
		if slices.Contains(values, 6) {
			return flow.Badf("six is not allowed, nor whom it comes with")
		}
		from := 0
		for i, v := range append(values, 5) {
			if v != 5 {
				continue
			}
			if i > from {
				good = append(good, rec.NewSlice(int64(from), int64(i)))
			}
			if from = i + 1; i < len(values) {
				bad.Add(first+i, "five is not allowed")
			}
		}
		first += len(values)
	}
	slices.Reverse(bad.Rows) // their order is not the sink's business
	if err := f.life.Write(ctx, r, good); err != nil {
		return err
	}
	return bad.Err()
}

// A sink's ranges hold rows of one schema each, though the stream's changes; its dead letters travel in batches of a
// size that a broker takes; messages that nobody can read count as rows. All of that under kills.
func TestRangesAndDeadLettersOfASink(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld()
		gateway := &life{world: w, uses: -1}
		rows, fives := 0, 0
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
				values[17] = 6
			case i == 17:
				values = make([]int64, 4*deadRowsMax)
				for at := range values {
					values[at] = int64(5 - at%2)
				}
			case i == 22:
				values = []int64{10, 5, 12}
			case i%3 == 0:
				b.Kind = unreadable
			}
			if b.Kind == flow.KindRows {
				b.Record = numbersOf(values)
				if i%10 > 5 {
					b.Record = wider(b.Record)
				}
				rows += len(values)
				fives += count(values, 5)
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
		refused, named, broken := deadLettersOf(t, w.streams["keep.dead"], w.streams["raw"])
		if stored+refused != rows || named != fives || refused < named+3*deadRowsMax || refused > named+3*deadRowsMax+30 || broken != 20 {
			t.Errorf("seed %d: %d rows stored and %d refused of %d, %d fives of %d; %d messages unreadable of 20", seed, stored, refused, rows, named, fives, broken)
		}
	}
}

// What a sink says of rows is not believed blindly: a row that is named wrongly would be lost.
func TestRefusedRows(t *testing.T) {
	for _, c := range []struct {
		says error
		want []int
		ok   bool
	}{
		{nil, nil, true},
		{flow.Badf("all"), []int{0, 1, 2}, true},
		{fmt.Errorf("wrapped: %w", &flow.BadRows{Reasons: []string{"all"}}), []int{0, 1, 2}, true},
		{fmt.Errorf("wrapped: %w", &flow.BadRows{Rows: []int{2, 0}, Reasons: []string{"a", "b"}}), []int{0, 2}, true},
		{&flow.BadRows{Rows: []int{1, 1}, Reasons: []string{"a", "b"}}, nil, false},
		{&flow.BadRows{Rows: []int{3}, Reasons: []string{"a"}}, nil, false},
		{&flow.BadRows{Rows: []int{-1}, Reasons: []string{"a"}}, nil, false},
		{&flow.BadRows{Rows: []int{0, 1}, Reasons: []string{"a"}}, nil, false},
		{&flow.BadRows{}, nil, true},
	} {
		got, err := refusedRows(c.says, 3)
		if (err == nil) != c.ok || c.ok && (!slices.Equal(got.Rows, c.want) || len(got.Reasons) != len(c.want)) {
			t.Errorf("%v: rows %v, reasons %q, error %v; want %v", c.says, got.Rows, got.Reasons, err, c.want)
		}
		if errors.Is(err, flow.ErrBad) {
			t.Errorf("%v: the sink's fault is taken for the rows': %v", c.says, err)
		}
	}
}

func count(values []int64, v int64) (n int) {
	for _, x := range values {
		if x == v {
			n++
		}
	}
	return n
}

// deadLettersOf counts the rows, those of them that were refused by themselves, and the messages among dead letters, each once.
// What was refused by itself stands in raw where its letter says.
func deadLettersOf(t *testing.T, batches, raw []flow.Batch) (rows, named, messages int) {
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
				continue
			}
			rows++
			if strings.Contains(b.Record.Column(3).ValueStr(i), "five is not allowed") {
				named++
				offset, row := b.Record.Column(6).(*array.Int64).Value(i), b.Record.Column(7).(*array.Int32).Value(i)
				if at := raw[offset].Record; at == nil || int64(row) >= at.NumRows() || valuesOf(at)[row] != 5 {
					t.Errorf("a dead letter says offset %d, row %d: there is no five", offset, row)
				}
			}
		}
	}
	return rows, named, messages
}
