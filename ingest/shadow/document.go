package shadow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hearthline/ingest/table"
)

// Half is one half of a shadow: what apps want, or what the device says it is.
type Half uint8

// The halves of a shadow.
const (
	Desired Half = iota
	Reported
)

var halfNames = [...]string{"desired", "reported"}

func (h Half) String() string { return halfNames[h] }

// header is what is looked at of every record, of whatever home: it stands before the JSON, so that following the table costs little
// where nobody listens.
type header struct {
	seq     int64  // orders the records of a key: each is one above the one that it was made of
	version int64  // rises when the state changes
	deleted bool   //
	write   string // names the attempt that wrote it; no spaces
}

// section is a half of a shadow as the table holds it: its header, a line feed, and the rest as JSON.
type section struct {
	header
	State   json.RawMessage      `json:"state"` // an object
	Times   map[string]time.Time `json:"times"` // of its properties: when each came to its value
	Updated time.Time            `json:"updated"`
	By      string               `json:"by,omitempty"` // the user

	state map[string]any // of State, once it was read
}

var errRecord = errors.New("read a shadow: it does not begin with seq, version, whether it is there, and who wrote it")

// readHeader gives the header, and the JSON behind it.
func readHeader(value []byte) (h header, rest []byte, err error) {
	line, rest, ok := bytes.Cut(value, []byte{'\n'})
	parts := bytes.SplitN(line, []byte{' '}, 4)
	if !ok || len(parts) != 4 || len(parts[2]) != 1 {
		return header{}, nil, errRecord
	}
	var errs [2]error
	h.seq, errs[0] = strconv.ParseInt(string(parts[0]), 10, 64)
	h.version, errs[1] = strconv.ParseInt(string(parts[1]), 10, 64)
	h.deleted, h.write = parts[2][0] == 'd', string(parts[3])
	if errs[0] != nil || errs[1] != nil || h.seq < 1 {
		return header{}, nil, errRecord
	}
	return h, rest, nil
}

func (h *header) append(b []byte) []byte {
	b = append(strconv.AppendInt(b, h.seq, 10), ' ')
	b = append(strconv.AppendInt(b, h.version, 10), ' ')
	if h.deleted {
		b = append(b, 'd', ' ')
	} else {
		b = append(b, '-', ' ')
	}
	return append(append(b, h.write...), '\n')
}

// Rule is that of the table of shadows. Of two records that were made of the same one the first stands: who wrote the other
// finds that it did not take effect, and makes it anew. A key is taken back only when the shadow has been deleted.
func Rule(old, new table.Record) bool {
	if old.Value == nil {
		return true
	}
	was, _, err := readHeader(old.Value)
	if err != nil {
		return true // anything may take its place
	}
	if new.Value == nil {
		return was.deleted
	}
	is, _, err := readHeader(new.Value)
	return err == nil && is.seq > was.seq
}

// Raise is the table's: the same record, above all that was made of the one before it.
func Raise(value []byte) []byte {
	h, rest, err := readHeader(value)
	if err != nil {
		return value
	}
	h.seq++
	return append(h.append(nil), rest...)
}

func decode(value []byte) (*section, error) {
	h, rest, err := readHeader(value)
	if err != nil {
		return nil, err
	}
	s := &section{header: h}
	if err := json.Unmarshal(rest, s); err != nil {
		return nil, fmt.Errorf("read a shadow: %w", err)
	}
	if len(s.State) == 0 {
		return nil, errors.New("read a shadow: it has no state")
	}
	return s, nil
}

// encode writes the record.
func (s *section) encode() ([]byte, error) {
	rest, err := encode(s)
	if err != nil {
		return nil, fmt.Errorf("write a shadow: %w", err)
	}
	return append(s.header.append(make([]byte, 0, len(rest)+80)), rest...), nil
}

// object reads the state.
func (s *section) object() (map[string]any, error) {
	if s.state != nil {
		return s.state, nil
	}
	v, err := parse(s.State, depthHeldMax)
	if err != nil {
		return nil, fmt.Errorf("read a shadow: %w", err)
	}
	if s.state = object(v); s.state == nil {
		return nil, errors.New("read a shadow: the state is no object")
	}
	return s.state, nil
}

// depthHeldMax is for what was taken under another setting.
const depthHeldMax = 64

func keyOf(home, device string, h Half) string { return home + "/" + device + "/" + h.String() }

