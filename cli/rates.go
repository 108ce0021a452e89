package cli

import (
	"maps"
	"slices"
	"time"

	"hearthline/pipeline"
	"hearthline/pipeline/run"
)

// rates turns counters into rows a second, between the last two samples.
type rates struct {
	meter     *run.Meter
	now, last map[[2]string]int64 // node, stream → rows taken
	at, since time.Time
}

func newRates(m *run.Meter) *rates {
	r := &rates{meter: m}
	r.sample(time.Now())
	return r
}

func (r *rates) sample(at time.Time) {
	r.last, r.since = r.now, r.at
	r.now, r.at = map[[2]string]int64{}, at
	for _, n := range r.meter.Nodes() {
		for _, e := range n.Status().Edges {
			if e.Direction == "in" {
				r.now[[2]string{n.Name, e.Stream}] = e.Rows
			}
		}
	}
}

// of is the rows a second that a node takes from a stream.
func (r *rates) of(node, stream string) float64 {
	seconds := r.at.Sub(r.since).Seconds()
	if r.last == nil || seconds <= 0 {
		return 0
	}
	key := [2]string{node, stream}
	return float64(r.now[key]-r.last[key]) / seconds
}

// rows is what a node has taken from a stream since the process began.
func (r *rates) rows(node, stream string) int64 { return r.now[[2]string{node, stream}] }

// sortedStreams gives the streams in the order of the data: as their writers stand in the plan.
func sortedStreams(p *pipeline.Plan) []string {
	rank := map[string]int{}
	for i, u := range p.Units {
		for j, s := range u.Stages {
			rank[s.Name] = 1 + i*100 + j
		}
	}
	names := slices.Sorted(maps.Keys(p.Streams))
	slices.SortStableFunc(names, func(a, b string) int { return rank[p.Streams[a].Writer] - rank[p.Streams[b].Writer] })
	return names
}

// pipelineGateway names the first stage that reads the gateway's stream: its intake is the gateway's output.
func pipelineGateway(p *pipeline.Plan) string {
	if s := p.Streams[p.Spec.Gateway.To]; s != nil && len(s.Readers) > 0 {
		return s.Readers[0]
	}
	return ""
}
