package simulator

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"
)

// TestDeterminism: the same seed gives the same bytes, whatever was asked before; another seed gives others.
func TestDeterminism(t *testing.T) {
	a, b, other := testPlan(1, 5, loud()), testPlan(1, 5, loud()), testPlan(2, 5, loud())
	var line [][]byte
	for pos := range int64(2000) {
		line = append(line, slotBytes(a, pos))
	}
	differ := 0
	for pos := int64(1999); pos >= 0; pos-- { // backwards: nothing may depend on what came before
		if !bytes.Equal(slotBytes(b, pos), line[pos]) {
			t.Fatalf("slot %d: %s\nthen %s", pos, line[pos], slotBytes(b, pos))
		}
		if !bytes.Equal(slotBytes(other, pos), line[pos]) {
			differ++
		}
	}
	if differ < 1900 {
		t.Errorf("another seed gives other bytes in %d of 2000 slots only", differ)
	}
}

func slotBytes(p *plan, pos int64) []byte {
	var b []byte
	s := p.slot(pos)
	for _, m := range s.messages[:s.n] {
		b = append(p.payload(append(b, m.kind.String()...), m), '\n')
	}
	return append(b, s.link.String()...)
}

// TestPlausible holds a year of some homes to what houses are like.
func TestPlausible(t *testing.T) {
	type span struct{ low, high, meanLow, meanHigh float64 }
	want := map[string]span{
		"temperature": {8, 35, 17, 24}, "humidity": {15, 99, 35, 65}, "co2": {380, 2000, 430, 1000}, "light": {0, 1500, 10, 300},
		"motion": {0, 1, 0.02, 0.3}, "power": {40, 5000, 120, 700}, "voltage": {220, 242, 228, 234}, "current": {0.1, 25, 0.4, 4}, "battery": {5, 100, 20, 90},
	}
	sum, count := map[string]float64{}, map[string]float64{}
	for n := 1; n <= 10; n++ {
		p := testPlan(1, n, Faults{})
		for r := range int64(3000) {
			now := p.home.moment(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(r) * 175 * time.Minute))
			for d := range p.home.kit {
				for k, met := range p.home.kit[d].metrics {
					if met.text {
						continue
					}
					v := p.home.value(d, k, r, now)
					w := want[met.name]
					if math.IsNaN(v) || v < w.low || v > w.high {
						t.Fatalf("%s %s of %s is %v; want %v to %v", p.home.kit[d].name, met.name, p.name, v, w.low, w.high)
					}
					sum[met.name] += v
					count[met.name]++
				}
			}
		}
	}
	for name, w := range want {
		if mean := sum[name] / count[name]; !(mean >= w.meanLow && mean <= w.meanHigh) {
			t.Errorf("%s is %v on average; want %v to %v", name, mean, w.meanLow, w.meanHigh)
		}
	}
}

// TestCorrelated: people make CO2, motion and electric load; nights are dark and empty rooms still.
func TestCorrelated(t *testing.T) {
	at := map[bool]*[3]float64{true: {}, false: {}} // co2, motion, power by somebody being awake at home
	n := map[bool]float64{}
	for number := 1; number <= 10; number++ {
		p := testPlan(3, number, Faults{})
		for r := range int64(2000) {
			now := p.home.moment(time.Date(2026, 2, 2, 0, 0, 0, 0, time.UTC).Add(time.Duration(r) * 7 * time.Minute))
			n[now.awake]++
			for i, pick := range [3][2]int{{1, 0}, {2, 0}, {3, 0}} {
				at[now.awake][i] += p.home.value(pick[0], pick[1], r, now)
			}
			if lux := p.home.value(2, 1, r, now); now.hour < 4 && lux > 5 {
				t.Fatalf("%v lux in the hall at hour %v with everybody asleep", lux, now.hour)
			}
		}
	}
	for i, name := range []string{"co2", "motion", "power"} {
		if awake, not := at[true][i]/n[true], at[false][i]/n[false]; awake < 1.05*not {
			t.Errorf("%s is %v with people about, %v without", name, awake, not)
		}
	}
}

