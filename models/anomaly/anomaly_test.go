package anomaly

import (
	"errors"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// course is a temperature with a daily course, noise and what the given rows change.
func course(n int, seed uint64, change map[int]float64) []float64 {
	rng := rand.New(rand.NewPCG(seed, 0))
	values := make([]float64, n)
	for i := range values {
		values[i] = 20 + 2*math.Sin(2*math.Pi*float64(i%1440)/1440) + 0.1*rng.NormFloat64() + change[i]
	}
	return values
}

func day(i int) float64 { return float64(i%1440) / 1440 }

func TestASpikeScoresHighAndTheRestDoesNot(t *testing.T) {
	p := Default()
	for seed := range uint64(10) {
		var s Scorer
		high := 0
		for i, v := range course(6000, seed, map[int]float64{5000: 5}) {
			score := s.Score(&p, v, day(i))
			if i == 5000 && score < 10 {
				t.Errorf("seed %d: the spike scored %.1f", seed, score)
			}
			if i != 5000 && score >= 10 {
				high++
			}
		}
		if high > 1 {
			t.Errorf("seed %d: %d other readings scored 10 and more", seed, high)
		}
	}
}

func TestNothingScoresDuringWarmup(t *testing.T) {
	p := Default()
	var s Scorer
	for i, v := range course(int(p.Warmup), 1, map[int]float64{50: 1000}) {
		if score := s.Score(&p, v, 0); score != 0 {
			t.Fatalf("reading %d scored %v", i, score)
		}
	}
	if s.Seen() != p.Warmup {
		t.Errorf("Seen is %d", s.Seen())
	}
}

func TestWhatIsNoNumberChangesNothing(t *testing.T) {
	p := Default()
	var s Scorer
	for i, v := range course(300, 1, nil) {
		s.Score(&p, v, day(i))
	}
	before := s
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		if score := s.Score(&p, v, 0); score != 0 || s != before {
			t.Errorf("%v scored %v, or changed the state", v, score)
		}
	}
}

// Values that a device may well say must not make the state useless.
func TestExtremesLeaveNumbers(t *testing.T) {
	p := Default()
	for name, values := range map[string][]float64{
		"constant":  {5, 5, 5, 5, 5, 5},
		"zero":      {0, 0, 0, 0},
		"tiny":      {5e-324, 0, -5e-324, 1e-300},
		"large":     {1e15, -1e15, 1e15, 0},
		"very":      {math.MaxFloat64, -math.MaxFloat64, 0, 1},
		"day":       {1, 2, 3},
		"step":      {0, 0, 0, 0, 1e6, 1e6, 1e6},
		"alternate": {1, -1, 1, -1, 1, -1},
	} {
		var s Scorer
		for i := range 2000 {
			score := s.Score(&p, values[i%len(values)], []float64{0, 0.5, 0.999999, 1, -1, 2}[i%6])
			if math.IsNaN(score) || math.IsInf(score, 0) || score < 0 {
				t.Fatalf("%s: reading %d scored %v", name, i, score)
			}
		}
		for i, f := range s.floats() {
			if math.IsNaN(*f) || math.IsInf(*f, 0) {
				t.Errorf("%s: number %d of the state is %v", name, i, *f)
			}
		}
	}
}

// The bits of scores are part of what is stored: whoever changes them raises Version.
func TestBitsOfScores(t *testing.T) {
	p := Default()
	h := fnv.New64a()
	var s Scorer
	rng := rand.New(rand.NewPCG(7, 7))
	v := 100.0
	for i := range 70000 { // beyond the halving of the ranks
		// Only operations that are the same everywhere make the input.
		v += rng.Float64() - 0.5
		if rng.IntN(2000) == 0 {
			v += 50
		}
		bits := math.Float64bits(s.Score(&p, v, day(i)))
		var b [8]byte
		for j := range b {
			b[j] = byte(bits >> (8 * j))
		}
		h.Write(b[:])
	}
	if got := h.Sum64(); Version != 1 || got != 0x597b8f556c342e2e {
		t.Errorf("the scores have changed: their hash is %#x", got)
	}
}

