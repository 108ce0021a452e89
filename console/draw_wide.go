package console

import (
	"cmp"
	"math"
	"slices"
)

// Sizes of the wide drawing.
const (
	wideMargin    = 14.0
	wideNodeH     = 50.0
	wideGroupPad  = 12.0
	wideGroupHead = 26.0
	wideInnerGap  = 40.0 // between two stages of a unit; holds the label of the stream between them
	wideLabelH    = 36.0
	wideLabelGap  = 8.0
	wideLead      = 16.0 // from a node to the label of what it writes
	wideCurve     = 66.0 // room for the lines to cross over
	wideBlockGap  = 26.0
	widePass      = 14.0 // height that a line takes which passes a column by
	wideDrainGap  = 34.0
	nodeWidthMin  = 118.0
	nodeWidthMax  = 190.0
	labelWidthMin = 78.0
	labelWidthMax = 170.0
)

// block is what moves as a whole: a node, or the box of a unit with its stages; or, with no nodes, the place where
// a stream passes through a column on its way to a later one.
type block struct {
	nodes  []*GraphNode
	unit   *GraphUnit // of several stages; nil
	passes string     // stream
	layer  int
	w, h   float64 // of the box
	span   float64 // height with its labels; ≥ h
	gap    float64 // between the nodes of a unit
	y      float64 // centre
	out    []string
	inner  []string
}

// wide lays a graph out by the method of Sugiyama, Tagawa and Toda (1981): layers, order by barycentres, positions.
type wide struct {
	g      *Graph
	layers [][]*block
	of     map[string]*block   // node → block
	via    map[string][]*block // stream → the blocks of each layer it passes through
	column []struct{ x, w, labels float64 }
}

func drawWide(g *Graph) Drawing {
	w := &wide{g: g, of: map[string]*block{}, via: map[string][]*block{}}
	blocks := w.blocks()
	if len(blocks) == 0 {
		return Drawing{}
	}
	w.rank(blocks)
	w.passThrough()
	w.measure()
	w.order()
	w.settle()
	return w.draw()
}

func (w *wide) blocks() []*block {
	var all []*block
	units := map[string]*block{}
	for i := range w.g.Nodes {
		n := &w.g.Nodes[i]
		b := units[n.Unit]
		if b == nil || n.Kind != "stage" {
			b = &block{}
			all = append(all, b)
			if n.Kind == "stage" {
				units[n.Unit] = b
			}
		}
		b.nodes = append(b.nodes, n)
		w.of[n.Name] = b
	}
	for i := range w.g.Units {
		if b := units[w.g.Units[i].Name]; b != nil && len(b.nodes) > 1 {
			b.unit = &w.g.Units[i]
		}
	}
	return all
}

// flows calls f for every stream that is drawn from block to block.
func (w *wide) flows(f func(s *GraphStream, from *block, to []*block)) {
	for i := range w.g.Streams {
		s := &w.g.Streams[i]
		from := w.of[s.Writer]
		if from == nil || w.g.drains(s) {
			continue
		}
		var to []*block
		for _, r := range s.Readers {
			if b := w.of[r]; b != nil && b != from && !slices.Contains(to, b) {
				to = append(to, b)
			}
		}
		f(s, from, to)
	}
}

// rank puts a block one layer behind the furthest of those it reads from, and all sinks into the last.
func (w *wide) rank(all []*block) {
	for range all { // as often as a path can be long; lint lets no cycle through
		w.flows(func(_ *GraphStream, from *block, to []*block) {
			for _, b := range to {
				b.layer = min(max(b.layer, from.layer+1), len(all))
			}
		})
	}
	last := 0
	for _, b := range all {
		if b.nodes[0].Kind == "sink" {
			last = max(last, b.layer)
		} else {
			last = max(last, b.layer+1)
		}
	}
	w.layers = make([][]*block, last+1)
	for _, b := range all {
		if b.nodes[0].Kind == "sink" {
			b.layer = last
		}
		w.layers[b.layer] = append(w.layers[b.layer], b)
	}
	w.layers = slices.DeleteFunc(w.layers, func(l []*block) bool { return len(l) == 0 })
	for i, l := range w.layers {
		for _, b := range l {
			b.layer = i
		}
	}
}

// passThrough gives a stream a place of its own in every column that it passes by.
func (w *wide) passThrough() {
	w.flows(func(s *GraphStream, from *block, to []*block) {
		last := from.layer
		for _, b := range to {
			last = max(last, b.layer)
		}
		for layer := from.layer + 1; layer < last; layer++ {
			b := &block{passes: s.Name, layer: layer, span: widePass}
			w.layers[layer] = append(w.layers[layer], b)
			w.via[s.Name] = append(w.via[s.Name], b)
		}
	})
}

