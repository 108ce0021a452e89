package pipeline

import (
	"reflect"
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"go.yaml.in/yaml/v3"
)

// Same says whether a unit, a sink or a source, by its name, does in both plans the same in the same surroundings: its settings, its streams, what
// they hold, and who else has to do with it. One that runs by the plan before may then go on as if it ran by this one. What a plan
// says of the whole pipeline (its name, partitions, Kafka) is compared, too; what stands in files that settings name is not.
func (p *Plan) Same(before *Plan, node string) bool {
	now, was := p.around(node), before.around(node)
	if now == nil || was == nil || !p.Spec.Kafka.Same(before.Spec.Kafka) {
		return false
	}
	if !reflect.DeepEqual(now.all, was.all) || !reflect.DeepEqual(now.streams, was.streams) || len(now.schemas) != len(was.schemas) {
		return false
	}
	for stream, schema := range now.schemas {
		if other := was.schemas[stream]; (schema == nil) != (other == nil) || schema != nil && !schema.Equal(other) {
			return false
		}
	}
	return true
}

// surroundings is all of a plan that the work of one node depends on, without places in the file and without functions.
type surroundings struct {
	all     []any
	streams map[string]edgeAround
	schemas map[string]*arrow.Schema
}

// edgeAround is what a node that reads or writes a stream has to know of it.
type edgeAround struct {
	inside   string   // the unit whose stages keep it to themselves
	key      []string // of its rows
	writer   string   // by name
	writerID string   // and by what Kafka knows it by
	ends     []string // of a sink's dead letters: the streams which have to end before they do
	toStage  bool     // of dead letters: some stage reads them, and waits for the time that they tell
}

// around gathers the surroundings of a node; nil when there is none of that name.
func (p *Plan) around(node string) *surroundings {
	a := &surroundings{streams: map[string]edgeAround{}, schemas: map[string]*arrow.Schema{}}
	s := p.Spec
	a.all = append(a.all, s.Name, s.Partitions, s.Checkpoint, s.Gateway.To, s.Gateway.Commands)
	for _, sink := range p.Sinks {
		if sink.Name == node {
			a.sink(p, sink)
			return a
		}
	}
	for _, source := range s.Sources {
		if source.Name == node {
			source.Pos, source.Kafka.Pos, source.Kafka.at = Pos{}, Pos{}, nil
			a.all = append(a.all, source)
			return a
		}
	}
	units := p.together(node)
	for _, u := range units {
		a.unit(p, u)
	}
	if len(units) == 0 {
		return nil
	}
	return a
}

// together is a unit by its name, and those that look at how it does: its shadows, or whose shadow it is.
func (p *Plan) together(name string) []*Unit {
	var units []*Unit
	of := func(u *Unit) string { return u.Stages[0].ShadowOf } // a shadow is alone in its unit
	i := slices.IndexFunc(p.Units, func(u *Unit) bool { return u.Name == name })
	if i < 0 {
		return nil
	}
	for _, u := range p.Units {
		shadow := of(u) != "" && p.Node(of(u)) == p.Units[i]
		first := of(p.Units[i]) != "" && p.Node(of(p.Units[i])) == u
		if u == p.Units[i] || shadow || first {
			units = append(units, u)
		}
	}
	return units
}

func (a *surroundings) unit(p *Plan, u *Unit) {
	a.all = append(a.all, u.Name, u.Inputs)
	for _, node := range u.Stages {
		n := *node
		n.New, n.Stage = nil, node.Stage.placeless()
		streams := slices.Concat(n.From, sortedValues(n.Outputs), []string{n.Dead})
		if n.Canary != nil {
			c := *n.Canary
			c.New, n.Canary = nil, &c
			for _, stream := range sortedValues(n.Outputs) {
				streams = append(streams, Side(stream, TrialCanary))
			}
		}
		a.all = append(a.all, n)
		a.edges(p, streams)
	}
}

func (a *surroundings) sink(p *Plan, node *SinkNode) {
	n := *node
	n.New, n.Pos, n.at, n.Settings = nil, Pos{}, nil, bare(&n.Settings)
	n.From = nil // what its patterns mean is in Streams
	a.all = append(a.all, n)
	a.edges(p, append(slices.Clone(n.Streams), n.Dead))
}

func (a *surroundings) edges(p *Plan, streams []string) {
	for _, name := range streams {
		s := p.Streams[name]
		if s == nil {
			continue
		}
		e := edgeAround{inside: s.Unit, key: s.Key, writer: s.Writer, writerID: s.Writer}
		if u := p.Node(s.Writer); u != nil {
			for _, st := range u.Stages {
				if st.Name == s.Writer {
					e.writerID = st.ID()
				}
			}
		}
		for _, sink := range p.Sinks {
			if sink.Dead == name {
				e.ends = sink.Streams
			}
		}
		e.toStage = strings.HasSuffix(name, deadSuffix) && slices.ContainsFunc(s.Readers, func(r string) bool { return p.Node(r) != nil })
		a.streams[name], a.schemas[name] = e, s.Schema
	}
}

func sortedValues(m map[string]string) []string {
	var all []string
	for _, key := range sortedKeys(m) {
		all = append(all, m[key])
	}
	return all
}

// placeless is a stage wherever it stands in its file.
func (s *Stage) placeless() Stage {
	n := *s
	n.Pos, n.at, n.Settings, n.SQL = Pos{}, nil, bare(&s.Settings), s.SQL.placeless()
	if s.Trial != nil {
		t := *s.Trial
		t.Pos, t.at, t.Settings, t.SQL = Pos{}, nil, bare(&s.Trial.Settings), s.Trial.SQL.placeless()
		n.Trial = &t
	}
	return n
}

func (q *Query) placeless() *Query {
	if q == nil {
		return nil
	}
	return &Query{Text: q.Text}
}

// bare is a node of YAML without its comments and its place.
func bare(n *yaml.Node) yaml.Node {
	if n.Kind == yaml.AliasNode {
		return bare(n.Alias)
	}
	v := yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag, Value: n.Value}
	for _, c := range n.Content {
		one := bare(c)
		v.Content = append(v.Content, &one)
	}
	return v
}
