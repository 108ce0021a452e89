package ingest

import (
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"hearthline/flow"
)

// Limits of one row. They bound what a stranger can make a batch hold; no device known comes near them.
const (
	nameBytesMax       = 128 // home, device, metric
	unitBytesMax       = 32
	textBytesMax       = 4096
	attributesMax      = 32
	attributeKeyMax    = 64
	attributeValueMax  = 1024
	futureMax          = 24 * time.Hour // a device's clock may run ahead of the gateway's by so much
	verdictDetailBytes = 200            // of what a refused row's detail quotes
)

// timeMin is the earliest event time taken: devices without a clock say 1970.
var timeMin = flow.MicrosOf(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))

// Reason says why something was refused. Its text is the name under which [Stats] counts it and problem
// documents report it.
type Reason uint8

const (
	ReasonMalformed    Reason = iota // not JSON, not SenML, not Arrow
	ReasonMissing                    // no device or no metric
	ReasonValue                      // neither or both of value and text
	ReasonNotFinite                  // NaN, infinities, numbers beyond float64
	ReasonField                      // a member of a wrong type, unknown, or given twice
	ReasonName                       // a name with control characters, separators, or no UTF-8
	ReasonTooLong                    // a string over its limit, too many attributes
	ReasonTime                       // no time, before 2000, more than 24 h ahead
	ReasonHome                       // names another home
	ReasonDevice                     // names a device that the identity does not hold
	ReasonPayload                    // a payload over its limit
	ReasonTopic                      // a topic outside the own home
	ReasonQoS                        // QoS 2
	ReasonRate                       // over the identity's rate
	ReasonCredentials                // unknown user or wrong password
	ReasonBackPressure               // the log did not take it in time
	ReasonSlowConsumer               // a subscriber that does not read
	ReasonProtocol                   // against MQTT
	ReasonConnections                // over the connection limit
	ReasonDraining                   // the gateway is going down
	ReasonMedia                      // a content type or encoding nobody reads here
	reasons                          // how many there are
)

var reasonNames = [reasons]string{
	"malformed", "missing", "value", "not_finite", "field", "name", "too_long", "time", "home", "device", "payload",
	"topic", "qos", "rate", "credentials", "back_pressure", "slow_consumer", "protocol", "connections", "draining", "media",
}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// refusal is why one row, or a whole payload, is not taken.
type refusal struct {
	Reason Reason
	Detail string
}

func (r *refusal) Error() string { return r.Reason.String() + ": " + r.Detail }

func refuse(reason Reason, format string, args ...any) *refusal {
	d := fmt.Sprintf(format, args...)
	if len(d) > verdictDetailBytes {
		d = d[:verdictDetailBytes] + "…"
	}
	return &refusal{Reason: reason, Detail: d}
}

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

// badName says what is wrong with a name of a home, device or metric, "" when nothing is.
func badName(s string) string {
	if s == "" {
		return "is empty"
	}
	if len(s) > nameBytesMax {
		return fmt.Sprintf("has %d bytes; at most %d", len(s), nameBytesMax)
	}
	ascii := true
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < 0x20 || c == 0x7f:
			return "holds a control character"
		case c == '/' || c == '+' || c == '#':
			return "holds one of / + #, which topics use"
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	if ascii {
		return ""
	}
	return badRunes(s, false)
}

// badRunes says whether s is no UTF-8 or holds control characters; breaks allows tab and line breaks.
func badRunes(s string, breaks bool) string {
	for i, c := range s {
		switch {
		case c == utf8.RuneError && !utf8.FullRuneInString(s[i:]), c == utf8.RuneError && !utf8.ValidString(s[i:min(len(s), i+3)]):
			return "is not UTF-8"
		case breaks && (c == '\t' || c == '\n' || c == '\r'):
		case c < 0x20 || c >= 0x7f && c < 0xa0:
			return "holds a control character"
		}
	}
	return ""
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
