package normalize

import (
	_ "embed"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Metric says how one metric is kept, and from what it can be made.
type Metric struct {
	Unit    string             `yaml:"unit"`    // kept in; "" is none
	Aliases []string           `yaml:"aliases"` // other names of the metric
	Units   map[string]Convert `yaml:"units"`   // accepted units beside Unit
	Min     *float64           `yaml:"min"`     // in Unit; nil is no bound
	Max     *float64           `yaml:"max"`
	States  map[string]float64 `yaml:"states"` // what a text means; a metric with states takes no other number

	order []string // the names of States as they were written
}

// Convert turns a value of a unit into the metric's own: value × Scale + Offset.
type Convert struct {
	Scale  Factor `yaml:"scale"`  // default 1
	Offset Factor `yaml:"offset"` // default 0
	As     string `yaml:"as"`     // the unit is that of another metric, which the reading then is
}

// Factor is a number, written as one or as a fraction of two ("5/9").
type Factor struct {
	Value float64
	Set   bool
}

// UnmarshalYAML reads a number or a fraction.
func (f *Factor) UnmarshalYAML(n *yaml.Node) error {
	over, under, fraction := strings.Cut(n.Value, "/")
	v, err := strconv.ParseFloat(strings.TrimSpace(over), 64)
	if err == nil && fraction {
		var d float64
		d, err = strconv.ParseFloat(strings.TrimSpace(under), 64)
		v /= d
	}
	if err != nil || n.Kind != yaml.ScalarNode || math.IsNaN(v) || math.IsInf(v, 0) {
		return fmt.Errorf("line %d: %q is neither a number nor a fraction such as 5/9", n.Line, n.Value)
	}
	*f = Factor{Value: v, Set: true}
	return nil
}

//go:embed metrics.yaml
var builtIn []byte

// spelling is how names and units are compared: without case, spaces and the underscore-hyphen difference.
func spelling(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	return strings.Map(func(r rune) rune {
		switch r {
		case ' ':
			return -1
		case '-':
			return '_'
		case 'μ': // Greek mu, for the micro sign
			return 'µ'
		}
		return r
	}, s)
}

// unitSpelling is the same for units, where a leading M is mega and no m.
func unitSpelling(s string) string {
	if t := strings.TrimSpace(s); strings.HasPrefix(t, "M") {
		return "M" + spelling(t[1:])
	}
	return spelling(s)
}

// metric is a Metric made ready for use.
type metric struct {
	name     string
	unit     string
	min, max float64
	units    map[string]conversion // by spelling
	accepted string                // unit names, for reasons
	states   map[string]float64    // by spelling; nil when it has none
	names    map[float64]string    // of states
	allowed  string                // state names, for reasons
}

type conversion struct {
	scale, offset float64
	to            *metric
}

// catalogue finds metrics by any of their names.
type catalogue struct {
	byName  map[string]*metric // by spelling
	metrics []string           // canonical names, sorted
}

// catalogueWith is the built-in table with the given metrics put in or in place of those of the same name.
func catalogueWith(more map[string]Metric) (*catalogue, error) {
	table := map[string]Metric{}
	if err := yaml.Unmarshal(builtIn, &table); err != nil {
		return nil, fmt.Errorf("built-in metrics: %w", err)
	}
	maps.Copy(table, more)
	c := &catalogue{byName: map[string]*metric{}, metrics: slices.Sorted(maps.Keys(table))}
	for _, name := range c.metrics {
		m, err := ready(name, table[name])
		if err != nil {
			return nil, err
		}
		c.byName[spelling(name)] = m
	}
	for _, name := range c.metrics {
		m := c.byName[spelling(name)]
		if err := m.accept(table[name], c); err != nil {
			return nil, err
		}
		for _, alias := range table[name].Aliases {
			// A name that an added metric uses itself is taken from the built-in alias.
			if other, taken := c.byName[spelling(alias)]; taken && other != m {
				if _, added := more[other.name]; added {
					continue
				}
				return nil, fmt.Errorf("metric %s: the alias %q is %s already", name, alias, other.name)
			}
			c.byName[spelling(alias)] = m
		}
	}
	return c, nil
}

func ready(name string, from Metric) (*metric, error) {
	m := &metric{name: name, unit: from.Unit, min: math.Inf(-1), max: math.Inf(1), units: map[string]conversion{}}
	if from.Min != nil {
		m.min = *from.Min
	}
	if from.Max != nil {
		m.max = *from.Max
	}
	if m.min > m.max || math.IsNaN(m.min) || math.IsNaN(m.max) {
		return nil, fmt.Errorf("metric %s: min %v is above max %v", name, m.min, m.max)
	}
	if len(from.States) == 0 {
		return m, nil
	}
	m.states, m.names = map[string]float64{}, map[float64]string{}
	for _, s := range slices.Sorted(maps.Keys(from.States)) {
		m.states[spelling(s)] = from.States[s]
	}
	m.names, m.allowed = from.stateNames()
	return m, nil
}

// accept fills in the units.
func (m *metric) accept(from Metric, c *catalogue) error {
	same := conversion{scale: 1, to: m}
	if m.unit != "" {
		m.units[unitSpelling(m.unit)] = same
	}
	names := slices.Sorted(maps.Keys(from.Units))
	for _, u := range names {
		conv, to := from.Units[u], conversion{scale: 1, to: m}
		if conv.As != "" {
			other, ok := c.byName[spelling(conv.As)]
			if !ok {
				return fmt.Errorf("metric %s: unit %s is said to be of %q, which is no metric", m.name, u, conv.As)
			}
			to.to = other
		}
		if conv.Scale.Set {
			to.scale = conv.Scale.Value
		}
		if conv.Offset.Set {
			to.offset = conv.Offset.Value
		}
		m.units[unitSpelling(u)] = to
	}
	m.accepted = strings.Join(append([]string{m.unit}, names...), ", ")
	if m.unit == "" {
		m.accepted = "none"
	}
	return nil
}

func (c *catalogue) find(name string) *metric { return c.byName[spelling(name)] }

// near is the canonical name closest to a misspelt one, "" when none is near.
func (c *catalogue) near(name string) string {
	best, at := "", 3
	name = spelling(name)
	if len(name) > 64 {
		return ""
	}
	for _, known := range slices.Sorted(maps.Keys(c.byName)) {
		if d := distance(name, known); d < at && d < len(known) {
			best, at = c.byName[known].name, d
		}
	}
	return best
}

// distance is the number of letters to change, add or drop (Levenshtein 1966).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
