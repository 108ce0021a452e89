package simulator

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// desk is what a hub knows of commands: whom it has obeyed, and what it has still to say. It outlives connections: a command
// that comes again is not executed again, and a report that was not acknowledged is sent again.
type desk struct {
	done    map[string]string // id → state
	order   []string          // ids of done, the oldest first
	reports []unreported
	states  states
}

// unreported is a report that the gateway has not acknowledged.
type unreported struct {
	topic, payload string
	packet         uint16 // its id on this connection; 0: not sent on it
}

// Limits of a desk: real hubs have little memory, too.
const (
	obeyedMax  = 256
	reportsMax = 64
)

// order is a command as it comes.
type order struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments"`
	Deadline  time.Time       `json:"deadline"`
}

// appendSubscribe writes SUBSCRIBE (3.8) to some filters, QoS 1.
func appendSubscribe(b []byte, version byte, id uint16, filters ...string) []byte {
	n := 2
	for _, filter := range filters {
		n += 2 + len(filter) + 1
	}
	if version == version5 {
		n++
	}
	b = appendHeader(b, packetSubscribe<<4|2, n)
	b = binary.BigEndian.AppendUint16(b, id)
	if version == version5 {
		b = append(b, 0) // no properties
	}
	for _, filter := range filters {
		b = append(appendString(b, filter), 1)
	}
	return b
}

// delivery is a PUBLISH that a hub is sent.
type delivery struct {
	topic   string
	id      uint16 // 0: QoS 0
	payload []byte
}

// delivery reads a PUBLISH (3.3).
func (p packet) delivery(version byte) (d delivery, err error) {
	bad := fmt.Errorf("%w: a PUBLISH that cannot be read", errProtocol)
	b := p.body
	if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
		return d, bad
	}
	n := int(binary.BigEndian.Uint16(b))
	d.topic, b = string(b[2:2+n]), b[2+n:]
	if p.flags>>1&3 > 0 {
		if len(b) < 2 {
			return d, bad
		}
		d.id, b = binary.BigEndian.Uint16(b), b[2:]
	}
	if version == version5 {
		n, used := binary.Uvarint(b)
		if used <= 0 || uint64(len(b)-used) < n {
			return d, bad
		}
		b = b[used+int(n):] // #nosec G115 -- less than the body
	}
	d.payload = b
	return d, nil
}

// attend subscribes to the commands and deltas of the home, and says again what was not acknowledged, and what its devices are.
func (h *hub) attend(l *link) error {
	for i := range h.desk.reports {
		h.desk.reports[i].packet = 0
	}
	if err := h.sayAll(); err != nil {
		return err
	}
	devices := "homes/" + h.plan.name + "/devices/+"
	return l.write(appendSubscribe(nil, l.version, h.nextID(), devices+"/commands", devices+deltaSuffix))
}

// heard takes what is no answer to a reading.
func (h *hub) heard(l *link, p packet) error {
	if p.kind == packetSuback {
		return h.report(l)
	}
	return h.obey(l, p)
}

func (h *hub) nextID() uint16 {
	if h.id++; h.id == 0 {
		h.id = 1
	}
	return h.id
}

// obey takes a command, or a delta. A command is executed once, and not after its deadline.
func (h *hub) obey(l *link, p packet) error {
	d, err := p.delivery(l.version)
	if err != nil {
		return err
	}
	if d.id != 0 {
		ack := appendHeader(nil, packetPuback<<4, 2)
		if err := l.write(binary.BigEndian.AppendUint16(ack, d.id)); err != nil {
			return err
		}
	}
	if strings.HasSuffix(d.topic, deltaSuffix) {
		return h.comply(l, d)
	}
	var o order
	if !strings.HasSuffix(d.topic, "/commands") || json.Unmarshal(d.payload, &o) != nil || o.ID == "" || strings.ContainsAny(o.ID, "/+#") {
		return nil // nothing that a hub can answer
	}
	state, again := h.desk.done[o.ID]
	now := time.Now()
	detail := ""
	if !again {
		state = "executed"
		if !o.Deadline.IsZero() && now.After(o.Deadline) {
			state, detail = "failed", "it came after its deadline"
		}
		h.desk.remember(o.ID, state)
		if state == "executed" {
			h.r.count.executed.Add(1)
			if err := h.set(d.topic, &o); err != nil {
				return err
			}
		} else {
			h.r.count.tooLate.Add(1)
		}
	} else {
		h.r.count.repeated.Add(1)
	}
	report, err := json.Marshal(map[string]any{"state": state, "detail": detail, "executed_at": now.UTC()})
	if err != nil {
		return err
	}
	if len(h.desk.reports) < reportsMax {
		h.desk.reports = append(h.desk.reports, unreported{topic: d.topic + "/" + o.ID + "/status", payload: string(report)})
	}
	return h.report(l)
}

// set does what the command set asks for: the device becomes what the arguments say, and its hub says so. What was desired before
// would undo it, and is taken back.
func (h *hub) set(topic string, o *order) error {
	var what map[string]json.RawMessage
	device := strings.TrimSuffix(strings.TrimPrefix(topic, "homes/"+h.plan.name+"/devices/"), "/commands")
	if o.Name != "set" || json.Unmarshal(o.Arguments, &what) != nil || strings.Contains(device, "/") {
		return nil
	}
	if err := h.takeBack(device, what); err != nil {
		return err
	}
	return h.become(device, what)
}

func (d *desk) remember(id, state string) {
	if d.done == nil {
		d.done = map[string]string{}
	}
	if len(d.order) == obeyedMax {
		delete(d.done, d.order[0])
		d.order = d.order[1:]
	}
	d.done[id], d.order = state, append(d.order, id)
}

// report sends what this connection has not been sent yet.
func (h *hub) report(l *link) error {
	for i := range h.desk.reports {
		r := &h.desk.reports[i]
		if r.packet != 0 {
			continue
		}
		r.packet = h.nextID()
		b := appendPublishHead(nil, l.version, false, r.topic, r.packet, len(r.payload))
		if err := l.write(append(b, r.payload...)); err != nil {
			return err
		}
	}
	return nil
}

// reported takes the acknowledgement of a report, and says whether it was one.
func (h *hub) reported(id uint16) bool {
	for i := range h.desk.reports {
		if r := &h.desk.reports[i]; r.packet == id {
			h.desk.reports = append(h.desk.reports[:i], h.desk.reports[i+1:]...)
			return true
		}
	}
	return false
}
