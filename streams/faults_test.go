package streams_test

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc"
	"github.com/sourcegraph/conc/pool"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"hearthline/streams"
	"hearthline/streams/streamstest"
)

// TestOnceUnderFaults publishes while leaders move, connections die and appends are answered by a timeout: every batch is
// in the stream exactly once, in order.
func TestOnceUnderFaults(t *testing.T) {
	const seed, partitions, each = 17, 3, 120
	cutter := &cutter{}
	cluster, addrs := startCluster(t, 3, kfake.ListenFn(cutter.listen))
	cl := streamstest.Cluster{Brokers: addrs, Config: func(c *streams.Config) { c.RequestTimeout = 2 * time.Second }}
	quiet := cl.Dial(t)
	stream := streamstest.Stream(t, quiet, partitions)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	cluster.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: stream, Err: kerr.RequestTimedOut, Count: -1,
		When: func(kmsg.Request) bool { mu.Lock(); defer mu.Unlock(); return rnd.IntN(10) == 0 },
	})
	c := cl.Dial(t)
	ctx, stop := context.WithCancel(streamstest.Context(t))
	var chaos conc.WaitGroup
	chaos.Go(func() {
		shuffled := time.NewTicker(23 * time.Millisecond)
		defer shuffled.Stop()
		cut := time.NewTicker(7 * time.Millisecond)
		defer cut.Stop()
		for {
			select {
			case <-shuffled.C:
				cluster.ShufflePartitionLeaders()
			case <-cut.C:
				cutter.cut()
			case <-ctx.Done():
				return
			}
		}
	})
	p := c.NewProducer()
	work := pool.New().WithErrors()
	for partition := range int32(partitions) {
		work.Go(func() error {
			for i := range int64(each) {
				b := streamstest.Events(memory.DefaultAllocator, i, 5)
				_, err := p.Publish(ctx, stream, partition, b)
				b.Record.Release()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := work.Wait()
	stop()
	chaos.Wait()
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	want := make([]int64, each)
	for i := range want {
		want[i] = int64(i)
	}
	for partition := range int32(partitions) {
		if got := streamstest.Lineages(t, quiet, stream, partition); !slices.Equal(got, want) {
			t.Errorf("seed %d: partition %d holds %d batches of %d: %v", seed, partition, len(got), each, got)
		}
	}
	s := c.Stats()
	t.Logf("%d retries, %d connections, %d requests without an answer, %d new ids", s.Retries, s.Connects, s.Failures, s.NewIDs)
	if s.Retries < each/10 {
		t.Errorf("only %d retries: were there faults?", s.Retries)
	}
	if s.NewIDs > 0 {
		t.Errorf("%d times the broker lost track of the producer", s.NewIDs)
	}
}

// TestColumnsAreWaitedFor: a broker that gives a reader messages, and cannot for a while be asked for their columns, is waited for
// as long as one that gives no messages.
func TestColumnsAreWaitedFor(t *testing.T) {
	t.Parallel()
	cluster, addrs := startCluster(t, 1)
	cl := streamstest.Cluster{Brokers: addrs}
	writer := cl.Dial(t)
	stream := streamstest.Stream(t, writer, 1)
	streamstest.Publish(t, writer.NewProducer(), stream, 0, 3, 0)
	var refused atomic.Int64
	begun := time.Now()
	cluster.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: streams.SchemaStream, Err: kerr.RequestTimedOut, Count: -1,
		When: func(kmsg.Request) bool {
			if time.Since(begun) > streams.RetryMax+2*time.Second {
				return false
			}
			refused.Add(1)
			return true
		},
	})
	r := cl.Dial(t).NewReader(stream, 0, 0)
	defer r.Close()
	wait, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := r.Next(wait); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the broker cannot be asked, a second's reading ended with %v", err)
	}
	m, err := r.Next(streamstest.Context(t))
	if err != nil {
		t.Fatalf("after %d refusals in %v: %v", refused.Load(), time.Since(begun), err)
	}
	defer m.Batch.Record.Release()
	if m.Batch.Record.NumRows() != 3 || refused.Load() < 5 || time.Since(begun) < streams.RetryMax {
		t.Errorf("%d rows after %d refusals in %v", m.Batch.Record.NumRows(), refused.Load(), time.Since(begun))
	}
}

// TestABrokerThatLags: a stream that was written, and that a broker does not know yet, is waited for; of one that nobody has written
// the same answer is believed, and is the only one that is asked for.
func TestABrokerThatLags(t *testing.T) {
	cluster, addrs := startCluster(t, 1)
	c := streamstest.Cluster{Brokers: addrs}.Dial(t)
	written, other := streamstest.Stream(t, c, 1), streamstest.Stream(t, c, 1)
	streamstest.Publish(t, c.NewProducer(), written, 0, 1, 0)
	lag := func(stream string) {
		cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: stream, Err: kerr.UnknownTopicOrPartition, Count: 3, When: func(r kmsg.Request) bool {
			return len(r.(*kmsg.MetadataRequest).Topics) == 2 // not the client's look at the whole cluster
		}})
	}
	for _, one := range []struct {
		lags string
		want []string
		asks int64
	}{{written, []string{written, other}, 4}, {other, []string{written}, 1}} {
		lag(one.lags)
		before := c.Stats().Metadata
		got, err := c.Extents(streamstest.Context(t), []string{written}, []string{other})
		if names := slices.Collect(maps.Keys(got)); err != nil || len(names) != len(one.want) || got[written].Next[0] != 1 {
			t.Errorf("with a broker that does not know %s: %v, %v; want %v", one.lags, got, err, one.want)
		}
		if asked := c.Stats().Metadata - before; asked != one.asks {
			t.Errorf("asked %d times while a broker did not know %s; want %d", asked, one.lags, one.asks)
		}
	}
}

