package python

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/keyed"
)

// stateTold is what a worker says that its stage keeps.
type stateTold struct {
	Name   string
	Key    []string
	TTL    int64 // microseconds
	Limit  int
	Timer  string
	Fields []struct {
		Name, Kind string
		Nullable   bool
		Default    *string
	}
}

// declaration is it as the host's own. A worker may say anything.
func (t *stateTold) declaration() (keyed.Declaration, error) {
	d := keyed.Declaration{Settings: keyed.Settings{Key: t.Key, TTL: time.Duration(t.TTL) * time.Microsecond, Limit: t.Limit}, Timer: t.Timer}
	for _, f := range t.Fields {
		field := keyed.FieldDefault{Field: keyed.Field{Name: f.Name, Kind: keyed.Kind(f.Kind), Nullable: f.Nullable}}
		if f.Default == nil {
			field.Default.Null = true
		} else if err := parse(&field.Default, field.Kind, *f.Default); err != nil {
			return d, fmt.Errorf("%s.%s: %w", t.Name, f.Name, err)
		}
		d.Fields = append(d.Fields, field)
	}
	return d, nil
}

func parse(v *keyed.Value, kind keyed.Kind, text string) (err error) {
	switch kind {
	case keyed.Float:
		v.Float, err = strconv.ParseFloat(text, 64)
	case keyed.Text:
		v.Text = text
	case keyed.Bytes:
		var b []byte
		b, err = hex.DecodeString(text)
		v.Text = string(b)
	default:
		v.Int, err = strconv.ParseInt(text, 10, 64)
	}
	return err
}

// KeyedStage is one instance of a Python stage that keeps state, of one partition. Its workers hold none of it: the states of a batch's
// keys go to a worker with the batch, and what it makes of them is stored when its answer is whole. So a worker that dies loses
// nothing, and the batch is tried again as if it had not been.
type KeyedStage struct {
	*Stage
	table *keyed.Columns // from Open on
	told  *stateTold     // what table is declared by

	pending  []flow.Output // of Advance, as long as it does not come to its end
	progress *progress     // likewise of Process

	keys, expired atomic.Int64
}

// stage gives an instance, of the kind that the files as they are ask for. What is wrong with them is said by its Check and Open.
func (a *hosts) stage() flow.Stage {
	s := &Stage{hosts: a}
	if a.query != nil || a.keeps() == nil {
		return s
	}
	return &KeyedStage{Stage: s}
}

// keeps asks the stage, once, what it keeps: nil for nothing, and where it cannot be asked.
func (a *hosts) keeps() *stateTold {
	a.mu.Lock()
	defer a.mu.Unlock()
	print := a.filesPrint()
	if told, known := a.declared[print]; known {
		return told
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.workers.StartTime)
	defer cancel()
	one := &host{hosts: a, print: print, use: flow.Workers{MemoryBytesMax: a.workers.MemoryMax}}
	w, err := one.start(ctx, print, true)
	for attempt := 1; errors.Is(err, errNotUp) && attempt < a.workers.Attempts; attempt++ { // a worker that was killed says nothing of the stage
		w, err = one.start(ctx, print, true)
	}
	if err != nil {
		a.workers.Logger.Warn("stage: it cannot be asked what it keeps", "stage", a.name, "err", err)
		return a.told // what it said last: batches wait until it is mended
	}
	if a.declared == nil {
		a.declared = map[string]*stateTold{}
	}
	a.declared[print], a.told = w.state, w.state
	a.putSpare(w)
	return w.state
}

// putSpare keeps a worker that has no settings yet for a while. Callers hold mu.
func (a *hosts) putSpare(w *worker) {
	if a.spare != nil {
		a.spare.end()
	}
	a.spare = w
	time.AfterFunc(unheldMax, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.spare == w {
			a.spare = nil
			w.end()
		}
	})
}

// adopt takes the spare worker over, if there is one with the same files.
func (h *host) adopt(print string) *worker {
	if h.settings == "" { // it is to describe itself, and mu is held
		return nil
	}
	h.hosts.mu.Lock()
	defer h.hosts.mu.Unlock()
	w := h.spare
	if w == nil || w.print != print || !w.waits() {
		return nil
	}
	h.spare = nil
	w.host = h
	return w
}

// Open implements flow.Opener.
func (s *KeyedStage) Open(ctx context.Context) error {
	if err := s.Stage.Open(ctx); err != nil {
		return err
	}
	w, err := s.host.take(ctx)
	if err == nil {
		err = s.fit(w)
		s.host.give(w)
	}
	if err != nil {
		return errors.Join(err, s.Close())
	}
	return nil
}

