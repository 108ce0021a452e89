package pipeline

import (
	"cmp"
	"maps"
	"slices"
)

// sortedKeys gives a map's keys in order: what is made from a map must not depend on how it is walked.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
