package cases

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// plan says how a case is run again.
type plan struct {
	restart  func() bool // whether to snapshot and restore now; nil is never
	cut      *rand.Rand  // cuts and joins rows; nil leaves the steps
	moreTime bool        // further watermarks where they are true
}

// trace is what came of a run.
type trace struct {
	rows      map[string]map[string][]string // by output and series, in order
	dead      []string                       // row of the case, reason
	bytes     []byte                         // of all outputs, call after call
	snapshots []byte                         // at the end
	moreTime  bool
}

// same compares two runs; strictly, to the byte.
func (t *trace) same(o *trace, strictly bool) error {
	for _, name := range slices.Sorted(maps.Keys(joined(t.rows, o.rows))) {
		for _, series := range slices.Sorted(maps.Keys(joined(t.rows[name], o.rows[name]))) {
			a, b := t.rows[name][series], o.rows[name][series]
			for i := range max(len(a), len(b)) {
				if i >= len(a) || i >= len(b) || a[i] != b[i] {
					return fmt.Errorf("output %q differs in row %d of series %q (%d rows, were %d):\nis  %s\nwas %s",
						name, i, strings.ReplaceAll(series, "\x00", "/"), len(b), len(a), at(b, i), at(a, i))
				}
			}
		}
	}
	// Rows of several windows are refused in an order that the cut decides.
	if was, is := slices.Sorted(slices.Values(t.dead)), slices.Sorted(slices.Values(o.dead)); !slices.Equal(was, is) {
		return fmt.Errorf("the refused rows differ:\nare  %q\nwere %q", is, was)
	}
	if strictly && !bytes.Equal(t.bytes, o.bytes) {
		return errors.New("the outputs hold equal rows, but not in the same bytes: their order, or that of dictionaries, is not fixed")
	}
	if !o.moreTime && !bytes.Equal(t.snapshots, o.snapshots) {
		return errors.New("the outputs are equal, but the state is not: the snapshots at the end differ")
	}
	return nil
}

func joined[V any](a, b map[string]V) map[string]bool {
	all := map[string]bool{}
	for k := range a {
		all[k] = true
	}
	for k := range b {
		all[k] = true
	}
	return all
}

func at(rows []string, i int) string {
	if i >= len(rows) {
		return "nothing"
	}
	return rows[i]
}

// player runs the steps of a case by a plan.
type player struct {
	c     *Case
	r     *runner
	p     plan
	t     *trace
	next  int // number of the next row, counted over the case
	clock flow.Micros
}

// play runs the steps by a plan, and closes what is open with the end of time.
func (c *Case) play(ctx context.Context, made func() (flow.Stage, error), p plan) (t *trace, err error) {
	r, err := newRunner(ctx, c, made)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	pl := &player{c: c, r: r, p: p, t: &trace{rows: map[string]map[string][]string{}, moreTime: p.moreTime}, clock: -1 << 63}
	for i := 0; i < len(c.steps); {
		var rows []cells
		first := i
		for i < len(c.steps) && c.steps[i].kind == "in" && (i == first || p.cut != nil && c.steps[i].input == c.steps[first].input) {
			rows = append(rows, c.steps[i].in...)
			i++
		}
		if first == i {
			if c.steps[i].kind == "advance" {
				if err := pl.advance(c.steps[i].advance); err != nil {
					return nil, err
				}
			}
			i++
		} else if err := pl.rows(c.steps[first].input, rows, c.steps[i:]); err != nil {
			return nil, err
		}
	}
	if pl.t.snapshots, err = r.snapshot(); err != nil {
		return nil, err
	}
	if pl.clock < flow.EndOfTime {
		err = pl.advance(flow.EndOfTime)
	}
	return pl.t, err
}

