package ingest

import (
	"math"
	"time"

	"hearthline/flow"
)

// Limits of one row. They bound what a stranger can make a batch hold; no device known comes near them.
const (
	unitBytesMax      = 32
	textBytesMax      = 4096
	attributesMax     = 32
	attributeKeyMax   = 64
	attributeValueMax = 1024
	futureMax         = 24 * time.Hour // a device's clock may run ahead of the gateway's by so much
)

// timeMin is the earliest event time taken: devices without a clock say 1970.
var timeMin = flow.MicrosOf(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))

// timing says what a row's Time is, until the row is gathered and its arrival is known.
type timing uint8

const (
	timeAbsent   timing = iota // the device gave none: it happened on arrival
	timeAbsolute               // µs since 1970
	timeRelative               // µs from arrival (SenML), zero or negative
)

// row is one reading on its way from a payload into a batch. Its strings borrow the payload's memory.
type row struct {
	flow.Event
	timing  timing
	refused *refusal // the first thing wrong with it
}

// wrong keeps the first reason.
func (r *row) wrong(reason Reason, format string, args ...any) {
	if r.refused == nil {
		r.refused = refuse(reason, format, args...)
	}
}

// scope is what a payload may speak of, and what it need not say.
type scope struct {
	home    string
	device  string                   // from the topic; "" when rows name it (HTTP)
	allowed func(device string) bool // nil is every device
	now     flow.Micros              // the gateway's clock, for the plausibility of times
	rowsMax int                      // rows a payload may hold
}

// check holds a row to the limits. It is called once, when all members are read.
func (s *scope) check(r *row) {
	if r.refused != nil {
		return
	}
	if r.Home != "" && r.Home != s.home {
		r.wrong(ReasonHome, "the row names home %q; these credentials are for home %q", r.Home, s.home)
		return
	}
	r.Home = s.home
	switch {
	case s.device == "":
	case r.Device == "":
		r.Device = s.device
	case r.Device != s.device:
		r.wrong(ReasonDevice, "the row names device %q, its topic %q", r.Device, s.device)
	}
	r.checkName("device", r.Device)
	r.checkName("metric", r.Metric)
	if r.refused == nil && s.allowed != nil && !s.allowed(r.Device) {
		r.wrong(ReasonDevice, "device %q is not one of these credentials", r.Device)
	}
	switch {
	case r.HasValue == r.HasText && r.HasValue:
		r.wrong(ReasonValue, "both value and text; want one of them")
	case r.HasValue == r.HasText:
		r.wrong(ReasonValue, "neither value nor text; want one of them")
	case r.HasValue && (math.IsNaN(r.Value) || math.IsInf(r.Value, 0)):
		r.wrong(ReasonNotFinite, "value is not a finite number")
	}
	r.checkText("text", r.Text, textBytesMax, true)
	r.checkText("unit", r.Unit, unitBytesMax, false)
	r.checkAttributes()
	s.checkTime(r)
}

func (s *scope) checkTime(r *row) {
	t := r.Time
	switch r.timing {
	case timeAbsent:
		return
	case timeRelative:
		t += s.now
	}
	switch {
	case t < timeMin:
		r.wrong(ReasonTime, "time %s is before 2000 (numbers are milliseconds since 1970)", t.Time().Format(time.RFC3339))
	case t > s.now.Add(futureMax):
		r.wrong(ReasonTime, "time %s is more than 24 h ahead of the gateway's clock", t.Time().Format(time.RFC3339))
	}
}

// checkName holds names to what topics and folders can carry.
func (r *row) checkName(what, s string) {
	if r.refused != nil {
		return
	}
	if s == "" {
		r.wrong(ReasonMissing, "no %s", what)
		return
	}
	if why := badName(s); why != "" {
		reason := ReasonName
		if len(s) > nameBytesMax {
			reason = ReasonTooLong
		}
		r.wrong(reason, "%s %.40q %s", what, s, why)
	}
}

func (r *row) checkText(what, s string, bytesMax int, breaks bool) {
	if s == "" || r.refused != nil {
		return
	}
	if len(s) > bytesMax {
		r.wrong(ReasonTooLong, "%s has %d bytes; at most %d", what, len(s), bytesMax)
	} else if why := badRunes(s, breaks); why != "" {
		r.wrong(ReasonName, "%s %s", what, why)
	}
}

func (r *row) checkAttributes() {
	if len(r.Attributes) > attributesMax {
		r.wrong(ReasonTooLong, "%d attributes; at most %d", len(r.Attributes), attributesMax)
	}
	for k, v := range r.Attributes {
		if k == "" {
			r.wrong(ReasonName, "an attribute without a name")
		}
		r.checkText("an attribute's name", k, attributeKeyMax, false)
		r.checkText("an attribute", v, attributeValueMax, true)
	}
}
