package simulator

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Stats is what a simulator has done. Rows are readings.
type Stats struct {
	Homes     int // hubs that there are
	Connected int // hubs that hold a connection now

	Generated    int64            // rows made in this process, good and bad
	Outstanding  int64            // messages sent and not acknowledged yet
	Acknowledged int64            // good rows acknowledged, over all runs of the journal; each is to be stored once
	Bad          map[string]int64 // rows acknowledged (or refused) of bad messages by fault, over all runs
	Refused      map[string]int64 // bad messages refused by the server, by fault, in this process

	Resent      int64            // messages sent again, because their acknowledgement was lost
	Duplicates  int64            // copies sent on purpose
	Reconnects  int64            // connections made after a hub's first
	Broken      map[string]int64 // connections spoilt on purpose, by fault
	Unavailable int64            // connections lost or not made, not on purpose
	LastError   string           // the last of those, "" for none

	LatencyP50, LatencyP99 time.Duration // from publish to acknowledgement, in this process
	Finished               int           // hubs whose work is done

	Executed, TooLate, Repeated int64 // commands executed; refused because their deadline had passed; that came again
	Complied                    int64 // deltas that hubs made their devices follow
}

// Position is how far a hub has come.
type Position struct {
	Home         string
	Acknowledged int64 // whole rounds: all its devices' readings up to this sequence are acknowledged
	Rounds       int64 // how many there will be, 0 for no end
}

// counters are what hubs count. Every field may be used by all of them at once.
type counters struct {
	connected, finished            atomic.Int64
	generated, outstanding, resent atomic.Int64
	duplicates, reconnects         atomic.Int64
	unavailable                    atomic.Int64
	executed, tooLate, repeated    atomic.Int64
	complied                       atomic.Int64
	refused, broken                [faultCount]atomic.Int64
	lastError                      atomic.Pointer[string]
	latency                        histogram
}

func (c *counters) failed(err error) {
	c.unavailable.Add(1)
	text := err.Error()
	c.lastError.Store(&text)
}

// histogram counts durations in 8 steps an octave, from 1 µs to 19 hours; a quantile is right within 9%.
type histogram struct{ buckets [36 * 8]atomic.Int64 }

func (h *histogram) observe(d time.Duration) {
	us := uint64(max(d.Microseconds(), 1))
	octave := bits.Len64(us) - 1
	var step uint64
	if octave >= 3 {
		step = us >> (octave - 3) & 7
	} else {
		step = us << (3 - octave) & 7
	}
	h.buckets[min(octave*8+int(step), len(h.buckets)-1)].Add(1)
}

// quantiles gives the upper ends of the steps that hold the shares asked for, 0 with nothing observed.
func (h *histogram) quantiles(shares ...float64) []time.Duration {
	var total int64
	var counts [len(h.buckets)]int64
	for i := range h.buckets {
		counts[i] = h.buckets[i].Load()
		total += counts[i]
	}
	out := make([]time.Duration, len(shares))
	for k, share := range shares {
		rank, seen := int64(share*float64(total)), int64(0)
		for i, n := range counts {
			if seen += n; n > 0 && seen > rank {
				out[k] = time.Duration((8+float64(i%8)+1)/8*float64(uint64(1)<<(i/8))) * time.Microsecond
				break
			}
		}
	}
	return out
}

func named(in *[faultCount]atomic.Int64) map[string]int64 {
	out := make(map[string]int64)
	for f := range in {
		if n := in[f].Load(); n != 0 {
			out[Fault(f).String()] = n
		}
	}
	return out
}
