package flow

import (
	"slices"
	"unsafe"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// EventBuilder gathers events into records of [EventSchema]. It is used by one goroutine at a time.
type EventBuilder struct {
	b                          *array.RecordBuilder
	time, received             *array.TimestampBuilder
	home, device, metric, unit *array.BinaryDictionaryBuilder
	value                      *array.Float64Builder
	text                       *array.StringBuilder
	seq                        *array.Int64Builder
	attrs                      *array.MapBuilder
	attrKey, attrValue         *array.StringBuilder
	rows                       int
	before                     int // rows of the record before
	keys                       []string
	bounds                     Bounds
}

// NewEventBuilder returns an empty builder. Release it when done.
func NewEventBuilder(mem memory.Allocator) *EventBuilder {
	b := array.NewRecordBuilder(mem, EventSchema)
	field := func(name string) array.Builder { return b.Field(EventSchema.FieldIndices(name)[0]) }
	attrs := field(ColAttributes).(*array.MapBuilder)
	return &EventBuilder{
		b:         b,
		time:      field(ColTime).(*array.TimestampBuilder),
		received:  field(ColReceived).(*array.TimestampBuilder),
		home:      field(ColHome).(*array.BinaryDictionaryBuilder),
		device:    field(ColDevice).(*array.BinaryDictionaryBuilder),
		metric:    field(ColMetric).(*array.BinaryDictionaryBuilder),
		unit:      field(ColUnit).(*array.BinaryDictionaryBuilder),
		value:     field(ColValue).(*array.Float64Builder),
		text:      field(ColText).(*array.StringBuilder),
		seq:       field(ColSeq).(*array.Int64Builder),
		attrs:     attrs,
		attrKey:   attrs.KeyBuilder().(*array.StringBuilder),
		attrValue: attrs.ItemBuilder().(*array.StringBuilder),
	}
}

// Append adds one row. It keeps no reference to e.
func (eb *EventBuilder) Append(e *Event) {
	if eb.rows == 0 {
		eb.b.Reserve(eb.before) // most records are about as long as the one before
	}
	eb.time.Append(arrow.Timestamp(e.Time))
	eb.received.Append(arrow.Timestamp(e.Received))
	appendKey(eb.home, e.Home)
	appendKey(eb.device, e.Device)
	appendKey(eb.metric, e.Metric)
	if e.Unit == "" {
		eb.unit.AppendNull()
	} else {
		appendKey(eb.unit, e.Unit)
	}
	if e.HasValue {
		eb.value.Append(e.Value)
	} else {
		eb.value.AppendNull()
	}
	if e.HasText {
		eb.text.Append(e.Text)
	} else {
		eb.text.AppendNull()
	}
	if e.HasSeq {
		eb.seq.Append(e.Seq)
	} else {
		eb.seq.AppendNull()
	}
	if e.Attributes == nil {
		eb.attrs.AppendNull()
	} else {
		eb.attrs.Append(true)
		// In the order of their names: the same event gives the same bytes, whatever map order was.
		for k := range e.Attributes {
			eb.keys = append(eb.keys, k)
		}
		slices.Sort(eb.keys)
		for _, k := range eb.keys {
			eb.attrKey.Append(k)
			eb.attrValue.Append(e.Attributes[k])
		}
		clear(eb.keys)
		eb.keys = eb.keys[:0]
	}
	if eb.rows == 0 {
		eb.bounds = Bounds{First: e.Time, Last: e.Time}
	} else {
		eb.bounds.First, eb.bounds.Last = min(eb.bounds.First, e.Time), max(eb.bounds.Last, e.Time)
	}
	eb.rows++
}

// appendKey panics only on a memo table that cannot grow any more (2³¹ distinct keys in one batch).
func appendKey(b *array.BinaryDictionaryBuilder, s string) {
	view := []byte{}
	if s != "" {
		view = unsafe.Slice(unsafe.StringData(s), len(s)) // #nosec G103 -- read, not kept; AppendString would copy it first
	}
	if err := b.Append(view); err != nil {
		panic(err)
	}
}

// Len is the number of rows gathered since the last record.
func (eb *EventBuilder) Len() int { return eb.rows }

// Record gives away what was gathered, with the bounds of its event times, and begins anew. The caller
// releases the record.
func (eb *EventBuilder) Record() (arrow.Record, Bounds) {
	rec, bounds := eb.b.NewRecord(), eb.bounds
	// A dictionary builder keeps its keys across records unless told: they would pile up for ever.
	for _, d := range []*array.BinaryDictionaryBuilder{eb.home, eb.device, eb.metric, eb.unit} {
		d.ResetFull()
	}
	eb.before, eb.rows, eb.bounds = eb.rows, 0, Bounds{}
	return rec, bounds
}

// Release frees the builder's memory.
func (eb *EventBuilder) Release() { eb.b.Release() }
