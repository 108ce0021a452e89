// Package dedupe drops readings that a device has sent twice, by the device's own sequence numbers.
//
// A series is a home, a device and a metric. For each, the stage remembers which of the last 1024 sequence numbers it has
// seen (the sliding window of RFC 4303, section 3.4.3, which does the same for packets). A row whose number is new passes;
// one whose number was seen is dropped and counted. A row without a number passes: nothing can be said of it.
//
// A device that restarts may begin its numbers anew. Event time tells a restart from a copy: a copy carries the event
// time of its original, which is not after the latest the series has had. So
//
//   - a number below the window, with an event time after the series' latest, begins a new count;
//   - a number seen before, with an event time after the series' latest, begins a new count too, if the time is the
//     device's own. A device without a clock has its rows stamped by the gateway (time equals received), and then a copy
//     looks later than its original; such a row is taken for the copy it probably is;
//   - any other number below the window goes to the dead letters: it is too old to tell, and nothing is dropped untold.
//
// After a restart the window before it is kept as well, so that copies of rows from before the restart are known as such.
//
// Input: any schema with the event columns. Output "unique": the same schema.
package dedupe

import (
	"context"
	"fmt"
	"io"
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
	// Series is how many series are remembered in a partition; beyond it, the one that has been silent longest is
	// forgotten (about 400 bytes each).
	Series int `yaml:"series"`
	// Forget is how long a series may be silent, in received time, before it is forgotten. It must be longer than the
	// longest time after which a device or a gateway sends something again.
	Forget time.Duration `yaml:"forget"`

	table      *series.Table[state]
	duplicates atomic.Int64
	restarts   atomic.Int64
	unnumbered atomic.Int64
	tooOld     atomic.Int64
	expired    atomic.Int64
	crowded    atomic.Int64
	count      atomic.Int64
}

// state is what is remembered of a series.
type state struct {
	now    window
	before *window // of before the latest restart; nil if there was none
}

// New gives the stage with its defaults.
func New() *Stage { return &Stage{Series: 1_000_000, Forget: 7 * 24 * time.Hour} }

// Open checks the settings.
func (s *Stage) Open(context.Context) error {
	if s.Series < 1 {
		return fmt.Errorf("dedupe: series is %d; it must be at least 1", s.Series)
	}
	if s.Forget <= 0 {
		return fmt.Errorf("dedupe: forget is %v; it must be more than 0", s.Forget)
	}
	return nil
}

// Check lets lint find bad settings before anything starts.
func (s *Stage) Check(string, *arrow.Schema) error { return s.Open(context.Background()) }

// Counters says what rows in and out do not show. It may be called at any time by any goroutine.
func (s *Stage) Counters() map[string]int64 {
	return map[string]int64{
		"duplicates":     s.duplicates.Load(), // rows dropped
		"restarts":       s.restarts.Load(),   // devices that began their numbers anew
		"unnumbered":     s.unnumbered.Load(), // rows without a number, passed
		"too_old":        s.tooOld.Load(),     // rows set aside
		"series":         s.count.Load(),      // remembered now
		"series_expired": s.expired.Load(),    // forgotten for their silence
		"series_crowded": s.crowded.Load(),    // forgotten for the limit
	}
}

// Process passes the rows whose sequence number is new.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	ev, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	t := s.series()
	t.Begin(ev.Home, ev.Device, ev.Metric)
	defer t.End()
	n := int(in.NumRows())
	keep := make([]int, 0, n)
	var bad flow.BadRows
	var duplicates, restarts, unnumbered int64
	seqs, numbered := ev.Seq.Int64Values(), ev.Seq.NullN() < n
	for i := range n {
		if !numbered || ev.Seq.IsNull(i) {
			unnumbered++
			keep = append(keep, i)
			continue
		}
		e, isNew := t.At(i, flow.Micros(ev.Received[i]))
		at := flow.Micros(ev.Time[i])
		verdict := fresh
		if isNew {
			e.State.now.begin(seqs[i], at)
		} else {
			verdict = e.State.take(seqs[i], at, ev.Time[i] == ev.Received[i])
		}
		switch verdict {
		case fresh:
			keep = append(keep, i)
		case restart:
			restarts++
			keep = append(keep, i)
		case duplicate:
			duplicates++
		case old:
			w := e.State.now
			bad.Add(i, fmt.Sprintf("sequence %d of %s %s is too old to tell from a copy: the newest is %d, of %s, and %d are remembered",
				seqs[i], e.Device, e.Metric, w.top, w.latest.Time().Format(time.RFC3339), windowSize))
		}
	}
	out, err := columns.Take(columns.Allocator(ctx), in, keep)
	if err != nil {
		return nil, flow.Badf("dedupe: %v", err)
	}
	s.duplicates.Add(duplicates)
	s.restarts.Add(restarts)
	s.unnumbered.Add(unnumbered)
	s.tooOld.Add(int64(len(bad.Rows)))
	s.publish()
	return []flow.Output{{To: "unique", Record: out}}, bad.Err()
}

func (s *Stage) series() *series.Table[state] {
	if s.table == nil {
		s.table = series.New[state](s.Series, s.Forget)
	}
	return s.table
}

func (s *Stage) publish() {
	s.expired.Store(s.table.Expired)
	s.crowded.Store(s.table.Crowded)
	s.count.Store(int64(s.table.Len()))
}

const layout = 1

// Snapshot writes the windows of all series: about 150 bytes each and their names.
func (s *Stage) Snapshot(w io.Writer) error {
	out := snapshot.NewWriter(w, "dedupe", layout)
	s.series().Save(out, func(w *snapshot.Writer, e *series.Entry[state]) {
		e.State.now.save(w)
		w.Bool(e.State.before != nil)
		if e.State.before != nil {
			e.State.before.save(w)
		}
	})
	return out.Close()
}

// Restore replaces the windows of all series.
func (s *Stage) Restore(r io.Reader) error {
	in, _, err := snapshot.NewReader(r, "dedupe", layout)
	if err != nil {
		return err
	}
	t := series.New[state](s.Series, s.Forget)
	t.Load(in, func(r *snapshot.Reader, e *series.Entry[state]) {
		e.State.now.load(r)
		if r.Bool() {
			e.State.before = new(window)
			e.State.before.load(r)
		}
	})
	if err := in.Close(); err != nil {
		return err
	}
	s.table = t
	s.publish()
	return nil
}
