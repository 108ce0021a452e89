package window

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/deadline"
	"hearthline/flow/rowstore"
)

// Stage is the author's stage with windows around it. Make it with [New].
type Stage struct {
	inner    flow.Stage
	config   *Config
	mapped   bool // late rows have an output
	shape    shape
	lateness flow.Micros
	idle     flow.Micros

	keys  kept
	store rowstore.Store
	bytes int64 // of all rows

	closing []closed      // windows that closed, and were not yet handed over
	dropped []columns.Ref // rows that are read once more by these, and then by nobody
	under   *underway     // what a call of the stage is being repeated for
	scratch []byte

	counts counts
}

// closed is a window that closed.
type closed struct {
	span
	key  string
	refs []columns.Ref
}

type counts struct{ late, windows, silences, expired, crowded, keys, rows, refused atomic.Int64 }

// New puts windows around a stage. late says that late rows have an output; else they are refused. The config is one that
// Validate takes.
func New(config *Config, late bool, inner flow.Stage) *Stage {
	c := config.withDefaults()
	s := &Stage{inner: inner, config: c, mapped: late, lateness: flow.Micros(c.Lateness.Microseconds()), idle: flow.Micros(c.Idle.Microseconds()), keys: newKept()}
	if c.Gap != 0 {
		s.shape = sessions{gap: flow.Micros(c.Gap.Microseconds()), max: flow.Micros(c.Max.Microseconds()), lateness: s.lateness}
	} else {
		s.shape = fixed{size: flow.Micros(c.Size.Microseconds()), hop: flow.Micros(c.Every.Microseconds())}
	}
	return s
}

// Unwrap is the author's stage.
func (s *Stage) Unwrap() flow.Stage { return s.inner }

// Open implements flow.Opener.
func (s *Stage) Open(ctx context.Context) error { return flow.Open(ctx, s.inner) }

// Close implements flow.Closer.
func (s *Stage) Close() error {
	if s.under != nil {
		flow.ReleaseOutputs(s.under.made)
		s.under = nil
	}
	s.store.Release()
	return flow.Close(s.inner)
}

// Check implements flow.Checker: it says what the input lacks for windows, and then asks the author's stage.
func (s *Stage) Check(stream string, schema *arrow.Schema) error {
	if _, several := s.inner.(flow.Inputs); several {
		return errors.New("window: a stage that tells its inputs apart takes no window")
	}
	if err := s.takes(schema); err != nil {
		return err
	}
	return flow.Check(s.inner, stream, Schema(schema))
}

func (s *Stage) takes(schema *arrow.Schema) error {
	for _, name := range []string{flow.ColTime, flow.ColReceived} {
		if f, ok := schema.FieldsByName(name); !ok || !arrow.TypeEqual(f[0].Type, flow.InstantType) {
			return flow.Badf("window: no column %q of type %s: windows go by when rows happened, and by when they were received", name, flow.InstantType)
		}
	}
	for _, name := range []string{ColStart, ColEnd} {
		if schema.HasField(name) {
			return flow.Badf("window: there is a column %q already, which the window would add", name)
		}
	}
	if err := rowstore.Check(schema); err != nil {
		return flow.Badf("window: %v", err)
	}
	none := emptyRecord(schema)
	defer none.Release()
	_, err := columns.KeyOf(none, s.config.By)
	return err
}

// Counters implements flow.Counting.
func (s *Stage) Counters() map[string]int64 {
	all := flow.Counters(s.inner)
	for name, n := range map[string]*atomic.Int64{
		"late": &s.counts.late, "windows": &s.counts.windows, "window_silences": &s.counts.silences, "window_keys": &s.counts.keys,
		"window_keys_expired": &s.counts.expired, "window_keys_crowded": &s.counts.crowded, "window_rows": &s.counts.rows, "window_rows_refused": &s.counts.refused,
	} {
		all[name] = n.Load()
	}
	return all
}

// Process takes rows into their windows, and hands the windows that these close to the stage.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if s.under != nil {
		return s.resume(ctx, in, 0)
	}
	if in.NumRows() == 0 {
		return s.nothing(ctx, in)
	}
	if err := s.takes(in.Schema()); err != nil {
		return nil, err
	}
	if err := s.keeps(in.Schema()); err != nil {
		return nil, err
	}
	late, bad, err := s.gather(in)
	if err != nil {
		return nil, err
	}
	u := &underway{in: in, bad: bad}
	if len(late) > 0 {
		s.counts.late.Add(int64(len(late)))
		rec, err := columns.Take(columns.Allocator(ctx), in, late)
		if err != nil {
			return nil, flow.Badf("window: %v", err)
		}
		u.made = append(u.made, flow.Output{To: OutputLate, Record: rec})
	}
	s.begin(u)
	return s.finish(ctx)
}