// cutter listens for brokers and cuts the connections it accepted.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cutter) listen(network, addr string) (net.Listener, error) {
	l, err := listenLow(network, addr)
	return cutListener{l, c}, err
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}

type cutListener struct {
	net.Listener
	c *cutter
}

func (l cutListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.c.mu.Lock()
		l.c.conns = append(l.c.conns, conn)
		l.c.mu.Unlock()
	}
	return conn, err
}

// TestGivenUpIsNotTakenForTheNext: a request that its caller gave up may have been appended, or arrive late. The
// next one must not be taken for its repetition, which would lose it.
func TestGivenUpIsNotTakenForTheNext(t *testing.T) {
	cluster, addrs := startCluster(t, 1)
	c := streamstest.Cluster{Brokers: addrs}.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	p := c.NewProducer()
	streamstest.Publish(t, p, stream, 0, 1, 0)
	for i := range int64(5) {
		fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: stream, Err: kerr.RequestTimedOut, Count: -1})
		ctx, cancel := context.WithTimeout(streamstest.Context(t), 30*time.Millisecond)
		b := streamstest.Events(memory.DefaultAllocator, 100+i, 1)
		if _, err := p.Publish(ctx, stream, 0, b); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("publish without an answer: %v", err)
		}
		b.Record.Release()
		cancel()
		fault.Remove()
		streamstest.Publish(t, p, stream, 0, 1, i+1)
	}
	got := streamstest.Lineages(t, c, stream, 0)
	kept := slices.DeleteFunc(slices.Clone(got), func(o int64) bool { return o >= 100 })
	if !slices.Equal(kept, []int64{0, 1, 2, 3, 4, 5}) {
		t.Errorf("the stream holds %v", got)
	}
}

// TestForgottenProducer: a broker that lost a producer's state gets the batch under a new identity.
func TestForgottenProducer(t *testing.T) {
	cluster, addrs := startCluster(t, 1)
	c := streamstest.Cluster{Brokers: addrs}.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	p := c.NewProducer()
	for i, e := range []*kerr.Error{kerr.UnknownProducerID, kerr.OutOfOrderSequenceNumber, kerr.InvalidProducerEpoch} {
		cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: stream, Err: e})
		streamstest.Publish(t, p, stream, 0, 1, int64(i))
	}
	if got := streamstest.Lineages(t, c, stream, 0); !slices.Equal(got, []int64{0, 1, 2}) {
		t.Errorf("the stream holds %v", got)
	}
	if n := c.Stats().NewIDs; n != 3 {
		t.Errorf("%d new ids; want 3", n)
	}
}

// TestReaderUnderFaults reads while leaders move and fetches fail.
func TestReaderUnderFaults(t *testing.T) {
	const seed = 5
	cluster, addrs := startCluster(t, 3)
	c := streamstest.Cluster{Brokers: addrs, Config: func(c *streams.Config) { c.FetchBytesMax = 4 << 10 }}.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	p := c.NewProducer()
	for i := range int64(100) {
		streamstest.Publish(t, p, stream, 0, 20, i)
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	for _, e := range []*kerr.Error{kerr.NotLeaderForPartition, kerr.KafkaStorageError, kerr.UnknownTopicOrPartition, kerr.FencedLeaderEpoch} {
		cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: stream, Err: e, Count: 3, When: func(kmsg.Request) bool { return rnd.IntN(3) == 0 }})
	}
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	for i := range int64(100) {
		m, err := r.Next(streamstest.Context(t))
		if err != nil || m.Offset != i || m.Batch.Lineage.Offset != i {
			t.Fatalf("seed %d: message %d: %+v, %v", seed, i, m, err)
		}
		m.Batch.Record.Release()
		if i%10 == 0 {
			cluster.ShufflePartitionLeaders()
		}
	}
}

// TestCommitsUnderFaults: coordinators move and answer late.
func TestCommitsUnderFaults(t *testing.T) {
	cluster, addrs := startCluster(t, 3)
	c := streamstest.Cluster{Brokers: addrs}.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.SyncGroup, kmsg.OffsetCommit, kmsg.OffsetFetch} {
		for _, e := range []*kerr.Error{kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress} {
			cluster.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Group: "g", Err: e})
		}
	}
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: "g", Err: kerr.RequestTimedOut})
	ctx, cancel := context.WithCancel(streamstest.Context(t))
	defer cancel()
	err := c.Join(ctx, streams.GroupConfig{ID: "g", Streams: []string{stream}, Heartbeat: 50 * time.Millisecond}, func(ctx context.Context, g *streams.Assignment) error {
		defer cancel()
		return g.Commit(ctx, []streams.Commit{{Stream: stream, Offset: 9, Metadata: "x"}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Committed(streamstest.Context(t), "g", stream); err != nil || got[0] != (streams.Committed{Offset: 9, Metadata: "x"}) {
		t.Errorf("%v, %v", got, err)
	}
}