// TestReadingsAreJSON: a good message is an array of readings as documented.
func TestReadingsAreJSON(t *testing.T) {
	plans := []*plan{testPlan(1, 1, Faults{}), testPlan(1, 2, Faults{})}
	for _, r := range rooms {
		p, err := r.plan(1)
		must(t, err)
		p.stretches = []stretch{{0, 1_700_000_000_000_000, &terms{}}}
		plans = append(plans, p)
	}
	for _, p := range plans {
		for d := range p.rows {
			for _, round := range []int64{0, 1, 10128, 10129, 1 << 30} {
				b := p.payload(nil, message{d, round, Good})
				var rows []reading
				if err := json.Unmarshal(b, &rows); err != nil || len(rows) != p.rows[d] {
					t.Fatalf("%s: %v", b, err)
				}
				for _, r := range rows {
					at, err := time.Parse(time.RFC3339Nano, r.Time)
					if err != nil || at.UnixMicro() != p.time(d, round) || r.Seq != round+1 || r.Metric == nil || (r.Value == nil) == (r.Text == nil) {
						t.Errorf("%s", b)
					}
				}
			}
		}
	}
}

func TestRecordings(t *testing.T) {
	for _, want := range []struct {
		room   *room
		rows   int
		first  []float32
		length time.Duration
	}{
		{rooms[0], 10129, []float32{24.94, 24.75, 24.56, 25.38, 121, 34, 53, 40, 0.08, 0.19, 0.06, 0.06, 390, 0, 0, 1}, 19*24*time.Hour + 22*time.Hour + 10*time.Minute + 28*time.Second},
		{rooms[1], 20560, []float32{23.7, 26.272, 585.2, 749.2, 1}, 15*24*time.Hour + 19*time.Hour},
	} {
		t.Run(want.room.home, func(t *testing.T) {
			r, err := want.room.read()
			must(t, err)
			if len(r.values) != want.rows {
				t.Fatalf("%d rows", len(r.values))
			}
			if !slices.Equal(r.values[0], want.first) {
				t.Errorf("first row %v", r.values[0])
			}
			if r.length() != want.length {
				t.Errorf("length %v, want %v", r.length(), want.length)
			}
			n := int64(len(r.values))
			for i := int64(1); i < 3*n; i++ {
				if gap, shown := r.event(i)-r.event(i-1), r.played(i)-r.played(i-1); gap < lapGap || shown <= 0 || shown > silenceMax || shown > gap {
					t.Fatalf("row %d comes %v after the one before, played %v", i, gap, shown)
				}
			}
		})
	}
}

// TestRecordingIsNeverAhead: at any speed, no row is due before it happened, over several laps.
func TestRecordingIsNeverAhead(t *testing.T) {
	for _, speed := range []float64{0, 0.5, 1, 60, 600, 1e6} {
		now := time.Now()
		r := &run{s: New()}
		r.s.Speed = speed
		p, err := rooms[0].plan(1)
		must(t, err)
		p.stretches = []stretch{{0, r.begin(p, now), &terms{}}}
		h := newHub(r, p, 0, &hubMark{})
		h.anchor = now
		before := time.Time{}
		for round := int64(0); round < 30000; round++ {
			h.cursor = round * 8
			due, event := h.due(), microsTime(p.time(0, round))
			if due.Before(event) || due.Before(before) {
				t.Fatalf("speed %v, row %d: due %v, happened %v, the row before was due %v", speed, round, due, event, before)
			}
			if before = due; round == 10128 && speed == 600 && due.Sub(now) > 15*time.Minute {
				t.Errorf("the first lap takes %v at 600 times the speed", due.Sub(now))
			}
		}
	}
}
