// Package pipeline reads a pipeline.yaml strictly, proves that its parts fit together (names, graph, schemas, settings)
// and draws it. What it gives is a [Plan]; package run carries it out.
package pipeline

import (
	"strings"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// Plan is a Spec that fits together: streams resolved, schemas known, settings decoded.
type Plan struct {
	Spec    *Spec
	Streams map[string]*Stream // by name, dead-letter streams included
	Units   []*Unit            // what runs as one task each: a group of `together`, or a single stage; in the order of the data
	Sinks   []*SinkNode
	// Gateway is the catalogue's gateway with the settings of the file, nil when the catalogue has none.
	Gateway any
}

// Stream is an edge of the graph.
type Stream struct {
	Name    string
	Schema  *arrow.Schema
	Writer  string   // gateway, a stage or (for <sink>.dead) a sink
	Readers []string // stages and sinks, in the order of the file
	// Side says that a second version writes it, to be compared: patterns of sinks do not take it, and nobody has to read it.
	Side bool
	// Key is the columns by whose values its rows are parted over its partitions; nil where they stay in the partition of what
	// they were made of. All tasks of its writer write to each of its partitions.
	Key []string
	// Unit is set when all its readers and its writer are in that unit: it never reaches Kafka. Where only some
	// of the readers are in the writer's unit, those still get it by a plain call, and the others from Kafka.
	Unit string
}

// OnKafka says whether the stream is a Kafka topic: false for an edge inside a unit, and for what [Plan.Streams]
// holds under [Drop]: nothing.
func (s *Stream) OnKafka() bool { return s != nil && s.Unit == "" }

// Unit is one or more stages that run in one task, chained by plain calls.
type Unit struct {
	Name   string       // the stage's name; of a group, the names joined by "+"
	Inputs []string     // the streams it reads from Kafka, sorted; never one that a stage of the unit writes
	Stages []*StageNode // in the order of the data
}

// StageNode is a stage with its settings decoded.
type StageNode struct {
	Stage
	// New makes an instance with the settings of the file. It has been called once, by lint, and cannot fail.
	New       func() flow.Stage
	Outputs   map[string]string // output name → stream, resolved; all outputs the stage has; [Drop] = nowhere
	Dead      string            // stream of its dead letters
	InWorkers bool              // it runs in processes of its own, for which its role needs a Python
	Canary    *CanaryNode       // the second version that runs in the same task; nil: none
}

// SinkNode is a sink with its settings decoded.
type SinkNode struct {
	Sink
	New     func() flow.Sink
	Streams []string // patterns resolved
	Dead    string
}

// Drop stands in `to:` for the stream of an output that nobody wants: `to: {features: features, late: _}`.
const Drop = "_"

// ID is what Kafka knows a unit by: the IDs of its stages joined by "+". See [Stage.ID].
func (u *Unit) ID() string {
	var ids []string
	for _, s := range u.Stages {
		ids = append(ids, s.ID())
	}
	return strings.Join(ids, "+")
}

// Group names the consumer group of a unit or sink, by its name.
func (p *Plan) Group(node string) string {
	for _, u := range p.Units {
		if u.Name == node {
			return p.Spec.Name + "." + u.ID()
		}
	}
	for _, s := range p.Sinks {
		if s.Name == node {
			return p.Spec.Name + "." + s.ID()
		}
	}
	return p.Spec.Name + "." + node
}

// Writers are the nodes that write a stream: the gateway's own is written by sources, too, and their dead letters by them alone.
func (p *Plan) Writers(s *Stream) []string {
	if p.Spec == nil || s.Writer != gatewayNode || s.Name != p.Spec.Gateway.To && s.Name != SourceDead {
		return []string{s.Writer}
	}
	var writers []string
	if s.Name != SourceDead {
		writers = append(writers, gatewayNode)
	}
	for i := range p.Spec.Sources {
		writers = append(writers, p.Spec.Sources[i].Name)
	}
	return writers
}

// WrittenAt is where the file says who writes a stream, and the path of that place.
func (p *Plan) WrittenAt(stream string) (Pos, string) {
	s := p.Streams[stream]
	if s == nil {
		return Pos{1, 1}, ""
	}
	return (&planner{spec: p.Spec, plan: p}).writtenAt(s)
}

// Node finds the unit that a stage runs in, nil when there is none of that name.
func (p *Plan) Node(stage string) *Unit {
	for _, u := range p.Units {
		if u.Name == stage {
			return u
		}
		for _, s := range u.Stages {
			if s.Name == stage {
				return u
			}
		}
	}
	return nil
}
