package replay

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/sinks/parquet"
)

// Comparison says how a stream as a replay has made it differs from the same stream as the live pipeline has kept it, both as
// Parquet files. Memory is bounded by the rows that a replay has made in one hour of one partition.
type Comparison struct {
	Stream       string
	Live, Replay blobs.Store
	Key          []string // columns by which rows are matched; nil: those of DefaultKey
	From, To     flow.Micros
	Partitions   int // of both; 0: they differ, and an hour is compared as a whole
}

// Difference is the outcome of a Comparison, rows all.
type Difference struct {
	Key                       []string
	Live, Replay              int64
	Equal, Other              int64 // rows of both, equal to the bit or not
	OnlyLive, OnlyReplay      int64
	Columns                   []ColumnDifference // of those that differ, the most different first
	Examples                  []string
	FirstHour, LastHour       time.Time // that the replay has rows of
	FirstDiffers, LastDiffers time.Time // event times of the first and last row that differs or is missing; zero: none
}

// Differs says whether anything differs.
func (d *Difference) Differs() bool { return d.Other+d.OnlyLive+d.OnlyReplay > 0 }

// ColumnDifference is what differs in one column.
type ColumnDifference struct {
	Name    string
	Rows    int64
	Largest float64 // between two numbers
	At      string  // the key of that row
}

const examplesMax = 5

// keyColumns are those that tell rows apart, as far as a stream has them.
var keyColumns = []string{flow.ColTime, flow.ColHome, flow.ColDevice, flow.ColMetric, "window", flow.ColSeq}

// DefaultKey is the key of a schema: time, home, device, metric, window and seq, as far as it has them.
func DefaultKey(schema *arrow.Schema) []string {
	return slices.DeleteFunc(slices.Clone(keyColumns), func(c string) bool { return !schema.HasField(c) })
}

