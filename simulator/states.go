package simulator

import (
	"encoding/json"
	"strconv"
	"strings"
)

// What a hub knows of its devices' states: what they were told to be. It forgets them when the simulator ends; then what is desired
// of them comes again.

// statesMax bounds the devices that a hub knows a state of; there are no more in a simulated home, but anybody may name one.
const statesMax = 64

// states are by device, a property's value as the JSON it came in.
type states map[string]map[string]json.RawMessage

// deltaSuffix ends the topics that hubs hear deltas on.
const deltaSuffix = "/shadow/delta"

// become sets properties of a device, and says so to the gateway.
func (h *hub) become(device string, what map[string]json.RawMessage) error {
	of := h.desk.states[device]
	if of == nil {
		if len(h.desk.states) >= statesMax || len(what) == 0 {
			return nil
		}
		if h.desk.states == nil {
			h.desk.states = states{}
		}
		of = map[string]json.RawMessage{}
		h.desk.states[device] = of
	}
	for name, v := range what {
		of[name] = append(json.RawMessage(nil), v...) // it lies in the inbox
	}
	return h.say(device, what)
}

// say queues a report of a device's state.
func (h *hub) say(device string, what map[string]json.RawMessage) error {
	return h.patch(device, "reported", what)
}

// takeBack queues that some properties of a device are not desired any more.
func (h *hub) takeBack(device string, what map[string]json.RawMessage) error {
	none := map[string]json.RawMessage{}
	for name := range what {
		none[name] = json.RawMessage("null")
	}
	return h.patch(device, "desired", none)
}

func (h *hub) patch(device, half string, what map[string]json.RawMessage) error {
	payload, err := json.Marshal(what)
	if err != nil {
		return err
	}
	if len(h.desk.reports) < reportsMax {
		h.desk.reports = append(h.desk.reports, unreported{topic: "homes/" + h.plan.name + "/devices/" + device + "/shadow/" + half, payload: string(payload)})
	}
	return nil
}

// sayAll queues what all devices are, for a gateway that may know something else. What waits already is said by it.
func (h *hub) sayAll() error {
	h.desk.reports = dropStates(h.desk.reports)
	if h.r.s.States && h.desk.states == nil {
		h.desk.states = states{}
		for i := range h.plan.devices() {
			level := strconv.Itoa(int(h.plan.dice.with(uint64(i)).between(0, 101))) // #nosec G115 -- a device's number
			h.desk.states[h.plan.device(int(i))] = map[string]json.RawMessage{"level": json.RawMessage(level), "firmware": json.RawMessage(`"1.4.2"`)}
		}
	}
	for device, what := range h.desk.states {
		if err := h.say(device, what); err != nil {
			return err
		}
	}
	return nil
}

// dropStates takes reports of states out: all are said anew.
func dropStates(all []unreported) []unreported {
	kept := all[:0]
	for _, r := range all {
		if !strings.HasSuffix(r.topic, "/shadow/reported") {
			kept = append(kept, r)
		}
	}
	return kept
}

// delta is what differs between what a device is and what it shall be.
type delta struct {
	State map[string]json.RawMessage `json:"state"`
}

// comply makes a device what it shall be.
func (h *hub) comply(l *link, d delivery) error {
	device := strings.TrimSuffix(strings.TrimPrefix(d.topic, "homes/"+h.plan.name+"/devices/"), deltaSuffix)
	var asked delta
	if strings.Contains(device, "/") || json.Unmarshal(d.payload, &asked) != nil || len(asked.State) == 0 {
		return nil // nothing that a hub can do
	}
	h.r.count.complied.Add(1)
	if err := h.become(device, asked.State); err != nil {
		return err
	}
	return h.report(l)
}