// keeps gives the rows that are kept the columns of those that come now.
func (s *Stage) keeps(schema *arrow.Schema) error {
	if err := s.store.Use(schema); err != nil {
		return fmt.Errorf("window: %w; let the windows close before the schema changes, or begin without their state", err)
	}
	return nil
}

// nothing learns the outputs: zero rows of a window that there is not.
func (s *Stage) nothing(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if err := s.takes(in.Schema()); err != nil {
		return nil, err
	}
	if err := s.keeps(in.Schema()); err != nil {
		return nil, err
	}
	none := emptyRecord(Schema(in.Schema()))
	defer none.Release()
	made, err := s.inner.Process(ctx, none)
	if err == nil {
		err = s.clash(made)
	}
	if err != nil {
		flow.ReleaseOutputs(made)
		return nil, err
	}
	if s.mapped {
		made = append(made, flow.Output{To: OutputLate, Record: in.NewSlice(0, 0)})
	}
	return made, nil
}

// clash refuses an output of the stage that is called as that of late rows.
func (s *Stage) clash(made []flow.Output) error {
	for _, o := range made {
		if s.mapped && o.Refused == nil && o.To == OutputLate {
			return fmt.Errorf("window: the stage has an output called %q itself, which late rows go to: rename it", OutputLate)
		}
	}
	return nil
}

// gather takes rows into their windows; late are those that go to the output.
func (s *Stage) gather(in arrow.Record) (late []int, bad flow.BadRows, err error) {
	times, err := flow.Instants(in, flow.ColTime)
	if err != nil {
		return nil, bad, err
	}
	received, err := flow.Instants(in, flow.ColReceived)
	if err != nil {
		return nil, bad, err
	}
	by, err := columns.KeyOf(in, s.config.By)
	if err != nil {
		return nil, bad, err
	}
	nullTime, nullReceived := nulls(in, flow.ColTime), nulls(in, flow.ColReceived)
	sizes := columns.RowSizes(in)
	chunk := s.store.Add(in)
	for i := range int(in.NumRows()) {
		at, got := flow.Micros(times[i]), flow.Micros(received[i])
		if nullTime(i) || nullReceived(i) || outside(at) || outside(got) {
			bad.Add(i, "time or received is null, or thousands of years away")
			continue
		}
		s.pass(got)
		s.scratch = by.Append(s.scratch[:0], i)
		k := s.keyOf(s.scratch)
		if got >= k.At() {
			s.silent(k, got)
		}
		k.received = max(k.received, got)
		isLate, needed := s.shape.place(k, at)
		why := ""
		if needed {
			if why = s.full(k, sizes[i]); why == "" {
				r := row{at: at, bytes: sizes[i], ref: columns.Ref{Chunk: chunk, Row: int32(i)}}
				k.add(r)
				s.store.Keep(r.ref)
				s.bytes += r.bytes
				s.shape.added(k, at)
			} else {
				s.counts.refused.Add(1)
			}
		}
		switch {
		case isLate && s.mapped:
			late = append(late, i)
		case isLate:
			s.counts.late.Add(1)
			bad.Add(i, "late: a window that it belongs to was closed")
		case why != "":
			bad.Add(i, why)
		}
		if at > k.latest {
			k.latest = at
			s.progress(k)
		}
		s.schedule(k)
	}
	return late, bad, nil
}

func nulls(in arrow.Record, name string) func(row int) bool {
	a := in.Column(in.Schema().FieldIndices(name)[0])
	if a.NullN() == 0 {
		return func(int) bool { return false }
	}
	return a.IsNull
}

// outside says whether a time is so far away that a window's ends would overflow.
func outside(at flow.Micros) bool { return at > 1<<61 || at < -1<<61 }

// full says why a key, or the partition, takes no more; "" when it does.
func (s *Stage) full(k *key, size int64) string {
	switch {
	case len(k.rows) >= RowsMax:
		return fmt.Sprintf("the open windows of its key hold %d rows, the most that they may", RowsMax)
	case k.bytes+size > BytesMax:
		return fmt.Sprintf("the open windows of its key hold %d MiB, the most that they may", BytesMax>>20)
	case s.bytes+size > StateBytesMax:
		return fmt.Sprintf("the open windows of its partition hold %d MiB, the most that they may", StateBytesMax>>20)
	}
	return ""
}

