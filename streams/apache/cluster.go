// Package apache runs Apache Kafka itself on this machine, for tests and development: one broker or several, each a
// controller as well (KRaft), each a Java process on loopback, with the jars of Maven Central. Brokers can be killed,
// paused, stopped and started again while the others go on. It needs Java 17 and, once, Maven.
//
// It is no way to run Kafka for others: small heaps, a few partitions for offsets, one disk, secrets made up on the spot.
package apache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/sourcegraph/conc/pool"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Cluster is its own configuration; New gives the defaults. Its methods may be called while Run runs, from many
// goroutines. Brokers are named by their node ids, as Kafka does, from 1 on.
type Cluster struct {
	// Brokers is how many there are. Streams have as many copies, up to three, and with three the cluster goes on
	// without any one of them.
	Brokers int
	// Dir holds the data of all brokers, their logs and settings. "" is a directory that is removed at the end.
	Dir string
	// Addrs are where clients reach the brokers, host:port each. nil takes free ports of 127.0.0.1 below 32768.
	Addrs []string
	// Advertised, if not nil, is what clients are told instead of Addrs: the addresses of proxies, say.
	Advertised []string
	// Security, if not nil, is what the brokers ask of clients.
	Security *Security
	// HeapBytes is the most heap a broker takes. All in all it takes some 150 MB more.
	HeapBytes int
	// Settings are added to each broker's server.properties, and win.
	Settings map[string]string
	// Between, if not nil, says where the other brokers find the two listeners of a broker that are for them, the one that replicas are
	// fetched from and the one of the controllers' quorum: at proxies, say, that stand before the addresses it is given.
	Between func(broker int, replicas, quorum string) (replicasAt, quorumAt string)
	// Env gives what is added to the environment of a broker's process, as "NAME=value": a library that is loaded before
	// all others, say. nil adds nothing.
	Env func(broker int) []string
	// Cache is where the jars are kept; "" is [cachedir.Find].
	Cache string
	// Restarts has a broker that ended by itself, as one does whose disk is full, started again a second later, as a
	// supervisor would. Without it Run ends with what the broker said last.
	Restarts bool
	// StartWait bounds the time from the start of the brokers until they serve.
	StartWait time.Duration

	// Ready is called, if it is not nil, with the addresses of the brokers once all of them serve.
	Ready func(addrs []string)

	nodes     []*node
	clusterID string
	authority *authority // of the certificates; nil without security
}

// New is a Cluster of one broker on a free port that keeps its data until it ends.
func New() *Cluster { return &Cluster{Brokers: 1, HeapBytes: 256 << 20, StartWait: 2 * time.Minute} }

// brokersMax keeps a slip of the pen from filling the memory.
const brokersMax = 9

// Run runs the brokers until ctx ends, then stops them; their data is removed if it has no directory. A broker that
// ends without being told to ends them all, unless Restarts is set. One Run at a time.
//
// An error that Is ErrMissing says that Java or Maven is not installed.
func (c *Cluster) Run(ctx context.Context) (err error) {
	if c.Brokers < 1 || c.Brokers > brokersMax {
		return fmt.Errorf("kafka: %d brokers: want 1 to %d", c.Brokers, brokersMax)
	}
	program, err := java(ctx)
	if err != nil {
		return err
	}
	jars, err := Fetch(ctx, c.Cache)
	if err != nil {
		return err
	}
	dir, done, err := c.directory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := c.prepare(dir, program, jars); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	for _, n := range c.nodes {
		work.Go(n.run)
	}
	work.Go(c.announce)
	return work.Wait()
}

// directory gives the place of the data, held by this process alone.
func (c *Cluster) directory() (dir string, done func() error, err error) {
	if c.Dir == "" {
		dir, err := os.MkdirTemp("", "kafka-")
		if err != nil {
			return "", nil, fmt.Errorf("kafka: data directory: %w", err)
		}
		return dir, func() error { return os.RemoveAll(dir) }, nil
	}
	dir, err = filepath.Abs(c.Dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", nil, fmt.Errorf("kafka: data directory: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return "", nil, errors.Join(fmt.Errorf("kafka: data directory %s is in use by another process: stop that one, or choose another directory", dir), err)
	}
	return dir, lock.Close, nil
}

