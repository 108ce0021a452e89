package streams

import (
	"cmp"
	"slices"
)

// The assignors, which name how partitions are shared out and change hands. A group uses one that all its members know.
// Both share out alike; they differ in when a partition that moves is its next member's.
const (
	// cooperative: in the next rebalance, when the last member has let go of it.
	cooperative = "hearthline-cooperative"
	// eager: at once, as members before cooperative rebalancing expect. It is what a group uses while it has such.
	eager = "hearthline-sticky"
)

// shareOut gives each of n partitions to a member: each gets its share, one more or less, and keeps what it had as far
// as that allows. State moves with a partition, so a member that comes or goes should move no more than it must.
func shareOut(members []candidate, n int) map[string][]int32 {
	members = byClaim(members)
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

// byClaim orders members: who lived through the newest generation has the better claim, and the name makes it one order
// for all.
func byClaim(members []candidate) []candidate {
	return slices.SortedFunc(slices.Values(members), func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.generation, a.generation), cmp.Compare(len(b.owned), len(a.owned)), cmp.Compare(a.id, b.id))
	})
}

// withhold takes out of a plan what another member still works on. That one learns so, lets go, and joins again.
func withhold(plan map[string][]int32, members []candidate) {
	owner := map[int32]string{}
	for _, m := range byClaim(members) {
		for _, p := range m.owned {
			if _, taken := owner[p]; !taken {
				owner[p] = m.id
			}
		}
	}
	for id, partitions := range plan {
		plan[id] = slices.DeleteFunc(partitions, func(p int32) bool {
			other, owned := owner[p]
			return owned && other != id
		})
	}
}
