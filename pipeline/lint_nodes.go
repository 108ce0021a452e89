package pipeline

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// identities finds nodes that Kafka would take for the same.
func (p *planner) identities() {
	taken := map[string]string{}
	check := func(id, name, was string, at Pos, path string) {
		if other, ok := taken[id]; ok && was != "" {
			p.find(at, path+".was", "a name belongs to one node: drop this was, or rename the other", "%s goes on under the name %s, and so does %s", name, id, other)
		} else if ok && p.renamed(other) {
			p.find(at, path, "take another name: the old one's consumer group, state and dead letters are in use", "%s was the name of %s, which goes on under it", id, other)
		}
		taken[id] = name
	}
	for i := range p.spec.Stages {
		s := &p.spec.Stages[i]
		check(s.ID(), s.Name, s.Was, s.at.of("was", ""), s.path())
	}
	p.shadowNames()
	for i := range p.spec.Sinks {
		s := &p.spec.Sinks[i]
		check(s.ID(), s.Name, s.Was, s.at.of("was", ""), "sinks."+s.Name)
	}
	for _, s := range p.spec.Sources {
		if other, ok := taken[s.Name]; ok { // metrics, the console and deploy.nodes know nodes by their names
			p.find(s.Pos, "sources."+s.Name, "rename one", "%s is the name of %s, too", s.Name, other)
		}
	}
}

// renamed says whether a node goes on under another name than its own.
func (p *planner) renamed(name string) bool {
	return slices.ContainsFunc(p.spec.Stages, func(s Stage) bool { return s.Name == name && s.ID() != name }) ||
		slices.ContainsFunc(p.spec.Sinks, func(s Sink) bool { return s.Name == name && s.ID() != name })
}

// nodes finds every node in the catalogue and decodes its settings.
func (p *planner) nodes() {
	for i := range p.spec.Stages {
		s := &p.spec.Stages[i]
		node := &StageNode{Stage: *s, Dead: s.ID() + deadSuffix}
		p.stages[s.Name] = node
		node.New = p.version(s, s.path(), s.Name, s.Use, s.SQL, &node.Settings, s.at)
		p.workers(node)
		p.window(node)
		p.canary(node)
		if node.New == nil || s.Parallel == 0 {
			continue
		}
		if stage, ok := node.New().(flow.Stateful); ok {
			p.find(s.at.of("parallel"), s.path()+".parallel", "leave it out", "stage %s remembers (%T); it works on one batch of a partition at a time", s.Use, stage)
		}
	}
	for i := range p.spec.Sinks {
		s := &p.spec.Sinks[i]
		node := &SinkNode{Sink: *s, Dead: s.ID() + deadSuffix}
		p.sinks[s.Name] = node
		p.plan.Sinks = append(p.plan.Sinks, node)
		node.New = instance(p, p.cat.Sinks, "sink", "sinks."+s.Name, s.Use, &node.Settings, s.at)
	}
	if p.cat.Gateway != nil {
		p.plan.Gateway = p.cat.Gateway()
		g := p.spec.Gateway
		for i := 0; i+1 < len(g.Settings.Content); i += 2 {
			if key := g.Settings.Content[i]; key.Value == "to" && slices.Contains(Keys(p.plan.Gateway), "to") {
				p.find(Pos{key.Line, key.Column}, "gateway.settings.to", "leave it out", "the gateway's stream is named beside its settings: gateway.to")
			}
		}
		p.settings(&g.Settings, p.plan.Gateway, "gateway", "the gateway", g.at)
	}
}

// instance looks a node up and decodes its settings once. The function it returns makes further instances; nil when
// there was something to find.
func instance[T any](p *planner, catalog map[string]func() T, kind, path, use string, settings *yaml.Node, at places) func() T {
	make, ok := catalog[use]
	if _, renamed := at["use"]; !ok && !renamed && !nodeNames.MatchString(use) {
		return nil // which is said already
	}
	if !ok {
		p.find(at.of("use", ""), path, didYouMean(use, slices.Collect(maps.Keys(catalog))), "there is no %s %q", kind, use)
		return nil
	}
	if !p.settings(settings, make(), path, kind+" "+use, at) {
		return nil
	}
	return func() T {
		made := make()
		if findings := decodeSettings(settings, made, path, p.spec.File); Failed(findings) {
			panic(fmt.Sprintf("settings of %s were good once: %v", path, findings))
		}
		return made
	}
}

// settings decodes into a pointer to a struct, and says whether nothing was wrong.
func (p *planner) settings(n *yaml.Node, into any, path, what string, at places) bool {
	if _, any := into.(yaml.Unmarshaler); !any && len(Keys(into)) == 0 && n.Kind == yaml.MappingNode && len(n.Content) > 0 {
		p.find(at.of("settings"), path+".settings", "leave them out", "%s has no settings", what)
		return false
	}
	findings := decodeSettings(n, into, path, p.spec.File)
	for _, f := range findings {
		if n.Kind == 0 { // the defaults do not do: something must be said
			f.Pos = at.of("")
		}
		if !p.spec.unset[f.Pos] { // which is said already
			p.findings = append(p.findings, f)
		}
	}
	return !Failed(findings)
}

func decodeSettings(n *yaml.Node, into any, path, file string) []Finding {
	if v := reflect.ValueOf(into); v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil
	}
	return Decode(n, into, path+".settings", file)
}
