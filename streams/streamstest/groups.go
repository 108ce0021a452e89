package streamstest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
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
	want := map[int32]map[string]streams.Committed{
		0: {a: {Offset: 7, Metadata: strings.Repeat("é", 2048)}},
		1: {a: {Offset: 0}, b: {Offset: 1 << 40, Metadata: `{"checkpoint":"x"}`}},
	}
	for round := range 2 {
		ctx, cancel := context.WithCancel(Context(t))
		var begun atomic.Int32
		err := c.Join(ctx, group, func(live context.Context, g *streams.Assignment) error {
			if p := g.Partition(); p < 0 || p > 1 || g.Member() == "" || g.Generation() < 1 {
				t.Errorf("partition %d in generation %d of %q", p, g.Generation(), g.Member())
			}
			got := g.Committed()
			if d := cmp.Diff(want[g.Partition()], got); d != "" && round == 1 {
				t.Error(d)
			}
			if len(got) != 0 && round == 0 {
				t.Errorf("a new group has commits: %v", got)
			}
			for _, bad := range []streams.Commit{
				{Stream: a, Partition: g.Partition(), Offset: 1, Metadata: strings.Repeat("x", 4097)},
				{Stream: a, Partition: 1 - g.Partition(), Offset: 1},
				{Stream: a, Partition: g.Partition(), Offset: -1},
			} {
				if err := g.Commit(live, []streams.Commit{bad}); err == nil {
					t.Errorf("a commit of partition %d, offset %d, %d bytes of metadata was taken", bad.Partition, bad.Offset, len(bad.Metadata))
				}
			}
			if begun.Add(1) == 2 {
				cancel() // while handles wind down, commits still count
			}
			<-live.Done()
			var all []streams.Commit
			for s, cm := range want[g.Partition()] {
				all = append(all, streams.Commit{Stream: s, Partition: g.Partition(), Offset: cm.Offset, Metadata: cm.Metadata})
			}
			return g.Commit(Context(t), all)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	outside, err := c.Committed(Context(t), group.ID, b)
	if err != nil || !cmp.Equal(outside, map[int32]streams.Committed{1: want[1][b]}) {
		t.Errorf("from outside: %v, %v", outside, err)
	}
	all, err := c.CommittedOf(Context(t), group.ID, []string{a, b}, 2)
	if err != nil || !cmp.Equal(all[b], outside) || len(all[a]) == 0 {
		t.Errorf("of all streams: %v, %v", all, err)
	}
	if none, err := c.Committed(Context(t), Name("group"), a); err != nil || len(none) > 0 {
		t.Errorf("of a group that nobody has joined: %v, %v", none, err)
	}
}

func fenced(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	stream := Stream(t, c, 1)
	group := quick(Name("group"), stream)
	var old *streams.Assignment
	for range 2 {
		ctx, cancel := context.WithCancel(Context(t))
		err := c.Join(ctx, group, func(live context.Context, g *streams.Assignment) error {
			defer cancel()
			if old == nil {
				old = g
				return g.Commit(live, []streams.Commit{{Stream: stream, Offset: 5, Metadata: "first"}})
			}
			if err := old.Commit(live, []streams.Commit{{Stream: stream, Offset: 3, Metadata: "stale"}}); !errors.Is(err, streams.ErrFenced) {
				t.Errorf("a commit of an assignment that is over: %v", err)
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

// share is who works on which partitions now. Two at once on one is an error.
type share struct {
	t    *testing.T
	mu   sync.Mutex
	of   map[int32]string
	wake chan struct{}
}

func newShare(t *testing.T) *share {
	return &share{t: t, of: map[int32]string{}, wake: make(chan struct{}, 1)}
}

func (s *share) begin(who string, partition int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other, taken := s.of[partition]; taken {
		s.t.Errorf("%s works on partition %d while %s still does", who, partition, other)
	}
	s.of[partition] = who
	s.changed()
}

func (s *share) end(partition int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, partition)
	s.changed()
}

func (s *share) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// until waits until n members have all partitions between them, each about as many.
func (s *share) until(n int, partitions int) {
	s.t.Helper()
	ctx := Context(s.t)
	for {
		s.mu.Lock()
		each := map[string]int{}
		for _, who := range s.of {
			each[who]++
		}
		even := len(s.of) == partitions && len(each) == n
		for _, k := range each {
			even = even && k >= partitions/n && k <= (partitions+n-1)/n
		}
		now := fmt.Sprint(s.of)
		s.mu.Unlock()
		if even {
			return
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			s.t.Fatalf("%s; want %d members that share %d partitions", now, n, partitions)
		}
	}
}

// crew is members of one group that come and go.
type crew struct {
	t    *testing.T
	cl   Cluster
	work *pool.ErrorPool
	now  *share
}

func (c *crew) join(who string, group streams.GroupConfig, handle func(context.Context, *streams.Assignment) error) context.CancelFunc {
	ctx, cancel := context.WithCancel(Context(c.t))
	member := c.cl.Dial(c.t)
	c.work.Go(func() error {
		return member.Join(ctx, group, func(live context.Context, a *streams.Assignment) error {
			c.now.begin(who, a.Partition())
			defer c.now.end(a.Partition())
			return handle(live, a)
		})
	})
	return cancel
}

func rebalance(t *testing.T, cl Cluster) {
	const partitions = 8
	c := cl.Dial(t)
	a, b := Stream(t, c, partitions), Stream(t, c, partitions)
	group := quick(Name("group"), a, b)
	crew := &crew{t, cl, pool.New().WithErrors(), newShare(t)}
	// Each partition's commits count up, whoever makes them: a member finds what the last one has left.
	count := func(live context.Context, g *streams.Assignment) error {
		at := g.Committed()[a].Offset
		for live.Err() == nil {
			at++
			if err := g.Commit(Context(t), []streams.Commit{{Stream: a, Partition: g.Partition(), Offset: at}}); err != nil {
				return err
			}
			select {
			case <-live.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
		// What was done is committed after the end was announced.
		return g.Commit(Context(t), []streams.Commit{{Stream: a, Partition: g.Partition(), Offset: at + 1000}})
	}
	leaveOne := crew.join("one", group, count)
	crew.now.until(1, partitions)
	leaveTwo := crew.join("two", group, count)
	crew.now.until(2, partitions)
	leaveThree := crew.join("three", group, count)
	crew.now.until(3, partitions)
	began := time.Now()
	leaveTwo()
	crew.now.until(2, partitions)
	t.Log("two members have the third's partitions after", time.Since(began).Round(time.Millisecond))
	leaveOne()
	leaveThree()
	if err := crew.work.Wait(); err != nil {
		t.Error(err)
	}
	got, err := c.Committed(Context(t), group.ID, a)
	if err != nil || len(got) != partitions {
		t.Errorf("commits of all partitions: %v, %v", got, err)
	}
}

// kept: who keeps a partition when others come and go does not notice, and its commits count at any time. Those of a
// partition that has gone do not, however valid the membership.
func kept(t *testing.T, cl Cluster) {
	const partitions = 4
	c := cl.Dial(t)
	stream := Stream(t, c, partitions)
	group := quick(Name("group"), stream)
	crew := &crew{t, cl, pool.New().WithErrors(), newShare(t)}
	var handles, commits atomic.Int64
	var mu sync.Mutex
	gone := map[int32]*streams.Assignment{}
	slow := make(chan struct{})
	stay := crew.join("stays", group, func(live context.Context, a *streams.Assignment) error {
		handles.Add(1)
		for at := int64(1); live.Err() == nil; at++ {
			if err := a.Commit(Context(t), []streams.Commit{{Stream: stream, Partition: a.Partition(), Offset: at}}); err != nil {
				return err
			}
			commits.Add(1)
		}
		<-slow // a stage with much state takes its time to give it away
		err := a.Commit(Context(t), []streams.Commit{{Stream: stream, Partition: a.Partition(), Offset: 1 << 40}})
		mu.Lock()
		defer mu.Unlock()
		gone[a.Partition()] = a
		return err
	})
	crew.now.until(1, partitions)
	leave := crew.join("comes", group, func(live context.Context, a *streams.Assignment) error {
		if got := a.Committed()[stream].Offset; got != 1<<40 {
			t.Errorf("partition %d is assigned before the last member has finished: its commit is %d", a.Partition(), got)
		}
		mu.Lock()
		last := gone[a.Partition()]
		mu.Unlock()
		if err := last.Commit(Context(t), []streams.Commit{{Stream: stream, Partition: a.Partition(), Offset: 3}}); !errors.Is(err, streams.ErrFenced) {
			t.Errorf("a commit of a partition that was given away: %v", err)
		}
		<-live.Done()
		return nil
	})
	// The group waits for two partitions; the two others go on meanwhile.
	for at := commits.Load(); commits.Load() < at+500; time.Sleep(time.Millisecond) {
		if Context(t).Err() != nil {
			t.Fatal("nothing is committed while the group rebalances")
		}
	}
	close(slow)
	crew.now.until(2, partitions)
	if n := handles.Load(); n != partitions {
		t.Errorf("%d handles began in the member that stayed; want %d: no partition that it kept began anew", n, partitions)
	}
	leave()
	crew.now.until(1, partitions)
	stay()
	if err := crew.work.Wait(); err != nil {
		t.Error(err)
	}
}

func handleEnds(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	stream := Stream(t, c, 1)
	broken := errors.New("broken")
	err := c.Join(Context(t), quick(Name("group"), stream), func(context.Context, *streams.Assignment) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("handle's error: %v", err)
	}
	idle := func(context.Context, *streams.Assignment) error { return nil }
	if err := c.Join(Context(t), quick(Name("group"), "no-such-stream"), idle); !errors.Is(err, streams.ErrNoStream) {
		t.Errorf("a group of no stream: %v", err)
	}
	other := Stream(t, c, 2)
	err = c.Join(Context(t), quick(Name("group"), stream, other), idle)
	if err == nil || !strings.Contains(err.Error(), "same number") {
		t.Errorf("streams of 1 and 2 partitions: %v", err)
	}
}

// lastingName: a member with a lasting name that dies without leaving is replaced at once, and its dead self is fenced. One
// that ends as it should leaves, and its partitions go to others at once.
func lastingName(t *testing.T, cl Cluster) {
	stream := Stream(t, cl.Dial(t), 4)
	group := quick(Name("group"), stream)
	crew := &crew{t, cl, pool.New().WithErrors(), newShare(t)}
	idle := func(live context.Context, _ *streams.Assignment) error { <-live.Done(); return nil }
	other := group
	other.Instance = "pod-1"
	leaveOther := crew.join("other", other, idle)
	crew.now.until(1, 4)

	group.Instance = "pod-0"
	dead := make(chan *streams.Assignment, 4)
	ctx, forget := context.WithCancel(Context(t))
	defer forget()
	crew.work.Go(func() error {
		// It goes on as a process that was cut off would; its membership is taken away below.
		err := cl.Dial(t).Join(ctx, group, func(live context.Context, a *streams.Assignment) error {
			dead <- a
			<-live.Done()
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "pod-0") {
			t.Errorf("a member whose name another took ended with: %v", err)
		}
		return nil
	})
	first, _ := <-dead, <-dead
	time.Sleep(time.Second) // the group comes to rest; a process takes longer to be started again
	began := time.Now()
	leave := crew.join("again", group, func(live context.Context, a *streams.Assignment) error {
		if err := first.Commit(Context(t), []streams.Commit{{Stream: stream, Partition: first.Partition(), Offset: 3}}); !errors.Is(err, streams.ErrFenced) {
			t.Errorf("a commit of the dead: %v", err)
		}
		<-live.Done()
		return nil
	})
	crew.now.until(2, 4)
	if d := time.Since(began); d > group.SessionTimeout {
		t.Errorf("it came back in %v: it waited for itself", d)
	}
	began = time.Now()
	leave()
	crew.now.until(1, 4)
	if d := time.Since(began); d > group.SessionTimeout {
		t.Errorf("the other has its partitions after %v: it waited for one that had left", d)
	}
	leaveOther()
	if err := crew.work.Wait(); err != nil {
		t.Error(err)
	}
}
