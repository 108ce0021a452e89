package console

import (
	"strings"
	"sync"
	"time"

	"hearthline/flow"
	"hearthline/pipeline/run"
)

const (
	sampleEvery = time.Second
	rateWindow  = 5 * time.Second  // a rate is the mean of so long: batches come in lumps
	riseWindow  = 20 * time.Second // of lag; longer than the pause between two commits
	keepSamples = 61
)

// sampler keeps the counters of the last minute, so that rates need no help from whoever looks.
type sampler struct {
	mu      sync.Mutex
	samples []sample // oldest first, at most keepSamples
	moved   map[place]moved
}

type sample struct {
	at    time.Time
	nodes []run.NodeStatus
	lag   map[string]map[string][]int64 // nil when unknown
}

// place is a node on one partition of an input.
type place struct {
	node, stream string
	partition    int32
}

// moved is where a place was when it last moved.
type moved struct {
	offset int64 // -1: it has not taken anything yet, or another process does
	lag    int64
	since  time.Time
}

// add takes a sample.
func (s *sampler) add(now sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples = append(s.samples, now)
	if len(s.samples) > keepSamples {
		s.samples = append(s.samples[:0], s.samples[len(s.samples)-keepSamples:]...)
	}
	seen := map[place]moved{} // places that are gone are forgotten
	see := func(node, stream string, partition int32, offset int64) {
		at := place{node, stream, partition}
		lag := int64(0)
		if lags := now.lag[node][stream]; int(partition) < len(lags) {
			lag = lags[partition]
		}
		// Without an offset, only a lag that falls tells of a move, or one that is not there.
		m, ok := s.moved[at]
		if !ok || m.offset != offset || offset < 0 && (lag == 0 || lag < m.lag) {
			m = moved{offset: offset, since: now.at}
		}
		m.lag = lag
		seen[at] = m
	}
	for _, n := range now.nodes {
		for stream, lags := range now.lag[n.Name] {
			for p := range lags {
				see(n.Name, stream, int32(p), -1)
			}
		}
		for _, p := range n.Partitions {
			see(n.Name, p.Stream, p.Partition, p.Offset)
		}
	}
	s.moved = seen
}

// window is the last sample and an older one, to be compared.
type window struct {
	s         *sampler
	last, old sample
	seconds   float64 // between them; 0 while there is only one
}

// window compares the last sample with the newest that is at least d older, or the oldest there is. The caller
// holds s.mu and there is a sample.
func (s *sampler) window(d time.Duration) window {
	last := s.samples[len(s.samples)-1]
	old := s.samples[0]
	for _, o := range s.samples {
		if last.at.Sub(o.at) < d {
			break
		}
		old = o
	}
	return window{s: s, last: last, old: old, seconds: last.at.Sub(old.at).Seconds()}
}

// rate is the change a second of what count gives for a sample.
func (w window) rate(count func(sample) int64) float64 {
	if w.seconds <= 0 {
		return 0
	}
	return float64(w.rise(count)) / w.seconds
}

// rise is the change of what count gives; never below zero, since a node made anew counts from zero.
func (w window) rise(count func(sample) int64) int64 { return max(0, count(w.last)-count(w.old)) }

// rows gives what a node has counted on one of its edges: direction is in or out.
func (s sample) rows(node, direction, stream string) (e run.EdgeStatus, ok bool) {
	for _, n := range s.nodes {
		if !sameNode(n.Name, node) {
			continue
		}
		for _, edge := range n.Edges {
			if edge.Direction == direction && edge.Stream == stream {
				e.Rows, e.Batches, ok = e.Rows+edge.Rows, e.Batches+edge.Batches, true
			}
		}
	}
	return e, ok
}

// sameNode says whether a meter called name counts for node of the plan. A gateway's meter may carry its instance.
func sameNode(name, node string) bool {
	return name == node || node == gatewayName && strings.HasPrefix(name, gatewayName+"/")
}

// views gives nodes, streams and edges of the graph as they are now.
func (s *sampler) views(g *Graph, status *Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.samples) == 0 {
		return
	}
	w, minute := s.window(rateWindow), s.window(time.Minute)
	status.At = flow.MicrosOf(w.last.at)
	for _, n := range w.last.nodes {
		status.Nodes = append(status.Nodes, nodeView(n, w, minute))
	}
	if g == nil {
		return
	}
	for i := range g.Streams {
		stream := &g.Streams[i]
		view := StreamView{Name: stream.Name, Rate: w.rate(streamRows(stream))}
		view.Rows = streamRows(stream)(w.last)
		status.Streams = append(status.Streams, view)
		for _, reader := range stream.Readers {
			status.Edges = append(status.Edges, s.edge(g, stream, reader, w))
		}
	}
}

