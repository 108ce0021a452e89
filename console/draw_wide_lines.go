package console

import (
	"cmp"
	"slices"
)

// draw turns blocks into boxes and lines.
func (w *wide) draw() Drawing {
	d := Drawing{Groups: []DrawGroup{}, Nodes: []DrawBox{}, Labels: []DrawBox{}, Lines: []DrawLine{}, Drain: []DrawLine{}}
	for _, blocks := range w.layers {
		for _, b := range blocks {
			if b.passes == "" {
				w.drawBlock(&d, b)
			}
			d.Height = max(d.Height, b.y+b.span/2)
		}
	}
	w.drawStreams(&d)
	last := w.column[len(w.column)-1]
	d.Width = last.x + last.w + wideMargin
	if last.labels > 0 {
		d.Width += wideLead + last.labels
	}
	w.drawDrain(&d)
	return d
}

func (w *wide) left(b *block) float64 { return w.column[b.layer].x + (w.column[b.layer].w-b.w)/2 }

func (w *wide) drawBlock(d *Drawing, b *block) {
	x, pad, height := w.left(b), 0.0, b.h
	if b.unit != nil {
		d.Groups = append(d.Groups, DrawGroup{DrawBox{b.unit.Name, x, b.y - b.h/2, b.w, b.h}, "one task"})
		pad, height = wideGroupPad, wideNodeH
	}
	for _, n := range b.nodes {
		d.Nodes = append(d.Nodes, DrawBox{n.Name, x + pad, w.nodeY(b, n.Name) - height/2, b.w - 2*pad, height})
	}
	w.drawInner(d, b)
}

// drawInner joins the stages of a unit: straight down to the next, around to one further on.
func (w *wide) drawInner(d *Drawing, b *block) {
	centre, right := w.left(b)+b.w/2, w.left(b)+b.w-wideGroupPad
	beside := map[int]int{} // labels that stand in the gap below a stage already
	for _, name := range b.inner {
		s := w.g.stream(name)
		from := slices.IndexFunc(b.nodes, func(n *GraphNode) bool { return n.Name == s.Writer })
		y := w.nodeY(b, s.Writer) + wideNodeH/2
		if !slices.Contains(b.out, name) { // else its label stands outside, where it leaves
			d.Labels = append(d.Labels, DrawBox{name, centre + 6, y + 2 + wideInnerGap*float64(beside[from]), b.w/2 - wideGroupPad, wideInnerGap - 4})
			beside[from]++
		}
		for _, r := range s.Readers {
			to := slices.IndexFunc(b.nodes, func(n *GraphNode) bool { return n.Name == r })
			if to < 0 {
				continue
			}
			top := w.nodeY(b, r) - wideNodeH/2
			if to == from+1 {
				d.Lines = append(d.Lines, DrawLine{name, r, elbow(0, point{centre, y}, point{centre, top})})
				continue
			}
			edge, mid := right+wideGroupPad/2, w.nodeY(b, r)
			d.Lines = append(d.Lines, DrawLine{name, r, elbow(6, point{right, y - wideNodeH/2}, point{edge, y - wideNodeH/2}, point{edge, mid}, point{right, mid})})
		}
	}
}

// arrival is a line that ends at a block.
type arrival struct {
	stream, reader string
	points         []point
}

