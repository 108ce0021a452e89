package compare

import (
	"math"
	"slices"
)

// sketch gives the quantiles of a stream of numbers within 1 % of their value, in bounded memory: DDSketch (Masson, Rim, Lee,
// VLDB 2019). Bucket i holds the numbers in (γ^(i-1), γ^i], of either sign.
type sketch struct {
	above, below map[int32]int64
	zero, count  int64
}

const (
	sketchError = 0.01
	bucketsMax  = 2048 // of each sign; beyond it the smallest in size are thrown together: they span 17 orders of magnitude
	zeroBelow   = 1e-12
)

var logGamma = math.Log((1 + sketchError) / (1 - sketchError))

func (s *sketch) add(x float64) {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return
	}
	if s.above == nil {
		s.above, s.below = map[int32]int64{}, map[int32]int64{}
	}
	s.count++
	switch {
	case math.Abs(x) < zeroBelow:
		s.zero++
	case x > 0:
		put(s.above, x)
	default:
		put(s.below, -x)
	}
}

func put(buckets map[int32]int64, x float64) {
	buckets[int32(math.Ceil(math.Log(x)/logGamma))]++
	if len(buckets) <= bucketsMax {
		return
	}
	keys := sortedBuckets(buckets)
	buckets[keys[1]] += buckets[keys[0]]
	delete(buckets, keys[0])
}

func sortedBuckets(buckets map[int32]int64) []int32 {
	keys := make([]int32, 0, len(buckets))
	for k := range buckets {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// quantile gives the number below which the share q of all numbers lie; NaN when there are none.
func (s *sketch) quantile(q float64) float64 {
	if s.count == 0 {
		return math.NaN()
	}
	rank := int64(q * float64(s.count-1))
	keys := sortedBuckets(s.below)
	for _, k := range slices.Backward(keys) {
		if rank -= s.below[k]; rank < 0 {
			return -middle(k)
		}
	}
	if rank -= s.zero; rank < 0 {
		return 0
	}
	for _, k := range sortedBuckets(s.above) {
		if rank -= s.above[k]; rank < 0 {
			return middle(k)
		}
	}
	return math.NaN()
}

// middle is the number that is within the error of all numbers of a bucket.
func middle(bucket int32) float64 {
	return 2 * math.Exp(float64(bucket)*logGamma) / (math.Exp(logGamma) + 1)
}

// distinct counts different texts, in bounded memory: exactly up to distinctMax, from then on by the k smallest hashes
// (Bar-Yossef et al., RANDOM 2002), within about 3 %.
type distinct struct {
	least map[uint64]struct{}
	most  uint64 // of least, when it is full
	full  bool
}

const distinctMax = 1024

func (d *distinct) add(hash uint64) {
	if d.least == nil {
		d.least = map[uint64]struct{}{}
	}
	if _, known := d.least[hash]; known || d.full && hash >= d.most {
		return
	}
	d.least[hash] = struct{}{}
	if len(d.least) <= distinctMax {
		return
	}
	if !d.full {
		d.full, d.most = true, largest(d.least)
	}
	delete(d.least, d.most)
	d.most = largest(d.least)
}

func largest(set map[uint64]struct{}) (most uint64) {
	for h := range set {
		most = max(most, h)
	}
	return most
}

func (d *distinct) estimate() int64 {
	if !d.full {
		return int64(len(d.least))
	}
	return int64(float64(distinctMax-1) / (float64(d.most) / math.MaxUint64))
}