func nodeView(n run.NodeStatus, w, minute window) NodeView {
	count := func(f func(run.NodeStatus) int64) func(sample) int64 {
		return func(s sample) int64 {
			for _, o := range s.nodes {
				if o.Name == n.Name {
					return f(o)
				}
			}
			return 0
		}
	}
	direction := func(d string) func(run.NodeStatus) int64 {
		return func(n run.NodeStatus) (rows int64) {
			for _, e := range n.Edges {
				if e.Direction == d {
					rows += e.Rows
				}
			}
			return rows
		}
	}
	return NodeView{
		NodeStatus: n,
		InRate:     w.rate(count(direction("in"))),
		OutRate:    w.rate(count(direction("out"))),
		BadRate:    w.rate(count(func(n run.NodeStatus) int64 { return n.Bad })),
		Retrying:   minute.rise(count(func(n run.NodeStatus) int64 { return n.Retries })),
		Restarting: minute.rise(count(func(n run.NodeStatus) int64 { return n.Restarts })),
	}
}

// streamRows counts the rows of a stream by its writer, or by the reader that has taken most.
func streamRows(stream *GraphStream) func(sample) int64 {
	return func(s sample) int64 {
		if e, ok := s.rows(stream.Writer, "out", stream.Name); ok {
			return e.Rows
		}
		most := int64(0)
		for _, reader := range stream.Readers {
			e, _ := s.rows(reader, "in", stream.Name)
			most = max(most, e.Rows)
		}
		return most
	}
}

// edge looks at a stream from its reader's side. The caller holds s.mu.
func (s *sampler) edge(g *Graph, stream *GraphStream, reader string, w window) EdgeView {
	taken, _ := w.last.rows(reader, "in", stream.Name)
	e := EdgeView{
		Stream: stream.Name, Reader: reader, Rows: taken.Rows, Batches: taken.Batches,
		Lag: -1, Lags: []int64{}, WatermarkAge: -1, Partition: -1,
	}
	e.Rate = w.rate(func(s sample) int64 { t, _ := s.rows(reader, "in", stream.Name); return t.Rows })
	runs := reader
	if n := g.node(reader); n != nil {
		runs = n.Unit
		if writer := g.node(stream.Writer); writer != nil && writer.Unit == runs {
			return e.judge() // a plain call: nothing can wait
		}
	}
	if writer := g.node(stream.Writer); writer == nil || writer.Kind != "sink" && writer.Kind != "source" {
		s.position(&e, runs, w.last) // dead letters of sinks and sources carry no heartbeats: their time stands still, and means nothing
	}
	if lags, ok := w.last.lag[runs][stream.Name]; ok {
		s.lag(&e, runs, lags)
	}
	return e.judge()
}

// position finds the partition on which the reader is furthest behind now.
func (s *sampler) position(e *EdgeView, runs string, last sample) {
	for _, n := range last.nodes {
		if n.Name != runs {
			continue
		}
		for _, p := range n.Partitions {
			if p.Stream != e.Stream || p.Watermark <= 0 || p.Watermark == flow.EndOfTime {
				continue
			}
			if age := max(0, last.at.Sub(p.Watermark.Time()).Seconds()); age > e.WatermarkAge {
				e.WatermarkAge, e.Partition = age, p.Partition
			}
		}
	}
}

// lag sums the messages that wait, and finds the partition that holds most of them without moving.
func (s *sampler) lag(e *EdgeView, runs string, lags []int64) {
	e.Lag, e.Lags = 0, lags
	last := s.samples[len(s.samples)-1].at
	worst := int64(0)
	for p, lag := range lags {
		e.Lag += lag
		if lag <= worst {
			continue
		}
		worst, e.Partition = lag, int32(p)
		e.StillFor = 0
		if m, ok := s.moved[place{runs, e.Stream, int32(p)}]; ok {
			e.StillFor = last.Sub(m.since).Seconds()
		}
	}
	r := s.window(riseWindow)
	before, ok := r.old.lag[runs][e.Stream]
	if !ok || r.seconds <= 0 {
		return
	}
	was := int64(0)
	for _, lag := range before {
		was += lag
	}
	e.LagRise = float64(e.Lag-was) / r.seconds
}

const (
	stuckAfter  = 15.0 // seconds without a move though messages wait; longer than a sink gathers a range
	slowAge     = 20.0 // seconds behind now
	slowLagMin  = 20   // messages a partition that are no more than the work in hand
	slowRiseMin = 0.5  // messages a second
)

// judge gives an edge its state.
func (e EdgeView) judge() EdgeView {
	switch {
	case e.Lag > 0 && e.StillFor >= stuckAfter:
		e.State = "stuck"
	case e.Lag > int64(slowLagMin*len(e.Lags)) && (e.LagRise > slowRiseMin || e.WatermarkAge > slowAge):
		e.State = "slow"
	case e.Rate == 0:
		e.State = "idle"
	default:
		e.State = "ok"
	}
	return e
}

// history gives every stream's rate of the last minute.
func (s *sampler) history(g *Graph) []StreamSeries {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]StreamSeries, 0, len(g.Streams))
	for i := range g.Streams {
		rows := streamRows(&g.Streams[i])
		series := StreamSeries{Stream: g.Streams[i].Name, Rates: []float64{}}
		for k := 1; k < len(s.samples); k++ {
			first := max(0, k-int(rateWindow/sampleEvery))
			w := window{last: s.samples[k], old: s.samples[first]}
			w.seconds = w.last.at.Sub(w.old.at).Seconds()
			series.Rates = append(series.Rates, w.rate(rows))
		}
		all = append(all, series)
	}
	return all
}
