package streams_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
	"hearthline/streams/streamstest"
)

// longPatience bounds what a test waits for brokers that start, beside others on a busy machine.
func longPatience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestThreeBrokers: what three brokers of Apache Kafka promise while any one of them falls.
func TestThreeBrokers(t *testing.T) {
	t.Parallel() // most of it is waiting
	c := apache.New()
	c.Brokers = 3
	c.Settings = map[string]string{
		"auto.leader.rebalance.enable": "false",
		// A follower that asks a broker that leads no more tries again after this; a second by default.
		"replica.fetch.backoff.ms": "20",
	}
	net := newMesh(t)
	c.Between = net.between
	cl := streamstest.Cluster{Brokers: apachetest.Start(t, c), Config: func(cfg *streams.Config) {
		cfg.RequestTimeout = 2 * time.Second // a paused broker answers nothing
	}}
	t.Run("a leader moves", func(t *testing.T) { leaderMoves(t, c, cl) })
	t.Run("brokers fall under load", func(t *testing.T) {
		underLoad(t, cl, func(stream string) { fall(t, c, stream) })
	})
	t.Run("brokers are cut off from each other under load", func(t *testing.T) {
		underLoad(t, cl, func(stream string) { apart(t, c, net, stream) })
	})
	t.Run("a coordinator is cut off", func(t *testing.T) { coordinatorApart(t, c, cl, net) })
}

// leaderMoves: the first append after a leader has moved takes little longer than one without a move, and so does reading it, or asking
// the leader. Who leads is asked when a broker says that it does not: whoever waits for the next regular look at the cluster
// waits for seconds (MetadataTTL). On a busy machine all of it takes longer, so what counts is the difference.
func leaderMoves(t *testing.T, c *apache.Cluster, cl streamstest.Cluster) {
	const moves = 20
	const laterMax = 250 * time.Millisecond // of the medians
	client, asker := cl.Dial(t), cl.Dial(t)
	stream := streamstest.Stream(t, client, 1)
	p := client.NewProducer()
	r := client.NewReader(stream, 0, 0)
	defer r.Close()
	offset := int64(0)
	append1 := func() (published, read time.Duration) {
		begun := time.Now()
		streamstest.Publish(t, p, stream, 0, 1, offset)
		published = time.Since(begun)
		m, err := r.Next(streamstest.Context(t))
		if err != nil || m.Offset != offset {
			t.Fatalf("at %d: %+v, %v", offset, m, err)
		}
		m.Batch.Record.Release()
		offset++
		return published, time.Since(begun)
	}
	asked := func() time.Duration { // the leader, twice
		begun := time.Now()
		if _, _, err := asker.Bounds(streamstest.Context(t), stream, 0); err != nil {
			t.Fatal(err)
		}
		return time.Since(begun)
	}
	var still, moved, stillSeen, seen, stillAsked, movedAsked []time.Duration
	asked()
	append1()
	for i := range moves {
		published, read := append1()
		still, stillSeen, stillAsked = append(still, published), append(stillSeen, read), append(stillAsked, asked())
		lead(t, c, stream, int32(i%3+1))
		movedAsked = append(movedAsked, asked())
		published, read = append1()
		moved, seen = append(moved, published), append(seen, read)
	}
	for _, d := range []struct {
		what          string
		before, after []time.Duration
	}{{"an append", still, moved}, {"an append and its reading", stillSeen, seen}, {"a question to the leader", stillAsked, movedAsked}} {
		slices.Sort(d.before)
		slices.Sort(d.after)
		was, is, worst := d.before[moves/2], d.after[moves/2], d.after[moves-1]
		t.Logf("%s: median %v; the first one after the leader moved: median %v, worst %v", d.what,
			was.Round(10*time.Microsecond), is.Round(10*time.Microsecond), worst.Round(10*time.Microsecond))
		if is-was >= laterMax {
			t.Errorf("%s takes %v longer when the leader has moved; want less than %v", d.what, is-was, laterMax)
		}
	}
	t.Logf("%d requests were sent again for %d moves", client.Stats().Retries, moves)
	if s := client.Stats(); s.Refreshes == 0 {
		t.Error("no leader was looked for anew: did one move?")
	}
}

// lead makes a broker the leader of a stream's only partition, and returns when it is.
func lead(t *testing.T, c *apache.Cluster, stream string, broker int32) {
	t.Helper()
	ctx := longPatience(t)
	admin, err := c.Admin()
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	again(t, "reassign "+stream, func() error {
		part := kmsg.NewAlterPartitionAssignmentsRequestTopicPartition()
		part.Replicas = []int32{broker, broker%3 + 1, (broker+1)%3 + 1}
		topic := kmsg.NewAlterPartitionAssignmentsRequestTopic()
		topic.Topic, topic.Partitions = stream, append(topic.Partitions, part)
		req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
		req.Topics = append(req.Topics, topic)
		res, err := req.RequestWith(ctx, admin)
		if err != nil {
			return err
		}
		return errors.Join(kerr.ErrorForCode(res.ErrorCode), kerr.ErrorForCode(res.Topics[0].Partitions[0].ErrorCode))
	})
	again(t, "elect a leader of "+stream, func() error {
		topic := kmsg.NewElectLeadersRequestTopic()
		topic.Topic, topic.Partitions = stream, []int32{0}
		req := kmsg.NewPtrElectLeadersRequest()
		req.Topics = append(req.Topics, topic)
		res, err := req.RequestWith(ctx, admin)
		if err != nil {
			return err
		}
		for _, topic := range res.Topics {
			for _, p := range topic.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil && !errors.Is(err, kerr.ElectionNotNeeded) {
					return err
				}
			}
		}
		if now := leader(t, admin, stream); now != broker {
			return fmt.Errorf("%d leads; want %d", now, broker)
		}
		return nil
	})
}