func TestStateComesBack(t *testing.T) {
	p := Default()
	for _, n := range []int{0, 1, 2, 100, 5000, 70000} {
		var a, b Scorer
		for i, v := range course(n, 3, map[int]float64{60: 9}) {
			a.Score(&p, v, day(i))
		}
		text, _ := a.AppendBinary([]byte("kept"))
		if err := b.UnmarshalBinary(text[4:]); err != nil {
			t.Fatal(err)
		}
		if a != b {
			t.Errorf("after %d readings the state comes back changed", n)
		}
		if size := len(text) - 4; size > 1600 {
			t.Errorf("after %d readings the state is written in %d bytes", n, size)
		}
	}
	if size := unsafe.Sizeof(Scorer{}); size > 2800 {
		t.Errorf("a scorer is %d bytes", size)
	}
}

func TestDamagedStateIsRefused(t *testing.T) {
	p := Default()
	var s Scorer
	for i, v := range course(1000, 3, nil) {
		s.Score(&p, v, day(i))
	}
	text, _ := s.AppendBinary(nil)
	for n := range text {
		before := s
		if err := s.UnmarshalBinary(text[:n]); !errors.Is(err, ErrState) || s != before {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(text), err)
		}
	}
	if err := s.UnmarshalBinary(append(text, 0)); !errors.Is(err, ErrState) {
		t.Errorf("with a byte more: %v", err)
	}
	text[0]++
	if err := s.UnmarshalBinary(text); !errors.Is(err, ErrState) {
		t.Errorf("of another layout: %v", err)
	}
}

func FuzzUnmarshalBinary(f *testing.F) {
	p := Default()
	var s Scorer
	for i, v := range course(500, 3, nil) {
		s.Score(&p, v, day(i))
		if i%100 == 0 {
			text, _ := s.AppendBinary(nil)
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var s, again Scorer
		if s.UnmarshalBinary(text) != nil {
			return
		}
		s.Score(&p, 1, 0.5) // must not panic
		out, _ := s.AppendBinary(nil)
		if err := again.UnmarshalBinary(out); err != nil && !math.IsNaN(s.peak+s.low) && !math.IsInf(s.peak+s.low, 0) {
			for _, f := range s.floats() {
				if math.IsNaN(*f) || math.IsInf(*f, 0) {
					return
				}
			}
			t.Errorf("a state that was taken is not taken again: %v", err)
		}
	})
}

func TestLn(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200000 {
		x := math.Exp(rng.Float64()*1400 - 700)
		got, want := ln(x), math.Log(x)
		if math.Abs(got-want) > 4e-16*math.Max(math.Abs(want), 0.3) {
			t.Fatalf("ln(%v) is %v; math says %v", x, got, want)
		}
	}
	if ln(1) != 0 {
		t.Errorf("ln(1) is %v", ln(1))
	}
}

func TestBucketOf(t *testing.T) {
	for b := range buckets {
		lower := math.Exp2(float64(b)/3 - 16)
		if got := bucketOf(lower * (1 + 1e-9)); got != b && b > 0 {
			t.Errorf("just above the bound of bucket %d is bucket %d", b, got)
		}
	}
	for _, r := range []float64{0, -1, math.NaN(), 1e-300} {
		if bucketOf(r) != 0 {
			t.Errorf("%v is bucket %d", r, bucketOf(r))
		}
	}
	if bucketOf(math.Inf(1)) != buckets-1 || bucketOf(math.MaxFloat64) != buckets-1 {
		t.Error("what is large is not in the last bucket")
	}
}

func BenchmarkScore(b *testing.B) {
	p := Default()
	values := course(100000, 1, nil)
	b.Run("one series", func(b *testing.B) {
		var s Scorer
		for i := 0; b.Loop(); i++ {
			s.Score(&p, values[i%len(values)], day(i))
		}
	})
	b.Run("ten thousand series", func(b *testing.B) {
		s := make([]Scorer, 10000)
		for i := 0; b.Loop(); i++ {
			s[i%len(s)].Score(&p, values[i%len(values)], day(i))
		}
	})
}
