// Package join pairs rows of two streams that have the same key and happened within a time of each other.
//
// Inputs: "left" and "right", any schemas with the columns time, received and those of the key (On). A pair is a row of each
// whose keys are equal and whose times are at most Within apart, provided that the second of them was received at most Within and
// Lateness after the first: so long are rows kept. That is decided by the rows' own times, whatever came in between. A
// row whose key holds a null has no counterpart.
//
// Output "pairs": the columns of the left row, then those of the right one but for the key's; where a name is taken, it gets the
// prefix. received is when the second of the two was received. With kind left, a left row without a counterpart
// comes too, with nulls for the right one, once it has been kept for as long as rows are; received is then that time.
package join

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/deadline"
	"hearthline/flow/rowstore"
)

// Stage is the stage and its settings. Make it with [New].
type Stage struct {
	// On are the columns of the key; both inputs have them.
	On []string `yaml:"on"`
	// Within is how far apart the times of a pair may be.
	Within time.Duration `yaml:"within"`
	// Lateness is how much longer than Within a row waits for one that is received late.
	Lateness time.Duration `yaml:"lateness"`
	// Kind is inner (pairs alone) or left (left rows without a counterpart, too).
	Kind string `yaml:"kind"`
	// Prefix stands before the name of a column of the right rows that left ones have too.
	Prefix string `yaml:"prefix"`
	// RowsPerKey is how many rows of each input are kept for one key; further ones are refused.
	RowsPerKey int `yaml:"rows_per_key"`

	sides   [2]side
	out     *arrow.Schema
	keys    map[string]*key
	order   *list.List // of keys, by their last row
	queue   deadline.Queue[*key]
	bytes   int64
	scratch []byte

	counts struct{ unmatched, refused, rows, keys atomic.Int64 }
}

// side is one of the inputs.
type side struct {
	schema  *arrow.Schema
	store   rowstore.Store
	picked  []int // columns that pairs have
	dropped []columns.Ref
}

// key is what is kept of one key.
type key struct {
	deadline.Deadline // when the first of its rows has been kept long enough

	name string
	rows [2][]row // by side, in the order of arrival
	at   *list.Element
}

// row is one row that is kept.
type row struct {
	time, received flow.Micros
	ref            columns.Ref
	bytes          int64
	paired         bool
}

// Limits beyond the settings.
const (
	// bytesMax bounds what the rows kept in a partition take. Rows beyond it are refused.
	bytesMax = 512 << 20
	// pairsMax is how many pairs one batch may make. Rows of it that would make more are refused.
	pairsMax = 1 << 20
)

const (
	left = iota
	right
)

var inputs = []string{"left", "right"}

// New gives the stage with its defaults.
func New() *Stage {
	return &Stage{On: []string{flow.ColHome, flow.ColDevice}, Within: 5 * time.Minute, Lateness: 30 * time.Second, Kind: "inner", Prefix: "right_", RowsPerKey: 1000, keys: map[string]*key{}, order: list.New()}
}

// InputNames implements flow.Inputs.
func (*Stage) InputNames() []string { return inputs }

// Process implements flow.Stage: it is not called, as the stage tells its inputs apart.
func (*Stage) Process(context.Context, arrow.Record) ([]flow.Output, error) {
	return nil, flow.Badf("join: write from: {left: STREAM, right: STREAM}")
}

// Open checks the settings.
func (s *Stage) Open(context.Context) error { return s.check() }

// Check lets lint find bad settings before anything starts.
func (s *Stage) Check(string, *arrow.Schema) error { return s.check() }

func (s *Stage) check() error {
	const most = 7 * 24 * time.Hour
	switch {
	case len(s.On) == 0:
		return errors.New("join: on is empty; name the columns of the key, such as [home, device]")
	case s.Within < 0 || s.Within > most:
		return fmt.Errorf("join: within is %v; want 0s to %v", s.Within, most)
	case s.Lateness < 0 || s.Lateness > most:
		return fmt.Errorf("join: lateness is %v; want 0s to %v", s.Lateness, most)
	case s.Kind != "inner" && s.Kind != "left":
		return fmt.Errorf("join: kind is %q; want inner or left", s.Kind)
	case s.RowsPerKey < 1 || s.RowsPerKey > 100_000:
		return fmt.Errorf("join: rows_per_key is %d; want 1 to 100000", s.RowsPerKey)
	}
	return nil
}

// Close gives back the rows that are kept.
func (s *Stage) Close() error {
	s.sides[left].store.Release()
	s.sides[right].store.Release()
	return nil
}

