// Package alert turns scores into alerts: one that fires when a series' score is high, and is resolved when it has been low
// for long enough (hysteresis).
//
// An alert has one id from firing to resolved; the id follows from the series and from when it fired, so a replay makes the
// same one. Should the score of a firing alert reach Critical, a second firing row with the same id says so.
//
// Input: time, received, home, device, metric, value, score. Output "alerts": one row for each change, with the reading
// that made it.
package alert

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/snapshot"
	"hearthline/stages/internal/series"
)

// Schema is that of the output.
var Schema = arrow.NewSchema([]arrow.Field{
	{Name: flow.ColTime, Type: flow.InstantType}, // of the reading that changed the state
	{Name: flow.ColReceived, Type: flow.InstantType},
	{Name: flow.ColHome, Type: flow.KeyType},
	{Name: flow.ColDevice, Type: flow.KeyType},
	{Name: flow.ColMetric, Type: flow.KeyType},
	{Name: "id", Type: arrow.BinaryTypes.String},
	{Name: "state", Type: flow.KeyType},    // firing, resolved
	{Name: "severity", Type: flow.KeyType}, // warning, critical: the worst so far
	{Name: "score", Type: arrow.PrimitiveTypes.Float64},
	{Name: flow.ColValue, Type: arrow.PrimitiveTypes.Float64},
	{Name: "threshold", Type: arrow.PrimitiveTypes.Float64}, // that was crossed
	{Name: "started", Type: flow.InstantType},               // event time of the reading that fired it
}, nil)

// Stage is the stage and its settings. Make it with [New].
type Stage struct {
	// Raise is the score at and above which an alert fires, in nats for the scores of models/anomaly. The default gave 7
	// alerts on 162,064 readings of a room's 16 sensors, and found 20 of 20 spikes in simulated ones.
	Raise float64 `yaml:"raise"`
	// Critical is the score at and above which it is critical, not a warning.
	Critical float64 `yaml:"critical"`
	// Clear is the score below which a reading counts as quiet. It must not be above Raise.
	Clear float64 `yaml:"clear"`
	// ClearReadings is how many quiet readings in a row resolve an alert.
	ClearReadings int `yaml:"clear_readings"`
	// ClearAfter is for how long, in event time, readings must have been quiet to resolve it. Both must be fulfilled.
	ClearAfter time.Duration `yaml:"clear_after"`
	// Series is how many alerts may be firing in a partition; beyond it, that of the series which has been silent longest is
	// forgotten, unresolved.
	Series int `yaml:"series"`
	// Forget is how long a series may be silent, in received time, before its alert is forgotten, unresolved.
	Forget time.Duration `yaml:"forget"`

	table    *series.Table[state]
	raised   atomic.Int64
	resolved atomic.Int64
	firing   atomic.Int64
	expired  atomic.Int64
	crowded  atomic.Int64
}

// state is what is remembered of a series whose alert fires; of others, nothing is.
type state struct {
	firing   bool // false only before its first step and after its last
	critical bool
	started  flow.Micros
	id       string
	quiet    int         // quiet readings in a row
	since    flow.Micros // event time of the first of them
}

// New gives the stage with its defaults.
func New() *Stage {
	return &Stage{
		Raise: 10, Critical: 13, Clear: 4, ClearReadings: 10, ClearAfter: 5 * time.Minute,
		Series: 100_000, Forget: 14 * 24 * time.Hour,
	}
}

