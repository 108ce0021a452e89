// Package normalize gives readings the names, units and states that the rest of the pipeline knows, and sets aside those
// that cannot be right.
//
// A row is bad, with a reason that names the value and what is allowed, when it has no home or device, its metric is
// unknown (see Unknown), its unit is none of the metric's, its value is not a number, infinite or out of range, its text is
// no state of the metric, or its event time is too far from when it was received.
//
// A metric with states (motion, contact, …) leaves with both: value, the state's number, and text, its name. So windows can
// say how much of a minute a door was open, and a dashboard can say "open".
//
// Input: any schema with the event columns. Output "clean": the same schema.
package normalize

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow"
	"hearthline/flow/columns"
)

// Stage is the stage and its settings. Make it with [New].
type Stage struct {
	// Metrics are added to the built-in table (metrics.yaml beside this file), or stand in place of the built-in metric
	// of the same name.
	Metrics map[string]Metric `yaml:"metrics"`
	// Unknown says what becomes of a metric that is in neither: "dead", or "pass" as it is.
	Unknown string `yaml:"unknown"`
	// MaxAge is how long before its arrival a reading may have happened: hubs that were offline send late.
	MaxAge time.Duration `yaml:"max_age"`
	// MaxAhead is how long after its arrival a reading may claim to have happened: by how much a device's clock may be
	// fast. One far ahead would close its series' windows early.
	MaxAhead time.Duration `yaml:"max_ahead"`

	known     *catalogue
	converted atomic.Int64
	renamed   atomic.Int64
	unknown   atomic.Int64
}

// New gives the stage with its defaults.
func New() *Stage {
	return &Stage{Unknown: "dead", MaxAge: 30 * 24 * time.Hour, MaxAhead: 5 * time.Minute}
}

// Open checks the settings.
func (s *Stage) Open(context.Context) error {
	if s.Unknown != "dead" && s.Unknown != "pass" {
		return fmt.Errorf("normalize: unknown is %q; it must be dead or pass", s.Unknown)
	}
	if s.MaxAge < 0 || s.MaxAhead < 0 {
		return fmt.Errorf("normalize: max_age is %v and max_ahead is %v; they must not be below 0", s.MaxAge, s.MaxAhead)
	}
	return s.ready()
}

// Check lets lint find broken metrics before anything starts.
func (s *Stage) Check(string, *arrow.Schema) error { return s.Open(context.Background()) }

func (s *Stage) ready() (err error) {
	if s.known == nil {
		if s.known, err = catalogueWith(s.Metrics); err != nil {
			return fmt.Errorf("normalize: %w", err)
		}
	}
	return nil
}

// Counters says what rows in and out do not show. It may be called at any time by any goroutine.
func (s *Stage) Counters() map[string]int64 {
	return map[string]int64{
		"converted":      s.converted.Load(), // rows that came in another unit
		"renamed":        s.renamed.Load(),   // rows that came under another name
		"unknown_passed": s.unknown.Load(),   // rows of unknown metrics, passed
	}
}

// Process passes the rows that can be right, under canonical names.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	ev, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	if err := s.ready(); err != nil {
		return nil, err
	}
	w := s.newWork(ev, int(in.NumRows()))
	for i := range w.rows {
		if reason := w.row(i); reason != "" {
			w.bad.Add(i, reason)
			w.metric.Append(columns.Null)
			w.unit.Append(columns.Null)
		}
	}
	mem := columns.Allocator(ctx)
	with := map[string]arrow.Array{
		flow.ColMetric: w.metric.Column(mem),
		flow.ColUnit:   w.unit.Column(mem),
		flow.ColValue:  columns.Float64s(mem, w.values, w.valid),
	}
	if len(w.texts) > 0 {
		with[flow.ColText] = w.textColumn(array.NewStringBuilder(mem))
	}
	all := columns.Replace(in, with)
	defer all.Release()
	out, err := columns.Without(mem, all, w.bad.Rows)
	if err != nil {
		return nil, flow.Badf("normalize: %v", err)
	}
	s.converted.Add(w.converted)
	s.renamed.Add(w.renamed)
	s.unknown.Add(w.unknown)
	return []flow.Output{{To: "clean", Record: out}}, w.bad.Err()
}

