package enrich

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearthline/flow"
)

func write(t *testing.T, path, room string) {
	t.Helper()
	// Another size each time, so that a coarse file time does not hide the change.
	text := "devices:\n- {home: h1, device: d1, room: " + room + "}\n"
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func room(t *testing.T, s *Stage) string {
	t.Helper()
	b := flow.NewEventBuilder()
	b.Append(&flow.Event{Home: "h1", Device: "d1", Metric: "m"})
	rec, _ := b.Record()
	outs, err := s.Process(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	rooms, err := flow.StringsOf(outs[0].Record, "room")
	if err != nil {
		t.Fatal(err)
	}
	return rooms.Value(0)
}

func snap(t *testing.T, s *Stage) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func opened(t *testing.T, path string) (*Stage, *bytes.Buffer) {
	t.Helper()
	s, log := New(), new(bytes.Buffer)
	s.Registry, s.Log = path, slog.New(slog.NewTextHandler(log, nil))
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, log
}

// What follows a checkpoint is made with the registry in it, however often it is made and whatever the file says.
func TestReplayMeetsTheSameRegistry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.yaml")
	write(t, path, "hall")
	s, _ := opened(t, path)
	first := snap(t, s)
	write(t, path, "kitchen")
	if got := room(t, s); got != "hall" {
		t.Errorf("between checkpoints the registry changed to %s", got)
	}
	// A crash: the rows since the checkpoint are read again.
	again, _ := opened(t, path)
	if err := again.Restore(bytes.NewReader(first)); err != nil {
		t.Fatal(err)
	}
	if got := room(t, again); got != "hall" {
		t.Errorf("the replay met %s; the first time it was hall", got)
	}
	second := snap(t, again)
	if got := room(t, again); got != "kitchen" {
		t.Errorf("after the checkpoint it is still %s", got)
	}
	write(t, path, "cellar")
	third, _ := opened(t, path)
	if err := third.Restore(bytes.NewReader(second)); err != nil {
		t.Fatal(err)
	}
	if got := room(t, third); got != "kitchen" {
		t.Errorf("the replay met %s; the first time it was kitchen", got)
	}
}

func TestABrokenRegistryIsNotTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.yaml")
	write(t, path, "hall")
	s, log := opened(t, path)
	for _, breakIt := range []func(){
		func() { write(t, path, "{{") },
		func() { _ = os.Remove(path) },
	} {
		log.Reset()
		before := s.Counters()["registry_broken"]
		breakIt()
		for range 3 {
			snap(t, s)
		}
		if got := room(t, s); got != "hall" {
			t.Errorf("the room is %q", got)
		}
		if n := s.Counters()["registry_broken"] - before; n != 1 {
			t.Errorf("counted %d times; want once for a change", n)
		}
		if n := strings.Count(log.String(), "could not be taken"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, log)
		}
	}
	write(t, path, "attic")
	snap(t, s)
	if got := room(t, s); got != "attic" {
		t.Errorf("mended, the room is %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"registry.yaml", "registry.csv", "misspelt.yaml", "twice.yaml", "short.csv"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(strings.HasSuffix(name, ".csv"), text)
	}
	f.Fuzz(func(t *testing.T, csv bool, text []byte) {
		format := "yaml"
		if csv {
			format = "csv"
		}
		r, err := parse(format, text)
		if err != nil {
			return
		}
		for p := range r.devices {
			if p.home == "" || p.device == "" {
				t.Errorf("a device without a name was taken: %+v", p)
			}
		}
	})
}
