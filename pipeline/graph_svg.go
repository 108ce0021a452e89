package pipeline

import (
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// SVG draws the plan as a picture that stands alone: no script, no fonts or files from elsewhere, and legible on
// light and dark grounds alike. The same plan gives the same bytes.
func (p *Plan) SVG() string {
	l := newLayout(p)
	d := &draw{layout: l}
	d.columns()
	for _, layer := range l.layers {
		for _, it := range layer {
			d.links(it)
		}
	}
	d.drops()
	for _, layer := range l.layers {
		for _, it := range layer {
			d.item(it)
		}
	}
	return d.page()
}

const (
	margin    = 20.0
	caption   = 34.0 // above the picture
	textRatio = 1.04 // how much wider than Helvetica the reader's font may be

	sourceSlant = 10.0 // of a source's shape
)

// svgStyle has plain colours for light grounds and overrides for dark ones; viewers without media queries show light.
const svgStyle = `text{font-family:ui-sans-serif,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;font-size:14px;fill:#1f2328}
.name{font-weight:600;text-anchor:middle}.use{font-size:11px;fill:#59636e;text-anchor:middle}
.pill text,.inner{font-size:12px;text-anchor:middle}.inner{fill:#59636e;text-anchor:start}
.head{font-size:11px;fill:#59636e;text-anchor:middle}.caption{font-size:13px;fill:#59636e}
.gateway rect{fill:#fff1e5;stroke:#bc4c00}.stage rect{fill:#fff;stroke:#818b98}.sink path{fill:#e6f6ec;stroke:#1a7f37}
.group{fill:#f6f8fa;stroke:#d1d9e0;stroke-dasharray:5 4}.pill rect{fill:#ddf4ff;stroke:#54aeff}.pill text{fill:#0550ae}
.edge{fill:none;stroke:#818b98;stroke-width:1.5}.tip{fill:#818b98}
.dead .edge,.drop{fill:none;stroke:#afb8c1;stroke-width:1.2;stroke-dasharray:2 4}.dead .tip{fill:#afb8c1}
.dead.pill rect{fill:#fff;stroke:#afb8c1;stroke-dasharray:2 3}.dead.pill text{fill:#818b98}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.use,.inner,.head,.caption{fill:#9198a1}
.gateway rect{fill:#3d1e0b;stroke:#f0883e}.stage rect{fill:#151b23;stroke:#656c76}.sink path{fill:#0f2d1a;stroke:#3fb950}
.group{fill:#0d1117;stroke:#3d444d}.pill rect{fill:#0c2d4f;stroke:#316dca}.pill text{fill:#9ecbff}
.edge{stroke:#656c76}.tip{fill:#656c76}.dead .edge,.drop{stroke:#3d444d}.dead .tip{fill:#3d444d}
.dead.pill rect{fill:#0d1117;stroke:#3d444d}.dead.pill text{fill:#656c76}}`

// sourceStyle is for pictures that show sources.
const sourceStyle = `
.source path{fill:#fff8c5;stroke:#9a6700}
@media(prefers-color-scheme:dark){.source path{fill:#2e2111;stroke:#d29922}}`

type draw struct {
	*layout
	boxX, boxW, pillX, right []float64       // by layer: the boxes, the streams beside them, where links begin
	groups, edges, dead      strings.Builder // from the ground up, and the shapes over all
	shapes                   strings.Builder
	bottom                   float64
}

// columns finds out how wide each layer is.
func (d *draw) columns() {
	x := margin
	for _, layer := range d.layers {
		w, pill := 0.0, 0.0
		for _, it := range layer {
			w = max(w, d.widthOf(it))
			if it.begins() || it.kind == "unit" {
				for _, p := range it.out {
					pill = max(pill, pillWidth(p.stream))
				}
			}
		}
		d.boxX, d.boxW, d.pillX = append(d.boxX, x), append(d.boxW, w), append(d.pillX, x+w+pillGap)
		x += w
		if pill > 0 {
			x += pillGap + pill
		}
		d.right = append(d.right, x)
		x += layerGap
	}
	for _, layer := range d.layers {
		for _, it := range layer {
			it.y += margin + caption
			d.bottom = max(d.bottom, it.y+it.height/2)
		}
	}
}

// widthOf is the width of a box.
func (d *draw) widthOf(it *item) float64 {
	w := boxWidth
	switch it.kind {
	case "unit":
		for _, s := range it.stages {
			w = max(w, textWidth(s.Name, 14, true)+28)
			if s.Use != s.Name {
				w = max(w, textWidth(s.Use, 11, false)+28)
			}
		}
		if len(it.stages) > 1 {
			w += 2 * groupPad
		}
	case "sink", "gateway":
		w = max(w, textWidth(it.name, 14, true)+32)
	case "source":
		w = max(w, textWidth(it.name, 14, true)+2*sourceSlant+16, textWidth(it.topic, 11, false)+2*sourceSlant+8)
	case "":
		w = 0
		if it.stream == rail && len(it.in) == 0 {
			w = pillWidth(rail)
		}
	}
	return w
}

func pillWidth(stream string) float64 { return textWidth(stream, 12, false) + 20 }

// links draws what leaves an item, up to the next layer.
func (d *draw) links(it *item) {
	for _, p := range it.out {
		fromX := d.right[it.layer]
		switch {
		case it.kind != "":
			fromX = d.pillX[it.layer] + pillWidth(p.stream)
		case len(it.in) == 0: // where the rail begins
			fromX = d.boxX[it.layer] + pillWidth(rail)
		}
		b := &d.edges
		if p.dead {
			b = &d.dead
		}
		if it.kind == "" && len(it.in) > 0 {
			fmt.Fprintf(b, "<path class=\"edge\" d=\"M%s %sH%s\"/>\n", px(d.boxX[it.layer]), px(p.y()), px(fromX))
		}
		for _, o := range p.links {
			d.link(b, fromX, p.y(), o)
		}
	}
}

// link draws a curve from (x, y) to a port in the next layer, with an arrow where it ends at a box.
func (d *draw) link(b *strings.Builder, x, y float64, to *port) {
	endX, endY := d.boxX[to.item.layer], to.y()
	if to.item.kind == "unit" && len(to.item.stages) > 1 {
		endX += groupPad
	}
	tip := endX
	if to.item.kind != "" {
		endX -= 7
	}
	// Level until the layers' own ground is left, so that a curve never runs through a box of its layer.
	startX := max(x, d.right[to.item.layer-1])
	bend := (d.boxX[to.item.layer] - startX) / 2
	fmt.Fprintf(b, "<path class=\"edge\" d=\"M%s %sH%sC%s %s %s %s %s %sH%s\"/>\n", px(x), px(y), px(startX),
		px(startX+bend), px(y), px(startX+bend), px(endY), px(d.boxX[to.item.layer]-7), px(endY), px(endX))
	if to.item.kind != "" {
		fmt.Fprintf(b, "<path class=\"tip\" d=\"M%s %sl-9 -4.5v9z\"/>\n", px(tip), px(endY))
	}
}

// drops lead from the boxes down to the rail of dead letters.
func (d *draw) drops() {
	for i, layer := range d.layers {
		if len(layer) == 0 || layer[len(layer)-1].stream != rail {
			continue
		}
		to := layer[len(layer)-1]
		for _, it := range layer {
			if it.kind == "unit" {
				x := d.boxX[i] + d.boxW[i] - 12
				if len(to.in) == 0 {
					x = d.boxX[i] + pillWidth(rail)/2
				}
				end := to.y
				if len(to.in) == 0 {
					end -= pillHeight / 2
				}
				fmt.Fprintf(&d.dead, "<path class=\"drop\" d=\"M%s %sV%s\"/>\n", px(x), px(it.y+it.height/2), px(end))
				break // those below stand on the same line
			}
		}
	}
}

// item draws a box and the streams it writes.
func (d *draw) item(it *item) {
	x, w := d.boxX[it.layer], d.boxW[it.layer]
	switch it.kind {
	case "gateway":
		fmt.Fprintf(&d.shapes, "<g class=\"gateway\"><rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" rx=\"%s\"/>%s</g>\n",
			px(x), px(it.y-it.height/2), px(w), px(it.height), px(it.height/2), label("name", x+w/2, it.y+5, it.name))
	case "source":
		top, bottom := px(it.y-it.height/2), px(it.y+it.height/2)
		fmt.Fprintf(&d.shapes, "<g class=\"source\"><path d=\"M%s %sH%sL%s %sH%sz\"/>%s%s</g>\n",
			px(x+sourceSlant), top, px(x+w), px(x+w-sourceSlant), bottom, px(x), label("name", x+w/2, it.y-1, it.name), label("use", x+w/2, it.y+13, it.topic))
	case "sink":
		d.cylinder(it, x, w)
	case "unit":
		if len(it.stages) > 1 {
			fmt.Fprintf(&d.groups, "<rect class=\"group\" x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" rx=\"10\"/>%s\n",
				px(x), px(it.y-it.height/2), px(w), px(it.height), label("head", x+w/2, it.y-it.height/2+15, "together"))
			x, w = x+groupPad, w-2*groupPad
		}
		for i, s := range it.stages {
			d.stage(s, x, it.y+it.rows[i], w)
		}
		d.inner(it, x, w)
	case "":
		if it.stream == rail && len(it.in) == 0 {
			d.pill(x, it.y, rail, "dead letters of the stages and sinks", true)
		}
		return
	}
	for _, p := range it.out {
		fmt.Fprintf(&d.edges, "<path class=\"edge\" d=\"%s\"/>\n", elbow(x+w, it.y+it.rows[d.rowIndex(it, p)], d.pillX[it.layer], p.y()))
		d.pill(d.pillX[it.layer], p.y(), p.stream, "", p.dead)
	}
}

func (d *draw) rowIndex(it *item, p *port) int {
	for i, s := range it.stages {
		if s.Name == d.writer(p) {
			return i
		}
	}
	return 0
}

// elbow leads from a box to a stream beside it.
func elbow(x1, y1, x2, y2 float64) string {
	if math.Abs(y1-y2) < 0.5 {
		return fmt.Sprintf("M%s %sH%s", px(x1), px(y1), px(x2))
	}
	middle := (x1 + x2) / 2
	return fmt.Sprintf("M%s %sC%s %s %s %s %s %s", px(x1), px(y1), px(middle), px(y1), px(middle), px(y2), px(x2), px(y2))
}

func (d *draw) stage(s *StageNode, x, y, w float64) {
	text := label("name", x+w/2, y+5, s.Name)
	if s.Use != s.Name {
		text = label("name", x+w/2, y-1, s.Name) + label("use", x+w/2, y+12, s.Use)
	}
	fmt.Fprintf(&d.shapes, "<g class=\"stage\"><rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" rx=\"6\"/>%s</g>\n",
		px(x), px(y-stageHeight/2), px(w), px(stageHeight), text)
}

// inner draws the streams that stay within a group: down from a stage to the next, or round those between.
func (d *draw) inner(it *item, x, w float64) {
	for i, s := range it.stages {
		for _, name := range sortedKeys(d.plan.Streams) {
			stream := d.plan.Streams[name]
			if stream.Writer != s.Name {
				continue
			}
			for j := i + 1; j < len(it.stages); j++ {
				for _, r := range stream.Readers {
					if it.stages[j].Name != r {
						continue
					}
					from, to := it.y+it.rows[i], it.y+it.rows[j]
					d.innerLink(x, w, from, to, name, j == i+1, stream.OnKafka())
				}
			}
		}
	}
}

func (d *draw) innerLink(x, w, from, to float64, name string, next, onKafka bool) {
	b := &d.shapes
	if !next { // past the stages in between, on the left
		fmt.Fprintf(b, "<path class=\"edge\" d=\"M%s %sh-5V%sh5\"/><path class=\"tip\" d=\"M%s %sl-6 -4v8z\"/>\n", px(x), px(from+8), px(to-8), px(x), px(to-8))
		return
	}
	from, to = from+stageHeight/2, to-stageHeight/2
	fmt.Fprintf(b, "<path class=\"edge\" d=\"M%s %sV%s\"/><path class=\"tip\" d=\"M%s %sl-4.5 -9h9z\"/>", px(x+w/2), px(from), px(to-7), px(x+w/2), px(to))
	if !onKafka {
		b.WriteString(label("inner", x+w/2+8, (from+to)/2+4, name))
	}
	b.WriteString("\n")
}

func (d *draw) cylinder(it *item, x, w float64) {
	const lid = 6.0
	top, bottom := it.y-it.height/2, it.y+it.height/2
	arc := fmt.Sprintf("a%s %s 0 0 1 %s 0", px(w/2), px(lid), px(w))
	fmt.Fprintf(&d.shapes, "<g class=\"sink\"><path d=\"M%s %s%sV%sa%s %s 0 0 1 -%s 0Z\"/><path d=\"M%s %sa%s %s 0 0 0 %s 0\"/>",
		px(x), px(top+lid), arc, px(bottom-lid), px(w/2), px(lid), px(w), px(x), px(top+lid), px(w/2), px(lid), px(w))
	d.shapes.WriteString(label("name", x+w/2, it.y+lid/2+5, it.name) + "</g>\n")
}

func (d *draw) pill(x, y float64, stream, title string, dead bool) {
	class := "pill"
	if dead {
		class = "dead pill"
	}
	if title != "" {
		title = "<title>" + title + "</title>"
	}
	fmt.Fprintf(&d.shapes, "<g class=\"%s\">%s<rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" rx=\"11\"/>%s</g>\n", class, title,
		px(x), px(y-pillHeight/2), px(pillWidth(stream)), px(pillHeight), label("", x+pillWidth(stream)/2, y+4, stream))
}

func (d *draw) page() string {
	width, height := d.right[len(d.right)-1]+margin, d.bottom+margin
	partitions := "partitions"
	if d.plan.Spec.Partitions == 1 {
		partitions = "partition"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %s %s\" width=\"%s\" height=\"%s\" role=\"img\">\n", px(width), px(height), px(width), px(height))
	style := svgStyle
	if len(d.plan.Spec.Sources) > 0 {
		style += sourceStyle
	}
	fmt.Fprintf(&b, "<title>Pipeline %s</title>\n<style>%s</style>\n", d.plan.Spec.Name, style)
	b.WriteString(label("caption", margin, margin+8, fmt.Sprintf("%s · %d %s", d.plan.Spec.Name, d.plan.Spec.Partitions, partitions)) + "\n")
	fmt.Fprintf(&b, "%s<g class=\"dead\">\n%s</g>\n<g>\n%s</g>\n%s</svg>\n", d.groups.String(), d.dead.String(), d.edges.String(), d.shapes.String())
	return b.String()
}

func label(class string, x, y float64, text string) string {
	var esc strings.Builder
	_ = xml.EscapeText(&esc, []byte(text)) // a strings.Builder does not fail
	if class != "" {
		class = fmt.Sprintf(" class=%q", class)
	}
	return fmt.Sprintf("<text%s x=\"%s\" y=\"%s\">%s</text>", class, px(x), px(y), esc.String())
}

// px writes a coordinate with one decimal at most.
func px(x float64) string {
	s := fmt.Sprintf("%.1f", x)
	return strings.TrimSuffix(strings.Replace(s, "-0.0", "0.0", 1), ".0")
}

// textWidth estimates how wide a text is: names are made of lower case letters, digits and a few signs, whose widths
// in Helvetica are these thousandths of the font's size.
func textWidth(s string, size float64, bold bool) float64 {
	w := 0.0
	for _, r := range s {
		switch {
		case strings.ContainsRune("ijl.,:", r):
			w += 0.25
		case strings.ContainsRune("ft-* ", r):
			w += 0.31
		case r == 'r':
			w += 0.35
		case strings.ContainsRune("mw", r):
			w += 0.80
		case strings.ContainsRune("ckxyzsvJ", r):
			w += 0.51
		default:
			w += 0.56
		}
	}
	if bold {
		w *= 1.07
	}
	return w * size * textRatio
}
