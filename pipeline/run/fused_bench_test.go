package run

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/pipeline"
)

// onward hands on what it gets.
type onward struct{}

func (onward) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	in.Retain()
	return []flow.Output{{To: "out", Record: in}}, nil
}

// fahrenheit computes a column anew, and shares the others.
type fahrenheit struct{}

func (fahrenheit) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	at := in.Schema().FieldIndices(flow.ColValue)[0]
	celsius := in.Column(at).(*array.Float64).Float64Values()
	b := array.NewFloat64Builder(memory.DefaultAllocator)
	defer b.Release()
	b.Resize(len(celsius))
	for _, c := range celsius {
		b.UnsafeAppend(c*1.8 + 32)
	}
	values := b.NewArray()
	defer values.Release()
	columns := append([]arrow.Array(nil), in.Columns()...)
	columns[at] = values
	return []flow.Output{{To: "out", Record: array.NewRecord(in.Schema(), columns, in.NumRows())}}, nil
}

// BenchmarkFusedEdge is what rows cost from one stage of a unit to the next, with and without something computed there.
func BenchmarkFusedEdge(b *testing.B) {
	const edges = 8
	for name, make := range map[string]func() flow.Stage{"handed on": func() flow.Stage { return onward{} }, "a column computed": func() flow.Stage { return fahrenheit{} }} {
		for _, rows := range []int{100, 1000, 8000} {
			b.Run(fmt.Sprintf("%s/%d rows", name, rows), func(b *testing.B) {
				plan := &pipeline.Plan{Spec: &pipeline.Spec{Partitions: 1}, Streams: map[string]*pipeline.Stream{}}
				unit := &pipeline.Unit{Name: "fused", Inputs: []string{"s0"}}
				for i := range edges + 1 {
					name, to := fmt.Sprint("stage", i), fmt.Sprint("s", i+1)
					unit.Stages = append(unit.Stages, stage(name, fmt.Sprint("s", i), make, map[string]string{"out": to}))
					plan.Streams[to], plan.Streams[name+".dead"] = &pipeline.Stream{Name: to, Unit: "fused"}, &pipeline.Stream{}
				}
				events := flow.NewEventBuilder()
				for i := range rows {
					events.Append(&flow.Event{Time: flow.Micros(i), Home: "h", Device: fmt.Sprint("d", i%50), Metric: "temperature", Value: float64(i), HasValue: true})
				}
				rec, _ := events.Record()
				c := newChain(unit, plan, 0, nil, memory.DefaultAllocator, NewMeter(), nil, (&Runner{patience: 1}).retry)
				before := cpuTime(b)
				for b.Loop() {
					out, err := c.process(b.Context(), message{origin: flow.Origin{Stream: "s0"}, record: rec})
					if err != nil || len(out) > 0 {
						b.Fatal(len(out), err)
					}
				}
				b.ReportMetric(float64(b.N)*float64(rows*edges)/(cpuTime(b)-before).Seconds()/1e6, "Mrows/core-s-edge")
			})
		}
	}
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
