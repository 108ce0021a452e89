package cli

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"hearthline/cli/clitest"
	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
	"hearthline/streams/streamstest"
)

const sourcePipeline = `
pipeline: sourced
partitions: 4
kafka: {brokers: "%s"}
gateway: {to: raw}
sources:
  partner: {topic: partner.readings, brokers: "%s", home: key, device: "header:device", linger: 20ms}
sinks:
  parquet: {from: [raw, "*.dead"], settings: {to: "${HEARTHLINE_DATA}/parquet"}}
`

// A source is killed again and again while others write its topic: every message's row stands in the gateway's stream once,
// and every one that cannot be read in the dead letters once, by the rule that every reader follows.
func TestASourceThatIsKilledTakesEveryMessageOnce(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
		broker := c.StartBroker()
		defer broker.End(t)
		sourceIsKilled(t, c, c.Broker, 4)
	})
	t.Run("Apache Kafka", func(t *testing.T) {
		c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
		broker := c.StartBroker() // the pipeline's own; the topic is another cluster's
		defer broker.End(t)
		sourceIsKilled(t, c, apachetest.Start(t, apache.New())[0], 3)
	})
}

func sourceIsKilled(t *testing.T, c *clitest.Cluster, foreign string, kills int) {
	const messages, badEvery = 4000, 97
	seed := uint64(time.Now().UnixNano())
	dice := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	writer := foreignTopic(ctx, t, foreign)
	c.Write(fmt.Sprintf(sourcePipeline, c.Broker, foreign))
	source := c.Role("source", "partner", "--instance", "s1")
	written := make(chan error, 1)
	go func() {
		for n := range messages {
			r := &kgo.Record{Topic: "partner.readings", Key: fmt.Appendf(nil, "home%d", n%50), Headers: []kgo.RecordHeader{{Key: "device", Value: fmt.Appendf(nil, "d%d", n%7)}},
				Value: fmt.Appendf(nil, `{"metric":"power","value":1,"seq":%d}`, n)}
			if n%badEvery == 0 {
				r.Value = fmt.Appendf(nil, `{"metric":"power","seq":%d`, n)
			}
			writer.Produce(ctx, r, nil)
			if n%20 == 0 {
				time.Sleep(20 * time.Millisecond)
			}
		}
		written <- writer.Flush(ctx)
	}()
	for range kills {
		time.Sleep(time.Duration(300+dice.IntN(900)) * time.Millisecond)
		source.Kill()
		source = c.Role("source", "partner", "--instance", "s1")
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	own := streamstest.Cluster{Brokers: []string{c.Broker}}.Dial(t)
	deadline := time.Now().Add(time.Minute)
	for {
		rows, dead, dropped := takenOnce(ctx, t, own)
		if len(rows)+len(dead) >= messages {
			t.Logf("seed %d: %d batches stood there twice, and were dropped", seed, dropped)
			for n := range messages {
				if bad := n%badEvery == 0; bad && dead[n] != 1 || !bad && rows[n] != 1 {
					t.Errorf("seed %d: message %d: %d rows, %d dead letters", seed, n, rows[n], dead[n])
				}
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("seed %d: %d rows and %d dead letters of %d messages", seed, len(rows), len(dead), messages)
		}
		time.Sleep(200 * time.Millisecond)
	}
	source.Terminate()
}

// foreignTopic makes the topic, and a client that writes it compressed, as others do.
func foreignTopic(ctx context.Context, t *testing.T, broker string) *kgo.Client {
	t.Helper()
	w, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ProducerBatchCompression(kgo.GzipCompression()), kgo.ProducerLinger(5*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) { // it has only just been started
		if conn, err := net.Dial("tcp", broker); err == nil {
			conn.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	c := streamstest.Cluster{Brokers: []string{broker}}.Dial(t)
	if err := c.Ensure(ctx, []streams.Spec{{Name: "partner.readings", Partitions: 3}}); err != nil {
		t.Fatal(err)
	}
	return w
}

// takenOnce reads both streams from their beginning as every reader does: what is not above its source's mark is dropped.
func takenOnce(ctx context.Context, t *testing.T, c *streams.Client) (rows, dead map[int]int, dropped int) {
	t.Helper()
	rows, dead = map[int]int{}, map[int]int{}
	for _, stream := range []string{"raw", pipeline.SourceDead} {
		for p := range int32(4) {
			marks, watermarks := map[flow.Source]flow.Position{}, map[flow.Source]flow.Micros{}
			for m := range readStream(ctx, t, c, stream, p) {
				at := m.Batch.Lineage
				if last, ok := marks[at.Source]; ok && !at.Position.After(last) {
					dropped++
					continue
				}
				marks[at.Source] = at.Position
				if m.Batch.Watermark < watermarks[at.Source] {
					t.Errorf("%s/%d: the watermark of %v goes back", stream, p, at)
				}
				watermarks[at.Source] = m.Batch.Watermark
				countRows(t, &m.Batch, stream, rows, dead)
			}
		}
	}
	return rows, dead, dropped
}

func countRows(t *testing.T, b *flow.Batch, stream string, rows, dead map[int]int) {
	t.Helper()
	if b.Record == nil {
		return
	}
	if stream == pipeline.SourceDead {
		bodies, err := flow.StringsOf(b.Record, "body")
		if err != nil {
			t.Fatal(err)
		}
		for i := range int(b.Record.NumRows()) {
			n := 0
			body := bodies.Value(i)
			if _, err := fmt.Sscanf(body[strings.LastIndex(body, ":")+1:], "%d", &n); err != nil {
				t.Fatalf("dead letter %s: %v", body, err)
			}
			dead[n]++
		}
		return
	}
	e, err := flow.EventsOf(b.Record)
	if err != nil {
		t.Fatal(err)
	}
	for i := range e.Time {
		n := int(e.Seq.Value(i))
		rows[n]++
		if want := fmt.Sprintf("home%d d%d", n%50, n%7); e.Home.Value(i)+" "+e.Device.Value(i) != want {
			t.Errorf("message %d is of %s %s; want %s", n, e.Home.Value(i), e.Device.Value(i), want)
		}
		if e.Time[i] > e.Received[i] || flow.Micros(e.Received[i]) > b.Watermark {
			t.Errorf("message %d: time %d, received %d, watermark %d", n, e.Time[i], e.Received[i], b.Watermark)
		}
	}
}

// readStream gives what a partition holds now.
func readStream(ctx context.Context, t *testing.T, c *streams.Client, stream string, partition int32) func(func(streams.Message) bool) {
	return func(yield func(streams.Message) bool) {
		first, next, err := c.Bounds(ctx, stream, partition)
		if errors.Is(err, streams.ErrNoStream) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		r := c.NewReader(stream, partition, first)
		defer r.Close()
		for at := first; at < next; at++ {
			m, err := r.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			at = m.Offset
			ok := yield(m)
			if m.Batch.Record != nil {
				m.Batch.Record.Release()
			}
			if !ok {
				return
			}
		}
	}
}
