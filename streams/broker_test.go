package streams_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sourcegraph/conc"
	"github.com/twmb/franz-go/pkg/kfake"

	"hearthline/streams/embedded"
	"hearthline/streams/streamstest"
)

var realKafka = flag.String("kafka", "", "run the contract against this cluster, too: host:port[,host:port…]")

// start runs an embedded broker until the test ends, and gives its address.
func start(t testing.TB, change func(*embedded.Broker)) string {
	t.Helper()
	b := embedded.New()
	b.Addr = "127.0.0.1:0"
	if change != nil {
		change(b)
	}
	addr, failed := make(chan string, 1), make(chan error, 1)
	b.Ready = func(a string) { addr <- a }
	ctx, cancel := context.WithCancel(context.Background())
	var work conc.WaitGroup
	work.Go(func() { failed <- b.Run(ctx) })
	t.Cleanup(func() { cancel(); work.Wait() })
	select {
	case a := <-addr:
		return a
	case err := <-failed:
		t.Fatal(err)
	}
	return ""
}

// startCluster runs n brokers whose faults the test controls.
func startCluster(t testing.TB, n int, opts ...kfake.Opt) (*kfake.Cluster, []string) {
	t.Helper()
	opts = append([]kfake.Opt{kfake.NumBrokers(n), kfake.ListenFn(listenLow), kfake.GroupMinSessionTimeout(100 * time.Millisecond)}, opts...)
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, c.ListenAddrs()
}

// listenLow listens on a port below those that outgoing connections take.
func listenLow(network, _ string) (net.Listener, error) {
	for {
		l, err := net.ListenTCP(network, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 20000 + rand.IntN(12000)})
		if err == nil {
			return l, nil
		}
	}
}

func TestContract(t *testing.T) {
	t.Run("embedded, in memory", func(t *testing.T) {
		t.Parallel() // most of it is waiting
		cl := streamstest.Cluster{Brokers: []string{start(t, nil)}}
		streamstest.Contract(t, cl)
		streamstest.Upkeep(t, cl)
	})
	t.Run("embedded, on disk", func(t *testing.T) {
		t.Parallel() // most of it is waiting
		addr := start(t, func(b *embedded.Broker) { b.Dir = t.TempDir() })
		streamstest.Contract(t, streamstest.Cluster{Brokers: []string{addr}})
	})
	t.Run("three brokers", func(t *testing.T) {
		t.Parallel() // most of it is waiting
		_, addrs := startCluster(t, 3)
		cl := streamstest.Cluster{Brokers: addrs}
		streamstest.Contract(t, cl)
		streamstest.Upkeep(t, cl)
	})
	if *realKafka != "" {
		t.Run("real", func(t *testing.T) {
			t.Parallel() // most of it is waiting
			streamstest.Contract(t, streamstest.Cluster{Brokers: strings.Split(*realKafka, ",")})
		})
	}
}
