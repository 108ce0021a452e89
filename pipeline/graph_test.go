package pipeline_test

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearthline/pipeline"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run the test with -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; if it is better so, run the test with -update):\n%s", file, diff)
	}
}

func TestGraphs(t *testing.T) {
	for _, name := range []string{"homes", "small", "tangled", "sources"} {
		t.Run(name, func(t *testing.T) {
			plan := graphPlan(t, name)
			base := filepath.Join("testdata", "graph", name)
			golden(t, base+".mmd", plan.Mermaid())
			golden(t, base+".dot", plan.DOT())
			svg := plan.SVG()
			golden(t, base+".svg", svg)
			if again := graphPlan(t, name).SVG(); again != svg {
				t.Error("the same plan gave two pictures")
			}
			dec := xml.NewDecoder(strings.NewReader(svg))
			for {
				if _, err := dec.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatalf("not XML: %v", err)
				}
			}
		})
	}
}

func graphPlan(t *testing.T, name string) *pipeline.Plan {
	t.Helper()
	file := filepath.Join("testdata", "graph", name+".yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	plan, findings := lint(t, file, string(text))
	if plan == nil {
		t.Fatalf("%s:\n%s", file, strings.Join(findings, "\n"))
	}
	return plan
}
