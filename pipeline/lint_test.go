package pipeline_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearthline/flow"
	"hearthline/pipeline"
)

// environment is what the files of testdata see.
func environment(name string) (string, bool) {
	value, ok := map[string]string{"SET": "set", "EMPTY": "", "NUMBER": "7", "SECRET": "hunter2"}[name]
	return value, ok
}

func lint(t *testing.T, name, text string) (*pipeline.Plan, []string) {
	t.Helper()
	spec, findings := pipeline.ReadBytes(name, []byte(text), environment)
	plan, more := pipeline.NewPlan(context.Background(), spec, catalog())
	findings = append(findings, more...)
	if plan != nil && pipeline.Failed(findings) {
		t.Errorf("%s: a plan in spite of errors", name)
	}
	slices.SortStableFunc(findings, func(a, b pipeline.Finding) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	var lines []string
	for _, f := range findings {
		lines = append(lines, strings.TrimPrefix(f.String(), name+":"))
	}
	return plan, lines
}

// Each file of testdata/lint is a pipeline.yaml with something wrong; its lines "# want: LINE:COLUMN: …" say
// everything that lint must say of it, in order. A file without such lines is right.
func TestLint(t *testing.T) {
	files, err := filepath.Glob("testdata/lint/*.yaml")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files in testdata/lint (%v)", len(files), err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for line := range strings.Lines(string(text)) {
				if w, ok := strings.CutPrefix(line, "# want: "); ok {
					want = append(want, strings.TrimSpace(w))
				}
			}
			plan, got := lint(t, name, string(text))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s\nall of them:\n# want: %s", diff, strings.Join(got, "\n# want: "))
			}
			if len(want) == 0 && plan == nil {
				t.Error("no findings, and no plan")
			}
			for _, line := range got {
				if strings.Contains(line, "hunter2") {
					t.Errorf("a finding shows a value of the environment: %s", line)
				}
			}
		})
	}
}

func TestPlan(t *testing.T) {
	plan := graphPlan(t, "homes")
	var units []string
	for _, u := range plan.Units {
		units = append(units, u.Name+" reads "+strings.Join(u.Inputs, " "))
	}
	want := []string{"normalize+dedupe+enrich reads raw", "features reads readings", "score reads readings", "alert reads scores"}
	if diff := cmp.Diff(want, units); diff != "" {
		t.Errorf("units (-want +got):\n%s", diff)
	}
	for stream, onKafka := range map[string]bool{"raw": true, "clean": false, "unique": false, "readings": true, "normalize.dead": true, "webhook.dead": true} {
		if got := plan.Streams[stream].OnKafka(); got != onKafka {
			t.Errorf("%s on Kafka: %v; want %v", stream, got, onKafka)
		}
	}
	if s := plan.Streams["readings"].Schema; !s.HasField("zone") {
		t.Errorf("readings lacks what enrich adds: %v", s)
	}
	if s := plan.Streams["alert.dead"].Schema; !s.Equal(flow.DeadSchema) {
		t.Errorf("alert.dead is %v", s)
	}
	if got := plan.Node("dedupe"); got == nil || got != plan.Node("normalize+dedupe+enrich") {
		t.Errorf("the unit of dedupe is %v", got)
	}
	if got := plan.Node("nobody"); got != nil {
		t.Errorf("the unit of nobody is %v", got)
	}
	if diff := cmp.Diff(map[string]string{"features": "features", "late": "late"}, plan.Node("features").Stages[0].Outputs); diff != "" {
		t.Errorf("outputs of features (-want +got):\n%s", diff)
	}
	wantStreams := []string{"alert.dead", "alerts", "dedupe.dead", "enrich.dead", "features", "features.dead", "late", "normalize.dead",
		"parquet.dead", "readings", "score.dead", "scores", "webhook.dead"}
	if diff := cmp.Diff(wantStreams, plan.Sinks[0].Streams); diff != "" {
		t.Errorf("streams of clickhouse (-want +got):\n%s", diff)
	}
	if g := plan.Gateway.(*listening); g.HTTP != "127.0.0.1:8443" {
		t.Errorf("gateway: %+v", g)
	}
	a, b := plan.Node("score").Stages[0].New(), plan.Node("score").Stages[0].New()
	if a == b {
		t.Error("New gave the same instance twice")
	}
}

// TestWorkersAreTold: what the file says of a stage's processes comes to every instance of it.
func TestWorkersAreTold(t *testing.T) {
	plan, lines := lint(t, "p.yaml", `pipeline: homes
gateway: {to: raw}
stages:
  far: {use: remote, from: raw, to: a, workers: {processes: 2, timeout: 1d, memory_bytes_max: 512MiB}}
sinks:
  parquet: {from: a}
`)
	if plan == nil {
		t.Fatal(lines)
	}
	want := flow.Workers{Processes: 2, Timeout: 24 * time.Hour, MemoryBytesMax: 512 << 20}
	for range 2 {
		if got := plan.Units[0].Stages[0].New().(*remote).use; got != want {
			t.Errorf("%+v; want %+v", got, want)
		}
	}
}
