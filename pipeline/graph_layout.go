package pipeline

import (
	"cmp"
	"math"
	"slices"
	"strings"
)

// The picture is laid out in layers from left to right (Sugiyama, Tagawa, Toda, IEEE SMC 11(2), 1981): every
// task, and the gateway, stands right of all whose streams it reads; sinks stand last. A stream that passes layers on
// its way takes up a place in each, one for all its readers. The order within a layer is chosen for few crossings,
// the height of each item so that lines run straight.

// Sizes of the picture, in pixels.
const (
	stageHeight = 34.0
	stageGap    = 28.0 // between the stages of a group: room for an arrow and the stream's name
	groupPad    = 14.0
	groupHead   = 22.0 // above the stages of a group, for its title
	pillHeight  = 22.0
	pillStep    = 28.0
	pillGap     = 16.0 // from a stage to the stream it writes
	itemGap     = 26.0
	portStep    = 13.0
	layerGap    = 58.0
	boxWidth    = 96.0 // at least
)

// item is what takes up a place in a layer: a box (gateway, source, unit or sink), or a line that passes by.
type item struct {
	kind   string // gateway, source, unit, sink; "" a line
	name   string
	topic  string       // of a source
	stages []*StageNode // of a unit
	stream string       // of a line
	layer  int
	y      float64 // of its middle
	height float64
	rows   []float64 // of each stage, its middle below the item's middle
	out    []*port   // in the order they are drawn, from above
	in     []*port
}

// port is an end of a link at an item.
type port struct {
	item   *item
	stream string
	dy     float64 // below the item's middle
	dead   bool
	links  []*port // the other ends; of an out port those to the right, of an in port the one to the left
}

func (p *port) y() float64 { return p.item.y + p.dy }

// rail is the name of the line that stands for all dead letters.
const rail = "*.dead"

type layout struct {
	plan   *Plan
	layers [][]*item
	box    map[string]*item // by node
}

func newLayout(p *Plan) *layout {
	l := &layout{plan: p, box: map[string]*item{}}
	l.place()
	l.join()
	l.arrange()
	l.straighten()
	return l
}

// place makes the boxes and gives each its layer.
func (l *layout) place() {
	last := 0
	add := func(it *item) {
		for len(l.layers) <= it.layer {
			l.layers = append(l.layers, nil)
		}
		l.layers[it.layer] = append(l.layers[it.layer], it)
		last = max(last, it.layer)
	}
	g := &item{kind: "gateway", name: gatewayNode, height: stageHeight + 8, rows: []float64{0}}
	l.box[gatewayNode] = g
	add(g)
	for i := range l.plan.Spec.Sources {
		s := &l.plan.Spec.Sources[i]
		it := &item{kind: "source", name: s.Name, topic: s.Topic, height: stageHeight + 8, rows: []float64{0}}
		l.box[s.Name] = it
		add(it)
	}
	for _, u := range l.plan.Units {
		it := &item{kind: "unit", name: u.Name, stages: u.Stages}
		for _, in := range u.Inputs {
			it.layer = max(it.layer, l.box[l.plan.Streams[in].Writer].layer+1)
		}
		for _, s := range u.Stages {
			l.box[s.Name] = it
		}
		l.sizeUnit(it)
		add(it)
	}
	for _, s := range l.plan.Sinks {
		it := &item{kind: "sink", name: s.Name, layer: last + 1, height: stageHeight + 8, rows: []float64{0}}
		l.box[s.Name] = it
		for len(l.layers) <= it.layer {
			l.layers = append(l.layers, nil)
		}
		l.layers[it.layer] = append(l.layers[it.layer], it)
	}
}

// sizeUnit stacks the stages of a unit.
func (l *layout) sizeUnit(it *item) {
	top := 0.0
	if len(it.stages) > 1 {
		top = groupHead
	}
	for i, s := range it.stages {
		h := max(stageHeight, float64(len(l.shown(s.Name)))*pillStep-(pillStep-pillHeight))
		it.rows = append(it.rows, top+h/2)
		top += h
		if i < len(it.stages)-1 {
			top += stageGap
		}
	}
	if len(it.stages) > 1 {
		top += groupPad
	}
	it.height = top
	for i := range it.rows {
		it.rows[i] -= top / 2
	}
}

