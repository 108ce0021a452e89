package pipeline

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// NewPlan proves that the parts of a spec fit together, and says with what they are joined. It starts nothing and
// needs no network: stages are known by what they make of records without rows.
//
// Errors are: a stage or sink that the catalogue does not have; settings that cannot be decoded; a stream that is read
// and never written, or written by two, or (dead letters aside) never read: an output that nobody wants is given
// to [Drop]; a way round, between nodes or between the tasks that `together` makes of them; an output that the
// stage has not, or that goes nowhere; a stage or sink that does not take the schema of a stream it reads.
//
// All findings come at once, in the order of the file. The plan is nil when one is an error. Give NewPlan what
// [Read] returned, whatever Read found: what follows only from that is not said again.
func NewPlan(ctx context.Context, spec *Spec, cat Catalog) (*Plan, []Finding) {
	p := &planner{
		ctx: ctx, spec: spec, cat: cat,
		plan:   &Plan{Spec: spec, Streams: map[string]*Stream{}},
		stages: map[string]*StageNode{}, sinks: map[string]*SinkNode{},
	}
	p.nodes()
	p.identities()
	p.writers()
	p.readers()
	if !p.cycles() && p.group() {
		p.schemas()
		p.promotable()
	}
	findings := sorted(p.findings)
	if Failed(findings) || spec.failed {
		return nil, findings
	}
	return p.plan, findings
}

// Lint reads a pipeline.yaml and plans it. The plan is nil when a finding is an error; the error speaks of the file
// as a whole.
func Lint(ctx context.Context, file string, cat Catalog) (*Plan, []Finding, error) {
	spec, findings, err := Read(file)
	if err != nil {
		return nil, nil, err
	}
	plan, more := NewPlan(ctx, spec, cat)
	if findings = sorted(append(findings, more...)); Failed(findings) {
		return nil, findings, nil
	}
	return plan, findings, nil
}

type planner struct {
	ctx      context.Context
	spec     *Spec
	cat      Catalog
	plan     *Plan
	stages   map[string]*StageNode
	sinks    map[string]*SinkNode
	order    []*StageNode        // in the order of the data, when there is no way round
	spread   map[string][]string // stream → columns by which its rows are parted; nil where they are not known
	findings []Finding
}

