package run

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/sourcegraph/conc"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/streams"
	"hearthline/streams/embedded"
)

// shelf is a sink that several members share. Writing a range twice equals writing it once, and must be the same.
type shelf struct {
	mu   sync.Mutex
	held map[flow.Range][]int64
	rows int
}

func (s *shelf) Write(_ context.Context, r flow.Range, recs []arrow.Record) error {
	var values []int64
	for _, rec := range recs {
		values = append(values, valuesOf(rec)...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before, again := s.held[r]
	if again && !slices.Equal(before, values) {
		return fmt.Errorf("range %v held %v and is written again with %v", r, before, values)
	}
	if !again {
		s.held[r] = values
		s.rows += len(values)
	}
	return nil
}

func (s *shelf) count() int { s.mu.Lock(); defer s.mu.Unlock(); return s.rows }

// of gives what is held of a partition of a stream, in the order of its ranges.
func (s *shelf) of(t *testing.T, stream string, partition int32) (values []int64) {
	var ranges []flow.Range
	for r := range s.held {
		if r.Stream == stream && r.Partition == partition {
			ranges = append(ranges, r)
		}
	}
	slices.SortFunc(ranges, func(a, b flow.Range) int { return int(a.First - b.First) })
	for i, r := range ranges {
		if i > 0 && r.First <= ranges[i-1].Last {
			t.Errorf("ranges overlap: %v and %v", ranges[i-1], r)
		}
		values = append(values, s.held[r]...)
	}
	return values
}

// broker starts an embedded broker that ends with the test.
func broker(t testing.TB) (address string) {
	t.Helper()
	ready := make(chan string, 1)
	b := embedded.New()
	b.Addr, b.Ready = "127.0.0.1:0", func(at string) { ready <- at }
	ctx, cancel := context.WithCancel(context.Background())
	var work conc.WaitGroup
	work.Go(func() {
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); work.Wait() })
	select {
	case at := <-ready:
		return at
	case <-time.After(30 * time.Second):
		t.Fatal("the broker does not start")
		return ""
	}
}

// Members of a pipeline come and go while rows flow, over a real broker: partitions change hands with state, marks and
// intents. Every partition's running sum goes through all its numbers, in order and once, in a sink shared by all.
func TestMembersComeAndGoUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("rebalances take seconds")
	}
	membersComeAndGo(t, broker(t))
}

func membersComeAndGo(t *testing.T, address string) {
	const partitions, batches, rowsABatch = 4, 400, 3
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	store, err := blobs.Dir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	held := &shelf{held: map[flow.Range][]int64{}}
	plan := testPlan()
	plan.Spec.Partitions, plan.Spec.Checkpoint = partitions, 50*time.Millisecond
	plan.Sinks[0].Streams = []string{"sums"}
	plan.Sinks[0].New = func() flow.Sink { return held }
	c := streams.New()
	c.Brokers = []string{address}

	var wait conc.WaitGroup
	defer wait.Wait()
	defer cancel()
	member := func() (leave context.CancelFunc) {
		client, err := streams.Dial(ctx, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &Runner{Plan: plan, Client: client, Store: store, Log: slog.New(slog.DiscardHandler), Meter: NewMeter()}
		if err := r.Ensure(ctx); err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(ctx)
		run := func(f func(context.Context, string) error, node string) {
			wait.Go(func() {
				if err := f(ctx, node); err != nil && ctx.Err() == nil {
					t.Errorf("%s ended: %v", node, err)
				}
			})
		}
		run(r.Sink, "keep")
		run(r.Unit, "sieve")
		run(r.Unit, "sum+bell")
		return leave
	}
	until := func(rows int) {
		t.Helper()
		for held.count() < rows {
			if ctx.Err() != nil {
				t.Fatalf("%d rows of %d are held", held.count(), rows)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}

	first := member()
	client, err := streams.Dial(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	wait.Go(func() { // the gateway
		p := client.NewProducer()
		for i := range int64(batches) {
			for partition := range int32(partitions) {
				b := flow.Batch{Watermark: flow.Micros(i), Record: numbersOf(slices.Repeat([]int64{1}, rowsABatch))}
				b.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0", Partition: partition}, Position: flow.Position{Offset: i}}
				if _, err := p.Publish(ctx, "raw", partition, b); err != nil {
					t.Errorf("publish: %v", err)
					return
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	all := partitions * batches * rowsABatch
	until(all / 10)
	member()
	until(all / 3)
	first()
	until(all / 2)
	member()
	until(all)
	time.Sleep(500 * time.Millisecond) // whatever comes twice comes now
	cancel()
	wait.Wait()
	for p := range int32(partitions) {
		got := held.of(t, "sums", p)
		for i, v := range got {
			if v != int64(i+1) {
				t.Fatalf("partition %d: row %d is %d", p, i, v)
			}
		}
		if len(got) != batches*rowsABatch {
			t.Errorf("partition %d: %d rows; want %d", p, len(got), batches*rowsABatch)
		}
	}
}