// Open checks the settings.
func (s *Stage) Open(context.Context) error {
	switch {
	case !(s.Clear <= s.Raise):
		return fmt.Errorf("alert: clear is %v and raise is %v; clear must not be above raise", s.Clear, s.Raise)
	case !(s.Raise <= s.Critical):
		return fmt.Errorf("alert: raise is %v and critical is %v; raise must not be above critical", s.Raise, s.Critical)
	case s.ClearReadings < 1:
		return fmt.Errorf("alert: clear_readings is %d; it must be at least 1", s.ClearReadings)
	case s.ClearAfter < 0:
		return fmt.Errorf("alert: clear_after is %v; it must not be below 0", s.ClearAfter)
	case s.Series < 1:
		return fmt.Errorf("alert: series is %d; it must be at least 1", s.Series)
	case s.Forget <= 0:
		return fmt.Errorf("alert: forget is %v; it must be more than 0", s.Forget)
	}
	return nil
}

// Check lets lint find bad settings before anything starts.
func (s *Stage) Check(string, *arrow.Schema) error { return s.Open(context.Background()) }

// Counters says what rows in and out do not show. It may be called at any time by any goroutine.
func (s *Stage) Counters() map[string]int64 {
	return map[string]int64{
		"raised":         s.raised.Load(),   // alerts that fired
		"resolved":       s.resolved.Load(), // alerts resolved
		"firing":         s.firing.Load(),   // alerts that fire now
		"series_expired": s.expired.Load(),  // alerts forgotten for the silence of their series
		"series_crowded": s.crowded.Load(),  // alerts forgotten for the limit
	}
}

func (s *Stage) series() *series.Table[state] {
	if s.table == nil {
		s.table = s.empty()
	}
	return s.table
}

func (s *Stage) empty() *series.Table[state] {
	t := series.New[state](s.Series, s.Forget)
	t.Forget = func(*series.Entry[state]) { s.firing.Add(-1) }
	return t
}

// reading is one row of the input.
type reading struct {
	time, received arrow.Timestamp
	value, score   float64
	bad            string // why it cannot be used
}

// Process tells of each alert that changes.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	rows, home, device, metric, err := readings(in)
	if err != nil {
		return nil, err
	}
	t := s.series()
	t.Begin(home, device, metric)
	defer t.End()
	out := newAlerts(ctx)
	defer out.b.Release()
	var bad flow.BadRows
	for i, r := range rows {
		if r.bad != "" {
			bad.Add(i, r.bad)
			continue
		}
		e := t.Known(i, flow.Micros(r.received))
		if e == nil && r.score >= s.Raise {
			e, _ = t.At(i, flow.Micros(r.received))
		}
		if e != nil && s.step(e, r) {
			out.add(s, e, r)
			if !e.State.firing {
				t.Remove(e)
			}
		}
	}
	s.expired.Store(t.Expired)
	s.crowded.Store(t.Crowded)
	return []flow.Output{{To: "alerts", Record: out.b.NewRecord()}}, bad.Err()
}

func readings(in arrow.Record) (rows []reading, home, device, metric flow.Strings, err error) {
	var times, received []arrow.Timestamp
	var value, score *array.Float64
	for _, step := range []func() error{
		func() (err error) { times, err = flow.Instants(in, flow.ColTime); return },
		func() (err error) { received, err = flow.Instants(in, flow.ColReceived); return },
		func() (err error) { home, err = flow.StringsOf(in, flow.ColHome); return },
		func() (err error) { device, err = flow.StringsOf(in, flow.ColDevice); return },
		func() (err error) { metric, err = flow.StringsOf(in, flow.ColMetric); return },
		func() (err error) { value, err = flow.Column[*array.Float64](in, flow.ColValue); return },
		func() (err error) { score, err = flow.Column[*array.Float64](in, "score"); return },
	} {
		if err = step(); err != nil {
			return
		}
	}
	rows = make([]reading, in.NumRows())
	for i := range rows {
		rows[i] = reading{time: times[i], received: received[i], value: value.Value(i), score: score.Value(i)}
		switch v := score.Value(i); {
		case score.IsNull(i) || value.IsNull(i):
			rows[i].bad = "score is missing, or value"
		case math.IsNaN(v) || math.IsInf(v, 0):
			rows[i].bad = fmt.Sprintf("score is %v; allowed: finite numbers", v)
		}
	}
	return
}

