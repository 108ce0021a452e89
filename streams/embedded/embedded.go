// Package embedded is a Kafka broker in this process, for one machine: franz-go's kfake with a data directory and a
// lock. It speaks the real protocol over real connections, so nothing else changes when a Kafka cluster takes its
// place. Its own authors call it a fake for tests: one event loop, one copy of the data. Beyond one machine use Kafka.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/twmb/franz-go/pkg/kfake"
)

// Broker is its own configuration; New gives the defaults.
type Broker struct {
	// Dir holds the data. "" keeps it in memory, for tests.
	Dir string `yaml:"dir"`
	// Addr is where it listens, host:port, an address that clients can reach: it is also what they are told. Port 0 is
	// a free port below 32768, where no outgoing connection takes it away between two starts.
	Addr string `yaml:"addr"`
	// Advertise is where clients are told it is, host:port, when that is not Addr: what stands in front of it.
	Advertise string `yaml:"advertise"`
	// MessageBytesMax is the largest message it takes, in bytes, on streams that say nothing else.
	MessageBytesMax int `yaml:"message_bytes_max"`
	// SyncWrites waits for the disk on every append. Without it a crash of the machine (not of the process) loses
	// what the kernel had not written yet; with it appends take about ten times as long.
	SyncWrites bool `yaml:"sync_writes"`
	// CleanEvery is the time between two rounds of retention and compaction.
	CleanEvery time.Duration `yaml:"clean_every"`

	// Ready is called, if it is not nil, with the address once clients may connect.
	Ready func(addr string) `yaml:"-"`
	// Log is for the broker's warnings; nil is silence.
	Log *slog.Logger `yaml:"-"`
}

// New is a Broker on 127.0.0.1:9092 that keeps its data in memory.
func New() *Broker {
	return &Broker{Addr: "127.0.0.1:9092", MessageBytesMax: 8 << 20, CleanEvery: time.Minute}
}

// Run serves until ctx ends, then closes the data cleanly. One Run at a time.
func (b *Broker) Run(ctx context.Context) (err error) {
	if b.Dir != "" {
		unlock, err := lock(b.Dir)
		if err != nil {
			return err
		}
		defer unlock()
		// kfake remembers the members of groups over a clean stop and waits for them to come back. Ours have left,
		// or died with it; those that live join again by themselves when they are not known.
		if err := os.Remove(filepath.Join(b.Dir, "session_state.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("embedded broker: forget old sessions: %w", err)
		}
	}
	l, err := b.listen()
	if err != nil {
		return err
	}
	ready := l.Addr().String()
	if b.Advertise != "" {
		l = advertised{l, advertisedAddr(b.Advertise)}
	}
	cluster, err := kfake.NewCluster(b.options(l)...)
	if err != nil {
		return errors.Join(fmt.Errorf("embedded broker: open data in %s: %w: if it cannot be mended, move the directory away and start afresh", b.Dir, err), l.Close())
	}
	defer cluster.Close()
	if b.Dir != "" {
		refuseWhenFull(cluster, b.Dir)
	}
	if b.Ready != nil {
		b.Ready(ready)
	}
	<-ctx.Done()
	return nil
}

// advertised is a listener that says it is somewhere else: kfake tells clients what it says.
type advertised struct {
	net.Listener
	addr net.Addr
}

func (a advertised) Addr() net.Addr { return a.addr }

// advertisedAddr is host:port.
type advertisedAddr string

func (advertisedAddr) Network() string  { return "tcp" }
func (a advertisedAddr) String() string { return string(a) }

// lock makes sure that one process has the directory.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("embedded broker: data directory: %w", err)
	}
	l := flock.New(filepath.Join(dir, "lock"))
	ok, err := l.TryLock()
	if err != nil {
		return nil, fmt.Errorf("embedded broker: lock %s: %w", l.Path(), err)
	}
	if !ok {
		return nil, fmt.Errorf("embedded broker: data directory %s is in use by another process (it holds %s): stop that one, or choose another directory", dir, l.Path())
	}
	return func() { _ = l.Unlock() }, nil // the kernel drops the lock with the process in any case
}

// Ports from here on are handed to outgoing connections (Linux ip_local_port_range).
const (
	portMin  = 20000
	portMax  = 32767
	portsMax = 200 // tries
)

func (b *Broker) listen() (net.Listener, error) {
	host, port, err := net.SplitHostPort(b.Addr)
	if err != nil {
		return nil, fmt.Errorf("embedded broker: address %q: want host:port: %w", b.Addr, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return nil, fmt.Errorf("embedded broker: address %q is every address: name one that clients can reach, such as 127.0.0.1:%s", b.Addr, port)
	}
	if port != "0" {
		l, err := net.Listen("tcp", b.Addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("embedded broker: %s is in use by another program: stop that one, or choose another port (0 takes a free one): %w", b.Addr, err)
		}
		if err != nil {
			return nil, fmt.Errorf("embedded broker: listen on %s: %w", b.Addr, err)
		}
		return l, nil
	}
	for range portsMax {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(portMin+rand.IntN(portMax-portMin+1)))) // #nosec G404 -- a port, not a secret
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("embedded broker: listen on %s: %w", host, err)
		}
	}
	return nil, fmt.Errorf("embedded broker: no free port from %d to %d on %s: choose one", portMin, portMax, host)
}

func (b *Broker) options(l net.Listener) []kfake.Opt {
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return guard(l), nil }),
		kfake.ClusterID("hearthline"),
		kfake.DefaultNumPartitions(1),
		kfake.GroupMinSessionTimeout(500 * time.Millisecond),
		kfake.BrokerConfigs(map[string]string{
			"message.max.bytes":      strconv.Itoa(b.MessageBytesMax),
			"log.cleaner.backoff.ms": strconv.FormatInt(max(b.CleanEvery.Milliseconds(), 1), 10),
			// Who comes back after a year goes on where they stopped. Kafka forgets after a week.
			"offsets.retention.minutes": strconv.Itoa(10 * 365 * 24 * 60),
		}),
	}
	if b.Dir != "" {
		opts = append(opts, kfake.DataDir(b.Dir))
	}
	if b.SyncWrites {
		opts = append(opts, kfake.SyncWrites())
	}
	if b.Log != nil {
		opts = append(opts, kfake.WithLogger(logger{b.Log}))
	}
	return opts
}

// logger hands kfake's warnings on.
type logger struct{ log *slog.Logger }

func (l logger) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error("embedded broker: " + fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.log.Warn("embedded broker: " + fmt.Sprintf(format, args...))
	}
}
