package streamstest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc/pool"

	"hearthline/streams"
)

func newSchema(fields []arrow.Field) *arrow.Schema { return arrow.NewSchema(fields, nil) }

// quick is a group that notices a rebalance soon.
func quick(id string, names ...string) streams.GroupConfig {
	return streams.GroupConfig{ID: id, Streams: names, Heartbeat: 100 * time.Millisecond, SessionTimeout: 6 * time.Second, RebalanceTimeout: 10 * time.Second}
}

func commits(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	a, b := Stream(t, c, 2), Stream(t, c, 2)
	group := quick(Name("group"), a, b)
	want := map[string]map[int32]streams.Committed{
		a: {0: {Offset: 7, Metadata: strings.Repeat("é", 2048)}, 1: {Offset: 0}},
		b: {1: {Offset: 1 << 40, Metadata: `{"checkpoint":"x"}`}},
	}
	for round := range 2 {
		ctx, cancel := context.WithCancel(Context(t))
		err := c.Join(ctx, group, func(gen context.Context, g *streams.Generation) error {
			defer cancel()
			if !slices.Equal(g.Partitions(), []int32{0, 1}) || g.Member() == "" || g.ID() < 1 {
				t.Errorf("generation %d of %q: %v", g.ID(), g.Member(), g.Partitions())
			}
			got, err := g.Committed(gen)
			if err != nil {
				return err
			}
			if d := cmp.Diff(want, got); d != "" && round == 1 {
				t.Error(d)
			}
			if len(got[a])+len(got[b]) != 0 && round == 0 {
				t.Errorf("a new group has commits: %v", got)
			}
			if err := g.Commit(gen, []streams.Commit{{Stream: a, Offset: 1, Metadata: strings.Repeat("x", 4097)}}); err == nil {
				t.Error("4,097 bytes of metadata were taken")
			}
			cancel() // while handle winds down, commits still count
			<-gen.Done()
			var all []streams.Commit
			for s, ps := range want {
				for p, cm := range ps {
					all = append(all, streams.Commit{Stream: s, Partition: p, Offset: cm.Offset, Metadata: cm.Metadata})
				}
			}
			return g.Commit(Context(t), all)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	outside, err := c.Committed(Context(t), group.ID, b)
	if err != nil || !cmp.Equal(outside, want[b]) {
		t.Errorf("from outside: %v, %v", outside, err)
	}
}

func fenced(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	stream := Stream(t, c, 1)
	group := quick(Name("group"), stream)
	var old *streams.Generation
	for range 2 {
		ctx, cancel := context.WithCancel(Context(t))
		err := c.Join(ctx, group, func(gen context.Context, g *streams.Generation) error {
			defer cancel()
			if old == nil {
				old = g
				return g.Commit(gen, []streams.Commit{{Stream: stream, Offset: 5, Metadata: "first"}})
			}
			if err := old.Commit(gen, []streams.Commit{{Stream: stream, Offset: 3, Metadata: "stale"}}); !errors.Is(err, streams.ErrFenced) {
				t.Errorf("a commit of an older generation: %v", err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := c.Committed(Context(t), group.ID, stream); err != nil || got[0] != (streams.Committed{Offset: 5, Metadata: "first"}) {
		t.Errorf("%v, %v", got, err)
	}
}

// share is who has which partitions now.
type share struct {
	mu   sync.Mutex
	of   map[string][]int32
	wake chan struct{}
}

func (s *share) set(who string, partitions []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if partitions == nil {
		delete(s.of, who)
	} else {
		s.of[who] = partitions
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// until waits until n members have all partitions between them, none twice.
func (s *share) until(t *testing.T, n int, partitions int) {
	t.Helper()
	ctx := Context(t)
	for {
		s.mu.Lock()
		var all []int32
		for _, ps := range s.of {
			all = append(all, ps...)
		}
		members := len(s.of)
		s.mu.Unlock()
		slices.Sort(all)
		if members == n && len(all) == partitions && len(slices.Compact(all)) == partitions {
			return
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			t.Fatalf("%d members share %v; want %d members and %d partitions", members, all, n, partitions)
		}
	}
}

func rebalance(t *testing.T, cl Cluster) {
	const partitions = 8
	c := cl.Dial(t)
	a, b := Stream(t, c, partitions), Stream(t, c, partitions)
	group := quick(Name("group"), a, b)
	now := &share{of: map[string][]int32{}, wake: make(chan struct{}, 1)}
	work := pool.New().WithErrors()
	join := func(who string) context.CancelFunc {
		ctx, cancel := context.WithCancel(Context(t))
		member := cl.Dial(t)
		work.Go(func() error {
			return member.Join(ctx, group, func(gen context.Context, g *streams.Generation) error {
				now.set(who, append([]int32{}, g.Partitions()...))
				defer now.set(who, nil)
				<-gen.Done()
				// What was done is committed after the generation's end was announced.
				var done []streams.Commit
				for _, p := range g.Partitions() {
					done = append(done, streams.Commit{Stream: a, Partition: p, Offset: int64(g.ID())})
				}
				return g.Commit(Context(t), done)
			})
		})
		return cancel
	}
	leaveOne := join("one")
	now.until(t, 1, partitions)
	leaveTwo := join("two")
	now.until(t, 2, partitions)
	leaveThree := join("three")
	now.until(t, 3, partitions)
	began := time.Now()
	leaveTwo()
	now.until(t, 2, partitions)
	t.Log("two members have the third's partitions after", time.Since(began).Round(time.Millisecond))
	leaveOne()
	leaveThree()
	if err := work.Wait(); err != nil {
		t.Error(err)
	}
	got, err := c.Committed(Context(t), group.ID, a)
	if err != nil || len(got) != partitions {
		t.Errorf("commits of all partitions: %v, %v", got, err)
	}
}

func handleEnds(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	stream := Stream(t, c, 1)
	broken := errors.New("broken")
	err := c.Join(Context(t), quick(Name("group"), stream), func(context.Context, *streams.Generation) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("handle's error: %v", err)
	}
	if err := c.Join(Context(t), quick(Name("group"), "no-such-stream"), func(context.Context, *streams.Generation) error { return nil }); !errors.Is(err, streams.ErrNoStream) {
		t.Errorf("a group of no stream: %v", err)
	}
	other := Stream(t, c, 2)
	err = c.Join(Context(t), quick(Name("group"), stream, other), func(context.Context, *streams.Generation) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "same number") {
		t.Errorf("streams of 1 and 2 partitions: %v", err)
	}
}

func lastingName(t *testing.T, cl Cluster) {
	stream := Stream(t, cl.Dial(t), 4)
	group := quick(Name("group"), stream)
	group.Instance = "pod-0"
	began := time.Now()
	for range 3 {
		ctx, cancel := context.WithCancel(Context(t))
		err := cl.Dial(t).Join(ctx, group, func(_ context.Context, g *streams.Generation) error {
			defer cancel() // it does not leave the group, as if it had died
			if len(g.Partitions()) != 4 {
				t.Errorf("partitions %v", g.Partitions())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(began); d > group.SessionTimeout {
		t.Errorf("it came back twice in %v: it waited for itself", d)
	}
}
