package features

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// full gives a stage that remembers so many series, each with some minutes of open windows.
func full(b *testing.B, series int) *Stage {
	b.Helper()
	s := New()
	const minutes, devices = 6, 10
	for minute := range minutes {
		rows := flow.NewEventBuilder()
		at := flow.Micros(1_700_000_000_000_000 + minute*30_000_000)
		for i := range series {
			rows.Append(&flow.Event{
				Time: at, Received: at + 1000, Home: fmt.Sprintf("home-%07d", i/devices), Device: fmt.Sprintf("sensor-%02d", i%devices),
				Metric: "temperature", Value: 20 + float64(i%97)/10, HasValue: true, Unit: "°C",
			})
		}
		rec, _ := rows.Record()
		outputs, err := s.Process(b.Context(), rec)
		rec.Release()
		if err != nil {
			b.Fatal(err)
		}
		for _, o := range outputs {
			o.Record.Release()
		}
	}
	return s
}

// BenchmarkSnapshot is what a checkpoint costs the stage: it stands still meanwhile.
func BenchmarkSnapshot(b *testing.B) {
	s := full(b, 100_000)
	var out bytes.Buffer
	for b.Loop() {
		out.Reset()
		if err := s.Snapshot(&out); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(out.Len()))
	}
	b.ReportMetric(float64(out.Len())/100_000, "B/series")
}

// BenchmarkRestore is what a restart costs.
func BenchmarkRestore(b *testing.B) {
	var state bytes.Buffer
	if err := full(b, 100_000).Snapshot(&state); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(state.Len()))
	for b.Loop() {
		if err := New().Restore(bytes.NewReader(state.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFeatures is what a reading costs where 100,000 series send every ten seconds, in windows of one and of five minutes.
func BenchmarkFeatures(b *testing.B) {
	const series, batch, rounds = 100_000, 10_000, 12
	var recs []arrow.Record
	for round := range rounds {
		for from := 0; from < series; from += batch {
			rows := flow.NewEventBuilder()
			for i := from; i < from+batch; i++ {
				at := flow.Micros(1_700_000_000_000_000 + round*10_000_000)
				rows.Append(&flow.Event{
					Time: at, Received: at + 1000, Home: fmt.Sprintf("home-%07d", i/10), Device: fmt.Sprintf("sensor-%02d", i%10),
					Metric: "temperature", Value: 20 + float64(i%97)/10, HasValue: true, Unit: "°C",
				})
			}
			rec, _ := rows.Record()
			recs = append(recs, rec)
		}
	}
	b.ReportAllocs()
	n, before := 0, cpuTime(b)
	for b.Loop() {
		s := New()
		for _, rec := range recs {
			outputs, err := s.Process(b.Context(), rec)
			if err != nil {
				b.Fatal(err)
			}
			flow.ReleaseOutputs(outputs)
			n += batch
		}
	}
	b.ReportMetric(float64(n)/(cpuTime(b)-before).Seconds(), "rows/core-s")
	b.ReportMetric(0, "ns/op")
}

// cpuTime is what this process has used of the processor: unlike time, it hardly depends on what else the machine does.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
