package normalize

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// UnmarshalYAML reads a metric and keeps the order in which its states are written: the first name of a number is
// the one that is kept, and a Go map knows no order.
func (m *Metric) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: a metric is a mapping with unit, aliases, units, min, max, states", n.Line)
	}
	type plain Metric
	if err := n.Decode((*plain)(m)); err != nil {
		return err
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch key.Value {
		case "unit", "aliases", "units", "min", "max":
		case "states":
			for j := 0; j+1 < len(value.Content); j += 2 {
				m.order = append(m.order, value.Content[j].Value)
			}
		default:
			return fmt.Errorf("line %d: a metric has no %q; it has unit, aliases, units, min, max, states", key.Line, key.Value)
		}
	}
	return nil
}

// stateNames gives each number its name, and the list of names for reasons.
func (m *Metric) stateNames() (names map[float64]string, allowed string) {
	names = map[float64]string{}
	order := m.order
	if len(order) != len(m.States) { // made in Go, not read
		order = slices.Sorted(maps.Keys(m.States))
	}
	var list []string
	for _, s := range order {
		v := m.States[s]
		if _, named := names[v]; !named {
			names[v] = s
			list = append(list, fmt.Sprintf("%s (%v)", s, v))
		}
	}
	return names, strings.Join(list, ", ")
}
