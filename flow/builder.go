package flow

import (
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// EventBuilder gathers events into records of [EventSchema]. It is used by one goroutine at a time. Its memory, and that of its
// records, is the garbage collector's.
//
// It fills the columns itself: every reading of every device passes here, and Arrow's builders, which ask an allocator for each
// buffer and hash each text, take twice as long (see BenchmarkEvents).
type EventBuilder struct {
	time, received             []arrow.Timestamp
	home, device, metric, unit keyColumn
	value                      []float64
	text                       textColumn
	seq                        []int64
	hasValue, hasSeq, hasAttrs validity
	attrsEnd                   []int32 // where the pairs of a row end
	attrName, attrValue        textColumn
	sorted                     []Attribute
	bounds                     Bounds
	before                     sizes
}

// sizes are those of the record before: most records are about as large.
type sizes struct{ rows, textBytes, pairs, pairBytes, nameBytes int }

// NewEventBuilder returns an empty builder.
func NewEventBuilder() *EventBuilder { return &EventBuilder{} }

// Append adds one row. It keeps no reference to e.
func (eb *EventBuilder) Append(e *Event) {
	if len(eb.time) == 0 {
		eb.reserve()
		eb.bounds = Bounds{First: e.Time, Last: e.Time}
	}
	eb.bounds.First, eb.bounds.Last = min(eb.bounds.First, e.Time), max(eb.bounds.Last, e.Time)
	eb.time = append(eb.time, arrow.Timestamp(e.Time))
	eb.received = append(eb.received, arrow.Timestamp(e.Received))
	eb.home.append(e.Home)
	eb.device.append(e.Device)
	eb.metric.append(e.Metric)
	if e.Unit == "" {
		eb.unit.appendNull()
	} else {
		eb.unit.append(e.Unit)
	}
	value, seq, text := e.Value, e.Seq, e.Text
	if !e.HasValue {
		value = 0
	}
	if !e.HasSeq {
		seq = 0
	}
	if !e.HasText {
		text = ""
	}
	eb.value, eb.seq = append(eb.value, value), append(eb.seq, seq)
	eb.hasValue.append(e.HasValue)
	eb.hasSeq.append(e.HasSeq)
	eb.text.append(text)
	eb.text.valid.append(e.HasText)
	eb.attributes(e.Attributes)
}

// attributes adds a row's pairs in the order of their names: the same event gives the same bytes, however it was written.
func (eb *EventBuilder) attributes(pairs []Attribute) {
	byName := func(a, b Attribute) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(pairs, byName) {
		eb.sorted = append(eb.sorted[:0], pairs...)
		slices.SortStableFunc(eb.sorted, byName)
		pairs = eb.sorted
		defer clear(eb.sorted)
	}
	for i := range pairs {
		eb.attrName.append(pairs[i].Name)
		eb.attrValue.append(pairs[i].Value)
	}
	eb.hasAttrs.append(pairs != nil)
	eb.attrsEnd = append(eb.attrsEnd, int32(len(eb.attrName.ends))) // #nosec G115 -- a batch is far smaller
}

// reserve makes room for a record like the one before.
func (eb *EventBuilder) reserve() {
	n := eb.before
	eb.time, eb.received = make([]arrow.Timestamp, 0, n.rows), make([]arrow.Timestamp, 0, n.rows)
	eb.value, eb.seq, eb.attrsEnd = make([]float64, 0, n.rows), make([]int64, 0, n.rows), make([]int32, 0, n.rows)
	for _, k := range eb.keys() {
		k.indices = make([]int32, 0, n.rows)
	}
	eb.text.reserve(n.rows, n.textBytes)
	eb.attrName.reserve(n.pairs, n.nameBytes)
	eb.attrValue.reserve(n.pairs, n.pairBytes)
}

func (eb *EventBuilder) keys() [4]*keyColumn {
	return [...]*keyColumn{&eb.home, &eb.device, &eb.metric, &eb.unit}
}

// Len is the number of rows gathered since the last record.
func (eb *EventBuilder) Len() int { return len(eb.time) }

// Record gives away what was gathered, with the bounds of its event times, and begins anew. The caller
// releases the record.
func (eb *EventBuilder) Record() (arrow.Record, Bounds) {
	rows := len(eb.time)
	eb.before = sizes{rows, len(eb.text.bytes), len(eb.attrName.ends), len(eb.attrValue.bytes), len(eb.attrName.bytes)}
	columns := map[string]arrow.ArrayData{
		ColTime:       fixed(InstantType, rows, arrow.TimestampTraits.CastToBytes(eb.time), nil),
		ColReceived:   fixed(InstantType, rows, arrow.TimestampTraits.CastToBytes(eb.received), nil),
		ColHome:       eb.home.data(),
		ColDevice:     eb.device.data(),
		ColMetric:     eb.metric.data(),
		ColUnit:       eb.unit.data(),
		ColValue:      fixed(arrow.PrimitiveTypes.Float64, rows, arrow.Float64Traits.CastToBytes(eb.value), &eb.hasValue),
		ColText:       eb.text.data(),
		ColSeq:        fixed(arrow.PrimitiveTypes.Int64, rows, arrow.Int64Traits.CastToBytes(eb.seq), &eb.hasSeq),
		ColAttributes: eb.pairs(),
	}
	arrays := make([]arrow.Array, EventSchema.NumFields())
	for i, f := range EventSchema.Fields() {
		arrays[i] = array.MakeFromData(columns[f.Name])
		columns[f.Name].Release()
		defer arrays[i].Release()
	}
	bounds := eb.bounds
	*eb = EventBuilder{home: eb.home.next(), device: eb.device.next(), metric: eb.metric.next(), unit: eb.unit.next(), sorted: eb.sorted, before: eb.before}
	return array.NewRecord(EventSchema, arrays, int64(rows)), bounds
}

// pairs is the column of attributes: a list of structs of two texts.
func (eb *EventBuilder) pairs() arrow.ArrayData {
	n := len(eb.attrName.ends)
	names, values := eb.attrName.data(), eb.attrValue.data()
	entries := array.NewData(AttributesType.Elem(), n, []*memory.Buffer{nil}, []arrow.ArrayData{names, values}, 0, 0)
	defer func() { names.Release(); values.Release(); entries.Release() }()
	return array.NewData(AttributesType, len(eb.attrsEnd), []*memory.Buffer{eb.hasAttrs.buffer(), offsets(eb.attrsEnd)}, []arrow.ArrayData{entries}, eb.hasAttrs.nulls, 0)
}
