package simulator

import "math"

// dice is a deterministic source of chance: the same path of keys gives the same number, in any order and at any
// time. That is what lets a killed simulator make its last messages again, byte for byte.
type dice uint64

// with goes one key further. The mixing is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
// Generators, OOPSLA 2014).
func (d dice) with(key uint64) dice {
	x := uint64(d) + 0x9e3779b97f4a7c15*(key+1)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return dice(x ^ x>>31)
}

// text goes further by a string (FNV-1a).
func (d dice) text(s string) dice {
	h := uint64(14695981039346656037)
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return d.with(h)
}

// unit is the number as a fraction in [0, 1).
func (d dice) unit() float64 { return float64(d>>11) / (1 << 53) }

// between is uniform in [low, high).
func (d dice) between(low, high float64) float64 { return low + (high-low)*d.unit() }

// bell is about normal: mean 0, standard deviation 1, never beyond 3.5 (the sum of four uniforms).
func (d dice) bell() float64 {
	return (d.with(1).unit() + d.with(2).unit() + d.with(3).unit() + d.with(4).unit() - 2) * math.Sqrt(3)
}

// smooth is noise over time in [-1, 1]: random values at every multiple of width (seconds), and soft curves between.
func (d dice) smooth(seconds, width float64) float64 {
	at := math.Floor(seconds / width)
	f := seconds/width - at
	f = f * f * (3 - 2*f)
	a, b := d.with(uint64(int64(at))).unit(), d.with(uint64(int64(at)+1)).unit()
	return 2*(a+(b-a)*f) - 1
}