// prepare writes each broker's settings.
func (c *Cluster) prepare(dir, program, jars string) error {
	if err := c.Security.check(); err != nil {
		return err
	}
	ports, err := freePorts(3 * c.Brokers)
	if err != nil {
		return err
	}
	addrs := c.Addrs
	if addrs == nil {
		addrs = ports[2*c.Brokers:]
	}
	advertised := c.Advertised
	if advertised == nil {
		advertised = addrs
	}
	if len(addrs) != c.Brokers || len(advertised) != c.Brokers {
		return fmt.Errorf("kafka: %d addresses, %d advertised ones: want one for each of the %d brokers", len(addrs), len(advertised), c.Brokers)
	}
	if c.authority, err = c.Security.authority(filepath.Join(dir, "tls")); err != nil {
		return err
	}
	if c.clusterID, err = clusterID(dir); err != nil {
		return err
	}
	c.nodes = nil
	for i := range c.Brokers {
		n := &node{
			id: i + 1, restarts: c.Restarts, dir: filepath.Join(dir, "broker-"+strconv.Itoa(i+1)), java: program, jars: jars, clusterID: c.clusterID,
			heap: c.HeapBytes, scratch: c.Dir == "", start: make(chan struct{}, 1), listen: addrs[i], addr: advertised[i], internal: ports[c.Brokers+i], controller: ports[i],
		}
		n.internalAt, n.controllerAt = n.internal, n.controller
		if c.Between != nil {
			n.internalAt, n.controllerAt = c.Between(n.id, n.internal, n.controller)
		}
		if c.Env != nil {
			n.env = c.Env(n.id)
		}
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		if err := n.write(c.properties(n)); err != nil {
			return fmt.Errorf("kafka: settings of broker %d: %w", n.id, err)
		}
	}
	return nil
}

// announce waits for the brokers, makes the users, and says that all is ready.
func (c *Cluster) announce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.StartWait)
	defer cancel()
	all := make([]int, c.Brokers)
	for i := range all {
		all[i] = i + 1
	}
	err := c.await(ctx, all...)
	if err == nil {
		err = c.makeUsers(ctx)
	}
	if errors.Is(err, context.Canceled) {
		return nil // told to stop, or a broker's own error says more
	}
	if err != nil {
		return fmt.Errorf("kafka: %w%s", err, c.nodes[0].lastWords())
	}
	if c.Ready != nil {
		c.Ready(c.addrs())
	}
	return nil
}

func (c *Cluster) addrs() []string {
	var out []string
	for _, n := range c.nodes {
		out = append(out, n.addr)
	}
	return out
}

// awaitStep is how often brokers are asked whether they serve.
const awaitStep = 20 * time.Millisecond

// await waits until the brokers of these ids say themselves that they and each other serve.
func (c *Cluster) await(ctx context.Context, ids ...int) error {
	for _, id := range ids {
		for {
			serving, err := c.serving(ctx, id)
			if err == nil && !slices.ContainsFunc(ids, func(id int) bool { return !slices.Contains(serving, id) }) {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("broker %d does not serve in time: %w", id, errors.Join(ctx.Err(), err))
			case <-time.After(awaitStep):
			}
		}
	}
	return nil
}

// serving asks one broker which ones serve.
func (c *Cluster) serving(ctx context.Context, id int) ([]int, error) {
	cl, err := c.Admin(id)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{}
	res, err := req.RequestWith(ctx, cl.SeedBrokers()[0])
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, b := range res.Brokers {
		ids = append(ids, int(b.NodeID))
	}
	return ids, nil
}

// Admin gives a client that may do everything, on the brokers' own listener. ids are the brokers it begins with: none
// is all of them. The caller closes it.
func (c *Cluster) Admin(ids ...int) (*kgo.Client, error) {
	var seeds []string
	for _, n := range c.nodes {
		if len(ids) == 0 || slices.Contains(ids, n.id) {
			seeds = append(seeds, n.internal)
		}
	}
	opts := []kgo.Opt{kgo.SeedBrokers(seeds...), kgo.ClientID("apache"), kgo.RequestRetries(0), kgo.MetadataMinAge(10 * time.Millisecond)}
	if c.authority != nil {
		opts = append(opts, kgo.DialTLSConfig(c.authority.config()))
	}
	return kgo.NewClient(opts...)
}

// Controller says which broker is the active controller.
func (c *Cluster) Controller(ctx context.Context) (int, error) {
	cl, err := c.Admin()
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	req := kmsg.NewPtrDescribeQuorumRequest()
	topic := kmsg.NewDescribeQuorumRequestTopic()
	topic.Topic = "__cluster_metadata"
	topic.Partitions = append(topic.Partitions, kmsg.NewDescribeQuorumRequestTopicPartition())
	req.Topics = append(req.Topics, topic)
	for {
		res, err := req.RequestWith(ctx, cl)
		if err == nil && res.ErrorCode == 0 && len(res.Topics) == 1 && len(res.Topics[0].Partitions) == 1 {
			if p := res.Topics[0].Partitions[0]; p.ErrorCode == 0 && p.LeaderID > 0 {
				return int(p.LeaderID), nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("kafka: who is the controller: %w", errors.Join(ctx.Err(), err))
		case <-time.After(awaitStep):
		}
	}
}

// Kill ends a broker at once (SIGKILL) and returns when it is gone. It stays down until Restart.
func (c *Cluster) Kill(id int) error { return c.on(id, (*node).kill) }

// Stop has a broker hand over what it leads and end (SIGTERM), and returns when it is gone. It stays down until Restart.
func (c *Cluster) Stop(id int) error { return c.on(id, (*node).stop) }

// Pause freezes a broker (SIGSTOP) until Resume: its connections stay open and nobody answers.
func (c *Cluster) Pause(id int) error { return c.on(id, (*node).pause) }

// Resume lets a paused broker go on.
func (c *Cluster) Resume(id int) error { return c.on(id, (*node).resume) }

// Restart starts a broker that is down, on its data, and returns when it serves again. With Restarts, it may have been
// started meanwhile.
func (c *Cluster) Restart(ctx context.Context, id int) error {
	if err := c.on(id, (*node).restart); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.StartWait)
	defer cancel()
	if err := c.await(ctx, id); err != nil {
		return fmt.Errorf("kafka: %w%s", err, c.nodes[id-1].lastWords())
	}
	return nil
}

