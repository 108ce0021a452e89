// Package streamstest is the contract of package streams as tests: what a pipeline relies on, whatever cluster is on
// the other end.
package streamstest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc/pool"

	"hearthline/flow"
	"hearthline/streams"
)

// Patience bounds what a test waits for anything.
const Patience = 60 * time.Second

// Cluster is a cluster under test.
type Cluster struct {
	Brokers []string
	// Config changes how clients are made, if it is not nil.
	Config func(*streams.Config)
}

// Context ends with the test, or with Patience.
func Context(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Dial gives a client of the cluster that is closed with the test.
func (cl Cluster) Dial(t testing.TB) *streams.Client {
	t.Helper()
	cfg := streams.New()
	cfg.Brokers = cl.Brokers
	if cl.Config != nil {
		cl.Config(&cfg)
	}
	c, err := streams.Dial(Context(t), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Stream makes a stream of a name that nobody has used.
func Stream(t testing.TB, c *streams.Client, partitions int) string {
	t.Helper()
	name := Name("stream")
	if err := c.Ensure(Context(t), []streams.Spec{{Name: name, Partitions: partitions}}); err != nil {
		t.Fatal(err)
	}
	return name
}

// Name is like no other.
func Name(kind string) string { return kind + "-" + strings.ToLower(rand.Text()[:10]) }

// Events is a batch of rows whose numbers begin at offset, with a lineage of that offset.
func Events(mem memory.Allocator, offset int64, rows int) flow.Batch {
	b := flow.NewEventBuilder()
	at := flow.Micros(1_700_000_000_000_000 + offset*1_000_000)
	for i := range rows {
		b.Append(&flow.Event{
			Time: at + flow.Micros(i), Received: at + flow.Micros(i) + 500, Home: fmt.Sprint("home-", i%50), Device: fmt.Sprint("device-", i%211),
			Metric: []string{"temperature", "humidity", "motion"}[i%3], Value: 20 + float64(i%97)/10, HasValue: true, Unit: "°C",
			Seq: offset*1_000_000 + int64(i), HasSeq: i%10 != 0, Attributes: []flow.Attribute{{Name: "firmware", Value: "1.2"}},
		})
	}
	rec, bounds := b.Record()
	return flow.Batch{
		Kind: flow.KindRows, Record: rec, Bounds: bounds, Watermark: at,
		Lineage: flow.Lineage{Source: flow.Source{Producer: "test", Stream: "input", Partition: 3}, Position: flow.Position{Offset: offset, K: 1}},
	}
}

// Publish appends a batch of rows rows for each offset, all in one call, and releases them.
func Publish(t testing.TB, p *streams.Producer, stream string, partition int32, rows int, offsets ...int64) int64 {
	t.Helper()
	var batches []flow.Batch
	for _, o := range offsets {
		b := Events(memory.DefaultAllocator, o, rows)
		defer b.Record.Release()
		batches = append(batches, b)
	}
	at, err := p.Publish(Context(t), stream, partition, batches...)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// Lineages reads a partition from its first offset to the end it has now, and gives the lineage offsets it finds.
func Lineages(t testing.TB, c *streams.Client, stream string, partition int32) []int64 {
	t.Helper()
	ctx := Context(t)
	first, next, err := c.Bounds(ctx, stream, partition)
	if err != nil {
		t.Fatal(err)
	}
	r := c.NewReader(stream, partition, first)
	defer r.Close()
	var out []int64
	for at := first; at < next; {
		m, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("%s/%d at %d of %d: %v", stream, partition, at, next, err)
		}
		at = m.Offset + 1
		out = append(out, m.Batch.Lineage.Offset)
		if m.Batch.Record != nil {
			m.Batch.Record.Release()
		}
	}
	return out
}

// Contract runs every test of the contract.
func Contract(t *testing.T, cl Cluster) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Cluster)
	}{
		{"batches come back as they were", batchesComeBack},
		{"a call is one append", oneAppend},
		{"order of arrival", order},
		{"a reader waits for what comes", readerWaits},
		{"offsets out of range", outOfRange},
		{"a stream made anew is another", anew},
		{"streams that are missing or wrong", wrongStreams},
		{"batches too large", tooLarge},
		{"schemas are found by other clients", schemasFound},
		{"commits keep their metadata", commits},
		{"a fenced commit", fenced},
		{"members share the partitions", rebalance},
		{"who keeps a partition does not notice", kept},
		{"a member with a lasting name comes back at once", lastingName},
		{"handle ends the membership", handleEnds},
		{"notes are followed", notesFollowed},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, cl) })
	}
}

