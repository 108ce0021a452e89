package latency

import (
	"testing"
	"time"
)

// Each duration is in the first bucket whose bound it does not exceed.
func TestDurationsFallIntoTheirBuckets(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		want int
	}{{-time.Second, 0}, {0, 0}, {unit, 0}, {unit + 1, 1}, {2 * unit, 1}, {2*unit + 1, 2}, {unit << 18, 18}, {unit<<18 + 1, 19}, {time.Hour, 19}} {
		var m Meter
		m.Observe(c.d)
		h := m.Read()
		if h.Count != 1 || h.Buckets[c.want] != 1 || h.Sum != max(c.d, 0) {
			t.Errorf("%s: %+v; want it in bucket %d", c.d, h, c.want)
		}
		if c.want < buckets-1 && c.d > h.Bound(c.want) || c.want > 0 && c.d <= h.Bound(c.want-1) {
			t.Errorf("%s is not within the bounds of bucket %d", c.d, c.want)
		}
	}
}
