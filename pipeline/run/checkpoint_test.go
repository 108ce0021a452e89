package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/streams"
)

func someCheckpoint(producers int, state map[string][]byte) *checkpoint {
	c := &checkpoint{Inputs: []inputMark{{Stream: "in", StreamID: "x1", Next: 77, Watermark: 5}}, state: state}
	for i := range producers {
		c.Inputs[0].Marks = append(c.Inputs[0].Marks, mark{
			Source:   flow.Source{Producer: fmt.Sprintf("gateway/%d", i), Partition: 1},
			Position: flow.Position{Offset: int64(i), K: 2}, Watermark: 9, Ended: "r",
		})
	}
	return c
}

// log is a partition's last commit, as Kafka keeps it.
type log struct {
	last []streams.Commit
	fail error
	took bool // an attempt took effect although another failed
}

func (l *log) commit(_ context.Context, c []streams.Commit) error {
	if l.fail == nil || l.took {
		l.last = c
	}
	return l.fail
}

func newKeeper(t *testing.T, dir string, l *log) *keeper {
	t.Helper()
	store, err := blobs.Dir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &keeper{store: store, commit: l.commit, prefix: "checkpoints/g/in-0/", now: time.Now, since: time.Now()}
}

func TestCheckpointIsReadBackFromTheCommitAlone(t *testing.T) {
	for name, c := range map[string]*checkpoint{
		"small: inside the commit":      someCheckpoint(2, nil),
		"many producers: beside it":     someCheckpoint(200, nil),
		"state: beside it":              someCheckpoint(1, map[string][]byte{"a": bytes.Repeat([]byte{7}, 1<<20), "b": {}}),
		"state of no bytes: beside it":  someCheckpoint(0, map[string][]byte{"a": {}}),
		"nothing taken yet: inside too": someCheckpoint(0, nil),
	} {
		t.Run(name, func(t *testing.T) {
			l, dir := &log{}, t.TempDir()
			if _, err := newKeeper(t, dir, l).save(t.Context(), 0, c); err != nil {
				t.Fatal(err)
			}
			if n := len(l.last[0].Metadata); n > 4096 || l.last[0].Offset != 77 {
				t.Fatalf("commit of offset %d with %d bytes of metadata", l.last[0].Offset, n)
			}
			got, err := newKeeper(t, dir, l).load(t.Context(), l.last[0].Metadata)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.Inputs, got.Inputs); d != "" {
				t.Error(d)
			}
			for stage, want := range c.state {
				if !bytes.Equal(got.state[stage], want) {
					t.Errorf("state of %s: %d bytes, want %d", stage, len(got.state[stage]), len(want))
				}
			}
		})
	}
}

// A commit that fails leaves the earlier checkpoint whole.
func TestFailedCommitChangesNothing(t *testing.T) {
	l, dir := &log{}, t.TempDir()
	k := newKeeper(t, dir, l)
	first := someCheckpoint(1, map[string][]byte{"a": []byte("one")})
	if _, err := k.save(t.Context(), 0, first); err != nil {
		t.Fatal(err)
	}
	l.fail = streams.ErrFenced
	if _, err := k.save(t.Context(), 0, someCheckpoint(1, map[string][]byte{"a": []byte("two")})); !errors.Is(err, streams.ErrFenced) {
		t.Fatalf("error %v", err)
	}
	got, err := newKeeper(t, dir, l).load(t.Context(), l.last[0].Metadata)
	if err != nil || string(got.state["a"]) != "one" {
		t.Fatalf("state %q, error %v", got.state["a"], err)
	}
}

// A commit may have been recorded although its last attempt was refused: an earlier one had no answer. What it names is
// there then, or nobody could go on from it.
func TestRefusedCommitThatTookEffect(t *testing.T) {
	l, dir := &log{}, t.TempDir()
	k := newKeeper(t, dir, l)
	l.fail, l.took = streams.ErrFenced, true
	if _, err := k.save(t.Context(), 0, someCheckpoint(1, map[string][]byte{"a": []byte("two")})); !errors.Is(err, streams.ErrFenced) {
		t.Fatalf("error %v", err)
	}
	got, err := newKeeper(t, dir, l).load(t.Context(), l.last[0].Metadata)
	if err != nil || string(got.state["a"]) != "two" {
		t.Fatalf("state %v, error %v", got, err)
	}
}

