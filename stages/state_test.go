package stages

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/google/go-cmp/cmp"

	"hearthline/flow"
	"hearthline/stages/enrich"
	"hearthline/stages/features"
)

// keepState writes the states of today's code as another generation: `go test ./stages -run OldState -keep-state v2`.
// Do so when a layout changes, and leave the older ones: they are what running pipelines hold.
var keepState = flag.String("keep-state", "", "write testdata/state/NAME")

// little is what two homes say in rounds of ten seconds, with a jump that raises an alert near the end of the first
// half and is over in the second.
func little(from, to int) arrow.Record {
	rng := rand.New(rand.NewPCG(7, uint64(from)))
	var all []flow.Event
	for n := from; n < to; n++ {
		at := flow.MicrosOf(origin.Add(time.Duration(n) * 10 * time.Second))
		for h := range 2 {
			for m, metric := range []string{"temperature", "humidity"} {
				v := float64(20+20*m) + rng.NormFloat64()*0.1
				if n >= 1986 && n < 2006 && h == 1 {
					v += 40
				}
				all = append(all, flow.Event{
					Time: at, Received: at + flow.Micros(h*1000+m), Home: fmt.Sprint("home-", h), Device: "sensor", Metric: metric,
					Value: v, HasValue: true, Unit: []string{"°C", "%"}[m], Seq: int64((n + 1) / 2), HasSeq: true, // every second is a copy, by its number
				})
			}
		}
	}
	return record(all)
}

// stageOf is a stage of the catalogue, opened. enrich reads a registry that differs from call to call: what is in
// its state counts.
func stageOf(t *testing.T, name, registry string) flow.Stage {
	t.Helper()
	s := Catalog()[name]()
	if e, ok := s.(*enrich.Stage); ok {
		e.Registry = filepath.Join(t.TempDir(), "registry.csv")
		if err := os.WriteFile(e.Registry, []byte("home,device,room,kind,model,zone\n"+registry), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := flow.Open(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s
}

// outputsOf gives what a stage makes of a record, with the windows that close then, as JSON lines.
func outputsOf(t *testing.T, s flow.Stage, in arrow.Record) string {
	t.Helper()
	outs, err := s.Process(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if timed, ok := s.(flow.Timed); ok {
		more, err := timed.Advance(t.Context(), flow.MicrosOf(origin.Add(time.Hour)))
		if err != nil {
			t.Fatal(err)
		}
		outs = append(outs, more...)
	}
	var b strings.Builder
	for _, o := range outs {
		fmt.Fprintf(&b, "%s:\n", o.To)
		raw, err := o.Record.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		b.Write(bytes.ReplaceAll(bytes.TrimSpace(raw), []byte("},{"), []byte("},\n{")))
		b.WriteString("\n")
		o.Record.Release()
	}
	return b.String()
}

func snapshotOf(t *testing.T, s flow.Stage) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.(flow.Stateful).Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// States that earlier versions wrote are restored, and what follows is what those versions would have made. The states are
// kept as files, with what came in after them and what came out.
func TestOldStateGoesOn(t *testing.T) {
	if *keepState != "" {
		writeStates(t, filepath.Join("testdata", "state", *keepState))
	}
	files, err := filepath.Glob("testdata/state/v*/*.state")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d states kept, want those of five stages at least: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimPrefix(file, "testdata/state/"), func(t *testing.T) {
			name := strings.TrimSuffix(filepath.Base(file), ".state")
			s := stageOf(t, name, "home-0,sensor,attic,other,other,other\n")
			state := read(t, file)
			if err := s.(flow.Stateful).Restore(bytes.NewReader(state)); err != nil {
				t.Fatal(err)
			}
			in, err := ipc.NewReader(bytes.NewReader(read(t, strings.TrimSuffix(file, ".state")+".in.arrow")))
			if err != nil {
				t.Fatal(err)
			}
			defer in.Release()
			if !in.Next() {
				t.Fatal(in.Err())
			}
			want := string(read(t, strings.TrimSuffix(file, ".state")+".out.txt"))
			if strings.Count(want, "\n") < 4 {
				t.Fatalf("nothing comes out, so nothing is shown: %q", want)
			}
			if d := cmp.Diff(want, outputsOf(t, s, in.Record())); d != "" {
				t.Errorf("what follows the old state (-then +now):\n%s", d)
			}
			// Without the state something else would come out: the test can fail.
			if bare := outputsOf(t, stageOf(t, name, ""), in.Record()); bare == want {
				t.Error("the same comes out without the state")
			}
		})
	}
}

// A state that cannot be understood is an error that says what to do, and changes nothing: of a newer version, of
// another stage, cut short, damaged, of other settings.
func TestStrangeStateIsRefused(t *testing.T) {
	for _, o := range order {
		s, ok := stageOf(t, o.stage, "").(flow.Stateful)
		if !ok {
			continue
		}
		state := read(t, filepath.Join("testdata/state/v1", o.stage+".state"))
		if !bytes.HasPrefix(state, []byte("hearthline "+o.stage+" state ")) {
			t.Fatalf("%s: the state does not say whose it is: %.40q", o.stage, state)
		}
		end := bytes.IndexByte(state, '\n')
		damaged := bytes.Clone(state)
		damaged[end+(len(state)-end)/2] ^= 0x40
		before := snapshotOf(t, s)
		for what, c := range map[string]struct {
			state []byte
			says  string
		}{
			"newer":     {append([]byte("hearthline "+o.stage+" state 99"), state[end:]...), "newer than"},
			"another's": {append([]byte("hearthline other state 1"), state[end:]...), "the state of something else"},
			"cut short": {state[:len(state)-7], ""},
			"damaged":   {damaged, ""},
			"empty":     {nil, ""},
		} {
			err := s.Restore(bytes.NewReader(c.state))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s, %s: %v; want an error that says %q", o.stage, what, err, c.says)
			}
			if !bytes.Equal(before, snapshotOf(t, s)) {
				t.Fatalf("%s, %s: a state that was refused has changed the stage", o.stage, what)
			}
		}
	}
	other := features.New()
	other.Windows = []features.Window{{Size: time.Hour, Hop: time.Hour}}
	if err := other.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := other.Restore(bytes.NewReader(read(t, "testdata/state/v1/features.state")))
	if err == nil || !strings.Contains(err.Error(), "keep the windows") {
		t.Errorf("features with other windows: %v", err)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// writeStates runs the default pipeline over the first half, and keeps each stage's state, with what it is given next and
// makes of it.
func writeStates(t *testing.T, dir string) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	first, second := little(0, 2000), little(2000, 2020)
	for _, o := range order {
		s := stageOf(t, o.stage, "home-0,sensor,kitchen,multi,T-1,ground\n")
		made := give(t, s, first, o.output)
		if _, ok := s.(flow.Stateful); ok {
			keep := func(suffix string, b []byte) {
				if err := os.WriteFile(filepath.Join(dir, o.stage+suffix), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			keep(".state", snapshotOf(t, s))
			var b bytes.Buffer
			w := ipc.NewWriter(&b, ipc.WithSchema(second.Schema()))
			if err := w.Write(second); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			keep(".in.arrow", b.Bytes())
			again := stageOf(t, o.stage, "home-0,sensor,kitchen,multi,T-1,ground\n")
			if err := again.(flow.Stateful).Restore(bytes.NewReader(read(t, filepath.Join(dir, o.stage+".state")))); err != nil {
				t.Fatal(err)
			}
			keep(".out.txt", []byte(outputsOf(t, again, second)))
		}
		if o.stage == "features" { // score reads the readings too
			continue
		}
		first, second = made, give(t, s, second, o.output)
	}
}
