package flow_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

func events(t testing.TB, mem memory.Allocator, all ...flow.Event) arrow.Record {
	t.Helper()
	b := flow.NewEventBuilder()
	for i := range all {
		b.Append(&all[i])
	}
	rec, _ := b.Record()
	return rec
}

var sample = []flow.Event{
	{Time: 5, Received: 6, Home: "h1", Device: "d1", Metric: "temperature", Value: 20.5, HasValue: true, Unit: "°C", Seq: 1, HasSeq: true,
		Attributes: []flow.Attribute{{Name: "a", Value: "2"}, {Name: "z", Value: "1"}}},
	{Time: -7, Received: 8, Home: "h1", Device: "d2", Metric: "contact", Text: "", HasText: true, Attributes: []flow.Attribute{}},
	{Time: 9, Received: 9, Home: "h2", Device: "d1", Metric: "temperature", Value: math.NaN(), HasValue: true},
	{},
}

// read gives the rows of a record back as events.
func read(t *testing.T, rec arrow.Record) []flow.Event {
	t.Helper()
	ev, err := flow.EventsOf(rec)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]flow.Event, rec.NumRows())
	for i := range all {
		e := &all[i]
		e.Time, e.Received = flow.Micros(ev.Time[i]), flow.Micros(ev.Received[i])
		e.Home, e.Device, e.Metric, e.Unit = ev.Home.Value(i), ev.Device.Value(i), ev.Metric.Value(i), ev.Unit.Value(i)
		if e.HasValue = !ev.Value.IsNull(i); e.HasValue {
			e.Value = ev.Value.Value(i)
		}
		if e.HasText = !ev.Text.IsNull(i); e.HasText {
			e.Text = ev.Text.Value(i)
		}
		if e.HasSeq = !ev.Seq.IsNull(i); e.HasSeq {
			e.Seq = ev.Seq.Value(i)
		}
		if !ev.Attributes.IsNull(i) {
			e.Attributes = []flow.Attribute{}
			from, to := ev.Attributes.ValueOffsets(i)
			for j := int(from); j < int(to); j++ {
				e.Attributes = append(e.Attributes, flow.Attribute{Name: ev.Attributes.Keys().ValueStr(j), Value: ev.Attributes.Items().ValueStr(j)})
			}
		}
	}
	return all
}

func same(a, b []flow.Event) bool { return fmt.Sprintf("%#v", a) == fmt.Sprintf("%#v", b) }

func TestEventBuilderGivesBackWhatItGot(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	b := flow.NewEventBuilder()
	for round := range 2 { // a builder is used again
		for i := range sample {
			b.Append(&sample[i])
		}
		if b.Len() != len(sample) {
			t.Errorf("Len is %d after %d rows", b.Len(), len(sample))
		}
		rec, bounds := b.Record()
		if want := (flow.Bounds{First: -7, Last: 9}); bounds != want {
			t.Errorf("round %d: bounds are %v, want %v", round, bounds, want)
		}
		if !rec.Schema().Equal(flow.EventSchema) {
			t.Errorf("the schema is %v", rec.Schema())
		}
		if got := read(t, rec); !same(got, sample) {
			t.Errorf("round %d:\ngot  %+v\nwant %+v", round, got, sample)
		}
		homes, _ := flow.StringsOf(rec, flow.ColHome)
		if d, _ := homes.Dictionary(); d.Len() != 3 {
			t.Errorf("round %d: the dictionary of homes has %d entries; want 3: those of one batch", round, d.Len())
		}
		rec.Release()
	}
	rec, bounds := b.Record()
	defer rec.Release()
	if rec.NumRows() != 0 || bounds != (flow.Bounds{}) {
		t.Errorf("an empty builder gave %d rows, bounds %v", rec.NumRows(), bounds)
	}
}

