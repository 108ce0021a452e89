// Package payload parses what clients hand in (JSON, NDJSON, SenML, Arrow) into rows, and says of each row that cannot be
// used why not.
package payload

import (
	"math"
	"time"

	"hearthline/flow"
	"hearthline/ingest/names"
	"hearthline/ingest/reason"
)

// Limits of one row. They bound what a stranger can make a batch hold; no device known comes near them.
const (
	unitBytesMax      = 32
	textBytesMax      = 4096
	attributesMax     = 32
	attributeKeyMax   = 64
	attributeValueMax = 1024
	FutureMax         = 24 * time.Hour // a device's clock may run ahead of the gateway's by so much
)

// timeMin is the earliest event time taken: devices without a clock say 1970.
var timeMin = flow.MicrosOf(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))

// timing says what a row's Time is, until the row is gathered and its arrival is known.
type timing uint8

const (
	TimeAbsent   timing = iota // the device gave none: it happened on arrival
	timeAbsolute               // µs since 1970
	TimeRelative               // µs from arrival (SenML), zero or negative
)

// Row is one reading on its way from a payload into a batch. Its strings borrow the payload's memory.
type Row struct {
	flow.Event
	Timing  timing
	Refused *reason.Refusal // the first thing wrong with it
}

// wrong keeps the first reason.
func (r *Row) wrong(why reason.Reason, format string, args ...any) {
	if r.Refused == nil {
		r.Refused = reason.Refuse(why, format, args...)
	}
}

// set adds an attribute; of two of one name the later counts. One more than allowed is enough to refuse the row.
func (r *Row) set(name, value string) {
	for i := range r.Attributes {
		if r.Attributes[i].Name == name {
			r.Attributes[i].Value = value
			return
		}
	}
	if len(r.Attributes) <= attributesMax {
		r.Attributes = append(r.Attributes, flow.Attribute{Name: name, Value: value})
	}
}

// Scope is what a payload may speak of, and what it need not say.
type Scope struct {
	Home    string                                    // "" when rows name it: who sends for several homes
	Device  string                                    // from the topic; "" when rows name it (HTTP)
	May     func(home, device string) *reason.Refusal // why rows of a device are refused; nil takes all
	Now     flow.Micros                               // the gateway's clock, for the plausibility of times
	RowsMax int                                       // rows a payload may hold

	// What an envelope says of all its rows; a row that says it itself is right.
	HomeUnsaid string      // the home of rows that name none, where Home is ""
	Subject    string      // the device, likewise
	Metric     string      // the metric, likewise
	Time       flow.Micros // the time, likewise; 0 for none
}

// complete adds what the envelope says.
func (s *Scope) complete(r *Row) {
	if r.Home == "" && s.Home == "" {
		r.Home = s.HomeUnsaid
	}
	if r.Device == "" && s.Device == "" {
		r.Device = s.Subject
	}
	if r.Metric == "" {
		r.Metric = s.Metric
	}
	if r.Timing == TimeAbsent && s.Time != 0 {
		r.Time, r.Timing = s.Time, timeAbsolute
	}
}

// check holds a row to the limits. It is called once, when all members are read.
func (s *Scope) check(r *Row) {
	if r.Refused != nil {
		return
	}
	s.complete(r)
	switch {
	case s.Home == "":
		r.checkName("home", r.Home)
	case r.Home == "":
		r.Home = s.Home
	case r.Home != s.Home:
		r.wrong(reason.Home, "the row names home %q; this is of home %q", r.Home, s.Home)
	}
	switch {
	case s.Device == "":
	case r.Device == "":
		r.Device = s.Device
	case r.Device != s.Device:
		r.wrong(reason.Device, "the row names device %q, its topic %q", r.Device, s.Device)
	}
	r.checkName("device", r.Device)
	r.checkName("metric", r.Metric)
	if r.Refused == nil && s.May != nil {
		r.Refused = s.May(r.Home, r.Device)
	}
	switch {
	case r.HasValue == r.HasText && r.HasValue:
		r.wrong(reason.Value, "both value and text; want one of them")
	case r.HasValue == r.HasText:
		r.wrong(reason.Value, "neither value nor text; want one of them")
	case r.HasValue && (math.IsNaN(r.Value) || math.IsInf(r.Value, 0)):
		r.wrong(reason.NotFinite, "value is not a finite number")
	}
	r.checkText("text", r.Text, textBytesMax, true)
	r.checkText("unit", r.Unit, unitBytesMax, false)
	r.checkAttributes()
	s.checkTime(r)
}

func (s *Scope) checkTime(r *Row) {
	t := r.Time
	switch r.Timing {
	case TimeAbsent:
		return
	case TimeRelative:
		t += s.Now
	}
	switch {
	case t < timeMin:
		r.wrong(reason.Time, "time %s is before 2000 (numbers are milliseconds since 1970)", t.Time().Format(time.RFC3339))
	case t > s.Now.Add(FutureMax):
		r.wrong(reason.Time, "time %s is more than 24 h ahead of the gateway's clock", t.Time().Format(time.RFC3339))
	}
}

// checkName holds names to what topics and folders can carry.
func (r *Row) checkName(what, s string) {
	if r.Refused != nil {
		return
	}
	if s == "" {
		r.wrong(reason.Missing, "no %s", what)
		return
	}
	if why := names.Bad(s); why != "" {
		kind := reason.Name
		if len(s) > names.BytesMax {
			kind = reason.TooLong
		}
		r.wrong(kind, "%s %.40q %s", what, s, why)
	}
}

func (r *Row) checkText(what, s string, bytesMax int, breaks bool) {
	if s == "" || r.Refused != nil {
		return
	}
	if len(s) > bytesMax {
		r.wrong(reason.TooLong, "%s has %d bytes; at most %d", what, len(s), bytesMax)
	} else if why := names.BadRunes(s, breaks); why != "" {
		r.wrong(reason.Name, "%s %s", what, why)
	}
}

func (r *Row) checkAttributes() {
	if len(r.Attributes) > attributesMax {
		r.wrong(reason.TooLong, "%d attributes; at most %d", len(r.Attributes), attributesMax)
	}
	for _, a := range r.Attributes {
		if a.Name == "" {
			r.wrong(reason.Name, "an attribute without a name")
		}
		r.checkText("an attribute's name", a.Name, attributeKeyMax, false)
		r.checkText("an attribute", a.Value, attributeValueMax, true)
	}
}
