package stages

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/flow"
)

var origin = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// round is what 250 homes of 4 devices with 2 metrics say in the given round, one every ten seconds: 2,000 readings.
func round(n int, rng *rand.Rand) []flow.Event {
	var all []flow.Event
	at := flow.MicrosOf(origin.Add(time.Duration(n) * 10 * time.Second))
	for h := range 250 {
		for d := range 4 {
			for m, metric := range []string{"temperature", "humidity"} {
				all = append(all, flow.Event{
					Time: at, Received: at + flow.Micros(rng.IntN(1e6)), Home: fmt.Sprint("home-", h), Device: fmt.Sprint("sensor-", d), Metric: metric,
					Value: float64(20+20*m) + rng.NormFloat64(), HasValue: true, Unit: []string{"°C", "%"}[m], Seq: int64(n), HasSeq: true,
				})
			}
		}
	}
	return all
}

func record(all []flow.Event) arrow.Record {
	b := flow.NewEventBuilder()
	for i := range all {
		b.Append(&all[i])
	}
	rec, _ := b.Record()
	return rec
}

// batches is n batches of 8,000 rows, of four rounds each.
func batches(n int, seed uint64) []arrow.Record {
	rng := rand.New(rand.NewPCG(seed, 0))
	recs := make([]arrow.Record, n)
	for i := range recs {
		var all []flow.Event
		for k := range 4 {
			all = append(all, round(4*i+k, rng)...)
		}
		recs[i] = record(all)
	}
	return recs
}

// order is that of the default pipeline, with the output that the next stage reads.
var order = []struct{ stage, output string }{
	{"normalize", "clean"}, {"dedupe", "unique"}, {"enrich", "readings"}, {"features", "features"}, {"score", "scores"}, {"alert", "alerts"},
}

// joining are the stages beside them that tell their inputs apart.
var joining = []string{"join", "lookup"}

func give(tb testing.TB, s flow.Stage, in arrow.Record, output string) arrow.Record {
	tb.Helper()
	outs, err := s.Process(context.Background(), in)
	if err != nil {
		tb.Fatal(err)
	}
	var rec arrow.Record
	for _, o := range outs {
		if o.To == output {
			rec = o.Record
		} else {
			o.Record.Release()
		}
	}
	if rec == nil {
		tb.Fatalf("no output %q", output)
	}
	return rec
}

func TestCatalog(t *testing.T) {
	all := Catalog()
	if len(all) != len(order)+len(joining) {
		t.Errorf("the catalogue has %d stages, this test knows %d", len(all), len(order)+len(joining))
	}
	for _, name := range joining {
		s := all[name]()
		if _, ok := s.(flow.Inputs); !ok {
			t.Errorf("%s does not tell its inputs apart", name)
		}
		if err := s.(flow.Opener).Open(t.Context()); err != nil {
			t.Errorf("%s: the defaults are refused: %v", name, err)
		}
	}
	in := record(nil)
	for _, o := range order {
		make, ok := all[o.stage]
		if !ok {
			t.Fatalf("no stage %q", o.stage)
		}
		if make() == make() {
			t.Errorf("%s: two instances are one", o.stage)
		}
		s := make()
		if err := flow.Open(t.Context(), s); err != nil {
			t.Errorf("%s: the defaults are refused: %v", o.stage, err)
		}
		if _, ok := s.(interface{ Counters() map[string]int64 }); !ok {
			t.Errorf("%s has no Counters", o.stage)
		}
		// Zero rows through the default pipeline: each stage takes what the one before makes.
		switch out := give(t, s, in, o.output); o.stage {
		case "features": // score reads the readings too
		default:
			in = out
		}
	}
}

func TestEveryStageRefusesWhatIsNotItsInput(t *testing.T) {
	rec := record(nil).NewSlice(0, 0)
	for name, make := range Catalog() {
		s := make()
		_, err := s.Process(t.Context(), recordWithout(rec))
		if !errors.Is(err, flow.ErrBad) {
			t.Errorf("%s: got %v; want an ErrBad", name, err)
		}
	}
}

func recordWithout(rec arrow.Record) arrow.Record {
	var fields []arrow.Field
	var cols []arrow.Array
	for i, f := range rec.Schema().Fields() {
		if f.Name != flow.ColHome {
			fields, cols = append(fields, f), append(cols, rec.Column(i))
		}
	}
	return newRecord(fields, cols)
}

func BenchmarkStages(b *testing.B) {
	for _, o := range order {
		b.Run(o.stage, func(b *testing.B) {
			in := batches(64, 1)
			for _, before := range order {
				if before.stage == o.stage {
					break
				}
				if before.stage == "features" { // its output is nobody's input here
					continue
				}
				s := Catalog()[before.stage]()
				for i := range in {
					in[i] = give(b, s, in[i], before.output)
				}
			}
			s, n := Catalog()[o.stage](), 0
			b.ReportAllocs()
			for b.Loop() {
				if n%len(in) == 0 { // the same rows again would be copies, or late
					s = Catalog()[o.stage]()
				}
				give(b, s, in[n%len(in)], o.output).Release()
				n++
			}
			b.ReportMetric(float64(n)*8000/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func newRecord(fields []arrow.Field, cols []arrow.Array) arrow.Record {
	return array.NewRecord(arrow.NewSchema(fields, nil), cols, 0)
}

// TestSpikesAlert sends days of five homes with a daily course through score and alert: each spike must alert, and hardly
// anything else.
func TestSpikesAlert(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	var all []flow.Event
	for i := range 4000 {
		at := flow.MicrosOf(origin.Add(time.Duration(i) * time.Minute))
		for h := range 5 {
			v := 20 + float64(i%1440)/720 + rng.NormFloat64()*0.1
			if i == 3000+100*h {
				v += 8
			}
			all = append(all, flow.Event{Time: at, Received: at, Home: fmt.Sprint(h), Device: "d", Metric: "temperature", Value: v, HasValue: true})
		}
	}
	scores := give(t, Catalog()["score"](), record(all), "scores")
	alerts := give(t, Catalog()["alert"](), scores, "alerts")
	homes, err := flow.StringsOf(alerts, flow.ColHome)
	if err != nil {
		t.Fatal(err)
	}
	states, err := flow.StringsOf(alerts, "state")
	if err != nil {
		t.Fatal(err)
	}
	times, err := flow.Instants(alerts, flow.ColTime)
	if err != nil {
		t.Fatal(err)
	}
	found, fired := 0, 0
	for i, at := range times {
		if states.Value(i) != "firing" {
			continue
		}
		fired++
		var h int
		if _, err := fmt.Sscan(homes.Value(i), &h); err != nil {
			t.Fatal(err)
		}
		if flow.Micros(at) == flow.MicrosOf(origin.Add(time.Duration(3000+100*h)*time.Minute)) {
			found++
		}
	}
	if found != 5 || fired > 6 {
		t.Errorf("%d of 5 spikes alerted, and %d alerts fired in all", found, fired)
	}
}
