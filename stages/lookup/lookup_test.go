package lookup

import (
	"fmt"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/flow/flowtest"
)

func TestCases(t *testing.T) {
	flowtest.Run(t, func() flow.Stage { return New() }, "cases")
}

func events(from, n int) arrow.Record {
	b := flow.NewEventBuilder()
	for i := range n {
		b.Append(&flow.Event{Time: flow.Micros(i), Received: flow.Micros(i), Home: fmt.Sprint("home-", (from+i)/10), Device: fmt.Sprint("device-", (from+i)%10), Metric: "temperature", Value: 1, HasValue: true, Unit: "°C"})
	}
	rec, _ := b.Record()
	return rec
}

// BenchmarkLookup: rows of 100,000 devices, each of which the table holds.
func BenchmarkLookup(b *testing.B) {
	const keys, batch = 100_000, 10_000
	s := New()
	s.On = []string{"home", "device"}
	schema := arrow.NewSchema([]arrow.Field{{Name: "time", Type: flow.InstantType}, {Name: "received", Type: flow.InstantType}, {Name: "home", Type: flow.KeyType},
		{Name: "device", Type: flow.KeyType}, {Name: "room", Type: flow.KeyType}, {Name: "floor", Type: arrow.PrimitiveTypes.Int64}}, nil)
	table := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	for i := range keys {
		table.Field(0).(*array.TimestampBuilder).Append(0)
		table.Field(1).(*array.TimestampBuilder).Append(0)
		for c, text := range []string{fmt.Sprint("home-", i/10), fmt.Sprint("device-", i%10), fmt.Sprint("room-", i%7)} {
			_ = table.Field(2 + c).(*array.BinaryDictionaryBuilder).AppendString(text)
		}
		table.Field(5).(*array.Int64Builder).Append(int64(i % 3))
	}
	if _, err := s.ProcessInput(b.Context(), "table", table.NewRecord()); err != nil {
		b.Fatal(err)
	}
	var recs []arrow.Record
	for from := 0; from < keys; from += batch {
		recs = append(recs, events(from, batch))
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		made, err := s.ProcessInput(b.Context(), "rows", recs[n%len(recs)])
		if err != nil || made[0].Record.NumRows() != batch {
			b.Fatal(err)
		}
		flow.ReleaseOutputs(made)
		n++
	}
	if s.counts.unmatched.Load() > 0 {
		b.Error("rows were not found")
	}
	b.ReportMetric(float64(n)*batch/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(0, "ns/op")
}
