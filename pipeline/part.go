package pipeline

import (
	"fmt"
	"slices"
	"strings"

	"hearthline/flow"
)

// Downstream gives the stages that what some streams hold comes to, in the order of the data; second versions on trial are none of them.
func (p *Plan) Downstream(streams ...string) []string {
	reached := slices.Clone(streams)
	var names []string
	for _, s := range p.stages() {
		if s.ShadowOf != "" || !slices.ContainsFunc(s.From, func(in string) bool { return slices.Contains(reached, in) }) {
			continue
		}
		names = append(names, s.Name)
		for _, out := range s.Outputs {
			reached = append(reached, out)
		}
		reached = append(reached, s.Dead)
	}
	return names
}

// stages gives all stages in the order of the data.
func (p *Plan) stages() []*StageNode {
	var all []*StageNode
	for _, u := range p.Units {
		all = append(all, u.Stages...)
	}
	next := ways{}
	var names []string
	byName := map[string]*StageNode{}
	for _, s := range all {
		names = append(names, s.Name)
		byName[s.Name] = s
	}
	for _, name := range sortedKeys(p.Streams) {
		for _, r := range p.Streams[name].Readers {
			if byName[r] != nil {
				next[p.Streams[name].Writer] = append(next[p.Streams[name].Writer], way{name, r})
			}
		}
	}
	all = all[:0]
	for _, name := range inOrder(names, next) {
		all = append(all, byName[name])
	}
	return all
}

// Part is the plan of some of the stages of p, without its gateway, its sources, its sinks, and its trials: a shadow runs if it is
// named. inputs are the streams that are
// given to them from outside. What the stages make goes over Kafka if it does so in p, or if none of them reads it. Stages that
// p runs together still do, as far as they are among them.
func (p *Plan) Part(stages, inputs []string) (*Plan, error) {
	spec := *p.Spec
	spec.Gateway, spec.Sources, spec.Sinks = Gateway{}, nil, nil
	spec.Stages = slices.DeleteFunc(slices.Clone(spec.Stages), func(s Stage) bool { return !slices.Contains(stages, s.Name) })
	for i := range spec.Stages {
		spec.Stages[i].Trial, spec.Stages[i].ShadowOf = nil, ""
	}
	part := &Plan{Spec: &spec, Streams: map[string]*Stream{}}
	for _, in := range inputs {
		st := p.Streams[in]
		if st == nil {
			return nil, fmt.Errorf("there is no stream %q; there are %s", in, strings.Join(sortedKeys(p.Streams), ", "))
		}
		part.Streams[in] = st.alone()
		part.Streams[in].Key = nil // its rows are where they belong already, and one end comes for all of its writers
	}
	chosen := map[string]*Unit{}
	for _, u := range p.Units {
		unit := &Unit{}
		for _, s := range u.Stages {
			if slices.Contains(stages, s.Name) {
				unit.Stages = append(unit.Stages, s.untried())
				chosen[s.Name] = unit
			}
		}
		if len(unit.Stages) > 0 {
			unit.Name = unitName(unit)
			part.Units = append(part.Units, unit)
		}
	}
	for _, name := range stages {
		if chosen[name] == nil {
			return nil, fmt.Errorf("there is no stage %q", name)
		}
	}
	for _, u := range part.Units {
		if err := part.writtenBy(p, u, inputs); err != nil {
			return nil, err
		}
	}
	for _, u := range part.Units {
		if err := part.readBy(u); err != nil {
			return nil, err
		}
	}
	for _, in := range inputs {
		if len(part.Streams[in].Readers) == 0 {
			return nil, fmt.Errorf("none of %s reads %s", strings.Join(stages, ", "), in)
		}
	}
	part.route(p, chosen)
	return part, nil
}

// untried is a stage without what is tried beside it; a second version is one like any other.
func (s *StageNode) untried() *StageNode {
	c := *s
	c.Trial, c.ShadowOf, c.Canary = nil, "", nil
	return &c
}

// alone is a stream that nobody reads yet.
func (s *Stream) alone() *Stream {
	c := *s
	c.Readers, c.Unit = nil, ""
	return &c
}

func unitName(u *Unit) string {
	var names []string
	for _, s := range u.Stages {
		names = append(names, s.Name)
	}
	return strings.Join(names, "+")
}

// writtenBy notes what the stages of a unit write.
func (p *Plan) writtenBy(whole *Plan, u *Unit, inputs []string) error {
	for _, s := range u.Stages {
		outputs := []string{s.Dead}
		for _, output := range sortedKeys(s.Outputs) {
			outputs = append(outputs, s.Outputs[output])
		}
		for _, out := range outputs {
			switch {
			case out == Drop:
			case slices.Contains(inputs, out):
				return fmt.Errorf("%s is given, and %s makes it: name the stages that are meant", out, s.Name)
			default:
				p.Streams[out] = &Stream{Name: out, Schema: whole.Streams[out].Schema, Writer: s.Name, Key: whole.Streams[out].Key}
			}
		}
	}
	return nil
}

// readBy notes what the stages of a unit read.
func (p *Plan) readBy(u *Unit) error {
	for _, s := range u.Stages {
		for _, in := range s.From {
			st := p.Streams[in]
			if st == nil {
				return fmt.Errorf("%s reads %s too, which is neither given nor made by one of the stages", s.Name, in)
			}
			st.Readers = append(st.Readers, s.Name)
		}
	}
	return nil
}

// route says which streams stay inside a unit, and what the units read from Kafka.
func (p *Plan) route(whole *Plan, unitOf map[string]*Unit) {
	for _, name := range sortedKeys(p.Streams) {
		st := p.Streams[name]
		writer := unitOf[st.Writer]
		if writer != nil && len(st.Readers) > 0 && !whole.Streams[name].OnKafka() {
			st.Unit = writer.Name
		}
		for _, r := range st.Readers {
			if u := unitOf[r]; u != writer {
				st.Unit = ""
				if !slices.Contains(u.Inputs, name) {
					u.Inputs = append(u.Inputs, name)
				}
			}
		}
	}
	for _, u := range p.Units {
		slices.Sort(u.Inputs)
	}
}

// Made gives the streams of a part that its stages write to Kafka, dead letters among them.
func (p *Plan) Made() []string {
	var made []string
	for _, name := range sortedKeys(p.Streams) {
		if s := p.Streams[name]; s.OnKafka() && slices.ContainsFunc(p.Spec.Stages, func(st Stage) bool { return st.Name == s.Writer }) {
			made = append(made, name)
		}
	}
	return made
}

// Keep adds a sink to a part.
func (p *Plan) Keep(name string, sink func() flow.Sink, streams []string) {
	node := &SinkNode{Sink: Sink{Name: name, Use: name}, New: sink, Streams: streams, Dead: name + deadSuffix}
	p.Sinks = append(p.Sinks, node)
	p.Streams[node.Dead] = &Stream{Name: node.Dead, Schema: flow.DeadSchema, Writer: name}
	for _, s := range streams {
		p.Streams[s].Readers = append(p.Streams[s].Readers, name)
	}
}
