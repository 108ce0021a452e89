// Package latency counts how long things took, cheaply and from many goroutines: in buckets that double.
package latency

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	buckets = 20 // the last bound is 2^18 × 64 µs = 16.8 s
	unit    = 64 * time.Microsecond
)

// Histogram counts durations: bucket i holds those of at most 2^i × 64 µs; the last one all that are longer.
type Histogram struct {
	Buckets [buckets]uint64
	Count   uint64
	Sum     time.Duration
}

// Bound is the upper bound of bucket i. The last bucket has none.
func (Histogram) Bound(i int) time.Duration { return unit << i }

// Meter is a Histogram as it is counted. Its zero value is ready.
type Meter struct {
	buckets [buckets]atomic.Uint64
	sum     atomic.Int64
}

// Observe counts one duration; a negative one, of two clocks that disagree, counts as none.
func (m *Meter) Observe(d time.Duration) {
	d = max(d, 0)
	i := 0
	if d > unit {
		i = min(bits.Len64(uint64((d-1)/unit)), buckets-1)
	}
	m.buckets[i].Add(1)
	m.sum.Add(int64(d))
}

// Read gives what was counted.
func (m *Meter) Read() Histogram {
	var out Histogram
	for i := range m.buckets {
		out.Buckets[i] = m.buckets[i].Load()
		out.Count += out.Buckets[i]
	}
	out.Sum = time.Duration(m.sum.Load())
	return out
}
