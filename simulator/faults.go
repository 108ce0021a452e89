package simulator

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Fault is something that goes wrong with a device, a message or a connection, on purpose.
type Fault uint8

// The faults. Anomalies are readings that are well formed and odd: they are stored like any other, and
// [Simulator.Labels] tells where they are. Bad messages are those a pipeline must not store. The rest happens to
// messages and connections, and must change nothing in what is stored.
const (
	Good Fault = iota // no fault

	// Anomalies.
	Spike // one reading far off
	Stuck // a metric keeps one value for a stretch of readings
	Drift // a metric wanders off over a stretch of readings

	// Bad messages: all readings of the message are bad in the same way.
	WrongUnit    // a unit that no metric has ("parsec")
	NaN          // the bare token NaN as value, as some JSON writers make it
	MissingField // no metric, or no value
	Malformed    // JSON cut in the middle
	ClockWrong   // a time in 1970 or in 2090
	Oversize     // a payload of 10 MB
	OtherHome    // published under the topic of another home

	// What happens to good messages.
	Duplicate // sent twice, with the same sequence
	Reorder   // a device's two readings change places

	// What happens to connections.
	WrongPassword // one login with a wrong password, then a right one
	Disconnect    // the connection is reset with messages outstanding
	HalfOpen      // the hub comes back while the server still holds its old connection
	Offline       // the hub is away for a while, then uploads what it buffered

	faultCount
)

var faultNames = [faultCount]string{"good", "spike", "stuck", "drift", "wrong_unit", "nan", "missing_field", "malformed",
	"clock_wrong", "oversize", "other_home", "duplicate", "reorder", "wrong_password", "disconnect", "half_open", "offline"}

// String is the fault's name in settings and statistics.
func (f Fault) String() string { return faultNames[f] }

// Bad says whether a message with this fault is one that must not be stored.
func (f Fault) Bad() bool { return f >= WrongUnit && f <= OtherHome }

// Faults says how often what goes wrong: each field is a probability from 0 to 1. In YAML it is a mapping of these
// fields, or one of the words none, few and all, or a list like "few,nan=0.01".
type Faults struct {
	Spike float64 `yaml:"spike"` // a message
	Stuck float64 `yaml:"stuck"` // a stretch of 32 readings of a device
	Drift float64 `yaml:"drift"` // a stretch of 64 readings of a device

	WrongUnit    float64 `yaml:"wrong_unit"` // a message, as are all below
	NaN          float64 `yaml:"nan"`
	MissingField float64 `yaml:"missing_field"`
	Malformed    float64 `yaml:"malformed"`
	ClockWrong   float64 `yaml:"clock_wrong"`
	Oversize     float64 `yaml:"oversize"`
	OtherHome    float64 `yaml:"other_home"`

	Duplicate float64 `yaml:"duplicate"`
	Reorder   float64 `yaml:"reorder"`

	WrongPassword float64 `yaml:"wrong_password"`
	Disconnect    float64 `yaml:"disconnect"`
	HalfOpen      float64 `yaml:"half_open"`
	Offline       float64 `yaml:"offline"`
}

// FewFaults is what a healthy fleet has: odd readings, and now and then a lost connection. Every row of it is
// stored, so rows sent and rows stored are equal.
func FewFaults() Faults {
	return Faults{Spike: 0.0003, Stuck: 0.002, Disconnect: 0.0002}
}

// AllFaults is everything, often enough to be seen within a minute with some homes.
func AllFaults() Faults {
	return Faults{Spike: 0.001, Stuck: 0.005, Drift: 0.005,
		WrongUnit: 0.002, NaN: 0.002, MissingField: 0.002, Malformed: 0.002, ClockWrong: 0.002, Oversize: 0.00005, OtherHome: 0.001,
		Duplicate: 0.01, Reorder: 0.01,
		WrongPassword: 0.0005, Disconnect: 0.001, HalfOpen: 0.0005, Offline: 0.0002}
}

// fields lists the probabilities by fault; Good has none.
func (f *Faults) fields() [faultCount]*float64 {
	return [faultCount]*float64{nil, &f.Spike, &f.Stuck, &f.Drift, &f.WrongUnit, &f.NaN, &f.MissingField, &f.Malformed,
		&f.ClockWrong, &f.Oversize, &f.OtherHome, &f.Duplicate, &f.Reorder, &f.WrongPassword, &f.Disconnect, &f.HalfOpen, &f.Offline}
}

// UnmarshalText reads "none", "few", "all", or those and single faults in a list, the later winning:
// "few,nan=0.01,disconnect=0".
func (f *Faults) UnmarshalText(text []byte) error {
	var out Faults
	for _, part := range strings.Split(string(text), ",") {
		switch part = strings.TrimSpace(part); part {
		case "", "none":
			out = Faults{}
			continue
		case "few":
			out = FewFaults()
			continue
		case "all":
			out = AllFaults()
			continue
		}
		name, number, ok := strings.Cut(part, "=")
		if !ok {
			return fmt.Errorf("faults: %q is neither none, few, all nor name=probability", part)
		}
		p, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil {
			return fmt.Errorf("faults: %s: %q is no number", name, number)
		}
		field := out.named(strings.TrimSpace(name))
		if field == nil {
			return fmt.Errorf("faults: no fault is called %q; there are %s", name, strings.Join(faultNames[1:], ", "))
		}
		*field = p
	}
	if err := out.check(); err != nil {
		return err
	}
	*f = out
	return nil
}

func (f *Faults) named(name string) *float64 {
	for i, p := range f.fields() {
		if p != nil && faultNames[i] == name {
			return p
		}
	}
	return nil
}

// MarshalText writes the faults that can happen as a list that UnmarshalText reads back exactly.
func (f Faults) MarshalText() ([]byte, error) {
	out := []byte("none")
	for i, p := range f.fields() {
		if p != nil && *p != 0 {
			out = append(append(append(out, ','), faultNames[i]...), '=')
			out = strconv.AppendFloat(out, *p, 'g', -1, 64)
		}
	}
	return out, nil
}

func (f *Faults) check() error {
	var bad float64
	for i, p := range f.fields() {
		if p == nil {
			continue
		}
		if math.IsNaN(*p) || *p < 0 || *p > 1 {
			return fmt.Errorf("faults: %s is %v; want a probability from 0 to 1", faultNames[i], *p)
		}
		if Fault(i).Bad() || Fault(i) == Duplicate {
			bad += *p
		}
	}
	if bad > 1 {
		return fmt.Errorf("faults: the bad messages and duplicates add up to %v; a message has at most one of these faults, so they must not exceed 1", bad)
	}
	return nil
}
