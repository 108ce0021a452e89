package run

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"time"

	"hearthline/streams"
)

// A task's inputs change: one is dropped, and read again later. What was committed for it last is older than what was
// committed for the others since, and the newest checkpoint is the one to go on from, however it is kept.
func TestCheckpointIsTheNewestOfAllInputs(t *testing.T) {
	for _, states := range []map[string][]byte{nil, {"sum": []byte("12345678")}} { // in the commit itself, and in a blob
		w := newWorld()
		commits := map[string]streams.Committed{}
		now := time.Unix(0, 0)
		keeper := func() *keeper {
			return &keeper{store: &life{world: w, uses: -1}, prefix: "p/", now: func() time.Time { now = now.Add(time.Second); return now },
				commit: func(_ context.Context, cs []streams.Commit) error {
					for _, c := range cs {
						commits[c.Stream] = streams.Committed{Offset: c.Offset, Metadata: c.Metadata}
					}
					return nil
				}}
		}
		saver := keeper()
		save := func(inputs ...inputMark) {
			t.Helper()
			if _, err := saver.save(t.Context(), 0, &checkpoint{Inputs: inputs, state: states}); err != nil {
				t.Fatal(err)
			}
		}
		last := func() *checkpoint {
			t.Helper()
			c, err := keeper().last(t.Context(), commits)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		if c := last(); c != nil {
			t.Errorf("a checkpoint of nothing: %+v", c)
		}
		save(inputMark{Stream: "alerts", Next: 7}, inputMark{Stream: "readings", Next: 100})
		for next := int64(200); next <= 500; next += 100 { // alerts was dropped; its blob goes in time
			save(inputMark{Stream: "readings", Next: next})
			c := last()
			if in := c.Inputs[0]; in.Stream != "readings" || in.Next != next {
				t.Errorf("the checkpoint is at %+v, the last was saved at %d", in, next)
			}
			if states == nil && (len(c.Inputs) != 2 || c.Inputs[1].Next != 7) {
				t.Errorf("what was known of the dropped input is lost: %+v", c.Inputs)
			}
		}
		if states == nil {
			continue
		}
		// The newest blob is lost: the one before must not be taken for it.
		saver.forget(t.Context(), "")
		for name := range w.blobs {
			delete(w.blobs, name)
		}
		if c, err := keeper().last(t.Context(), commits); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("checkpoint %+v, error %v; want one that says that it is gone", c, err)
		}
	}
}
