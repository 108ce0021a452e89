package streamstest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearthline/streams"
)

// Upkeep tests what changing a pipeline needs, which takes more rights than running one: to see groups from outside,
// to set what they have committed, to delete groups and streams.
func Upkeep(t *testing.T, cl Cluster) {
	t.Run("notes: the last of a key stands", func(t *testing.T) { notes(t, cl) })
	t.Run("groups are seen, set and deleted from outside", func(t *testing.T) { groupsFromOutside(t, cl) })
	t.Run("what streams hold is told by one question", func(t *testing.T) { extents(t, cl) })
	t.Run("streams are deleted", func(t *testing.T) { streamsDeleted(t, cl) })
}

func notes(t *testing.T, cl Cluster) {
	c, ctx := cl.Dial(t), Context(t)
	stream := Name("stream")
	if got, err := c.Notes(ctx, stream); err != nil || len(got) != 0 {
		t.Fatalf("a stream that is not there has the notes %v, %v", got, err)
	}
	if err := c.EnsureNotes(ctx, stream); err != nil {
		t.Fatal(err)
	}
	for _, n := range [][2]string{{"a", "1"}, {"b", "1"}, {"a", "2"}, {"c", "1"}, {"b", ""}} {
		value := []byte(n[1])
		if n[1] == "" {
			value = nil
		}
		if err := cl.Dial(t).WriteNote(ctx, stream, n[0], value); err != nil { // each by a client of its own, as processes do
			t.Fatal(err)
		}
	}
	got, err := c.Notes(ctx, stream)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for key, n := range got {
		values[key] = string(n.Value)
	}
	if d := cmp.Diff(map[string]string{"a": "2", "c": "1"}, values); d != "" {
		t.Error(d)
	}
	if got["a"].Offset >= got["c"].Offset {
		t.Errorf("a was written at %d, c after it at %d", got["a"].Offset, got["c"].Offset)
	}
}

func groupsFromOutside(t *testing.T, cl Cluster) {
	c, ctx := cl.Dial(t), Context(t)
	a, b, prefix := Stream(t, c, 2), Stream(t, c, 1), Name("group")
	group := prefix + ".one+two"
	want := map[string]map[int32]streams.Committed{a: {0: {Offset: 7, Metadata: "seven"}, 1: {Offset: 0, Metadata: "none"}}, b: {0: {Offset: 3}}}
	err := c.SetCommitted(ctx, group, []streams.Commit{
		{Stream: a, Offset: 7, Metadata: "seven"}, {Stream: a, Partition: 1, Metadata: "none"}, {Stream: b, Offset: 3},
	})
	if err != nil {
		t.Fatal(err)
	}
	see := func(want map[string]map[int32]streams.Committed) {
		t.Helper()
		got, err := c.CommittedAll(ctx, group)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	see(want)
	groups, err := c.Groups(ctx, prefix+".")
	if err != nil || !slices.Equal(groups, []string{group}) {
		t.Errorf("groups %v, %v", groups, err)
	}
	members := func() int {
		t.Helper()
		n, err := c.Members(ctx, group, prefix+".nobody")
		if err != nil || n[prefix+".nobody"] != 0 {
			t.Fatal(n, err)
		}
		return n[group]
	}
	// A member goes on from what was set; while it is there, nothing is set or deleted.
	joined, leave := context.WithCancel(ctx)
	err = c.Join(joined, quick(group, a), func(_ context.Context, g *streams.Assignment) error {
		if d := cmp.Diff(map[string]streams.Committed{a: want[a][g.Partition()]}, g.Committed()); d != "" {
			t.Error(d)
		}
		if g.Partition() != 0 {
			return nil
		}
		defer leave()
		if n := members(); n != 1 {
			t.Errorf("%d members, want 1", n)
		}
		if err := c.SetCommitted(ctx, group, []streams.Commit{{Stream: a, Offset: 1}}); !errors.Is(err, streams.ErrFenced) {
			t.Errorf("offsets of a group with a member were set: %v", err)
		}
		if err := c.DeleteGroups(ctx, group); err == nil {
			t.Error("a group with a member was deleted")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := members(); n != 0 {
		t.Errorf("%d members have left", n)
	}
	see(want)
	for range 2 { // the second time there is nothing to delete
		if err := c.DeleteGroups(ctx, group); err != nil {
			t.Fatal(err)
		}
	}
	see(map[string]map[int32]streams.Committed{})
}

func extents(t *testing.T, cl Cluster) {
	c, ctx := cl.Dial(t), Context(t)
	a, b, missing := Stream(t, c, 2), Stream(t, c, 1), Name("stream")
	Publish(t, c.NewProducer(), a, 1, 1, 0, 1, 2)
	info, err := c.Info(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Extents(ctx, []string{a, b}, []string{missing})
	want := streams.Extent{Info: info, First: []int64{0, 0}, Next: []int64{0, 3}}
	if d := cmp.Diff(want, got[a]); err != nil || d != "" || len(got) != 2 || !slices.Equal(got[b].Next, []int64{0}) {
		t.Errorf("%v, %v\n%s", got, err, d)
	}
	before := c.Stats().Metadata
	if got, err := c.Extents(ctx, nil, []string{missing}); err != nil || len(got) != 0 {
		t.Errorf("of a stream that is not there: %v, %v", got, err)
	}
	if asked := c.Stats().Metadata - before; asked != 1 {
		t.Errorf("asked %d times about a stream that nobody has written", asked)
	}
}

func streamsDeleted(t *testing.T, cl Cluster) {
	c, ctx := cl.Dial(t), Context(t)
	a, b := Stream(t, c, 2), Stream(t, c, 1)
	Publish(t, c.NewProducer(), a, 0, 1, 0, 1)
	before, err := c.Info(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.DeleteStreams(ctx, a, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Ensure(ctx, []streams.Spec{{Name: a, Partitions: 3}}); err != nil {
		t.Fatal(err)
	}
	after, err := c.Info(ctx, a)
	if err != nil || after.Partitions != 3 || after.ID == before.ID {
		t.Errorf("made anew: %+v, was %+v; %v", after, before, err)
	}
	if _, next, err := c.Bounds(ctx, a, 0); err != nil || next != 0 {
		t.Errorf("made anew it holds %d, %v", next, err)
	}
}
