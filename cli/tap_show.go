package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc/pool"

	"hearthline/cli/where"
	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/pipeline"
	"hearthline/python"
)

// tap shows the rows of records: those that it is asked for, in a form.
type tap struct {
	rows   int // to show; 0: all
	format string
	where  string
	sql    string
	sample float64 // part of the rows, 0 to 1

	out    io.Writer
	errors io.Writer
	hurry  bool // records that find no room are dropped, where otherwise their source waits

	filter  *where.Filter // nil: all rows
	query   *python.Stage // nil: as they are
	schema  *arrow.Schema // of what is shown
	print   rowPrinter
	dropped atomic.Int64 // rows that nobody had time for
}

// rowPrinter writes rows in a form. It is used by one goroutine.
type rowPrinter interface {
	record(rec arrow.Record) error
	end() error
}

// tapQueueMax is how many records wait to be shown.
const tapQueueMax = 16

// open looks at what is asked for.
func (t *tap) open(ctx context.Context, st *pipeline.Stream, workers *python.Workers) (err error) {
	switch {
	case t.rows < 0:
		return usagef("--rows is %d; want 0 (until Ctrl-C) or more", t.rows)
	case t.sample <= 0 || t.sample > 1 || t.sample != t.sample:
		return usagef("--sample is %v; want more than 0, and 1 at most", t.sample)
	case t.format != "table" && t.format != "json" && t.format != "arrow":
		return usagef("no format %q; there are table, json and arrow", t.format)
	case t.format == "arrow" && isTerminal(t.out):
		return usagef("an Arrow stream is nothing for a terminal: pipe it into a program, or write it to a file")
	}
	t.schema = st.Schema
	if t.where != "" {
		if t.filter, err = where.Parse(t.where, st.Schema); err != nil {
			return usagef("--where: %s", err)
		}
	}
	if t.sql != "" {
		if err := t.openQuery(ctx, st, workers); err != nil {
			return err
		}
	}
	switch t.format {
	case "json":
		t.print = &jsonRows{bufio.NewWriter(t.out)}
	case "arrow":
		t.print = &arrowRows{ipc.NewWriter(t.out, ipc.WithSchema(t.schema), ipc.WithDictionaryDeltas(false))}
	default:
		t.print = &tableRows{out: bufio.NewWriter(t.out), fields: t.schema.Fields()}
	}
	return nil
}

// openQuery learns on no rows what the query gives.
func (t *tap) openQuery(ctx context.Context, st *pipeline.Stream, workers *python.Workers) error {
	t.query = workers.SQL("tap", t.sql, []string{st.Name})().(*python.Stage)
	wrong := func(err error) error {
		return usagef("--sql: %s", strings.TrimPrefix(strings.TrimPrefix(err.Error(), flow.ErrBad.Error()+": "), "tap: "))
	}
	if err := t.query.Open(ctx); err != nil {
		return wrong(err)
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, st.Schema)
	defer b.Release()
	none := b.NewRecord()
	defer none.Release()
	made, err := t.query.Process(ctx, none)
	if err != nil {
		return errors.Join(wrong(err), t.query.Close())
	}
	defer flow.ReleaseOutputs(made)
	t.schema = made[0].Record.Schema()
	return nil
}

// run shows what read gives, which borrows its records, until there are enough rows, or it ends.
func (t *tap) run(ctx context.Context, read func(ctx context.Context, give func(arrow.Record)) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	queue := make(chan arrow.Record, tapQueueMax)
	p := pool.New().WithErrors()
	p.Go(func() error {
		defer close(queue)
		return read(ctx, func(rec arrow.Record) { t.give(ctx, queue, rec) })
	})
	err := t.show(ctx, queue)
	stop()
	for rec := range queue {
		rec.Release()
	}
	err = errors.Join(err, p.Wait(), t.print.end())
	if t.query != nil {
		err = errors.Join(err, t.query.Close())
	}
	t.tellDropped()
	return err
}

// give is called by several goroutines.
func (t *tap) give(ctx context.Context, queue chan<- arrow.Record, rec arrow.Record) {
	rec.Retain()
	if t.hurry {
		select {
		case queue <- rec:
		default:
			rec.Release()
			t.dropped.Add(rec.NumRows())
		}
		return
	}
	select {
	case queue <- rec:
	case <-ctx.Done():
		rec.Release()
	}
}

func (t *tap) tellDropped() {
	if n := t.dropped.Swap(0); n > 0 {
		fmt.Fprintf(t.errors, "tap: %d rows passed and are not shown: this is slower than the stream (--where or --sample show fewer)\n", n)
	}
}

// tapTellEvery is how often it is said that rows are not shown.
const tapTellEvery = 5 * time.Second

func (t *tap) show(ctx context.Context, queue <-chan arrow.Record) error {
	left, told := int64(t.rows), time.Now()
	for rec := range queue {
		shown, err := t.showOne(ctx, rec, left)
		rec.Release()
		if err != nil {
			return err
		}
		if t.rows > 0 {
			if left -= shown; left <= 0 {
				return nil
			}
		}
		if time.Since(told) > tapTellEvery {
			t.tellDropped()
			told = time.Now()
		}
	}
	return nil
}