// fit sees to it that the state is what a worker's code declares. What does not fit is nobody's data's fault: batches wait.
func (s *KeyedStage) fit(w *worker) error {
	if w.state == nil {
		return fmt.Errorf("stage %s keeps no state any more, and did when it started: undo that, or start it anew", s.hosts.name)
	}
	if s.told == w.state || s.told != nil && reflect.DeepEqual(s.told, w.state) {
		return nil
	}
	d, err := w.state.declaration()
	if err != nil {
		return fmt.Errorf("stage %s: %w", s.hosts.name, err)
	}
	var now *keyed.Columns
	if s.table == nil {
		now, err = keyed.NewColumns(d)
	} else {
		now, err = s.table.Redeclared(d)
	}
	if err != nil {
		return fmt.Errorf("stage %s: %s: %w", s.hosts.name, w.state.Name, err)
	}
	s.table, s.told = now, w.state
	return nil
}

// refit takes up what the code declares now.
func (s *KeyedStage) refit(ctx context.Context) error {
	w, err := s.host.take(ctx)
	if err != nil {
		return err
	}
	defer s.host.give(w)
	return s.fit(w)
}

// Process implements flow.Stage.
func (s *KeyedStage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if s.host == nil {
		return nil, errNotOpen
	}
	defer s.count()
	p := s.progress
	if p == nil || p.in != in {
		p = &progress{in: in}
	}
	s.progress = p // until it is through: after an error of the world the batch comes again, and what was stored stays
	for done := false; !done; done = p.next >= in.NumRows() {
		err := s.step(ctx, p)
		for errors.Is(err, errOtherState) {
			if err = s.refit(ctx); err == nil {
				err = s.step(ctx, p)
			}
		}
		if errors.Is(err, flow.ErrBad) {
			s.progress = nil
		}
		if err != nil {
			return nil, err
		}
	}
	s.progress = nil
	return s.locked(true, in, p.out, p.bad.Err())
}

// progress is how far a batch came that is processed in parts.
type progress struct {
	in    arrow.Record
	next  int64
	out   []flow.Output
	bad   flow.BadRows
	steps int
}

func (p *progress) release() {
	for _, o := range p.out {
		o.Record.Release()
	}
	p.out = nil
}

// step processes as many rows as can be together; or it tells keys first whose timers have passed.
func (s *KeyedStage) step(ctx context.Context, p *progress) error {
	rest := p.in.NewSlice(p.next, p.in.NumRows())
	defer rest.Release()
	t, err := s.table.Take(rest)
	if err != nil {
		return err
	}
	if passed := s.table.Passed(t); passed != nil {
		if p.steps++; p.steps > roundsMax {
			s.table.Drop(passed)
			return errRounds
		}
		out, err := s.exchange(ctx, passed, noRows, frame{frameTime, watermark(passed.Until() + 1)})
		p.out = append(p.out, out...)
		return advanceError(err)
	}
	rows := int64(len(t.Index))
	part := rest.NewSlice(0, rows)
	defer part.Release()
	out, err := s.part(ctx, part, t)
	var bad *flow.BadRows
	switch {
	case errors.As(err, &bad):
		for i, row := range bad.Rows {
			p.bad.Add(int(p.next)+row, bad.Reasons[i])
		}
	case errors.Is(err, flow.ErrBad) && (rows < p.in.NumRows() || len(p.out) > 0): // of these rows alone
		for row := range rows {
			p.bad.Add(int(p.next+row), err.Error())
		}
	case err != nil:
		return err
	}
	p.out = append(p.out, out...)
	p.next += rows
	return nil
}

// part processes rows whose states were taken.
func (s *KeyedStage) part(ctx context.Context, in arrow.Record, t *keyed.Taken) ([]flow.Output, error) {
	if len(t.Full.Rows) > 0 {
		s.table.Drop(t)
		return s.without(ctx, in, t.Full)
	}
	batch, err := encode(in)
	if err != nil {
		s.table.Drop(t)
		return nil, fmt.Errorf("stage %s: %w", s.hosts.name, err)
	}
	return s.exchange(ctx, t, in.NumRows(), frame{frameBatch, batch}, frame{frameIndex, littleEndian(t.Index)})
}

// without processes a batch without the rows for whose keys there is no room.
func (s *KeyedStage) without(ctx context.Context, in arrow.Record, full flow.BadRows) ([]flow.Output, error) {
	keep := columns.Except(int(in.NumRows()), full.Rows)
	rest, err := columns.Take(columns.Allocator(ctx), in, keep)
	if err != nil {
		return nil, flow.Badf("%v", err)
	}
	defer rest.Release()
	t, err := s.table.Take(rest)
	if err != nil {
		return nil, err
	}
	out, err := s.part(ctx, rest, t)
	var bad *flow.BadRows
	if err != nil && !errors.As(err, &bad) {
		return out, err
	}
	reasons := map[int]string{}
	for i, row := range full.Rows {
		reasons[row] = full.Reasons[i]
	}
	if bad != nil {
		for i, row := range bad.Rows {
			reasons[keep[row]] = bad.Reasons[i]
		}
	}
	all := new(flow.BadRows)
	for row := range int(in.NumRows()) {
		if reason, ok := reasons[row]; ok {
			all.Add(row, reason)
		}
	}
	return out, all.Err()
}

