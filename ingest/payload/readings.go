package payload

import (
	"bytes"
	"errors"
	"math"
	"strconv"
	"time"

	"hearthline/flow"
	"hearthline/ingest/reason"
)

// Decoder turns payloads into rows. It is used by one goroutine at a time; what decode returns is valid until
// the next call and borrows the payload.
type Decoder struct {
	json       jsonReader
	rows       []Row
	attributes []flow.Attribute // empty, to be used; may be nil
}

// Format is how a payload is written.
type Format uint8

const (
	FormatJSON  Format = iota // one reading, or an array of them
	FormatLines               // NDJSON: one reading a line
	FormatSenML               // RFC 8428, JSON
	FormatArrow               // Arrow IPC stream
)

// FormatOf finds the format of a media type without parameters.
func FormatOf(media string) (Format, bool) {
	switch media {
	case "application/json":
		return FormatJSON, true
	case "application/x-ndjson", "application/ndjson", "application/jsonl":
		return FormatLines, true
	case "application/senml+json":
		return FormatSenML, true
	case "application/vnd.apache.arrow.stream":
		return FormatArrow, true
	}
	return 0, false
}

// Decode reads a payload. Rows that cannot be used come with refused set; the error, a *refusal, is for a payload
// of which nothing can be used.
func (d *Decoder) Decode(f Format, payload []byte, s *Scope) ([]Row, error) {
	if len(d.rows) > 0 && d.rows[0].Attributes != nil {
		d.attributes = d.rows[0].Attributes // to be used again: most payloads are one reading
		clear(d.attributes)
		d.attributes = d.attributes[:0]
	}
	clear(d.rows) // attributes and text of the last payload are not kept alive
	if cap(d.rows) > 4096 {
		d.rows = nil
	}
	d.rows = d.rows[:0]
	d.json.reset(payload)
	var err error
	switch f {
	case FormatJSON:
		err = d.readings(s)
	case FormatLines:
		err = d.lines(payload, s)
	case FormatSenML:
		err = d.senml(s)
	case FormatArrow:
		err = d.arrow(payload, s)
	}
	if err != nil {
		return nil, Malformed(err)
	}
	if len(d.rows) == 0 {
		return nil, reason.Refuse(reason.Malformed, "the payload holds no readings")
	}
	return d.rows, nil
}

// Malformed makes a refusal of any error.
func Malformed(err error) *reason.Refusal {
	var r *reason.Refusal
	if errors.As(err, &r) {
		return r
	}
	return reason.Refuse(reason.Malformed, "%v", err)
}

// next adds an empty row.
func (d *Decoder) next(s *Scope) (*Row, error) {
	if len(d.rows) >= s.RowsMax {
		return nil, reason.Refuse(reason.Payload, "more than %d readings in one payload", s.RowsMax)
	}
	d.rows = append(d.rows, Row{})
	return &d.rows[len(d.rows)-1], nil
}

// readings reads {…} or [{…}, …].
func (d *Decoder) readings(s *Scope) error {
	one := func() error {
		r, err := d.next(s)
		if err != nil {
			return err
		}
		return d.reading(r, s)
	}
	var err error
	if d.json.take('[') {
		err = d.json.elements(one)
	} else {
		err = one()
	}
	if err == nil && !d.json.end() {
		err = d.json.fail("more text after the value")
	}
	return err
}

// lines reads NDJSON. A line that is no JSON is one refused row: the lines beside it count.
func (d *Decoder) lines(payload []byte, s *Scope) error {
	for len(payload) > 0 {
		line, rest, _ := bytes.Cut(payload, []byte{'\n'})
		payload = rest
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		r, err := d.next(s)
		if err != nil {
			return err
		}
		d.json.b, d.json.at = line, 0
		if err := d.reading(r, s); err != nil {
			r.Refused = Malformed(err)
		} else if !d.json.end() {
			r.Refused = reason.Refuse(reason.Malformed, "more text after the object")
		}
	}
	return nil
}

// Bits of the members seen, so that none is given twice.
const (
	seenHome = 1 << iota
	seenDevice
	seenMetric
	seenValue
	seenText
	seenUnit
	seenTime
	seenSeq
	seenAttributes
)

// reading reads one object into r and checks it. An error is one of syntax: nothing after it can be read.
func (d *Decoder) reading(r *Row, s *Scope) error {
	if d.json.peek() != '{' {
		r.wrong(reason.Field, "want an object")
		return d.json.skip(0)
	}
	d.json.at++
	seen := 0
	err := d.json.members(func(name string) error {
		bit, err := d.member(r, name)
		if seen&bit != 0 {
			r.wrong(reason.Field, "%q is given twice", name)
		}
		seen |= bit
		return err
	})
	if err == nil {
		s.check(r)
	}
	return err
}

