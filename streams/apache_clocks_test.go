package streams_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc"

	"hearthline/streams"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
	"hearthline/streams/streamstest"
)

// TestClocksOfApacheKafka: a broker's clock, or a producer's, is set under way. What is published is in the log once and in order, a
// member of a group keeps what it has, and its commits count. Apache Kafka refuses messages from further ahead than an hour
// (message.timestamp.after.max.ms): those wait, and the log says why.
func TestClocksOfApacheKafka(t *testing.T) {
	t.Parallel()
	clocks, err := apachetest.NewClocks(t.TempDir(), 1)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("NOT TESTED: %v", err)
	}
	cluster := apache.New()
	cluster.Env = clocks.Env
	// Two days on, what the broker knows of producers has expired, and is thrown away.
	cluster.Settings = map[string]string{"producer.id.expiration.check.interval.ms": "100"}
	set := func(ahead time.Duration) {
		t.Helper()
		if err := clocks.Set(1, ahead); err != nil {
			t.Fatal(err)
		}
	}
	brokers := apachetest.Start(t, cluster)
	cfg := streams.New()
	cfg.Brokers = brokers
	var said journal
	c, err := streams.Dial(streamstest.Context(t), cfg, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var ahead atomic.Int64 // of the producer's clock
	c.SetClock(&ahead)
	stream := streamstest.Stream(t, c, 1)
	group := streams.GroupConfig{ID: streamstest.Name("group"), Streams: []string{stream}, Heartbeat: 100 * time.Millisecond, SessionTimeout: 6 * time.Second, RebalanceTimeout: 10 * time.Second}

	ctx, stop := context.WithCancel(t.Context())
	var work conc.WaitGroup
	defer work.Wait()
	defer stop()
	var published, committed, shares atomic.Int64
	work.Go(func() {
		for p := c.NewProducer(); ctx.Err() == nil; {
			b := streamstest.Events(memory.DefaultAllocator, published.Load(), 1)
			_, err := p.Publish(context.WithoutCancel(ctx), stream, 0, b)
			b.Record.Release()
			if err != nil {
				t.Errorf("batch %d: %v", published.Load(), err)
				return
			}
			published.Add(1)
			time.Sleep(5 * time.Millisecond)
		}
	})
	work.Go(func() {
		err := c.Join(ctx, group, func(live context.Context, g *streams.Assignment) error {
			shares.Add(1)
			for live.Err() == nil {
				if err := g.Commit(context.WithoutCancel(live), []streams.Commit{{Stream: stream, Offset: committed.Load() + 1}}); err != nil {
					return err
				}
				committed.Add(1)
				time.Sleep(5 * time.Millisecond)
			}
			return nil
		})
		if err != nil {
			t.Errorf("the member: %v", err)
		}
	})
	// onward waits until so many more are published, and commits taken.
	onward := func(what string) {
		t.Helper()
		for n, m, late := published.Load()+20, committed.Load()+20, time.Now().Add(streamstest.Patience); published.Load() < n || committed.Load() < m; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(late) {
				t.Fatalf("%s: %d are published, want %d; %d commits, want %d\n%s", what, published.Load(), n, committed.Load(), m, said.String())
			}
		}
	}
	// refused waits until a message is, and checks that the log says why, and that commits go on.
	refused := func(what string) {
		t.Helper()
		for late := time.Now().Add(streamstest.Patience); !strings.Contains(said.String(), "message.timestamp.after.max.ms"); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(late) {
				t.Fatalf("%s: nothing was refused for a minute\n%s", what, said.String())
			}
		}
		n, m := published.Load(), committed.Load()
		time.Sleep(500 * time.Millisecond)
		if published.Load() > n+1 || committed.Load() <= m {
			t.Errorf("%s: %d more published, %d more commits", what, published.Load()-n, committed.Load()-m)
		}
	}
	onward("all clocks are right")
	for _, by := range []time.Duration{40 * time.Second, -40 * time.Second, 2 * time.Hour, 50 * time.Hour} {
		set(by)
		onward("the broker's clock is set by " + by.String())
	}
	set(0)
	onward("the broker's clock is set back by two days")

	said.reset()
	set(-2 * time.Hour)
	refused("the broker's clock is two hours back")
	set(0)
	onward("it is right again")

	said.reset()
	ahead.Store(int64(2 * time.Hour))
	refused("the producer's clock is two hours ahead")
	ahead.Store(0)
	onward("it is right, too")
	ahead.Store(int64(-50 * time.Hour))
	onward("the producer's clock is two days back")

	stop()
	work.Wait()
	got := streamstest.Lineages(t, c, stream, 0)
	if int64(len(got)) != published.Load() || !slices.IsSorted(got) {
		t.Errorf("%d published, the log holds %v", published.Load(), got)
	}
	if shares.Load() != 1 {
		t.Errorf("the member lost its share %d times", shares.Load()-1)
	}
	at, err := c.Committed(streamstest.Context(t), group.ID, stream)
	if err != nil || at[0].Offset != committed.Load() {
		t.Errorf("committed: %v, %v; want %d", at, err, committed.Load())
	}
	s := c.Stats()
	t.Logf("%d published, %d commits, %d retries, %d new ids", published.Load(), committed.Load(), s.Retries, s.NewIDs)
}

// journal is what was logged.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) reset() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.b.Reset()
}
