package pipeline_test

import (
	"os"
	"strings"
	"testing"

	"hearthline/pipeline"
)

const runs = `pipeline: p
gateway: {to: raw}
sources:
  partner: {topic: theirs, format: json, home: row, device: row}
stages:
  normalize: {from: raw, to: clean}
  dedupe: {from: clean, to: unique}
  enrich: {from: unique, to: readings, settings: {registry: same_test.go}}
  score:
    from: readings
    to: scores
    settings: {threshold: 4}
    shadow: {use: score}
  alert: {from: scores, to: alerts}
  merge: {from: readings, to: {stream: merged, key: [device]}}
  carry: {use: merge, from: merged, to: far}
  spare: {use: merge, from: readings, to: {merged: _}}
together: [[normalize, dedupe]]
sinks:
  parquet: {from: [readings, far]}
  clickhouse: {from: [scores, "*.dead"]}
  webhook: {from: [alerts], settings: {}}
`

// TestSame: a node is the same while nothing that its work depends on has changed: not its place in the file, and not the nodes
// beside it.
func TestSame(t *testing.T) {
	plan := func(text string) *pipeline.Plan {
		t.Helper()
		spec, findings := pipeline.ReadBytes("p.yaml", []byte(text), os.LookupEnv)
		plan, more := pipeline.NewPlan(t.Context(), spec, catalog())
		if plan == nil {
			t.Fatal(findings, more)
		}
		return plan
	}
	const all = "partner normalize+dedupe enrich score score-shadow alert merge carry spare parquet clickhouse webhook"
	before := plan(runs)
	for _, c := range []struct{ what, old, new, anew string }{
		{"nothing", "pipeline: p", "pipeline: p", ""},
		{"a comment, and every line moves", "pipeline: p", "# what runs\npipeline: p", ""},
		{"a setting", "threshold: 4", "threshold: 5", "score score-shadow"},
		{"a setting of the shadow", "shadow: {use: score}", "shadow: {use: score, settings: {threshold: 9}}", "score score-shadow"},
		{"no shadow any more", "    shadow: {use: score}\n", "", "score score-shadow"},
		{"a stage more, whose dead letters a sink keeps", "  alert:", "  again: {use: score, from: readings, to: {scores: _}}\n  alert:", "again clickhouse"},
		{"a stage less", "  spare: {use: merge, from: readings, to: {merged: _}}\n", "", "spare clickhouse"},
		{"one of a task", "  dedupe: {from: clean, to: unique}", "  dedupe: {from: clean, to: unique, was: once}", "normalize+dedupe enrich clickhouse"},
		{"an edge inside of a task is read beside it", "  merge: {from: readings,", "  merge: {from: clean,", "normalize+dedupe merge carry parquet"},
		{"tasks apart", "together: [[normalize, dedupe]]\n", "", "normalize+dedupe normalize dedupe"},
		{"by another key", "key: [device]", "key: [home]", "merge carry"},
		{"who writes a stream with a key is called otherwise", "  merge: {", "  merge: {was: before, ", "merge carry clickhouse"},
		{"columns that another stage makes", "  carry: {use: merge,", "  carry: {use: score,", "carry parquet"},
		{"a sink keeps one stream more", "from: [readings, far]", "from: [readings, far, alerts]", "parquet clickhouse"},
		{"dead letters that a stage reads", "  carry:", "  late: {use: merge, from: alert.dead, to: {merged: _}}\n  carry:", "alert late clickhouse"},
		{"a source", "topic: theirs", "topic: others", "partner"},
		{"how often checkpoints are made", "pipeline: p", "pipeline: p\ncheckpoint: {every: 3s}", all},
		{"another number of partitions", "pipeline: p", "pipeline: p\npartitions: 9", all},
	} {
		if !strings.Contains(runs, c.old) {
			t.Fatalf("%s: there is no %q", c.what, c.old)
		}
		after := plan(strings.Replace(runs, c.old, c.new, 1))
		nodes := strings.Fields(all)
		for _, u := range after.Units {
			if before.Node(u.Name) == nil || before.Node(u.Name).Name != u.Name {
				nodes = append(nodes, u.Name)
			}
		}
		want := map[string]bool{}
		for _, n := range strings.Fields(c.anew) {
			want[n] = true
		}
		for _, n := range nodes {
			if same := after.Same(before, n); same == want[n] {
				t.Errorf("%s: %s is the same: %v", c.what, n, same)
			}
			if after.Same(before, n) != before.Same(after, n) {
				t.Errorf("%s: %s is the same in one direction alone", c.what, n)
			}
		}
	}
}