// leaderNow is the broker that leads a stream's first partition, once all that answer agree.
func leaderNow(t *testing.T, admin *kgo.Client, stream string) (now int) {
	t.Helper()
	again(t, "the brokers agree on a leader", func() error {
		// A connection made before its broker was started again fails once, and all three may have been: nobody answers.
		if now = int(leader(t, admin, stream)); now <= 0 {
			return errors.New("they do not, or none answers")
		}
		return nil
	})
	return now
}

// leader asks each broker who leads a stream's first partition; -1 while they do not agree, 0 where none answers.
func leader(t *testing.T, admin *kgo.Client, stream string) int32 {
	t.Helper()
	now := int32(0)
	for _, b := range admin.SeedBrokers() {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = &stream
		req := kmsg.NewPtrMetadataRequest()
		req.Topics = append(req.Topics, topic)
		res, err := req.RequestWith(longPatience(t), b)
		if err != nil {
			continue // down
		}
		if len(res.Topics) != 1 || len(res.Topics[0].Partitions) == 0 || now != 0 && now != res.Topics[0].Partitions[0].Leader {
			return -1
		}
		now = res.Topics[0].Partitions[0].Leader
	}
	return now
}

// again calls f until it succeeds.
func again(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx := longPatience(t)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// underLoad publishes to a few partitions and reads them in a group that commits, while brokers are hurt. Every batch is in the log
// once and in order, and the group passes each.
func underLoad(t *testing.T, cl streamstest.Cluster, hurt func(stream string)) {
	const partitions = 3
	quiet := cl.Dial(t)
	stream := streamstest.Stream(t, quiet, partitions)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var work conc.WaitGroup
	published := publishUntil(ctx, t, &work, cl.Dial(t), stream, partitions)
	seen := consume(ctx, t, &work, cl, stream)
	hurt(stream)
	totals := published()
	seen.until(t, totals)
	stop()
	work.Wait()
	for partition, n := range totals {
		got := streamstest.Lineages(t, quiet, stream, int32(partition))
		for i, o := range got {
			if o != int64(i) {
				t.Errorf("partition %d: batch %d of %d is at %d", partition, o, n, i)
				break
			}
		}
		if int64(len(got)) != n {
			t.Errorf("partition %d holds %d batches; %d were acknowledged", partition, len(got), n)
		}
	}
	if n := slices.Min(totals); n < 100 {
		t.Errorf("only %d batches were acknowledged: was there load?", n)
	}
	t.Logf("%v batches, each once; the group passed them all in %d assignments, %d of them again after a fall", totals, seen.assignments, seen.again)
}

// fall brings brokers down, one at a time, and up again.
func fall(t *testing.T, c *apache.Cluster, stream string) {
	ctx := longPatience(t)
	admin, err := c.Admin()
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	begun := time.Now()
	must := func(what string, err error) {
		t.Helper()
		t.Logf("%v: %s", time.Since(begun).Round(time.Millisecond), what)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	whole := func() { again(t, "all replicas in sync", func() error { return inSync(t, admin, stream, 3) }) }
	load := func() { time.Sleep(500 * time.Millisecond) } // what is tested is what goes on meanwhile
	load()
	first := leaderNow(t, admin, stream)
	must("kill the leader", c.Kill(first))
	load()
	must("restart it", c.Restart(ctx, first))
	whole()
	controller, err := c.Controller(ctx)
	must("controller", err)
	must("kill the controller", c.Kill(controller))
	load()
	must("restart it", c.Restart(ctx, controller))
	whole()
	coordinator := coordinatorOf(t, admin, stream+".group")
	must("stop the group's coordinator in order", c.Stop(coordinator))
	load()
	must("restart it", c.Restart(ctx, coordinator))
	whole()
	second := leaderNow(t, admin, stream)
	must("pause the leader", c.Pause(second))
	time.Sleep(5 * time.Second) // longer than the controller waits for it
	must("resume it", c.Resume(second))
	whole()
	load()
}

// inSync says whether n replicas of each partition of a stream are in sync.
func inSync(t *testing.T, admin *kgo.Client, stream string, n int) error {
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &stream
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(longPatience(t), admin)
	if err != nil {
		return err
	}
	for _, p := range res.Topics[0].Partitions {
		if len(p.ISR) < n {
			return fmt.Errorf("partition %d has %v in sync", p.Partition, p.ISR)
		}
	}
	return nil
}

func coordinatorOf(t *testing.T, admin *kgo.Client, group string) (broker int) {
	t.Helper()
	again(t, "find the coordinator", func() error {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKeys, req.CoordinatorKey = []string{group}, group
		res, err := req.RequestWith(longPatience(t), admin)
		if err != nil {
			return err
		}
		if len(res.Coordinators) == 1 {
			broker = int(res.Coordinators[0].NodeID)
			return kerr.ErrorForCode(res.Coordinators[0].ErrorCode)
		}
		broker = int(res.NodeID)
		return kerr.ErrorForCode(res.ErrorCode)
	})
	return broker
}

// publishUntil publishes batches to each partition, numbered from 0 on. The function it gives ends that, and says how
// many of each partition were acknowledged.
func publishUntil(ctx context.Context, t *testing.T, work *conc.WaitGroup, c *streams.Client, stream string, partitions int) (end func() []int64) {
	enough := make(chan struct{})
	totals, longest := make([]int64, partitions), make([]time.Duration, partitions)
	p := c.NewProducer()
	var lanes conc.WaitGroup
	for partition := range partitions {
		lanes.Go(func() {
			for last := time.Now(); ; last = time.Now() {
				select {
				case <-enough:
					return
				case <-time.After(5 * time.Millisecond):
				}
				b := streamstest.Events(memory.DefaultAllocator, totals[partition], 5)
				_, err := p.Publish(ctx, stream, int32(partition), b)
				b.Record.Release()
				if err != nil {
					t.Errorf("publish to partition %d: %v", partition, err)
					return
				}
				totals[partition]++
				longest[partition] = max(longest[partition], time.Since(last))
			}
		})
	}
	work.Go(lanes.Wait)
	return func() []int64 {
		close(enough)
		lanes.Wait()
		s := c.Stats()
		t.Logf("publishing: %d retries, %d requests without an answer, %d new ids; the longest an append took, by partition: %v",
			s.Retries, s.Failures, s.NewIDs, longest)
		if s.NewIDs > 0 {
			t.Errorf("%d times a broker lost track of the producer", s.NewIDs)
		}
		return totals
	}
}

// passed is how far a group has come.
type passed struct {
	mu          sync.Mutex
	next        map[int32]int64
	assignments int
	again       int // batches that came a second time, after a commit that was not made
	wake        chan struct{}
}

// consume reads a stream in a group of two members that commit after every few batches.
func consume(ctx context.Context, t *testing.T, work *conc.WaitGroup, cl streamstest.Cluster, stream string) *passed {
	seen := &passed{next: map[int32]int64{}, wake: make(chan struct{}, 1)}
	group := streams.GroupConfig{ID: stream + ".group", Streams: []string{stream}, Heartbeat: 200 * time.Millisecond, SessionTimeout: 6 * time.Second}
	for range 2 {
		c := cl.Dial(t)
		work.Go(func() {
			err := c.Join(ctx, group, func(live context.Context, g *streams.Assignment) error {
				seen.mu.Lock()
				seen.assignments++
				seen.mu.Unlock()
				err := seen.read(live, c, g, stream, g.Committed()[stream].Offset)
				if err != nil && live.Err() == nil && !errors.Is(err, streams.ErrFenced) {
					t.Errorf("partition %d: %v", g.Partition(), err)
				}
				<-live.Done()
				return nil
			})
			if err != nil {
				t.Errorf("group: %v", err)
			}
		})
	}
	return seen
}

func (s *passed) read(ctx context.Context, c *streams.Client, g *streams.Assignment, stream string, offset int64) error {
	partition := g.Partition()
	r := c.NewReader(stream, partition, offset)
	defer r.Close()
	for {
		m, err := r.Next(ctx)
		if err != nil {
			return err
		}
		m.Batch.Record.Release()
		if m.Offset != offset || m.Batch.Lineage.Offset != offset {
			return fmt.Errorf("batch %d came at offset %d; want %d", m.Batch.Lineage.Offset, m.Offset, offset)
		}
		offset++
		s.mu.Lock()
		if m.Offset > s.next[partition] {
			s.mu.Unlock()
			return fmt.Errorf("a commit at %d passes over batches from %d on", m.Offset, s.next[partition])
		}
		if m.Offset < s.next[partition] {
			s.again++
		}
		s.next[partition] = max(s.next[partition], offset)
		s.mu.Unlock()
		select {
		case s.wake <- struct{}{}:
		default:
		}
		if offset%5 == 0 {
			if err := g.Commit(ctx, []streams.Commit{{Stream: stream, Partition: partition, Offset: offset}}); err != nil {
				return err
			}
		}
	}
}

// until waits until the group has passed that many batches of each partition.
func (s *passed) until(t *testing.T, totals []int64) {
	t.Helper()
	ctx := longPatience(t)
	for {
		s.mu.Lock()
		done := true
		for p, n := range totals {
			done = done && s.next[int32(p)] == n
		}
		next := fmt.Sprint(s.next)
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			t.Fatalf("the group has come to %s of %v", next, totals)
		}
	}
}
