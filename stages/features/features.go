// Package features turns readings into statistics over windows of event time, for each series (home, device, metric).
//
// # When a window closes
//
// A hub that was offline sends last night's readings now, and its neighbour's are of this second; so there is no one time by
// which windows close. Each series goes by its own:
//
//   - a window closes when the series has a reading whose event time is Lateness or more after the window's end;
//   - the windows of a series that has fallen silent close when nothing of it was received for Idle, and Idle has passed
//     since the window's end, both by the arrival clock: the received time of the series' next row, or the watermark.
//
// This is decided row by row: before a row is added, its received time closes what it closes; after, its event time does. So
// neither the cut of the batches nor how often Advance is called has a say in any result; Advance only tells sooner what the
// next row would have told. Silence closes only windows that hold readings: what a hub has kept back meanwhile still finds
// its windows open.
//
// A row that comes after a window it belongs to was closed goes to the output "late", once, whole; windows it belongs to
// that are open count it. Rows without a value are skipped and counted.
//
// # Outputs
//
// Input: any schema with the event columns. Output "late": the same schema. Output "features": [Schema], one row for each
// closed window that holds a reading. Windows that a row closes come in the order of the rows, those that Advance closes in
// the order of their ends, then of their series' first row.
//
// A reading costs the same whatever the size of the windows: readings are gathered in panes as long as the hop, and windows
// merge panes (Li et al., "No pane, no gain", SIGMOD Record 2005).
package features

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/snapshot"
	"hearthline/stages/internal/series"
)

// Stage is the stage and its settings. Make it with [New].
type Stage struct {
	// Windows are the kinds of window: "1m" is tumbling, "5m/1m" is five minutes long, one every minute.
	Windows []Window `yaml:"windows"`
	// Lateness is how far a series must have come, in event time, beyond a window's end before it closes: how much later
	// than the next a reading may come.
	Lateness time.Duration `yaml:"lateness"`
	// Idle is how long a series must have been silent, in received time, before its windows close without it. It should be
	// longer than the longest interval at which devices send.
	Idle time.Duration `yaml:"idle"`
	// Series is how many series are remembered in a partition (about 1.5 KB each); beyond it, the one that has been silent
	// longest is forgotten, its windows closed.
	Series int `yaml:"series"`
	// Forget is how long a series may be silent, in received time, before it is forgotten, its windows closed. Readings for
	// a window that was closed before are then no longer known as late.
	Forget time.Duration `yaml:"forget"`

	kinds    []kind
	grids    []grid
	table    *series.Table[state]
	queue    queue
	kept     *results // windows of forgotten series, until they are told of
	skipped  atomic.Int64
	late     atomic.Int64
	windows  atomic.Int64
	silences atomic.Int64
	expired  atomic.Int64
	crowded  atomic.Int64
	count    atomic.Int64
}

// New gives the stage with its defaults.
func New() *Stage {
	return &Stage{
		Windows:  []Window{{time.Minute, time.Minute}, {5 * time.Minute, time.Minute}},
		Lateness: 30 * time.Second, Idle: 2 * time.Minute,
		Series: 500_000, Forget: 7 * 24 * time.Hour,
	}
}

// Open checks the settings.
func (s *Stage) Open(context.Context) error { return s.ready() }

// Check lets lint find bad settings before anything starts.
func (s *Stage) Check(string, *arrow.Schema) error { return s.check() }

func (s *Stage) check() error {
	if len(s.Windows) == 0 {
		return errors.New("features: windows is empty; give at least one, such as 1m")
	}
	seen := map[Window]bool{}
	for _, w := range s.Windows {
		if err := w.check(); err != nil {
			return fmt.Errorf("features: %w", err)
		}
		if seen[w] {
			return fmt.Errorf("features: window %v is there twice", w)
		}
		seen[w] = true
	}
	switch {
	case s.Lateness < 0 || s.Idle <= 0:
		return fmt.Errorf("features: lateness is %v and idle is %v; lateness must not be below 0, idle must be above it", s.Lateness, s.Idle)
	case s.Series < 1:
		return fmt.Errorf("features: series is %d; it must be at least 1", s.Series)
	case s.Forget <= s.Idle:
		return fmt.Errorf("features: forget is %v and idle is %v; forget must be longer", s.Forget, s.Idle)
	}
	return nil
}

