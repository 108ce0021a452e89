package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
	"hearthline/streams/embedded"
)

// broker is Kafka, of one kind or another: nodes that can be hurt, each behind a proxy whose address clients are told.
type broker interface {
	nodes() int
	kill(ctx context.Context, node int, down time.Duration) error
	pause(ctx context.Context, node int, lasts time.Duration) error
	restart(ctx context.Context, node int, down time.Duration) error
	clock(ctx context.Context, node int, f fault) error
	end() error
}

// The test binary is its own child: with this set it is an embedded broker, which may be killed.
const brokerDir, brokerAddr, brokerSaid = "HEARTHLINE_CHAOS_BROKER", "HEARTHLINE_CHAOS_BROKER_ADDR", "HEARTHLINE_CHAOS_BROKER_ADVERTISE"

func TestMain(m *testing.M) {
	dir := os.Getenv(brokerDir)
	if dir == "" {
		code := m.Run()
		if builds.dir != "" {
			os.RemoveAll(builds.dir)
		}
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b := embedded.New()
	b.Dir, b.Addr, b.Advertise = dir, os.Getenv(brokerAddr), os.Getenv(brokerSaid)
	if err := b.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// kfakeBroker is the embedded broker as a process of its own.
type kfakeBroker struct{ *process }

func (w *world) startEmbedded(dir string) (broker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr := w.addr()
	p, err := newProxy(w.addr(), func() string { return addr }, clientID)
	if err != nil {
		return nil, err
	}
	w.kafka = append(w.kafka, p)
	b := kfakeBroker{w.process("broker", self, []string{"-test.run=^$"},
		brokerDir+"="+dir, brokerAddr+"="+addr, brokerSaid+"="+p.listener.Addr().String())}
	return b, b.start()
}

func (b kfakeBroker) nodes() int { return 1 }
func (b kfakeBroker) kill(_ context.Context, _ int, down time.Duration) error {
	b.process.kill(down)
	return nil
}
func (b kfakeBroker) pause(ctx context.Context, _ int, lasts time.Duration) error {
	b.process.pause(ctx, lasts)
	return nil
}
func (b kfakeBroker) restart(_ context.Context, _ int, down time.Duration) error {
	b.process.terminate(down)
	return nil
}
func (b kfakeBroker) clock(context.Context, int, fault) error {
	return errors.New("the embedded broker has the clock of its process") // none is drawn
}
func (b kfakeBroker) end() error { return b.process.end(20 * time.Second) }

// apacheBroker is Apache Kafka, with one node or three.
type apacheBroker struct {
	*apache.Cluster
	clocks *apachetest.Clocks
	stop   context.CancelFunc
	done   chan error
}

func (w *world) startApache(dir string, nodes int) (broker, error) {
	c := apache.New()
	c.Brokers, c.Dir, c.Restarts, c.Settings = nodes, filepath.Join(dir, "kafka"), true, map[string]string{
		"group.min.session.timeout.ms": "500", "group.initial.rebalance.delay.ms": "0",
		// A broker that fell is known to have fallen soon; the default is nine seconds.
		"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "300",
	}
	for range nodes {
		addr := w.addr()
		p, err := newProxy(w.addr(), func() string { return addr }, clientID)
		if err != nil {
			return nil, err
		}
		w.kafka = append(w.kafka, p)
		c.Addrs, c.Advertised = append(c.Addrs, addr), append(c.Advertised, p.listener.Addr().String())
	}
	clocks, err := apachetest.NewClocks(w.dir, nodes)
	if err != nil {
		return nil, err
	}
	c.Env = clocks.Env
	if nodes > 1 {
		c.Between = w.betweenBrokers
	}
	ctx, stop := context.WithCancel(context.Background())
	b := &apacheBroker{Cluster: c, clocks: clocks, stop: stop, done: make(chan error, 1)}
	ready := make(chan struct{})
	c.Ready = func([]string) { close(ready) }
	go func() { b.done <- c.Run(ctx) }()
	select {
	case <-ready:
		return b, nil
	case err := <-b.done:
		stop()
		b.done <- err
		return nil, err
	}
}

// betweenBrokers has brokers find each other at proxies.
func (w *world) betweenBrokers(_ int, replicas, quorum string) (replicasAt, quorumAt string) {
	var at [2]string
	var both []*proxy
	for i, target := range []string{replicas, quorum} {
		p, err := newProxy(w.addr(), func() string { return target }, brokerID)
		if err != nil {
			w.t.Errorf("a proxy between brokers: %v", err)
			return replicas, quorum
		}
		both, at[i] = append(both, p), p.listener.Addr().String()
	}
	w.between = append(w.between, both)
	return at[0], at[1]
}

func brokerID(first []byte) string { return strconv.Itoa(apachetest.BrokerOf(clientID(first))) }

// part cuts a broker off from the others for a while, both ways.
func (w *world) part(ctx context.Context, node int, f fault) {
	var all sync.WaitGroup
	for i, proxies := range w.between {
		whose := strconv.Itoa(node + 1)
		if i == node {
			whose = "*"
		}
		for _, p := range proxies {
			all.Go(func() { p.impose(ctx, whose, &rule{way: f.way}, f.lasts) })
		}
	}
	all.Wait()
}

func (b *apacheBroker) nodes() int { return b.Cluster.Brokers }
func (b *apacheBroker) kill(ctx context.Context, node int, down time.Duration) error {
	if err := fell(b.Cluster.Kill(node + 1)); err != nil {
		return err
	}
	wait(ctx, down)
	return b.rise(ctx, node)
}
func (b *apacheBroker) restart(ctx context.Context, node int, down time.Duration) error {
	if err := fell(b.Cluster.Stop(node + 1)); err != nil {
		return err
	}
	wait(ctx, down)
	return b.rise(ctx, node)
}
func (b *apacheBroker) rise(ctx context.Context, node int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	return b.Cluster.Restart(ctx, node+1)
}
func (b *apacheBroker) pause(ctx context.Context, node int, lasts time.Duration) error {
	if err := fell(b.Cluster.Pause(node + 1)); err != nil {
		return err
	}
	wait(ctx, lasts)
	return fell(b.Cluster.Resume(node + 1))
}

func (b *apacheBroker) clock(ctx context.Context, node int, f fault) error {
	seconds, err := strconv.Atoi(f.way)
	if err != nil {
		return err
	}
	if err := b.clocks.Set(node+1, time.Duration(seconds)*time.Second); err != nil {
		return err
	}
	wait(ctx, f.lasts)
	return b.clocks.Set(node+1, 0)
}

// fell takes it well that a broker is down: a full disk has ended it before we could.
func fell(err error) error {
	if errors.Is(err, apache.ErrDown) {
		return nil
	}
	return err
}
func (b *apacheBroker) end() error {
	b.stop()
	return <-b.done
}

// startBroker starts the kind of broker that the seed chose.
func (w *world) startBroker(kind string) (err error) {
	dir := w.disk("broker")
	switch kind {
	case "embedded":
		w.broker, err = w.startEmbedded(dir)
	case "kafka1", "kafka3":
		n, _ := strconv.Atoi(kind[len("kafka"):])
		w.broker, err = w.startApache(dir, n)
	default:
		err = fmt.Errorf("no broker of kind %q; there are embedded, kafka1, kafka3", kind)
	}
	return err
}
