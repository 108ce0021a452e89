package run

import (
	"cmp"
	"slices"
	"strconv"

	"hearthline/flow"
)

// NodeStatus is a node's counters at one moment, for the console and for `up`.
type NodeStatus struct {
	Name       string            `json:"name"`
	Bad        int64             `json:"bad"`
	Duplicates int64             `json:"duplicates"`
	Retries    int64             `json:"retries"`
	Restarts   int64             `json:"restarts"`
	Edges      []EdgeStatus      `json:"edges"`
	Partitions []PartitionStatus `json:"partitions"`
	Counters   map[string]int64  `json:"counters,omitempty"` // what the stage counts by itself, see flow.Counting
}

// EdgeStatus is what has passed between a node and a stream since the process began.
type EdgeStatus struct {
	Stream    string `json:"stream"`
	Direction string `json:"direction"` // in or out, as the node sees it
	Rows      int64  `json:"rows"`
	Batches   int64  `json:"batches"`
}

// PartitionStatus is where a node is on one partition of an input.
type PartitionStatus struct {
	Stream          string      `json:"stream"`
	Partition       int32       `json:"partition"`
	Offset          int64       `json:"offset"`    // next to be read
	Watermark       flow.Micros `json:"watermark"` // µs since 1970; 0 before the first batch
	CheckpointBytes int64       `json:"checkpoint_bytes"`
}

// Status reads the counters. They are read one after the other: sums may differ by a batch that is under way.
func (n *NodeMeter) Status() NodeStatus {
	s := NodeStatus{
		Name: n.Name, Bad: n.Bad.Load(), Duplicates: n.Duplicates.Load(), Retries: n.Retries.Load(), Restarts: n.Restarts.Load(),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for direction, edges := range map[string]map[string]*EdgeMeter{"in": n.in, "out": n.out} {
		for stream, e := range edges {
			s.Edges = append(s.Edges, EdgeStatus{Stream: stream, Direction: direction, Rows: e.Rows.Load(), Batches: e.Batches.Load()})
		}
	}
	slices.SortFunc(s.Edges, func(a, b EdgeStatus) int {
		return cmp.Or(cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Stream, b.Stream))
	})
	for c := range n.counting {
		for name, v := range c.Counters() {
			if s.Counters == nil {
				s.Counters = map[string]int64{}
			}
			s.Counters[name] += v
		}
	}
	for key, p := range n.partitions {
		s.Partitions = append(s.Partitions, PartitionStatus{
			Stream: key.Stream, Partition: key.Partition, Offset: p.Offset.Load(),
			Watermark: flow.Micros(p.Watermark.Load()), CheckpointBytes: p.CheckpointBytes.Load(),
		})
	}
	slices.SortFunc(s.Partitions, func(a, b PartitionStatus) int {
		return cmp.Or(cmp.Compare(a.Stream, b.Stream), cmp.Compare(a.Partition, b.Partition))
	})
	return s
}

func itoa(n int32) string { return strconv.Itoa(int(n)) }
