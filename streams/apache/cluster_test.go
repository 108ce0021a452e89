package apache_test

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
)

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// count says how many records a client finds in the topic "words".
func count(t *testing.T, opts ...kgo.Opt) (n int) {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.MetadataMinAge(50*time.Millisecond), kgo.ConsumeTopics("words"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(deadline(t), 10*time.Second)
	defer cancel()
	for n == 0 {
		fetches := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			t.Fatal(err)
		}
		n += fetches.NumRecords()
	}
	return n
}

// put appends one record to the topic "words", made if it is missing.
func put(t *testing.T, opts ...kgo.Opt) error {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.MetadataMinAge(50*time.Millisecond), kgo.AllowAutoTopicCreation(), kgo.RecordRetries(1<<20), kgo.UnknownTopicRetries(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	return cl.ProduceSync(deadline(t), &kgo.Record{Topic: "words", Value: []byte("word")}).FirstErr()
}

// TestBrokersFallAndRise: with three brokers, whichever is down, what was acknowledged stays and more is taken.
func TestBrokersFallAndRise(t *testing.T) {
	t.Parallel()
	c := apache.New()
	c.Brokers = 3
	c.Settings = map[string]string{"auto.create.topics.enable": "true"}
	addrs := apachetest.Start(t, c)
	seeds := kgo.SeedBrokers(addrs...)
	if err := put(t, seeds); err != nil {
		t.Fatal(err)
	}
	controller, err := c.Controller(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	other := controller%3 + 1
	for i, fault := range []struct {
		name     string
		down, up func() error
	}{
		{"kill the controller", func() error { return c.Kill(controller) }, func() error { return c.Restart(deadline(t), controller) }},
		{"stop another", func() error { return c.Stop(other) }, func() error { return c.Restart(deadline(t), other) }},
		{"pause another", func() error { return c.Pause(other) }, func() error { return c.Resume(other) }},
	} {
		if err := fault.down(); err != nil {
			t.Fatalf("%s: %v", fault.name, err)
		}
		if err := put(t, seeds); err != nil {
			t.Fatalf("%s: %v", fault.name, err)
		}
		begun := time.Now()
		if err := fault.up(); err != nil {
			t.Fatalf("%s: %v", fault.name, err)
		}
		t.Logf("%s: up again after %v", fault.name, time.Since(begun).Round(10*time.Millisecond))
		if got := count(t, seeds); got != i+2 {
			t.Errorf("%s: %d records, want %d", fault.name, got, i+2)
		}
	}
	if err := c.Kill(7); err == nil {
		t.Error("killed a broker that does not exist")
	}
	if err := c.Restart(deadline(t), other); err == nil {
		t.Error("restarted a broker that runs")
	}
}

// TestDataIsKept: a directory that was named serves again, with what it held.
func TestDataIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for want := 1; want <= 2; want++ {
		t.Run("", func(t *testing.T) {
			c := apache.New()
			c.Dir, c.Settings = dir, map[string]string{"auto.create.topics.enable": "true"}
			seeds := kgo.SeedBrokers(apachetest.Start(t, c)...)
			if err := put(t, seeds); err != nil {
				t.Fatal(err)
			}
			if got := count(t, seeds); got != want {
				t.Errorf("%d records, want %d", got, want)
			}
			second := apache.New()
			second.Dir = dir
			if err := second.Run(deadline(t)); err == nil {
				t.Error("two clusters took one directory")
			}
		})
	}
}