func TestEventsOfFindsColumnsByName(t *testing.T) {
	rec := events(t, memory.DefaultAllocator, sample...)
	defer rec.Release()
	fields, cols := []arrow.Field{{Name: "extra", Type: flow.KeyType}}, []arrow.Array{rec.Column(2)}
	for i := int(rec.NumCols()) - 1; i >= 0; i-- {
		fields, cols = append(fields, rec.Schema().Field(i)), append(cols, rec.Column(i))
	}
	turned := array.NewRecord(arrow.NewSchema(fields, nil), cols, rec.NumRows())
	defer turned.Release()
	if got := read(t, turned); !same(got, sample) {
		t.Errorf("got %+v", got)
	}
	part := turned.NewSlice(1, 3)
	defer part.Release()
	if got := read(t, part); !same(got, sample[1:3]) {
		t.Errorf("of a slice: got %+v", got)
	}
}

func TestEventsOfRefusesWrongColumns(t *testing.T) {
	rec := events(t, memory.DefaultAllocator, sample...)
	defer rec.Release()
	for i, f := range flow.EventSchema.Fields() {
		fields, cols := flow.EventSchema.Fields(), rec.Columns()
		without := array.NewRecord(arrow.NewSchema(append(append([]arrow.Field{}, fields[:i]...), fields[i+1:]...), nil),
			append(append([]arrow.Array{}, cols[:i]...), cols[i+1:]...), rec.NumRows())
		if _, err := flow.EventsOf(without); !errors.Is(err, flow.ErrBad) || err.Error() != fmt.Sprintf("bad data: no column %q", f.Name) {
			t.Errorf("without %s: %v", f.Name, err)
		}
		wrong := append([]arrow.Field{}, fields...)
		other := append([]arrow.Array{}, cols...)
		n := array.NewInt32Builder(memory.DefaultAllocator)
		n.AppendValues(make([]int32, rec.NumRows()), nil)
		wrong[i].Type, other[i] = arrow.PrimitiveTypes.Int32, n.NewArray()
		if _, err := flow.EventsOf(array.NewRecord(arrow.NewSchema(wrong, nil), other, rec.NumRows())); !errors.Is(err, flow.ErrBad) {
			t.Errorf("%s as int32: %v", f.Name, err)
		}
	}
}

func TestInstantsRefuseOtherUnits(t *testing.T) {
	for _, typ := range []*arrow.TimestampType{{Unit: arrow.Millisecond, TimeZone: "UTC"}, {Unit: arrow.Microsecond}} {
		b := array.NewTimestampBuilder(memory.DefaultAllocator, typ)
		b.Append(1)
		rec := array.NewRecord(arrow.NewSchema([]arrow.Field{{Name: "time", Type: typ}}, nil), []arrow.Array{b.NewArray()}, 1)
		if _, err := flow.Instants(rec, "time"); !errors.Is(err, flow.ErrBad) {
			t.Errorf("%v: %v", typ, err)
		}
	}
}

func TestDeadLettersCarryAllThatRowsHold(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	rec := events(t, mem, append(sample, flow.Event{Home: "h", Device: "d", Value: math.Inf(-1), HasValue: true, Text: "\xff\"", HasText: true})...)
	defer rec.Release()
	from := flow.Origin{Stream: "raw", Partition: 3, Offset: 44, Watermark: 99}
	bad := flow.BadRows{Rows: []int{0, 2, 3, 4}, Reasons: []string{"a", "b", "b", "c"}}
	dead, err := flow.DeadLetters(mem, rec, "normalize", from, bad)
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Release()
	if !dead.Schema().Equal(flow.DeadSchema) || dead.NumRows() != 4 {
		t.Fatalf("%d rows of %v", dead.NumRows(), dead.Schema())
	}
	body := dead.Column(10).(*array.String)
	bodies := make([]map[string]any, 4)
	for i := range bodies {
		if err := json.Unmarshal([]byte(body.Value(i)), &bodies[i]); err != nil {
			t.Errorf("body %d is no JSON: %v: %s", i, err, body.Value(i))
		}
	}
	if got := bodies[0]["value"]; got != 20.5 {
		t.Errorf("value is %v in %s", got, body.Value(0))
	}
	if bodies[1]["value"] != "NaN" || bodies[3]["value"] != "-Inf" {
		t.Errorf("NaN and -Inf became %v and %v", bodies[1]["value"], bodies[3]["value"])
	}
	if _, there := bodies[1]["seq"]; there {
		t.Errorf("a null is written: %s", body.Value(1))
	}
	if got := fmt.Sprint(bodies[0]["attributes"]); got == "<nil>" {
		t.Errorf("attributes are lost: %s", body.Value(0))
	}
	rows := dead.Column(7).(*array.Int32)
	reasons, _ := flow.StringsOf(dead, "reason")
	for i, want := range bad.Rows {
		if int(rows.Value(i)) != want || reasons.Value(i) != bad.Reasons[i] {
			t.Errorf("letter %d is of row %d: %s", i, rows.Value(i), reasons.Value(i))
		}
	}
	homes, _ := flow.StringsOf(dead, flow.ColHome)
	if homes.Value(0) != "h1" || !homes.IsNull(2) {
		t.Errorf("homes are %q, null %v", homes.Value(0), homes.IsNull(2))
	}
	times, _ := flow.Instants(dead, flow.ColTime)
	if times[0] != 5 {
		t.Errorf("time is %d", times[0])
	}
}

