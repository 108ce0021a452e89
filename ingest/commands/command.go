// Package commands carries what apps and clouds ask of devices to the hubs that can do it, and what became of it back.
//
// A command stands in a table that all gateways follow (decision 24), from the moment it is accepted until some time
// after its end, and is sent at the same time: to the hub's connection here, or by the gateway that has it. What only the
// table knows (the hub was away, a gateway died) is sent by whoever gets the hub next.
//
// It goes to a hub at least once, and never after its deadline. It takes effect once, because it carries its id and its
// deadline: a hub executes an id once, and none that comes too late.
package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"hearthline/ingest/names"
	"hearthline/ingest/table"
)

// State is how far a command has come. It only rises.
type State uint8

// The states of a command. The last three are its end.
const (
	Accepted  State = iota + 1 // the table has it
	Sent                       // on its way to the hub's connection
	Delivered                  // the hub has acknowledged that it has it
	Executed                   // the hub has done it
	Failed                     // the hub could not do it, or would not
	Expired                    // the deadline passed first
)

var stateNames = [...]string{"", "accepted", "sent", "delivered", "executed", "failed", "expired"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *State) UnmarshalText(text []byte) error {
	for i, name := range stateNames {
		if name == string(text) && i > 0 {
			*s = State(i) // #nosec G115 -- one of seven
			return nil
		}
	}
	return fmt.Errorf("%q is no state of a command", text)
}

// Final says whether nothing more comes.
func (s State) Final() bool { return s >= Executed }

// rank orders states: the ends are equal, and the first of them stands.
func (s State) rank() State { return min(s, Executed) }

// Command is one command and how far it has come. Its JSON is what the table, the API and MQTT hold.
type Command struct {
	ID        string          `json:"id"`
	Home      string          `json:"home"`
	Device    string          `json:"device"`
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	Created   time.Time       `json:"created"`
	Deadline  time.Time       `json:"deadline"`
	By        string          `json:"by"`  // the user that asked
	Via       string          `json:"via"` // the gateway that accepted it

	State    State     `json:"state"`
	Changed  time.Time `json:"changed"`           // When it came into this state
	Gateway  string    `json:"gateway"`           // the gateway that saw it do so
	Detail   string    `json:"detail,omitempty"`  // What the hub said
	Executed time.Time `json:"executed,omitzero"` // by the hub's clock
}

func (c *Command) key() string { return keyOf(c.Home, c.Device, c.ID) }

func keyOf(home, device, id string) string { return home + "/" + device + "/" + id }

// topic is where hubs hear commands of a device.
func topic(home, device string) string { return "homes/" + home + "/devices/" + device + "/commands" }

// same says whether two commands ask the same: an id stands for one thing.
func (c *Command) same(o *Command) bool {
	return c.Name == o.Name && bytes.Equal(c.Arguments, o.Arguments) && c.By == o.By
}

// Rule is that of the table of commands: a state only rises, of several ends the first stands, and only what has ended is
// forgotten.
func Rule(old, new table.Record) bool {
	if old.Value == nil {
		return true
	}
	was := stateOf(old.Value)
	if new.Value == nil {
		return was.Final()
	}
	return stateOf(new.Value).rank() > was.rank()
}

func stateOf(value []byte) State {
	var c struct {
		State State `json:"state"`
	}
	if json.Unmarshal(value, &c) != nil {
		return 0
	}
	return c.State
}

func decode(value []byte) (*Command, error) {
	c := &Command{}
	if err := json.Unmarshal(value, c); err != nil {
		return nil, fmt.Errorf("read a command: %w", err)
	}
	if c.ID == "" || c.Home == "" || c.Device == "" || c.State == 0 {
		return nil, errors.New("read a command: it has no id, home, device or state")
	}
	return c, nil
}

// Request is what an app asks.
type Request struct {
	ID        string          `json:"id"`        // unique for the device; made when it is empty. A second request with it is the first
	Name      string          `json:"name"`      // What is to be done
	Arguments json.RawMessage `json:"arguments"` // any JSON
	Deadline  time.Time       `json:"deadline"`  // after which it is not to be done any more
	TTL       float64         `json:"ttl"`       // seconds until then, instead of it
	Home      string          `json:"home"`      // of those that have several
}

// ErrInvalid says that a request cannot be understood; its text says why.
var ErrInvalid = errors.New("invalid command")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// ParseRequest reads a request of JSON, strictly.
func ParseRequest(data []byte) (*Request, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	r := &Request{}
	if err := d.Decode(r); err != nil {
		return nil, invalid("%v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("something stands behind the object")
	}
	return r, nil
}

// idBytesMax bounds a command's id.
const idBytesMax = 64

// badID says what is wrong with an id, "" when nothing is. It stands in topics, paths and keys.
func badID(id string) string {
	if len(id) > idBytesMax {
		return fmt.Sprintf("has %d bytes; at most %d", len(id), idBytesMax)
	}
	if id == "events" {
		return "is a word of the API"
	}
	if strings.IndexFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) >= 0 {
		return "holds other than letters, digits, '-', '_' and '.'"
	}
	return ""
}

