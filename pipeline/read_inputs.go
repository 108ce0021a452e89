package pipeline

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// inputs is a stream or a list of them, or streams by the name of the input.
type inputs struct {
	list  names
	named []entry[name]
}

func (i *inputs) decodeNode(d *decoder, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		i.list.decodeNode(d, n, path)
		return
	}
	if len(n.Content) == 0 {
		d.find(n, path, "write {INPUT: STREAM, …}", "%s is empty", path)
	}
	for at := 0; at+1 < len(n.Content); at += 2 {
		one := entry[name]{Name: n.Content[at].Value, Pos: Pos{n.Content[at].Line, n.Content[at].Column}}
		one.Value.decodeNode(d, n.Content[at+1], join(path, one.Name))
		i.named = append(i.named, one)
	}
}

// inputs reads what a stage reads.
func (d *decoder) inputs(from inputs, path string, s *Stage) {
	if len(from.named) == 0 {
		s.From = d.from(from.list, path, s.at, false)
		return
	}
	s.Inputs = map[string]string{}
	var all names
	for _, one := range from.named {
		s.Inputs[one.Name] = one.Value.text
		s.at["from."+one.Name] = one.Pos
		all = append(all, one.Value)
	}
	s.From = d.from(all, path, s.at, false)
}

// InputOf is the name that a stage gives a stream it reads; "" where it does not tell its inputs apart.
func (s *Stage) InputOf(stream string) string {
	for _, name := range sortedKeys(s.Inputs) {
		if s.Inputs[name] == stream {
			return name
		}
	}
	return ""
}

// inputNames compares the inputs that the file names with those that a stage has, nil where it does not tell them apart,
// and says whether they fit.
func (p *planner) inputNames(node *StageNode, has []string) bool {
	path, before := "stages."+node.Name+".from", len(p.findings)
	switch {
	case node.Inputs == nil && has != nil:
		p.find(node.at.of("from"), path, "write {"+strings.Join(has, ": STREAM, ")+": STREAM}", "stage %s tells its inputs apart", node.Use)
		return false
	case node.Inputs != nil && has == nil:
		p.find(node.at.of("from"), path, "write a stream, or a list of streams", "stage %s does not tell its inputs apart", node.Use)
		return false
	}
	for _, name := range sortedKeys(node.Inputs) {
		if !slices.Contains(has, name) {
			p.find(node.at.of("from."+name, "from"), path+"."+name, didYouMean(name, has), "stage %s has no input %q", node.Use, clip(name))
		}
	}
	for _, name := range has {
		if _, ok := node.Inputs[name]; !ok {
			p.find(node.at.of("from"), path, "add `"+name+": STREAM`", "the input %s of stage %s has no stream", name, node.Use)
		}
	}
	return len(p.findings) == before
}
