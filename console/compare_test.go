package console

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"testing"

	"hearthline/pipeline"
	"hearthline/pipeline/compare"
)

// Who looks gets a report every second of what the streams say meanwhile; nobody reads them for who has gone.
func TestVersionsAreCompared(t *testing.T) {
	score := &pipeline.StageNode{Stage: pipeline.Stage{Name: "score", Use: "score", Trial: &pipeline.Trial{Kind: pipeline.TrialShadow, Use: "score-v2"}},
		Outputs: map[string]string{"scores": "scores"}, Dead: "score.dead"}
	plan := newFakePlan("homes", 1)
	plan.stream("scores", "score")
	plan.stream("scores.shadow", "score-shadow").Side = true
	plan.plan.Units = []*pipeline.Unit{{Name: "score", Stages: []*pipeline.StageNode{score}}}
	ended := make(chan struct{})
	base := serve(t, &Server{Plan: plan.plan, Compare: func(ctx context.Context, c *compare.Comparison) error {
		defer close(ended)
		<-ctx.Done()
		return ctx.Err()
	}})
	if g := ask[graphAnswer](t, base+"/api/graph"); len(g.Nodes) != 1 || g.Nodes[0].Trial != pipeline.TrialShadow {
		t.Errorf("the page does not know that score is tried: %+v", g.Nodes)
	}
	res, err := http.Get(base + "/api/compare?stage=score")
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(res.Body)
	for range 2 {
		var r compare.Report
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil || r.Second != "score-v2" || len(r.Outputs) != 1 || r.Outputs[0].Stream != "scores" {
			t.Errorf("%s: %v", lines.Bytes(), err)
		}
	}
	res.Body.Close()
	<-ended
	for _, path := range []string{"/api/compare", "/api/compare?stage=alert", "/api/compare?stage=%3Cimg%3E"} {
		if status, body, _ := get(t, base+path); status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _, _ := get(t, serve(t, &Server{Plan: plan.plan})+"/api/compare?stage=score"); status != http.StatusNotFound {
		t.Errorf("a process that cannot compare: %d", status)
	}
}
