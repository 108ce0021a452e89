package run

import (
	"sort"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"hearthline/flow"
)

// Meter counts what every node does, under the same names for all of them: authors of stages write none of it.
// It is a prometheus.Collector.
type Meter struct {
	mu    sync.Mutex
	nodes map[string]*NodeMeter
}

// NewMeter returns a meter with no nodes.
func NewMeter() *Meter { return &Meter{nodes: map[string]*NodeMeter{}} }

// NodeMeter is what one gateway, stage, unit or sink has done since the process began.
type NodeMeter struct {
	Name       string
	Bad        atomic.Int64 // rows set aside as dead letters
	Duplicates atomic.Int64 // batches that had been taken before
	Retries    atomic.Int64 // calls repeated because the world failed
	Restarts   atomic.Int64 // times the node ended with an error and was started again
	Process    prometheus.Histogram
	Checkpoint prometheus.Histogram

	mu         sync.Mutex
	in, out    map[string]*EdgeMeter
	partitions map[partitionKey]*PartitionMeter
	counting   map[flow.Counting]struct{} // instances at work
	waits      map[*error]struct{}        // what the node waits for at the moment
}

// waitsFor notes that the node waits for the world, until over is called.
func (n *NodeMeter) waitsFor(why error) (over func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.waits == nil {
		n.waits = map[*error]struct{}{}
	}
	n.waits[&why] = struct{}{}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.waits, &why)
	}
}

// Waiting is nil while the node works, or why it does not: one of the calls that fail and are tried again, or what it
// is not connected to yet.
func (n *NodeMeter) Waiting() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for why := range n.waits {
		return *why
	}
	return nil
}

// EdgeMeter is what has passed between a node and a stream.
type EdgeMeter struct{ Rows, Batches atomic.Int64 }

// PartitionMeter is where a node is on one partition of one of its inputs.
type PartitionMeter struct {
	Offset          atomic.Int64 // next to be read
	Watermark       atomic.Int64 // µs since 1970
	CheckpointBytes atomic.Int64
}

type partitionKey struct {
	Stream    string
	Partition int32
}

// secondsBuckets spans a batch of one row (10 µs) to a stuck disk (10 s).
var secondsBuckets = prometheus.ExponentialBuckets(10e-6, 4, 11)

// Node gives the meter of a node, made when first asked for.
func (m *Meter) Node(name string) *NodeMeter {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[name]
	if n == nil {
		labels := prometheus.Labels{"node": name}
		n = &NodeMeter{
			Name: name, in: map[string]*EdgeMeter{}, out: map[string]*EdgeMeter{}, partitions: map[partitionKey]*PartitionMeter{},
			counting: map[flow.Counting]struct{}{},
			Process: prometheus.NewHistogram(prometheus.HistogramOpts{
				Name: "hearthline_process_seconds", Help: "Time one call took: a stage's Process, a sink's Write.",
				ConstLabels: labels, Buckets: secondsBuckets,
			}),
			Checkpoint: prometheus.NewHistogram(prometheus.HistogramOpts{
				Name: "hearthline_checkpoint_seconds", Help: "Time to write and commit a checkpoint.",
				ConstLabels: labels, Buckets: secondsBuckets,
			}),
		}
		m.nodes[name] = n
	}
	return n
}

// Nodes gives all meters, by name.
func (m *Meter) Nodes() []*NodeMeter {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*NodeMeter, 0, len(m.nodes))
	for _, n := range m.nodes {
		all = append(all, n)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}

// In counts what the node takes from a stream.
func (n *NodeMeter) In(stream string) *EdgeMeter { return n.edge(n.in, stream) }

// Out counts what the node gives to a stream.
func (n *NodeMeter) Out(stream string) *EdgeMeter { return n.edge(n.out, stream) }

func (n *NodeMeter) edge(edges map[string]*EdgeMeter, stream string) *EdgeMeter {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := edges[stream]
	if e == nil {
		e = &EdgeMeter{}
		edges[stream] = e
	}
	return e
}

