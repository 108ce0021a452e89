package streams_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/sourcegraph/conc"
	"github.com/twmb/franz-go/pkg/kmsg"

	"hearthline/streams"
	"hearthline/streams/embedded"
	"hearthline/streams/streamstest"
)

// TestOneRequestUnderWay, on the embedded broker; TestApacheKafka has it, too.
func TestOneRequestUnderWay(t *testing.T) {
	between, serve := newMiddleman(t)
	serve(start(t, func(b *embedded.Broker) { b.Advertise = between.addr }))
	oneUnderWay(t, streamstest.Cluster{Brokers: []string{between.addr}}, between)
}

// oneUnderWay: while an append to a partition has no answer, a producer sends no other to it, however many of its callers want to; one
// to another partition goes on. Of two requests under way the second could be appended and the first not.
func oneUnderWay(t *testing.T, cl streamstest.Cluster, between *middleman) {
	c := cl.Dial(t)
	stream := streamstest.Stream(t, c, 2)
	p := c.NewProducer()
	streamstest.Publish(t, p, stream, 0, 1, 0) // with the schema and an identity
	streamstest.Publish(t, p, stream, 1, 1, 0)
	var mu sync.Mutex
	var seen [2]int
	holding, release := make(chan struct{}), make(chan struct{})
	count := func(partition int32) int { mu.Lock(); defer mu.Unlock(); return seen[partition] }
	between.setHold(func(api protocol.ApiKey, request []byte) {
		if api != protocol.Produce {
			return
		}
		to := partitionOf(t, request)
		mu.Lock()
		seen[to]++
		first := to == 0 && seen[to] == 1
		mu.Unlock()
		if first {
			close(holding)
			<-release
		}
	})
	defer between.setHold(nil)
	var work conc.WaitGroup
	defer work.Wait()
	var once sync.Once
	answer := func() { once.Do(func() { close(release) }) }
	defer answer() // also when the test fails
	publish := func(offset int64) {
		work.Go(func() {
			b := streamstest.Events(memory.DefaultAllocator, offset, 1)
			defer b.Record.Release()
			if _, err := p.Publish(streamstest.Context(t), stream, 0, b); err != nil {
				t.Errorf("append %d: %v", offset, err)
			}
		})
	}
	publish(1)
	select {
	case <-holding:
	case <-streamstest.Context(t).Done():
		t.Fatal("the broker saw no request")
	}
	publish(2)
	publish(3)
	const others = 20
	for i := range int64(others) { // meanwhile the other two have the time to do what they must not
		streamstest.Publish(t, p, stream, 1, 1, i+1)
		time.Sleep(10 * time.Millisecond)
	}
	if n := count(0); n != 1 {
		t.Errorf("the broker has seen %d requests for a partition, of which the first is not answered", n)
	}
	if n := count(1); n != others {
		t.Errorf("the broker has seen %d requests for the other partition; want %d", n, others)
	}
	answer()
	work.Wait()
	got := streamstest.Lineages(t, c, stream, 0)
	if n := count(0); n != 3 || len(got) != 4 || got[1] != 1 || !slices.Equal(slices.Sorted(slices.Values(got)), []int64{0, 1, 2, 3}) {
		t.Errorf("%d requests; the partition holds %v", n, got)
	}
}

// partitionOf is the partition that a Produce request is for.
func partitionOf(t *testing.T, request []byte) int32 {
	const head = 4 + 2 + 2 + 4 // length, API, version, correlation; then the client's name
	produce := kmsg.ProduceRequest{Version: int16(binary.BigEndian.Uint16(request[6:]))}
	err := produce.ReadFrom(request[head+2+int(binary.BigEndian.Uint16(request[head:])):])
	if err != nil || len(produce.Topics) != 1 || len(produce.Topics[0].Partitions) != 1 {
		t.Errorf("a Produce request of one partition: %v, %v", produce.Topics, err)
		return 0
	}
	return produce.Topics[0].Partitions[0].Partition
}

