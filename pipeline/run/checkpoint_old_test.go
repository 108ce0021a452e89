package run

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hearthline/flow"
)

// keepCheckpoint writes the checkpoints of today's code as another generation; see stages/state_test.go.
var keepCheckpoint = flag.String("keep-checkpoint", "", "write testdata/checkpoint/NAME")

// kept is what the checkpoints in testdata hold.
func kept() *checkpoint {
	return &checkpoint{
		Version: 1, Watermark: 1_700_000_000_000_123,
		Inputs: []inputMark{
			{Stream: "readings", StreamID: "0123456789abcdef0123456789abcdef", Next: 4711, Watermark: 1_700_000_000_000_456, Marks: []mark{
				{Source: flow.Source{Producer: "enrich", Stream: "raw", Partition: 3}, Position: flow.Position{Offset: 99, K: 2}, Watermark: 1_700_000_000_000_456},
				{Source: flow.Source{Producer: "gateway/g1", Partition: 3}, Position: flow.Position{Offset: 1 << 50, K: endK}, Watermark: 7, Ended: "run-1"},
			}},
			{Stream: "late", StreamID: "fedcba9876543210fedcba9876543210", Next: 0},
		},
		Intent: &intent{First: 4700, Last: 4710},
	}
}

// Checkpoints that earlier versions wrote, in a commit and in a blob, are read as what they are.
func TestOldCheckpointsAreRead(t *testing.T) {
	states := map[string][]byte{"features": []byte("the state of features"), "score": {0, 1, 2, 255}}
	if *keepCheckpoint != "" {
		keepCheckpoints(t, *keepCheckpoint, states)
	}
	commit, err := os.ReadFile("testdata/checkpoint/v1.commit")
	if err != nil {
		t.Fatal(err)
	}
	c, err := (&keeper{}).load(t.Context(), string(commit))
	if err != nil {
		t.Fatal(err)
	}
	options := cmp.Options{cmp.AllowUnexported(checkpoint{}), cmpopts.EquateEmpty(), cmpopts.IgnoreFields(checkpoint{}, "States")}
	if d := cmp.Diff(kept(), c, options); d != "" {
		t.Errorf("commit (-then +now):\n%s", d)
	}
	blob, err := os.ReadFile("testdata/checkpoint/v1.blob")
	if err != nil {
		t.Fatal(err)
	}
	if c, err = decodeCheckpoint(blob); err != nil {
		t.Fatal(err)
	}
	want := kept()
	want.state = states
	if d := cmp.Diff(want, c, options); d != "" {
		t.Errorf("blob (-then +now):\n%s", d)
	}
	// An older version reads what a newer one wrote in the same layout, whatever was added to it.
	added := strings.Replace(string(commit), "{", `{"added_later":{"x":1},`, 1)
	if c, err = (&keeper{}).load(t.Context(), added); err != nil || c.Inputs[0].Next != 4711 {
		t.Errorf("a checkpoint with a field that is not known: %v", err)
	}
	// Another layout is refused, with what to do.
	newer := strings.Replace(string(commit), `"v":1`, `"v":3`, 1)
	if _, err = (&keeper{}).load(t.Context(), newer); err == nil || !strings.Contains(err.Error(), "run the version that wrote it") {
		t.Errorf("layout 3 gave %v", err)
	}
	if _, err = decodeCheckpoint(bytes.Replace(blob, []byte("HLCK1"), []byte("HLCK2"), 1)); err == nil {
		t.Error("a blob of another layout was read")
	}
}

func keepCheckpoints(t *testing.T, name string, states map[string][]byte) {
	if err := os.MkdirAll("testdata/checkpoint", 0o755); err != nil {
		t.Fatal(err)
	}
	c := kept()
	one, err := (&survey{r: &Runner{}}).put(t.Context(), "g", "readings", 3, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("testdata/checkpoint/"+name+".commit", []byte(one.Commits[0].Metadata), 0o644); err != nil {
		t.Fatal(err)
	}
	c.state = states
	b, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("testdata/checkpoint/"+name+".blob", bytes.Join(b, nil), 0o644); err != nil {
		t.Fatal(err)
	}
}
