package console

import (
	"cmp"
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
	nodeWidthMin  = 112.0
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
				b.h = wideGroupHead + n*wideNodeH + (n-1)*wideInnerGap + wideGroupPad
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

func nodeWidth(name string) float64 {
	return max(nodeWidthMin, min(nodeWidthMax, textWidth(name, 14)+30))
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

// order sorts every layer by the mean place of what its blocks are joined to, forth and back a few times.
func (w *wide) order() {
	for sweep := range 8 {
		forth := sweep%2 == 0
		sum, n := map[*block]float64{}, map[*block]float64{}
		place := w.places()
		w.hops(func(s *GraphStream, from, to *block) {
			if forth {
				sum[to] += place[from] + portOf(from, s.Name)
				n[to]++
			} else {
				sum[from] += place[to]
				n[from]++
			}
		})
		for _, blocks := range w.layers {
			now := w.places()
			at := func(b *block) float64 {
				if n[b] == 0 {
					return now[b]
				}
				return sum[b] / n[b]
			}
			slices.SortStableFunc(blocks, func(a, b *block) int { return cmp.Compare(at(a), at(b)) })
		}
	}
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

// settle finds the heights of the centres: each wishes for the middle of what it is joined to.
func (w *wide) settle() {
	for range 12 {
		for _, forth := range []bool{true, false} {
			sum, n := map[*block]float64{}, map[*block]float64{}
			w.hops(func(s *GraphStream, from, to *block) {
				weight := 1.0
				if from.passes != "" || to.passes != "" {
					weight = 2 // a long line that bends draws the eye
				}
				if forth {
					sum[to] += weight * (from.y + w.leaves(from, s.Name))
					n[to] += weight
				} else {
					sum[from] += weight * (to.y - w.leaves(from, s.Name))
					n[from] += weight
				}
			})
			for _, blocks := range w.layers {
				wishes, heights := make([]float64, len(blocks)), make([]float64, len(blocks))
				for i, b := range blocks {
					wishes[i], heights[i] = b.y, b.span
					if n[b] > 0 {
						wishes[i] = sum[b] / n[b]
					}
				}
				for i, y := range spread(wishes, heights, wideBlockGap) {
					blocks[i].y = y
				}
			}
		}
	}
	top := 0.0
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
	if b.unit != nil { // labels may be nowhere but beside their box
		room := b.span/2 - wideLabelH/2
		for k := range at {
			at[k] = max(-room, min(room, at[k]))
		}
	}
	return at[i]
}

// nodeY is the centre of a node within its block.
func (w *wide) nodeY(b *block, name string) float64 {
	if b.unit == nil {
		return b.y
	}
	i := slices.IndexFunc(b.nodes, func(n *GraphNode) bool { return n.Name == name })
	return b.y - b.h/2 + wideGroupHead + wideNodeH/2 + float64(i)*(wideNodeH+wideInnerGap)
}