func littleEndian(index []int32) []byte {
	b := make([]byte, 0, 4*len(index))
	for _, i := range index {
		b = binary.LittleEndian.AppendUint32(b, uint32(i))
	}
	return b
}

// exchange has a worker make something of states that were taken, and stores what becomes of them with its answer, or not at all.
// first comes before the states, rest after them.
func (s *KeyedStage) exchange(ctx context.Context, t *keyed.Taken, rows int64, first frame, rest ...frame) ([]flow.Output, error) {
	rec := s.table.Record(memory.DefaultAllocator, t)
	states, err := encode(rec)
	rec.Release()
	if err != nil {
		s.table.Drop(t)
		return nil, fmt.Errorf("stage %s: %w", s.hosts.name, err)
	}
	frames := append([]frame{first, {frameState, states}}, rest...)
	print, got, err := s.ask(ctx, rows, s.fitsStill, frames...)
	if err != nil {
		s.table.Drop(t)
		return nil, err
	}
	defer got.releaseState()
	out, err := s.made(got, rows, print)
	var bad *flow.BadRows
	if err != nil && !errors.As(err, &bad) {
		s.table.Drop(t)
		return nil, err
	}
	if wrong := s.table.Put(t, got.state); wrong != nil {
		got.release()
		s.table.Drop(t)
		return nil, flow.Badf("%v", wrong)
	}
	return out, err
}

// fitsStill says whether a worker's code declares the state that was taken.
func (s *KeyedStage) fitsStill(w *worker) error {
	if was := s.told; w.state != nil && reflect.DeepEqual(was, w.state) {
		return nil
	}
	return errOtherState
}

// errOtherState says that a stage was saved with another state while a batch was on its way.
var errOtherState = errors.New("the state is declared otherwise than when it was taken")

// Advance implements flow.Timed: it calls the stage for the keys whose timer has passed, and forgets those that were silent for their
// TTL. A key that wants to be called again before the watermark is, so that it does not matter how often time is told.
func (s *KeyedStage) Advance(ctx context.Context, to flow.Micros) ([]flow.Output, error) {
	if s.host == nil {
		return nil, errNotOpen
	}
	defer s.count()
	for round := 1; ; {
		t := s.table.Due(to)
		if t == nil {
			s.table.Advance(to)
			out := s.pending
			s.pending = nil
			return out, nil
		}
		if round > roundsMax {
			s.table.Drop(t)
			return nil, fmt.Errorf("stage %s: %w", s.hosts.name, errRounds)
		}
		out, err := s.exchange(ctx, t, noRows, frame{frameTime, watermark(to)})
		if errors.Is(err, errOtherState) {
			if err := s.refit(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stage %s: %w", s.hosts.name, advanceError(err))
		}
		s.pending = append(s.pending, out...)
		round++
	}
}

// errRounds ends what would never end.
var errRounds = fmt.Errorf("advance: a key wants to be called more than %d times at once: set its timer to later times", roundsMax)

// advanceError is an error of advance. Time has no rows that could be set aside: it waits until the stage is mended, and what was made
// before is kept until then.
func advanceError(err error) error {
	if err == nil || errors.Is(err, errOtherState) {
		return err
	}
	return fmt.Errorf("advance: %s", err)
}

func watermark(at flow.Micros) []byte { return fmt.Appendf(nil, `{"watermark": %d}`, int64(at)) }

// noRows is how many rows an answer may reject that is about none.
const noRows = -1

// Close implements flow.Closer.
func (s *KeyedStage) Close() error {
	for _, o := range s.pending {
		o.Record.Release()
	}
	s.pending = nil
	if s.progress != nil {
		s.progress.release()
		s.progress = nil
	}
	return s.Stage.Close()
}

// roundsMax bounds how often a key is called for one step of time.
const roundsMax = 100_000

// Snapshot implements flow.Stateful.
func (s *KeyedStage) Snapshot(w io.Writer) error {
	if s.host == nil {
		return errNotOpen
	}
	return s.table.Snapshot(w)
}

// Restore implements flow.Stateful.
func (s *KeyedStage) Restore(r io.Reader) error {
	if s.host == nil {
		return errNotOpen
	}
	defer s.count()
	if err := s.table.Restore(r); err != nil {
		return fmt.Errorf("%s: %w", s.told.Name, err)
	}
	return nil
}

func (s *KeyedStage) count() {
	s.keys.Store(int64(s.table.Len()))
	s.expired.Store(s.table.Expired())
}

// Counters implements flow.Counting: the keys that are kept, and those that were forgotten for their age.
func (s *KeyedStage) Counters() map[string]int64 {
	return map[string]int64{"keys": s.keys.Load(), "keys_expired": s.expired.Load()}
}
