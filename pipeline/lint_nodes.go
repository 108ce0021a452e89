package pipeline

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// nodes finds every node in the catalogue and decodes its settings.
func (p *planner) nodes() {
	for i := range p.spec.Stages {
		s := &p.spec.Stages[i]
		node := &StageNode{Stage: *s, Dead: s.Name + deadSuffix}
		p.stages[s.Name] = node
		node.New = instance(p, p.cat.Stages, "stage", "stages."+s.Name, s.Use, &node.Settings, s.at)
		if node.New == nil || s.Parallel == 0 {
			continue
		}
		if stage, ok := node.New().(flow.Stateful); ok {
			p.find(s.at.of("parallel"), "stages."+s.Name+".parallel", "leave it out", "stage %s remembers (%T); it works on one batch of a partition at a time", s.Use, stage)
		}
	}
	for i := range p.spec.Sinks {
		s := &p.spec.Sinks[i]
		node := &SinkNode{Sink: *s, Dead: s.Name + deadSuffix}
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
	if len(Keys(into)) == 0 && n.Kind == yaml.MappingNode && len(n.Content) > 0 {
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
