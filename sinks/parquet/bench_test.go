package parquet_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	pq "github.com/parquet-go/parquet-go"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/sinks/parquet"
)

// readings are n rows of 200 homes as they come in: a batch is some thousand rows of a few seconds.
func readings(n int) []arrow.Record {
	rnd := rand.New(rand.NewPCG(1, 2))
	b := flow.NewEventBuilder()
	at := flow.MicrosOf(time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC))
	metrics := []string{"temperature", "humidity", "motion", "power", "co2"}
	var recs []arrow.Record
	for i := range n {
		home := rnd.IntN(200)
		at += flow.Micros(rnd.IntN(2000))
		b.Append(&flow.Event{
			Time: at, Received: at + flow.Micros(rnd.IntN(200_000)), Home: fmt.Sprintf("home-%04d", home),
			Device: fmt.Sprintf("sensor-%d", rnd.IntN(12)), Metric: metrics[rnd.IntN(5)], Unit: "°C",
			Value: 20 + float64(rnd.IntN(500))/100, HasValue: true, Seq: int64(i / 200), HasSeq: true,
		})
		if b.Len() == 4096 || i == n-1 {
			rec, _ := b.Record()
			recs = append(recs, rec)
		}
	}
	return recs
}

type devNull struct{ blobs.Store }

func (devNull) Put(_ context.Context, _ string, r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

const benchRows = 200_000

func reportRows(b *testing.B, rows int) {
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkWrite(b *testing.B) {
	for _, level := range []int{1, 3, 7} {
		b.Run(fmt.Sprintf("zstd %d", level), func(b *testing.B) {
			recs := readings(benchRows)
			s := parquet.New()
			s.Store, s.Level = devNull{}, level
			must(b, s.Open(b.Context()))
			for b.Loop() {
				must(b, s.Write(b.Context(), rangeOf(0, 9), recs))
			}
			reportRows(b, benchRows)
			st := s.Stats()
			b.ReportMetric(float64(st.Bytes)/float64(st.Rows), "B/row")
		})
	}
}

// BenchmarkWriteNaively is what Write is measured against: a struct a row, taken apart by reflection.
func BenchmarkWriteNaively(b *testing.B) {
	type row struct {
		Time       int64             `parquet:"time,timestamp(microsecond),delta"`
		Received   int64             `parquet:"received,timestamp(microsecond),delta"`
		Home       string            `parquet:"home,dict"`
		Device     string            `parquet:"device,dict"`
		Metric     string            `parquet:"metric,dict"`
		Value      *float64          `parquet:"value"`
		Text       *string           `parquet:"text"`
		Unit       *string           `parquet:"unit,dict"`
		Seq        *int64            `parquet:"seq"`
		Attributes map[string]string `parquet:"attributes,optional"`
	}
	recs := readings(benchRows)
	for b.Loop() {
		var out bytes.Buffer
		w := pq.NewGenericWriter[row](&out, pq.Compression(&pq.Zstd))
		for _, rec := range recs {
			e, err := flow.EventsOf(rec)
			must(b, err)
			for i := range e.Time {
				value, unit, seq := e.Value.Value(i), e.Unit.Value(i), e.Seq.Value(i)
				_, err := w.Write([]row{{
					Time: int64(e.Time[i]), Received: int64(e.Received[i]), Home: e.Home.Value(i), Device: e.Device.Value(i),
					Metric: e.Metric.Value(i), Value: &value, Unit: &unit, Seq: &seq,
				}})
				must(b, err)
			}
		}
		must(b, w.Close())
	}
	reportRows(b, benchRows)
}

// BenchmarkWriteSmall is what a quiet partition does: a file of few rows.
func BenchmarkWriteSmall(b *testing.B) {
	recs := readings(1000)
	s := parquet.New()
	s.Store = devNull{}
	must(b, s.Open(b.Context()))
	b.ReportAllocs()
	for b.Loop() {
		must(b, s.Write(b.Context(), rangeOf(0, 9), recs))
	}
	reportRows(b, 1000)
}

func BenchmarkRead(b *testing.B) {
	s := parquet.New()
	s.Store = newDirectory(b)
	must(b, s.Open(b.Context()))
	must(b, s.Write(b.Context(), rangeOf(0, 9), readings(benchRows)))
	for b.Loop() {
		n := int64(0)
		for r, err := range parquet.Read(b.Context(), s.Store, "readings") {
			must(b, err)
			n += r.Record.NumRows()
		}
		if n != benchRows {
			b.Fatalf("read %d rows", n)
		}
	}
	reportRows(b, benchRows)
}

func rangeOf(first, last int64) flow.Range {
	return flow.Range{Stream: "readings", StreamID: "k7", Partition: 3, First: first, Last: last}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkDurability is what waiting for the disk costs: small ranges, as a quiet partition has, and large ones.
func BenchmarkDurability(b *testing.B) {
	for _, rows := range []int{1000, benchRows} {
		recs := readings(rows)
		for name, noSync := range map[string]bool{"synced": false, "not synced": true} {
			b.Run(fmt.Sprintf("%d rows, %s", rows, name), func(b *testing.B) {
				d := &blobs.Directory{Path: b.TempDir(), NoSync: noSync}
				must(b, d.Open())
				defer d.Close()
				s := parquet.New()
				s.Store = d
				must(b, s.Open(b.Context()))
				for i := int64(0); b.Loop(); i++ {
					must(b, s.Write(b.Context(), rangeOf(i, i), recs))
				}
				reportRows(b, rows)
			})
		}
	}
}