// shown lists the streams that a node writes and that are drawn as lines of their own: those on Kafka, dead letters
// only when a stage reads them.
func (l *layout) shown(node string) []string {
	var names []string
	for _, name := range sortedKeys(l.plan.Streams) {
		if s := l.plan.Streams[name]; slices.Contains(l.plan.Writers(s), node) && s.OnKafka() && (!strings.HasSuffix(name, deadSuffix) || l.readByStage(s)) {
			names = append(names, name)
		}
	}
	return names
}

func (l *layout) readByStage(s *Stream) bool {
	return slices.ContainsFunc(s.Readers, func(r string) bool { return l.box[r] != nil && l.box[r].kind == "unit" || l.plan.Node(r) != nil })
}

// join makes the ports of every stream, and the lines by which it passes layers.
func (l *layout) join() {
	for _, node := range l.plan.nodeNames() {
		writer := l.box[node]
		for _, name := range l.shown(node) {
			out := &port{item: writer, stream: name, dead: strings.HasSuffix(name, deadSuffix)}
			writer.out = append(writer.out, out)
			l.connect(out, l.plan.Streams[name].Readers)
		}
	}
	l.joinRail()
	for _, layer := range l.layers {
		for _, it := range layer {
			if n := float64(len(it.in)); it.kind == "sink" {
				it.height = max(it.height, n*portStep+14)
			}
		}
	}
}

// connect leads a stream from out to its readers, to the right.
func (l *layout) connect(out *port, readers []string) {
	at := map[int]*port{out.item.layer: out}
	far := 0
	for _, r := range readers {
		far = max(far, l.box[r].layer)
	}
	for layer := out.item.layer + 1; layer < far; layer++ {
		line := &item{stream: out.stream, layer: layer, height: 8}
		in, next := &port{item: line, stream: out.stream, dead: out.dead}, &port{item: line, stream: out.stream, dead: out.dead}
		line.in, line.out = []*port{in}, []*port{next}
		link(at[layer-1], in)
		at[layer] = next
		l.layers[layer] = append(l.layers[layer], line)
	}
	for _, r := range readers {
		reader := l.box[r]
		from := at[reader.layer-1]
		if reader == out.item || from == nil {
			continue // within a group
		}
		in := &port{item: reader, stream: out.stream, dead: out.dead, dy: reader.rowOf(r)}
		reader.in = append(reader.in, in)
		link(from, in)
	}
}

func link(from, to *port) {
	from.links = append(from.links, to)
	to.links = []*port{from}
}

// joinRail draws the dead letters that only sinks read as one line under everything.
func (l *layout) joinRail() {
	var readers []string
	for _, name := range sortedKeys(l.plan.Streams) {
		if s := l.plan.Streams[name]; strings.HasSuffix(name, deadSuffix) {
			for _, r := range s.Readers {
				if l.box[r].kind == "sink" && !slices.Contains(readers, r) && !l.readByStage(s) {
					readers = append(readers, r)
				}
			}
		}
	}
	if len(readers) == 0 || len(l.layers) < 3 {
		return
	}
	start := &item{stream: rail, layer: 1, height: pillHeight}
	out := &port{item: start, stream: rail, dead: true}
	start.out = []*port{out}
	l.layers[1] = append(l.layers[1], start)
	slices.Sort(readers)
	l.connect(out, readers)
}

// begins says whether data begin at an item: it reads no stream, and holds no stages.
func (it *item) begins() bool { return it.kind == "gateway" || it.kind == "source" }

// rowOf is the height of a stage within its unit.
func (it *item) rowOf(node string) float64 {
	for i, s := range it.stages {
		if s.Name == node {
			return it.rows[i]
		}
	}
	return 0
}

