package payload

import (
	"errors"
	"math"
	"strings"

	"hearthline/flow"
	"hearthline/ingest/reason"
)

// senmlBase are the base fields of a SenML pack (RFC 8428, section 4.1): each holds from the record that gives
// it to the one that gives it anew.
type senmlBase struct {
	name, unit string
	time       float64 // seconds
	value      float64
}

// senmlRecord is one record before its base fields are put to it.
type senmlRecord struct {
	name, unit  string
	hasUnit     bool
	value, time float64
	hasValue    bool
	text        string
	hasText     bool
	notFinite   bool
	field       string // a member this gateway cannot keep: sum, data
	meant       bool   // it has more than base fields
	wrongType   string
}

// senmlTimeAbsolute: smaller times are relative to now, in seconds (RFC 8428, section 4.5.3).
const senmlTimeAbsolute = 1 << 28

// senml reads a SenML pack in JSON. Times are resolved by section 4.5.3; a full name is split into device and
// metric by [senmlName]. Sums and data values have no place in an event: such records are refused, one by one.
func (d *Decoder) senml(s *Scope) error {
	if err := d.json.expect('['); err != nil {
		return err
	}
	var base senmlBase
	err := d.json.elements(func() error {
		if err := d.json.expect('{'); err != nil {
			return err
		}
		var rec senmlRecord
		if err := d.json.members(func(name string) error { return d.senmlMember(&base, &rec, name) }); err != nil {
			return err
		}
		if !rec.meant && rec.wrongType == "" && !rec.notFinite {
			return nil // base fields alone
		}
		r, err := d.next(s)
		if err != nil {
			return err
		}
		rec.resolve(&base, r, s.Device)
		s.check(r)
		return nil
	})
	if err == nil && !d.json.end() {
		err = d.json.fail("more text after the pack")
	}
	return err
}

func (d *Decoder) senmlMember(base *senmlBase, rec *senmlRecord, name string) error {
	text := func(to *string) (bool, error) {
		if d.json.peek() != '"' {
			rec.wrongType = name
			return false, d.json.skip(1)
		}
		var err error
		*to, err = d.json.text()
		return true, err
	}
	number := func(to *float64) (bool, error) {
		if !d.numeric() {
			rec.wrongType = name
			return false, d.json.skip(1)
		}
		var err error
		if *to, err = d.json.number(); errors.Is(err, errNotFinite) {
			rec.notFinite = true
			return false, nil
		}
		return true, err
	}
	var err error
	switch name {
	case "bn":
		_, err = text(&base.name)
	case "bu":
		_, err = text(&base.unit)
	case "bt":
		_, err = number(&base.time)
	case "bv":
		_, err = number(&base.value)
	case "bver":
		var version float64
		if _, err = number(&version); err == nil && (version > 10 || version != math.Trunc(version)) {
			return reason.Refuse(reason.Malformed, "SenML version %g; this gateway reads up to 10", version)
		}
	case "n":
		rec.meant = true
		_, err = text(&rec.name)
	case "u":
		rec.hasUnit, err = text(&rec.unit)
	case "t":
		_, err = number(&rec.time)
	case "ut":
		var update float64
		_, err = number(&update)
	case "v":
		rec.meant = true
		rec.hasValue, err = number(&rec.value)
	case "vs":
		rec.meant = true
		rec.hasText, err = text(&rec.text)
	case "vb":
		rec.meant = true
		switch {
		case d.json.word("true"):
			rec.text, rec.hasText = "true", true
		case d.json.word("false"):
			rec.text, rec.hasText = "false", true
		default:
			rec.wrongType = name
			err = d.json.skip(1)
		}
	case "vd", "s", "bs":
		rec.meant, rec.field = rec.meant || name != "bs", name
		err = d.json.skip(1)
	default:
		if strings.HasSuffix(name, "_") { // section 4.4: who does not know it must not go on
			return reason.Refuse(reason.Malformed, "SenML field %.40q must be understood and is not", name)
		}
		err = d.json.skip(1)
	}
	return err
}

// resolve puts the base fields to a record (section 4.6) and makes a row of it.
func (rec *senmlRecord) resolve(base *senmlBase, r *Row, topicDevice string) {
	switch {
	case rec.wrongType != "":
		r.wrong(reason.Field, "SenML field %q is of a wrong type", rec.wrongType)
	case rec.notFinite:
		r.wrong(reason.NotFinite, "a SenML number is not finite")
	case rec.field == "vd" || rec.field != "" && !rec.hasValue && !rec.hasText:
		r.wrong(reason.Field, "SenML field %q (sums and data) is not kept here", rec.field)
	}
	r.Device, r.Metric = senmlName(base.name+rec.name, topicDevice)
	r.Unit = base.unit
	if rec.hasUnit {
		r.Unit = rec.unit
	}
	r.Text, r.HasText = rec.text, rec.hasText
	r.Value, r.HasValue = rec.value+base.value, rec.hasValue
	if t := base.time + rec.time; t >= senmlTimeAbsolute {
		r.Time, r.Timing = r.micros(t, 1e6), timeAbsolute
	} else {
		r.Time, r.Timing = r.micros(t, 1e6), TimeRelative
	}
	if r.Timing == TimeRelative && r.Time == flow.Micros(0) {
		r.Timing = TimeAbsent
	}
}

// senmlName splits a full SenML name at its last "/", or else its last ":", into device and metric. Under a topic
// that names the device, a name without either is the metric alone.
func senmlName(full, topicDevice string) (device, metric string) {
	i := strings.LastIndexByte(full, '/')
	if i < 0 {
		i = strings.LastIndexByte(full, ':')
	}
	if i < 0 {
		return topicDevice, full
	}
	return full[:i], full[i+1:]
}