func (s *Stage) ready() error {
	if s.table != nil {
		return nil
	}
	if err := s.check(); err != nil {
		return err
	}
	s.kinds, s.grids = gridsOf(s.Windows)
	s.use(s.newTable())
	return nil
}

func (s *Stage) newTable() *series.Table[state] {
	t := series.New[state](s.Series, s.Forget)
	t.Forget = func(e *series.Entry[state]) {
		for i := range s.kinds {
			e.State.close(i, &s.kinds[i], flow.EndOfTime, func(r result) { s.kept.add(e, r) })
		}
		e.State.deadline = noDeadline
	}
	return t
}

func (s *Stage) use(t *series.Table[state]) {
	s.table, s.queue = t, nil
	s.kept = newResults()
	t.Each(func(e *series.Entry[state]) { s.schedule(e) })
	s.count.Store(int64(t.Len()))
}

// Counters says what rows in and out do not show. It may be called at any time by any goroutine.
func (s *Stage) Counters() map[string]int64 {
	return map[string]int64{
		"skipped":        s.skipped.Load(),  // rows without a value
		"late":           s.late.Load(),     // rows that came after a window of theirs was closed
		"windows":        s.windows.Load(),  // windows told of
		"silences":       s.silences.Load(), // times that a series' windows were closed for its silence
		"series":         s.count.Load(),    // remembered now
		"series_expired": s.expired.Load(),  // forgotten for their silence
		"series_crowded": s.crowded.Load(),  // forgotten for the limit
	}
}

// Process adds the readings to their windows, and tells of the windows that they close.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	ev, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	s.table.Begin(ev.Home, ev.Device, ev.Metric)
	defer s.table.End()
	out := newResults()
	s.kept = out
	var late []int
	var bad flow.BadRows
	skipped := int64(0)
	values, nulls := ev.Value.Float64Values(), ev.Value.NullN() > 0
	for i := range int(in.NumRows()) {
		if nulls && ev.Value.IsNull(i) {
			skipped++
			continue
		}
		if math.IsNaN(values[i]) || math.IsInf(values[i], 0) {
			bad.Add(i, fmt.Sprintf("value is %v; allowed: finite numbers", values[i]))
			continue
		}
		e, isNew := s.table.At(i, flow.Micros(ev.Received[i]))
		if isNew {
			e.State = newState(len(s.kinds), len(s.grids))
		}
		if s.row(e, flow.Micros(ev.Time[i]), flow.Micros(ev.Received[i]), values[i], out) {
			late = append(late, i)
		}
	}
	mem := columns.Allocator(ctx)
	lateRows, err := columns.Take(mem, in, late)
	if err != nil {
		return nil, flow.Badf("features: %v", err)
	}
	s.skipped.Add(skipped)
	s.late.Add(int64(len(late)))
	s.windows.Add(int64(out.len()))
	s.expired.Store(s.table.Expired)
	s.crowded.Store(s.table.Crowded)
	s.count.Store(int64(s.table.Len()))
	return []flow.Output{{To: "features", Record: out.record(mem)}, {To: "late", Record: lateRows}}, bad.Err()
}

// row takes a reading into the windows of its series, and says whether it came too late for one of them.
func (s *Stage) row(e *series.Entry[state], at, received flow.Micros, v float64, out *results) (late bool) {
	st := &e.State
	if received >= st.deadline {
		s.silent(e, received, out.add)
	}
	st.received = max(st.received, received)
	for g := range s.grids {
		if start := floor(at, s.grids[g].hop); st.needed(s.kinds, g, start) {
			st.at(g, start).add(at, received, v)
		}
	}
	for i := range s.kinds {
		k := &s.kinds[i]
		late = late || floor(at, k.hop)+k.hop <= st.closed[i]
	}
	if at > st.latest {
		st.latest = at
		s.progress(e, out.add)
	}
	s.schedule(e)
	return late
}

// progress closes what the series' own event time closes.
func (s *Stage) progress(e *series.Entry[state], emit func(*series.Entry[state], result)) {
	st, closed := &e.State, false
	bound := st.latest - flow.Micros(s.Lateness.Microseconds())
	for i := range s.kinds {
		k := &s.kinds[i]
		to := floor(bound, k.hop)
		if to <= st.closed[i] {
			continue
		}
		st.close(i, k, to, func(r result) { emit(e, r) })
		st.closed[i], closed = to, true
	}
	if closed {
		st.drop(s.kinds)
	}
}