// arrange orders the layers for few crossings: by the middle of what an item is joined to, to and fro, then by swaps
// of neighbours. The best order seen stays.
func (l *layout) arrange() {
	best, least := l.order(), l.crossings()
	try := func() {
		if n := l.crossings(); n < least {
			best, least = l.order(), n
		}
	}
	for sweep := range 12 {
		for i := range l.layers {
			layer, back := i, sweep%2 == 1
			if back {
				layer = len(l.layers) - 1 - i
			}
			l.sortLayer(layer, back)
		}
		l.sortPorts()
		try()
	}
	l.restore(best)
	for swapped := true; swapped; {
		swapped = false
		for _, layer := range l.layers {
			for i := range len(layer) - 1 {
				if layer[i+1].stream == rail {
					continue
				}
				layer[i], layer[i+1] = layer[i+1], layer[i]
				l.sortPorts()
				if n := l.crossings(); n < least {
					least, swapped = n, true
				} else {
					layer[i], layer[i+1] = layer[i+1], layer[i]
					l.sortPorts()
				}
			}
		}
	}
}

func (l *layout) order() [][]*item {
	var o [][]*item
	for _, layer := range l.layers {
		o = append(o, slices.Clone(layer))
	}
	return o
}

func (l *layout) restore(o [][]*item) {
	for i := range o {
		copy(l.layers[i], o[i])
	}
	l.sortPorts()
}

// rank is where a port stands in its layer.
func (l *layout) rank(p *port, ports []*port) float64 {
	i := float64(slices.Index(l.layers[p.item.layer], p.item))
	return i + (float64(slices.Index(ports, p))+0.5)/float64(len(ports)+1)
}

func (l *layout) sortLayer(i int, back bool) {
	middle := map[*item]float64{}
	for at, it := range l.layers[i] {
		sum, n := 0.0, 0.0
		for _, p := range it.in {
			for _, o := range p.links {
				if !back {
					sum, n = sum+l.rank(o, o.item.out), n+1
				}
			}
		}
		for _, p := range it.out {
			for _, o := range p.links {
				if back {
					sum, n = sum+l.rank(o, o.item.in), n+1
				}
			}
		}
		middle[it] = float64(at)
		if n > 0 {
			middle[it] = sum / n
		}
		if it.stream == rail {
			middle[it] = math.Inf(1)
		}
	}
	slices.SortStableFunc(l.layers[i], func(a, b *item) int { return cmp.Compare(middle[a], middle[b]) })
}

// sortPorts orders each item's ports by what they lead to. Ports of different stages of a unit keep the stages' order.
func (l *layout) sortPorts() {
	for _, layer := range l.layers {
		for _, it := range layer {
			to := map[*port]float64{}
			for _, p := range it.out {
				for _, o := range p.links {
					to[p] += l.rank(o, o.item.in) / float64(len(p.links))
				}
			}
			slices.SortStableFunc(it.out, func(a, b *port) int {
				return cmp.Or(cmp.Compare(it.rowOf(l.writer(a)), it.rowOf(l.writer(b))), cmp.Compare(to[a], to[b]))
			})
			slices.SortStableFunc(it.in, func(a, b *port) int {
				if it.kind == "unit" && a.dy != b.dy {
					return cmp.Compare(a.dy, b.dy)
				}
				return cmp.Compare(l.rank(a.links[0], a.links[0].item.out), l.rank(b.links[0], b.links[0].item.out))
			})
		}
	}
	for _, layer := range l.layers {
		for _, it := range layer {
			l.spread(it)
		}
	}
}

func (l *layout) writer(p *port) string {
	if s := l.plan.Streams[p.stream]; s != nil {
		return s.Writer
	}
	return ""
}

