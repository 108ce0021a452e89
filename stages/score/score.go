// Package score gives each numeric reading a score: how surprising it is, given those its series (home, device, metric) has
// had before. See models/anomaly for what a score means.
//
// Readings are scored in the order of their arrival. Rows with a text (states such as open and closed) and rows without a
// value are skipped and counted: surprise at a number says nothing of them.
//
// Input: any schema with the event columns. Output "scores": time, received, home, device, metric, value, seq, score,
// model; one row for each numeric reading.
package score

import (
	"context"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/snapshot"
	"hearthline/models/anomaly"
	"hearthline/stages/internal/series"
)

// Schema is that of the output.
var Schema = arrow.NewSchema([]arrow.Field{
	{Name: flow.ColTime, Type: flow.InstantType},
	{Name: flow.ColReceived, Type: flow.InstantType},
	{Name: flow.ColHome, Type: flow.KeyType},
	{Name: flow.ColDevice, Type: flow.KeyType},
	{Name: flow.ColMetric, Type: flow.KeyType},
	{Name: flow.ColValue, Type: arrow.PrimitiveTypes.Float64},
	{Name: flow.ColSeq, Type: arrow.PrimitiveTypes.Int64, Nullable: true},
	{Name: "score", Type: arrow.PrimitiveTypes.Float64},
	{Name: "model", Type: flow.KeyType},
}, nil)

// Stage is the stage and its settings. Make it with [New].
type Stage struct {
	// Warmup is how many readings of a new series score 0, because nothing is known of it yet.
	Warmup uint32 `yaml:"warmup"`
	// Series is how many series are remembered in a partition (2.8 KB each); beyond it, the one that has been silent
	// longest is forgotten.
	Series int `yaml:"series"`
	// Forget is how long a series may be silent, in received time, before it is forgotten.
	Forget time.Duration `yaml:"forget"`

	params  anomaly.Params
	table   *series.Table[anomaly.Scorer]
	skipped atomic.Int64
	expired atomic.Int64
	crowded atomic.Int64
	count   atomic.Int64
}

// New gives the stage with its defaults.
func New() *Stage {
	return &Stage{Warmup: anomaly.Default().Warmup, Series: 200_000, Forget: 14 * 24 * time.Hour}
}

// Open checks the settings.
func (s *Stage) Open(context.Context) error {
	if s.Series < 1 {
		return fmt.Errorf("score: series is %d; it must be at least 1", s.Series)
	}
	if s.Forget <= 0 {
		return fmt.Errorf("score: forget is %v; it must be more than 0", s.Forget)
	}
	return nil
}

// Check lets lint find bad settings before anything starts.
func (s *Stage) Check(string, *arrow.Schema) error { return s.Open(context.Background()) }

// Counters says what rows in and out do not show. It may be called at any time by any goroutine.
func (s *Stage) Counters() map[string]int64 {
	return map[string]int64{
		"skipped":        s.skipped.Load(), // rows with a text, or without a value
		"series":         s.count.Load(),   // remembered now
		"series_expired": s.expired.Load(), // forgotten for their silence
		"series_crowded": s.crowded.Load(), // forgotten for the limit
	}
}

func (s *Stage) series() *series.Table[anomaly.Scorer] {
	if s.table == nil {
		s.table = series.New[anomaly.Scorer](s.Series, s.Forget)
		s.params = anomaly.Default()
		s.params.Warmup = s.Warmup
	}
	return s.table
}

const day = 24 * time.Hour / time.Microsecond

// dayFraction is how much of its UTC day has gone at m.
func dayFraction(m arrow.Timestamp) float64 {
	in := int64(m) % int64(day)
	if in < 0 {
		in += int64(day)
	}
	return float64(in) / float64(day)
}

// Process scores the numeric rows.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	ev, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	n := int(in.NumRows())
	keep := make([]int, 0, n)
	var bad flow.BadRows
	for i := range n {
		switch {
		case ev.Value.IsNull(i) || !ev.Text.IsNull(i):
		case math.IsNaN(ev.Value.Value(i)) || math.IsInf(ev.Value.Value(i), 0):
			bad.Add(i, fmt.Sprintf("value is %v; allowed: finite numbers", ev.Value.Value(i)))
		default:
			keep = append(keep, i)
		}
	}
	out, err := s.score(ctx, in, ev, keep)
	if err != nil {
		return nil, err
	}
	s.skipped.Add(int64(n - len(keep) - len(bad.Rows)))
	return []flow.Output{{To: "scores", Record: out}}, bad.Err()
}

func (s *Stage) score(ctx context.Context, in arrow.Record, ev flow.Events, rows []int) (arrow.Record, error) {
	mem := columns.Allocator(ctx)
	picked, err := columns.Take(mem, in, rows)
	if err != nil {
		return nil, flow.Badf("score: %v", err)
	}
	defer picked.Release()
	t := s.series()
	t.Begin(ev.Home, ev.Device, ev.Metric)
	defer t.End()
	scores := make([]float64, len(rows))
	for k, i := range rows {
		e, _ := t.At(i, flow.Micros(ev.Received[i]))
		scores[k] = e.State.Score(&s.params, ev.Value.Value(i), dayFraction(ev.Time[i]))
	}
	s.expired.Store(t.Expired)
	s.crowded.Store(t.Crowded)
	s.count.Store(int64(t.Len()))

	var model columns.Keys
	key := model.Key(anomaly.Name)
	for range rows {
		model.Append(key)
	}
	var cols []arrow.Array
	for _, f := range Schema.Fields()[:7] {
		cols = append(cols, columns.As(mem, picked.Column(picked.Schema().FieldIndices(f.Name)[0]), f.Type))
	}
	cols = append(cols, columns.Float64s(mem, scores, nil), model.Column(mem))
	return columns.Record(Schema, cols...), nil
}

const layout = 1

// Snapshot writes the scorers of all series: about 600 bytes each and their names.
func (s *Stage) Snapshot(w io.Writer) error {
	out := snapshot.NewWriter(w, "score", layout)
	var tmp []byte
	s.series().Save(out, func(w *snapshot.Writer, e *series.Entry[anomaly.Scorer]) {
		tmp, _ = e.State.AppendBinary(tmp[:0])
		w.Bytes(tmp)
	})
	return out.Close()
}

// Restore replaces the scorers of all series.
func (s *Stage) Restore(r io.Reader) error {
	in, _, err := snapshot.NewReader(r, "score", layout)
	if err != nil {
		return err
	}
	t := series.New[anomaly.Scorer](s.Series, s.Forget)
	t.Load(in, func(r *snapshot.Reader, e *series.Entry[anomaly.Scorer]) {
		if b := r.Bytes(); r.Err() == nil {
			if err := e.State.UnmarshalBinary(b); err != nil {
				r.Fail(err)
			}
		}
	})
	if err := in.Close(); err != nil {
		return err
	}
	s.series()
	s.table = t
	s.count.Store(int64(t.Len()))
	return nil
}
