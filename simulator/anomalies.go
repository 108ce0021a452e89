package simulator

import "math"

// Rounds that a stuck and a drifting sensor is odd for. Stretches begin at multiples of these.
const (
	stuckRounds = 32
	driftRounds = 64
)

// odd says which metric of a device an anomaly befalls, -1 for none. what is the dice of the anomaly and its stretch.
func (p *plan) odd(device int, chance float64, what dice) int {
	if chance == 0 || what.unit() >= chance {
		return -1
	}
	mets := p.home.kit[device].metrics
	first := int(what.with(1) % dice(len(mets)))
	for i := range mets {
		if k := (first + i) % len(mets); mets[k].odd {
			return k
		}
	}
	return -1
}

// anomaly tells what is odd about one metric of a device at a round. A stretch whose middle is cut by a change of
// settings is judged by the settings at each of its rounds.
func (p *plan) anomaly(device, metric int, round int64) Fault {
	f := &p.at(round).terms.Faults
	d := p.dice.with(uint64(device))
	switch {
	case p.odd(device, f.Stuck, d.with(diceStuck).with(uint64(round/stuckRounds))) == metric:
		return Stuck
	case p.odd(device, f.Drift, d.with(diceDrift).with(uint64(round/driftRounds))) == metric:
		return Drift
	case p.odd(device, f.Spike, d.with(diceSpike).with(uint64(round))) == metric:
		return Spike
	}
	return Good
}

// measure is what device and metric i say at message m's round: the home's signal, with its anomalies, within what
// the sensor can say.
func (p *plan) measure(m message, i int, met *metric, now moment) float64 {
	d := p.dice.with(uint64(m.device))
	kind := Good
	if met.odd {
		kind = p.anomaly(m.device, i, m.round)
	}
	var v float64
	if kind == Stuck {
		first := m.round - m.round%stuckRounds
		now = p.home.moment(microsTime(p.time(m.device, first)))
		v = p.home.value(m.device, i, first, now)
	} else {
		v = p.home.value(m.device, i, m.round, now)
	}
	switch kind {
	case Spike:
		s := d.with(diceSpike).with(uint64(m.round)).with(2)
		jump := met.jump * s.between(0.7, 1.2)
		if s.with(1)%2 == 0 && v-jump > met.low {
			jump = -jump
		}
		v += jump
	case Drift:
		v += met.jump * float64(m.round%driftRounds) / driftRounds
	}
	return math.Min(math.Max(v, met.low), met.high)
}

// Label marks readings that are odd on purpose.
type Label struct {
	Home, Device, Metric string
	Kind                 string // spike, stuck or drift
	First, Last          int64  // sequences, both included
}

// labels lists the anomalies among the slots before position end, in order of their last sequence by device and metric.
func (p *plan) labels(end int64) []Label {
	if p.home == nil {
		return nil
	}
	var out []Label
	rounds := end / p.devices()
	for device := range p.home.kit {
		t := &p.home.kit[device]
		for k := range t.metrics {
			if t.metrics[k].odd {
				out = p.labelsOf(out, device, k, rounds)
			}
		}
	}
	return out
}

func (p *plan) labelsOf(out []Label, device, metric int, rounds int64) []Label {
	t := &p.home.kit[device]
	var open *Label
	for round := p.stretches[0].from; round < rounds; round++ {
		kind := p.anomaly(device, metric, round)
		if kind != Good && p.slot(round*p.devices()+int64(device)).bad(round) {
			kind = Good // a bad message hides it
		}
		if open != nil && open.Kind == kind.String() && goesOn(kind, round) {
			open.Last = round + 1
			continue
		}
		open = nil
		if kind != Good {
			out = append(out, Label{p.name, t.name, t.metrics[metric].name, kind.String(), round + 1, round + 1})
			open = &out[len(out)-1]
		}
	}
	return out
}

// goesOn says whether an anomaly of the round before can be the same one.
func goesOn(kind Fault, round int64) bool {
	return kind == Stuck && round%stuckRounds != 0 || kind == Drift && round%driftRounds != 0
}

// bad says whether the slot's message of round must not be stored.
func (s slot) bad(round int64) bool {
	return s.n == 1 && s.messages[0].round == round && s.messages[0].kind.Bad()
}
