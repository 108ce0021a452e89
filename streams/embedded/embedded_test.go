package embedded_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/sourcegraph/conc"

	"hearthline/streams"
	"hearthline/streams/embedded"
	"hearthline/streams/streamstest"
)

// The test binary is its own child: with this set it is a broker on the directory it names, and may be killed.
const childDir = "STREAMS_TEST_BROKER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		b := embedded.New()
		b.Dir, b.Addr, b.SyncWrites = dir, os.Getenv(childDir+"_ADDR"), os.Getenv(childDir+"_SYNC") != ""
		b.Ready = func(addr string) { fmt.Println("ready", addr) }
		if err := b.Run(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child runs a broker in another process and waits until it is ready.
func child(t *testing.T, dir, addr string) (kill func(), at string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), childDir+"="+dir, childDir+"_ADDR="+addr)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead := false
	kill = func() {
		if !dead {
			dead = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ready ") {
		t.Fatalf("the child said %q: %v", line, err)
	}
	return kill, strings.TrimSpace(strings.TrimPrefix(line, "ready "))
}

// TestKilled kills a broker five times while a producer writes and a member commits. What was acknowledged is there,
// in order; the member goes on from its last commit, and need not wait for its dead self.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	kill, addr := child(t, dir, "127.0.0.1:0")
	cl := streamstest.Cluster{Brokers: []string{addr}, Config: func(c *streams.Config) { c.RequestTimeout = 2 * time.Second }}
	outer := cl.Dial(t)
	stream := streamstest.Stream(t, outer, 2)
	id, err := outer.Info(streamstest.Context(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	p := outer.NewProducer() // it lives through all of it
	var acked int64
	for round := range int64(5) {
		for range 20 {
			streamstest.Publish(t, p, stream, 0, 3, acked)
			acked++
		}
		// A member of the same group each time, in a process that dies with the broker: it never leaves.
		began := time.Now()
		member := cl.Dial(t)
		ctx, cancel := context.WithCancel(streamstest.Context(t))
		joined := make(chan *streams.Assignment)
		var work conc.WaitGroup
		work.Go(func() {
			_ = member.Join(ctx, streams.GroupConfig{ID: "g", Streams: []string{stream}}, func(gen context.Context, g *streams.Assignment) error {
				if g.Partition() == 0 {
					select {
					case joined <- g:
					case <-ctx.Done():
					}
				}
				<-gen.Done()
				return nil
			})
		})
		var g *streams.Assignment
		select {
		case g = <-joined:
		case <-streamstest.Context(t).Done():
			t.Fatal("not joined")
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("round %d: joined after %v: it waited for a dead member", round, d)
		}
		got := g.Committed()
		if round > 0 && got[stream] != (streams.Committed{Offset: acked - 20, Metadata: fmt.Sprint("round ", round-1)}) {
			t.Errorf("round %d: committed %v", round, got)
		}
		if err := g.Commit(streamstest.Context(t), []streams.Commit{{Stream: stream, Offset: acked, Metadata: fmt.Sprint("round ", round)}}); err != nil {
			t.Fatal(err)
		}
		kill()
		cancel()
		work.Wait()
		kill, _ = child(t, dir, addr)
	}
	after, err := outer.Info(streamstest.Context(t), stream)
	if err != nil || after != id {
		t.Errorf("the stream was %v and is %v: %v", id, after, err)
	}
	got := streamstest.Lineages(t, outer, stream, 0)
	// The broker forgets its producers when it is killed: a batch whose answer was lost may be there twice. Readers
	// drop it by its lineage, as here.
	if got = slices.Compact(got); int64(len(got)) != acked || !slices.IsSorted(got) {
		t.Errorf("%d acknowledged, the stream holds %v", acked, got)
	}
}

// TestStopped: a clean stop keeps everything, and nobody waits for members that were there.
func TestStopped(t *testing.T) {
	dir := t.TempDir()
	var stream string
	for round := range 2 {
		b := embedded.New()
		b.Dir, b.Addr = dir, "127.0.0.1:0"
		addr, ended, stop := run(t, b)
		c := streamstest.Cluster{Brokers: []string{addr}}.Dial(t)
		if round == 0 {
			stream = streamstest.Stream(t, c, 1)
			streamstest.Publish(t, c.NewProducer(), stream, 0, 1, 1, 2, 3)
		}
		ctx, leave := context.WithCancel(streamstest.Context(t))
		began := time.Now()
		err := c.Join(ctx, streams.GroupConfig{ID: "g", Streams: []string{stream}}, func(gen context.Context, g *streams.Assignment) error {
			if d := time.Since(began); d > 3*time.Second {
				t.Errorf("joined after %v", d)
			}
			if got := g.Committed(); round == 1 && got[stream].Metadata != "kept" {
				t.Errorf("committed: %v", got)
			}
			err := g.Commit(gen, []streams.Commit{{Stream: stream, Offset: 3, Metadata: "kept"}})
			stop() // the broker goes first
			if err := <-ended; err != nil {
				t.Error(err)
			}
			leave()
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	b := embedded.New()
	b.Dir, b.Addr = dir, "127.0.0.1:0"
	addr, _, _ := run(t, b)
	c := streamstest.Cluster{Brokers: []string{addr}}.Dial(t)
	if got := streamstest.Lineages(t, c, stream, 0); !slices.Equal(got, []int64{1, 2, 3}) {
		t.Errorf("the stream holds %v", got)
	}
}

func run(t *testing.T, b *embedded.Broker) (addr string, ended <-chan error, stop func()) {
	t.Helper()
	ready, end := make(chan string, 1), make(chan error, 1)
	b.Ready = func(a string) { ready <- a }
	ctx, cancel := context.WithCancel(context.Background())
	var work conc.WaitGroup
	work.Go(func() { end <- b.Run(ctx) })
	t.Cleanup(func() { cancel(); work.Wait() })
	select {
	case a := <-ready:
		return a, end, cancel
	case err := <-end:
		t.Fatal(err)
	}
	return "", nil, nil
}

// TestErrors: each names what is wrong and says what to do.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	holder := embedded.New()
	holder.Dir, holder.Addr = dir, "127.0.0.1:0"
	addr, _, _ := run(t, holder)
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host != "127.0.0.1" || len(port) != 5 || port > "32767" {
		t.Errorf("it listens on %s: want a port below 32768", addr)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "meta.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, dir, addr string
		want            []string
	}{
		{"locked directory", dir, "127.0.0.1:0", []string{dir, "in use by another process", "choose another directory"}},
		{"busy port", t.TempDir(), addr, []string{addr, "in use by another program", "choose another port"}},
		{"no port", "", "127.0.0.1", []string{"host:port"}},
		{"every address", "", "0.0.0.0:9092", []string{"0.0.0.0:9092", "127.0.0.1:9092"}},
		{"a host that is not here", "", "192.0.2.1:9092", []string{"192.0.2.1:9092"}},
		{"a file for a directory", file, "127.0.0.1:0", []string{file}},
		{"broken data", broken, "127.0.0.1:0", []string{broken, "start afresh"}},
	} {
		b := embedded.New()
		b.Dir, b.Addr = c.dir, c.addr
		b.Ready = func(string) { t.Errorf("%s: it is ready", c.name) }
		err := b.Run(streamstest.Context(t))
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v; want it to say %q", c.name, err, w)
			}
		}
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := streams.New()
	cfg.Brokers, cfg.RequestTimeout = []string{addr}, 2*time.Second
	_, err = streams.Dial(streamstest.Context(t), cfg, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "check that it runs") {
		t.Errorf("dial: %v", err)
	}
	for name, brokers := range map[string][]string{"none": nil, "no port": {"localhost"}} {
		cfg.Brokers = brokers
		if _, err := streams.Dial(streamstest.Context(t), cfg, nil); err == nil || !strings.Contains(err.Error(), "host:port") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCleaning: retention works on an embedded broker, and who reads behind it is told so.
func TestCleaning(t *testing.T) {
	b := embedded.New()
	b.Addr, b.CleanEvery = "127.0.0.1:0", 20*time.Millisecond
	addr, _, _ := run(t, b)
	c := streamstest.Cluster{Brokers: []string{addr}}.Dial(t)
	ctx := streamstest.Context(t)
	stream := streamstest.Name("short")
	if err := c.Ensure(ctx, []streams.Spec{{Name: stream, Partitions: 1, Retention: 50 * time.Millisecond}}); err != nil {
		t.Fatal(err)
	}
	p := c.NewProducer()
	streamstest.Publish(t, p, stream, 0, 1, 1, 2, 3)
	first := int64(0)
	for first == 0 {
		var err error
		if first, _, err = c.Bounds(ctx, stream, 0); err != nil {
			t.Fatal(err)
		}
	}
	r := c.NewReader(stream, 0, 0)
	defer r.Close()
	if _, err := r.Next(ctx); !errors.Is(err, streams.ErrOutOfRange) || !strings.Contains(err.Error(), "retention") {
		t.Errorf("read what is gone: %v", err)
	}
}

// TestAdvertise: what stands in front of the broker is what clients are told.
func TestAdvertise(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	var work conc.WaitGroup
	defer work.Wait()
	defer stop()
	at := make(chan string, 1)
	b := embedded.New()
	b.Addr, b.Advertise, b.Ready = "127.0.0.1:0", "proxy.example:9093", func(addr string) { at <- addr }
	work.Go(func() {
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	conn, err := kafka.Dial("tcp", <-at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	brokers, err := conn.Brokers()
	if err != nil || len(brokers) != 1 || brokers[0].Host != "proxy.example" || brokers[0].Port != 9093 {
		t.Errorf("clients are told %+v, %v", brokers, err)
	}
}
