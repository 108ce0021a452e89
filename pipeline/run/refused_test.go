package run

import (
	"context"
	"fmt"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/pipeline"
)

// refusing refuses rows as if it had kept them.
type refusing struct{}

func (refusing) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	in.Retain()
	reasons := make([]string, in.NumRows())
	for i := range reasons {
		reasons[i] = "kept too long"
	}
	return []flow.Output{{Record: in, Refused: reasons}}, nil
}

// Rows that a stage had kept, and refuses, are dead letters once, also where a second version of the stage refuses them too.
func TestRowsThatWereKeptAreRefusedOnce(t *testing.T) {
	b := flow.NewEventBuilder()
	for i := range 40 {
		b.Append(&flow.Event{Home: fmt.Sprint("home-", i), Device: "d", Metric: "m"})
	}
	rec, _ := b.Record()
	defer rec.Release()
	node := stage("refusing", "raw", func() flow.Stage { return refusing{} }, map[string]string{})
	node.Canary = &pipeline.CanaryNode{New: node.New, Outputs: map[string]string{}}
	plan := &pipeline.Plan{Spec: &pipeline.Spec{Partitions: 1}, Streams: map[string]*pipeline.Stream{"refusing.dead": {}}}
	unit := &pipeline.Unit{Name: "refusing", Inputs: []string{"raw"}, Stages: []*pipeline.StageNode{node}}
	for name, canaries := range map[string]map[string]float64{"one version": nil, "two versions": {"refusing": 50}} {
		c := newChain(unit, plan, 0, canaries, memory.DefaultAllocator, NewMeter(), nil, (&Runner{patience: 1}).retry)
		out, err := c.process(t.Context(), message{origin: flow.Origin{Stream: "raw"}, record: rec})
		if err != nil {
			t.Fatal(name, err)
		}
		homes := map[string]int{}
		for _, m := range out {
			if m.stream != "refusing.dead" {
				t.Errorf("%s: rows went to %s", name, m.stream)
			}
			of, err := flow.StringsOf(m.batch.Record, flow.ColHome)
			if err != nil {
				t.Fatal(err)
			}
			for i := range of.Len() {
				homes[of.Value(i)]++
			}
		}
		if len(homes) != 40 {
			t.Errorf("%s: dead letters of %d homes; want 40", name, len(homes))
		}
		for home, n := range homes {
			if n != 1 {
				t.Errorf("%s: %d dead letters of %s", name, n, home)
			}
		}
		release(out)
	}
}