// Counters says what rows in and out do not show. It may be called at any time by any goroutine.
func (s *Stage) Counters() map[string]int64 {
	return map[string]int64{
		"unmatched": s.counts.unmatched.Load(), // rows of both inputs that went without a counterpart
		"refused":   s.counts.refused.Load(),   // rows beyond a limit
		"rows":      s.counts.rows.Load(),      // kept now
		"keys":      s.counts.keys.Load(),      // of these
	}
}

func (s *Stage) within() flow.Micros { return flow.Micros(s.Within.Microseconds()) }

// patience is how long after it was received a row is kept.
func (s *Stage) patience() flow.Micros { return flow.Micros((s.Within + s.Lateness).Microseconds()) }

// learn notes the schema of an input, and with both of them that of the output.
func (s *Stage) learn(at int, in arrow.Record) error {
	side := &s.sides[at]
	if side.schema == in.Schema() || side.schema != nil && side.schema.Equal(in.Schema()) {
		return nil
	}
	for _, name := range []string{flow.ColTime, flow.ColReceived} {
		if _, err := flow.Instants(in, name); err != nil {
			return err
		}
	}
	if _, err := columns.KeyOf(in, s.On); err != nil {
		return err
	}
	if err := rowstore.Check(in.Schema()); err != nil {
		return flow.Badf("join: %v", err)
	}
	if err := side.store.Use(in.Schema()); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	side.schema, side.picked = in.Schema(), nil
	for i, f := range side.schema.Fields() {
		if at == left || !slices.Contains(s.On, f.Name) {
			side.picked = append(side.picked, i)
		}
	}
	if s.sides[left].schema == nil || s.sides[right].schema == nil {
		return nil
	}
	fields := slices.Clone(s.sides[left].schema.Fields())
	for _, i := range s.sides[right].picked {
		f := s.sides[right].schema.Field(i)
		if s.sides[left].schema.HasField(f.Name) {
			f.Name = s.Prefix + f.Name
		}
		if slices.ContainsFunc(fields, func(o arrow.Field) bool { return o.Name == f.Name }) {
			return flow.Badf("join: both have the column %q; choose another prefix", f.Name)
		}
		f.Nullable = f.Nullable || s.Kind == "left"
		fields = append(fields, f)
	}
	s.out = arrow.NewSchema(fields, nil)
	return nil
}

// pairs are what is on its way out.
type pairs struct {
	refs     [2][]columns.Ref
	received []arrow.Timestamp
}

func (p *pairs) add(l, r columns.Ref, received flow.Micros) {
	p.refs[left], p.refs[right] = append(p.refs[left], l), append(p.refs[right], r)
	p.received = append(p.received, arrow.Timestamp(received))
}

// ProcessInput implements flow.Inputs.
func (s *Stage) ProcessInput(ctx context.Context, input string, in arrow.Record) ([]flow.Output, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	at := slices.Index(inputs, input)
	if at < 0 {
		return nil, flow.Badf("join: there is no input %q", input)
	}
	if err := s.learn(at, in); err != nil {
		return nil, err
	}
	if s.out == nil {
		return nil, nil // the schema of the other input is not known yet
	}
	var out pairs
	bad, err := s.take(at, in, &out)
	if err != nil {
		return nil, err
	}
	made := s.outputs(ctx, &out)
	s.sweep(ctx)
	return made, bad.Err()
}

// take pairs the rows of a record with those that are kept, and keeps them.
func (s *Stage) take(at int, in arrow.Record, out *pairs) (bad flow.BadRows, err error) {
	if in.NumRows() == 0 {
		return bad, nil
	}
	times, err := flow.Instants(in, flow.ColTime)
	if err != nil {
		return bad, err
	}
	received, err := flow.Instants(in, flow.ColReceived)
	if err != nil {
		return bad, err
	}
	on, err := columns.KeyOf(in, s.On)
	if err != nil {
		return bad, err
	}
	chunk, sizes := s.sides[at].store.Add(in), columns.RowSizes(in)
	for i := range int(in.NumRows()) {
		r := row{time: flow.Micros(times[i]), received: flow.Micros(received[i]), ref: columns.Ref{Chunk: chunk, Row: int32(i)}, bytes: sizes[i]}
		if outside(r.time) || outside(r.received) {
			bad.Add(i, "join: time or received is thousands of years away")
			continue
		}
		if on.HasNull(i) {
			s.alone(at, r, r.received, out)
			continue
		}
		s.scratch = on.Append(s.scratch[:0], i)
		k := s.keyOf(s.scratch)
		if k.At() < r.received { // it was kept too long to be paired with this one
			s.expire(k, r.received, func(r row) { s.alone(left, r, r.received+s.patience(), out) })
		}
		if why := s.full(k, at, r, len(out.received)); why != "" {
			s.counts.refused.Add(1)
			bad.Add(i, why)
		} else {
			s.pair(k, at, &r, out)
			k.rows[at] = append(k.rows[at], r)
			s.sides[at].store.Keep(r.ref)
			s.bytes += r.bytes
		}
		s.schedule(k)
	}
	return bad, nil
}