// Compare compares row by row. Rows of the same key are matched in their order.
func (c *Comparison) Compare(ctx context.Context) (*Difference, error) {
	d := &Difference{Key: c.Key}
	w := &weighing{d: d, columns: map[string]*ColumnDifference{}}
	replayed := parquet.Reader{Store: c.Replay, Stream: c.Stream, From: c.From, To: c.To}
	hours, err := replayed.Hours(ctx)
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	if len(hours) > 0 {
		d.FirstHour, d.LastHour = hours[0], hours[len(hours)-1]
	}
	live := parquet.Reader{Store: c.Live, Stream: c.Stream, From: c.From, To: c.To}
	more, err := live.Hours(ctx)
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	hours = append(hours, more...)
	slices.SortFunc(hours, time.Time.Compare)
	for _, h := range slices.CompactFunc(hours, time.Time.Equal) {
		for p := range max(1, c.Partitions) {
			if err := c.hour(ctx, w, flow.MicrosOf(h), int32(p)); err != nil {
				return nil, fmt.Errorf("compare %s: %w", c.Stream, err)
			}
		}
	}
	for _, col := range w.columns {
		d.Columns = append(d.Columns, *col)
	}
	slices.SortFunc(d.Columns, func(a, b ColumnDifference) int {
		if a.Rows != b.Rows {
			return int(b.Rows - a.Rows)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return d, nil
}

// hour compares one hour of one partition: what the replay made is held, what was kept passes by.
func (c *Comparison) hour(ctx context.Context, w *weighing, hour flow.Micros, partition int32) error {
	reader := func(store blobs.Store) *parquet.Reader {
		r := &parquet.Reader{Store: store, Stream: c.Stream, From: hour, To: hour.Add(time.Hour)}
		if c.Partitions > 0 {
			r.Partitions = []int32{partition}
		}
		return r
	}
	w.rows, w.held = map[string][]place{}, nil
	defer func() {
		for _, rec := range w.held {
			rec.Release()
		}
	}()
	for rows, err := range reader(c.Replay).Rows(ctx) {
		if err != nil {
			return err
		}
		if err := c.each(w, rows.Record, w.hold); err != nil {
			return err
		}
	}
	for rows, err := range reader(c.Live).Rows(ctx) {
		if err != nil {
			return err
		}
		if err := c.each(w, rows.Record, w.weigh); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(w.rows)) {
		for _, at := range w.rows[key] {
			w.missing(&w.d.OnlyReplay, "only in the replay", w.held[at.record], at.row)
		}
	}
	return nil
}

// each gives the rows of rec that are in the bounds, with their keys.
func (c *Comparison) each(w *weighing, rec arrow.Record, f func(key string, rec arrow.Record, row int)) error {
	if w.d.Key == nil {
		w.d.Key = DefaultKey(rec.Schema())
	}
	times, err := flow.Instants(rec, flow.ColTime)
	if err != nil {
		return err
	}
	var columns []arrow.Array
	for _, name := range w.d.Key {
		at := rec.Schema().FieldIndices(name)
		if len(at) == 0 {
			return fmt.Errorf("there is no column %q to match rows by", name)
		}
		columns = append(columns, rec.Column(at[0]))
	}
	var key strings.Builder
	for row, t := range times {
		if c.From != 0 && flow.Micros(t) < c.From || c.To != 0 && flow.Micros(t) >= c.To {
			continue
		}
		key.Reset()
		for _, col := range columns {
			key.WriteString(col.ValueStr(row))
			key.WriteByte(0)
		}
		f(key.String(), rec, row)
	}
	return nil
}

// weighing is a comparison in the making.
type weighing struct {
	d       *Difference
	held    []arrow.Record
	rows    map[string][]place
	columns map[string]*ColumnDifference
}

type place struct{ record, row int }

func (w *weighing) hold(key string, rec arrow.Record, row int) {
	if n := len(w.held); n == 0 || w.held[n-1] != rec {
		rec.Retain()
		w.held = append(w.held, rec)
	}
	w.rows[key] = append(w.rows[key], place{len(w.held) - 1, row})
	w.d.Replay++
}

func (w *weighing) weigh(key string, rec arrow.Record, row int) {
	w.d.Live++
	places := w.rows[key]
	if len(places) == 0 {
		w.missing(&w.d.OnlyLive, "only live", rec, row)
		return
	}
	at := places[0]
	if w.rows[key] = places[1:]; len(places) == 1 {
		delete(w.rows, key)
	}
	if w.equal(key, rec, row, w.held[at.record], at.row) {
		w.d.Equal++
		return
	}
	w.d.Other++
	w.example("live   ", rec, row)
	w.example("replay ", w.held[at.record], at.row)
	w.when(rec, row)
}

// equal compares all columns that both have, and notes those that differ.
func (w *weighing) equal(key string, live arrow.Record, i int, replayed arrow.Record, j int) bool {
	equal := true
	for c, f := range live.Schema().Fields() {
		at := replayed.Schema().FieldIndices(f.Name)
		if len(at) == 0 {
			continue // a column that one of them does not have is said by their schemas
		}
		a, b := live.Column(c), replayed.Column(at[0])
		if same, apart := compareCells(a, i, b, j); !same {
			equal = false
			col := w.columns[f.Name]
			if col == nil {
				col = &ColumnDifference{Name: f.Name}
				w.columns[f.Name] = col
			}
			col.Rows++
			if apart > col.Largest {
				col.Largest, col.At = apart, strings.ReplaceAll(strings.TrimSuffix(key, "\x00"), "\x00", " ")
			}
		}
	}
	return equal
}

// compareCells compares two cells to the bit, and says how far apart two numbers are.
func compareCells(a arrow.Array, i int, b arrow.Array, j int) (same bool, apart float64) {
	if a.IsNull(i) || b.IsNull(j) {
		return a.IsNull(i) == b.IsNull(j), 0
	}
	x, ok1 := a.(*array.Float64)
	y, ok2 := b.(*array.Float64)
	if ok1 && ok2 {
		return math.Float64bits(x.Value(i)) == math.Float64bits(y.Value(j)), math.Abs(x.Value(i) - y.Value(j))
	}
	if x, ok := a.(*array.Int64); ok {
		if y, ok := b.(*array.Int64); ok {
			return x.Value(i) == y.Value(j), math.Abs(float64(x.Value(i)) - float64(y.Value(j)))
		}
	}
	return a.ValueStr(i) == b.ValueStr(j), 0
}

func (w *weighing) missing(count *int64, where string, rec arrow.Record, row int) {
	*count++
	w.example(where+" ", rec, row)
	w.when(rec, row)
}

func (w *weighing) when(rec arrow.Record, row int) {
	times, err := flow.Instants(rec, flow.ColTime)
	if err != nil {
		return
	}
	t := flow.Micros(times[row]).Time()
	if w.d.FirstDiffers.IsZero() || t.Before(w.d.FirstDiffers) {
		w.d.FirstDiffers = t
	}
	if t.After(w.d.LastDiffers) {
		w.d.LastDiffers = t
	}
}

// example keeps a row as text, while there are few.
func (w *weighing) example(what string, rec arrow.Record, row int) {
	if len(w.d.Examples) >= 2*examplesMax {
		return
	}
	var b strings.Builder
	b.WriteString(what)
	for c, f := range rec.Schema().Fields() {
		if !rec.Column(c).IsNull(row) {
			fmt.Fprintf(&b, " %s=%s", f.Name, rec.Column(c).ValueStr(row))
		}
	}
	w.d.Examples = append(w.d.Examples, b.String())
}

// Span gives the first and last event time of what a store holds of a stream; zeros where it holds nothing.
func Span(ctx context.Context, store blobs.Store, stream string) (first, last flow.Micros, err error) {
	all := parquet.Reader{Store: store, Stream: stream}
	hours, err := all.Hours(ctx)
	if err != nil || len(hours) == 0 {
		return 0, 0, err
	}
	for _, h := range []time.Time{hours[0], hours[len(hours)-1]} {
		one := parquet.Reader{Store: store, Stream: stream, From: flow.MicrosOf(h), To: flow.MicrosOf(h.Add(time.Hour))}
		for rows, err := range one.Rows(ctx) {
			if err != nil {
				return 0, 0, err
			}
			times, err := flow.Instants(rows.Record, flow.ColTime)
			if err != nil {
				return 0, 0, err
			}
			for _, t := range times {
				if first == 0 || flow.Micros(t) < first {
					first = flow.Micros(t)
				}
				last = max(last, flow.Micros(t))
			}
		}
	}
	return first, last, nil
}
