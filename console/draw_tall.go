package console

import (
	"cmp"
	"slices"
)

// Sizes of the tall drawing.
const (
	tallWidth    = 358.0
	tallMargin   = 10.0
	tallNodeH    = 44.0
	tallLabelH   = 30.0
	tallGap      = 8.0
	tallLane     = 13.0
	tallLanesMax = 12 // beyond that, lanes are set closer
	tallGroupPad = 8.0
)

// rail is a stream in the tall drawing: a lane that runs down from its label to its last reader, as branches do in
// the picture of a repository's history.
type rail struct {
	stream   *GraphStream
	from, to int // rows
	lane     int
}

// tall is one row for every node, with the streams it writes below it.
type tall struct {
	g     *Graph
	rows  []string // node, or stream
	isRow map[string]int
	rails []*rail
}

func drawTall(g *Graph) Drawing {
	t := &tall{g: g, isRow: map[string]int{}}
	for i := range g.Nodes {
		t.add(i)
	}
	if len(t.rows) == 0 {
		return Drawing{}
	}
	return t.draw(t.lanes())
}

func (t *tall) add(node int) {
	n := &t.g.Nodes[node]
	t.isRow["node "+n.Name] = len(t.rows)
	t.rows = append(t.rows, n.Name)
	for i := range t.g.Streams {
		s := &t.g.Streams[i]
		if s.Writer != n.Name || t.g.drains(s) {
			continue
		}
		t.isRow["stream "+s.Name] = len(t.rows)
		t.rails = append(t.rails, &rail{stream: s, from: len(t.rows)})
		t.rows = append(t.rows, s.Name)
	}
}

// lanes gives each stream a lane that no other uses at the same height: the long ones on the left, so that few lines
// cross, and then each as far to the right as there is room. It returns how many lanes there are.
func (t *tall) lanes() int {
	for _, r := range t.rails {
		r.to = r.from
		for _, reader := range r.stream.Readers {
			if row, ok := t.isRow["node "+reader]; ok {
				r.to = max(r.to, row)
			}
		}
	}
	byLength := slices.Clone(t.rails)
	slices.SortStableFunc(byLength, func(a, b *rail) int { return cmp.Compare(b.to-b.from, a.to-a.from) })
	lanes := 0
	for i, r := range byLength {
		for !free(byLength[:i], r, r.lane) {
			r.lane++
		}
		lanes = max(lanes, r.lane+1)
	}
	slices.Reverse(byLength)
	for _, r := range byLength {
		for lane := lanes - 1; lane > r.lane; lane-- {
			if free(byLength, r, lane) {
				r.lane = lane
			}
		}
	}
	return lanes
}

// free says whether none of the others uses a lane where r would.
func free(others []*rail, r *rail, lane int) bool {
	return !slices.ContainsFunc(others, func(o *rail) bool {
		return o != r && o.lane == lane && o.from <= r.to && r.from <= o.to
	})
}

func (t *tall) draw(lanes int) Drawing {
	d := Drawing{Width: tallWidth, Groups: []DrawGroup{}, Nodes: []DrawBox{}, Labels: []DrawBox{}, Lines: []DrawLine{}, Drain: []DrawLine{}}
	pitch := tallLane
	if lanes > tallLanesMax {
		pitch = tallLane * tallLanesMax / float64(lanes)
	}
	left := tallMargin + pitch*float64(lanes) + 10
	x := func(r *rail) float64 { return tallMargin + pitch*(float64(r.lane)+0.5) }
	centre := t.drawRows(&d, left)
	for _, r := range t.rails {
		y := centre[r.from]
		writer := d.Nodes[t.nodeAt(&d, r.stream.Writer)]
		d.Lines = append(d.Lines, DrawLine{r.stream.Name, "", elbow(6, point{left, writer.Y + writer.H - 10}, point{x(r), writer.Y + writer.H - 10}, point{x(r), y})})
		for _, source := range r.stream.Sources { // they stand below the label, beside the lane
			if row, ok := t.isRow["node "+source]; ok && row > r.from {
				d.Lines = append(d.Lines, DrawLine{r.stream.Name, "", elbow(6, point{left, centre[row]}, point{x(r), centre[row]}, point{x(r), centre[row] + tallNodeH/2})})
			}
		}
		for _, reader := range r.stream.Readers {
			row, ok := t.isRow["node "+reader]
			if !ok || row <= r.from {
				continue
			}
			in := centre[row] + t.port(r, reader)
			d.Lines = append(d.Lines, DrawLine{r.stream.Name, reader, elbow(6, point{x(r), y}, point{x(r), in}, point{left, in})})
		}
	}
	return d
}

func (t *tall) nodeAt(d *Drawing, name string) int {
	return slices.IndexFunc(d.Nodes, func(b DrawBox) bool { return b.Name == name })
}

// port spreads the lines that enter one node, the lanes further left lower, so that they do not run over each other.
func (t *tall) port(r *rail, reader string) float64 {
	var lanes []int
	for _, o := range t.rails {
		if slices.Contains(o.stream.Readers, reader) {
			lanes = append(lanes, o.lane)
		}
	}
	slices.Sort(lanes)
	slices.Reverse(lanes)
	step := min(6, 20/float64(len(lanes)))
	return step*float64(slices.Index(lanes, r.lane)) - 12
}

// drawRows places nodes and labels, and gives the centre of each row.
func (t *tall) drawRows(d *Drawing, left float64) []float64 {
	centre := make([]float64, len(t.rows))
	y := tallMargin
	var group *DrawGroup
	finish := func() {
		if group != nil {
			group.H = y - tallGap + tallGroupPad - group.Y
			d.Groups = append(d.Groups, *group)
			group, y = nil, y+2*tallGroupPad
		}
	}
	stages := map[string]int{}
	for i := range t.g.Nodes {
		stages[t.g.Nodes[i].Unit]++
	}
	for row, name := range t.rows {
		n := t.g.node(name)
		if n == nil || t.isRow["node "+name] != row {
			centre[row] = y + tallLabelH/2
			d.Labels = append(d.Labels, DrawBox{name, left, y, tallWidth - left - tallMargin, tallLabelH})
			y += tallLabelH + tallGap
			continue
		}
		if group != nil && group.Name != n.Unit {
			finish()
		}
		if group == nil && stages[n.Unit] > 1 {
			y += tallGroupPad
			group = &DrawGroup{DrawBox{n.Unit, left - tallGroupPad, y - tallGroupPad, tallWidth - left - tallMargin + 2*tallGroupPad, 0}, "one task"}
		}
		centre[row] = y + tallNodeH/2
		d.Nodes = append(d.Nodes, DrawBox{name, left, y, tallWidth - left - tallMargin, tallNodeH})
		y += tallNodeH + tallGap
	}
	finish()
	d.Height = y - tallGap + tallMargin
	return centre
}
