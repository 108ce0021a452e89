// Package arrival gives a stage the rows of a stream in the order in which gateways received them, whatever the order in which they
// come: `window:` of a stage that reads a stream with a key (docs/decisions/0038).
//
// In such a stream the batches of several tasks come together, and which comes first is chance. Rows are held until the
// watermark says that no row received before them will come any more, and are then given to the stage by received, by time, and by
// what else they hold. So what the stage makes of them follows from the rows alone: it is the same in a second run of the same
// input, and when tasks catch up each at its pace.
package arrival

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/rowstore"
)

// Limits.
const (
	// BytesMax is what the rows that are held may take. Beyond it those that were received first are not held any longer.
	BytesMax = 256 << 20
	// CallRows is how many rows a call of the stage is given.
	CallRows = 16_384
)

// Stage is the stage with its rows in order. Make it with [New].
type Stage struct {
	inner flow.Stage
	store rowstore.Store
	held  rows
	bytes int64
	max   int64 // of bytes
	under *underway

	rows, hurried atomic.Int64
}

// row is one row that is held.
type row struct {
	received, at flow.Micros
	bytes        int64
	ref          columns.Ref
}

// rows is a heap of them: the one that was received first is the first.
type rows []row

func (r rows) Len() int           { return len(r) }
func (r rows) Less(i, j int) bool { return r[i].received < r[j].received }
func (r rows) Swap(i, j int)      { r[i], r[j] = r[j], r[i] }
func (r *rows) Push(x any)        { *r = append(*r, x.(row)) }
func (r *rows) Pop() any {
	last := (*r)[len(*r)-1]
	*r = (*r)[:len(*r)-1]
	return last
}

// underway is what came of a watermark while rows are given to the stage. It outlives a call that the world failed: the runtime then
// calls again with the same.
type underway struct {
	watermark flow.Micros
	due       []row
	rec       arrow.Record // the rows that the stage is being given, the first of due; nil: none yet
	made      []flow.Output
}

var errAnother = errors.New("arrival: after an error, the same watermark is to come again; something else came")

// New puts the rows of inner in order.
func New(inner flow.Stage) *Stage { return &Stage{inner: inner, max: BytesMax} }

// Open implements flow.Opener.
func (s *Stage) Open(ctx context.Context) error { return flow.Open(ctx, s.inner) }

// Close implements flow.Closer.
func (s *Stage) Close() error {
	if s.under != nil {
		flow.ReleaseOutputs(s.under.made)
		s.under.release()
		s.under = nil
	}
	s.store.Release()
	return flow.Close(s.inner)
}

func (u *underway) release() {
	if u.rec != nil {
		u.rec.Release()
		u.rec = nil
	}
}

// Check implements flow.Checker.
func (s *Stage) Check(stream string, schema *arrow.Schema) error {
	for _, name := range []string{flow.ColTime, flow.ColReceived} {
		if f, ok := schema.FieldsByName(name); !ok || !arrow.TypeEqual(f[0].Type, flow.InstantType) {
			return flow.Badf("no column %q of type %s: rows of a stream with a key are put in the order in which they were received", name, flow.InstantType)
		}
	}
	if err := rowstore.Check(schema); err != nil {
		return flow.Badf("arrival: %v", err)
	}
	return flow.Check(s.inner, stream, schema)
}

// Counters implements flow.Counting.
func (s *Stage) Counters() map[string]int64 {
	all := flow.Counters(s.inner)
	all["arrival_rows"], all["arrival_rows_hurried"] = s.rows.Load(), s.hurried.Load()
	return all
}

// Process holds rows.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if s.under != nil {
		return nil, errAnother
	}
	if in.NumRows() == 0 {
		return s.inner.Process(ctx, in)
	}
	times, err := flow.Instants(in, flow.ColTime)
	if err != nil {
		return nil, err
	}
	received, err := flow.Instants(in, flow.ColReceived)
	if err != nil {
		return nil, err
	}
	if err := s.store.Use(in.Schema()); err != nil {
		return nil, fmt.Errorf("arrival: %w; let the rows that are held go before the schema changes, or begin without them", err)
	}
	sizes, unknown := columns.RowSizes(in), in.Column(in.Schema().FieldIndices(flow.ColReceived)[0])
	chunk := s.store.Add(in)
	for i := range int(in.NumRows()) {
		r := rowOf(flow.Micros(times[i]), flow.Micros(received[i]), sizes[i], columns.Ref{Chunk: chunk, Row: int32(i)}, unknown.IsNull(i))
		heap.Push(&s.held, r)
		s.store.Keep(r.ref)
		s.bytes += r.bytes
	}
	s.rows.Store(int64(len(s.held)))
	return nil, nil
}

