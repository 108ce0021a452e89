package features

import (
	"math"

	"hearthline/flow"
	"hearthline/flow/snapshot"
)

// pane gathers the readings of one stretch of event time, from start for one hop. A window is one pane or several that
// follow each other, merged.
//
// Mean and sums of squares are updated as by Welford ("Note on a method for calculating corrected sums of squares and
// products", 1962) and merged as by Chan, Golub & LeVeque (1979); the sums never hold large numbers that cancel. Products
// are converted explicitly, so that no compiler fuses them with an addition: every machine gets the same bits.
type pane struct {
	start       flow.Micros
	count       int64
	mean, m2    float64 // of the values; m2 is the sum of squared distances from the mean
	meanT, m2T  float64 // of the times, in seconds since start
	mTV         float64 // sum of products of the distances of both
	min, max    float64
	first, last float64     // values at the smallest and the largest event time
	firstAt     flow.Micros // the earlier row counts among equal times
	lastAt      flow.Micros // the later row counts among equal times
	received    flow.Micros // the largest
}

func seconds(m flow.Micros) float64 { return float64(m) / 1e6 }

// add takes in a reading.
func (p *pane) add(at, received flow.Micros, v float64) {
	p.count++
	if p.count == 1 {
		p.mean, p.meanT = v, seconds(at-p.start)
		p.min, p.max, p.first, p.last = v, v, v, v
		p.firstAt, p.lastAt, p.received = at, at, received
		return
	}
	n := float64(p.count)
	d := v - p.mean
	dT := seconds(at-p.start) - p.meanT
	p.mean += d / n
	p.meanT += dT / n
	after := v - p.mean
	p.m2 += float64(d * after)
	p.m2T += float64(dT * (seconds(at-p.start) - p.meanT))
	p.mTV += float64(dT * after)
	p.min, p.max = math.Min(p.min, v), math.Max(p.max, v)
	if at < p.firstAt {
		p.first, p.firstAt = v, at
	}
	if at >= p.lastAt {
		p.last, p.lastAt = v, at
	}
	p.received = max(p.received, received)
}

// merge takes in all of o, a pane that starts later.
func (p *pane) merge(o *pane) {
	shift := seconds(o.start - p.start)
	if p.count == 0 {
		start := p.start
		*p = *o
		p.start, p.meanT = start, o.meanT+shift
		return
	}
	a, b := float64(p.count), float64(o.count)
	n := a + b
	d := o.mean - p.mean
	dT := o.meanT + shift - p.meanT
	weight := float64(a*b) / n
	p.m2 += o.m2 + float64(float64(d*d)*weight)
	p.m2T += o.m2T + float64(float64(dT*dT)*weight)
	p.mTV += o.mTV + float64(float64(d*dT)*weight)
	p.mean += float64(d * (b / n))
	p.meanT += float64(dT * (b / n))
	p.count += o.count
	p.min, p.max = math.Min(p.min, o.min), math.Max(p.max, o.max)
	if o.firstAt < p.firstAt {
		p.first, p.firstAt = o.first, o.firstAt
	}
	if o.lastAt >= p.lastAt {
		p.last, p.lastAt = o.last, o.lastAt
	}
	p.received = max(p.received, o.received)
}

// std is the standard deviation of the sample; undefined for one reading.
func (p *pane) std() (float64, bool) {
	if p.count < 2 {
		return 0, false
	}
	return math.Sqrt(p.m2 / float64(p.count-1)), true
}

// slope is the least squares slope, per second; undefined when all readings are of one time.
func (p *pane) slope() (float64, bool) {
	if p.count < 2 || p.m2T <= 0 || p.firstAt == p.lastAt {
		return 0, false
	}
	return p.mTV / p.m2T, true
}

// rate is (last - first) over their time, per second; undefined when they are of one time.
func (p *pane) rate() (float64, bool) {
	if p.firstAt == p.lastAt || p.count < 2 {
		return 0, false
	}
	return (p.last - p.first) / seconds(p.lastAt-p.firstAt), true
}

func (p *pane) save(w *snapshot.Writer) {
	w.Int(int64(p.start))
	w.Uint(uint64(p.count))
	for _, f := range p.floats() {
		w.Float(*f)
	}
	w.Int(int64(p.firstAt - p.start))
	w.Int(int64(p.lastAt - p.start))
	w.Int(int64(p.received - p.start))
}

func (p *pane) load(r *snapshot.Reader) {
	p.start = flow.Micros(r.Int())
	p.count = int64(r.Uint())
	for _, f := range p.floats() {
		*f = r.Float()
	}
	p.firstAt = p.start + flow.Micros(r.Int())
	p.lastAt = p.start + flow.Micros(r.Int())
	p.received = p.start + flow.Micros(r.Int())
}

func (p *pane) floats() []*float64 {
	return []*float64{&p.mean, &p.m2, &p.meanT, &p.m2T, &p.mTV, &p.min, &p.max, &p.first, &p.last}
}
