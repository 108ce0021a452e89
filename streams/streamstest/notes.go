package streamstest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearthline/streams"
)

// notesFollowed: what is appended to a compacted stream comes to whoever follows it, from the first note on, in order,
// taken back keys included.
func notesFollowed(t *testing.T, cl Cluster) {
	c, ctx := cl.Dial(t), Context(t)
	stream := Name("stream")
	if err := c.Ensure(ctx, []streams.Spec{{Name: stream, Partitions: 2, Compacted: true}}); err != nil {
		t.Fatal(err)
	}
	p := c.NewProducer()
	if _, err := p.PublishNotes(ctx, stream, 1); err == nil {
		t.Error("no notes were published")
	}
	publish := func(first int64, notes ...streams.Note) {
		t.Helper()
		at, err := p.PublishNotes(ctx, stream, 1, notes...)
		if err != nil || at != first {
			t.Fatalf("published at %d, %v; want %d", at, err, first)
		}
	}
	publish(0, streams.Note{Key: "a", Value: []byte("1")}, streams.Note{Key: "b", Value: []byte{}})
	enough := errors.New("enough")
	var got []string
	whole := false
	err := cl.Dial(t).Follow(ctx, stream, 1, func(f streams.Followed) error {
		for _, n := range f.Notes {
			got = append(got, fmt.Sprintf("%d %s=%s,%t", n.Offset, n.Key, n.Value, n.Value == nil))
		}
		if f.Whole && !whole {
			whole = true
			if len(got) != 2 {
				t.Errorf("it is said to be whole with %v", got)
			}
			publish(2, streams.Note{Key: "a"}, streams.Note{Key: "c", Value: []byte("3")})
		}
		if len(got) >= 4 {
			if f.Next != 4 {
				t.Errorf("next is %d; want 4", f.Next)
			}
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"0 a=1,false", "1 b=,false", "2 a=,true", "3 c=3,false"}, got); d != "" {
		t.Error(d)
	}
	gone, cancel := context.WithCancel(ctx)
	err = c.Follow(gone, stream, 0, func(f streams.Followed) error {
		if !f.Whole || len(f.Notes) > 0 {
			t.Errorf("an empty partition gives %+v", f)
		}
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("follow after its end: %v", err)
	}
	if err := c.Follow(ctx, Name("stream"), 0, func(streams.Followed) error { return nil }); !errors.Is(err, streams.ErrNoStream) {
		t.Errorf("follow a stream that is not there: %v", err)
	}
}