// splitKey takes a key apart.
func splitKey(key string) (home, device string, h Half, ok bool) {
	home, rest, _ := strings.Cut(key, "/")
	device, name, _ := strings.Cut(rest, "/")
	switch name {
	case "desired":
		return home, device, Desired, true
	case "reported":
		return home, device, Reported, true
	}
	return "", "", 0, false
}

// Document is a device's shadow as apps see it.
type Document struct {
	Home     string          `json:"home"`
	Device   string          `json:"device"`
	Desired  json.RawMessage `json:"desired"`         // an object: what apps want it to be
	Reported json.RawMessage `json:"reported"`        // an object: what it was last said to be
	Delta    json.RawMessage `json:"delta,omitempty"` // an object: what of desired differs from reported
	Metadata struct {
		Desired  Metadata `json:"desired"`
		Reported Metadata `json:"reported"`
	} `json:"metadata"`
	Version int64 `json:"version"`           // the sum of both versions: it rises with every change
	Deleted bool  `json:"deleted,omitempty"` // of a stream: there is no shadow any more
}

// Metadata is what is known about one half.
type Metadata struct {
	Version    int64                `json:"version"`              // rises with every change; 0: there never was one
	Updated    time.Time            `json:"updated,omitzero"`     // by the gateway's clock
	By         string               `json:"by,omitempty"`         // the user that changed it last
	Properties map[string]time.Time `json:"properties,omitempty"` // when each property came to its value
}

// Delta is what a hub is sent.
type Delta struct {
	Version  int64                `json:"version"`  // of desired
	State    json.RawMessage      `json:"state"`    // an object: what of desired differs from reported
	Metadata map[string]time.Time `json:"metadata"` // when each of its properties was desired
}

// pair is both halves of a shadow; nil where there is none.
type pair [2]*section

// get reads what the table holds of a device.
func (s *Shadows) get(home, device string) (p pair) {
	for _, h := range []Half{Desired, Reported} {
		rec, ok := s.Table.Get(keyOf(home, device, h))
		if !ok || rec.Value == nil {
			continue
		}
		got, err := decode(rec.Value)
		if err != nil {
			s.Logger.Error("shadow: a record of the table cannot be read", "key", rec.Key, "error", err)
			continue
		}
		p[h] = got
	}
	return p
}

// there says whether a shadow exists.
func (p pair) there() bool {
	return p[Desired] != nil && !p[Desired].deleted || p[Reported] != nil && !p[Reported].deleted
}

// objects are both states.
func (p pair) objects() (desired, reported map[string]any, err error) {
	for h, at := range map[Half]*map[string]any{Desired: &desired, Reported: &reported} {
		if p[h] == nil {
			continue
		}
		if *at, err = p[h].object(); err != nil {
			return nil, nil, err
		}
	}
	return desired, reported, nil
}

// delta is what a hub is to be told; nil when there is nothing.
func (p pair) delta() (map[string]any, error) {
	desired, reported, err := p.objects()
	if err != nil || len(desired) == 0 {
		return nil, err
	}
	return difference(desired, reported), nil
}

var emptyObject = json.RawMessage("{}")

func (p pair) document(home, device string) (*Document, error) {
	d := &Document{Home: home, Device: device, Desired: emptyObject, Reported: emptyObject, Deleted: !p.there()}
	for h, to := range map[Half]*Metadata{Desired: &d.Metadata.Desired, Reported: &d.Metadata.Reported} {
		if p[h] != nil {
			*to = Metadata{Version: p[h].version, Updated: p[h].Updated, By: p[h].By, Properties: p[h].Times}
			d.Version += p[h].version
		}
	}
	if p[Desired] != nil {
		d.Desired = p[Desired].State
	}
	if p[Reported] != nil {
		d.Reported = p[Reported].State
	}
	missing, err := p.delta()
	if err != nil || len(missing) == 0 {
		return d, err
	}
	d.Delta, err = encode(missing)
	return d, err
}

// message is a delta as it is sent.
func (p pair) message(missing map[string]any) ([]byte, error) {
	state, err := encode(missing)
	if err != nil {
		return nil, err
	}
	d := Delta{Version: p[Desired].version, State: state, Metadata: map[string]time.Time{}}
	for name := range missing {
		d.Metadata[name] = p[Desired].Times[name]
	}
	return encode(d)
}