func TestDeadLettersOfAWholeBatchWithoutEventColumns(t *testing.T) {
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Float64}}, nil))
	b.Field(0).(*array.Float64Builder).AppendValues([]float64{1, 2}, nil)
	dead, err := flow.DeadLetters(memory.DefaultAllocator, b.NewRecord(), "s", flow.Origin{Watermark: 42}, flow.BadRows{Reasons: []string{"all"}})
	if err != nil {
		t.Fatal(err)
	}
	times, _ := flow.Instants(dead, flow.ColTime)
	reasons, _ := flow.StringsOf(dead, "reason")
	if dead.NumRows() != 2 || times[1] != 42 || reasons.Value(1) != "all" || dead.Column(10).(*array.String).Value(1) != `{"x":2}` {
		t.Errorf("got %v", dead)
	}
}

func TestPartitionOfSpreads(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 8, 12, 16, 64, 128} {
		for _, form := range []string{"home-%d", "%d", "h%06d", "00000000-0000-0000-0000-%012d"} {
			const homes = 20000
			count := make([]int, n)
			for i := range homes {
				p := flow.PartitionOf(fmt.Sprintf(form, i), n)
				if p < 0 || int(p) >= n {
					t.Fatalf("partition %d of %d", p, n)
				}
				count[p]++
			}
			mean := float64(homes) / float64(n)
			for p, c := range count {
				// Six standard deviations of a fair spread.
				if math.Abs(float64(c)-mean) > 6*math.Sqrt(mean) {
					t.Errorf("%q over %d: partition %d has %d homes; the mean is %.0f", form, n, p, c, mean)
				}
			}
		}
	}
	// What is stored by it must be found by it for ever.
	got := []int32{flow.PartitionOf("", 128), flow.PartitionOf("home-1", 128), flow.PartitionOf("köln", 128)}
	if want := []int32{65, 4, 33}; !reflect.DeepEqual(got, want) {
		t.Errorf("PartitionOf has changed: %v, was %v", got, want)
	}
}

func TestMicros(t *testing.T) {
	m := flow.Micros(-1)
	if got := m.Time().String(); got != "1969-12-31 23:59:59.999999 +0000 UTC" {
		t.Errorf("Time of -1 is %s", got)
	}
	if flow.MicrosOf(m.Time()) != m || m.Add(2000).Sub(m) != 2000 {
		t.Error("Micros do not come back")
	}
}

func TestPositionAfter(t *testing.T) {
	for _, c := range []struct {
		p, o flow.Position
		want bool
	}{
		{flow.Position{Offset: 1}, flow.Position{}, true},
		{flow.Position{Offset: 1, K: 0}, flow.Position{Offset: 1, K: 0}, false},
		{flow.Position{Offset: 1, K: 1}, flow.Position{Offset: 1, K: 0}, true},
		{flow.Position{Offset: 1, K: 9}, flow.Position{Offset: 2, K: 0}, false},
	} {
		if c.p.After(c.o) != c.want {
			t.Errorf("%v after %v is %v", c.p, c.o, !c.want)
		}
	}
}

