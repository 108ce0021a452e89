package anomaly

import "math"

const (
	buckets   = 96 // three an octave, from 2⁻¹⁶ to 2¹⁶
	perBlock  = 8
	blocks    = buckets / perBlock
	rankTotal = math.MaxUint16 // then all counts are halved: what is long ago fades
)

// ranker remembers how often answers of each size were given, to say how surprising the next is.
type ranker struct {
	count   [buckets]uint16
	block   [blocks]uint32 // sums of count, eight at a time
	total   uint32
	largest int16 // bucket; may have been halved away
}

// The bounds of a third and two thirds of an octave, for mantissas in [½, 1).
const (
	third1 = 0.6299605249474366 // 2^(1/3) / 2
	third2 = 0.7937005259840998 // 2^(2/3) / 2
)

// bucketOf is three times the logarithm of r to base 2, cut to whole, from 2⁻¹⁶ on.
func bucketOf(r float64) int {
	if !(r > 1.6e-5) {
		return 0
	}
	if r >= 1<<16 { // infinity too, which Frexp does not take apart
		return buckets - 1
	}
	mantissa, exponent := math.Frexp(r)
	b := 3 * (exponent - 1 + 16)
	if mantissa >= third1 {
		b++
	}
	if mantissa >= third2 {
		b++
	}
	return max(b, 0)
}

// surprise is minus the logarithm of the share of answers so far that were at least r, counting r itself on both sides of
// the division; beyond adds nats for each octave above all of them. Then r is one of them.
func (k *ranker) surprise(r, beyond float64) float64 {
	b := bucketOf(r)
	at := b / perBlock
	var atLeast uint32
	for _, n := range k.block[at+1:] {
		atLeast += n
	}
	for _, n := range k.count[b : (at+1)*perBlock] {
		atLeast += uint32(n)
	}
	s := ln(float64(k.total+1) / float64(atLeast+1))
	if atLeast == 0 && k.total > 0 {
		s += float64(beyond * float64(b-int(k.largest)) / 3)
	}
	k.largest = max(k.largest, int16(b))
	k.count[b]++
	k.block[at]++
	k.total++
	if k.total >= rankTotal {
		k.halve()
	}
	return s
}

func (k *ranker) halve() {
	k.total, k.block = 0, [blocks]uint32{}
	k.largest = 0
	for b := range k.count {
		k.count[b] /= 2
		k.block[b/perBlock] += uint32(k.count[b])
		k.total += uint32(k.count[b])
		if k.count[b] > 0 {
			k.largest = int16(b)
		}
	}
}

// ln is the natural logarithm of a positive finite x, within 2 units in the last place, in operations that IEEE 754 defines
// to the last bit: the same on every machine, which math.Log is not. x = m × 2ᵉ with m in [√½, √2), and ln m is the series
// of 2·artanh((m-1)/(m+1)) (Abramowitz & Stegun 4.1.27).
func ln(x float64) float64 {
	const (
		ln2High = 6.93147180369123816490e-01 // so short that its products with exponents are exact
		ln2Low  = 1.90821492927058770002e-10
	)
	m, e := math.Frexp(x)
	if m < math.Sqrt2/2 {
		m, e = 2*m, e-1
	}
	s := (m - 1) / (m + 1)
	z := float64(s * s)
	// |s| ≤ 0.172, so z¹⁰ is below 5e-16 of the first term.
	sum := 1.0 / 21
	sum = float64(sum*z) + 1.0/19
	sum = float64(sum*z) + 1.0/17
	sum = float64(sum*z) + 1.0/15
	sum = float64(sum*z) + 1.0/13
	sum = float64(sum*z) + 1.0/11
	sum = float64(sum*z) + 1.0/9
	sum = float64(sum*z) + 1.0/7
	sum = float64(sum*z) + 1.0/5
	sum = float64(sum*z) + 1.0/3
	sum = float64(sum * z)
	k := float64(e)
	return float64(k*ln2High) + (float64(2*s) + (float64(2*float64(s*sum)) + float64(k*ln2Low)))
}
