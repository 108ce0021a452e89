package streams_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/segmentio/kafka-go/protocol"

	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
	"hearthline/streams/streamstest"
)

// TestApacheKafka is what the embedded broker's tests promise, on one broker of Apache Kafka, and what only a real
// log on disk and answers that are lost on the way can show.
func TestApacheKafka(t *testing.T) {
	t.Parallel() // most of it is waiting
	between, serve := newMiddleman(t)
	c := apache.New()
	c.Dir, c.Advertised = t.TempDir(), []string{between.addr}
	c.Addrs = []string{freeAddr(t)}
	serve(c.Addrs[0])
	apachetest.Start(t, c)
	cl := streamstest.Cluster{Brokers: []string{between.addr}}
	t.Run("contract", func(t *testing.T) { streamstest.Contract(t, cl) })
	t.Run("old and new members", func(t *testing.T) { oldAndNew(t, cl) })
	t.Run("upkeep", func(t *testing.T) { streamstest.Upkeep(t, cl) })
	t.Run("foreign messages", func(t *testing.T) { foreignMessages(t, between.addr) })
	t.Run("aborted transactions", func(t *testing.T) { abortedTransactions(t, between.addr) })
	t.Run("answers are lost", func(t *testing.T) { answersLost(t, cl, between) })
	t.Run("one request under way", func(t *testing.T) { oneUnderWay(t, cl, between) })
	t.Run("a member keeps to its coordinator", func(t *testing.T) { keepsToCoordinator(t, cl, between) })
	t.Run("a leader of before answers", func(t *testing.T) { leaderOfBefore(t, cl, between) })
	t.Run("given up, not taken for the next", func(t *testing.T) { givenUp(t, cl, between) })
	t.Run("damaged on the way", func(t *testing.T) { damagedOnTheWay(t, cl, between) })
	t.Run("damaged on disk", func(t *testing.T) { damagedOnDisk(t, cl, filepath.Join(c.Dir, "broker-1", "data")) })
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := listenLow("tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// answersLost: appends whose answers never come are sent again, and the log has each batch once. That is the
// broker's knowledge of the producer at work: no lineage is looked at.
func answersLost(t *testing.T, cl streamstest.Cluster, between *middleman) {
	const seed, batches = 23, 60
	c := streamstest.Cluster{Brokers: cl.Brokers, Config: func(c *streams.Config) { c.RequestTimeout = 300 * time.Millisecond }}.Dial(t)
	quiet := cl.Dial(t)
	stream := streamstest.Stream(t, quiet, 1)
	p := c.NewProducer()
	streamstest.Publish(t, p, stream, 0, 1, 0) // with the schema
	rnd := rand.New(rand.NewPCG(seed, 0))
	lost := 0
	between.set(func(api protocol.ApiKey, _ []byte) bool {
		if api != protocol.Produce || rnd.IntN(5) > 0 {
			return true
		}
		lost++
		return false
	})
	for i := range int64(batches - 1) {
		streamstest.Publish(t, p, stream, 0, 3, i+1)
	}
	between.set(nil)
	_, end, err := quiet.Bounds(streamstest.Context(t), stream, 0)
	if err != nil || end != batches {
		t.Errorf("seed %d: the log has %d batches (%v); want %d", seed, end, err, batches)
	}
	if got := streamstest.Lineages(t, quiet, stream, 0); len(got) != batches || !slices.IsSorted(got) {
		t.Errorf("seed %d: the log holds %v", seed, got)
	}
	s := c.Stats()
	t.Logf("%d of %d answers lost, %d retries, %d new ids", lost, batches-1, s.Retries, s.NewIDs)
	if lost < 5 || s.NewIDs > 0 {
		t.Errorf("seed %d: %d answers lost, %d new ids; want some lost, and no new id", seed, lost, s.NewIDs)
	}
}

// givenUp: a request that its caller gave up has been appended. The next one goes under a new epoch, which the broker
// takes, and is not answered as a repetition of the first.
func givenUp(t *testing.T, cl streamstest.Cluster, between *middleman) {
	c := cl.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	p := c.NewProducer()
	streamstest.Publish(t, p, stream, 0, 1, 0)
	for i := range int64(3) {
		between.set(func(api protocol.ApiKey, _ []byte) bool { return api != protocol.Produce })
		ctx, cancel := context.WithTimeout(streamstest.Context(t), 200*time.Millisecond)
		b := streamstest.Events(memory.DefaultAllocator, 100+i, 1)
		if _, err := p.Publish(ctx, stream, 0, b); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("publish without an answer: %v", err)
		}
		b.Record.Release()
		cancel()
		between.set(nil)
		streamstest.Publish(t, p, stream, 0, 1, i+1)
	}
	if got := streamstest.Lineages(t, c, stream, 0); !slices.Equal(got, []int64{0, 100, 1, 101, 2, 102, 3}) {
		t.Errorf("the stream holds %v", got)
	}
	if s := c.Stats(); s.NewIDs > 0 {
		t.Errorf("%d new ids", s.NewIDs)
	}
}

// damagedOnTheWay: a bit that flips between broker and reader is found by the checksum, and the batch fetched again.
func damagedOnTheWay(t *testing.T, cl streamstest.Cluster, between *middleman) {
	c := cl.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	streamstest.Publish(t, c.NewProducer(), stream, 0, 50, 0, 1, 2)
	damaged := false
	between.set(func(api protocol.ApiKey, body []byte) bool {
		if api == protocol.Fetch && len(body) > 2000 && !damaged {
			damaged = true
			body[len(body)-100] ^= 0x10
		}
		return true
	})
	defer between.set(nil)
	if got := streamstest.Lineages(t, c, stream, 0); !slices.Equal(got, []int64{0, 1, 2}) || !damaged {
		t.Errorf("damaged: %v; read %v", damaged, got)
	}
}

// damagedOnDisk: a bit that flipped in the broker's file costs its record batch alone, with an error that says so.
func damagedOnDisk(t *testing.T, cl streamstest.Cluster, data string) {
	c := cl.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	p := c.NewProducer()
	var sizes []int64
	path := filepath.Join(data, stream+"-0", "00000000000000000000.log")
	for i := range int64(3) {
		streamstest.Publish(t, p, stream, 0, 50, i)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, info.Size())
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	at := sizes[1] - 50 // in the second batch
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	for offset := range int64(3) {
		m, err := r.Next(streamstest.Context(t))
		var bad *streams.DecodeError
		switch {
		case offset == 1:
			if !errors.As(err, &bad) || bad.Offset != 1 {
				t.Errorf("the damaged batch: %v", err)
			} else {
				t.Log(err)
			}
		case err != nil || m.Offset != offset:
			t.Fatalf("at %d: %+v, %v", offset, m, err)
		default:
			m.Batch.Record.Release()
		}
	}
}