// keepsToCoordinator: commits are read from the broker that let the member into its generation, and no other is looked for: one that is
// cut off from the rest names the coordinator of before, which answers with commits of before. Where that broker is the coordinator
// no more, another generation comes first.
func keepsToCoordinator(t *testing.T, cl streamstest.Cluster, between *middleman) {
	c := cl.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	group := streams.GroupConfig{ID: stream + ".group", Streams: []string{stream}, Heartbeat: 20 * time.Millisecond, SessionTimeout: 6 * time.Second, RebalanceTimeout: 10 * time.Second}
	var mu sync.Mutex
	var seen []protocol.ApiKey
	moved := false // the next who reads commits is told that the coordinator has moved
	between.set(func(api protocol.ApiKey, body []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, api)
		if api == protocol.OffsetFetch && moved {
			moved = false
			binary.BigEndian.PutUint16(body[len(body)-2:], uint16(kafka.NotCoordinatorForGroup))
		}
		return true
	})
	defer between.set(nil)
	count := func(of []protocol.ApiKey, api protocol.ApiKey) (n int) {
		for _, a := range of {
			if a == api {
				n++
			}
		}
		return n
	}
	join := func(offset int64) (asked []protocol.ApiKey) {
		ctx, leave := context.WithCancel(streamstest.Context(t))
		defer leave()
		err := c.Join(ctx, group, func(live context.Context, g *streams.Assignment) error {
			defer leave()
			if got := g.Committed()[stream].Offset; got != offset {
				t.Errorf("committed is %d, want %d", got, offset)
			}
			if err := g.Commit(live, []streams.Commit{{Stream: stream, Offset: offset + 1}}); err != nil {
				t.Error(err)
			}
			for beats := 0; beats < 3 && live.Err() == nil; time.Sleep(time.Millisecond) {
				mu.Lock()
				asked = slices.Clone(seen)
				mu.Unlock()
				beats = count(asked, protocol.Heartbeat)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return asked
	}
	join(0) // a broker that has never had a group takes its time
	for i, want := range []struct{ finds, syncs, reads int }{{1, 1, 1}, {2, 2, 2}} {
		mu.Lock()
		seen, moved = nil, i == 1
		mu.Unlock()
		got := join(int64(i + 1))
		if finds, syncs, reads := count(got, protocol.FindCoordinator), count(got, protocol.SyncGroup), count(got, protocol.OffsetFetch); finds != want.finds ||
			syncs != want.syncs || reads != want.reads || count(got, protocol.Heartbeat) == 0 || count(got, protocol.OffsetCommit) != 1 {
			t.Errorf("membership %d: the broker was asked %v: want %+v, heartbeats and one commit", i, got, want)
		}
	}
}

// leaderOfBefore: a broker that was cut off from the others still answers readers, as if what came since had never been. They go on where
// they were once they reach the one that leads now.
func leaderOfBefore(t *testing.T, cl streamstest.Cluster, between *middleman) {
	c := cl.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	p := c.NewProducer()
	streamstest.Publish(t, p, stream, 0, 1, 0, 1, 2)
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	next := func(offset int64) {
		t.Helper()
		m, err := r.Next(streamstest.Context(t))
		if err != nil || m.Offset != offset {
			t.Fatalf("at %d: %+v, %v", offset, m, err)
		}
		m.Batch.Record.Release()
	}
	for offset := range int64(3) {
		next(offset)
	}
	be := binary.BigEndian
	var fetches, ends atomic.Int64
	between.set(func(api protocol.ApiKey, body []byte) bool {
		name := bytes.Index(body, []byte(stream))
		if name < 0 {
			return true
		}
		of := body[name+len(stream)+4+4:] // one partition, its number
		switch api {
		case protocol.Fetch:
			be.PutUint16(of, uint16(kafka.OffsetOutOfRange))
			fetches.Add(1)
		case protocol.ListOffsets:
			if offset := of[2+8:]; be.Uint64(offset) > 0 { // not the first that is kept
				be.PutUint64(offset, 1)
				ends.Add(1)
			}
		}
		return true
	})
	defer between.set(nil)
	streamstest.Publish(t, p, stream, 0, 1, 3) // answers the fetch under way
	for late := time.Now().Add(streamstest.Patience); ends.Load() < 5; time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("%d fetches were refused, and the end was asked for %d times", fetches.Load(), ends.Load())
		}
	}
	between.set(nil)
	next(3)
}
