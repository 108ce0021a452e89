package simulator

import (
	"math"
	"time"
)

// home is a simulated home: who lives there, and what its sensors therefore see. Everything is a function of
// the instant and of the home's dice; it holds no state, so any reading can be made again at any time.
type home struct {
	name   string
	dice   dice
	kit    []template
	people float64 // who live there
	zone   float64 // hours that local time is ahead of UTC
	base   float64 // °C that the heating aims at
}

func newHome(seed uint64, number int) *home {
	name := HomeName(number)
	d := dice(seed).text(name)
	return &home{
		name: name, dice: d,
		kit:    templates[:4+d.with(1)%5],
		people: float64(1 + d.with(2)%4),
		zone:   d.with(3).between(-1, 2),
		base:   d.with(4).between(19, 22),
	}
}

func (h *home) devices() []Device {
	out := make([]Device, len(h.kit))
	for i, t := range h.kit {
		out[i] = Device{Home: h.name, Device: t.name, Room: t.room, Kind: t.kind, Model: t.model, Zone: t.zone}
	}
	return out
}

// Keys below a home's dice.
const (
	keyDay = iota + 16
	keyOutside
	keyCloud
	keyDevice
	keyFridge
	keyCook
	keyWash
	keyDoor
	keyGrid
)

// day is the timetable of one day, in local hours from its midnight.
type day struct{ wake, leave, back, bed float64 }

func (h *home) day(n int64) day {
	d := h.dice.with(keyDay).with(uint64(n))
	out := day{
		wake:  6.6 + 0.4*d.with(1).bell(),
		leave: 8.3 + 0.4*d.with(2).bell(),
		back:  17.2 + 0.8*d.with(3).bell(),
		bed:   22.8 + 0.4*d.with(4).bell(),
	}
	if weekday := (n + 4) % 7; weekday == 0 || weekday == 6 { // day 0, 1970-01-01, was a Thursday
		out.wake += 1.6
		out.leave = 11 + d.with(5).bell()
		out.back = out.leave
		if d.with(6).unit() < 0.6 { // an outing
			out.back += 1 + 4*d.with(7).unit()
		}
	}
	return out
}

// moment is an instant seen by a home.
type moment struct {
	seconds float64 // since 1970, UTC
	day     int64
	hour    float64 // local, of the day
	plan    day
	at      bool // somebody is at home
	awake   bool // at home and awake
}

func (h *home) moment(t time.Time) moment {
	m := moment{seconds: float64(t.UnixMicro()) / 1e6}
	local := m.seconds/3600 + h.zone
	m.day = int64(math.Floor(local / 24))
	m.hour = local - 24*float64(m.day)
	m.plan = h.day(m.day)
	m.at = m.hour < m.plan.leave || m.hour >= m.plan.back
	m.awake = m.at && m.hour >= m.plan.wake && m.hour < m.plan.bed
	return m
}

// response is a first-order lag (time constant tau, hours) behind presence: what air and walls make of people.
// 0 after a long absence, 1 after long presence. Exact, as a sum over the stretches of presence of three days.
func (h *home) response(m moment, tau float64, awakeOnly bool) float64 {
	var sum float64
	add := func(begin, end float64) { // hours relative to now's midnight
		end = min(end, m.hour)
		if end > begin {
			sum += math.Exp((end-m.hour)/tau) - math.Exp((begin-m.hour)/tau)
		}
	}
	for k := int64(-2); k <= 0; k++ {
		d, off := h.day(m.day+k), 24*float64(k)
		if awakeOnly {
			add(off+d.wake, off+d.leave)
			add(off+max(d.back, d.wake), off+d.bed)
		} else {
			add(off, off+d.leave)
			add(off+d.back, off+24)
		}
	}
	return min(max(sum, 0), 1)
}

// outside is the air outside: °C, by season, hour and weather. All homes share the weather.
func (h *home) outside(m moment) float64 {
	season := math.Sin(2 * math.Pi * (float64(m.day%365) - 110) / 365)
	daily := math.Sin(2 * math.Pi * (m.hour - 9) / 24)
	return 10 + 9*season + 4*daily + 4*dice(keyOutside).smooth(m.seconds, 2*86400)
}

