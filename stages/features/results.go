package features

import (
	"cmp"
	"slices"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/stages/internal/series"
)

var float = arrow.PrimitiveTypes.Float64

// Schema is that of the output "features": one window of one series a row.
var Schema = arrow.NewSchema([]arrow.Field{
	{Name: flow.ColTime, Type: flow.InstantType},     // start of the window
	{Name: flow.ColReceived, Type: flow.InstantType}, // the largest among its readings
	{Name: flow.ColHome, Type: flow.KeyType},
	{Name: flow.ColDevice, Type: flow.KeyType},
	{Name: flow.ColMetric, Type: flow.KeyType},
	{Name: "window", Type: flow.KeyType},         // as in the settings: 1m, 5m/1m
	{Name: "window_end", Type: flow.InstantType}, // not part of the window
	{Name: "count", Type: arrow.PrimitiveTypes.Int64},
	{Name: "mean", Type: float},
	{Name: "std", Type: float, Nullable: true}, // of the sample; null with one reading
	{Name: "min", Type: float},
	{Name: "max", Type: float},
	{Name: "last", Type: float},                  // at the largest event time
	{Name: "slope", Type: float, Nullable: true}, // least squares, per second; null when all are of one time
	{Name: "rate", Type: float, Nullable: true},  // (last - first) / time between them, per second; likewise
	{Name: "since_last", Type: float},            // seconds from the last reading to the window's end
}, nil)

// results are closed windows on their way out.
type results struct{ rows []closedWindow }

type closedWindow struct {
	key    series.Key
	number uint64 // of the series
	result
}

func newResults() *results { return &results{} }

func (o *results) len() int { return len(o.rows) }

func (o *results) add(e *series.Entry[state], r result) {
	o.rows = append(o.rows, closedWindow{e.Key, e.Number, r})
}

// sort orders by window end, then series, then kind as listed: the sort is stable and each series closes its kinds in order.
func (o *results) sort() {
	slices.SortStableFunc(o.rows, func(a, b closedWindow) int {
		return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.number, b.number))
	})
}

// record is the windows as a record of Schema. The caller releases it.
func (o *results) record(mem memory.Allocator) arrow.Record {
	var home, device, metric, window columns.Keys
	n := len(o.rows)
	for _, k := range []*columns.Keys{&home, &device, &metric, &window} {
		k.Grow(n)
	}
	b := array.NewRecordBuilder(mem, Schema)
	defer b.Release()
	b.Reserve(n)
	instant := func(i int, v flow.Micros) { b.Field(i).(*array.TimestampBuilder).UnsafeAppend(arrow.Timestamp(v)) }
	number := func(i int, v float64) { b.Field(i).(*array.Float64Builder).UnsafeAppend(v) }
	perhaps := func(i int, v float64, ok bool) {
		if ok {
			number(i, v)
		} else {
			b.Field(i).AppendNull()
		}
	}
	for i := range o.rows {
		r := &o.rows[i]
		p := &r.pane
		instant(0, p.start)
		instant(1, p.received)
		home.AppendString(r.key.Home)
		device.AppendString(r.key.Device)
		metric.AppendString(r.key.Metric)
		window.AppendString(r.kind.name)
		instant(6, r.end)
		b.Field(7).(*array.Int64Builder).UnsafeAppend(p.count)
		number(8, p.mean)
		std, ok := p.std()
		perhaps(9, std, ok)
		number(10, p.min)
		number(11, p.max)
		number(12, p.last)
		slope, ok := p.slope()
		perhaps(13, slope, ok)
		rate, ok := p.rate()
		perhaps(14, rate, ok)
		number(15, seconds(r.end-p.lastAt))
	}
	cols := make([]arrow.Array, len(Schema.Fields()))
	for i, k := range map[int]*columns.Keys{2: &home, 3: &device, 4: &metric, 5: &window} {
		cols[i] = k.Column(mem)
	}
	for i := range cols {
		if cols[i] == nil {
			cols[i] = b.Field(i).NewArray()
		}
	}
	return columns.Record(Schema, cols...)
}
