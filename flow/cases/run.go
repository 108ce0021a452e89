package cases

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/compute/exec"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/flow/window"
)

// rounds is how often a case is cut at random.
const rounds = 5

// Seed is $FLOWTEST_SEED, else another each time.
func Seed() (uint64, error) {
	s := os.Getenv("FLOWTEST_SEED")
	if s == "" {
		return rand.Uint64(), nil // #nosec G404 -- where cases are cut
	}
	seed, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("FLOWTEST_SEED: %w", err)
	}
	return seed, nil
}

// Name is what the case shows.
func (c *Case) Name() string { return c.name }

// At is where it stands: file:line.
func (c *Case) At() string { return c.at }

// Check runs the case against the stage that newStage makes, in all ways. seed chooses where it is cut. A panic of the stage is an error.
func (c *Case) Check(ctx context.Context, newStage func() flow.Stage, seed uint64) (err error) {
	if c.refuses != "" {
		return c.check(ctx, newStage, seed)
	}
	// What several instances share (processes, a file in memory) is kept from one way to the next.
	kept, err := c.open(ctx, newStage)
	if err != nil {
		return err
	}
	return errors.Join(c.check(ctx, newStage, seed), flow.Close(kept))
}

func (c *Case) check(ctx context.Context, newStage func() flow.Stage, seed uint64) (err error) {
	made := func() (flow.Stage, error) { return c.open(ctx, newStage) }
	if c.refuses != "" {
		return c.checkRefuses(made)
	}
	if err := c.asWritten(ctx, made, false); err != nil {
		return err
	}
	// An input that the stage refuses as a whole, it refuses without rows too.
	if slices.ContainsFunc(c.steps, func(s step) bool { return s.err == "" }) {
		if err := c.asWritten(ctx, made, true); err != nil {
			return fmt.Errorf("with zero rows first: %w", err)
		}
	}
	if slices.ContainsFunc(c.steps, func(s step) bool { return s.kind == "restore" || s.err != "" }) {
		return nil // what is undone or fails as a whole cannot be cut in other ways
	}
	want, err := c.play(ctx, made, plan{})
	if err != nil {
		return err
	}
	again, err := c.play(ctx, made, plan{})
	if err == nil {
		err = want.same(again, true)
	}
	if err != nil {
		return fmt.Errorf("a second time: %w", err)
	}
	restarted, err := c.play(ctx, made, plan{restart: func() bool { return true }})
	if err == nil {
		err = want.same(restarted, true)
	}
	if err != nil {
		return fmt.Errorf("restored after each step: %w", err)
	}
	for i := range rounds {
		rng := rand.New(rand.NewPCG(seed, uint64(i))) // #nosec G404 -- where a case is cut
		for _, moreTime := range []bool{false, true} {
			cut, err := c.play(ctx, made, plan{cut: rng, moreTime: moreTime, restart: func() bool { return rng.IntN(3) == 0 }})
			if err == nil {
				err = want.same(cut, false)
			}
			if err != nil && moreTime {
				return fmt.Errorf("cut at random (round %d), with further watermarks: %w", i, err)
			}
			if err != nil {
				return fmt.Errorf("cut at random (round %d): %w", i, err)
			}
		}
	}
	return nil
}

// open makes a stage with the settings of the case.
func (c *Case) open(ctx context.Context, newStage func() flow.Stage) (flow.Stage, error) {
	s := newStage()
	if c.settings != nil {
		if err := decodeStrictly(c.settings, s); err != nil {
			return nil, fmt.Errorf("settings: %w", err)
		}
	}
	if c.window != nil {
		s = window.New(c.window, true, s)
	}
	if err := flow.Open(ctx, s); err != nil {
		if c.settings != nil {
			return nil, fmt.Errorf("line %d: open: %w", c.settings.Line, err)
		}
		return nil, fmt.Errorf("open: %w", err)
	}
	return s, nil
}

func (c *Case) checkRefuses(made func() (flow.Stage, error)) error {
	s, err := made()
	if err == nil {
		for _, input := range c.inputNames() {
			if err == nil {
				err = flow.Check(s, "input", c.schemaOf(input))
			}
		}
		if err := flow.Close(s); err != nil {
			return err
		}
	}
	switch {
	case err == nil:
		return fmt.Errorf("the settings were taken; want an error that holds %q", c.refuses)
	case !strings.Contains(err.Error(), c.refuses):
		return fmt.Errorf("got the error %q; want one that holds %q", err, c.refuses)
	}
	return nil
}

