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

// TestWithholdGivesNothingTwice: in a cooperative round nobody gets what another still works on, and everything that is not
// withheld is given; the round after, when all have let go, all is given.
func TestWithholdGivesNothingTwice(t *testing.T) {
	const n = 12
	members := []candidate{{id: "a", generation: 3, owned: []int32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}, {id: "b", generation: -1}, {id: "late", generation: 1, owned: []int32{5, 11}}}
	round := func() map[string][]int32 {
		plan := shareOut(members, n)
		withhold(plan, members)
		return plan
	}
	plan := round()
	for id, ps := range plan {
		for _, p := range ps {
			if p < 11 && id != "a" || p == 11 && id != "late" {
				t.Errorf("partition %d, which another works on, is given to %s", p, id)
			}
		}
	}
	if len(plan["a"]) != 4 || len(plan["late"]) != 1 {
		t.Errorf("the first round is %v", plan)
	}
	for i := range members {
		members[i].generation, members[i].owned = 4, plan[members[i].id]
	}
	plan = round()
	if len(plan["a"]) != 4 || len(plan["b"]) != 4 || len(plan["late"]) != 4 {
		t.Errorf("the second round is %v", plan)
	}
}