// work is one batch in the making.
type work struct {
	s              *Stage
	ev             flow.Events
	rows           int
	metrics, units columns.Numbers
	plans          map[uint64]*plan
	last           uint64
	lastPlan       *plan
	homes, devices named
	metric, unit   columns.Keys
	values         []float64
	valid          []bool
	texts          map[int]string // rows whose text changes
	bad            flow.BadRows

	converted, renamed, unknown int64
}

// plan is what to do with the rows of one metric in one unit.
type plan struct {
	reason     string  // why they are bad; "" when they are not
	metric     *metric // nil for an unknown one that passes
	conversion conversion
	metricKey  int32
	unitKey    int32
	renamed    bool
	converted  bool
	spelled    string // the unit as it came
}

// named says which keys of a column are empty.
type named struct {
	numbers columns.Numbers
	empty   []bool
}

func namedOf(s flow.Strings) named {
	n := named{numbers: columns.NumbersOf(s)}
	n.empty = make([]bool, n.numbers.Size)
	for i := range n.empty {
		n.empty[i] = n.numbers.Value(i) == ""
	}
	return n
}

func (s *Stage) newWork(ev flow.Events, rows int) *work {
	w := &work{
		s: s, ev: ev, rows: rows,
		metrics: columns.NumbersOf(ev.Metric), units: columns.NumbersOf(ev.Unit),
		plans: make(map[uint64]*plan),
		homes: namedOf(ev.Home), devices: namedOf(ev.Device),
		values: make([]float64, rows), valid: make([]bool, rows),
	}
	w.metric.Grow(rows)
	w.unit.Grow(rows)
	return w
}

func (w *work) planOf(row int) *plan {
	m, u := w.metrics.At(row), w.units.At(row)
	k := uint64(m)<<32 | uint64(u)
	if w.lastPlan != nil && w.last == k {
		return w.lastPlan
	}
	p, ok := w.plans[k]
	if !ok {
		p = w.makePlan(strings.Clone(w.metrics.Value(m)), strings.Clone(w.units.Value(u)))
		w.plans[k] = p
	}
	w.last, w.lastPlan = k, p
	return p
}

func (w *work) makePlan(name, unit string) *plan {
	p := &plan{unitKey: columns.Null, spelled: unit}
	m := w.s.known.find(name)
	if m == nil {
		if w.s.Unknown == "pass" && name != "" {
			p.metricKey = w.metric.Key(name)
			if unit != "" {
				p.unitKey = w.unit.Key(unit)
			}
			return p
		}
		p.reason = fmt.Sprintf("unknown metric %.80q", name)
		if near := w.s.known.near(name); near != "" {
			p.reason += fmt.Sprintf("; did you mean %s?", near)
		}
		return p
	}
	p.metric, p.conversion = m, conversion{scale: 1, to: m}
	if unit != "" {
		conv, ok := m.units[unitSpelling(unit)]
		if !ok && m.unit != "" {
			p.reason = fmt.Sprintf("%s in %.40q; allowed: %s", m.name, unit, m.accepted)
			return p
		}
		if ok {
			p.conversion, p.metric = conv, conv.to
		}
	}
	p.converted = p.conversion.scale != 1 || p.conversion.offset != 0
	p.renamed = p.metric.name != name
	p.metricKey = w.metric.Key(p.metric.name)
	if p.metric.unit != "" {
		p.unitKey = w.unit.Key(p.metric.unit)
	}
	return p
}

// row works on row i. A reason says that it is bad.
func (w *work) row(i int) (reason string) {
	if w.homes.empty[w.homes.numbers.At(i)] {
		return "no home; every row needs one"
	}
	if w.devices.empty[w.devices.numbers.At(i)] {
		return "no device; every row needs one"
	}
	p := w.planOf(i)
	if p.reason != "" {
		return p.reason
	}
	if reason := w.checkTime(i); reason != "" {
		return reason
	}
	switch {
	case p.metric == nil:
		reason = w.pass(i)
	case p.metric.states != nil:
		reason = w.state(i, p.metric)
	default:
		reason = w.number(i, p)
	}
	if reason != "" {
		return reason
	}
	w.metric.Append(p.metricKey)
	w.unit.Append(p.unitKey)
	if p.converted {
		w.converted++
	}
	if p.renamed {
		w.renamed++
	}
	return ""
}

