// Package anomaly scores the readings of one series, one after the other, by how surprising each is given those before it.
//
// A [Scorer] needs no training, keeps a fixed 2.6 KB and takes a fixed time a reading. It asks eight questions of each
// reading, each answered by exponentially weighted statistics (Roberts 1959; the variances by the update of Finch,
// "Incremental calculation of weighted mean and variance", 2009):
//
//	spike         how far is it from the last few readings?
//	level         have the last thirty or so moved away from the long run?
//	volatility    have they become more, or less, restless than the long run?
//	range         is it outside everything seen for long?
//	season        how far is it from what is usual at this half hour of the day?
//	fast level    as level, over the last ten
//	fast volatility  as volatility, the last ten against the last thirty
//	seasonal level   has it been away from the usual course of the day for a while?
//
// The answers have no common unit, so each is turned into its surprise: the negative logarithm of how often an answer as
// extreme was given before by the same series (a streaming rank, kept as a histogram of logarithmic buckets). The eight
// surprises are blended, the blend's own surprise is mixed in, and a peak is held: after an alarm, what is no higher than
// the peak (which sinks to nothing in Hold readings) scores zero, so that one event is one alarm.
//
// A score is in nats: about 9 is once in e⁹ ≈ 8,000 readings, were readings independent, which they are not.
//
// Scores are the same bits on every machine: no fused multiply-add (products are converted explicitly, which the Go
// specification says forbids fusing), and logarithms computed here instead of by the machine's library.
package anomaly

import "math"

// Version names the arithmetic: it changes whenever the same readings would score differently.
const Version = 1

// Name is the scorer as data names it: name@version.
const Name = "anomaly@1"

const (
	questions = 8
	seasons   = 48 // parts of a day: half hours
)

// Params are the constants of the scorer. Rates are those of exponential weights: 0.1 remembers about ten readings.
type Params struct {
	SpikeRate     float64 // of the mean that spikes are measured from
	LevelRate     float64 // of the present level
	FastLevelRate float64 // of the level of the last moment
	LongRate      float64 // of the long run
	SeasonRate    float64 // of the usual value at a time of the day, once a day
	ScaleRate     float64 // of the usual size of a spike
	SeasonScale   float64 // of the usual distance from the usual
	SeasonLevel   float64 // of the lasting distance from the usual
	RangeDecay    float64 // by which the remembered range shrinks towards the mean, a reading
	Beyond        float64 // nats for each octave beyond all that was seen, for one question
	BlendBeyond   float64 // likewise for the blend
	MaxShare      float64 // of the largest surprise in the blend, against the mean
	BlendShare    float64 // of the blend's own surprise in the score
	Hold          float64 // readings until a peak has sunk to nothing
	Warmup        uint32  // readings at the start of a series that score zero: nothing is known yet
}

// Default is the one configuration for all series; nab/ measures it.
func Default() Params {
	return Params{
		SpikeRate: 0.2, LevelRate: 0.03, FastLevelRate: 0.1, LongRate: 0.0005,
		SeasonRate: 0.25, ScaleRate: 0.01, SeasonScale: 0.005, SeasonLevel: 0.03, RangeDecay: 0.0002,
		Beyond: 1, BlendBeyond: 3, MaxShare: 0.5, BlendShare: 0.25, Hold: 200, Warmup: 100,
	}
}

// Scorer is the state of one series. The zero value has seen nothing. It is used by one goroutine at a time.
type Scorer struct {
	n uint32 // readings seen

	long      spread // the long run
	level     spread
	fastLevel spread

	spikeMean  float64
	spikeScale float64 // mean absolute distance from it, large ones cut

	low, high float64 // the remembered range

	season      [seasons]float32 // usual value by time of the day
	seasonSeen  [seasons]uint8   // readings behind it, up to 255
	seasonScale float64          // mean absolute distance from it
	seasonLevel float64          // mean distance from it

	ranks [questions + 1]ranker // the last is of the blend

	peak, leak float64 // of the hold
}

// spread is an exponentially weighted mean and variance.
type spread struct{ mean, variance float64 }

const (
	tiny    = 1e-12
	largest = 1e30 // values beyond count as this: squares must stay finite, and what is usual fit a float32
)

// Seen is the number of readings scored.
func (s *Scorer) Seen() uint32 { return s.n }

// Score takes the next reading of the series: its value, and its time as a fraction of the day, in [0, 1). It returns how
// surprising it is, in nats: 0 is as usual or held. A value that is not a finite number changes nothing and scores 0.
func (s *Scorer) Score(p *Params, v, dayFraction float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	v = math.Max(-largest, math.Min(largest, v))
	if s.n == 0 {
		s.long.mean, s.level.mean, s.fastLevel.mean = v, v, v
		s.spikeMean, s.low, s.high = v, v, v
	}
	if s.n < math.MaxUint32 {
		s.n++
	}
	// In the beginning a plain mean: a rate is never below one over the readings seen.
	young := 1 / float64(s.n)
	long := math.Sqrt(s.long.variance) + float64(1e-9*math.Abs(s.long.mean)) + tiny

	var b blend
	spike := math.Abs(v - s.spikeMean)
	b.add(s.ask(p, 0, spike/(s.spikeScale+float64(0.05*long)+tiny)))

	s.askLevels(p, &b, v, young, long)
	s.askSeason(p, &b, v, dayFraction, young, long)
	s.askFast(p, &b, v, young, long)
	s.learn(p, v, spike, young)

	score := b.value(p)
	score = float64(p.BlendShare*s.ranks[questions].surprise(score, p.BlendBeyond)) + float64((1-p.BlendShare)*score)
	score = s.hold(p, score)
	if s.n <= p.Warmup {
		return 0
	}
	return score
}