// daylight is what comes through a window: lux.
func (h *home) daylight(m moment) float64 {
	season := math.Sin(2 * math.Pi * (float64(m.day%365) - 80) / 365)
	half := 6 + 2*season // hours from noon to sunset
	elevation := math.Cos(math.Pi / 2 * (m.hour - 12.5) / half)
	if math.Abs(m.hour-12.5) >= half {
		return 0
	}
	cloud := 0.55 + 0.45*h.dice.with(keyCloud).smooth(m.seconds, 1800)
	return 900 * (0.7 + 0.3*season) * elevation * cloud
}

// value is what device i would measure as its metric k, free of faults. round picks the noise of one reading.
func (h *home) value(i, k int, round int64, m moment) float64 {
	t := &h.kit[i]
	met := &t.metrics[k]
	d := h.dice.with(keyDevice).with(uint64(i)).with(uint64(k))
	noise := d.with(uint64(round)).bell()
	slow := d.smooth(m.seconds, 1500)
	switch met.name {
	case "temperature":
		warm := h.base - 1.8 + 2.2*h.response(m, 2.5, true) + 0.07*(h.outside(m)-10)
		return warm + roomOffset[t.room] + 0.15*slow + 0.03*noise + 1.5*h.shower(m, t)
	case "humidity":
		damp := 46 - 1.5*(2.2*h.response(m, 2.5, true)) + 5*h.response(m, 1, false) + 0.3*(h.outside(m)-10)
		return damp + 2*slow + 0.3*noise + 28*h.shower(m, t)
	case "co2":
		return 425 + (160+120*h.people)*h.response(m, 1.8, false) + 15*slow + 4*noise
	case "light":
		lux := h.daylight(m) * windowShare[t.room]
		if m.awake && lux < 90 {
			lux += 140 + 20*slow
		}
		return lux*(1+0.02*noise) + 0.2*math.Abs(noise)
	case "motion":
		p := 0.0
		if m.awake {
			p = 0.25 + 0.2*slow
		} else if m.at {
			p = 0.01
		}
		if d.with(uint64(round)).unit() < p {
			return 1
		}
		return 0
	case "power":
		return h.load(m) * (1 + 0.01*noise)
	case "voltage":
		return h.volts(m)
	case "current":
		return h.load(m) / h.volts(m) * (1 + 0.005*noise)
	case "battery":
		life := 86400 * d.with(1).between(300, 700)
		used := math.Mod(m.seconds+life*d.with(2).unit(), life) / life
		return 100 - 92*used
	}
	return 0
}

// state is a text metric's state. The front door opens when somebody comes or goes.
func (h *home) state(m moment) string {
	const minute = 1.0 / 60
	near := func(hour float64) bool { return m.hour >= hour-minute && m.hour < hour+minute/2 }
	if near(m.plan.leave) || near(m.plan.back) {
		return "open"
	}
	if m.awake && h.dice.with(keyDoor).with(uint64(int64(m.seconds/45))).unit() < 0.01 {
		return "open"
	}
	return "closed"
}

var roomOffset = map[string]float64{"bathroom": 1.2, "bedroom": -1.5}

var windowShare = map[string]float64{"hall": 0.15, "kitchen": 0.8}

// shower is 0 to 1: steam in the bathroom, after getting up.
func (h *home) shower(m moment, t *template) float64 {
	since := m.hour - m.plan.wake - 0.25
	if t.room != "bathroom" || since < 0 {
		return 0
	}
	return math.Min(since/0.12, math.Exp(-(since-0.12)/0.45))
}

func (h *home) volts(m moment) float64 { return 231 + 3*dice(keyGrid).smooth(m.seconds, 900) }

// load is the home's electric power: W.
func (h *home) load(m moment) float64 {
	w := 60 + 15*h.people
	if math.Mod(m.seconds/2700+h.dice.with(keyFridge).unit(), 1) < 0.38 {
		w += 95
	}
	if m.awake {
		w += 130 + 60*h.dice.with(keyCook).smooth(m.seconds, 600)
		meal := math.Min(math.Abs(m.hour-m.plan.wake-0.6), math.Abs(m.hour-18.7))
		if meal < 0.5 && h.dice.with(keyCook).with(1).smooth(m.seconds, 240) > -0.2 {
			w += 1700
		}
	}
	if wash := h.dice.with(keyWash).with(uint64(m.day)); wash.unit() < 0.4 && m.awake {
		begin := wash.with(1).between(17.5, 20)
		if m.hour > begin && m.hour < begin+1.2 {
			w += 400 + 1500*math.Max(0, math.Cos(8*(m.hour-begin)))
		}
	}
	return w
}
