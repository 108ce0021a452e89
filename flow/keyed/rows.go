package keyed

import (
	"context"
	"io"
	"reflect"
	"sync/atomic"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// Rows makes a stage of a function on one row and the state of its key: f gets each row of the input as an In, may change the
// state, and the Out it returns becomes a row of the output called to, unless it returns false. In and Out are structs as those
// of [flow.Rows] are, S is one as that of a [Table].
//
//	keyed.Rows("rises", keyed.Settings{Key: []string{"home", "device"}, TTL: time.Hour}, Seen{},
//		func(r reading, s *Seen) (rise, bool) {
//			before := s.Last
//			s.Last = r.Value
//			return rise{r.Time, r.Home, r.Device, r.Value - before}, r.Value > before
//		})
//
// A state that is again the initial one is forgotten. The row of a key too many goes to the dead letters, and f is not asked.
func Rows[In, S, Out any](to string, s Settings, initial S, f func(in In, state *S) (Out, bool)) flow.Stage {
	t, err := New(initial, s)
	k := &rowStage[S]{table: t, err: err}
	k.rows = flow.TryRows(to, func(row int, in In) (out Out, keep bool, err error) {
		state, known := t.Get(row)
		if !known { // the row of a key too many is not to change anything
			if err := t.Put(row, state); err != nil {
				return out, false, err
			}
		}
		out, keep = f(in, &state)
		if reflect.DeepEqual(state, initial) {
			t.Delete(row)
			return out, keep, nil
		}
		return out, keep, t.Put(row, state)
	})
	return k
}

// rowStage is a stage of a function, and the state that it keeps.
type rowStage[S any] struct {
	rows    flow.Stage
	table   *Table[S]
	err     error // of the types and settings
	keys    atomic.Int64
	expired atomic.Int64
}

// Process implements flow.Stage.
func (k *rowStage[S]) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if k.err != nil {
		return nil, k.err
	}
	if err := k.table.Begin(in); err != nil {
		return nil, err
	}
	defer k.count()
	defer k.table.End()
	return k.rows.Process(ctx, in)
}

// Advance implements flow.Timed.
func (k *rowStage[S]) Advance(_ context.Context, watermark flow.Micros) ([]flow.Output, error) {
	if k.err != nil {
		return nil, k.err
	}
	k.table.Advance(watermark)
	k.count()
	return nil, nil
}

// Snapshot implements flow.Stateful.
func (k *rowStage[S]) Snapshot(w io.Writer) error {
	if k.err != nil {
		return k.err
	}
	return k.table.Snapshot(w)
}

// Restore implements flow.Stateful.
func (k *rowStage[S]) Restore(r io.Reader) error {
	if k.err != nil {
		return k.err
	}
	defer k.count()
	return k.table.Restore(r)
}

func (k *rowStage[S]) count() {
	k.keys.Store(int64(k.table.Len()))
	k.expired.Store(k.table.Expired())
}

// Counters implements flow.Counting: the keys that are kept, and those that were forgotten for their age.
func (k *rowStage[S]) Counters() map[string]int64 {
	return map[string]int64{"keys": k.keys.Load(), "keys_expired": k.expired.Load()}
}