// silent closes what the arrival clock closes: windows that hold readings and ended Idle ago, of a series of which nothing
// was received for Idle.
func (s *Stage) silent(e *series.Entry[state], clock flow.Micros, emit func(*series.Entry[state], result)) {
	st := &e.State
	bound := clock - s.idle()
	if clock == flow.EndOfTime {
		bound = clock
	}
	if st.received > bound {
		return
	}
	for i := range s.kinds {
		k := &s.kinds[i]
		st.close(i, k, min(bound, st.lastEnd(k)), func(r result) { emit(e, r) })
	}
	st.drop(s.kinds)
	s.silences.Add(1)
}

func (s *Stage) idle() flow.Micros { return flow.Micros(s.Idle.Microseconds()) }

// schedule notes when silence will close the next window of a series.
func (s *Stage) schedule(e *series.Entry[state]) {
	st := &e.State
	st.deadline = noDeadline
	if end, open := st.nextEnd(s.kinds); open {
		st.deadline = max(end, st.received) + s.idle()
		if st.deadline < st.queuedAt {
			s.queue.push(e)
		}
	}
}

// Advance tells of the windows that the watermark closes.
func (s *Stage) Advance(ctx context.Context, watermark flow.Micros) ([]flow.Output, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	out := newResults()
	for e := s.queue.due(watermark); e != nil; e = s.queue.due(watermark) {
		s.silent(e, watermark, out.add)
		s.schedule(e)
	}
	if out.len() == 0 {
		return nil, nil
	}
	out.sort()
	s.windows.Add(int64(out.len()))
	return []flow.Output{{To: "features", Record: out.record(columns.Allocator(ctx))}}, nil
}

const layout = 1

// Snapshot writes the open windows of all series.
func (s *Stage) Snapshot(w io.Writer) error {
	if err := s.ready(); err != nil {
		return err
	}
	out := snapshot.NewWriter(w, "features", layout)
	out.Uint(uint64(len(s.kinds)))
	for _, k := range s.kinds {
		out.String(k.name)
	}
	s.table.Save(out, func(w *snapshot.Writer, e *series.Entry[state]) { e.State.save(w) })
	return out.Close()
}

// Restore replaces the open windows of all series. A snapshot of other windows is refused: what is in it cannot become what
// is wanted.
func (s *Stage) Restore(r io.Reader) error {
	if err := s.ready(); err != nil {
		return err
	}
	in, _, err := snapshot.NewReader(r, "features", layout)
	if err != nil {
		return err
	}
	var names []string
	for range in.Count(1 << 10) {
		names = append(names, in.String())
	}
	if err := s.same(names); err != nil && in.Err() == nil {
		return err
	}
	t := s.newTable()
	t.Load(in, func(r *snapshot.Reader, e *series.Entry[state]) {
		e.State = newState(len(s.kinds), len(s.grids))
		e.State.load(r)
	})
	if err := in.Close(); err != nil {
		return err
	}
	s.use(t)
	return nil
}

func (s *Stage) same(names []string) error {
	ok := len(names) == len(s.kinds)
	for i := 0; ok && i < len(names); i++ {
		ok = names[i] == s.kinds[i].name
	}
	if !ok {
		return fmt.Errorf("features: the snapshot is of the windows %v, the settings say %v: keep the windows, or run the new ones as a second stage beside this one", names, s.Windows)
	}
	return nil
}

func (s *state) save(w *snapshot.Writer) {
	w.Int(int64(s.latest))
	w.Int(int64(s.received))
	for _, c := range s.closed {
		w.Int(int64(c))
	}
	for _, ps := range s.panes {
		w.Uint(uint64(len(ps)))
		for i := range ps {
			ps[i].save(w)
		}
	}
}

func (s *state) load(r *snapshot.Reader) {
	s.latest, s.received = flow.Micros(r.Int()), flow.Micros(r.Int())
	for i := range s.closed {
		s.closed[i] = flow.Micros(r.Int())
	}
	for g := range s.panes {
		n := r.Count(1 << 20)
		s.panes[g] = make([]pane, 0, min(n, 64))
		for i := 0; i < n && r.Err() == nil; i++ {
			var p pane
			p.load(r)
			s.panes[g] = append(s.panes[g], p)
		}
	}
}
