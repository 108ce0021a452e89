package console

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hearthline/pipeline"
)

func TestDrawing(t *testing.T) {
	checkDrawing(t, newGraph(homesPlan()))
}

// Any plan can be drawn: nothing overlaps, nothing leaves the picture, every reader has its line.
func TestDrawingOfAnyPlan(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { checkDrawing(t, newGraph(randomPlan(seed))) })
	}
}

func TestDrawingOfNothing(t *testing.T) {
	for _, p := range []*pipeline.Plan{{}, {Spec: &pipeline.Spec{}, Streams: map[string]*pipeline.Stream{}}} {
		if g := newGraph(p); g.Wide.Width != 0 || len(g.Nodes) != 0 {
			t.Errorf("%+v", g)
		}
	}
}

// A plan drawn twice gives the same picture: pages that are open side by side agree.
func TestDrawingIsStable(t *testing.T) {
	for seed := range uint64(20) {
		a, b := newGraph(randomPlan(seed)), newGraph(randomPlan(seed))
		if fmt.Sprint(a.Wide, a.Tall) != fmt.Sprint(b.Wide, b.Tall) {
			t.Fatalf("seed %d: two pictures of one plan", seed)
		}
	}
}

// The shipped pipeline reads well: the gateway's line runs straight into the first stage, and few lines cross.
func TestDrawingOfTheShippedPipeline(t *testing.T) {
	g := newGraph(homesPlan())
	box := func(name string) DrawBox {
		return g.Wide.Nodes[slices.IndexFunc(g.Wide.Nodes, func(b DrawBox) bool { return b.Name == name })]
	}
	gateway, normalize := box("gateway"), box("normalize")
	if d := math.Abs(gateway.Y + gateway.H/2 - normalize.Y - normalize.H/2); d > 8 {
		t.Errorf("gateway and normalize are %.0f apart in height", d)
	}
	if g.Wide.Width > 1600 || g.Tall.Width > 358 {
		t.Errorf("%.0f and %.0f wide", g.Wide.Width, g.Tall.Width)
	}
}

func randomPlan(seed uint64) *pipeline.Plan {
	r := rand.New(rand.NewPCG(seed, 1))
	f := newFakePlan("random", 1+r.IntN(8))
	f.stream("s0", gatewayName)
	for i := range r.IntN(3) {
		f.source(fmt.Sprintf("source-%d%s", i, strings.Repeat("z", r.IntN(20))), "a topic", "s0")
	}
	streams := []string{"s0"}
	pick := func() string { return streams[r.IntN(len(streams))] }
	for u := range r.IntN(6) {
		var stages []string
		unit := slices.Clone(streams)
		for s := range 1 + r.IntN(3) {
			in := map[string]bool{unit[r.IntN(len(unit))]: true}
			if s > 0 {
				in[unit[len(unit)-1]] = true
			}
			if r.IntN(4) == 0 {
				in[pick()] = true
			}
			var ins, outs []string
			for name := range in {
				ins = append(ins, name)
			}
			slices.Sort(ins)
			for o := range 1 + r.IntN(3) {
				outs = append(outs, fmt.Sprintf("u%d-s%d-%s%d", u, s, strings.Repeat("x", r.IntN(14)), o))
			}
			unit = append(unit, outs...)
			stages = append(stages, fmt.Sprintf("stage-%d-%d%s: %s -> %s", u, s, strings.Repeat("y", r.IntN(20)), strings.Join(ins, " "), strings.Join(outs, " ")))
		}
		f.unit(stages...)
		streams = unit
	}
	for i := range r.IntN(4) {
		var in []string
		for _, s := range streams {
			if r.IntN(2) == 0 {
				in = append(in, s)
			}
		}
		f.sink(fmt.Sprintf("sink-%d", i), in...)
	}
	for _, s := range f.plan.Sinks {
		for _, name := range slices.Sorted(maps.Keys(f.plan.Streams)) {
			if strings.HasSuffix(name, ".dead") && r.IntN(3) == 0 {
				s.Streams = append(s.Streams, name)
				f.plan.Streams[name].Readers = append(f.plan.Streams[name].Readers, s.Name)
			}
		}
		slices.Sort(s.Streams)
	}
	for _, s := range f.plan.Streams {
		slices.Sort(s.Readers)
	}
	return f.done()
}

var coordinates = regexp.MustCompile(`-?\d+(\.\d+)?`)

