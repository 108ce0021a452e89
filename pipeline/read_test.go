package pipeline_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearthline/pipeline"
)

func TestReadSaysWhatItRead(t *testing.T) {
	text, err := os.ReadFile("testdata/lint/good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	spec, findings := pipeline.ReadBytes("good.yaml", text, environment)
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	if spec.Name != "homes" || spec.Partitions != 8 || spec.Checkpoint != 30*time.Second || string(spec.Source) != string(text) {
		t.Errorf("%+v", spec)
	}
	if diff := cmp.Diff([]string{"kafka-1:9092", "kafka-2:9092"}, spec.Kafka.Brokers); diff != "" {
		t.Errorf("brokers (-want +got):\n%s", diff)
	}
	if spec.Kafka.Retention != 7*24*time.Hour || spec.Kafka.Compression != "zstd" || spec.Kafka.Listen != "127.0.0.1:9092" {
		t.Errorf("%+v", spec.Kafka)
	}
	if s := spec.Sinks[0]; s.FlushRows != 1000 || s.FlushWait != 500*time.Millisecond || s.Pos.Line != 38 {
		t.Errorf("%+v", s)
	}
	if s := spec.Stages[1]; s.Name != "twice" || s.Use != "merge" || s.To["merged"] != "both" {
		t.Errorf("%+v", s)
	}
	want := []pipeline.EnvUse{
		{Name: "UNSET", Default: "0.0.0.0:8883", HasDefault: true, Path: "gateway.settings.mqtt", Pos: pipeline.Pos{Line: 11, Column: 21}},
		{Name: "NUMBER", Path: "stages.score.settings.threshold", Pos: pipeline.Pos{Line: 30, Column: 18}},
		{Name: "SECRET", Path: "sinks.clickhouse.settings.password", Pos: pipeline.Pos{Line: 41, Column: 27}},
	}
	if diff := cmp.Diff(want, spec.Env); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
	plan, _ := lint(t, "good.yaml", string(text))
	if g := plan.Gateway.(*listening); g.HTTP != "a$b" || g.MQTT != "0.0.0.0:8883" {
		t.Errorf("gateway: %+v", g)
	}
}

func TestBrokersFromOneVariable(t *testing.T) {
	env := func(string) (string, bool) { return "kafka-1:9092, kafka-2:9092", true }
	spec, findings := pipeline.ReadBytes("x", []byte("pipeline: p\nkafka: {brokers: \"${KAFKA:-embedded}\"}\ngateway: {to: raw}\n"), env)
	if diff := cmp.Diff([]string{"kafka-1:9092", "kafka-2:9092"}, spec.Kafka.Brokers); diff != "" || len(findings) > 0 {
		t.Errorf("%v, brokers (-want +got):\n%s", findings, diff)
	}
	spec, _ = pipeline.ReadBytes("x", []byte("pipeline: p\nkafka: {brokers: \"${KAFKA:-embedded}\"}\ngateway: {to: raw}\n"), environment)
	if len(spec.Kafka.Brokers) != 0 {
		t.Errorf("embedded has brokers %v", spec.Kafka.Brokers)
	}
}

func TestReadFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	if _, _, err := pipeline.Read(filepath.Join(dir, "none.yaml")); err == nil || !strings.Contains(err.Error(), "--pipeline") {
		t.Errorf("a missing file: %v", err)
	}
	if _, _, err := pipeline.Read(dir); err == nil {
		t.Error("a folder was read")
	}
	if _, _, err := pipeline.Read(write("large.yaml", strings.Repeat("# filler\n", 200_000))); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a large file: %v", err)
	}
	file := write("good.yaml", "pipeline: p\ngateway: {to: raw}\nsinks: {parquet: {from: raw}}\n")
	if plan, findings, err := pipeline.Lint(context.Background(), file, catalog()); err != nil || plan == nil || len(findings) > 0 {
		t.Errorf("a good file: %v, %v, %v", plan, findings, err)
	}
	file = write("bad.yaml", "pipeline: p\ngateway: {to: raw}\nsinks: {parquett: {from: raw}}\nmore: 1\n")
	plan, findings, err := pipeline.Lint(context.Background(), file, catalog())
	if err != nil || plan != nil || len(findings) != 2 {
		t.Errorf("a bad file: %v, %v, %v", plan, findings, err)
	}
	if want := file + `:3:9: there is no sink "parquett"; did you mean parquet?`; len(findings) > 0 && findings[0].String() != want {
		t.Errorf("got %q; want %q", findings[0], want)
	}
}

// FuzzRead feeds anything: no panic, every finding has a place, and what is whole can be planned and drawn.
func FuzzRead(f *testing.F) {
	for _, pattern := range []string{"testdata/lint/*.yaml", "testdata/graph/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("%s: %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("? {a: b}\n: c"))
	f.Add([]byte("\xff\xfe\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		spec, findings := pipeline.ReadBytes("x", text, environment)
		plan, more := pipeline.NewPlan(context.Background(), spec, catalog())
		for _, finding := range append(findings, more...) {
			if finding.Line < 1 || finding.Column < 1 || finding.Message == "" || strings.Contains(finding.String(), "\n") {
				t.Errorf("%#v", finding)
			}
		}
		if plan == nil {
			if !pipeline.Failed(append(findings, more...)) {
				t.Error("no plan, and no reason")
			}
			return
		}
		if plan.SVG() == "" || plan.Mermaid() == "" || plan.DOT() == "" {
			t.Error("nothing drawn")
		}
	})
}
