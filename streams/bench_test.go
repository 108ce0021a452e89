package streams_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/streams"
	"hearthline/streams/streamstest"
)

// The numbers worth comparing are those of one run on one machine: compressions with each other, batches of many rows
// with batches of few, published with read.

func BenchmarkPublish(b *testing.B) { overAll(b, benchPublish) }
func BenchmarkRead(b *testing.B)    { overAll(b, benchRead) }

func overAll(b *testing.B, f func(*testing.B, *streams.Client, string, int)) {
	for _, rows := range []int{1, 1000, 8192} {
		for _, compression := range []string{"none", "lz4", "zstd"} {
			b.Run(fmt.Sprintf("%d rows %s", rows, compression), func(b *testing.B) {
				c := streamstest.Cluster{Brokers: []string{start(b, nil)}, Config: func(c *streams.Config) { c.Compression = compression }}.Dial(b)
				stream := streamstest.Stream(b, c, 1)
				f(b, c, stream, rows)
				b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
				s := c.Stats()
				b.ReportMetric(float64(s.BytesOut)/float64(s.Batches)/float64(rows), "wire-B/row")
			})
		}
	}
}

func benchPublish(b *testing.B, c *streams.Client, stream string, rows int) {
	p, batch := c.NewProducer(), streamstest.Events(memory.DefaultAllocator, 1, rows)
	defer batch.Record.Release()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Publish(context.Background(), stream, 0, batch); err != nil {
			b.Fatal(err)
		}
	}
}

func benchRead(b *testing.B, c *streams.Client, stream string, rows int) {
	const stored = 64
	p, batch := c.NewProducer(), streamstest.Events(memory.DefaultAllocator, 1, rows)
	defer batch.Record.Release()
	for range stored {
		if _, err := p.Publish(context.Background(), stream, 0, batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	var r *streams.Reader
	left := 0
	for b.Loop() {
		if left == 0 {
			if r != nil {
				_ = r.Close()
			}
			r, left = c.NewReader(stream, 0, 0), stored
		}
		m, err := r.Next(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		m.Batch.Record.Release()
		left--
	}
	_ = r.Close()
}

// BenchmarkThere is the time from Publish to Next, through a broker.
func BenchmarkThere(b *testing.B) {
	c := streamstest.Cluster{Brokers: []string{start(b, nil)}}.Dial(b)
	stream := streamstest.Stream(b, c, 1)
	p := c.NewProducer()
	batch := streamstest.Events(memory.DefaultAllocator, 1, 100)
	defer batch.Record.Release()
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	for b.Loop() {
		if _, err := p.Publish(context.Background(), stream, 0, batch); err != nil {
			b.Fatal(err)
		}
		m, err := r.Next(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		m.Batch.Record.Release()
	}
}
