package compare

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// Quantiles are within 1 % of the right ones, of numbers of both signs and many sizes.
func TestSketch(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	var s sketch
	var all []float64
	for range 50_000 {
		x := math.Exp(dice.NormFloat64() * 5)
		switch dice.IntN(5) {
		case 0:
			x = -x
		case 1:
			x = 0
		}
		all = append(all, x)
		s.add(x)
	}
	s.add(math.NaN())
	slices.Sort(all)
	for _, q := range []float64{0, 0.01, 0.15, 0.25, 0.5, 0.9, 0.99, 1} {
		want, got := all[int(q*float64(len(all)-1))], s.quantile(q)
		if math.Abs(got-want) > sketchError*1.0001*math.Abs(want) {
			t.Errorf("quantile %v is %v; want %v", q, got, want)
		}
	}
	for i := range 10_000 {
		s.add(math.Pow(10, float64(i%600-300)))
	}
	if len(s.above) > bucketsMax {
		t.Errorf("%d buckets", len(s.above))
	}
	if q := (&sketch{}).quantile(0.5); !math.IsNaN(q) {
		t.Errorf("the median of nothing is %v", q)
	}
}

func TestDistinct(t *testing.T) {
	dice := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{0, 1, 1000, 1024, 100_000} {
		var d distinct
		for range n {
			h := dice.Uint64()
			d.add(h)
			d.add(h)
		}
		if got := d.estimate(); math.Abs(float64(got)-float64(n)) > 0.1*float64(n) || n <= distinctMax && got != int64(n) {
			t.Errorf("%d of %d different ones", got, n)
		}
	}
}

var schema = arrow.NewSchema([]arrow.Field{
	{Name: flow.ColTime, Type: flow.InstantType}, {Name: flow.ColHome, Type: flow.KeyType}, {Name: flow.ColDevice, Type: flow.KeyType},
	{Name: "score", Type: arrow.PrimitiveTypes.Float64, Nullable: true}, {Name: "label", Type: flow.KeyType},
}, nil)

type row struct {
	at           int64
	home, device string
	score        float64 // NaN: null
	label        string
}

func recordOf(rows ...row) arrow.Record {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, r := range rows {
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(r.at))
		for i, s := range []string{r.home, r.device} {
			_ = b.Field(1 + i).(*array.BinaryDictionaryBuilder).AppendString(s)
		}
		if math.IsNaN(r.score) {
			b.Field(3).AppendNull()
		} else {
			b.Field(3).(*array.Float64Builder).Append(r.score)
		}
		_ = b.Field(4).(*array.BinaryDictionaryBuilder).AppendString(r.label)
	}
	return b.NewRecord()
}

// planOf is a stage score, tried in one way or the other.
func planOf(trial *pipeline.Trial) *pipeline.Plan {
	score := &pipeline.StageNode{Stage: pipeline.Stage{Name: "score", Use: "score", Trial: trial}, Outputs: map[string]string{"scores": "scores"}, Dead: "score.dead"}
	p := &pipeline.Plan{Spec: &pipeline.Spec{}, Units: []*pipeline.Unit{{Name: "score", Stages: []*pipeline.StageNode{score}}}, Streams: map[string]*pipeline.Stream{
		"scores": {Name: "scores", Writer: "score"}, "score.dead": {Name: "score.dead", Writer: "score"},
	}}
	p.Streams[pipeline.Side("scores", trial.Kind)] = &pipeline.Stream{Name: pipeline.Side("scores", trial.Kind), Writer: "score", Side: true}
	p.Streams["score-shadow.dead"] = &pipeline.Stream{Name: "score-shadow.dead", Writer: "score-shadow", Side: true}
	return p
}

func give(t *testing.T, c *Comparison, stream string, offset int64, k int32, rec arrow.Record) {
	t.Helper()
	m := streams.Message{Stream: stream, Batch: flow.Batch{Record: rec}}
	producer := "score"
	if stream != "scores" && c.percent < 0 {
		producer = "score-shadow"
	}
	m.Batch.Lineage = flow.Lineage{Source: flow.Source{Producer: producer, Stream: "readings"}, Position: flow.Position{Offset: offset, K: k}}
	if err := c.Take(m); err != nil {
		t.Fatal(err)
	}
	if rec != nil {
		rec.Release()
	}
}

