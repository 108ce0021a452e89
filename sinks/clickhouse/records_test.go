package clickhouse

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// readingsSchema is what enrich makes of events.
var readingsSchema = arrow.NewSchema(append(append([]arrow.Field(nil), flow.EventSchema.Fields()...),
	arrow.Field{Name: "room", Type: flow.KeyType, Nullable: true},
	arrow.Field{Name: "kind", Type: flow.KeyType, Nullable: true},
	arrow.Field{Name: "model", Type: flow.KeyType, Nullable: true},
	arrow.Field{Name: "zone", Type: flow.KeyType, Nullable: true},
), nil)

var (
	key    = func(name string) arrow.Field { return arrow.Field{Name: name, Type: flow.KeyType} }
	at     = func(name string) arrow.Field { return arrow.Field{Name: name, Type: flow.InstantType} }
	float  = func(name string) arrow.Field { return arrow.Field{Name: name, Type: arrow.PrimitiveTypes.Float64} }
	floatN = func(name string) arrow.Field {
		return arrow.Field{Name: name, Type: arrow.PrimitiveTypes.Float64, Nullable: true}
	}
	featuresSchema = arrow.NewSchema([]arrow.Field{at("time"), at("received"), key("home"), key("device"), key("metric"), key("window"),
		at("window_end"), {Name: "count", Type: arrow.PrimitiveTypes.Int64}, float("mean"), floatN("std"), float("min"), float("max"),
		float("last"), floatN("slope"), floatN("rate"), floatN("since_last")}, nil)
	scoresSchema = arrow.NewSchema([]arrow.Field{at("time"), at("received"), key("home"), key("device"), key("metric"), float("value"),
		{Name: "seq", Type: arrow.PrimitiveTypes.Int64, Nullable: true}, float("score"), key("model")}, nil)
	alertsSchema = arrow.NewSchema([]arrow.Field{at("time"), at("received"), key("home"), key("device"), key("metric"),
		{Name: "id", Type: arrow.BinaryTypes.String}, key("state"), key("severity"), float("score"), float("value"), float("threshold"), at("started")}, nil)
)

// checkedMem fails the test when Arrow memory is not given back.
func checkedMem(t testing.TB) memory.Allocator {
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	t.Cleanup(func() { mem.AssertSize(t, 0) })
	return mem
}

var testDay = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// readings makes n readings of made-up homes from a seed, one a second from begin. It releases them when the test ends.
func readings(t testing.TB, mem memory.Allocator, seed uint64, n int, begin time.Time) arrow.Record {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	b := flow.NewEventBuilder()
	for i := range n {
		e := flow.Event{
			Time:     flow.MicrosOf(begin.Add(time.Duration(i) * time.Second)),
			Received: flow.MicrosOf(begin.Add(time.Duration(i)*time.Second + 30*time.Millisecond)),
			Home:     fmt.Sprintf("home-%d", rng.IntN(20)), Device: fmt.Sprintf("device-%d", rng.IntN(5)),
			Metric: []string{"temperature", "humidity", "door"}[rng.IntN(3)],
			Seq:    int64(i), HasSeq: i%7 != 0,
		}
		if e.Metric == "door" {
			e.Text, e.HasText = []string{"open", "closed"}[i%2], true
		} else {
			e.Value, e.HasValue, e.Unit = float64(rng.IntN(4000))/100, true, "°C"
		}
		if i%3 == 0 {
			e.Attributes = []flow.Attribute{{Name: "battery", Value: fmt.Sprint(i % 100)}, {Name: "fw", Value: "1.2"}}
		}
		b.Append(&e)
	}
	events, _ := b.Record()
	defer events.Release()
	rooms := array.NewDictionaryBuilder(mem, flow.KeyType).(*array.BinaryDictionaryBuilder)
	defer rooms.Release()
	cols := append([]arrow.Array(nil), events.Columns()...)
	for _, values := range [][]string{{"kitchen", "hall", ""}, {"sensor"}, {"HL-1", "HL-2"}, {""}} {
		for i := range n {
			if v := values[i%len(values)]; v == "" {
				rooms.AppendNull()
			} else if err := rooms.AppendString(v); err != nil {
				t.Fatal(err)
			}
		}
		col := rooms.NewArray()
		rooms.ResetFull()
		defer col.Release()
		cols = append(cols, col)
	}
	rec := array.NewRecord(readingsSchema, cols, int64(n))
	t.Cleanup(rec.Release)
	return rec
}