// step takes a reading into the state of its series, and says whether its alert has changed.
func (s *Stage) step(e *series.Entry[state], r reading) bool {
	st := &e.State
	if !st.firing {
		*st = state{firing: true, critical: r.score >= s.Critical, started: flow.Micros(r.time)}
		st.id = idOf(e.Key, st.started)
		s.raised.Add(1)
		s.firing.Add(1)
		return true
	}
	if r.score >= s.Clear {
		st.quiet = 0
		worse := r.score >= s.Critical && !st.critical
		st.critical = st.critical || worse
		return worse
	}
	if st.quiet++; st.quiet == 1 {
		st.since = flow.Micros(r.time)
	}
	if st.quiet < s.ClearReadings || flow.Micros(r.time).Sub(st.since) < s.ClearAfter {
		return false
	}
	st.firing = false
	s.resolved.Add(1)
	s.firing.Add(-1)
	return true
}

// idOf names an alert by its series and its beginning: 16 bytes of their SHA-256, in hex.
func idOf(k series.Key, started flow.Micros) string {
	var b []byte
	for _, s := range []string{k.Home, k.Device, k.Metric} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(b, uint64(started)))
	return hex.EncodeToString(sum[:16])
}

// alerts is the output in the making.
type alerts struct{ b *array.RecordBuilder }

func newAlerts(ctx context.Context) alerts {
	return alerts{array.NewRecordBuilder(columns.Allocator(ctx), Schema)}
}

func (a alerts) add(s *Stage, e *series.Entry[state], r reading) {
	st := &e.State
	name, threshold, severity := "firing", s.Raise, "warning"
	if st.critical {
		severity, threshold = "critical", s.Critical
	}
	if !st.firing {
		name, threshold = "resolved", s.Clear
	}
	instant := func(i int, v arrow.Timestamp) { a.b.Field(i).(*array.TimestampBuilder).Append(v) }
	number := func(i int, v float64) { a.b.Field(i).(*array.Float64Builder).Append(v) }
	key := func(i int, v string) {
		// It fails only beyond 2³¹ distinct strings.
		if err := a.b.Field(i).(*array.BinaryDictionaryBuilder).AppendString(v); err != nil {
			panic(err)
		}
	}
	instant(0, r.time)
	instant(1, r.received)
	key(2, e.Home)
	key(3, e.Device)
	key(4, e.Metric)
	a.b.Field(5).(*array.StringBuilder).Append(st.id)
	key(6, name)
	key(7, severity)
	number(8, r.score)
	number(9, r.value)
	number(10, threshold)
	instant(11, arrow.Timestamp(st.started))
}

const layout = 1

// Snapshot writes the state of all series: a few bytes each, and their names.
func (s *Stage) Snapshot(w io.Writer) error {
	out := snapshot.NewWriter(w, "alert", layout)
	s.series().Save(out, func(w *snapshot.Writer, e *series.Entry[state]) {
		st := &e.State
		w.Bool(st.critical)
		w.Int(int64(st.started))
		w.String(st.id)
		w.Uint(uint64(st.quiet))
		w.Int(int64(st.since))
	})
	return out.Close()
}

// Restore replaces the state of all series.
func (s *Stage) Restore(r io.Reader) error {
	in, _, err := snapshot.NewReader(r, "alert", layout)
	if err != nil {
		return err
	}
	t := s.empty()
	t.Load(in, func(r *snapshot.Reader, e *series.Entry[state]) {
		st := &e.State
		st.firing = true
		st.critical = r.Bool()
		st.started = flow.Micros(r.Int())
		st.id = r.String()
		st.quiet = r.Count(math.MaxInt32)
		st.since = flow.Micros(r.Int())
	})
	if err := in.Close(); err != nil {
		return err
	}
	s.table = t
	s.firing.Store(int64(t.Len()))
	return nil
}
