package streams_test

import (
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/sourcegraph/conc"
	"github.com/twmb/franz-go/pkg/kmsg"

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
