package streams

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestShareOut(t *testing.T) {
	const seed = 3
	rnd := rand.New(rand.NewPCG(seed, seed))
	for range 2000 {
		n := 1 + rnd.IntN(40)
		var members []candidate
		for i := range 1 + rnd.IntN(8) {
			c := candidate{id: fmt.Sprint("m", i), generation: int32(rnd.IntN(3))}
			for range rnd.IntN(n + 1) {
				c.owned = append(c.owned, int32(rnd.IntN(n+2))-1) // claims may overlap, or be nonsense
			}
			members = append(members, c)
		}
		plan := shareOut(members, n)
		var all []int32
		for _, m := range members {
			if k := len(plan[m.id]); k < n/len(members) || k > (n+len(members)-1)/len(members) {
				t.Fatalf("seed %d: %d of %d partitions for one of %d members: %v", seed, k, n, len(members), plan)
			}
			all = append(all, plan[m.id]...)
		}
		slices.Sort(all)
		if len(all) != n || len(slices.Compact(all)) != n {
			t.Fatalf("seed %d: %d partitions shared out as %v", seed, n, plan)
		}
		rnd.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		if again := shareOut(members, n); fmt.Sprint(again) != fmt.Sprint(plan) {
			t.Fatalf("seed %d: another order of members gave %v instead of %v", seed, again, plan)
		}
	}
}

// TestShareOutMovesLittle: when a member comes, only what it gets moves; when one goes, only what it had.
func TestShareOutMovesLittle(t *testing.T) {
	const n = 12
	was := shareOut([]candidate{{id: "a"}, {id: "b"}, {id: "c"}}, n)
	have := func(id string) candidate { return candidate{id: id, generation: 1, owned: was[id]} }
	came := shareOut([]candidate{have("a"), have("b"), have("c"), {id: "0", generation: -1}}, n)
	went := shareOut([]candidate{have("a"), have("c")}, n)
	for _, id := range []string{"a", "b", "c"} {
		for _, p := range came[id] {
			if !slices.Contains(was[id], p) {
				t.Errorf("a member came, and partition %d moved to %s", p, id)
			}
		}
	}
	for _, id := range []string{"a", "c"} {
		for _, p := range was[id] {
			if !slices.Contains(went[id], p) {
				t.Errorf("a member went, and partition %d left %s", p, id)
			}
		}
	}
}
