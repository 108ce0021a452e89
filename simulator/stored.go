package simulator

import (
	"iter"

	"hearthline/flow"
)

// Reading names one reading and when it happened.
type Reading struct {
	Home, Device, Metric string
	Seq                  int64 // counts from 1, by home, device and metric
	Time                 flow.Micros
}

// Stored gives every good reading of the slots that have been acknowledged: what is to be stored, each once, when a
// run has ended without [ErrUnacknowledged]. It makes them again from the seed, so the runs of
// the journal must all have had the same settings. Nothing before the first run.
func (s *Simulator) Stored() iter.Seq[Reading] {
	return func(yield func(Reading) bool) {
		r := s.last.Load()
		if r == nil {
			return
		}
		for _, h := range r.hubs {
			h.mu.Lock()
			end := h.acknowledged
			h.mu.Unlock()
			for pos := range end {
				s := h.plan.slot(pos)
				for _, m := range s.messages[:s.n] {
					if m.kind == Good && !h.plan.each(m, yield) {
						return
					}
				}
			}
		}
	}
}

// each yields a good message's readings, and says whether to go on.
func (p *plan) each(m message, yield func(Reading) bool) bool {
	r := Reading{Home: p.name, Device: p.device(m.device), Seq: m.round + 1, Time: flow.Micros(p.time(m.device, m.round))}
	for i := range p.rows[m.device] {
		if p.home != nil {
			r.Metric = p.home.kit[m.device].metrics[i].name
		} else {
			r.Metric = p.room.readings[m.device][i].metric
		}
		if !yield(r) {
			return false
		}
	}
	return true
}
