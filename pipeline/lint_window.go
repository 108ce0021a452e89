package pipeline

import (
	"slices"

	"hearthline/flow"
	"hearthline/flow/arrival"
	"hearthline/flow/window"
)

// window puts windows around a stage that the file gives some.
func (p *planner) window(node *StageNode) {
	if node.Window == nil || node.New == nil || node.Window.Validate() != nil {
		return
	}
	inner, config := node.New, node.Window
	if _, several := inner().(flow.Inputs); several {
		p.find(node.at.of("window"), "stages."+node.Name+".window", "leave it out", "stage %s tells its inputs apart, and such a stage takes no window", node.Use)
		return
	}
	_, late := node.To[window.OutputLate]
	inOrder := slices.ContainsFunc(node.Stage.From, p.keyed)
	node.New = func() flow.Stage {
		windows := window.New(config, late, inner())
		if inOrder {
			return arrival.New(windows)
		}
		return windows
	}
}

// keyed says whether some stage parts the rows of a stream by a key: batches of several tasks then come together in it by chance.
func (p *planner) keyed(stream string) bool {
	return slices.ContainsFunc(p.spec.Stages, func(s Stage) bool { return s.Keys[stream] != nil })
}

// oneSchema refuses inputs of several schemas for a window, which holds rows of one.
func (p *planner) oneSchema(node *StageNode) bool {
	if node.Window == nil || len(node.From) < 2 {
		return true
	}
	first := p.plan.Streams[node.From[0]]
	for _, name := range node.From[1:] {
		s := p.plan.Streams[name]
		if first == nil || s == nil || first.Schema == nil || s.Schema == nil {
			return false
		}
		if why := difference(first.Schema, s.Schema); why != "" {
			p.find(node.at.of("from/"+name, "from"), "stages."+node.Name+".from", "let its inputs have one schema", "a window of stage %s would hold rows of %s and of %s, which differ: %s", node.Name, first.Name, name, why)
			return false
		}
	}
	return true
}
