package flow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/compute/exec"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/flow/flowtest"
)

type reading struct {
	Time   flow.Micros       `flow:"time"`
	When   time.Time         `flow:"received"`
	Device string            `flow:"device"`
	Value  float64           `flow:"value"`
	Text   *string           `flow:"text"`
	Seq    *int64            `flow:"seq"`
	Tags   map[string]string `flow:"attributes"`
	Note   string            `flow:"-"`
}

type verdict struct {
	Time   time.Time         `flow:"time"`
	Device string            `flow:"device"`
	Level  string            `flow:"level,key"`
	Why    string            `flow:"why"`
	Hot    bool              `flow:"hot"`
	Twice  *float64          `flow:"twice"`
	Count  int64             `flow:"count"`
	Seen   *flow.Micros      `flow:"seen"`
	Tags   map[string]string `flow:"attributes"`
}

func judge(r reading) (verdict, bool) {
	if r.Value < 0 {
		return verdict{}, false
	}
	v := verdict{Time: r.Time.Time(), Device: r.Device, Level: "low", Why: fmt.Sprintf("%g", r.Value), Tags: r.Tags}
	if r.Value > 30 {
		v.Hot, v.Level = true, "high"
		twice := 2 * r.Value
		v.Twice = &twice
	}
	if r.Seq != nil {
		v.Count = *r.Seq
	}
	if r.Text != nil {
		at := flow.MicrosOf(r.When)
		v.Seen = &at
	}
	return v, true
}

func TestRowsCases(t *testing.T) {
	flowtest.Run(t, func() flow.Stage { return flow.Rows("verdicts", judge) }, "testdata/rows.yaml")
}

func TestRowsTypesThatAreNoColumns(t *testing.T) {
	type fine struct {
		Value float64 `flow:"value"`
	}
	type untagged struct{ Value float64 }
	type small struct {
		Value int32 `flow:"value"`
	}
	type deep struct {
		Value **float64 `flow:"value"`
	}
	type mapped struct {
		Value *map[string]string `flow:"value"`
	}
	type hidden struct {
		value float64 `flow:"value"` //lint:ignore U1000 that it cannot be reached is what is tested
	}
	type option struct {
		Value float64 `flow:"value,key"`
	}
	type twice struct {
		A, B float64 `flow:"value"`
	}
	for want, s := range map[string]flow.Stage{
		"field Value of flow_test.untagged names no column":        flow.Rows("x", func(untagged) (f fine, ok bool) { return }),
		"field Value of flow_test.small is a int32; columns are":   flow.Rows("x", func(small) (f fine, ok bool) { return }),
		"field Value of flow_test.deep is a **float64":             flow.Rows("x", func(fine) (f deep, ok bool) { return }),
		"field Value of flow_test.mapped is a *map[string]string":  flow.Rows("x", func(fine) (f mapped, ok bool) { return }),
		"field value of flow_test.hidden is not exported":          flow.Rows("x", func(fine) (f hidden, ok bool) { return }),
		"field Value of flow_test.option is a float64 with the op": flow.Rows("x", func(fine) (f option, ok bool) { return }),
		"two fields of flow_test.twice name the column \"value\"":  flow.Rows("x", func(fine) (f twice, ok bool) { return }),
		"int is no struct": flow.Rows("x", func(int) (f fine, ok bool) { return }),
	} {
		_, err := s.Process(context.Background(), events(t, memory.DefaultAllocator))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got the error %v; want one that holds %q", err, want)
		}
		if errors.Is(err, flow.ErrBad) {
			t.Errorf("%v is ErrBad; it is the author's fault, not the data's", err)
		}
	}
}

// What f keeps must outlive the record it came from.
func TestRowsOwnTheirStrings(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	var kept []reading
	s := flow.Rows("x", func(r reading) (reading, bool) { kept = append(kept, r); return r, false })
	rec := events(t, mem, flow.Event{Device: "d1", HasValue: true, Text: "open", HasText: true, Attributes: []flow.Attribute{{Name: "a", Value: "b"}}})
	outs, err := s.Process(exec.WithAllocator(context.Background(), mem), rec)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range outs {
		o.Record.Release()
	}
	for _, c := range rec.Columns() {
		if d, ok := c.(*array.Dictionary); ok {
			c = d.Dictionary()
		}
		overwrite(c.Data())
	}
	rec.Release()
	if kept[0].Device != "d1" || *kept[0].Text != "open" || kept[0].Tags["a"] != "b" {
		t.Errorf("a row that was kept became %+v when its record was overwritten", kept[0])
	}
}

func overwrite(d arrow.ArrayData) {
	for _, b := range d.Buffers() {
		if b != nil {
			memory.Set(b.Bytes(), 'X')
		}
	}
	for _, c := range d.Children() {
		overwrite(c)
	}
}

func BenchmarkRows(b *testing.B) {
	eb := flow.NewEventBuilder()
	for i := range 8192 {
		eb.Append(&flow.Event{Home: "h", Device: fmt.Sprint("d", i%100), Metric: "m", Value: 1, HasValue: true})
	}
	rec, _ := eb.Record()
	type row struct {
		Time   flow.Micros `flow:"time"`
		Device string      `flow:"device"`
		Value  float64     `flow:"value"`
	}
	s := flow.Rows("x", func(r row) (row, bool) { r.Value *= 2; return r, true })
	b.ReportAllocs()
	for b.Loop() {
		outs, err := s.Process(context.Background(), rec)
		if err != nil || outs[0].Record.Column(2).(*array.Float64).Value(0) != 2 {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*8192/b.Elapsed().Seconds(), "rows/s")
}

// TestDeadLettersWithoutATime: the dead letter of a row that has no time, or was never received, stands at the watermark.
func TestDeadLettersWithoutATime(t *testing.T) {
	instants := arrow.NewSchema([]arrow.Field{{Name: flow.ColTime, Type: flow.InstantType}, {Name: flow.ColReceived, Type: flow.InstantType}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, instants)
	defer b.Release()
	for i, null := range [][2]bool{{false, false}, {true, false}, {false, true}} {
		for col := range null {
			if null[col] {
				b.Field(col).AppendNull()
			} else {
				b.Field(col).(*array.TimestampBuilder).Append(arrow.Timestamp(10*i + col + 1))
			}
		}
	}
	in := b.NewRecord()
	defer in.Release()
	dead, err := flow.DeadLetters(memory.DefaultAllocator, in, "s", flow.Origin{Watermark: 77}, flow.BadRows{Reasons: []string{"all"}})
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Release()
	for col, want := range [][]arrow.Timestamp{{1, 77, 21}, {2, 12, 77}} {
		if got := dead.Column(col).(*array.Timestamp).TimestampValues(); !slices.Equal(got, want) {
			t.Errorf("%s of the dead letters is %v; want %v", flow.DeadSchema.Field(col).Name, got, want)
		}
	}
}
