package simulator

import (
	"sort"
	"strconv"
	"time"

	"hearthline/flow"
)

// A hub's work is a line of slots, numbered from 0: slot = round × devices + device. In a round every device
// of the home makes one message with a reading of each of its metrics; its sequence is round + 1. What a slot
// holds depends on nothing but the seed, the home, the slot and the terms in force at its round. So a position in the line is all that
// must be remembered, and messages that were lost are made again instead of being kept.

// terms are the settings that a stretch of rounds was made under. A change of settings takes effect at the first
// round that cannot have been sent yet, so that what is sent again is what was sent.
type terms struct {
	Interval time.Duration `json:"interval_ns"`
	Rounds   int64         `json:"rounds"` // where the work ends, 0 for never
	Faults   Faults        `json:"faults"`
}

// stretch says from which round on terms hold, and the event time of that round.
type stretch struct {
	from  int64
	start int64 // µs since 1970
	terms *terms
}

// plan is the line of work of one hub.
type plan struct {
	name      string
	dice      dice
	home      *home      // of a simulated home, else nil
	room      *room      // of a recorded one, else nil
	recording *recording // the room's
	rows      []int      // readings in a message, by device
	other     string     // a home that OtherHome publishes under
	stretches []stretch  // by from, never empty
}

// plan is the line of work of the room's hub.
func (r *room) plan(seed uint64) (*plan, error) {
	rec, err := r.read()
	if err != nil {
		return nil, err
	}
	p := &plan{name: r.home, dice: dice(seed).text(r.home), room: r, recording: rec, other: HomeName(1)}
	for _, readings := range r.readings {
		p.rows = append(p.rows, len(readings))
	}
	return p, nil
}

func (p *plan) devices() int64 { return int64(len(p.rows)) }

// readings is how many rows a message holds, or would hold if it were whole.
func (p *plan) readings(m message) int64 {
	if m.kind != WrongUnit {
		return int64(p.rows[m.device])
	}
	var n int64
	for _, met := range p.home.kit[m.device].metrics {
		if met.unit != "" {
			n++
		}
	}
	return n
}

// device is a device's name.
func (p *plan) device(i int) string {
	if p.home != nil {
		return p.home.kit[i].name
	}
	return p.room.devices[i].Device
}

// at is the stretch that holds a round.
func (p *plan) at(round int64) *stretch {
	s := p.stretches
	if last := &s[len(s)-1]; round >= last.from {
		return last
	}
	i := sort.Search(len(s), func(i int) bool { return s[i].from > round })
	return &s[max(i-1, 0)]
}

// limit is the number of rounds that there are at all.
func (p *plan) limit() int64 {
	if n := p.stretches[len(p.stretches)-1].terms.Rounds; n > 0 {
		return n
	}
	return 1<<62 - 1
}

// message is one publish of a slot.
type message struct {
	device int
	round  int64
	kind   Fault // Good, a bad message's fault, or Duplicate for a copy
}

// slot is what one place in the line holds: none, one or two messages, and what happens to the connection after them.
type slot struct {
	messages [2]message
	n        int
	link     Fault
}

const (
	diceKind = iota + 1
	diceLink
	diceOrder
	diceSpike
	diceStuck
	diceDrift
	diceDetail
)

// slot gives what the line holds at position pos.
func (p *plan) slot(pos int64) slot {
	round, device := pos/p.devices(), int(pos%p.devices())
	t := p.at(round).terms
	f := &t.Faults
	d := p.dice.with(uint64(device))
	s := slot{n: 1, link: p.link(f, d.with(diceLink).with(uint64(round)))}
	s.messages[0] = message{device, round, Good}
	if p.home != nil && p.swapped(f, d, round, t.Rounds) {
		if round%2 == 0 {
			s.n = 0 // held back until the device's next one has gone
		} else {
			s.n, s.messages[1] = 2, message{device, round - 1, Good}
		}
		return s
	}
	u := d.with(diceKind).with(uint64(round)).unit()
	if u -= f.Duplicate; u < 0 {
		s.n, s.messages[1] = 2, message{device, round, Duplicate}
		return s
	}
	if p.home == nil {
		return s // a recording is played as it is
	}
	fields := f.fields()
	for kind := WrongUnit; kind <= OtherHome; kind++ {
		if u -= *fields[kind]; u < 0 {
			s.messages[0].kind, s.link = kind, Good // one thing at a time: its answer is to be seen
			break
		}
	}
	return s
}