// runner runs one stage, and holds it to what can be seen of every call.
type runner struct {
	c       *Case
	ctx     context.Context
	made    func() (flow.Stage, error)
	mem     *memory.CheckedAllocator
	stage   flow.Stage
	schemas map[string]*arrow.Schema // of outputs, as first seen
	refused error                    // what the stage said of what its inputs hold
}

func newRunner(ctx context.Context, c *Case, made func() (flow.Stage, error)) (*runner, error) {
	r := &runner{c: c, made: made, mem: memory.NewCheckedAllocator(memory.NewGoAllocator()), schemas: map[string]*arrow.Schema{}}
	r.ctx = exec.WithAllocator(ctx, r.mem)
	var err error
	if r.stage, err = made(); err != nil {
		return nil, err
	}
	if err := r.prime(); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// prime tells a stage that tells its inputs apart what they hold, as the runtime does before the first batch.
func (r *runner) prime() error {
	s, ok := r.stage.(flow.Inputs)
	switch {
	case ok != (r.c.inputs != nil):
		return errors.New("a stage that tells its inputs apart, and no other, has cases with `input: {NAME: columns}`")
	case !ok:
		return nil
	}
	for _, name := range s.InputNames() {
		if r.c.inputs[name] == nil {
			return fmt.Errorf("the case does not say what the input %s holds: input: {%s: [events]}", name, name)
		}
	}
	made, err := flow.Prime(r.ctx, s, func(input string) *arrow.Schema { return r.c.inputs[input] })
	defer flow.ReleaseOutputs(made)
	r.refused = err
	return nil
}

// result is what one call gave.
type result struct {
	rows    map[string][]outRow
	bytes   []byte // of the outputs
	bad     flow.BadRows
	refused []refusedRow // rows that it had kept
	err     error
}

// refusedRow is a row that the stage had kept, and found bad.
type refusedRow struct {
	row outRow
	why string
}

func (r *runner) process(input string, in arrow.Record) (res result, err error) {
	if r.refused != nil {
		return result{err: r.refused}, nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("process panicked: %v", p)
		}
	}()
	before, err := ipcBytes(in)
	if err != nil {
		return res, err
	}
	outs, procErr := flow.Give(r.ctx, r.stage, input, in)
	res, err = r.take(outs)
	if err != nil {
		return res, err
	}
	after, err := ipcBytes(in)
	if err != nil {
		return res, err
	}
	if !bytes.Equal(before, after) {
		return res, errors.New("process changed its input, which is only borrowed")
	}
	var bad *flow.BadRows
	switch {
	case errors.As(procErr, &bad):
		res.bad = *bad
		return res, checkBad(bad, in.NumRows())
	case procErr != nil && len(outs) > 0:
		return res, fmt.Errorf("process returned outputs beside an error that is no BadRows: %w", procErr)
	}
	res.err = procErr
	return res, nil
}

func checkBad(bad *flow.BadRows, rows int64) error {
	if len(bad.Rows) != len(bad.Reasons) || len(bad.Rows) == 0 {
		return fmt.Errorf("BadRows has %d rows and %d reasons", len(bad.Rows), len(bad.Reasons))
	}
	for i, row := range bad.Rows {
		if row < 0 || int64(row) >= rows || i > 0 && row <= bad.Rows[i-1] {
			return fmt.Errorf("BadRows.Rows is %v of %d rows; it must be ascending and within", bad.Rows, rows)
		}
		if bad.Reasons[i] == "" {
			return fmt.Errorf("row %d is bad without a reason", row)
		}
	}
	return nil
}

func (r *runner) advance(to flow.Micros) (res result, err error) {
	timed, ok := r.stage.(flow.Timed)
	if !ok {
		return res, nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("advance panicked: %v", p)
		}
	}()
	outs, advErr := timed.Advance(r.ctx, to)
	res, err = r.take(outs)
	res.err = advErr
	return res, err
}