// fill makes n rows of any schema from a seed: every value of a column is made by its type.
func fill(t testing.TB, mem memory.Allocator, schema *arrow.Schema, seed uint64, n int) arrow.Record {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 2))
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	for i, f := range schema.Fields() {
		for row := range n {
			if f.Nullable && rng.IntN(4) == 0 {
				b.Field(i).AppendNull()
				continue
			}
			fillOne(t, b.Field(i), f.Type, rng, row)
		}
	}
	rec := b.NewRecord()
	t.Cleanup(rec.Release)
	return rec
}

func fillOne(t testing.TB, b array.Builder, typ arrow.DataType, rng *rand.Rand, row int) {
	t.Helper()
	switch b := b.(type) {
	case *array.TimestampBuilder:
		per := map[arrow.TimeUnit]int64{arrow.Second: 1, arrow.Millisecond: 1e3, arrow.Microsecond: 1e6, arrow.Nanosecond: 1e9}
		b.Append(arrow.Timestamp((testDay.Unix() + int64(row)) * per[typ.(*arrow.TimestampType).Unit]))
	case *array.BinaryDictionaryBuilder:
		if err := b.AppendString(fmt.Sprintf("key-%d", rng.IntN(300))); err != nil {
			t.Fatal(err)
		}
	case *array.StringBuilder:
		b.Append(fmt.Sprintf("text %d é", rng.IntN(1000)))
	case *array.LargeStringBuilder:
		b.Append(fmt.Sprint("large ", row))
	case *array.BinaryBuilder:
		b.Append([]byte{byte(row), 0, 255})
	case *array.BooleanBuilder:
		b.Append(rng.IntN(2) == 0)
	case *array.Int8Builder:
		b.Append(int8(rng.Int()))
	case *array.Int16Builder:
		b.Append(int16(rng.Int()))
	case *array.Int32Builder:
		b.Append(int32(rng.Int()))
	case *array.Int64Builder:
		b.Append(int64(rng.Uint64()))
	case *array.Uint8Builder:
		b.Append(uint8(rng.Int()))
	case *array.Uint16Builder:
		b.Append(uint16(rng.Int()))
	case *array.Uint32Builder:
		b.Append(uint32(rng.Int()))
	case *array.Uint64Builder:
		b.Append(rng.Uint64())
	case *array.Float32Builder:
		b.Append(rng.Float32())
	case *array.Float64Builder:
		b.Append(rng.NormFloat64())
	case *array.Date32Builder:
		b.Append(arrow.Date32(20000 + row))
	case *array.MapBuilder:
		b.Append(true)
		for i := range rng.IntN(3) {
			b.KeyBuilder().(*array.StringBuilder).Append(fmt.Sprint("k", i))
			fillOne(t, b.ItemBuilder(), typ.(*arrow.MapType).ItemType(), rng, row)
		}
	case *array.ListBuilder:
		b.Append(true)
		for range rng.IntN(4) {
			if rng.IntN(5) == 0 {
				b.ValueBuilder().AppendNull()
				continue
			}
			fillOne(t, b.ValueBuilder(), typ.(*arrow.ListType).Elem(), rng, row)
		}
	case *array.FixedSizeListBuilder:
		b.Append(true)
		for range typ.(*arrow.FixedSizeListType).Len() {
			fillOne(t, b.ValueBuilder(), typ.(*arrow.FixedSizeListType).Elem(), rng, row)
		}
	default:
		t.Fatalf("fill makes no %s", typ)
	}
}

// rangeOf names a range of a stream in tests.
func rangeOf(stream string, partition int32, first, last int64) flow.Range {
	return flow.Range{Stream: stream, StreamID: "s1", Partition: partition, First: first, Last: last}
}
