package python

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"hearthline/flow/flowtest"
)

// TestTheDocumentsStage runs the stage of docs/python.md that keeps state, with the case that stands beside it.
func TestTheDocumentsStage(t *testing.T) {
	a := newAuthor(t)
	text, err := os.ReadFile("../docs/python.md")
	if err != nil {
		t.Fatal(err)
	}
	part := regexp.MustCompile(`(?s)## State.*?` + "```python\n(.*?)```.*?```yaml\n(.*?)```").FindSubmatch(text)
	if part == nil {
		t.Fatal("docs/python.md has no stage with state and a case")
	}
	a.write("it/stage.py", string(part[1]))
	a.write("it/cases/first.yaml", string(part[2]))
	found, err := a.workers.Stages(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	flowtest.Run(t, found["it"], filepath.Join(a.dir, "it", "cases"))
}
