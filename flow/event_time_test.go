package flow

import (
	"math"
	"testing"
	"time"
)

func TestSubSaturates(t *testing.T) {
	for _, c := range []struct {
		m, o Micros
		want time.Duration
	}{
		{5, 3, 2 * time.Microsecond},
		{3, 5, -2 * time.Microsecond},
		{EndOfTime, 0, math.MaxInt64},
		{EndOfTime, -5, math.MaxInt64},
		{0, EndOfTime, math.MinInt64},
		{Micros(math.MinInt64), 1, math.MinInt64},
	} {
		if got := c.m.Sub(c.o); got != c.want {
			t.Errorf("%d - %d = %v, want %v", c.m, c.o, got, c.want)
		}
	}
}