// drawStreams leads every stream from its writer over its label to its readers.
func (w *wide) drawStreams(d *Drawing) {
	arrivals := map[*block][]arrival{}
	var order []*block
	w.flows(func(s *GraphStream, from *block, to []*block) {
		if !slices.Contains(from.out, s.Name) {
			return
		}
		c := w.column[from.layer]
		y := from.y + w.leaves(from, s.Name)
		label := DrawBox{s.Name, c.x + c.w + wideLead, y - wideLabelH/2, labelWidth(s.Name), wideLabelH}
		d.Labels = append(d.Labels, label)
		pad := 0.0
		if from.unit != nil {
			pad = wideGroupPad
		}
		start := point{w.left(from) + from.w - pad, w.nodeY(from, s.Writer) + within(y-w.nodeY(from, s.Writer), wideNodeH/2-8)}
		d.Lines = append(d.Lines, DrawLine{s.Name, "", curve([]point{start, {label.X, y}})})
		for _, name := range s.Sources {
			if b := w.of[name]; b != nil {
				d.Lines = append(d.Lines, DrawLine{s.Name, "", curve([]point{{w.left(b) + b.w, b.y}, {label.X, y}})})
			}
		}
		points := []point{{label.X + label.W, y}, {c.x + c.w + wideLead + c.labels, y}}
		reach := map[int][]point{from.layer: points}
		for _, b := range w.via[s.Name] {
			c := w.column[b.layer]
			end := c.x + c.w
			if c.labels > 0 {
				end += wideLead + c.labels
			}
			points = append(slices.Clone(points), point{c.x, b.y}, point{end, b.y})
			reach[b.layer] = points
		}
		for _, r := range s.Readers {
			b := w.of[r]
			if b == nil || b == from || b.layer <= from.layer {
				continue
			}
			if arrivals[b] == nil {
				order = append(order, b)
			}
			arrivals[b] = append(arrivals[b], arrival{s.Name, r, reach[b.layer-1]})
		}
	})
	for _, b := range order {
		w.drawArrivals(d, b, arrivals[b])
	}
}

// drawArrivals ends lines at the nodes of a block, one below the other in the order in which they come.
func (w *wide) drawArrivals(d *Drawing, b *block, all []arrival) {
	slices.SortStableFunc(all, func(p, q arrival) int {
		return cmp.Compare(p.points[len(p.points)-1].y, q.points[len(q.points)-1].y)
	})
	count, seen := map[string]int{}, map[string]int{}
	for _, a := range all {
		count[a.reader]++
	}
	for _, a := range all {
		x, height := w.left(b), b.h
		if b.unit != nil {
			x, height = x+wideGroupPad, wideNodeH
		}
		step := min(14, (height-10)/float64(count[a.reader]))
		y := w.nodeY(b, a.reader) + step*(float64(seen[a.reader])-float64(count[a.reader]-1)/2)
		seen[a.reader]++
		d.Lines = append(d.Lines, DrawLine{a.stream, a.reader, curve(append(slices.Clone(a.points), point{x, y}))})
	}
}

// drawDrain gathers dead letters in a line along the bottom, which ends in the sinks that keep them.
func (w *wide) drawDrain(d *Drawing) {
	y := d.Height + wideDrainGap
	right := 0.0
	for i := range w.g.Streams {
		s := &w.g.Streams[i]
		if w.of[s.Writer] == nil || !w.g.drains(s) {
			continue
		}
		for _, writer := range append([]string{s.Writer}, s.Sources...) {
			n := d.Nodes[slices.IndexFunc(d.Nodes, func(n DrawBox) bool { return n.Name == writer })]
			x := w.left(w.of[writer]) - 9
			d.Drain = append(d.Drain, DrawLine{s.Name, "", elbow(6, point{n.X, n.Y + n.H - 9}, point{x, n.Y + n.H - 9}, point{x, y})})
		}
		for _, r := range s.Readers {
			if to := w.of[r]; to != nil {
				right = max(right, w.left(to)+to.w/2)
				if i := slices.IndexFunc(d.Drain, func(l DrawLine) bool { return l.Stream == "" && l.Reader == r }); i < 0 {
					box := d.Nodes[slices.IndexFunc(d.Nodes, func(n DrawBox) bool { return n.Name == r })]
					d.Drain = append(d.Drain, DrawLine{"", r, elbow(8, point{w.column[0].x, y}, point{box.X + box.W + 9, y},
						point{box.X + box.W + 9, box.Y + box.H - 12}, point{box.X + box.W, box.Y + box.H - 12})})
				}
			}
		}
	}
	if len(d.Drain) > 0 {
		d.Labels = append(d.Labels, DrawBox{drainName, w.column[0].x, y - 22, 150, 18})
		d.Height = y
	}
	d.Height += wideMargin
}

// drainName labels the line that dead letters run into; no stream can be called so.
const drainName = "*.dead"

func within(v, limit float64) float64 { return max(-limit, min(limit, v)) }
