package streams_test

import (
	"context"
	"testing"
	"time"

	"hearthline/streams"
	"hearthline/streams/streamstest"
)

// TestSilentBroker: one of the addresses lets itself be connected to and never answers, as a frozen process does. It is
// asked once, not at every other turn: questions that others can answer do not wait for it.
func TestSilentBroker(t *testing.T) {
	silent, err := listenLow("tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	asked := make(chan struct{}, 1000)
	go func() {
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			asked <- struct{}{}
			defer conn.Close()
		}
	}()
	cluster, addrs := startCluster(t, 2)
	cfg := streams.New()
	cfg.Brokers, cfg.RequestTimeout = append(addrs, silent.Addr().String()), 4*time.Second
	c, err := streams.Dial(streamstest.Context(t), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stream := streamstest.Stream(t, c, 1)
	p := c.NewProducer()
	const moves = 30
	begun := time.Now()
	for i := range int64(moves) {
		streamstest.Publish(t, p, stream, 0, 1, i)
		if err := cluster.MoveTopicPartition(stream, 0, int32(i%2)); err != nil { // so that who leads is asked anew
			t.Fatal(err)
		}
	}
	// By chance a third of the questions would go to the silent one, and each cost half the request's timeout.
	t.Logf("%d appends, each after a move, in %v; the silent broker was asked %d times", moves, time.Since(begun).Round(time.Millisecond), len(asked))
	// Asking costs 2 s and leaves it alone for 3 s; asked by chance it would be every 2 s.
	if n, most := len(asked), 3+int(time.Since(begun)/(4*time.Second)); n == 0 || n > most {
		t.Errorf("the silent broker was asked %d times; want some, and at most %d", n, most)
	}
}

// TestCallersHaste: a caller that gives up after a moment says nothing of the broker.
func TestCallersHaste(t *testing.T) {
	addr := start(t, nil)
	c := streamstest.Cluster{Brokers: []string{addr}}.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	for range 3 {
		ctx, cancel := context.WithTimeout(streamstest.Context(t), 20*time.Millisecond)
		if _, err := r.Next(ctx); err == nil {
			t.Error("an empty stream had a message")
		}
		cancel()
	}
	begun := time.Now()
	streamstest.Publish(t, c.NewProducer(), stream, 0, 1, 0)
	if d := time.Since(begun); d > 2*time.Second {
		t.Errorf("the next append took %v", d)
	}
}
