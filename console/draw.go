package console

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Drawing is a picture of a graph in its own units, about one CSS pixel each. The page scales it.
type Drawing struct {
	Width  float64     `json:"width"`
	Height float64     `json:"height"`
	Groups []DrawGroup `json:"groups"` // boxes around units of several stages
	Nodes  []DrawBox   `json:"nodes"`
	Labels []DrawBox   `json:"labels"` // of streams: name and rate
	Lines  []DrawLine  `json:"lines"`
	Drain  []DrawLine  `json:"drain"` // Stream is the writer's dead letters, "" for the line they all run into
}

// DrawBox is where something stands.
type DrawBox struct {
	Name string  `json:"name"`
	X    float64 `json:"x"`
	Y    float64 `json:"y"`
	W    float64 `json:"w"`
	H    float64 `json:"h"`
}

// DrawGroup is the box of a unit.
type DrawGroup struct {
	DrawBox
	Title string `json:"title"`
}

// DrawLine is a stream on its way: from its writer to its label where Reader is "", else from there to a reader.
type DrawLine struct {
	Stream string `json:"stream"`
	Reader string `json:"reader"`
	Path   string `json:"path"` // an SVG path
}

type point struct{ x, y float64 }

// width of a text of size px in a common sans-serif face; long names are cut by the page.
func textWidth(s string, px float64) float64 { return float64(utf8.RuneCountInString(s)) * px * 0.58 }

// curve leads through points from left to right: level at each, an S between two of different height.
func curve(points []point) string {
	var b strings.Builder
	fmt.Fprintf(&b, "M%.1f %.1f", points[0].x, points[0].y)
	for i, p := range points[1:] {
		from := points[i]
		if from.y == p.y {
			fmt.Fprintf(&b, "H%.1f", p.x)
			continue
		}
		mid := (from.x + p.x) / 2
		fmt.Fprintf(&b, "C%.1f %.1f %.1f %.1f %.1f %.1f", mid, from.y, mid, p.y, p.x, p.y)
	}
	return b.String()
}

// elbow leads through points along the axes, with rounded corners.
func elbow(radius float64, points ...point) string {
	var b strings.Builder
	fmt.Fprintf(&b, "M%.1f %.1f", points[0].x, points[0].y)
	for i := 1; i < len(points)-1; i++ {
		before, corner, after := points[i-1], points[i], points[i+1]
		in, out := toward(corner, before, radius), toward(corner, after, radius)
		fmt.Fprintf(&b, "L%.1f %.1fQ%.1f %.1f %.1f %.1f", in.x, in.y, corner.x, corner.y, out.x, out.y)
	}
	end := points[len(points)-1]
	fmt.Fprintf(&b, "L%.1f %.1f", end.x, end.y)
	return b.String()
}

// toward is the point that lies distance from p on the way to q along an axis, half-way at most.
func toward(p, q point, distance float64) point {
	step := func(a, b float64) float64 {
		d := b - a
		return a + max(-distance, min(distance, d/2))
	}
	return point{step(p.x, q.x), step(p.y, q.y)}
}

// spread moves centres so that boxes of the given heights, in this order, stand at least gap apart, and every
// centre stays as near to its wish as that allows (least squares: pool adjacent violators).
func spread(wishes, heights []float64, gap float64) []float64 {
	type pool struct{ sum, n float64 } // of boxes that stand as close as they may: their mean offset
	// With the room that boxes before need taken off, "far enough apart" becomes "not falling".
	before := make([]float64, len(wishes))
	for i := 1; i < len(wishes); i++ {
		before[i] = before[i-1] + heights[i-1]/2 + gap + heights[i]/2
	}
	var pools []pool
	for i, w := range wishes {
		p := pool{w - before[i], 1}
		for len(pools) > 0 && pools[len(pools)-1].sum/pools[len(pools)-1].n > p.sum/p.n {
			last := pools[len(pools)-1]
			p = pool{p.sum + last.sum, p.n + last.n}
			pools = pools[:len(pools)-1]
		}
		pools = append(pools, p)
	}
	out, i := make([]float64, len(wishes)), 0
	for _, p := range pools {
		for range int(p.n) {
			out[i] = p.sum/p.n + before[i]
			i++
		}
	}
	return out
}
