//go:build !race

package run

import "testing"

const raceDetector = false

// A seed gives the same run again. What the operating system does to threads leaves one thing open: how many of the batches
// that several workers finish at once travel in one request. So runs with several workers may take another try. The race
// detector has goroutines run in random order where they could run in any: `make test` runs this test without it.
func TestASeedGivesTheSameRunAgain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCampaign()
		defer c.forget()
		different := map[uint64]bool{}
		for seed := range uint64(60) {
			one := func() (trace uint64, workers int) {
				s, err := c.run(seed*41, bug{}, false)
				if err != nil {
					t.Fatalf("seed %d: %v", seed*41, err)
				}
				return s.trace, s.workers
			}
			first, workers := one()
			again, _ := one()
			for range 5 {
				if first != again && workers > 1 {
					first = again
					again, _ = one()
				}
			}
			if first != again {
				t.Errorf("seed %d: two runs differ", seed*41)
			}
			different[first] = true
		}
		if len(different) < 60 {
			t.Errorf("60 seeds give %d runs", len(different))
		}
	})
}
