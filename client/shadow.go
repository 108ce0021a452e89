package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/eclipse/paho.golang/paho"
)

// Delta is what of a device's desired state differs from what was last reported of it.
type Delta struct {
	Home    string                     `json:"-"`
	Device  string                     `json:"-"`
	Version int64                      `json:"version"` // of the desired state
	State   map[string]json.RawMessage `json:"state"`   // property → what it shall be; of an object only the members that differ
}

// ErrState is a report or a wish that is no object.
var ErrState = errors.New("not the state of a device")

// Report says what a device is now: a struct or map that is a JSON object of properties, of which null removes one (a merge patch, RFC
// 7396). It puts that into the outbox; what is said of one device arrives in its order. Say everything once after a start, and then what
// changes. MQTT only.
func (c *Client) Report(ctx context.Context, device string, state any) error {
	return c.patch(ctx, device, "reported", state)
}

// Desire says what a device shall be, likewise: an app's wish; or that of a hub whose device was changed by hand or by a command, and
// which takes back what was desired before (null), before it reports.
func (c *Client) Desire(ctx context.Context, device string, state any) error {
	return c.patch(ctx, device, "desired", state)
}

// shadowTopic is the part of a topic that the topics of shadows have in common.
const shadowTopic = "/shadow/"

func (c *Client) patch(ctx context.Context, device, half string, state any) error {
	if err := c.open(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if strings.HasPrefix(c.URL, "https:") {
		return fmt.Errorf("%w: over HTTP it is PATCH /v1/devices/{device}/shadow; use mqtts:// or wss:// here", ErrState)
	}
	if err := (&Reading{Home: c.Home, Device: device, Metric: half}).check(); err != nil {
		return err
	}
	payload, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if len(payload) == 0 || payload[0] != '{' {
		return fmt.Errorf("%w: want a JSON object; this is %.40s", ErrState, payload)
	}
	return c.box.put([]*entry{{Home: c.Home, Device: device, Topic: "homes/" + c.Home + "/devices/" + device + shadowTopic + half, Payload: payload}})
}

// inOrder says that a message must not overtake another one: those of one device's shadow.
func inOrder(e *entry) bool { return strings.Contains(e.Topic, shadowTopic) }

// devicesMax bounds the devices whose deltas wait for a handler.
const devicesMax = 10_000

// deltas are those that wait: of a device the last one, and one handler at a time.
type deltas struct {
	mu      sync.Mutex
	waiting map[string]*Delta // by device; nil while its handler is at work and nothing waits
}

// differs takes a delta.
func (s *mqttSender) differs(home, device string, payload []byte) {
	d := &Delta{Home: home, Device: device}
	if err := json.Unmarshal(payload, d); err != nil || len(d.State) == 0 {
		s.c.Logger.Error("hearthline client: a delta that cannot be understood", "device", device, "error", err)
		return
	}
	w := &s.c.deltas
	w.mu.Lock()
	defer w.mu.Unlock()
	_, busy := w.waiting[device]
	if !busy && len(w.waiting) >= devicesMax {
		s.c.Logger.Error("hearthline client: deltas of too many devices wait; it is sent again when the hub connects again", "device", device)
		return
	}
	if w.waiting == nil {
		w.waiting = map[string]*Delta{}
	}
	w.waiting[device] = d
	if !busy {
		s.c.orders.Go(func() { s.c.comply(device) })
	}
}

// comply hands a device's deltas over until none waits.
func (c *Client) comply(device string) {
	w := &c.deltas
	for {
		w.mu.Lock()
		d := w.waiting[device]
		if d == nil || c.life.Err() != nil {
			delete(w.waiting, device)
			w.mu.Unlock()
			return
		}
		w.waiting[device] = nil
		w.mu.Unlock()
		c.guardedDelta(d)
	}
}

// guardedDelta keeps a handler's panic from ending the hub.
func (c *Client) guardedDelta(d *Delta) {
	defer func() {
		if p := recover(); p != nil {
			c.Logger.Error("hearthline client: the handler of deltas panicked", "device", d.Device, "panic", p)
		}
	}()
	c.Delta(c.life, *d)
}

// filters are what a connection subscribes to.
func (c *Client) filters() (all []paho.SubscribeOptions) {
	devices := c.Commands
	if len(devices) == 0 {
		devices = []string{"+"}
	}
	for _, d := range devices {
		if c.Command != nil {
			all = append(all, paho.SubscribeOptions{Topic: "homes/" + c.Home + "/devices/" + d + "/commands", QoS: 1})
		}
		if c.Delta != nil {
			all = append(all, paho.SubscribeOptions{Topic: "homes/" + c.Home + "/devices/" + d + shadowTopic + "delta", QoS: 1})
		}
	}
	return all
}
