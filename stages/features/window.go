package features

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// Window is a kind of window: Size long, one starting every Hop, aligned to 1970-01-01T00:00:00Z. With Hop equal to Size it
// is tumbling. It is written "1m" or "5m/1m".
type Window struct{ Size, Hop time.Duration }

// ParseWindow reads "SIZE" or "SIZE/HOP".
func ParseWindow(s string) (Window, error) {
	size, hop, hops := strings.Cut(s, "/")
	var w Window
	var err error
	if w.Size, err = time.ParseDuration(strings.TrimSpace(size)); err != nil {
		return w, fmt.Errorf("window %q: write it as 1m (tumbling) or 5m/1m (five minutes long, one every minute)", s)
	}
	w.Hop = w.Size
	if hops {
		if w.Hop, err = time.ParseDuration(strings.TrimSpace(hop)); err != nil {
			return w, fmt.Errorf("window %q: the hop is no duration; write it as 5m/1m", s)
		}
	}
	return w, w.check()
}

// maxOverlap is how many windows of one kind a reading may be in.
const maxOverlap = 1440

func (w Window) check() error {
	switch {
	case w.Size <= 0 || w.Hop <= 0:
		return fmt.Errorf("window %v: size and hop must be above 0", w)
	case w.Size%time.Millisecond != 0 || w.Hop%time.Millisecond != 0:
		return fmt.Errorf("window %v: size and hop must be whole milliseconds", w)
	case w.Size%w.Hop != 0:
		return fmt.Errorf("window %v: the size must be a multiple of the hop", w)
	case w.Size/w.Hop > maxOverlap:
		return fmt.Errorf("window %v: a reading would be in %d windows; at most %d", w, w.Size/w.Hop, maxOverlap)
	case w.Size > 7*24*time.Hour:
		return fmt.Errorf("window %v: the size is more than 7 days", w)
	}
	return nil
}

// String is the window as it is written, and as it stands in the column.
func (w Window) String() string {
	if w.Hop == w.Size {
		return short(w.Size)
	}
	return short(w.Size) + "/" + short(w.Hop)
}

// short is d without its zero parts: 1m, not 1m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// UnmarshalYAML reads the written form.
func (w *Window) UnmarshalYAML(n *yaml.Node) error {
	got, err := ParseWindow(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	*w = got
	return nil
}

// MarshalYAML writes the written form.
func (w Window) MarshalYAML() (any, error) { return w.String(), nil }

// kind is a Window in µs, and which panes it is made of.
type kind struct {
	name      string
	size, hop flow.Micros
	grid      int // index into the grids
}

// gridOf gives the panes that the kinds need: one grid for each hop; windows of the same hop share it.
func gridsOf(windows []Window) (kinds []kind, grids []grid) {
	for _, w := range windows {
		k := kind{name: w.String(), size: flow.Micros(w.Size.Microseconds()), hop: flow.Micros(w.Hop.Microseconds())}
		k.grid = slices.IndexFunc(grids, func(g grid) bool { return g.hop == k.hop })
		if k.grid < 0 {
			k.grid = len(grids)
			grids = append(grids, grid{hop: k.hop})
		}
		grids[k.grid].span = max(grids[k.grid].span, k.size)
		kinds = append(kinds, k)
	}
	return kinds, grids
}

// grid is the panes of one hop. span is the size of the largest window made of them.
type grid struct{ hop, span flow.Micros }

// floor is the largest multiple of step that is not above m.
func floor(m, step flow.Micros) flow.Micros {
	r := m % step
	if r < 0 {
		r += step
	}
	return m - r
}