func TestBadRows(t *testing.T) {
	var b flow.BadRows
	if b.Err() != nil {
		t.Errorf("no bad row is the error %v", b.Err())
	}
	b.Add(3, "too hot")
	err := fmt.Errorf("stage: %w", b.Err())
	var got *flow.BadRows
	if !errors.Is(err, flow.ErrBad) || !errors.As(err, &got) || got.Rows[0] != 3 {
		t.Errorf("%v is not told as what it is", err)
	}
	if err := flow.Badf("%d", 4); !errors.Is(err, flow.ErrBad) || err.Error() != "bad data: 4" {
		t.Errorf("Badf gives %v", err)
	}
}

// Whatever rows come, in records of whatever size, they come back, also by way of a file; and a dictionary holds each name once.
func TestEventBuilderOnRandomRows(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	name := func(n int) string { return fmt.Sprint("name", rng.IntN(n)) }
	b := flow.NewEventBuilder()
	for round := range 60 {
		all := make([]flow.Event, rng.IntN(300))
		for i := range all {
			e := flow.Event{Time: flow.Micros(rng.Int64()), Received: flow.Micros(i), Home: name(3), Device: name(1 + round*200), Metric: name(2)}
			if round%4 > 0 { // a column may have no nulls, some, or nothing else
				e.HasValue, e.HasSeq, e.HasText = rng.IntN(9) > 0, rng.IntN(2) > 0, rng.IntN(9) == 0
			} else {
				e.HasValue, e.HasSeq = round%8 == 0, true
			}
			if e.HasValue {
				e.Value = rng.Float64()
			}
			if e.HasSeq {
				e.Seq = rng.Int64()
			}
			if e.HasText {
				e.Text = name(100)
			}
			if rng.IntN(2) > 0 {
				e.Unit = name(4)
			}
			for range rng.IntN(4) {
				e.Attributes = append(e.Attributes, flow.Attribute{Name: fmt.Sprint(9-len(e.Attributes), name(5)), Value: name(50)})
			}
			all[i] = e
			b.Append(&e)
		}
		rec, _ := b.Record()
		for i := range all { // names of one reading in their order
			slices.SortFunc(all[i].Attributes, func(a, b flow.Attribute) int { return strings.Compare(a.Name, b.Name) })
		}
		if got := read(t, throughFile(t, rec)); !same(got, all) {
			t.Fatalf("round %d:\ngot  %+v\nwant %+v", round, got, all)
		}
		devices, _ := flow.StringsOf(rec, flow.ColDevice)
		seen := map[string]bool{}
		for i := range devices.Len() {
			seen[devices.Value(i)] = true
		}
		if d, _ := devices.Dictionary(); d.Len() != len(seen) {
			t.Fatalf("round %d: %d names in the dictionary, %d in the rows", round, d.Len(), len(seen))
		}
		rec.Release()
	}
}

func throughFile(t *testing.T, rec arrow.Record) arrow.Record {
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(rec.Schema()))
	if err := errors.Join(w.Write(rec), w.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := ipc.NewReader(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Next() {
		t.Fatal(r.Err())
	}
	out := r.Record()
	out.Retain()
	t.Cleanup(out.Release)
	r.Release()
	return out
}

func BenchmarkEvents(b *testing.B) {
	var all []flow.Event
	for i := range 4096 { // 32 hubs, which send in bursts
		all = append(all, flow.Event{Time: flow.Micros(i), Received: flow.Micros(i), Home: fmt.Sprint("home-", i/64%32), Device: fmt.Sprint("thermostat-", i/64%32), Metric: "temperature",
			Value: float64(i), HasValue: true, Unit: "Cel", Seq: int64(i), HasSeq: true, Attributes: []flow.Attribute{{Name: "firmware", Value: "1.22.3"}, {Name: "room", Value: "living room"}}})
	}
	eb := flow.NewEventBuilder()
	b.ReportAllocs()
	for b.Loop() {
		for i := range all {
			eb.Append(&all[i])
		}
		rec, _ := eb.Record()
		rec.Release()
	}
	b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "rows/s")
}