func batchesComeBack(t *testing.T, cl Cluster) {
	for _, compression := range []string{"none", "lz4", "zstd"} {
		mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
		c := Cluster{cl.Brokers, func(cfg *streams.Config) {
			if cl.Config != nil {
				cl.Config(cfg)
			}
			cfg.Compression, cfg.Memory = compression, mem
		}}.Dial(t)
		stream := Stream(t, c, 2)
		rows := Events(mem, 5, 3000)
		none := Events(mem, 6, 0)
		beat := flow.Batch{Kind: flow.KindHeartbeat, Lineage: rows.Lineage, Watermark: 77}
		end := flow.Batch{Kind: flow.KindEnd, Lineage: rows.Lineage, Watermark: flow.EndOfTime, Run: "run-1"}
		sent := []flow.Batch{rows, beat, none, end}
		if _, err := c.NewProducer().Publish(Context(t), stream, 1, sent...); err != nil {
			t.Fatal(err)
		}
		r := c.NewReader(stream, 1, 0)
		for i, want := range sent {
			m, err := r.Next(Context(t))
			if err != nil {
				t.Fatalf("%s: batch %d: %v", compression, i, err)
			}
			got := m.Batch
			if m.Offset != int64(i) || m.Stream != stream || m.Partition != 1 || m.Bytes <= 0 {
				t.Errorf("%s: batch %d came as %+v", compression, i, m)
			}
			if (want.Record == nil) != (got.Record == nil) || want.Record != nil && !array.RecordEqual(want.Record, got.Record) {
				t.Errorf("%s: batch %d: other rows", compression, i)
			}
			if want.Record != nil {
				want.Record.Release()
				got.Record.Release()
			}
			want.Record, got.Record = nil, nil
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s: batch %d: %s", compression, i, d)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := r.Next(Context(t)); !errors.Is(err, streams.ErrClosed) {
			t.Errorf("Next after Close: %v", err)
		}
		mem.AssertSize(t, 0)
	}
}

func oneAppend(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	stream := Stream(t, c, 1)
	p := c.NewProducer()
	if at := Publish(t, p, stream, 0, 3, 1, 2, 3); at != 0 {
		t.Errorf("the first append is at %d", at)
	}
	if at := Publish(t, p, stream, 0, 3, 4); at != 3 {
		t.Errorf("the second append is at %d; want 3", at)
	}
	bad := Events(memory.DefaultAllocator, 5, 1)
	defer bad.Record.Release()
	bad.Lineage.Producer = ""
	good := Events(memory.DefaultAllocator, 4, 1)
	defer good.Record.Release()
	if _, err := p.Publish(Context(t), stream, 0, good, bad); err == nil {
		t.Error("a batch without a producer was published")
	}
	if got := Lineages(t, c, stream, 0); !slices.Equal(got, []int64{1, 2, 3, 4}) {
		t.Errorf("the stream holds %v", got)
	}
}

