package pipeline_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"hearthline/flow"
	"hearthline/pipeline"
)

// A part has what its stages need and nothing else: streams that stayed inside of a unit are on Kafka once nobody in it reads
// them, and second versions on trial stay away.
func TestPartOfAPlan(t *testing.T) {
	text := `pipeline: p
gateway: {to: raw}
stages:
  normalize: {from: raw, to: clean}
  dedupe: {from: clean, to: unique}
  enrich: {from: unique, to: readings, settings: {registry: part_test.go}}
  score:
    from: readings
    to: scores
    shadow: {use: score}
  alert: {from: scores, to: alerts}
together: [[normalize, dedupe, enrich]]
sinks:
  parquet: {from: [readings, scores, alerts]}
`
	spec, findings := pipeline.ReadBytes("p.yaml", []byte(text), os.LookupEnv)
	plan, more := pipeline.NewPlan(t.Context(), spec, catalog())
	if plan == nil {
		t.Fatal(findings, more)
	}
	if got := fmt.Sprint(plan.Downstream("unique")); got != "[enrich score alert]" {
		t.Errorf("what follows from unique: %s", got)
	}
	if got := fmt.Sprint(plan.Downstream("alerts")); got != "[]" {
		t.Errorf("what follows from alerts: %s", got)
	}
	for _, c := range []struct {
		stages, inputs string
		want           string // units with their inputs, then what they write to Kafka; or an error
	}{
		{"normalize dedupe enrich score alert", "raw", "normalize+dedupe+enrich[raw] score[readings] alert[scores]; alert.dead alerts dedupe.dead enrich.dead normalize.dead readings score.dead scores"},
		{"normalize dedupe", "raw", "normalize+dedupe[raw]; dedupe.dead normalize.dead unique"},
		{"enrich", "unique", "enrich[unique]; enrich.dead readings"},
		{"score alert", "readings", "score[readings] alert[scores]; alert.dead alerts score.dead scores"},
		{"normalize enrich", "raw unique", "normalize+enrich[raw unique]; clean enrich.dead normalize.dead readings"},
		{"alert", "readings", "alert reads scores too, which is neither given nor made"},
		{"score alert", "readings scores", "scores is given, and score makes it"},
		{"score", "readings raw", "none of score reads raw"},
		{"score", "elsewhere", `no stream "elsewhere"`},
		{"nobody", "raw", `no stage "nobody"`},
	} {
		part, err := plan.Part(strings.Fields(c.stages), strings.Fields(c.inputs))
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s of %s: %v, want %s", c.stages, c.inputs, err, c.want)
			}
			continue
		}
		var got []string
		for _, u := range part.Units {
			got = append(got, u.Name+fmt.Sprint(u.Inputs))
			for _, s := range u.Stages {
				if s.Trial != nil || s.ShadowOf != "" {
					t.Errorf("%s is on trial in a part", s.Name)
				}
			}
		}
		if g := strings.Join(got, " ") + "; " + strings.Join(part.Made(), " "); g != c.want {
			t.Errorf("%s of %s:\n got %s\nwant %s", c.stages, c.inputs, g, c.want)
		}
	}
	part, err := plan.Part([]string{"score"}, []string{"readings"})
	if err != nil {
		t.Fatal(err)
	}
	part.Keep("parquet", func() flow.Sink { return nil }, part.Made())
	if s := part.Streams["scores"]; len(s.Readers) != 1 || len(plan.Streams["scores"].Readers) < 2 || part.Streams["parquet.dead"] == nil {
		t.Errorf("a part's sink reads %v, and the plan's are %v", s.Readers, plan.Streams["scores"].Readers)
	}
}