// take reads the outputs of a call and gives them back.
func (r *runner) take(outs []flow.Output) (result, error) {
	res := result{rows: map[string][]outRow{}}
	for _, o := range outs {
		if o.Record == nil {
			return res, fmt.Errorf("output %q has no record", o.To)
		}
		defer o.Record.Release()
		if o.Refused != nil {
			if int64(len(o.Refused)) != o.Record.NumRows() {
				return res, fmt.Errorf("%d rows are refused for %d reasons", o.Record.NumRows(), len(o.Refused))
			}
			for i, row := range rowsOfRecord(o.Record) {
				res.refused = append(res.refused, refusedRow{row, o.Refused[i]})
			}
			continue
		}
		if s, seen := r.schemas[o.To]; !seen {
			r.schemas[o.To] = o.Record.Schema()
		} else if !s.Equal(o.Record.Schema()) {
			return res, fmt.Errorf("output %q had the schema\n%v\nand now has\n%v", o.To, s, o.Record.Schema())
		}
		for i, f := range o.Record.Schema().Fields() {
			if !f.Nullable && o.Record.Column(i).NullN() > 0 {
				return res, fmt.Errorf("output %q: column %q has %d nulls and is not nullable", o.To, f.Name, o.Record.Column(i).NullN())
			}
		}
		res.rows[o.To] = append(res.rows[o.To], rowsOfRecord(o.Record)...)
		b, err := ipcBytes(o.Record)
		if err != nil {
			return res, err
		}
		res.bytes = append(append(res.bytes, o.To...), b...)
	}
	return res, nil
}

// zeroRows sends zero rows: nothing may come of it but the schemas of all outputs.
func (r *runner) zeroRows(c *Case, input string) error {
	in, err := c.record(r.mem, input, nil)
	if err != nil {
		return err
	}
	defer in.Release()
	res, err := r.process(input, in)
	if err == nil {
		err = res.err
	}
	if err != nil {
		return fmt.Errorf("zero rows: %w", err)
	}
	for name, rows := range res.rows {
		if len(rows) > 0 {
			return fmt.Errorf("zero rows gave %d rows of %q", len(rows), name)
		}
	}
	return nil
}

func (r *runner) snapshot() ([]byte, error) {
	s, ok := r.stage.(flow.Stateful)
	if !ok {
		return nil, nil
	}
	var b, again bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if err := s.Snapshot(&again); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		return nil, errors.New("two snapshots of the same state differ")
	}
	return b.Bytes(), nil
}

// restore gives a snapshot to a fresh instance, which must then give the same snapshot.
func (r *runner) restore(snap []byte) error {
	if _, ok := r.stage.(flow.Stateful); !ok {
		return nil
	}
	if err := flow.Close(r.stage); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	var err error
	if r.stage, err = r.made(); err != nil {
		return err
	}
	if err := r.stage.(flow.Stateful).Restore(bytes.NewReader(snap)); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if err := r.prime(); err != nil {
		return err
	}
	back, err := r.snapshot()
	if err != nil {
		return err
	}
	if !bytes.Equal(snap, back) {
		return fmt.Errorf("restored, the state gives another snapshot (%d bytes, were %d)", len(back), len(snap))
	}
	return nil
}

// close ends the stage and counts what is still allocated.
func (r *runner) close() error {
	err := flow.Close(r.stage)
	if n := r.mem.CurrentAlloc(); n != 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes of Arrow memory were not given back: a Release is missing", n))
	}
	return err
}

func ipcBytes(rec arrow.Record) ([]byte, error) {
	var b bytes.Buffer
	w := ipc.NewWriter(&b, ipc.WithSchema(rec.Schema()))
	if err := w.Write(rec); err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}

// asWritten runs the steps as they are, and compares each with what it wants.
func (c *Case) asWritten(ctx context.Context, made func() (flow.Stage, error), zeroFirst bool) (err error) {
	r, err := newRunner(ctx, c, made)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if zeroFirst {
		for _, input := range c.inputNames() {
			if err := r.zeroRows(c, input); err != nil {
				return err
			}
		}
	}
	outputs := slices.Sorted(maps.Keys(r.schemas))
	snapshots := map[string][]byte{}
	for _, s := range c.steps {
		if err := c.runStep(r, s, snapshots); err != nil {
			return fmt.Errorf("line %d: %w", s.line, err)
		}
	}
	if seen := slices.Sorted(maps.Keys(r.schemas)); zeroFirst && !slices.Equal(outputs, seen) {
		return fmt.Errorf("zero rows told of the outputs %v; there were %v", outputs, seen)
	}
	return nil
}

