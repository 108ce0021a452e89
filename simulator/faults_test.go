package simulator

import (
	"math"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// loud makes every fault happen in a short run.
func loud() Faults {
	return Faults{Spike: 0.02, Stuck: 0.1, Drift: 0.1, WrongUnit: 0.02, NaN: 0.02, MissingField: 0.02, Malformed: 0.02, ClockWrong: 0.02,
		Oversize: 0.003, OtherHome: 0.02, Duplicate: 0.05, Reorder: 0.1, WrongPassword: 0.005, Disconnect: 0.01, HalfOpen: 0.01, Offline: 0.005}
}

// TestAllFaults: whatever goes wrong, every good row arrives, once but for copies, and no bad one is counted as good.
func TestAllFaults(t *testing.T) {
	g := newGateway(t)
	s := g.simulate(t.TempDir())
	s.Homes, s.Rounds, s.History, s.Faults = 8, 120, 2*time.Minute, loud()
	finish(t, s)
	equal(t, g, s)
	st := s.Stats()
	for f := WrongUnit; f <= OtherHome; f++ {
		if st.Bad[f.String()] == 0 {
			t.Errorf("no %v happened: %+v", f, st)
		}
	}
	for f := WrongPassword; f < faultCount; f++ {
		if st.Broken[f.String()] == 0 {
			t.Errorf("no %v happened: %+v", f, st)
		}
	}
	for _, f := range []Fault{Oversize, WrongPassword} {
		if st.Refused[f.String()] == 0 {
			t.Errorf("no %v was refused: %+v", f, st)
		}
	}
	if st.Duplicates == 0 || st.Resent == 0 || st.Unavailable != 0 {
		t.Errorf("%+v", st)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, reason := range []string{"json", "field", "unit", "clock", "acl"} {
		if g.bad[reason] == 0 {
			t.Errorf("the gateway met no message with bad %s: %v", reason, g.bad)
		}
	}
	swapped := 0
	for _, seqs := range g.order {
		for i := 1; i < len(seqs); i++ {
			if seqs[i] == seqs[i-1]-1 {
				swapped++
			}
		}
	}
	if swapped == 0 || g.copies == 0 {
		t.Errorf("%d rows changed places, %d came twice; want some of both", swapped, g.copies)
	}
	t.Logf("%+v; the gateway: bad %v, copies %d, at most %d behind", st, g.bad, g.copies, g.behind)
}

func TestFaultsAsText(t *testing.T) {
	for text, want := range map[string]Faults{
		"none": {}, "few": FewFaults(), "all": AllFaults(), "": {},
		"nan=0.5":          {NaN: 0.5},
		"all, none, nan=1": {NaN: 1},
	} {
		var got, again Faults
		must(t, got.UnmarshalText([]byte(text)))
		if got != want {
			t.Errorf("%q is %+v, want %+v", text, got, want)
		}
		b, err := got.MarshalText()
		must(t, err)
		must(t, again.UnmarshalText(b))
		if again != got {
			t.Errorf("%q, written as %q, is read as %+v", text, b, again)
		}
	}
	for text, want := range map[string]string{
		"some": "neither", "nan=much": "no number", "nin=0.1": "no fault is called", "nan=-1": "probability", "nan=0.6,malformed=0.6": "add up",
	} {
		var f Faults
		if err := f.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}

func FuzzFaults(f *testing.F) {
	for _, s := range []string{"all", "few,nan=0.1", "none", "nan=0.1,nan=0.2", "spike=1e-3,", "=", "nan=NaN"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var got, again Faults
		if got.UnmarshalText([]byte(text)) != nil {
			return
		}
		b, err := got.MarshalText()
		must(t, err)
		if err := again.UnmarshalText(b); err != nil || again != got {
			t.Errorf("%q, written as %q, is read as %+v, error %v", text, b, again, err)
		}
	})
}

func TestSettingsFromYAML(t *testing.T) {
	for text, want := range map[string]Faults{"faults: few": FewFaults(), "faults: {nan: 0.25}": {NaN: 0.25}} {
		s := &Simulator{}
		d := yaml.NewDecoder(strings.NewReader(text))
		d.KnownFields(true)
		must(t, d.Decode(s))
		if s.Faults != want {
			t.Errorf("%s: %+v", text, s.Faults)
		}
	}
}

// TestLabels holds the labels to what is sent: where there is none a reading is the home's own signal.
func TestLabels(t *testing.T) {
	const rounds = 640
	f := Faults{Spike: 0.01, Stuck: 0.1, Drift: 0.1}
	p := testPlan(7, 3, f)
	labelled := map[seriesKey]map[int64]string{}
	for _, l := range p.labels(rounds * p.devices()) {
		key := seriesKey{l.Home, l.Device, l.Metric}
		if labelled[key] == nil {
			labelled[key] = map[int64]string{}
		}
		if l.First < 1 || l.Last > rounds || l.Last < l.First {
			t.Errorf("%+v", l)
		}
		for seq := l.First; seq <= l.Last; seq++ {
			labelled[key][seq] = l.Kind
		}
	}
	kinds := map[string]int{}
	for d := range p.home.kit {
		dev := &p.home.kit[d]
		for k := range dev.metrics {
			met := &dev.metrics[k]
			if met.text {
				continue
			}
			for r := range int64(rounds) {
				now := p.home.moment(microsTime(p.time(d, r)))
				plain := math.Min(math.Max(p.home.value(d, k, r, now), met.low), met.high)
				said := p.measure(message{d, r, Good}, k, met, now)
				kind := labelled[seriesKey{p.name, dev.name, met.name}][r+1]
				kinds[kind]++
				if kind == "" && said != plain {
					t.Fatalf("%s %s, sequence %d: %v, the signal is %v, and no label", dev.name, met.name, r+1, said, plain)
				}
				if kind == "spike" && math.Abs(said-plain) < met.jump/10 {
					t.Errorf("%s %s, sequence %d: a spike from %v to %v", dev.name, met.name, r+1, plain, said)
				}
			}
		}
	}
	if len(kinds) != 4 || kinds[""] < kinds["stuck"] {
		t.Errorf("labels: %v", kinds)
	}
}

// testPlan is the plan of a simulated home as a run makes it.
func testPlan(seed uint64, number int, f Faults) *plan {
	s := New()
	s.Seed = seed
	r := &run{s: s, journal: &journal{hubs: map[string]*hubMark{}}}
	h := newHome(seed, number)
	p := &plan{name: h.name, dice: h.dice.with(99), home: h, other: HomeName(number + 1)}
	for _, d := range h.kit {
		p.rows = append(p.rows, len(d.metrics))
	}
	r.add(p, number, r.terms(terms{Interval: 10 * time.Second, Faults: f}), time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC))
	return p
}