func (pl *player) note(res result, err error) error {
	if err != nil {
		return err
	}
	if res.err != nil {
		return res.err
	}
	for name, rows := range res.rows {
		for _, r := range rows {
			if pl.t.rows[name] == nil {
				pl.t.rows[name] = map[string][]string{}
			}
			pl.t.rows[name][r.series()] = append(pl.t.rows[name][r.series()], r.String())
		}
	}
	for _, kept := range res.refused {
		pl.t.dead = append(pl.t.dead, fmt.Sprintf("kept: %v: %s", kept.row, kept.why))
	}
	for i, row := range res.bad.Rows {
		pl.t.dead = append(pl.t.dead, fmt.Sprintf("%d: %s", pl.next+row, res.bad.Reasons[i]))
	}
	pl.t.bytes = append(pl.t.bytes, res.bytes...)
	return nil
}

func (pl *player) advance(to flow.Micros) error {
	pl.clock = max(pl.clock, to)
	if err := pl.note(pl.r.advance(to)); err != nil {
		return err
	}
	return pl.restart()
}

func (pl *player) restart() error {
	if pl.p.restart == nil || !pl.p.restart() {
		return nil
	}
	snap, err := pl.r.snapshot()
	if err != nil {
		return err
	}
	return pl.r.restore(snap)
}

// rows gives a stretch of rows, whole or cut; rest is the steps that follow.
func (pl *player) rows(input string, rows []cells, rest []step) error {
	all, err := pl.c.record(pl.r.mem, input, rows)
	if err != nil {
		return err
	}
	defer all.Release()
	if pl.p.cut == nil {
		return pl.give(input, all)
	}
	limit, err := pl.restReceived(rest)
	if err != nil {
		return err
	}
	for from := 0; from < len(rows); {
		to := from + 1 + pl.p.cut.IntN(len(rows)-from)
		if pl.p.moreTime {
			if err := pl.moreTime(min(limit, leastReceived(all, from))); err != nil {
				return err
			}
		}
		if pl.p.cut.IntN(4) == 0 {
			if err := pl.r.zeroRows(pl.c, input); err != nil {
				return err
			}
		}
		if err := pl.giveCut(input, all, rows, from, to); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// giveCut gives some rows as a slice of all, or as a record of their own.
func (pl *player) giveCut(input string, all arrow.Record, rows []cells, from, to int) error {
	part := all.NewSlice(int64(from), int64(to))
	if pl.p.cut.IntN(2) == 0 {
		part.Release()
		var err error
		if part, err = pl.c.record(pl.r.mem, input, rows[from:to]); err != nil {
			return err
		}
	}
	defer part.Release()
	return pl.give(input, part)
}

func (pl *player) give(input string, rec arrow.Record) error {
	if err := pl.note(pl.r.process(input, rec)); err != nil {
		return err
	}
	pl.next += int(rec.NumRows())
	return pl.restart()
}

// moreTime advances to a watermark that no later row nor watermark contradicts.
func (pl *player) moreTime(limit flow.Micros) error {
	if limit <= pl.clock || limit == flow.EndOfTime {
		return nil
	}
	to := limit
	if pl.clock > -1<<62 && pl.p.cut.IntN(2) == 0 {
		to = pl.clock + 1 + flow.Micros(pl.p.cut.Int64N(int64(limit-pl.clock)))
	}
	return pl.advance(to)
}

// restReceived is the least received time, or watermark, of the steps.
func (pl *player) restReceived(rest []step) (flow.Micros, error) {
	least := flow.EndOfTime
	for _, s := range rest {
		switch s.kind {
		case "advance":
			least = min(least, s.advance)
		case "in":
			rec, err := pl.c.record(pl.r.mem, s.input, s.in)
			if err != nil {
				return 0, err
			}
			least = min(least, leastReceived(rec, 0))
			rec.Release()
		}
	}
	return least, nil
}

func leastReceived(rec arrow.Record, from int) flow.Micros {
	least := flow.EndOfTime
	if received, err := flow.Instants(rec, flow.ColReceived); err == nil {
		for _, r := range received[from:] {
			least = min(least, flow.Micros(r))
		}
	}
	return least
}
