package window

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/columns"
)

// underway is what came of a record, or of a watermark, while closed windows are handed to the stage. It outlives a call that
// the world failed: the runtime then calls again with the same, and what was done is not done again.
type underway struct {
	in        arrow.Record // whose rows are taken already; nil for a watermark
	watermark flow.Micros
	time      bool // it is a watermark
	calls     [][]closed
	made      []flow.Output
	bad       flow.BadRows
}

var errAnother = errors.New("window: after an error, the same batch is to come again; another came")

// resume goes on where the world failed.
func (s *Stage) resume(ctx context.Context, in arrow.Record, watermark flow.Micros) ([]flow.Output, error) {
	if s.under.in != in || s.under.watermark != watermark {
		return nil, errAnother
	}
	return s.finish(ctx)
}

// begin parts the windows that closed into calls.
func (s *Stage) begin(u *underway) {
	slices.SortStableFunc(s.closing, func(a, b closed) int {
		return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.start, b.start), cmp.Compare(a.key, b.key))
	})
	rows := 0
	for i, w := range s.closing {
		if i == 0 || rows+len(w.refs) > CallRows {
			u.calls, rows = append(u.calls, nil), 0
		}
		last := len(u.calls) - 1
		u.calls[last] = append(u.calls[last], w)
		rows += len(w.refs)
	}
	s.counts.windows.Add(int64(len(s.closing)))
	s.closing = nil
	s.under = u
}

// finish makes the calls that are left, and gives what came of all.
func (s *Stage) finish(ctx context.Context) ([]flow.Output, error) {
	u := s.under
	for len(u.calls) > 0 {
		windows := u.calls[0]
		made, err := s.call(ctx, windows)
		if one := (*apart)(nil); errors.As(err, &one) {
			u.calls = slices.Insert(u.calls[1:], 0, one.calls...)
			continue
		}
		if err != nil {
			return nil, err
		}
		u.made, u.calls = append(u.made, made...), u.calls[1:]
	}
	if timed, ok := s.inner.(flow.Timed); ok && u.time {
		made, err := timed.Advance(ctx, u.watermark)
		if err == nil {
			err = s.clash(made)
		}
		if err != nil {
			flow.ReleaseOutputs(made)
			return nil, err
		}
		u.made = append(u.made, made...)
	}
	s.under = nil
	s.sweep(ctx)
	return u.made, u.bad.Err()
}

// sweep gives back the rows that nobody needs any more.
func (s *Stage) sweep(ctx context.Context) {
	for _, r := range s.dropped {
		s.store.Drop(r)
	}
	s.dropped = s.dropped[:0]
	s.store.Sweep(columns.Allocator(ctx), func(yield func(*columns.Ref) bool) {
		for k := range s.keys.byAge {
			for i := range k.rows {
				if !yield(&k.rows[i].ref) {
					return
				}
			}
		}
	})
	s.counts.keys.Store(int64(len(s.keys.byName)))
	s.counts.rows.Store(int64(s.store.Len()))
}

// apart says that each window is to be handed over alone: one of them is bad, and the others are not to share its fate.
type apart struct{ calls [][]closed }

func (*apart) Error() string { return "window: one of several is bad" }

// call hands windows to the stage. What it refuses becomes an output of refused rows: they are none of the input's.
func (s *Stage) call(ctx context.Context, windows []closed) ([]flow.Output, error) {
	rec := s.record(ctx, windows)
	defer rec.Release()
	made, err := process(ctx, s.inner, rec)
	if clash := s.clash(made); clash != nil {
		flow.ReleaseOutputs(made)
		return nil, clash
	}
	var rows *flow.BadRows
	switch {
	case err == nil:
		return made, nil
	case errors.As(err, &rows):
		refused, err := columns.Take(columns.Allocator(ctx), rec, rows.Rows)
		if err != nil {
			flow.ReleaseOutputs(made)
			return nil, fmt.Errorf("window: %w", err)
		}
		return append(made, flow.Output{Record: refused, Refused: rows.Reasons}), nil
	}
	flow.ReleaseOutputs(made)
	if !errors.Is(err, flow.ErrBad) {
		return nil, err
	}
	if _, remembers := s.inner.(flow.Stateful); len(windows) > 1 && !remembers {
		alone := &apart{}
		for _, w := range windows {
			alone.calls = append(alone.calls, []closed{w})
		}
		return nil, alone
	}
	rec.Retain()
	return []flow.Output{{Record: rec, Refused: slices.Repeat([]string{plainly(err)}, int(rec.NumRows()))}}, nil
}

// process calls the stage. A panic is bad data, as the runtime has it: it must not undo what is known of the windows.
func process(ctx context.Context, inner flow.Stage, rec arrow.Record) (made []flow.Output, err error) {
	defer func() {
		if p := recover(); p != nil {
			made, err = nil, flow.Badf("the stage panicked: %v", p)
		}
	}()
	return inner.Process(ctx, rec)
}

// record is the rows of windows, with the bounds of these. The caller releases it.
func (s *Stage) record(ctx context.Context, windows []closed) arrow.Record {
	var refs []columns.Ref
	var starts, ends []arrow.Timestamp
	for _, w := range windows {
		refs = append(refs, w.refs...)
		for range w.refs {
			starts, ends = append(starts, arrow.Timestamp(w.start)), append(ends, arrow.Timestamp(w.end))
		}
	}
	mem := columns.Allocator(ctx)
	cols := append(s.store.Columns(mem, refs, nil), columns.Instants(mem, starts), columns.Instants(mem, ends))
	return columns.Record(Schema(s.store.Schema()), cols...)
}