func (p *planner) find(at Pos, path, hint, format string, args ...any) {
	p.findings = append(p.findings, Finding{File: p.spec.File, Pos: at, Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// writers notes who writes each stream.
func (p *planner) writers() {
	if g := p.spec.Gateway; g.To != "" {
		p.write(gatewayNode, g.To, flow.EventSchema, g.at.of("to"), "gateway.to")
	}
	if g := p.spec.Gateway; g.Commands != "" && g.Commands == g.To {
		p.find(g.at.of("commands"), "gateway.commands", "name another stream", "rows and the steps of commands cannot share %s", g.To)
	} else if g.Commands != "" {
		p.write(gatewayNode, g.Commands, flow.CommandSchema, g.at.of("commands"), "gateway.commands")
	}
	if len(p.spec.Sources) > 0 {
		p.write(gatewayNode, SourceDead, flow.DeadSchema, p.spec.Sources[0].Pos, "sources")
	}
	for i := range p.spec.Stages {
		s := &p.spec.Stages[i]
		if s.ToAny != "" {
			p.write(s.Name, s.ToAny, nil, s.at.of("to"), s.path()+".to")
		}
		for _, output := range sortedKeys(s.To) {
			if stream := s.To[output]; stream != Drop && stream != "" {
				p.write(s.Name, stream, nil, s.at.of("to="+stream, "to"), s.path()+".to."+output)
			}
		}
		p.write(s.Name, s.ID()+deadSuffix, flow.DeadSchema, s.at.of(""), s.path())
		for stream, key := range s.Keys {
			if st := p.plan.Streams[stream]; st != nil && st.Writer == s.Name {
				st.Key = key
			}
		}
		p.sides(s)
	}
	for i := range p.spec.Sinks {
		s := &p.spec.Sinks[i]
		p.write(s.Name, s.ID()+deadSuffix, flow.DeadSchema, s.at.of(""), "sinks."+s.Name)
	}
	p.collisions()
}

func (p *planner) write(node, stream string, schema *arrow.Schema, at Pos, path string) {
	if old := p.plan.Streams[stream]; old != nil {
		if old.Writer != node {
			p.find(at, path, "give one of them a stream of its own", "%s writes %s, which %s writes already; a stream has one writer", node, stream, old.Writer)
		}
		return
	}
	p.plan.Streams[stream] = &Stream{Name: stream, Schema: schema, Writer: node}
}

// collisions finds streams that Kafka refuses to hold side by side: in the names of its metrics a dot becomes a _.
func (p *planner) collisions() {
	seen := map[string]string{}
	for _, name := range sortedKeys(p.plan.Streams) {
		flat := strings.ReplaceAll(name, ".", "_")
		if other, ok := seen[flat]; ok {
			at, path := p.writtenAt(p.plan.Streams[name])
			p.find(at, path, "rename one", "Kafka takes %s and %s for the same name", other, name)
		}
		seen[flat] = name
	}
}

// writtenAt is where the file says who writes s.
func (p *planner) writtenAt(s *Stream) (Pos, string) {
	if s.Writer == gatewayNode && s.Name == p.spec.Gateway.Commands {
		return p.spec.Gateway.at.of("commands"), "gateway.commands"
	}
	if s.Writer == gatewayNode {
		return p.spec.Gateway.at.of("to"), "gateway.to"
	}
	for i := range p.spec.Stages {
		if st := &p.spec.Stages[i]; st.Name == s.Writer {
			return st.at.of("to="+s.Name, "to"), st.path() + ".to"
		}
	}
	for i := range p.spec.Sinks {
		if st := &p.spec.Sinks[i]; st.Name == s.Writer {
			return st.at.of(""), "sinks." + st.Name
		}
	}
	return Pos{1, 1}, ""
}

// readers notes who reads each stream, and finds those that nobody writes or nobody reads.
func (p *planner) readers() {
	for i := range p.spec.Stages {
		s := &p.spec.Stages[i]
		for _, stream := range s.From {
			p.read(s.Name, stream, s.at.of("from/"+stream, "from"), s.path()+".from")
		}
	}
	for i := range p.spec.Sinks {
		s := &p.spec.Sinks[i]
		node := p.sinks[s.Name]
		node.Streams = nil
		for _, stream := range s.From {
			if !strings.Contains(stream, "*") && !slices.Contains(node.Streams, stream) {
				p.read(s.Name, stream, s.at.of("from/"+stream, "from"), "sinks."+s.Name+".from")
				node.Streams = append(node.Streams, stream)
			}
		}
	}
	// Patterns come last: they take what is there, but never close a way round.
	for i := range p.spec.Sinks {
		p.patterns(&p.spec.Sinks[i])
	}
	if p.spec.broken {
		return
	}
	for _, name := range sortedKeys(p.plan.Streams) {
		if s := p.plan.Streams[name]; len(s.Readers) == 0 && !s.Side && !strings.HasSuffix(name, deadSuffix) {
			at, path := p.writtenAt(s)
			hint := "let a stage or sink read it"
			if s.Writer != gatewayNode {
				hint += ", or write _ if nobody wants it"
			}
			p.find(at, path, hint, "nobody reads %s", name)
		}
	}
}

func (p *planner) read(node, stream string, at Pos, path string) {
	s := p.plan.Streams[stream]
	if s == nil {
		if !p.spec.broken {
			p.find(at, path, didYouMean(stream, slices.Collect(maps.Keys(p.plan.Streams))), "nobody writes %s", stream)
		}
		return
	}
	s.Readers = append(s.Readers, node)
}

// patterns resolves the patterns of a sink. They leave out what would bring the sink's own dead letters back to it:
// of two sinks that take "*.dead", the first takes those of the second.
func (p *planner) patterns(s *Sink) {
	node := p.sinks[s.Name]
	for _, pattern := range s.From {
		if !strings.Contains(pattern, "*") {
			continue
		}
		found := false
		for _, name := range sortedKeys(p.plan.Streams) {
			stream := p.plan.Streams[name]
			// A name matched by * alone: [ ] ? and \ are refused in stream names.
			if ok, err := path.Match(pattern, name); !ok || err != nil {
				continue
			}
			found = true
			if stream.Side || slices.Contains(node.Streams, name) || p.reaches(s.Name, stream.Writer, map[string]bool{}) {
				continue
			}
			stream.Readers = append(stream.Readers, s.Name)
			node.Streams = append(node.Streams, name)
		}
		if !found && !p.spec.broken {
			p.find(s.at.of("from/"+pattern, "from"), "sinks."+s.Name+".from", "", "no stream is like %q", pattern)
		}
	}
	slices.Sort(node.Streams)
}

// reaches says whether what node from writes comes, over any way, to node to. A node reaches itself.
func (p *planner) reaches(from, to string, seen map[string]bool) bool {
	if from == to {
		return true
	}
	if seen[from] {
		return false
	}
	seen[from] = true
	for _, s := range p.plan.Streams {
		if s.Writer == from {
			for _, r := range s.Readers {
				if p.reaches(r, to, seen) {
					return true
				}
			}
		}
	}
	return false
}