// spread gives the ports of an item their heights.
func (l *layout) spread(it *item) {
	if it.kind == "" {
		return
	}
	apart := func(ports []*port, middle, step float64) {
		for i, p := range ports {
			p.dy = middle + (float64(i)-float64(len(ports)-1)/2)*step
		}
	}
	if it.kind == "sink" {
		apart(it.in, 0, portStep)
		return
	}
	for i, middle := range it.rows {
		var out, in []*port
		for _, p := range it.out {
			if it.begins() || l.writer(p) == it.stages[i].Name {
				out = append(out, p)
			}
		}
		for _, p := range it.in {
			if math.Abs(p.dy-middle) <= stageHeight/2 {
				in = append(in, p)
			}
		}
		apart(out, middle, pillStep)
		apart(in, middle, min(portStep, (stageHeight-8)/float64(max(1, len(in)-1))))
	}
}

// crossings counts the pairs of links between two layers that cross.
func (l *layout) crossings() int {
	n := 0
	for _, layer := range l.layers {
		type ends struct{ from, to float64 }
		var links []ends
		for _, it := range layer {
			for _, p := range it.out {
				for _, o := range p.links {
					links = append(links, ends{l.rank(p, it.out), l.rank(o, o.item.in)})
				}
			}
		}
		for i, a := range links {
			for _, b := range links[:i] {
				if (a.from-b.from)*(a.to-b.to) < 0 {
					n++
				}
			}
		}
	}
	return n
}

// straighten gives the items their heights: each where its links would run level, as near as its neighbours allow.
func (l *layout) straighten() {
	for _, layer := range l.layers {
		y := 0.0
		for _, it := range layer {
			it.y = y + it.height/2
			y += it.height + itemGap
		}
	}
	const sweeps, together = 160, 60 // from there on, an item heeds both sides
	for sweep := range sweeps {
		for i := range l.layers {
			layer := l.layers[i]
			if sweep%2 == 1 {
				layer = l.layers[len(l.layers)-1-i]
			}
			var want, weight []float64
			for _, it := range layer {
				y, w := it.wish(sweep >= together, sweep%2 == 0)
				want, weight = append(want, y), append(weight, w)
			}
			settle(layer, want, weight)
		}
	}
	top := math.Inf(1)
	for _, layer := range l.layers {
		for _, it := range layer {
			top = min(top, it.y-it.height/2)
		}
	}
	for _, layer := range l.layers {
		for _, it := range layer {
			it.y -= top
		}
	}
}

// wish is where an item's links would run level: those to the left, those to the right, or all.
func (it *item) wish(all, left bool) (y, weight float64) {
	sum, n := 0.0, 0.0
	add := func(p *port) {
		for _, o := range p.links {
			w := 1.0
			if it.kind == "" && o.item.kind == "" {
				w = 8 // long lines bend least
			}
			sum, n = sum+w*(o.y()-p.dy), n+w
		}
	}
	if all || left {
		for _, p := range it.in {
			add(p)
		}
	}
	if all || !left {
		for _, p := range it.out {
			add(p)
		}
	}
	if n == 0 {
		return it.y, 0.1
	}
	return sum / n, n
}

// settle puts the items of a layer, in their order and apart, as near as they can be to where they want to be (least
// squares: pool adjacent violators; Barlow et al., Statistical Inference under Order Restrictions, 1972).
func settle(layer []*item, want, weight []float64) {
	type pool struct {
		sum, weight float64
		n           int
	}
	offset := make([]float64, len(layer)) // of each item below the first, when they touch
	for i := 1; i < len(layer); i++ {
		gap := itemGap
		if layer[i-1].kind == "" && layer[i].kind == "" {
			gap = itemGap / 2
		}
		offset[i] = offset[i-1] + layer[i-1].height/2 + gap + layer[i].height/2
	}
	var pools []pool
	for i := range layer {
		p := pool{weight[i] * (want[i] - offset[i]), weight[i], 1}
		for len(pools) > 0 && pools[len(pools)-1].sum/pools[len(pools)-1].weight > p.sum/p.weight {
			last := pools[len(pools)-1]
			p = pool{p.sum + last.sum, p.weight + last.weight, p.n + last.n}
			pools = pools[:len(pools)-1]
		}
		pools = append(pools, p)
	}
	i := 0
	for _, p := range pools {
		for range p.n {
			layer[i].y = p.sum/p.weight + offset[i]
			i++
		}
	}
}
