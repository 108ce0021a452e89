package wire

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Whatever is put, moved and dropped comes up once, not before it is due, and not after its tick was looked at.
func TestWheel(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	var w wheel
	due := map[*conn]int64{} // what is in, and when it is to come up
	all := make([]*conn, 300)
	for i := range all {
		all[i] = &conn{}
	}
	now := int64(0)
	for range 20_000 {
		c := all[random.IntN(len(all))]
		switch random.IntN(5) {
		case 0, 1, 2:
			at := now + random.Int64N(3*wheelSlots) - 10
			w.put(c, at)
			due[c] = min(max(at, now+1), now+wheelSlots-1)
		case 3:
			w.drop(c)
			delete(due, c)
		case 4:
			now += random.Int64N(20)
			for _, up := range w.advance(now, nil) {
				at, in := due[up]
				if !in || at > now {
					t.Fatalf("seed %d: came up at %d, due at %d, in the wheel: %v", seed, now, at, in)
				}
				delete(due, up)
			}
			for c, at := range due {
				if at <= now || c.due.Load() != at {
					t.Fatalf("seed %d: due at %d, kept for %d, and did not come up by %d", seed, at, c.due.Load(), now)
				}
			}
		}
	}
	if tickOf(1) != 1 || tickOf(wheelTick) != 1 || tickOf(wheelTick+1) != 2 || tickOf(-time.Hour) > 0 {
		t.Error("ticks are not rounded up")
	}
}