func (d *Decoder) member(r *Row, name string) (bit int, err error) {
	switch name {
	case "home":
		return seenHome, d.textMember(r, name, &r.Home, nil)
	case "device":
		return seenDevice, d.textMember(r, name, &r.Device, nil)
	case "metric":
		return seenMetric, d.textMember(r, name, &r.Metric, nil)
	case "text":
		return seenText, d.textMember(r, name, &r.Text, &r.HasText)
	case "unit":
		return seenUnit, d.textMember(r, name, &r.Unit, nil)
	case "value":
		return seenValue, d.numberMember(r, name, &r.Value, &r.HasValue)
	case "seq":
		return seenSeq, d.seqMember(r)
	case "time":
		return seenTime, d.timeMember(r)
	case "attributes":
		return seenAttributes, d.attributesMember(r)
	}
	r.wrong(reason.Field, "unknown member %q; known: device metric value text unit time seq attributes", name)
	return 0, d.json.skip(1)
}

// textMember reads a string, or null, which counts as absent.
func (d *Decoder) textMember(r *Row, name string, to *string, has *bool) (err error) {
	if d.json.peek() != '"' {
		return d.otherwise(r, name, "a string")
	}
	if *to, err = d.json.text(); err == nil && has != nil {
		*has = true
	}
	return err
}

// otherwise passes over a value that is not of the type wanted.
func (d *Decoder) otherwise(r *Row, name, want string) error {
	if d.json.word("null") {
		return nil
	}
	r.wrong(reason.Field, "%q is not %s", name, want)
	return d.json.skip(1)
}

// numeric says whether the next value is a number, or would like to be one.
func (d *Decoder) numeric() bool {
	switch c := d.json.peek(); c {
	case '"', '{', '[', 't', 'f', 0:
		return false
	case 'n': // null, or nan
		return !bytes.HasPrefix(d.json.b[d.json.at:], []byte("null"))
	}
	return true
}

func (d *Decoder) numberMember(r *Row, name string, to *float64, has *bool) (err error) {
	if !d.numeric() {
		return d.otherwise(r, name, "a number")
	}
	if *to, err = d.json.number(); errors.Is(err, errNotFinite) {
		r.wrong(reason.NotFinite, "%q is not a finite number", name)
		return nil
	}
	*has = true
	return err
}

func (d *Decoder) seqMember(r *Row) error {
	if !d.numeric() || d.json.notFinite() {
		return d.otherwise(r, "seq", "an integer")
	}
	lit, integer, err := d.json.literal()
	if err != nil {
		return err
	}
	if r.Seq, err = strconv.ParseInt(lit, 10, 64); err != nil || !integer {
		r.wrong(reason.Field, "seq %.40s is not a 64-bit integer", lit)
	}
	r.HasSeq = true
	return nil
}

// timeMember reads an RFC 3339 string, or a number of milliseconds since 1970.
func (d *Decoder) timeMember(r *Row) error {
	if d.json.peek() == '"' {
		s, err := d.json.text()
		if err != nil {
			return err
		}
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			r.wrong(reason.Time, "time %.40q is not RFC 3339, such as 2026-01-31T12:00:00.5Z", s)
			return nil
		}
		r.Time, r.Timing = flow.MicrosOf(t), timeAbsolute
		return nil
	}
	if !d.numeric() {
		return d.otherwise(r, "time", "an RFC 3339 string or a number of milliseconds since 1970")
	}
	ms, err := d.json.number()
	if errors.Is(err, errNotFinite) {
		r.wrong(reason.Time, "time is not a finite number")
		return nil
	}
	r.Time, r.Timing = r.micros(ms, 1000), timeAbsolute
	return err
}

// micros is v units of scale µs, refused when no instant of the calendar is meant.
func (r *Row) micros(v, scale float64) flow.Micros {
	us := math.Round(v * scale)
	if math.Abs(us) > 1<<62 {
		r.wrong(reason.Time, "time %g is out of range (numbers are milliseconds since 1970)", v)
		return 0
	}
	return flow.Micros(us)
}

// attributesMember reads an object of strings. Numbers and booleans are taken by their text.
func (d *Decoder) attributesMember(r *Row) error {
	if d.json.peek() != '{' {
		return d.otherwise(r, "attributes", "an object of strings")
	}
	d.json.at++
	if r.Attributes, d.attributes = d.attributes, nil; r.Attributes == nil {
		r.Attributes = make([]flow.Attribute, 0, 4)
	}
	return d.json.members(func(name string) error {
		var value string
		var err error
		switch c := d.json.peek(); {
		case c == '"':
			value, err = d.json.text()
		case c == '-' || c >= '0' && c <= '9':
			value, _, err = d.json.literal()
		case d.json.word("true"):
			value = "true"
		case d.json.word("false"):
			value = "false"
		default:
			r.wrong(reason.Field, "attribute %.40q is no string, number or boolean", name)
			return d.json.skip(2)
		}
		r.set(name, value)
		return err
	})
}
