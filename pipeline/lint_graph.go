package pipeline

import (
	"slices"
	"strings"
)

// ways lists, for each node, the streams by which its data goes on, dead letters among them.
type ways map[string][]way

type way struct{ stream, to string }

// next is the graph of the nodes, in the order of the file.
func (p *planner) next() ways {
	w := ways{}
	for _, name := range sortedKeys(p.plan.Streams) {
		s := p.plan.Streams[name]
		for _, r := range s.Readers {
			w[s.Writer] = append(w[s.Writer], way{name, r})
		}
	}
	return w
}

// round finds a shortest way from node back to node, nil when there is none.
func (w ways) round(node string) []way {
	came := map[string][]way{}
	queue := []string{node}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for _, next := range w[at] {
			path := append(slices.Clone(came[at]), next)
			if next.to == node {
				return path
			}
			if came[next.to] == nil {
				came[next.to] = path
				queue = append(queue, next.to)
			}
		}
	}
	return nil
}

// showRound writes a way round: score →(scores)→ alert →(alerts)→ score.
func showRound(from string, path []way) string {
	var b strings.Builder
	b.WriteString(from)
	for _, step := range path {
		b.WriteString(" → " + step.stream + " → " + step.to)
	}
	return b.String()
}

// cycles finds ways round, each once, and puts the stages in the order of the data when there is none.
func (p *planner) cycles() bool {
	next, told, found := p.next(), map[string]bool{}, false
	check := func(node string, at Pos, path string) {
		if told[node] {
			return
		}
		round := next.round(node)
		if round == nil {
			return
		}
		found = true
		for _, step := range round {
			told[step.to] = true
		}
		p.find(at, path, "let one of them read another stream", "the data goes round: %s", showRound(node, round))
	}
	for i := range p.spec.Stages {
		s := &p.spec.Stages[i]
		check(s.Name, s.at.of("from"), s.path()+".from")
	}
	for i := range p.spec.Sinks {
		s := &p.spec.Sinks[i]
		check(s.Name, s.at.of("from"), "sinks."+s.Name+".from")
	}
	if found {
		return true
	}
	var names []string
	for i := range p.spec.Stages {
		names = append(names, p.spec.Stages[i].Name)
	}
	for _, name := range inOrder(names, next) {
		p.order = append(p.order, p.stages[name])
	}
	return false
}

// inOrder puts nodes so that who writes stands before who reads, and otherwise as they were. The graph has no way
// round.
func inOrder(nodes []string, next ways) []string {
	before := map[string]int{} // how many of nodes must come before
	for _, n := range nodes {
		for _, w := range next[n] {
			before[w.to]++
		}
	}
	var order []string
	rest := slices.Clone(nodes)
	for len(rest) > 0 {
		i := slices.IndexFunc(rest, func(n string) bool { return before[n] == 0 })
		if i < 0 {
			return append(order, rest...)
		}
		order = append(order, rest[i])
		for _, w := range next[rest[i]] {
			before[w.to]--
		}
		rest = slices.Delete(rest, i, i+1)
	}
	return order
}

// group makes the units, and says whether they are sound.
func (p *planner) group() bool {
	before := len(p.findings)
	unitOf := map[string]*Unit{}
	for i, group := range p.spec.Together {
		unit := &Unit{}
		for _, name := range group {
			node := p.stages[name]
			switch {
			case node == nil:
				p.find(p.togetherAt(i, name), "together", didYouMean(name, sortedKeys(p.stages)), "there is no stage %q", clip(name))
			case unitOf[name] == unit:
				p.find(p.togetherAt(i, name), "together", "remove one", "%s stands here twice", name)
			case unitOf[name] != nil:
				p.find(p.togetherAt(i, name), "together", "a stage runs in one task", "%s is in two groups", name)
			default:
				unitOf[name] = unit
			}
		}
		if len(group) < 2 {
			p.find(p.togetherAt(i, ""), "together", "name two or more stages, or remove it", "a group of %d", len(group))
		}
	}
	for _, node := range p.order {
		unit := unitOf[node.Name]
		if unit == nil {
			unit = &Unit{}
			unitOf[node.Name] = unit
		}
		unit.Stages = append(unit.Stages, node)
	}
	if len(p.findings) > before {
		return false
	}
	p.units(unitOf)
	return len(p.findings) == before
}

