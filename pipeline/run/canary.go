package run

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/pipeline"
)

// canaried is the second version of a stage that works beside it in a chain. Both get every batch, so that both know all;
// whose rows count is decided by the home.
type canaried struct {
	id      string
	percent float64
	outputs map[string]string // of the second version, by name → the stage's streams
	stage   flow.Stage
	meter   *NodeMeter

	snapshotBytes int
}

// canaryID names a canary's section of the state, and its meter.
func canaryID(stage string) string { return stage + "/" + pipeline.TrialCanary }

// sideOf cuts a record of a version by whose homes its rows are: those that count, and those that are only compared. Both are
// the caller's to release; nil is no row.
func (v *canaried) sideOf(mem func(arrow.Record, []int) (arrow.Record, error), rec arrow.Record, second bool) (counts, side arrow.Record, err error) {
	theirs, err := v.homes(rec)
	if err != nil {
		return nil, nil, err
	}
	var in, out []int
	for row, canary := range theirs {
		if canary == second {
			in = append(in, row)
		} else {
			out = append(out, row)
		}
	}
	if len(in) > 0 {
		if counts, err = mem(rec, in); err != nil {
			return nil, nil, err
		}
	}
	if len(out) > 0 {
		if side, err = mem(rec, out); err != nil && counts != nil {
			counts.Release()
			counts = nil
		}
	}
	return counts, side, err
}

// homes says of each row whether it is of a home that is the canary's.
func (v *canaried) homes(rec arrow.Record) ([]bool, error) {
	names, err := flow.StringsOf(rec, flow.ColHome)
	if err != nil {
		return nil, err
	}
	numbers := columns.NumbersOf(names)
	known := make([]int8, numbers.Size)
	theirs := make([]bool, rec.NumRows())
	for row := range theirs {
		at := numbers.At(row)
		if known[at] == 0 {
			known[at] = 1
			if pipeline.IsCanary(v.id, numbers.Value(at), v.percent) {
				known[at] = 2
			}
		}
		theirs[row] = known[at] == 2
	}
	return theirs, nil
}

// giveBoth hands rec (borrowed), of one of its inputs, to both versions of a stage.
func (c *chain) giveBoth(ctx context.Context, m message, l *chained, input string, rec arrow.Record, out *[]made) error {
	var bad [2]error
	var outputs [2][]flow.Output
	defer func() { flow.ReleaseOutputs(outputs[0]); flow.ReleaseOutputs(outputs[1]) }()
	for i, stage := range []flow.Stage{l.stage, l.canary.stage} {
		meter := l.meter
		if i == 1 {
			meter = l.canary.meter
		}
		start := time.Now()
		err := c.call(ctx, l, "process", func() (err error) {
			outputs[i], err = flow.Give(ctx, stage, input, rec)
			if err != nil && !errors.Is(err, flow.ErrBad) {
				flow.ReleaseOutputs(outputs[i])
				outputs[i] = nil
			}
			return err
		})
		meter.Process.Observe(time.Since(start).Seconds())
		if bad[i] = err; err != nil && !errors.Is(err, flow.ErrBad) {
			return err
		}
	}
	for i, err := range bad {
		if err == nil {
			continue
		}
		if err := c.setAsideOf(m, l, rec, err, i == 1, out); err != nil {
			return err
		}
	}
	return c.routeBoth(ctx, m, l, &outputs, out)
}

// setAsideOf puts the rows that a version refused into the dead letters, where they are of its homes, and counts the others.
func (c *chain) setAsideOf(m message, l *chained, rec arrow.Record, err error, second bool, out *[]made) error {
	theirs, homeless := l.canary.homes(rec)
	if homeless != nil {
		return homeless
	}
	var rows *flow.BadRows
	if !errors.As(err, &rows) {
		rows = &flow.BadRows{Reasons: []string{err.Error()}}
	}
	var own flow.BadRows
	other := int64(0)
	add := func(row int, reason string) {
		if theirs[row] == second {
			own.Add(row, reason)
		} else {
			other++
		}
	}
	if rows.Rows == nil {
		for row := range int(rec.NumRows()) {
			add(row, rows.Reasons[0])
		}
	} else {
		for i, row := range rows.Rows {
			add(row, rows.Reasons[i])
		}
	}
	if second {
		l.canary.meter.Bad.Add(other + int64(len(own.Rows)))
	}
	if own.Err() == nil {
		return nil
	}
	return c.setAside(m, l, rec, own.Err(), out)
}

// routeBoth sends on what counts of both versions' outputs, and the rest to the side streams. It empties outputs.
func (c *chain) routeBoth(ctx context.Context, m message, l *chained, outputs *[2][]flow.Output, out *[]made) error {
	take := func(rec arrow.Record, rows []int) (arrow.Record, error) { return columns.Take(c.mem, rec, rows) }
	for i := range outputs {
		streams := l.node.Outputs
		if i == 1 {
			streams = l.canary.outputs
		}
		for _, o := range outputs[i] {
			if o.Refused != nil && o.Record != nil { // rows that the version had kept
				rows := everyRow(o)
				if err := c.setAsideOf(m, l, o.Record, &rows, i == 1, out); err != nil {
					return err
				}
				continue
			}
			stream, ok := streams[o.To]
			switch {
			case !ok:
				return fmt.Errorf("stage %s returned an output called %q, which pipeline.yaml maps to no stream", l.node.Name, o.To)
			case o.Record == nil:
				return fmt.Errorf("stage %s returned no record for its output %q", l.node.Name, o.To)
			case o.Record.NumRows() == 0 || stream == pipeline.Drop:
				continue
			}
			counts, side, err := l.canary.sideOf(take, o.Record, i == 1)
			if err != nil {
				return fmt.Errorf("stage %s, output %q: %w", l.node.Name, o.To, err)
			}
			if side != nil {
				edge := l.meter.Out(pipeline.Side(stream, pipeline.TrialCanary))
				edge.Rows.Add(side.NumRows())
				edge.Batches.Add(1)
				c.publishable(m, l, pipeline.Side(stream, pipeline.TrialCanary), c.partition, side, out)
				side.Release()
			}
			if counts != nil {
				if err := c.send(ctx, m, l, stream, counts, out); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// advanceBoth tells both versions the time, as far as they care.
func (c *chain) advanceBoth(ctx context.Context, m message, l *chained, out *[]made) error {
	var outputs [2][]flow.Output
	defer func() { flow.ReleaseOutputs(outputs[0]); flow.ReleaseOutputs(outputs[1]) }()
	for i, stage := range []flow.Stage{l.stage, l.canary.stage} {
		t, ok := stage.(flow.Timed)
		if !ok {
			continue
		}
		err := c.call(ctx, l, "advance", func() (err error) {
			outputs[i], err = t.Advance(ctx, m.watermark)
			return err
		})
		if err != nil {
			return timeIsBad(l, m, err)
		}
	}
	return c.routeBoth(ctx, m, l, &outputs, out)
}