// command makes a command of a request.
func (c *Commands) command(r *Request, home, device, by string) (*Command, error) {
	now := c.instant()
	if why := names.Bad(home); why != "" {
		return nil, invalid("the home's name %s", why)
	}
	if why := names.Bad(device); why != "" {
		return nil, invalid("the device's name %s", why)
	}
	if why := badID(r.ID); why != "" {
		return nil, invalid("id %s", why)
	}
	if why := names.Bad(r.Name); why != "" {
		return nil, invalid("name %s", why)
	}
	var compact bytes.Buffer
	if len(r.Arguments) > 0 {
		if err := json.Compact(&compact, r.Arguments); err != nil {
			return nil, invalid("arguments: %v", err)
		}
	}
	if compact.Len() > c.ArgumentsMax {
		return nil, invalid("arguments have %d bytes; at most %d", compact.Len(), c.ArgumentsMax)
	}
	deadline := r.Deadline.UTC().Truncate(time.Microsecond)
	switch {
	case r.TTL < 0 || r.TTL > c.TTLMax.Seconds():
		return nil, invalid("ttl is %g s; want up to %g", r.TTL, c.TTLMax.Seconds())
	case !r.Deadline.IsZero() && r.TTL != 0:
		return nil, invalid("both deadline and ttl")
	case r.TTL > 0:
		deadline = now.Add(time.Duration(r.TTL * float64(time.Second)))
	case r.Deadline.IsZero():
		deadline = now.Add(c.TTL)
	case !deadline.After(now):
		return nil, invalid("deadline %s has passed", deadline.Format(time.RFC3339Nano))
	case deadline.Sub(now) > c.TTLMax:
		return nil, invalid("deadline %s is more than %s ahead", deadline.Format(time.RFC3339Nano), c.TTLMax)
	}
	id := r.ID
	if id == "" {
		id = newID()
	}
	return &Command{ID: id, Home: home, Device: device, Name: r.Name, Arguments: compact.Bytes(), Created: now, Deadline: deadline,
		By: by, Via: c.Gateway, State: Accepted, Changed: now, Gateway: c.Gateway}, nil
}

// instant is the present, unlike that of any other command of this gateway.
func (c *Commands) instant() time.Time {
	for {
		last, now := c.last.Load(), c.Now().UnixMicro()
		now = max(now, last+1)
		if c.last.CompareAndSwap(last, now) {
			return time.UnixMicro(now).UTC()
		}
	}
}

// order is what a hub is sent.
type order struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	Deadline  time.Time       `json:"deadline"`
}

// Message is a command as it is sent to a hub.
type Message struct {
	Topic   string
	Payload []byte    // JSON: id, name, arguments, deadline
	Expires time.Time // not sent after it
	ID      string
	Name    string
}

func (c *Command) message() (Message, error) {
	raw, err := json.Marshal(order{ID: c.ID, Name: c.Name, Arguments: c.Arguments, Deadline: c.Deadline})
	if err != nil {
		return Message{}, err
	}
	return Message{Topic: topic(c.Home, c.Device), Payload: raw, Expires: c.Deadline, ID: c.ID, Name: c.Name}, nil
}

// report is what a hub says of a command.
type report struct {
	State    string `json:"state"` // executed or failed
	Detail   string `json:"detail"`
	Executed any    `json:"executed_at"` // RFC 3339, or milliseconds since 1970
}

// detailBytesMax bounds what is kept of a hub's words.
const detailBytesMax = 1024

func parseReport(data []byte) (state State, detail string, at time.Time, err error) {
	var r report
	if err := json.Unmarshal(data, &r); err != nil {
		return 0, "", at, invalid("%v", err)
	}
	switch r.State {
	case "executed":
		state = Executed
	case "failed":
		state = Failed
	default:
		return 0, "", at, invalid("state is %.40q; want executed or failed", r.State)
	}
	switch v := r.Executed.(type) {
	case string:
		if at, err = time.Parse(time.RFC3339Nano, v); err != nil {
			return 0, "", at, invalid("executed_at is %.40q; want RFC 3339, or milliseconds since 1970", v)
		}
	case float64:
		at = time.UnixMilli(int64(v)).UTC()
	}
	if y := at.Year(); !at.IsZero() && (y < 2000 || y > 2200) {
		at = time.Time{} // a hub that does not know the time
	}
	detail = strings.ToValidUTF8(r.Detail, "�")
	if len(detail) > detailBytesMax {
		detail = strings.ToValidUTF8(detail[:detailBytesMax], "")
	}
	return state, detail, at.Truncate(time.Microsecond), nil
}
