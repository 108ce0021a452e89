package deadline

import (
	"math/rand/v2"
	"slices"
	"testing"

	"hearthline/flow"
)

type thing struct {
	Deadline
	n int
}

// What is due by a watermark is what a look at all things finds, however their times moved.
func TestQueue(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var q Queue[*thing]
		var all []*thing
		for i := range 40 {
			all = append(all, &thing{New(), i})
		}
		watermark := flow.Micros(0)
		for range 300 {
			if one := all[rng.IntN(len(all))]; rng.IntN(3) > 0 {
				at := watermark + 1 + flow.Micros(rng.IntN(100))
				if rng.IntN(8) == 0 {
					at = None
				}
				q.Set(one, at)
				continue
			}
			watermark += flow.Micros(rng.IntN(20))
			var want, got []int
			for _, one := range all {
				if one.At() <= watermark {
					want = append(want, one.n)
				}
			}
			for one, ok := q.Due(watermark); ok; one, ok = q.Due(watermark) {
				got = append(got, one.n)
				if one.At() != None {
					t.Errorf("seed %d: what was due has the time %d still", seed, one.At())
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: due by %d are %v; want %v", seed, watermark, got, want)
			}
		}
	}
}