func order(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	stream := Stream(t, c, 4)
	p := c.NewProducer()
	work := pool.New().WithErrors()
	for partition := range int32(4) {
		work.Go(func() error {
			for i := range int64(30) {
				b := Events(memory.DefaultAllocator, i, 20)
				_, err := p.Publish(Context(t), stream, partition, b)
				b.Record.Release()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	for partition := range int32(4) {
		got := Lineages(t, c, stream, partition)
		if len(got) != 30 || !slices.IsSorted(got) {
			t.Errorf("partition %d holds %v", partition, got)
		}
	}
	ends, err := c.Ends(Context(t), []string{stream})
	if err != nil || !slices.Equal(ends[stream], []int64{30, 30, 30, 30}) {
		t.Errorf("ends: %v, %v", ends, err)
	}
}

func readerWaits(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	stream := Stream(t, c, 1)
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	short, cancel := context.WithTimeout(Context(t), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next on an empty stream: %v", err)
	}
	p := c.NewProducer()
	Publish(t, p, stream, 0, 1, 0)
	var worst time.Duration
	for i := range int64(20) {
		m, err := r.Next(Context(t))
		if err != nil || m.Batch.Lineage.Offset != i {
			t.Fatal(m, err)
		}
		m.Batch.Record.Release()
		began := time.Now()
		Publish(t, p, stream, 0, 1, i+1)
		worst = max(worst, time.Since(began))
	}
	t.Log("slowest append:", worst)
}

func outOfRange(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	stream := Stream(t, c, 1)
	Publish(t, c.NewProducer(), stream, 0, 1, 1, 2, 3)
	r := c.NewReader(stream, 0, 99)
	defer r.Close()
	for range 2 {
		_, err := r.Next(Context(t))
		var out *streams.OutOfRangeError
		if !errors.Is(err, streams.ErrOutOfRange) || !errors.As(err, &out) || out.First != 0 || out.Next != 3 || out.Offset != 99 {
			t.Fatalf("read at 99 of 3: %v", err)
		}
	}
	first, next, err := c.Bounds(Context(t), stream, 0)
	if err != nil || first != 0 || next != 3 {
		t.Errorf("bounds: %d to %d, %v", first, next, err)
	}
}

func anew(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	one, two := Stream(t, c, 3), Stream(t, c, 3)
	a, err := c.Info(Context(t), one)
	if err != nil || a.Partitions != 3 || len(a.ID) != 32 {
		t.Fatalf("%+v, %v", a, err)
	}
	b, err := c.Info(Context(t), two)
	if err != nil || a.ID == b.ID {
		t.Errorf("two streams, one id: %v, %v", b, err)
	}
}

func wrongStreams(t *testing.T, cl Cluster) {
	c := cl.Dial(t)
	stream := Stream(t, c, 2)
	if err := c.Ensure(Context(t), []streams.Spec{{Name: stream, Partitions: 2}}); err != nil {
		t.Errorf("ensure twice: %v", err)
	}
	err := c.Ensure(Context(t), []streams.Spec{{Name: stream, Partitions: 5}})
	if err == nil || !strings.Contains(err.Error(), "has 2 partitions") || !strings.Contains(err.Error(), "says 5") {
		t.Errorf("another number of partitions: %v", err)
	}
	if _, err := c.Info(Context(t), "no-such-stream"); !errors.Is(err, streams.ErrNoStream) || !strings.Contains(err.Error(), "no-such-stream") {
		t.Errorf("info: %v", err)
	}
	r := c.NewReader("no-such-stream", 0, 0)
	defer r.Close()
	if _, err := r.Next(Context(t)); !errors.Is(err, streams.ErrNoStream) {
		t.Errorf("read: %v", err)
	}
	if _, err := c.NewProducer().Publish(Context(t), "no-such-stream", 0, flow.Batch{
		Kind: flow.KindHeartbeat, Lineage: flow.Lineage{Source: flow.Source{Producer: "p"}},
	}); !errors.Is(err, streams.ErrNoStream) {
		t.Errorf("publish: %v", err)
	}
	if err := c.Ensure(Context(t), []streams.Spec{{Name: "..", Partitions: 1}}); err == nil {
		t.Error("a name that Kafka does not take was taken")
	}
}

func tooLarge(t *testing.T, cl Cluster) {
	small := Cluster{cl.Brokers, func(cfg *streams.Config) {
		if cl.Config != nil {
			cl.Config(cfg)
		}
		cfg.Compression, cfg.MessageBytesMax = "none", 64<<10
	}}
	strict := small.Dial(t)
	stream := Stream(t, strict, 1) // takes messages of 64 KiB
	big := Events(memory.DefaultAllocator, 1, 5000)
	defer big.Record.Release()
	c := cl.Dial(t) // would send more
	for name, p := range map[string]*streams.Producer{"by the client": strict.NewProducer(), "by the broker": c.NewProducer()} {
		if _, err := p.Publish(Context(t), stream, 0, big); !errors.Is(err, streams.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		Publish(t, p, stream, 0, 10, 2) // and goes on
	}
	if got := Lineages(t, c, stream, 0); !slices.Equal(got, []int64{2, 2}) {
		t.Errorf("the stream holds %v", got)
	}
}

func schemasFound(t *testing.T, cl Cluster) {
	writer, reader := cl.Dial(t), cl.Dial(t)
	stream := Stream(t, writer, 1)
	p := writer.NewProducer()
	r := reader.NewReader(stream, 0, 0)
	defer r.Close()
	for i := range int64(3) {
		// A column that no schema has had before.
		b := Events(memory.DefaultAllocator, i, 4)
		cols := append(slices.Clone(b.Record.Columns()), b.Record.Column(0))
		fields := append(slices.Clone(b.Record.Schema().Fields()), flow.EventSchema.Field(0))
		fields[len(fields)-1].Name = Name("column")
		wide := b
		wide.Record = array.NewRecord(newSchema(fields), cols, 4)
		if _, err := p.Publish(Context(t), stream, 0, wide); err != nil {
			t.Fatal(err)
		}
		m, err := r.Next(Context(t))
		if err != nil {
			t.Fatal(err)
		}
		if !m.Batch.Record.Schema().Equal(wide.Record.Schema()) {
			t.Errorf("schema %v came as %v", wide.Record.Schema(), m.Batch.Record.Schema())
		}
		m.Batch.Record.Release()
		wide.Record.Release()
		b.Record.Release()
	}
}