// measure gives every block its size, and every column its width.
func (w *wide) measure() {
	w.column = make([]struct{ x, w, labels float64 }, len(w.layers))
	inputs := map[*block]float64{}
	w.flows(func(s *GraphStream, from *block, to []*block) {
		leaves := len(to) > 0
		for _, r := range s.Readers {
			if w.of[r] == from {
				from.inner = append(from.inner, s.Name)
				break
			}
		}
		if leaves || len(s.Readers) == 0 {
			from.out = append(from.out, s.Name)
			c := &w.column[from.layer]
			c.labels = max(c.labels, labelWidth(s.Name))
		}
		for _, b := range to {
			inputs[b]++
		}
	})
	for layer, blocks := range w.layers {
		for _, b := range blocks {
			if b.passes != "" {
				continue
			}
			for _, n := range b.nodes {
				b.w = max(b.w, nodeWidth(n.Name))
			}
			b.h = max(wideNodeH, inputs[b]*14+14)
			if b.unit != nil {
				n := float64(len(b.nodes))
				b.w += 2 * wideGroupPad
				b.gap = w.innerGap(b)
				b.h = wideGroupHead + n*wideNodeH + (n-1)*b.gap + wideGroupPad
			}
			b.span = max(b.h, float64(len(b.out))*(wideLabelH+wideLabelGap)-wideLabelGap)
			w.column[layer].w = max(w.column[layer].w, b.w)
		}
	}
	x := wideMargin
	for i := range w.column {
		w.column[i].x = x
		x += w.column[i].w + wideCurve
		if w.column[i].labels > 0 {
			x += wideLead + w.column[i].labels
		}
	}
}

// innerGap makes room for the labels of the streams that never leave a unit, below their writer.
func (w *wide) innerGap(b *block) float64 {
	most, labels := 1, map[string]int{}
	for _, name := range b.inner {
		if slices.Contains(b.out, name) {
			continue // its label stands outside
		}
		writer := w.g.stream(name).Writer
		labels[writer]++
		most = max(most, labels[writer])
	}
	return wideInnerGap * float64(most)
}

func nodeWidth(name string) float64 {
	return max(nodeWidthMin, min(nodeWidthMax, textWidth(name, 14)+50))
}

func labelWidth(name string) float64 {
	return max(labelWidthMin, min(labelWidthMax, textWidth(name, 13)+22))
}

// hops calls f for every step of a stream from one layer into the next.
func (w *wide) hops(f func(s *GraphStream, from, to *block)) {
	w.flows(func(s *GraphStream, from *block, to []*block) {
		at := func(layer int) *block {
			if layer == from.layer {
				return from
			}
			return w.via[s.Name][layer-from.layer-1]
		}
		for _, b := range w.via[s.Name] {
			f(s, at(b.layer-1), b)
		}
		for _, b := range to {
			if b.layer > from.layer {
				f(s, at(b.layer-1), b)
			}
		}
	})
}

// order sorts every layer by the mean place of what its blocks are joined to, forth and back a few times, and keeps
// the order in which the fewest lines cross.
func (w *wide) order() {
	best, fewest := w.copyLayers(), w.crossings()
	for sweep := range 12 {
		for i := range w.layers {
			if sweep%2 == 0 {
				w.sortLayer(i, true)
			} else {
				w.sortLayer(len(w.layers)-1-i, false)
			}
		}
		if n := w.crossings(); n < fewest {
			best, fewest = w.copyLayers(), n
		}
	}
	w.layers = best
}

func (w *wide) copyLayers() [][]*block {
	all := make([][]*block, len(w.layers))
	for i, l := range w.layers {
		all[i] = slices.Clone(l)
	}
	return all
}

// sortLayer sorts a layer by where its lines come from, or by where they go to.
func (w *wide) sortLayer(layer int, forth bool) {
	place := w.places()
	sum, n := map[*block]float64{}, map[*block]float64{}
	w.hops(func(s *GraphStream, from, to *block) {
		if forth {
			sum[to] += place[from] + portOf(from, s.Name)
			n[to]++
		} else {
			sum[from] += place[to]
			n[from]++
		}
	})
	at := func(b *block) float64 {
		if n[b] == 0 {
			return place[b]
		}
		return sum[b] / n[b]
	}
	slices.SortStableFunc(w.layers[layer], func(a, b *block) int { return cmp.Compare(at(a), at(b)) })
}

// crossings counts the pairs of lines that cross in the gaps between layers.
func (w *wide) crossings() int {
	type hop struct {
		layer    int
		from, to float64
	}
	var all []hop
	place, count := w.places(), 0
	w.hops(func(s *GraphStream, from, to *block) {
		h := hop{from.layer, place[from] + portOf(from, s.Name), place[to]}
		for _, o := range all {
			if o.layer == h.layer && (o.from-h.from)*(o.to-h.to) < 0 {
				count++
			}
		}
		all = append(all, h)
	})
	return count
}

