package python

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// TestLock: what stages answered without rows is answered the same where there is no Python, and nothing else is.
func TestLock(t *testing.T) {
	a := newAuthor(t)
	a.workers.Lock = new(Lock)
	for range 2 {
		s := a.open("def process(b, twice: bool = False):\n    return {'out': b.select(['home']), 'rest': b}\n", "{twice: true}")
		if _, err := a.process(s, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := a.process(s, 2); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	a.write("keeps/stage.py", strings.Replace(counting, "%s", "", 2))
	found, err := a.workers.Stages(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	keeps := found["keeps"]().(*KeyedStage)
	if err := keeps.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.give(keeps, 0); err != nil {
		t.Fatal(err)
	}
	keeps.Close()
	text, err := a.workers.Lock.Bytes()
	if again, _ := a.workers.Lock.Bytes(); err != nil || !bytes.Equal(text, again) || bytes.Count(text, []byte(`"settings"`)) != 2 {
		t.Fatal(string(text), err)
	}
	file := filepath.Join(t.TempDir(), "stages.lock")
	if _, err := ReadLock(file); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	lock, err := ReadLock(file)
	if err != nil {
		t.Fatal(err)
	}
	locked := lock.Stages()
	if _, stateful := locked["it"]().(flow.Stateful); stateful || len(locked) != 2 {
		t.Error(locked)
	}
	if _, stateful := locked["keeps"]().(flow.Stateful); !stateful {
		t.Error("one that keeps state is not known as such")
	}
	s := locked["it"]()
	ask := func(settings string, rows int) ([]flow.Output, error) {
		t.Helper()
		one := locked["it"]()
		var n yaml.Node
		if err := errors.Join(yaml.Unmarshal([]byte(settings), &n), one.(yaml.Unmarshaler).UnmarshalYAML(n.Content[0])); err != nil {
			t.Fatal(err)
		}
		rec := events(rows)
		defer rec.Release()
		return one.Process(t.Context(), rec)
	}
	out, err := ask("{twice: true}", 0)
	if err != nil || len(out) != 2 || out[0].To != "out" || out[1].To != "rest" || out[0].Record.NumCols() != 1 || !out[1].Record.Schema().Equal(flow.EventSchema) {
		t.Error(out, err)
	}
	if _, err := ask("{twice: false}", 0); err == nil || !strings.Contains(err.Error(), "was made of another plan") {
		t.Error("other settings: ", err)
	}
	if _, err := ask("{twice: true}", 2); err == nil || errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), "stage it: this image has no Python") {
		t.Error("rows: ", err)
	}
	if _, err := s.Process(t.Context(), out[0].Record); err == nil || !strings.Contains(err.Error(), "was made of another plan") {
		t.Error("another schema: ", err)
	}
	for want, text := range map[string]string{"version 7": `{"version": 7}`, "invalid character": "x", "schema of the lock": `{"version": 1, "stages": [{"stage": "it", "settings": {"twice":true}, "in": {"arrow": "AAAA"}}]}`} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		lock, err := ReadLock(file)
		if err == nil {
			locked = lock.Stages()
			_, err = ask("{twice: true}", 0)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

// TestPrepare: what an image is built with is all that a start needs: no network, and nothing more to make.
func TestPrepare(t *testing.T) {
	a := newAuthor(t)
	a.write("it/requirements.txt", "pandas>=2\npolars>=1\n")
	a.write("it/stage.py", "import pandas\n\ndef process(b):\n    return b\n")
	a.write("broken/stage.py", "import nosuchmodule\n")
	found, err := a.workers.Stages(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.workers.Prepare(t.Context(), found, true); err == nil || !strings.Contains(err.Error(), "stage broken") || !strings.Contains(err.Error(), "No module named 'nosuchmodule'") {
		t.Error(err)
	}
	delete(found, "broken")
	if err := a.workers.Prepare(t.Context(), found, true); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PIP_NO_INDEX", "1")
	later, log := workers(t)
	later.Cache = a.workers.Cache
	if found, err = later.Stages(a.dir); err != nil {
		t.Fatal(err)
	}
	s := found["it"]().(*Stage)
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if strings.Contains(log.String(), "an environment is made") {
		t.Error(log)
	}
}
