package python

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"hearthline/flow/flowtest"
)

// TestThePackageInstalls: what authors import is a package like others, with its types, for editors and notebooks.
func TestThePackageInstalls(t *testing.T) {
	a := newAuthor(t)
	if err := a.workers.findCache(); err != nil {
		t.Fatal(err)
	}
	python, version, err := a.workers.installed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	interpreter, err := a.workers.environment(t.Context(), python, version, "setuptools>=68\nwheel\n")
	if err != nil {
		t.Fatal(err)
	}
	source, target := filepath.Join(a.dir, "python"), filepath.Join(a.dir, "site")
	project, err := os.ReadFile("pyproject.toml")
	if err != nil {
		t.Fatal(err)
	}
	a.write("python/pyproject.toml", string(project))
	if err := os.CopyFS(filepath.Join(source, "hearthline"), os.DirFS("hearthline")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--target", target, source},
		{"-c", "import sys; sys.path.insert(0, '" + target + "'); import hearthline; assert hearthline.__file__.startswith('" + target + "'); from hearthline import Bad, Keyed, State, reject"},
	} {
		if out, err := exec.CommandContext(t.Context(), interpreter, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(target, "hearthline", "py.typed")); err != nil {
		t.Error(err)
	}
}

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