// blend gathers the surprises of one reading. They are added in the order of the questions.
type blend struct{ sum, max, seasonLevel float64 }

func (b *blend) add(x float64) {
	b.sum += x
	b.max = math.Max(b.max, x)
}

// value is MaxShare of the largest and the rest of half the sum (the mean of eight, four times).
func (b *blend) value(p *Params) float64 {
	return float64(p.MaxShare*b.max) + float64((1-p.MaxShare)*b.sum/questions*4)
}

func (s *Scorer) ask(p *Params, question int, answer float64) float64 {
	return s.ranks[question].surprise(answer, p.Beyond)
}

func (s *Scorer) askLevels(p *Params, b *blend, v, young, long float64) {
	rate := math.Max(p.LevelRate, young)
	s.level.mean += float64(rate * (v - s.level.mean))
	b.add(s.ask(p, 1, math.Abs(s.level.mean-s.long.mean)/long))
	s.level.follow(rate, v)
	b.add(s.ask(p, 2, ratio(s.level.variance, s.long.variance, float64(1e-6*s.long.variance))))

	outside := math.Max(math.Max(v-s.high, s.low-v), 0)
	width := s.high - s.low + float64(1e-9*math.Abs(s.high)) + tiny
	b.add(s.ask(p, 3, 16*(outside/width)))
}

// follow moves the variance towards the distance from the mean as it is now.
func (f *spread) follow(rate, v float64) {
	d := v - f.mean
	f.variance += float64(rate * (float64(d*d) - f.variance))
}

// ratio is by how much two variances differ, in nats, whichever is larger.
func ratio(a, b, least float64) float64 {
	return math.Abs(ln((a + least + 1e-18) / (b + least + 1e-18)))
}

func (s *Scorer) askSeason(p *Params, b *blend, v, dayFraction, young, long float64) {
	at := min(max(int(dayFraction*seasons), 0), seasons-1)
	if s.seasonSeen[at] >= 2 {
		away := math.Abs(v - float64(s.season[at]))
		b.add(s.ask(p, 4, away/(s.seasonScale+float64(0.05*long)+tiny)))
		s.seasonScale += float64(math.Max(p.SeasonScale, young) * (away - s.seasonScale))
	}
	if s.seasonSeen[at] < math.MaxUint8 {
		s.seasonSeen[at]++
	}
	rate := math.Max(p.SeasonRate, 1/float64(s.seasonSeen[at]))
	s.season[at] += float32(rate * (v - float64(s.season[at])))
	if s.seasonSeen[at] >= 3 {
		s.seasonLevel += float64(p.SeasonLevel * ((v - float64(s.season[at])) - s.seasonLevel))
		b.seasonLevel = s.ask(p, 7, math.Abs(s.seasonLevel)/(s.seasonScale+float64(0.05*long)+tiny))
	}
}

func (s *Scorer) askFast(p *Params, b *blend, v, young, long float64) {
	rate := math.Max(p.FastLevelRate, young)
	s.fastLevel.mean += float64(rate * (v - s.fastLevel.mean))
	b.add(s.ask(p, 5, math.Abs(s.fastLevel.mean-s.long.mean)/long))
	s.fastLevel.follow(rate, v)
	b.add(s.ask(p, 6, ratio(s.fastLevel.variance, s.level.variance, float64(1e-4*s.level.variance))))
	b.add(b.seasonLevel)
}

// learn takes the reading into what the next one is measured by.
func (s *Scorer) learn(p *Params, v, spike, young float64) {
	// A spike counts at most six times the usual one, so that one does not hide the next.
	if most := float64(6*s.spikeScale) + tiny; s.n > 21 && spike > most {
		spike = most
	}
	s.spikeScale += float64(math.Max(p.ScaleRate, young) * (spike - s.spikeScale))
	s.spikeMean += float64(math.Max(p.SpikeRate, young) * (v - s.spikeMean))

	rate := math.Max(p.LongRate, young)
	d := v - s.long.mean
	s.long.mean += float64(rate * d)
	s.long.variance = (1 - rate) * (s.long.variance + float64(rate*float64(d*d)))

	if v > s.high {
		s.high = v
	} else {
		s.high -= float64(p.RangeDecay * (s.high - s.long.mean))
	}
	if v < s.low {
		s.low = v
	} else {
		s.low += float64(p.RangeDecay * (s.long.mean - s.low))
	}
}

// hold lets a score through when it is above the peak, which it then is.
func (s *Scorer) hold(p *Params, score float64) float64 {
	if score > s.peak {
		s.peak, s.leak = score, score/p.Hold
		return score
	}
	s.peak -= s.leak
	return 0
}
