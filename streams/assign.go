package streams

import (
	"cmp"
	"slices"
)

// assignor names how partitions are shared out; all members of a group must use the same.
const assignor = "hearthline-sticky"

// shareOut gives each of n partitions to a member: each gets its share, one more or less, and keeps what it had as far
// as that allows. State moves with a partition, so a member that comes or goes should move no more than it must.
func shareOut(members []candidate, n int) map[string][]int32 {
	members = slices.Clone(members)
	// Who lived through the newest generation has the better claim; the name makes it one order for all.
	slices.SortFunc(members, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.generation, a.generation), cmp.Compare(len(b.owned), len(a.owned)), cmp.Compare(a.id, b.id))
	})
	plan := make(map[string][]int32, len(members))
	taken := make([]bool, n)
	least, more := n/len(members), n%len(members) // more members get one above the least
	for _, m := range members {
		plan[m.id] = []int32{}
		for _, p := range slices.Sorted(slices.Values(m.owned)) {
			if p < 0 || int(p) >= n || taken[p] {
				continue
			}
			if have := len(plan[m.id]); have > least || have == least && more == 0 {
				break
			} else if have == least {
				more--
			}
			taken[p] = true
			plan[m.id] = append(plan[m.id], p)
		}
	}
	p := 0
	give := func(id string) bool {
		for p < n && taken[p] {
			p++
		}
		if p == n {
			return false
		}
		taken[p] = true
		plan[id] = append(plan[id], int32(p))
		return true
	}
	for _, m := range members {
		for len(plan[m.id]) < least && give(m.id) {
		}
	}
	for _, m := range members {
		if len(plan[m.id]) == least && !give(m.id) {
			break
		}
	}
	for _, ps := range plan {
		slices.Sort(ps)
	}
	return plan
}
