package console

import (
	"cmp"
	"slices"

	"hearthline/pipeline"
)

// gatewayName is what a plan calls the writer of the first stream. A gateway's meter may carry an instance:
// "gateway/eu-1".
const gatewayName = "gateway"

// Graph is what does not change while a plan runs: its nodes and streams, and where they stand in the picture.
type Graph struct {
	Pipeline   string        `json:"pipeline"`
	Partitions int           `json:"partitions"`
	Nodes      []GraphNode   `json:"nodes"`   // in the order of the data
	Streams    []GraphStream `json:"streams"` // in the order of their writers; dead letters last
	Units      []GraphUnit   `json:"units"`
	Wide       Drawing       `json:"wide"` // from left to right
	Tall       Drawing       `json:"tall"` // from top to bottom, for a phone
}

// GraphNode is a gateway, a source, a stage or a sink.
type GraphNode struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"`            // gateway, source, stage or sink
	Topic   string   `json:"topic,omitempty"` // of others, which a source reads; no stream of this pipeline
	Use     string   `json:"use,omitempty"`
	Unit    string   `json:"unit"` // what runs it: the unit of a stage; the name itself for others
	Inputs  []string `json:"inputs"`
	Outputs []string `json:"outputs"` // without its dead letters
	Dead    string   `json:"dead,omitempty"`
	Trial   string   `json:"trial,omitempty"` // how a second version is tried beside it: shadow or canary
}

// GraphStream is an edge, or several: one to each reader.
type GraphStream struct {
	Name    string       `json:"name"`
	Writer  string       `json:"writer"`
	Sources []string     `json:"sources,omitempty"` // that write it beside its writer
	Readers []string     `json:"readers"`
	Unit    string       `json:"unit,omitempty"` // where set, it never reaches Kafka
	Dead    bool         `json:"dead"`           // dead letters of its writer
	Fields  []GraphField `json:"fields"`
}

// GraphField is a column.
type GraphField struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Nullable bool   `json:"nullable"`
}

// GraphUnit is what runs as one task.
type GraphUnit struct {
	Name   string   `json:"name"`
	Stages []string `json:"stages"`
	Inputs []string `json:"inputs"`
}

// newGraph reads a plan. It keeps nothing of it.
func newGraph(p *pipeline.Plan) *Graph {
	g := &Graph{Nodes: []GraphNode{}, Streams: []GraphStream{}, Units: []GraphUnit{}}
	if p.Spec != nil {
		g.Pipeline, g.Partitions = p.Spec.Name, p.Spec.Partitions
	}
	g.addNodes(p)
	g.addStreams(p)
	g.Wide, g.Tall = drawWide(g), drawTall(g)
	return g
}

func (g *Graph) addNodes(p *pipeline.Plan) {
	gateway := GraphNode{Name: gatewayName, Kind: "gateway", Unit: gatewayName, Inputs: []string{}}
	for name, s := range p.Streams {
		if s.Writer == gatewayName && name != pipeline.SourceDead {
			gateway.Outputs = append(gateway.Outputs, name)
		}
	}
	if len(gateway.Outputs) > 0 {
		slices.Sort(gateway.Outputs)
		g.Nodes = append(g.Nodes, gateway)
	}
	if p.Spec != nil {
		for i := range p.Spec.Sources {
			s := &p.Spec.Sources[i]
			g.Nodes = append(g.Nodes, GraphNode{
				Name: s.Name, Kind: "source", Topic: s.Topic, Unit: s.Name, Inputs: []string{}, Outputs: []string{p.Spec.Gateway.To}, Dead: pipeline.SourceDead,
			})
		}
	}
	for _, u := range p.Units {
		unit := GraphUnit{Name: u.Name, Inputs: orEmpty(u.Inputs)}
		for _, s := range u.Stages {
			unit.Stages = append(unit.Stages, s.Name)
			n := GraphNode{Name: s.Name, Kind: "stage", Use: s.Use, Unit: u.Name, Inputs: orEmpty(s.From), Dead: s.Dead}
			if s.Trial != nil {
				n.Trial = s.Trial.Kind
			}
			for _, to := range s.Outputs {
				if to != pipeline.Drop && !slices.Contains(n.Outputs, to) {
					n.Outputs = append(n.Outputs, to)
				}
			}
			slices.Sort(n.Outputs)
			n.Outputs = orEmpty(n.Outputs)
			g.Nodes = append(g.Nodes, n)
		}
		g.Units = append(g.Units, unit)
	}
	for _, s := range p.Sinks {
		g.Nodes = append(g.Nodes, GraphNode{
			Name: s.Name, Kind: "sink", Use: s.Use, Unit: s.Name, Inputs: orEmpty(s.Streams), Outputs: []string{}, Dead: s.Dead,
		})
	}
}

func (g *Graph) addStreams(p *pipeline.Plan) {
	place := map[string]int{}
	for i, n := range g.Nodes {
		place[n.Name] = i
	}
	for name, s := range p.Streams {
		writers := p.Writers(s)
		stream := GraphStream{Name: name, Writer: writers[0], Sources: writers[1:], Readers: orEmpty(s.Readers), Unit: s.Unit, Fields: []GraphField{}}
		if i, ok := place[stream.Writer]; ok {
			stream.Dead = g.Nodes[i].Dead == name
		}
		if s.Schema != nil {
			for _, f := range s.Schema.Fields() {
				stream.Fields = append(stream.Fields, GraphField{Name: f.Name, Type: f.Type.String(), Nullable: f.Nullable})
			}
		}
		g.Streams = append(g.Streams, stream)
	}
	slices.SortFunc(g.Streams, func(a, b GraphStream) int {
		return cmp.Or(boolCompare(a.Dead, b.Dead), cmp.Compare(place[a.Writer], place[b.Writer]), cmp.Compare(a.Name, b.Name))
	})
}

// node finds a node by name, nil when there is none.
func (g *Graph) node(name string) *GraphNode {
	for i := range g.Nodes {
		if g.Nodes[i].Name == name {
			return &g.Nodes[i]
		}
	}
	return nil
}

// stream finds a stream by name, nil when there is none.
func (g *Graph) stream(name string) *GraphStream {
	for i := range g.Streams {
		if g.Streams[i].Name == name {
			return &g.Streams[i]
		}
	}
	return nil
}

// drains says whether a stream is drawn as part of the drain, the one line that gathers dead letters: those that
// only sinks keep. One that a stage reads is a stream like any other.
func (g *Graph) drains(s *GraphStream) bool {
	if !s.Dead {
		return false
	}
	for _, r := range s.Readers {
		if n := g.node(r); n != nil && n.Kind == "stage" {
			return false
		}
	}
	return true
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return slices.Clone(s)
}