// rowOf is a row to be held. One of which nobody knows when it was received waits for nothing.
func rowOf(at, received flow.Micros, bytes int64, ref columns.Ref, unknown bool) row {
	if unknown {
		received = math.MinInt64
	}
	return row{received: received, at: at, bytes: bytes, ref: ref}
}

// Advance gives the stage the rows that were received before the watermark, and then the time.
func (s *Stage) Advance(ctx context.Context, watermark flow.Micros) ([]flow.Output, error) {
	if s.under == nil {
		s.under = &underway{watermark: watermark, due: s.due(watermark)}
	} else if s.under.watermark != watermark {
		return nil, errAnother
	}
	u := s.under
	for len(u.due) > 0 {
		if err := s.give(ctx, u); err != nil {
			return nil, err
		}
	}
	if timed, ok := s.inner.(flow.Timed); ok {
		made, err := timed.Advance(ctx, watermark)
		if err != nil {
			flow.ReleaseOutputs(made)
			return nil, err
		}
		u.made = append(u.made, made...)
	}
	s.under = nil
	s.store.Sweep(columns.Allocator(ctx), func(yield func(*columns.Ref) bool) {
		for i := range s.held {
			if !yield(&s.held[i].ref) {
				return
			}
		}
	})
	s.rows.Store(int64(len(s.held)))
	return u.made, nil
}

// due takes the rows whose turn it is, in their order.
func (s *Stage) due(watermark flow.Micros) []row {
	var due []row
	for len(s.held) > 0 {
		if first := s.held[0].received; first >= watermark && watermark != flow.EndOfTime {
			if s.bytes <= s.max {
				break
			}
			s.hurried.Add(1)
		}
		r := heap.Pop(&s.held).(row)
		s.bytes -= r.bytes
		due = append(due, r)
	}
	texts := map[columns.Ref]string{}
	text := func(r row) string {
		t, ok := texts[r.ref]
		if !ok {
			t = textOf(s.store.Chunk(r.ref.Chunk), int(r.ref.Row))
			texts[r.ref] = t
		}
		return t
	}
	slices.SortStableFunc(due, func(a, b row) int {
		if c := cmp.Or(cmp.Compare(a.received, b.received), cmp.Compare(a.at, b.at)); c != 0 {
			return c
		}
		return cmp.Compare(text(a), text(b))
	})
	return due
}

// textOf is what a row holds. Rows of which it is the same are the same, in whatever order they come.
func textOf(rec arrow.Record, row int) string {
	var b []byte
	for _, c := range rec.Columns() {
		if b = append(b, 0); !c.IsNull(row) {
			b = append(append(b, 1), c.ValueStr(row)...)
		}
	}
	return string(b)
}

// give gives the stage the first rows that are due. What it refuses becomes an output of refused rows: they are none of the
// batch in hand.
func (s *Stage) give(ctx context.Context, u *underway) error {
	n := min(len(u.due), CallRows)
	if u.rec == nil {
		refs := make([]columns.Ref, n)
		for i, r := range u.due[:n] {
			refs[i] = r.ref
		}
		u.rec = s.store.Record(columns.Allocator(ctx), refs)
	}
	made, err := s.inner.Process(ctx, u.rec)
	if err != nil && !errors.Is(err, flow.ErrBad) {
		flow.ReleaseOutputs(made)
		return err
	}
	if err != nil {
		bad := &flow.BadRows{}
		if !errors.As(err, &bad) {
			bad = &flow.BadRows{Reasons: []string{err.Error()}}
		}
		refused, err := refusedOf(ctx, u.rec, bad)
		if err != nil {
			flow.ReleaseOutputs(made)
			return fmt.Errorf("arrival: %w", err)
		}
		made = append(made, refused)
	}
	u.made = append(u.made, made...)
	for _, r := range u.due[:n] {
		s.store.Drop(r.ref)
	}
	u.due = u.due[n:]
	u.release()
	return nil
}

// refusedOf is the output that the refused rows of a record are. No rows named are all of them, for one reason.
func refusedOf(ctx context.Context, rec arrow.Record, bad *flow.BadRows) (flow.Output, error) {
	if bad.Rows == nil {
		rec.Retain()
		return flow.Output{Record: rec, Refused: slices.Repeat(bad.Reasons[:1], int(rec.NumRows()))}, nil
	}
	refused, err := columns.Take(columns.Allocator(ctx), rec, bad.Rows)
	return flow.Output{Record: refused, Refused: bad.Reasons}, err
}