func (c *Case) runStep(r *runner, s step, snapshots map[string][]byte) error {
	var res result
	switch s.kind {
	case "in":
		in, err := c.record(r.mem, s.input, s.in)
		if err != nil {
			return err
		}
		defer in.Release()
		if res, err = r.process(s.input, in); err != nil {
			return err
		}
	case "advance":
		if _, ok := r.stage.(flow.Timed); !ok {
			return errors.New("advance: the stage is not one that acts on time")
		}
		var err error
		if res, err = r.advance(s.advance); err != nil {
			return err
		}
	case "snapshot":
		if _, ok := r.stage.(flow.Stateful); !ok {
			return errors.New("snapshot: the stage keeps no state")
		}
		snap, err := r.snapshot()
		if err != nil {
			return err
		}
		snapshots[s.name] = snap
	case "restore":
		snap, ok := snapshots[s.name]
		if !ok {
			return fmt.Errorf("restore: no snapshot %q was made before", s.name)
		}
		if err := r.restore(snap); err != nil {
			return err
		}
	}
	if c.observe != nil {
		return c.observe(r, s, res)
	}
	return c.compare(r, s, res)
}

// compareRefused compares the rows that the stage had kept and refused, in their order, with the wanted ones that name no
// row of the step, and gives the wanted ones that do.
func (c *Case) compareRefused(b *strings.Builder, want []deadRow, got []refusedRow) (rest []deadRow) {
	for _, w := range want {
		switch {
		case w.row >= 0:
			rest = append(rest, w)
		case len(got) == 0:
			fmt.Fprintf(b, "a row that was kept should be bad (%s), and none is left\n", w.reason)
		default:
			if !strings.Contains(got[0].why, w.reason) {
				fmt.Fprintf(b, "a row that was kept is bad for %q; want %q\n", got[0].why, w.reason)
			}
			got = got[1:]
		}
	}
	for _, g := range got {
		fmt.Fprintf(b, "a row that was kept is bad and should not be: %v: %s\n", g.row, g.why)
	}
	return rest
}

// diffDead compares the rows that were refused.
func (c *Case) diffDead(b *strings.Builder, s step, res result) {
	dead := c.compareRefused(b, s.dead, res.refused)
	for i := range max(len(dead), len(res.bad.Rows)) {
		switch {
		case i >= len(dead):
			fmt.Fprintf(b, "row %d is bad and should not be: %s\n", res.bad.Rows[i], res.bad.Reasons[i])
		case i >= len(res.bad.Rows):
			fmt.Fprintf(b, "row %d should be bad (%s) and is not\n", dead[i].row, dead[i].reason)
		case dead[i].row != res.bad.Rows[i] || !strings.Contains(res.bad.Reasons[i], dead[i].reason):
			fmt.Fprintf(b, "bad row: got %d, %q; want %d, %q\n", res.bad.Rows[i], res.bad.Reasons[i], dead[i].row, dead[i].reason)
		}
	}
}

func (c *Case) compare(r *runner, s step, res result) error {
	switch {
	case s.err == "" && res.err != nil:
		return fmt.Errorf("it failed: %w", res.err)
	case s.err != "" && res.err == nil:
		return fmt.Errorf("it did not fail; want an error that holds %q", s.err)
	case s.err != "" && !strings.Contains(res.err.Error(), s.err):
		return fmt.Errorf("it failed: %w\nwant an error that holds %q", res.err, s.err)
	case s.err != "":
		return nil
	}
	var b strings.Builder
	if !s.any {
		all := slices.Collect(maps.Keys(s.want))
		all = slices.AppendSeq(all, maps.Keys(res.rows))
		slices.Sort(all)
		for _, name := range slices.Compact(all) {
			if schema := r.schemas[name]; schema == nil {
				fmt.Fprintf(&b, "there is no output %q; there are %v\n", name, slices.Sorted(maps.Keys(r.schemas)))
			} else {
				b.WriteString(c.diff(name, res.rows[name], schema, s.want[name]))
			}
		}
	}
	c.diffDead(&b, s, res)
	if len(s.counters) > 0 {
		counting, ok := r.stage.(interface{ Counters() map[string]int64 })
		if !ok {
			return errors.New("counters: the stage has no method Counters() map[string]int64")
		}
		got := counting.Counters()
		for _, name := range slices.Sorted(maps.Keys(s.counters)) {
			if v, ok := got[name]; !ok || v != s.counters[name] {
				fmt.Fprintf(&b, "counter %s is %d, want %d\n", name, v, s.counters[name])
			}
		}
	}
	if b.Len() > 0 {
		return fmt.Errorf("not what was wanted:\n%s", b.String())
	}
	return nil
}