// Rows of a shadow are paired with those of its stage by their keys, whichever came first; what differs is told by column, and
// what only one of them made.
func TestShadowIsCompared(t *testing.T) {
	c, err := New(planOf(&pipeline.Trial{Kind: pipeline.TrialShadow, Use: "score_v2"}), "score")
	if err != nil {
		t.Fatal(err)
	}
	c.Tolerance = 0.01
	for o := range int64(300) {
		first := []row{{o, "h", "a", float64(o), "x"}, {o, "h", "b", 10, "x"}, {o, "h", "twice", 1, "x"}, {o, "h", "twice", 2, "x"}}
		second := []row{{o, "h", "twice", 1, "x"}, {o, "h", "twice", 2, "x"}, {o, "h", "b", 10.05, "x"}, {o, "h", "a", float64(2 * o), "y"}}
		if o == 100 {
			first = append(first, row{o, "h", "mine", 0, "x"})
			second = append(second, row{o, "h", "nulls", math.NaN(), "x"})
			first = append(first, row{o, "h", "nulls", 3, "x"})
		}
		if o%2 == 0 {
			give(t, c, "scores", o, 0, recordOf(first...))
			give(t, c, "scores.shadow", o, 0, recordOf(second[:2]...))
			give(t, c, "scores.shadow", o, 1, recordOf(second[2:]...))
		} else {
			give(t, c, "scores.shadow", o, 0, recordOf(second...))
			give(t, c, "scores", o, 1, recordOf(first...))
		}
		give(t, c, "scores", o, 0, recordOf(first...)) // again, after a crash
	}
	give(t, c, "score-shadow.dead", 5, 0, recordOf(row{}))
	r := c.Report(true)
	if len(r.Outputs) != 1 || r.Dead != [2]int64{0, 1} || r.Duplicates != 300 {
		t.Fatalf("%+v", r)
	}
	o := r.Outputs[0]
	if o.Paired != 1201 || o.Only != [2]int64{1, 0} || o.Waiting != 0 || o.GaveUp != 0 || o.Equal != 900 {
		t.Errorf("paired %d, only %v, waiting %d, gave up %d, equal %d", o.Paired, o.Only, o.Waiting, o.GaveUp, o.Equal)
	}
	column := map[string]Column{}
	for _, col := range o.Columns {
		column[col.Name] = col
	}
	score := column["score"]
	if score.Equal != 901 || score.First.Nulls != 0 || score.Second.Nulls != 1 || score.Second.Rows != 1201 || score.First.Rows != 1202 {
		t.Errorf("%+v", score)
	}
	if len(score.Most) != mostShown || score.Most[0].First != "3" || score.Most[0].Second != "null" || score.Most[1].First != "299" || score.Most[1].Second != "598" {
		t.Errorf("largest: %+v", score.Most)
	}
	if want := []string{"time=299", "home=h", "device=a"}; !slices.Equal(score.Most[1].Row[1:], want[1:]) {
		t.Errorf("row %q", score.Most[1].Row)
	}
	if l := column["label"]; l.Equal != 901 || *l.First.Distinct != 1 || *l.Second.Distinct != 2 {
		t.Errorf("%+v", l)
	}
	if d := score.Diff; d == nil || math.Abs(d.Max-299) > 1e-9 || math.Abs(d.Min) > 1e-9 {
		t.Errorf("%+v", d)
	}
}

// What has no partner is held in bounds, and given up: the other version is dead, or far behind.
func TestWaitingIsBounded(t *testing.T) {
	c, err := New(planOf(&pipeline.Trial{Kind: pipeline.TrialShadow, Use: "score_v2"}), "score")
	if err != nil {
		t.Fatal(err)
	}
	const batches, rows = 500, 1000
	for o := range int64(batches) {
		var all []row
		for i := range rows {
			all = append(all, row{o, "h", fmt.Sprint(i), 1, "x"})
		}
		give(t, c, "scores", o, 0, recordOf(all...))
		if c.rows > heldRowsMax || c.bytes > heldBytesMax {
			t.Fatalf("%d rows, %d bytes wait", c.rows, c.bytes)
		}
	}
	o := c.Report(true).Outputs[0]
	if o.GaveUp+o.Waiting != batches*rows || o.GaveUp == 0 || o.Only != [2]int64{} {
		t.Errorf("%+v", o)
	}
	if n := len(c.outputs["scores"].waiting); n > heldRowsMax {
		t.Errorf("%d keys", n)
	}
}

// Of a canary, whose rows stand in one stream, the home says which version made a row.
func TestCanaryIsCompared(t *testing.T) {
	c, err := New(planOf(&pipeline.Trial{Kind: pipeline.TrialCanary, Use: "score_v2", Percent: 30}), "score")
	if err != nil {
		t.Fatal(err)
	}
	want := [2]int64{}
	for o := range int64(100) {
		var counts, side []row
		for i := range 20 {
			home := fmt.Sprint("home-", i)
			first, second := row{o, home, "a", 1, "x"}, row{o, home, "a", 3, "x"}
			if pipeline.IsCanary("score", home, 30) {
				first, second = second, first
				want[Second]++
			}
			counts = append(counts, first)
			side = append(side, second)
			want[First]++
		}
		give(t, c, "scores", o, 0, recordOf(counts...))
		give(t, c, "scores.canary", o, 1, recordOf(side...))
	}
	if want[Second] == 0 || want[Second] == want[First] {
		t.Fatalf("%v", want)
	}
	o := c.Report(true).Outputs[0]
	for _, col := range o.Columns {
		if col.Name == "score" && (col.First.Numbers.Mean != 1 || col.Second.Numbers.Mean != 3 || col.Paired != want[First]) {
			t.Errorf("%+v %+v", col.First.Numbers, col.Second.Numbers)
		}
	}
}