// pass lets time pass: keys that were silent for long are forgotten.
func (s *Stage) pass(received flow.Micros) {
	t := &s.keys
	t.clock = max(t.clock, received)
	for k := t.oldest(); k != nil && t.clock.Sub(k.received) > Forget; k = t.oldest() {
		s.counts.expired.Add(1)
		s.forget(k)
	}
}

func (s *Stage) keyOf(name []byte) *key {
	t := &s.keys
	if k := t.byName[string(name)]; k != nil {
		t.touch(k)
		return k
	}
	for len(t.byName) >= KeysMax {
		s.counts.crowded.Add(1)
		s.forget(t.oldest())
	}
	k := newKey(string(name))
	t.add(k)
	return k
}

func (s *Stage) forget(k *key) {
	s.close(k, flow.EndOfTime)
	s.keys.queue.Set(k, deadline.None)
	s.keys.forget(k)
}

// progress closes what the key's own event time closes.
func (s *Stage) progress(k *key) {
	bound := k.latest - s.lateness
	s.close(k, bound)
	s.shape.passed(k, bound)
}

// silent closes what the arrival clock closes: windows that hold rows and ended Idle ago, of a key of which nothing was
// received for Idle.
func (s *Stage) silent(k *key, clock flow.Micros) {
	bound := clock - s.idle
	if clock == flow.EndOfTime {
		bound = clock
	}
	if k.received > bound {
		return
	}
	if s.close(k, bound) {
		s.counts.silences.Add(1)
	}
}

// schedule notes when silence will close the next window of a key.
func (s *Stage) schedule(k *key) {
	at := deadline.None
	if end := s.shape.next(k); end != deadline.None {
		at = max(end, k.received) + s.idle
	}
	s.keys.queue.Set(k, at)
}

// close closes the windows of a key that end at bound or before and hold rows.
func (s *Stage) close(k *key, bound flow.Micros) (any bool) {
	for len(k.rows) > 0 && s.shape.next(k) <= bound {
		w, n, drop := s.shape.first(k)
		s.drop(k, drop)
		if n == 0 || w.end > bound {
			break
		}
		c := closed{span: w, key: k.name, refs: make([]columns.Ref, n)}
		for i := range c.refs {
			c.refs[i] = k.rows[i].ref
		}
		s.closing = append(s.closing, c)
		k.closed, any = w.end, true
		if _, fixed := s.shape.(fixed); !fixed {
			s.drop(k, n)
		}
		if len(k.rows) > 0 {
			_, _, drop = s.shape.first(k)
			s.drop(k, drop)
		}
	}
	if len(k.rows) == 0 {
		k.due = deadline.None
	}
	return any
}

// drop lets the first rows of a key go.
func (s *Stage) drop(k *key, n int) {
	for _, r := range k.rows[:n] {
		s.dropped = append(s.dropped, r.ref)
		k.bytes -= r.bytes
		s.bytes -= r.bytes
	}
	if n == len(k.rows) {
		k.rows = k.rows[:0]
		if cap(k.rows) > 64 {
			k.rows = nil // a key that was busy once does not hold its room for ever
		}
		return
	}
	k.rows = append(k.rows[:0], k.rows[n:]...)
}

// Advance hands over the windows that the watermark closes.
func (s *Stage) Advance(ctx context.Context, watermark flow.Micros) ([]flow.Output, error) {
	if s.under != nil {
		return s.resume(ctx, nil, watermark)
	}
	for k, ok := s.keys.queue.Due(watermark); ok; k, ok = s.keys.queue.Due(watermark) {
		s.silent(k, watermark)
		s.schedule(k)
	}
	s.begin(&underway{watermark: watermark, time: true})
	return s.finish(ctx)
}

func emptyRecord(schema *arrow.Schema) arrow.Record {
	cols := make([]arrow.Array, schema.NumFields())
	for i, f := range schema.Fields() {
		cols[i] = array.MakeArrayOfNull(columns.Allocator(context.Background()), f.Type, 0)
	}
	return columns.Record(schema, cols...)
}

// plainly is an error's text without the mark of bad data, which is put back around it.
func plainly(err error) string { return strings.TrimPrefix(err.Error(), flow.ErrBad.Error()+": ") }
