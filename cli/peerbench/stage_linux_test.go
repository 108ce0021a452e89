package peerbench

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/python"
	"hearthline/streams"
)

// warm is a stage in Go doing the work: temperatures, in Fahrenheit.
type warm struct {
	schema *arrow.Schema
	rows   []int
}

func (w *warm) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	metric, err := flow.StringsOf(in, flow.ColMetric)
	if err != nil {
		return nil, err
	}
	value, err := flow.Column[*array.Float64](in, flow.ColValue)
	if err != nil {
		return nil, err
	}
	names, _ := metric.Dictionary()
	wanted := make([]bool, names.Len())
	for i := range wanted {
		wanted[i] = names.Value(i) == "temperature"
	}
	w.rows = w.rows[:0]
	for i := range int(in.NumRows()) {
		if wanted[metric.Index(i)] {
			w.rows = append(w.rows, i)
		}
	}
	mem := columns.Allocator(ctx)
	fahrenheit := array.NewFloat64Builder(mem)
	defer fahrenheit.Release()
	fahrenheit.Reserve(len(w.rows))
	for _, i := range w.rows {
		if value.IsNull(i) {
			fahrenheit.UnsafeAppendBoolToBitmap(false)
		} else {
			fahrenheit.UnsafeAppend(value.Value(i)*1.8 + 32)
		}
	}
	if w.schema == nil {
		var fields []arrow.Field
		for _, name := range []string{flow.ColTime, flow.ColHome, flow.ColDevice, flow.ColValue} {
			fields = append(fields, in.Schema().Field(in.Schema().FieldIndices(name)[0]))
		}
		w.schema = arrow.NewSchema(fields, nil)
	}
	var kept []arrow.Array
	for _, f := range w.schema.Fields()[:3] {
		kept = append(kept, in.Column(in.Schema().FieldIndices(f.Name)[0]))
	}
	part := array.NewRecord(arrow.NewSchema(w.schema.Fields()[:3], nil), kept, in.NumRows())
	defer part.Release()
	taken, err := columns.Take(mem, part, w.rows)
	if err != nil {
		return nil, err
	}
	defer taken.Release()
	last := fahrenheit.NewArray()
	defer last.Release()
	return []flow.Output{{To: "out", Record: array.NewRecord(w.schema, append(taken.Columns(), last), int64(len(w.rows)))}}, nil
}

type nowhere struct{}

func (nowhere) Write(context.Context, flow.Range, []arrow.Record) error { return nil }

// stageMain is the process of a stage: the runtime as `hearthline stage` has it, with the stage called use. It ends when it is told to.
func stageMain(brokers, use, input string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	found, err := python.New("").Stages("testdata/stages")
	if err != nil {
		return err
	}
	cat := pipeline.Catalog{
		Stages: map[string]func() flow.Stage{"warmgo": func() flow.Stage { return &warm{} }, "warmpy": found["warmpy"]},
		Sinks:  map[string]func() flow.Sink{"nowhere": func() flow.Sink { return nowhere{} }},
	}
	text := fmt.Sprintf("pipeline: %s-%s\npartitions: 1\nkafka: {brokers: %q}\ngateway: {to: %s}\nstages: {%s: {from: %s, to: out-%s-%s}}\nsinks: {nowhere: {from: out-%s-%s}}\n",
		use, input, brokers, input, use, input, use, input, use, input)
	spec, findings := pipeline.ReadBytes("bench.yaml", []byte(text), os.LookupEnv)
	plan, more := pipeline.NewPlan(ctx, spec, cat)
	if plan == nil {
		return fmt.Errorf("%v %v", findings, more)
	}
	c := streams.New()
	c.Brokers = strings.Split(brokers, ",")
	client, err := streams.Dial(ctx, c, nil)
	if err != nil {
		return err
	}
	defer client.Close()
	dir, err := os.MkdirTemp("", "peerbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store, err := blobs.Dir(dir)
	if err != nil {
		return err
	}
	r := &run.Runner{Plan: plan, Client: client, Store: store, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), Meter: run.NewMeter()}
	if err := r.Ensure(ctx); err != nil {
		return err
	}
	return r.Unit(ctx, use)
}