func TestOldCheckpointsGo(t *testing.T) {
	l, dir := &log{}, t.TempDir()
	k := newKeeper(t, dir, l)
	clock := time.Now().Add(-2 * time.Hour)
	k.now = func() time.Time { clock = clock.Add(time.Second); return clock }
	for range 10 {
		if _, err := k.save(t.Context(), 0, someCheckpoint(1, map[string][]byte{"a": {1}})); err != nil {
			t.Fatal(err)
		}
	}
	infos, err := k.store.List(t.Context(), "")
	if err != nil || len(infos) != 2 {
		t.Fatalf("%d blobs left, want the last and the one before it; error %v", len(infos), err)
	}
	// The next owner loads the last one; the one before it is an hour old and nobody's.
	next := newKeeper(t, dir, l)
	if _, err := next.load(t.Context(), l.last[0].Metadata); err != nil {
		t.Fatal(err)
	}
	if err := next.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if infos, _ := k.store.List(t.Context(), ""); len(infos) != 1 {
		t.Errorf("%d blobs left after the sweep, want 1", len(infos))
	}
	if got, err := newKeeper(t, dir, l).load(t.Context(), l.last[0].Metadata); err != nil || got == nil {
		t.Errorf("the sweep took the checkpoint in use: %v", err)
	}
}

// A machine may sleep between reading the commit and sweeping. What its successor has kept meanwhile is old by then.
func TestATaskThatSleptLeavesItsSuccessorsCheckpoint(t *testing.T) {
	l, dir := &log{}, t.TempDir()
	slept, next := newKeeper(t, dir, l), newKeeper(t, dir, l)
	if _, err := next.save(t.Context(), 0, someCheckpoint(1, map[string][]byte{"a": {1}})); err != nil {
		t.Fatal(err)
	}
	slept.now = func() time.Time { return time.Now().Add(3 * time.Hour) }
	if err := slept.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := newKeeper(t, dir, l).load(t.Context(), l.last[0].Metadata); err != nil {
		t.Error(err)
	}
}

func TestDamagedCheckpointsAreRefused(t *testing.T) {
	pieces, err := someCheckpoint(3, map[string][]byte{"a": []byte("state")}).encode()
	if err != nil {
		t.Fatal(err)
	}
	whole := bytes.Join(pieces, nil)
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= 0x40
		if _, err := decodeCheckpoint(bad); !errors.Is(err, errCheckpoint) {
			t.Fatalf("byte %d changed: error %v", i, err)
		}
		if _, err := decodeCheckpoint(whole[:i]); !errors.Is(err, errCheckpoint) {
			t.Fatalf("cut at %d: error %v", i, err)
		}
	}
}

func TestLostBlobSaysWhatToDo(t *testing.T) {
	_, err := newKeeper(t, t.TempDir(), &log{}).load(t.Context(), "blob:checkpoints/g/in-0/123")
	if err == nil || !strings.Contains(err.Error(), "point it at the right store") {
		t.Errorf("error %v", err)
	}
}

func FuzzDecodeCheckpoint(f *testing.F) {
	pieces, _ := someCheckpoint(3, map[string][]byte{"a": []byte("state")}).encode()
	f.Add(bytes.Join(pieces, nil))
	f.Add([]byte(blobMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeCheckpoint(b); err == nil && c == nil {
			t.Fatal("no checkpoint and no error")
		}
	})
}

func TestDearCheckpointsComeLessOften(t *testing.T) {
	task := &task{r: &Runner{Plan: testPlan()}}
	task.r.Plan.Spec.Checkpoint = 10 * time.Second
	for _, c := range []struct {
		took, want time.Duration
	}{
		{3 * time.Second, 10 * time.Second}, {9 * time.Second, 10 * time.Second}, // what two took says nothing
		{4 * time.Second, 30 * time.Second},
		{time.Hour, 40 * time.Second}, // a broker that was away
		{5 * time.Second, 40 * time.Second},
		{5 * time.Second, 50 * time.Second},
		{900 * time.Millisecond, 10 * time.Second},
		{time.Hour, 10 * time.Second}, {time.Hour, 10 * time.Second}, {time.Hour, checkpointPauseMax},
	} {
		if task.saved(c.took); task.checkpointPause() != c.want {
			t.Errorf("after one of %v, the next comes in %v; want %v", c.took, task.checkpointPause(), c.want)
		}
	}
}