// showOne shows what is asked for of a record, at most left rows where so many are asked for.
func (t *tap) showOne(ctx context.Context, rec arrow.Record, left int64) (shown int64, err error) {
	rec, err = t.picked(rec)
	if err != nil {
		return 0, err
	}
	defer rec.Release()
	if t.query != nil && rec.NumRows() > 0 {
		made, err := t.query.Process(ctx, rec)
		if errors.Is(err, flow.ErrBad) {
			fmt.Fprintf(t.errors, "tap: of a batch of %d rows: %v\n", rec.NumRows(), err)
			return 0, nil
		} else if err != nil {
			return 0, err
		}
		defer flow.ReleaseOutputs(made)
		rec = made[0].Record
		rec.Retain()
		defer rec.Release()
	}
	if rec.NumRows() == 0 || !rec.Schema().Equal(t.schema) && t.format == "arrow" {
		return 0, nil
	}
	if t.rows > 0 && rec.NumRows() > left {
		part := rec.NewSlice(0, left)
		defer part.Release()
		rec = part
	}
	return rec.NumRows(), t.print.record(rec)
}

// picked gives the rows that the condition and chance leave.
func (t *tap) picked(rec arrow.Record) (arrow.Record, error) {
	if t.filter == nil && t.sample == 1 {
		rec.Retain()
		return rec, nil
	}
	var rows []int
	if t.filter != nil {
		rows = t.filter.Rows(rec)
	} else {
		rows = make([]int, rec.NumRows())
		for i := range rows {
			rows[i] = i
		}
	}
	if t.sample < 1 {
		rows = slices.DeleteFunc(rows, func(int) bool { return rand.Float64() >= t.sample }) // #nosec G404 -- a sample to look at
	}
	return columns.Take(memory.DefaultAllocator, rec, rows)
}

// isTerminal says whether somebody looks at what is written.
func isTerminal(out any) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// arrowRows writes an Arrow IPC stream.
type arrowRows struct{ w *ipc.Writer }

func (a *arrowRows) record(rec arrow.Record) error { return a.w.Write(rec) }
func (a *arrowRows) end() error                    { return a.w.Close() }

// jsonRows writes an object a line.
type jsonRows struct{ out *bufio.Writer }

func (j *jsonRows) record(rec arrow.Record) error {
	for i := range int(rec.NumRows()) {
		b, err := json.Marshal(rowOf(rec, i))
		if err != nil {
			b = fmt.Appendf(nil, "{%q:%q}", "error", err)
		}
		if _, err := j.out.Write(append(harmlessJSON(b), '\n')); err != nil {
			return err
		}
	}
	return j.out.Flush()
}

func (j *jsonRows) end() error { return j.out.Flush() }

func rowOf(rec arrow.Record, i int) map[string]any {
	row := map[string]any{}
	for c, f := range rec.Schema().Fields() {
		if col := rec.Column(c); !col.IsNull(i) {
			row[f.Name] = cell(col, i)
		}
	}
	return row
}

func cell(col arrow.Array, i int) any {
	if ts, ok := col.(*array.Timestamp); ok {
		return time.UnixMicro(int64(ts.Value(i))).UTC().Format("2006-01-02T15:04:05.000000Z")
	}
	return col.GetOneForMarshal(i)
}

// tableRows writes a table for a terminal.
type tableRows struct {
	out    *bufio.Writer
	fields []arrow.Field
	widths []int
	headed int // rows printed under the last heading
}

func (t *tableRows) record(rec arrow.Record) error {
	for i := range int(rec.NumRows()) {
		t.line(rowOf(rec, i))
	}
	return t.out.Flush()
}

func (t *tableRows) end() error { return t.out.Flush() }

// Limits of the table: a screenful under each heading, and no column that pushes the others out.
const (
	tapHeadingEvery = 40
	tapCellMax      = 32
)

func (t *tableRows) line(row map[string]any) {
	cells := make([]string, len(t.fields))
	for i, f := range t.fields {
		if v, ok := row[f.Name]; ok {
			cells[i] = printable(v)
		}
	}
	if t.widths == nil {
		t.widths = make([]int, len(cells))
	}
	grown := false
	for i, c := range cells {
		if w := max(len([]rune(c)), len(t.fields[i].Name)); w > t.widths[i] {
			t.widths[i], grown = w, true
		}
	}
	if t.headed%tapHeadingEvery == 0 || grown && t.headed < 5 {
		names := make([]string, len(t.fields))
		for i, f := range t.fields {
			names[i] = f.Name
		}
		t.cells(names)
	}
	t.headed++
	t.cells(cells)
}

func (t *tableRows) cells(cells []string) {
	var b strings.Builder
	for i, c := range cells {
		b.WriteString(c)
		b.WriteString(strings.Repeat(" ", t.widths[i]-len([]rune(c))+2))
	}
	fmt.Fprintln(t.out, strings.TrimRight(b.String(), " "))
}

// printable is a value as a cell: short, and without what would move a terminal's cursor.
func printable(v any) string {
	var s string
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		s = v
	case float64:
		s = fmt.Sprintf("%.6g", v)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return "?"
		}
		s = string(b)
	}
	r := []rune(harmless(s))
	if len(r) > tapCellMax {
		r = append(slices.Clone(r[:tapCellMax-1]), '…')
	}
	return string(r)
}
