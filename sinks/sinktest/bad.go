package sinktest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// someBad: rows that can never be stored are named, the same ones whoever writes the range and however it is cut, and the
// others are there once.
func someBad(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	if !p.NeedsTime {
		return nil
	}
	b, err := newBench(ctx, p, mem, seed)
	if err != nil {
		return err
	}
	for i, n := range []int{1, 2, 60, 400} {
		before := len(b.want)
		s := b.span("a1", 0, int64(i)*10, n)
		bad := []int{b.gen.rnd.IntN(n)}
		for row := range n {
			if row != bad[0] && b.gen.rnd.IntN(1+n/4) == 0 {
				bad = append(bad, row)
			}
		}
		slices.Sort(bad)
		whole := s.whole
		s.whole = withoutTime(mem, whole, bad)
		whole.Release()
		for _, row := range slices.Backward(bad) {
			b.want = slices.Delete(b.want, before+row, before+row+1)
		}
		refuses := func(recs []arrow.Record) error {
			err := writeTo(b.ctx, b.sink, s, recs)
			var rows *flow.BadRows
			if !errors.As(err, &rows) {
				return fmt.Errorf("rows %v have no time: want a *flow.BadRows, got %w", bad, err)
			}
			if named := slices.Sorted(slices.Values(rows.Rows)); !slices.Equal(named, bad) || len(rows.Reasons) != len(bad) {
				return fmt.Errorf("rows %v have no time: rows %v were refused, with %d reasons", bad, named, len(rows.Reasons))
			}
			return nil
		}
		err = errors.Join(err, first(
			func() error { return refuses(b.gen.cut(s.whole)) },
			func() error { return refuses(b.gen.cut(s.whole)) },
			b.fresh,
			func() error { return refuses(b.gen.single(s.whole)) }))
		s.whole.Release()
	}
	return first(func() error { return err }, b.same)
}

// withoutTime is rec with a null in the column time of some rows, whatever the schema says.
func withoutTime(mem memory.Allocator, rec arrow.Record, rows []int) arrow.Record {
	at := rec.Schema().FieldIndices(flow.ColTime)[0]
	old := rec.Column(at).(*array.Timestamp)
	b := array.NewTimestampBuilder(mem, old.DataType().(*arrow.TimestampType))
	defer b.Release()
	for i := range old.Len() {
		if slices.Contains(rows, i) {
			b.AppendNull()
		} else {
			b.Append(old.Value(i))
		}
	}
	made := b.NewArray()
	defer made.Release()
	columns := slices.Clone(rec.Columns())
	columns[at] = made
	return array.NewRecord(rec.Schema(), columns, rec.NumRows())
}
