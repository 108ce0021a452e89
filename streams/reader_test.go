package streams_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go"
	"github.com/sourcegraph/conc"
	"github.com/twmb/franz-go/pkg/kgo"

	"hearthline/streams"
	"hearthline/streams/streamstest"
)

// foreign writes messages as any other Kafka program might.
func foreign(t *testing.T, addr, stream string, compression kafka.Compression, msgs ...kafka.Message) {
	t.Helper()
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	w := &kafka.Writer{Addr: kafka.TCP(addr), Topic: stream, BatchSize: len(msgs), RequiredAcks: kafka.RequireAll, Compression: compression, Transport: transport}
	if err := w.WriteMessages(streamstest.Context(t), msgs...); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestForeignMessages: each is one DecodeError that says where and why, and reading goes on.
func TestForeignMessages(t *testing.T) { foreignMessages(t, start(t, nil)) }

func foreignMessages(t *testing.T, addr string) {
	c := streamstest.Cluster{Brokers: []string{addr}}.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	p := c.NewProducer()
	streamstest.Publish(t, p, stream, 0, 3, 0)
	head := func(key string, value ...byte) kafka.Header { return kafka.Header{Key: key, Value: value} }
	rows := func(body ...byte) []kafka.Header {
		return []kafka.Header{
			head("hl.kind", 1, 0), head("hl.producer", 'p'), head("hl.at", make([]byte, 16)...), head("hl.time", make([]byte, 24)...),
			head("hl.schema", 1, 2, 3, 4, 5, 6, 7, 8), head("hl.body", body...),
		}
	}
	msgs := []kafka.Message{
		{Value: []byte(`{"json":true}`)},
		{Headers: []kafka.Header{head("hl.kind", 77, 0)}},
		{Headers: rows(0, 0, 0, 0, 1, 0, 0, 0, 3), Value: []byte("abc")},
		{Headers: rows(1, 0, 0, 0, 1, 0x7f, 0, 0, 0), Value: []byte("abc")},
	}
	want := []string{"something else writes", "wire format 77", "schema 0102030405060708 is not in", "claim to be 1 rows"}
	for compression := range kafka.Compression(5) {
		foreign(t, addr, stream, compression, msgs...)
		streamstest.Publish(t, p, stream, 0, 3, int64(compression)+1)
	}
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	ctx := streamstest.Context(t)
	good, offset := int64(0), int64(0)
	for good < 6 {
		m, err := r.Next(ctx)
		var bad *streams.DecodeError
		switch {
		case err == nil:
			if m.Batch.Lineage.Offset != good || m.Offset != offset {
				t.Fatalf("batch %d came as %+v", good, m)
			}
			m.Batch.Record.Release()
			good++
		case errors.As(err, &bad):
			if w := want[(offset-1)%5]; bad.Offset != offset || bad.Stream != stream || !strings.Contains(err.Error(), w) {
				t.Errorf("at %d: %v; want it to say %q", offset, err, w)
			}
		default:
			t.Fatal(err)
		}
		offset++
	}
	if s := c.Stats(); s.Bad != 20 {
		t.Errorf("%d bad messages counted; want 20", s.Bad)
	}
}

// TestNewerBatchesStopTheReader: a batch of a newer version is neither passed over nor taken for damaged.
func TestNewerBatchesStopTheReader(t *testing.T) {
	addr := start(t, nil)
	c := streamstest.Cluster{Brokers: []string{addr}}.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	streamstest.Publish(t, c.NewProducer(), stream, 0, 3, 0)
	foreign(t, addr, stream, 0, kafka.Message{Headers: []kafka.Header{{Key: "hl.kind", Value: []byte{2, 0}}}})
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	m, err := r.Next(streamstest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	m.Batch.Record.Release()
	for range 2 { // it comes again: nothing is skipped
		_, err = r.Next(streamstest.Context(t))
		var bad *streams.DecodeError
		if !errors.Is(err, streams.ErrNewer) || errors.As(err, &bad) {
			t.Fatalf("a batch of format 2 gave %v", err)
		}
	}
}

// TestAbortedTransactions: their messages, and the markers, are not seen.
func TestAbortedTransactions(t *testing.T) { abortedTransactions(t, start(t, nil)) }

func abortedTransactions(t *testing.T, addr string) {
	c := streamstest.Cluster{Brokers: []string{addr}}.Dial(t)
	stream, source := streamstest.Stream(t, c, 1), streamstest.Stream(t, c, 1)
	p := c.NewProducer()
	// Copies of our own messages, as another program would make them within transactions.
	streamstest.Publish(t, p, source, 0, 3, 0, 1, 2, 3, 4, 5)
	in, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ConsumeTopics(source))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	ctx := streamstest.Context(t)
	var records []*kgo.Record
	for len(records) < 6 {
		records = append(records, in.PollFetches(ctx).Records()...)
	}
	out, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.TransactionalID("copier"), kgo.DefaultProduceTopic(stream))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for i, r := range records {
		if err := out.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := out.ProduceSync(ctx, &kgo.Record{Value: r.Value, Headers: r.Headers}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		streamstest.Publish(t, p, stream, 0, 1, int64(100+i)) // in between
		if err := out.EndTransaction(ctx, kgo.TransactionEndTry(i%2 == 0)); err != nil {
			t.Fatal(err)
		}
	}
	streamstest.Publish(t, p, stream, 0, 1, 200)
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	var got []int64
	for len(got) == 0 || got[len(got)-1] != 200 {
		m, err := r.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Batch.Lineage.Offset)
		m.Batch.Record.Release()
	}
	if want := []int64{0, 100, 101, 2, 102, 103, 4, 104, 105, 200}; !slices.Equal(got, want) {
		t.Errorf("read %v; want %v", got, want)
	}
	if n := c.Stats().Aborted; n != 3 {
		t.Errorf("%d messages of aborted transactions counted; want 3", n)
	}
}

// TestCloseWhileNextBlocks: Close ends a Next that waits.
func TestCloseWhileNextBlocks(t *testing.T) {
	c := streamstest.Cluster{Brokers: []string{start(t, nil)}}.Dial(t)
	r := c.NewReader(streamstest.Stream(t, c, 1), 0, 0)
	var got error
	var work conc.WaitGroup
	work.Go(func() { _, got = r.Next(streamstest.Context(t)) })
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	work.Wait()
	if !errors.Is(got, streams.ErrClosed) {
		t.Errorf("Next: %v", got)
	}
}