// swapped says whether the device's readings of this pair of rounds change places. A pair that the end of the work cuts does not.
func (p *plan) swapped(f *Faults, d dice, round, rounds int64) bool {
	return f.Reorder > 0 && (rounds == 0 || round|1 < rounds) && d.with(diceOrder).with(uint64(round/2)).unit() < f.Reorder
}

func (p *plan) link(f *Faults, d dice) Fault {
	u := d.unit()
	if u -= f.Disconnect; u < 0 {
		return Disconnect
	}
	if u -= f.HalfOpen; u < 0 {
		return HalfOpen
	}
	if u -= f.Offline; u < 0 {
		return Offline
	}
	if u -= f.WrongPassword; u < 0 {
		return WrongPassword
	}
	return Good
}

// time is when a device's reading of a round happened: µs since 1970. It never falls in a device's line.
func (p *plan) time(device int, round int64) int64 {
	if p.recording != nil {
		return p.stretches[0].start + p.recording.event(round).Microseconds()
	}
	s := p.at(round)
	interval := s.terms.Interval.Microseconds()
	share := interval / p.devices() // devices of a home speak one after the other, homes beside each other
	phase := int64(device)*share + int64(p.dice.unit()*float64(share))
	return s.start + (round-s.from)*interval + phase
}

// payload appends the JSON of a message: an array of readings.
func (p *plan) payload(b []byte, m message) []byte {
	at := p.time(m.device, m.round)
	if m.kind == ClockWrong {
		at = p.wrongTime(m, at)
	}
	var stamp [40]byte
	when := time.UnixMicro(at).UTC().AppendFormat(stamp[:0], "2006-01-02T15:04:05.000000Z07:00")
	start := len(b)
	b = append(b, '[')
	if p.recording != nil {
		b = p.recorded(b, m, when)
	} else {
		b = p.simulated(b, m, when)
	}
	b = append(b, ']')
	if m.kind == Malformed {
		b = b[:start+(len(b)-start)*2/3]
	}
	return b
}

func (p *plan) recorded(b []byte, m message, when []byte) []byte {
	row := p.recording.values[m.round%int64(len(p.recording.values))]
	for i, r := range p.room.readings[m.device] {
		b = openReading(b, i, r.metric)
		b = append(b, `"value":`...)
		b = strconv.AppendFloat(b, float64(row[r.column]), 'f', -1, 32)
		b = append(b, ',')
		b = closeReading(b, r.unit, when, m.round+1)
	}
	return b
}

func (p *plan) simulated(b []byte, m message, when []byte) []byte {
	now := p.home.moment(microsTime(p.time(m.device, m.round)))
	drop := p.dice.with(diceDetail).with(uint64(m.round)) // what a MissingField lacks
	said := 0
	for i := range p.home.kit[m.device].metrics {
		met := &p.home.kit[m.device].metrics[i]
		name, unit := met.name, met.unit
		if m.kind == MissingField && drop%2 == 0 {
			name = ""
		}
		if m.kind == WrongUnit {
			if unit == "" {
				continue // it has no unit that could be wrong
			}
			unit = "parsec"
		}
		b = openReading(b, said, name)
		said++
		switch {
		case m.kind == MissingField && drop%2 == 1:
		case m.kind == NaN:
			b = append(b, `"value":NaN,`...)
		case met.text:
			b = append(append(append(b, `"text":"`...), p.home.state(now)...), `",`...)
		default:
			b = append(b, `"value":`...)
			b = strconv.AppendFloat(b, p.measure(m, i, met, now), 'f', met.decimals, 64)
			b = append(b, ',')
		}
		b = closeReading(b, unit, when, m.round+1)
	}
	return b
}

func openReading(b []byte, i int, name string) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	b = append(b, '{')
	if name != "" {
		b = append(append(append(b, `"metric":"`...), name...), `",`...)
	}
	return b
}

func closeReading(b []byte, unit string, when []byte, seq int64) []byte {
	if unit != "" {
		b = append(append(append(b, `"unit":"`...), unit...), `",`...)
	}
	b = append(append(append(b, `"time":"`...), when...), `","seq":`...)
	b = strconv.AppendInt(b, seq, 10)
	return append(b, '}')
}

func microsTime(us int64) time.Time { return flow.Micros(us).Time() }

// wrongTime is what a device says whose clock was lost (1970) or is far ahead (2090).
func (p *plan) wrongTime(m message, at int64) int64 {
	if p.dice.with(diceDetail).with(uint64(m.device)).with(uint64(m.round))%2 == 0 {
		return at % (86400 * 1e6) // the first day of 1970
	}
	return at%(86400*1e6) + time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
}
