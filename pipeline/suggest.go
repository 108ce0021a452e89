package pipeline

import (
	"slices"
	"strings"
)

// nearest is the candidate that word was most likely meant to be, "" when none is near.
func nearest(word string, candidates []string) string {
	if len(word) > 100 {
		return ""
	}
	best, at := "", 1+max(1, len(word)/3)
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if strings.EqualFold(normalName(word), normalName(c)) {
			return c // flushRows, flush_rows, flush-rows
		}
		if n := edits(strings.ToLower(word), c); n < at {
			best, at = c, n
		}
	}
	return best
}

func normalName(s string) string { return strings.NewReplacer("_", "", "-", "", " ", "").Replace(s) }

// edits counts the insertions, deletions, changes and swaps of neighbours that make b of a (optimal string
// alignment distance; Damerau, CACM 7(3), 1964).
func edits(a, b string) int {
	before, last, now := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}

// didYouMean is the hint for a word that none of the candidates is.
func didYouMean(word string, candidates []string) string {
	if c := nearest(word, candidates); c != "" {
		return "did you mean " + c + "?"
	}
	if len(candidates) == 0 {
		return ""
	}
	all := slices.Sorted(slices.Values(candidates))
	if len(all) > 20 {
		all = append(all[:20:20], "…")
	}
	return "known: " + strings.Join(all, ", ")
}