// places gives where in its layer a block stands, between 0 and 1.
func (w *wide) places() map[*block]float64 {
	place := map[*block]float64{}
	for _, blocks := range w.layers {
		for i, b := range blocks {
			place[b] = (float64(i) + 0.5) / float64(len(blocks))
		}
	}
	return place
}

// portOf tells apart the streams that leave one block: a little more for the lower ones.
func portOf(b *block, stream string) float64 {
	return 0.01 * float64(slices.Index(b.out, stream))
}

// settle finds the heights of the centres: each wishes for a place where its lines run straight. Layer by layer,
// forth and back, so that a wish gets across the picture in one sweep.
func (w *wide) settle() {
	joins := w.joins()
	for sweep := range 24 {
		for i := range w.layers {
			if sweep%2 == 1 {
				i = len(w.layers) - 1 - i
			}
			blocks := w.layers[i]
			wishes, heights := make([]float64, len(blocks)), make([]float64, len(blocks))
			for k, b := range blocks {
				wishes[k], heights[k] = b.y, b.span
				sum, n := 0.0, 0.0
				for _, j := range joins[b] {
					sum, n = sum+j.weight*(j.other.y+j.offset), n+j.weight
				}
				if n > 0 {
					wishes[k] = sum / n
				}
			}
			for k, y := range spread(wishes, heights, wideBlockGap) {
				blocks[k].y = y
			}
		}
	}
	w.toTop()
}

// join is a line between two blocks as one of them sees it: it is level when its centre stands at other.y+offset.
type join struct {
	other          *block
	offset, weight float64
}

func (w *wide) joins() map[*block][]join {
	all := map[*block][]join{}
	w.joinSources(all)
	w.hops(func(s *GraphStream, from, to *block) {
		weight := 1.0
		if from.passes != "" || to.passes != "" {
			weight = 2 // a long line that bends draws the eye
		}
		offset := w.leaves(from, s.Name) - w.enters(to, s)
		all[to] = append(all[to], join{from, offset, weight})
		all[from] = append(all[from], join{to, -offset, weight})
	})
	return all
}

// joinSources keeps the sources beside the gateway, whose stream they write: it does not heed them.
func (w *wide) joinSources(all map[*block][]join) {
	w.flows(func(s *GraphStream, from *block, _ []*block) {
		layer := w.layers[from.layer]
		for _, name := range s.Sources {
			if b := w.of[name]; b != nil && b.layer == from.layer {
				apart := slices.Index(layer, b) - slices.Index(layer, from)
				all[b] = append(all[b], join{from, float64(apart) * (wideNodeH + wideBlockGap), 1})
			}
		}
	})
}

// enters says how far below the centre of b the first stage stands that reads s.
func (w *wide) enters(b *block, s *GraphStream) float64 {
	for _, r := range s.Readers {
		if b.passes == "" && w.of[r] == b {
			return w.nodeY(b, r) - b.y
		}
	}
	return 0
}

// toTop moves the picture so that its highest part stands at the margin.
func (w *wide) toTop() {
	top := math.Inf(1)
	for _, blocks := range w.layers {
		for _, b := range blocks {
			top = min(top, b.y-b.span/2)
		}
	}
	for _, blocks := range w.layers {
		for _, b := range blocks {
			b.y += wideMargin - top
		}
	}
}

// leaves says how far below the centre of b the label of a stream stands that leaves it.
func (w *wide) leaves(b *block, stream string) float64 {
	i := slices.Index(b.out, stream)
	if i < 0 {
		return 0
	}
	wishes, heights := make([]float64, len(b.out)), make([]float64, len(b.out))
	for k, name := range b.out {
		heights[k] = wideLabelH
		if s := w.g.stream(name); b.unit != nil {
			wishes[k] = w.nodeY(b, s.Writer) - b.y
		}
	}
	at := spread(wishes, heights, wideLabelGap)
	// Labels may be nowhere but beside their box; there is room for all of them.
	low, pitch := -b.span/2+wideLabelH/2, wideLabelH+wideLabelGap
	for k := range at {
		at[k] = max(at[k], low+float64(k)*pitch)
	}
	for k := range at {
		last := len(at) - 1 - k
		at[last] = min(at[last], -low-float64(k)*pitch)
	}
	return at[i]
}

// nodeY is the centre of a node within its block.
func (w *wide) nodeY(b *block, name string) float64 {
	if b.unit == nil {
		return b.y
	}
	i := slices.IndexFunc(b.nodes, func(n *GraphNode) bool { return n.Name == name })
	return b.y - b.h/2 + wideGroupHead + wideNodeH/2 + float64(i)*(wideNodeH+b.gap)
}