func checkDrawing(t *testing.T, g *Graph) {
	t.Helper()
	for which, d := range map[string]Drawing{"wide": g.Wide, "tall": g.Tall} {
		boxes := slices.Clone(d.Nodes)
		boxes = append(boxes, d.Labels...)
		for i, a := range boxes {
			if a.X < 0 || a.Y < 0 || a.X+a.W > d.Width || a.Y+a.H > d.Height || a.W <= 0 || math.IsNaN(a.Y) {
				t.Errorf("%s: %+v leaves the picture of %.0f × %.0f", which, a, d.Width, d.Height)
			}
			for _, b := range boxes[:i] {
				if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H-0.01 && b.Y < a.Y+a.H-0.01 {
					t.Errorf("%s: %+v overlaps %+v", which, a, b)
				}
			}
		}
		for _, s := range g.Streams {
			begun := 0
			for _, l := range append(slices.Clone(d.Lines), d.Drain...) {
				if l.Stream == s.Name && l.Reader == "" {
					begun++
				}
			}
			if len(s.Sources) > 0 && begun != 1+len(s.Sources) && (which == "wide" || !g.drains(&s)) {
				t.Errorf("%s: %d lines begin %s, which %s and %v write", which, begun, s.Name, s.Writer, s.Sources)
			}
			for _, r := range s.Readers {
				if g.drains(&s) || g.node(r) == nil {
					continue
				}
				if !slices.ContainsFunc(d.Lines, func(l DrawLine) bool { return l.Stream == s.Name && l.Reader == r }) {
					t.Errorf("%s: no line of %s to %s", which, s.Name, r)
				}
			}
		}
		for _, l := range append(slices.Clone(d.Lines), d.Drain...) {
			for _, c := range coordinates.FindAllString(l.Path, -1) {
				if v, err := strconv.ParseFloat(c, 64); err != nil || v < -1 || v > max(d.Width, d.Height)+1 {
					t.Errorf("%s: line %s → %s leaves the picture: %s", which, l.Stream, l.Reader, l.Path)
					break
				}
			}
			if strings.Contains(l.Path, "NaN") {
				t.Errorf("%s: %+v", which, l)
			}
		}
		if len(d.Nodes) != len(g.Nodes) {
			t.Errorf("%s: %d of %d nodes are drawn", which, len(d.Nodes), len(g.Nodes))
		}
	}
}

func TestSpread(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		n := 1 + r.IntN(8)
		wishes, heights := make([]float64, n), make([]float64, n)
		for i := range wishes {
			wishes[i], heights[i] = r.Float64()*200, 10+r.Float64()*40
		}
		got := spread(wishes, heights, 5)
		for i := 1; i < n; i++ {
			if got[i]-heights[i]/2 < got[i-1]+heights[i-1]/2+5-1e-9 {
				t.Fatalf("seed %d: %v with heights %v stand too close", seed, got, heights)
			}
		}
		mean := 0.0
		for i := range got {
			mean += (got[i] - wishes[i]) / float64(n)
		}
		if math.Abs(mean) > 1e-9 {
			t.Fatalf("seed %d: the boxes are off their wishes by %v on average", seed, mean)
		}
	}
}

// Sources stand beside the gateway, write its stream, and have dead letters of their own; the gateway has none.
func TestSourcesAreDrawn(t *testing.T) {
	f := newFakePlan("sources", 4)
	f.stream("raw", gatewayName)
	f.source("partner", "devices.readings", "raw")
	f.source("old", "legacy", "raw")
	f.unit("normalize: raw -> clean")
	f.sink("clickhouse", "clean", pipeline.SourceDead)
	g := newGraph(f.done())
	checkDrawing(t, g)
	partner, raw, dead := g.node("partner"), g.stream("raw"), g.stream(pipeline.SourceDead)
	if partner == nil || partner.Kind != "source" || partner.Topic != "devices.readings" || !slices.Equal(partner.Outputs, []string{"raw"}) || len(g.Nodes) != 5 {
		t.Fatalf("%+v", g.Nodes)
	}
	if raw.Writer != gatewayName || !slices.Equal(raw.Sources, []string{"partner", "old"}) {
		t.Errorf("%+v", raw)
	}
	if dead.Writer != "partner" || !slices.Equal(dead.Sources, []string{"old"}) || !dead.Dead || slices.Contains(g.node(gatewayName).Outputs, dead.Name) {
		t.Errorf("%+v", dead)
	}
	at := map[string]DrawBox{}
	for _, b := range g.Wide.Nodes {
		at[b.Name] = b
	}
	if at["partner"].X > at["normalize"].X || math.Abs(at["partner"].Y-at[gatewayName].Y) > 3*(wideNodeH+wideBlockGap) {
		t.Errorf("the source stands at %+v, the gateway at %+v", at["partner"], at[gatewayName])
	}
}