// units names the units, finds out what they read, and checks that they are connected and that none waits for itself.
func (p *planner) units(unitOf map[string]*Unit) {
	at := map[string]Pos{}
	for _, node := range p.order {
		unit := unitOf[node.Name]
		if unit.Name != "" {
			continue
		}
		var names []string
		for _, s := range unit.Stages {
			names = append(names, s.Name)
		}
		unit.Name = strings.Join(names, "+")
		at[unit.Name] = node.at.of("")
		p.plan.Units = append(p.plan.Units, unit)
	}
	for i, group := range p.spec.Together {
		unit := unitOf[group[0]]
		at[unit.Name] = p.togetherAt(i, "")
		if apart := p.apart(unit); apart != "" {
			at[unit.Name] = Pos{}
			p.find(p.togetherAt(i, apart), "together", "a group is joined by its streams; take it out, or add the stage between", "%s neither reads from nor writes to the others of its group", apart)
		}
	}
	next := ways{}
	for _, name := range sortedKeys(p.plan.Streams) {
		s := p.plan.Streams[name]
		writer := unitOf[s.Writer]
		inside := writer != nil && len(s.Readers) > 0
		for _, r := range s.Readers {
			reader := unitOf[r]
			switch {
			case reader == nil: // a sink
				inside = false
			case reader != writer:
				inside = false
				if !slices.Contains(reader.Inputs, name) {
					reader.Inputs = append(reader.Inputs, name)
				}
				if writer != nil {
					next[writer.Name] = append(next[writer.Name], way{name, reader.Name})
				}
			case s.Key != nil:
				p.find(p.stages[r].at.of("from/"+name, "from"), "stages."+r+".from", "take "+r+" out of the group",
					"%s reads %s, whose rows are parted by %s, and runs together with %s, which writes it: such a stream goes over Kafka", r, name, strings.Join(s.Key, ", "), s.Writer)
			case strings.HasSuffix(name, deadSuffix):
				p.find(p.stages[r].at.of("from/"+name, "from"), "stages."+r+".from", "take "+r+" out of the group",
					"%s reads the dead letters of %s, with which it runs together; dead letters always go over Kafka", r, s.Writer)
			}
		}
		if inside {
			s.Unit = writer.Name
		}
	}
	p.timeless()
	p.alone()
	p.sortUnits(next, at)
}

// timeless refuses stages that read the dead letters of a sink. These tell no time while there are none, so that a stage
// would wait for them for ever beside another stream, and nothing draws the way back from a sink.
func (p *planner) timeless() {
	for _, s := range p.order {
		for _, sink := range p.spec.Sinks {
			name := sink.Name + deadSuffix
			if stream := p.plan.Streams[name]; stream != nil && slices.Contains(stream.Readers, s.Name) {
				p.find(s.at.of("from/"+name, "from"), s.path()+".from", "let a sink keep them",
					"%s reads the dead letters of the sink %s, which tell no time: it would wait for them for ever", s.Name, sink.Name)
			}
		}
	}
}

// sortUnits puts the units in the order of the data, if there is one.
func (p *planner) sortUnits(next ways, at map[string]Pos) {
	var names []string
	byName, told := map[string]*Unit{}, map[string]bool{}
	for _, u := range p.plan.Units {
		slices.Sort(u.Inputs)
		names = append(names, u.Name)
		byName[u.Name] = u
		if round := next.round(u.Name); round != nil && !told[u.Name] && !slices.ContainsFunc(round, func(w way) bool { return at[w.to] == (Pos{}) }) {
			for _, step := range round {
				told[step.to] = true
			}
			p.find(at[u.Name], "together", "put the stages in between into the group too", "the groups make the data go round: %s", showRound(u.Name, round))
		}
	}
	p.plan.Units = nil
	for _, name := range inOrder(names, next) {
		p.plan.Units = append(p.plan.Units, byName[name])
	}
}

// apart names a stage of the unit that no streams join to the first, "" when all are joined.
func (p *planner) apart(u *Unit) string {
	in := map[string]bool{}
	for _, s := range u.Stages {
		in[s.Name] = true
	}
	reached := map[string]bool{u.Stages[0].Name: true}
	for grew := true; grew; {
		grew = false
		for _, s := range p.plan.Streams {
			if !in[s.Writer] {
				continue
			}
			for _, r := range s.Readers {
				if in[r] && reached[r] != reached[s.Writer] {
					reached[r], reached[s.Writer], grew = true, true, true
				}
			}
		}
	}
	for _, s := range u.Stages {
		if !reached[s.Name] {
			return s.Name
		}
	}
	return ""
}

// togetherAt is where a group, or a name in it, stands.
func (p *planner) togetherAt(group int, name string) Pos {
	if group < len(p.spec.togetherAt) {
		return p.spec.togetherAt[group].of(name, "")
	}
	return Pos{1, 1}
}