// outside says whether a time is so far away that a sum with it could overflow.
func outside(at flow.Micros) bool { return at > 1<<61 || at < -1<<61 }

// full says why a row is refused; "" when it is not.
func (s *Stage) full(k *key, at int, r row, made int) string {
	switch {
	case len(k.rows[at]) >= s.RowsPerKey:
		return fmt.Sprintf("join: %d rows of its key are kept, the most that may be (rows_per_key)", s.RowsPerKey)
	case s.bytes+r.bytes > bytesMax:
		return fmt.Sprintf("join: the rows kept in its partition take %d MiB, the most that they may", bytesMax>>20)
	case made+len(k.rows[1-at]) > pairsMax:
		return fmt.Sprintf("join: its batch makes %d pairs, the most that one may", pairsMax)
	}
	return ""
}

// pair gives the pairs of a row with those of the other side that are kept.
func (s *Stage) pair(k *key, at int, r *row, out *pairs) {
	for i := range k.rows[1-at] {
		o := &k.rows[1-at][i]
		if apart(o.time, r.time) > s.within() || apart(o.received, r.received) > s.patience() {
			continue
		}
		o.paired, r.paired = true, true
		l, rr := r, o
		if at == right {
			l, rr = o, r
		}
		out.add(l.ref, rr.ref, max(l.received, rr.received))
	}
}

func apart(a, b flow.Micros) flow.Micros {
	if a > b {
		return a - b
	}
	return b - a
}

// alone gives a left row that found no counterpart, where they are wanted.
func (s *Stage) alone(at int, r row, when flow.Micros, out *pairs) {
	s.counts.unmatched.Add(1)
	if at == left && s.Kind == "left" {
		out.add(r.ref, columns.NoRow, when)
	}
}

// expire lets the rows of a key go that were received too long before clock; left ones that were never paired go to alone.
func (s *Stage) expire(k *key, clock flow.Micros, alone func(row)) {
	for at := range k.rows {
		kept := k.rows[at][:0]
		for _, r := range k.rows[at] {
			if r.received+s.patience() >= clock {
				kept = append(kept, r)
				continue
			}
			switch {
			case r.paired:
			case at == left:
				alone(r)
			default:
				s.counts.unmatched.Add(1)
			}
			s.sides[at].dropped = append(s.sides[at].dropped, r.ref)
			s.bytes -= r.bytes
		}
		k.rows[at] = kept
	}
}

// schedule notes when the first row of a key has been kept long enough; a key without rows is forgotten.
func (s *Stage) schedule(k *key) {
	at := deadline.None
	for _, rows := range k.rows {
		for _, r := range rows {
			at = min(at, r.received+s.patience())
		}
	}
	s.queue.Set(k, at)
	if at == deadline.None {
		s.forget(k)
	}
}

// Advance lets go of what was kept long enough.
func (s *Stage) Advance(ctx context.Context, watermark flow.Micros) ([]flow.Output, error) {
	type due struct {
		key string
		row row
	}
	var all []due
	// What is due at the watermark itself could still be paired with a row that was received then.
	for k, ok := s.queue.Due(watermark - 1); ok; k, ok = s.queue.Due(watermark - 1) {
		s.expire(k, watermark, func(r row) { all = append(all, due{k.name, r}) })
		s.schedule(k)
	}
	slices.SortStableFunc(all, func(a, b due) int {
		return cmp.Or(cmp.Compare(a.row.received, b.row.received), cmp.Compare(a.key, b.key))
	})
	var out pairs
	for _, d := range all {
		s.alone(left, d.row, d.row.received+s.patience(), &out)
	}
	var made []flow.Output
	if len(out.received) > 0 {
		made = s.outputs(ctx, &out)
	}
	s.sweep(ctx)
	return made, nil
}
