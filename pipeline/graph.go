package pipeline

import (
	"fmt"
	"slices"
	"strings"
)

// Mermaid draws the plan as a Mermaid flowchart (https://mermaid.js.org), which GitHub and many wikis show.
func (p *Plan) Mermaid() string {
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	fmt.Fprintf(&b, "  %s([%s])\n", mermaidID(gatewayNode), gatewayNode)
	for i := range p.Spec.Sources {
		fmt.Fprintf(&b, "  %s[/%s/]\n", mermaidID(p.Spec.Sources[i].Name), p.Spec.Sources[i].Name)
	}
	for i, u := range p.Units {
		if len(u.Stages) == 1 {
			fmt.Fprintf(&b, "  %s[%s]\n", mermaidID(u.Stages[0].Name), u.Stages[0].Name)
			continue
		}
		fmt.Fprintf(&b, "  subgraph together_%d [together]\n", i)
		for _, s := range u.Stages {
			fmt.Fprintf(&b, "    %s[%s]\n", mermaidID(s.Name), s.Name)
		}
		b.WriteString("  end\n")
	}
	for _, s := range p.Sinks {
		fmt.Fprintf(&b, "  %s[(%s)]\n", mermaidID(s.Name), s.Name)
	}
	p.edges(func(s *Stream, writer, reader string, dead bool) {
		if dead {
			fmt.Fprintf(&b, "  %s -. dead .-> %s\n", mermaidID(writer), mermaidID(reader))
		} else {
			fmt.Fprintf(&b, "  %s -- %s --> %s\n", mermaidID(writer), s.label(), mermaidID(reader))
		}
	})
	return b.String()
}

// label is a stream's name, and by what its rows are parted where that changes on it.
func (s *Stream) label() string {
	if s.Key == nil {
		return s.Name
	}
	return s.Name + " by " + strings.Join(s.Key, ", ")
}

// mermaidID is a node's name as an identifier, which must be no word of Mermaid's own ("end").
func mermaidID(name string) string { return "n_" + strings.ReplaceAll(name, "-", "_") }

// DOT draws the plan in the language of Graphviz.
func (p *Plan) DOT() string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %q {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", fontsize=10];\n", p.Spec.Name)
	fmt.Fprintf(&b, "  %q [shape=oval];\n", gatewayNode)
	for i := range p.Spec.Sources {
		fmt.Fprintf(&b, "  %q [shape=parallelogram, style=solid, tooltip=%q];\n", p.Spec.Sources[i].Name, p.Spec.Sources[i].Topic)
	}
	for i, u := range p.Units {
		if len(u.Stages) == 1 {
			fmt.Fprintf(&b, "  %q;\n", u.Stages[0].Name)
			continue
		}
		fmt.Fprintf(&b, "  subgraph cluster_%d {\n    label=\"together\"; style=\"rounded,dashed\";\n", i)
		for _, s := range u.Stages {
			fmt.Fprintf(&b, "    %q;\n", s.Name)
		}
		b.WriteString("  }\n")
	}
	for _, s := range p.Sinks {
		fmt.Fprintf(&b, "  %q [shape=cylinder];\n", s.Name)
	}
	p.edges(func(s *Stream, writer, reader string, dead bool) {
		if dead {
			fmt.Fprintf(&b, "  %q -> %q [style=dashed, color=gray, tooltip=%q];\n", writer, reader, s.Name)
		} else {
			fmt.Fprintf(&b, "  %q -> %q [label=%q];\n", writer, reader, s.label())
		}
	})
	b.WriteString("}\n")
	return b.String()
}

// edges calls f for each writer and reader of a stream: the data in its order first, dead letters last.
func (p *Plan) edges(f func(s *Stream, writer, reader string, dead bool)) {
	for _, dead := range []bool{false, true} {
		for _, writer := range p.nodeNames() {
			for _, name := range sortedKeys(p.Streams) {
				s := p.Streams[name]
				if !slices.Contains(p.Writers(s), writer) || strings.HasSuffix(name, deadSuffix) != dead {
					continue
				}
				for _, r := range s.Readers {
					f(s, writer, r, dead)
				}
			}
		}
	}
}

// nodeNames lists all nodes in the order of the data.
func (p *Plan) nodeNames() []string {
	names := []string{gatewayNode}
	for i := range p.Spec.Sources {
		names = append(names, p.Spec.Sources[i].Name)
	}
	for _, u := range p.Units {
		for _, s := range u.Stages {
			names = append(names, s.Name)
		}
	}
	for _, s := range p.Sinks {
		names = append(names, s.Name)
	}
	return slices.Clip(names)
}
