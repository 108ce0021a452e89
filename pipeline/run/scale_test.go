package run

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
)

// Limits of the test. What is promised is held in the median of the partitions of a step, beyond what they paused for when nothing was
// changed: machines that run tests have other work. The worst of them may take longer.
const (
	pausePromise = 500 * time.Millisecond
	pauseMax     = 3 * time.Second
)

// listener reads what a partition of a stream comes to, and notes the longest time in which nothing new came.
type listener struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
	sum     int64
	batches int
	again   int
}

func (l *listener) listen(ctx context.Context, r *streams.Reader) error {
	marks := newMarks()
	for {
		msg, err := r.Next(ctx)
		if err != nil {
			return err
		}
		if msg.Batch.Record == nil {
			continue
		}
		fresh := marks.take(&msg.Batch)
		values := valuesOf(msg.Batch.Record)
		l.mu.Lock()
		now := time.Now()
		if !fresh {
			l.again++
		} else {
			if !l.last.IsZero() {
				l.longest = max(l.longest, now.Sub(l.last))
			}
			l.last = now
			l.batches++
			for _, v := range values {
				if v != l.sum+1 {
					err = fmt.Errorf("offset %d: the running sum goes from %d to %d: state did not follow its partition", msg.Offset, l.sum, v)
				}
				l.sum = v
			}
		}
		l.mu.Unlock()
		msg.Batch.Record.Release()
		if err != nil {
			return err
		}
	}
}

// lap gives the longest pause since the last call.
func (l *listener) lap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	longest := l.longest
	l.longest = 0
	return longest
}

func (l *listener) count() int { l.mu.Lock(); defer l.mu.Unlock(); return l.batches }

// A stage with state is scaled from one member to two, to four and back to one while rows flow steadily. Every partition's
// running sum goes through all its numbers, once, in order: nothing is lost or doubled, and state follows its partition.
// Between two results of a partition there is never a pause much above the promise, and in most partitions none above it.
func TestScaleUpAndDownUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("rebalances take seconds")
	}
	t.Run("embedded", func(t *testing.T) { scale(t, broker(t)) })
	t.Run("apache", func(t *testing.T) { scale(t, apachetest.Start(t, apache.New())[0]) })
}

// scaled is a pipeline whose stage "sum" runs in a number of members that changes.
type scaled struct {
	t         *testing.T
	ctx       context.Context
	config    streams.Config
	store     blobs.Store
	work      conc.WaitGroup
	members   []context.CancelFunc
	listeners []*listener
}

const scalePartitions = 4

func (s *scaled) dial() *streams.Client {
	s.t.Helper()
	client, err := streams.Dial(s.ctx, s.config, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return client
}

// to brings the number of members to n, as an autoscaler would: all at once.
func (s *scaled) to(n int) {
	s.t.Helper()
	for len(s.members) > n {
		last := len(s.members) - 1
		s.members[last]()
		s.members = s.members[:last]
	}
	for len(s.members) < n {
		plan := testPlan()
		plan.Spec.Partitions, plan.Spec.Checkpoint = scalePartitions, time.Second
		r := &Runner{Plan: plan, Client: s.dial(), Store: s.store, Log: slog.New(slog.DiscardHandler), Meter: NewMeter()}
		if err := r.Ensure(s.ctx); err != nil {
			s.t.Fatal(err)
		}
		ctx, leave := context.WithCancel(s.ctx)
		s.members = append(s.members, leave)
		s.work.Go(func() {
			if err := r.Unit(ctx, "sum+bell"); err != nil && ctx.Err() == nil {
				s.t.Errorf("a member ended: %v", err)
			}
		})
	}
}

// feed publishes a batch to each partition every few milliseconds until ctx ends, and gives how many to each.
func (s *scaled) feed(ctx context.Context) (batches int64) {
	p := s.dial().NewProducer()
	for tick := time.NewTicker(10 * time.Millisecond); ctx.Err() == nil; <-tick.C {
		for partition := range int32(scalePartitions) {
			b := flow.Batch{Watermark: flow.Micros(batches), Record: numbersOf([]int64{1, 1, 1})}
			b.Lineage = flow.Lineage{Source: flow.Source{Producer: "sieve", Partition: partition}, Position: flow.Position{Offset: batches}}
			if _, err := p.Publish(s.ctx, "good", partition, b); err != nil {
				s.t.Errorf("publish: %v", err)
				return batches
			}
		}
		batches++
	}
	return batches
}

// pauses lets rows flow for a while and gives the median of the partitions' longest pauses, which is at most medianMax.
func (s *scaled) pauses(what string, medianMax time.Duration) (median time.Duration) {
	time.Sleep(3 * time.Second)
	var all []time.Duration
	for _, l := range s.listeners {
		all = append(all, l.lap().Round(time.Millisecond))
	}
	inOrder := slices.Sorted(slices.Values(all))
	median = (inOrder[(len(all)-1)/2] + inOrder[len(all)/2]) / 2
	s.t.Logf("%s: median pause %v, longest of each partition %v", what, median, all)
	if median > medianMax || slices.Max(all) > pauseMax {
		s.t.Errorf("%s: partitions paused for %v: the median is above %v, or the worst above %v", what, all, medianMax, pauseMax)
	}
	return median
}

func scale(t *testing.T, address string) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	store, err := blobs.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &scaled{t: t, ctx: ctx, config: streams.New(), store: store}
	s.config.Brokers = []string{address}
	defer s.work.Wait()
	defer cancel()
	s.to(1)
	client := s.dial()
	for p := range int32(scalePartitions) {
		l := &listener{}
		s.listeners = append(s.listeners, l)
		s.work.Go(func() {
			r := client.NewReader("sums", p, 0)
			defer r.Close()
			if err := l.listen(ctx, r); err != nil && ctx.Err() == nil {
				t.Errorf("partition %d: %v", p, err)
			}
		})
	}
	feeding, enough := context.WithCancel(ctx)
	fed := make(chan int64, 1)
	s.work.Go(func() { fed <- s.feed(feeding) })
	for s.listeners[scalePartitions-1].count() < 10 {
		if ctx.Err() != nil {
			t.Fatal("nothing flows")
		}
		time.Sleep(10 * time.Millisecond)
	}
	still := s.pauses("1 member", pauseMax)
	s.to(2)
	s.pauses("1 to 2", still+pausePromise)
	s.to(4)
	s.pauses("2 to 4", still+pausePromise)
	s.to(1)
	s.pauses("4 to 1", still+pausePromise)
	enough()
	want := <-fed
	for p, l := range s.listeners {
		for l.count() < int(want) && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		l.mu.Lock()
		if l.sum != 3*want || l.batches != int(want) {
			t.Errorf("partition %d: %d batches, sum %d; fed were %d batches, sum %d", p, l.batches, l.sum, want, 3*want)
		}
		t.Logf("partition %d: %d batches, %d of them came again and were dropped", p, l.batches, l.again)
		l.mu.Unlock()
	}
}