func (n *NodeMeter) partition(stream string, partition int32) *PartitionMeter {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := partitionKey{stream, partition}
	p := n.partitions[key]
	if p == nil {
		p = &PartitionMeter{}
		n.partitions[key] = p
	}
	return p
}

// release forgets a partition that the node no longer owns: a number that nobody moves any more would look like
// a node that is stuck.
func (n *NodeMeter) release(stream string, partition int32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.partitions, partitionKey{stream, partition})
}

// count begins to ask an instance for its counters; the function that it returns ends it.
func (n *NodeMeter) count(c flow.Counting) (end func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counting[c] = struct{}{}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.counting, c)
	}
}

var (
	rowsDesc = prometheus.NewDesc("hearthline_rows_total", "Rows that passed between a node and a stream.",
		[]string{"node", "stream", "direction"}, nil)
	batchesDesc = prometheus.NewDesc("hearthline_batches_total", "Record batches that passed between a node and a stream.",
		[]string{"node", "stream", "direction"}, nil)
	badDesc        = prometheus.NewDesc("hearthline_bad_rows_total", "Rows set aside as dead letters.", []string{"node"}, nil)
	duplicatesDesc = prometheus.NewDesc("hearthline_duplicate_batches_total",
		"Batches dropped because they had been taken before (replays after a restart).", []string{"node"}, nil)
	retriesDesc   = prometheus.NewDesc("hearthline_retries_total", "Calls repeated because the world failed.", []string{"node"}, nil)
	restartsDesc  = prometheus.NewDesc("hearthline_restarts_total", "Times a node ended with an error and was started again.", []string{"node"}, nil)
	waitingDesc   = prometheus.NewDesc("hearthline_waiting", "1 while a node waits for what it reads or writes to: calls fail and are tried again.", []string{"node"}, nil)
	offsetDesc    = prometheus.NewDesc("hearthline_offset", "Next offset to be read.", []string{"node", "stream", "partition"}, nil)
	watermarkDesc = prometheus.NewDesc("hearthline_watermark_seconds",
		"Arrival time, in seconds since 1970, up to which the node has seen everything.", []string{"node", "stream", "partition"}, nil)
	checkpointBytesDesc = prometheus.NewDesc("hearthline_checkpoint_bytes", "Size of the last checkpoint.", []string{"node", "stream", "partition"}, nil)
	stageDesc           = prometheus.NewDesc("hearthline_stage", "What a stage counts by itself, summed over its instances at work.", []string{"node", "name"}, nil)
)

// Describe is of prometheus.Collector. Nodes come and go, so the meter is an unchecked collector.
func (m *Meter) Describe(chan<- *prometheus.Desc) {}

// Collect is of prometheus.Collector.
func (m *Meter) Collect(ch chan<- prometheus.Metric) {
	for _, n := range m.Nodes() {
		n.collect(ch)
	}
}

func (n *NodeMeter) collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count(badDesc, n.Bad.Load(), n.Name)
	count(duplicatesDesc, n.Duplicates.Load(), n.Name)
	count(retriesDesc, n.Retries.Load(), n.Name)
	count(restartsDesc, n.Restarts.Load(), n.Name)
	waiting := 0.0
	if n.Waiting() != nil {
		waiting = 1
	}
	gauge(waitingDesc, waiting, n.Name)
	ch <- n.Process
	ch <- n.Checkpoint
	s := n.Status()
	for _, e := range s.Edges {
		count(rowsDesc, e.Rows, n.Name, e.Stream, e.Direction)
		count(batchesDesc, e.Batches, n.Name, e.Stream, e.Direction)
	}
	for name, v := range s.Counters {
		ch <- prometheus.MustNewConstMetric(stageDesc, prometheus.UntypedValue, float64(v), n.Name, name)
	}
	for _, p := range s.Partitions {
		labels := []string{n.Name, p.Stream, itoa(p.Partition)}
		gauge(offsetDesc, float64(p.Offset), labels...)
		gauge(watermarkDesc, float64(p.Watermark)/1e6, labels...)
		gauge(checkpointBytesDesc, float64(p.CheckpointBytes), labels...)
	}
}