func (c *Cluster) on(id int, do func(*node) error) error {
	if id < 1 || id > len(c.nodes) {
		return fmt.Errorf("kafka: there is no broker %d", id)
	}
	if err := do(c.nodes[id-1]); err != nil {
		return fmt.Errorf("kafka: broker %d: %w", id, err)
	}
	return nil
}

// Ports from here on are handed to outgoing connections (Linux ip_local_port_range).
const (
	portMin = 20000
	portMax = 32767
)

// freePorts gives n addresses of 127.0.0.1 on which nobody listens.
func freePorts(n int) ([]string, error) {
	var addrs []string
	for tries := 0; len(addrs) < n; tries++ {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(portMin+rand.IntN(portMax-portMin+1)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			if tries > 100*n {
				return nil, fmt.Errorf("kafka: no free ports from %d to %d: %w", portMin, portMax, err)
			}
			continue
		}
		defer l.Close() // not before all are found: so they differ
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// properties is a broker's server.properties.
func (c *Cluster) properties(n *node) map[string]string {
	copies := min(c.Brokers, 3)
	var voters []string
	for _, v := range c.nodes {
		voters = append(voters, fmt.Sprintf("%d@%s", v.id, v.controllerAt))
	}
	p := map[string]string{
		"node.id":       strconv.Itoa(n.id),
		"process.roles": "broker,controller",
		"listeners":     fmt.Sprintf("CLIENT://%s,INTERNAL://%s,CONTROLLER://%s", n.listen, n.internal, n.controller),
		// CONTROLLER, too: who is voted the controller tells the others where it is, and they no longer go where controller.quorum.voters says.
		"advertised.listeners":           fmt.Sprintf("CLIENT://%s,INTERNAL://%s,CONTROLLER://%s", n.addr, n.internalAt, n.controllerAt),
		"listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name":     "INTERNAL",
		"controller.listener.names":      "CONTROLLER",
		"controller.quorum.voters":       strings.Join(voters, ","),
		"log.dirs":                       filepath.Join(n.dir, "data"),

		"default.replication.factor":                       strconv.Itoa(copies),
		"min.insync.replicas":                              strconv.Itoa(max(copies-1, 1)),
		"offsets.topic.replication.factor":                 strconv.Itoa(copies),
		"offsets.topic.num.partitions":                     "4",
		"transaction.state.log.replication.factor":         strconv.Itoa(copies),
		"transaction.state.log.min.isr":                    strconv.Itoa(max(copies-1, 1)),
		"transaction.state.log.num.partitions":             "2",
		"share.coordinator.state.topic.replication.factor": strconv.Itoa(copies),
		"share.coordinator.state.topic.min.isr":            strconv.Itoa(max(copies-1, 1)),
		// The plan makes streams, with the partitions it says; a slip of the pen does not.
		"auto.create.topics.enable": "false",
		"message.max.bytes":         strconv.Itoa(8 << 20),
		// As the embedded broker: groups form at once, members that die are noticed as fast as they ask for, offsets are kept.
		"group.initial.rebalance.delay.ms": "0",
		"group.min.session.timeout.ms":     "500",
		"offsets.retention.minutes":        strconv.Itoa(10 * 365 * 24 * 60),
		// A broker that is gone is noticed after 3 s, not 9, so that tests of faults are short.
		"broker.session.timeout.ms":    "3000",
		"broker.heartbeat.interval.ms": "500",
		// 128 MB by default, at the start.
		"log.cleaner.dedupe.buffer.size": strconv.Itoa(4 << 20),
		"num.network.threads":            "2",
		"num.io.threads":                 "4",
		"background.threads":             "2",
	}
	c.Security.properties(p, n, c.authority)
	for k, v := range c.Settings {
		p[k] = v
	}
	return p
}

// small are Java's flags for a process that starts fast and stays small.
func small(heap int) []string {
	return []string{fmt.Sprintf("-Xmx%dm", heap>>20), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError",
		"-Xss512k", "-Djava.awt.headless=true", fmt.Sprintf("-XX:ActiveProcessorCount=%d", min(runtime.NumCPU(), 4))}
}
