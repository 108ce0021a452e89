package clickhouse

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

const benchRows = 100_000

// cpu is the time that this process, without the engine, has spent on the processor.
func cpu(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// perRow reports client CPU and wall time a row of what insert does.
func perRow(b *testing.B, insert func(n int)) {
	insert(-1) // plans, connections
	begun := cpu(b)
	n := 0
	for b.Loop() {
		insert(n)
		n++
	}
	rows := float64(n) * benchRows
	b.ReportMetric(float64(cpu(b)-begun)/rows, "cpu-ns/row")
	b.ReportMetric(float64(b.Elapsed())/rows, "ns/row")
	b.ReportMetric(0, "ns/op")
}

func nullTable(b *testing.B, s *Sink) {
	b.Helper()
	if err := s.queries.Exec(context.Background(), "CREATE TABLE nothing AS readings ENGINE = Null"); err != nil {
		b.Fatal(err)
	}
	s.Tables = map[string]string{"readings": "nothing"}
}

// BenchmarkColumns is this sink; BenchmarkRows is what it would be with a row at a time. Both into a table that keeps nothing.
func BenchmarkColumns(b *testing.B) {
	s := openSink(b)
	nullTable(b, s)
	rec := readings(b, memory.DefaultAllocator, 1, benchRows, testDay)
	perRow(b, func(n int) { write(b, s, "readings", int64(n), rec) })
}

func BenchmarkRows(b *testing.B) {
	s := openSink(b)
	nullTable(b, s)
	rec := readings(b, memory.DefaultAllocator, 1, benchRows, testDay)
	events, err := flow.EventsOf(rec)
	if err != nil {
		b.Fatal(err)
	}
	var extra []flow.Strings
	for _, name := range []string{"room", "kind", "model", "zone"} {
		col, err := flow.StringsOf(rec, name)
		if err != nil {
			b.Fatal(err)
		}
		extra = append(extra, col)
	}
	perRow(b, func(int) {
		batch, err := s.queries.PrepareBatch(context.Background(), "INSERT INTO nothing")
		if err != nil {
			b.Fatal(err)
		}
		for i := range benchRows {
			var value *float64
			if !events.Value.IsNull(i) {
				v := events.Value.Value(i)
				value = &v
			}
			var seq *int64
			if !events.Seq.IsNull(i) {
				v := events.Seq.Value(i)
				seq = &v
			}
			if err := batch.Append(time.UnixMicro(int64(events.Time[i])), time.UnixMicro(int64(events.Received[i])),
				events.Home.Value(i), events.Device.Value(i), events.Metric.Value(i), value, text(events.Text, i), events.Unit.Value(i), seq,
				attributes(events.Attributes, i), extra[0].Value(i), extra[1].Value(i), extra[2].Value(i), extra[3].Value(i)); err != nil {
				b.Fatal(err)
			}
		}
		if err := batch.Send(); err != nil {
			b.Fatal(err)
		}
	})
}

func text(a *array.String, i int) string {
	if a.IsNull(i) {
		return ""
	}
	return a.Value(i)
}

func attributes(a *array.Map, i int) map[string]string {
	m := make(map[string]string)
	if a.IsNull(i) {
		return m
	}
	keys, items := a.Keys().(*array.String), a.Items().(*array.String)
	from, to := a.ValueOffsets(i)
	for j := from; j < to; j++ {
		m[keys.Value(int(j))] = items.Value(int(j))
	}
	return m
}

// BenchmarkEncode is the client's own part: from Arrow to the bytes of a block, before compression.
func BenchmarkEncode(b *testing.B) {
	rec := readings(b, memory.DefaultAllocator, 1, benchRows, testDay)
	p, err := planOf("readings", "readings", rec.Schema(), known[tableReadings])
	if err != nil {
		b.Fatal(err)
	}
	var buf proto.Buffer
	perRow(b, func(int) {
		buf.Reset()
		for _, f := range p.fields {
			f.fill([]chunk{{rec.Column(f.at), 0, benchRows}}).EncodeColumn(&buf)
		}
	})
	b.ReportMetric(float64(len(buf.Buf))/benchRows, "bytes/row")
}

// BenchmarkReadings is the whole: sorted, rolled up, on disk, by one writer.
func BenchmarkReadings(b *testing.B) {
	s := openSink(b)
	var recs []arrow.Record
	for i := range 8 {
		recs = append(recs, readings(b, memory.DefaultAllocator, uint64(i), benchRows, testDay.Add(time.Duration(i)*benchRows*time.Second)))
	}
	perRow(b, func(n int) { write(b, s, "readings", int64(n), recs[(n+1)%8]) })
}