func (w *work) checkTime(i int) string {
	at, received := flow.Micros(w.ev.Time[i]), flow.Micros(w.ev.Received[i])
	// Compared without subtracting: a time of far away must not overflow.
	if at > received.Add(w.s.MaxAhead) {
		return fmt.Sprintf("event time %s is more than %v after its arrival at %s", instant(at), w.s.MaxAhead, instant(received))
	}
	if at < received.Add(-w.s.MaxAge) {
		return fmt.Sprintf("event time %s is more than %v before its arrival at %s", instant(at), w.s.MaxAge, instant(received))
	}
	return ""
}

func instant(m flow.Micros) string { return m.Time().Format(time.RFC3339) }

// pass takes over a row of an unknown metric.
func (w *work) pass(i int) string {
	if !w.ev.Value.IsNull(i) {
		v := w.ev.Value.Value(i)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Sprintf("%.80s is %v; allowed: finite numbers", w.ev.Metric.Value(i), v)
		}
		w.values[i], w.valid[i] = v, true
	} else if w.ev.Text.IsNull(i) {
		return "neither a value nor a text"
	}
	w.unknown++
	return ""
}

func (w *work) state(i int, m *metric) string {
	switch {
	case !w.ev.Text.IsNull(i):
		text := w.ev.Text.Value(i)
		v, ok := m.states[text]
		if !ok {
			v, ok = m.states[spelling(text)]
		}
		if !ok {
			return fmt.Sprintf("%s is %.40q; allowed: %s", m.name, text, m.allowed)
		}
		w.values[i], w.valid[i] = v, true
		if name := m.names[v]; name != text {
			w.text(i, name)
		}
	case !w.ev.Value.IsNull(i):
		v := w.ev.Value.Value(i)
		name, ok := m.names[v]
		if !ok {
			return fmt.Sprintf("%s is %v; allowed: %s", m.name, v, m.allowed)
		}
		w.values[i], w.valid[i] = v, true
		w.text(i, name)
	default:
		return fmt.Sprintf("%s has neither a value nor a text", m.name)
	}
	return ""
}

func (w *work) text(i int, name string) {
	if w.texts == nil {
		w.texts = make(map[int]string)
	}
	w.texts[i] = name
}

func (w *work) number(i int, p *plan) string {
	m := p.metric
	if w.ev.Value.IsNull(i) {
		if w.ev.Text.IsNull(i) {
			return fmt.Sprintf("%s has no value", m.name)
		}
		return fmt.Sprintf("%s is the text %.40q; allowed: numbers, %s", m.name, w.ev.Text.Value(i), m.rangeText())
	}
	said := w.ev.Value.Value(i)
	// The conversion to float64 forbids the compiler to fuse the two, so that all machines get the same bits.
	v := float64(said*p.conversion.scale) + p.conversion.offset
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return fmt.Sprintf("%s is %v; allowed: numbers, %s", m.name, said, m.rangeText())
	}
	if v < m.min || v > m.max {
		if p.converted {
			return fmt.Sprintf("%s of %v %s is %v %s; allowed: %s", m.name, said, p.spelled, v, m.unit, m.rangeText())
		}
		return fmt.Sprintf("%s is %v %s; allowed: %s", m.name, v, m.unit, m.rangeText())
	}
	w.values[i], w.valid[i] = v, true
	return ""
}

func (m *metric) rangeText() string {
	return strings.TrimSpace(fmt.Sprintf("%v to %v %s", m.min, m.max, m.unit))
}

// textColumn is the text column with the changed rows in it. It releases b.
func (w *work) textColumn(b *array.StringBuilder) arrow.Array {
	defer b.Release()
	b.Reserve(w.rows)
	for i := range w.rows {
		if s, changed := w.texts[i]; changed {
			b.Append(s)
		} else if w.ev.Text.IsNull(i) {
			b.AppendNull()
		} else {
			b.Append(w.ev.Text.Value(i))
		}
	}
	return b.NewArray()
}
