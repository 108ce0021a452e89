package ingest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"hearthline/ingest/commands"
	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/reason"
	"hearthline/ingest/shadow"
	"hearthline/ingest/table"
	"hearthline/ingest/wire"
)

// commandTopic takes homes/{home}/devices/{device}/commands[/{id}/status] apart. id is "" for a command itself.
func commandTopic(topic string) (device, id string, ok bool) {
	parts := strings.Split(topic, "/")
	switch {
	case len(parts) < 5 || parts[0] != "homes" || parts[2] != "devices" || parts[4] != "commands":
		return "", "", false
	case len(parts) == 5:
		return parts[3], "", true
	case len(parts) == 7 && parts[5] != "" && parts[6] == "status":
		return parts[3], parts[5], true
	}
	return "", "", false
}

// mayCommand says whether a filter may match the topics that commands go by.
func mayCommand(filter string) bool {
	return strings.HasSuffix(filter, "/commands") || strings.HasSuffix(filter, "#") || strings.HasSuffix(filter, "+")
}

// command handles a PUBLISH that asks for something, or reports what became of it. Its acknowledgement means that the table
// has it. ok is false for other topics, and where there is no table.
func (c *connection) command(home, topic string, p *mqtt.PublishPacket) (ok bool, h wire.Hold, err error) {
	n := &c.g.near
	device, id, is := commandTopic(topic)
	if n.desk == nil || !is {
		return false, wire.Hold{}, nil
	}
	var no *reason.Refusal
	if id == "" {
		no = c.id.MayCommand(home, device)
	} else {
		no = c.id.MayTelemetry(home, device)
	}
	if no != nil {
		return true, wire.Hold{}, c.reject(p, no.Reason, mqtt.CodeNotAuthorized, no.Detail)
	}
	select {
	case n.asking <- struct{}{}:
	default:
		return true, wire.Hold{AtMost: 5 * time.Millisecond}, nil
	}
	answer := c.later(p)
	home, device, id = strings.Clone(home), strings.Clone(device), strings.Clone(id) // they point into the packet
	payload := append([]byte(nil), p.Payload...)
	ask := func(ctx context.Context) error { return n.desk.Report(ctx, home, device, id, payload) }
	if id == "" {
		respond := c.responder(home, p)
		ask = func(ctx context.Context) error { return c.ask(ctx, home, device, payload, respond) }
	} else {
		c.g.fanOut(home, &mqtt.Message{Topic: topic, Payload: p.Payload, Qos: p.Qos, Props: p.Props.Forwarded(nil)}, c.session)
	}
	c.g.tasks.Go(func() {
		defer func() { <-n.asking }()
		ctx, cancel := context.WithTimeout(c.g.live, c.g.StoreTimeout)
		defer cancel()
		answer(ask(ctx))
	})
	return true, wire.Hold{}, nil
}

// ask accepts a command, and has every step of it told to whoever listens on the response topic.
func (c *connection) ask(ctx context.Context, home, device string, payload []byte, respond func(any)) error {
	r, err := commands.ParseRequest(payload)
	if err == nil && r.Home != "" && r.Home != home {
		err = commands.ErrInvalid
	}
	if err != nil {
		respond(failure{Error: err.Error()})
		return err
	}
	got, created, err := c.g.near.desk.Submit(ctx, r, home, device, c.id.User, func(step *commands.Command) { respond(step) })
	switch {
	case err != nil:
		respond(failure{ID: r.ID, Error: err.Error()})
	case !created:
		respond(got) // its steps go to whoever asked first
	}
	return err
}

// failure is the response to a command that was not accepted.
type failure struct {
	ID    string `json:"id,omitempty"`
	Error string `json:"error"`
}

// responder publishes to the response topic of a request (MQTT 5, section 4.10), if there is one that its client may
// subscribe to.
func (c *connection) responder(home string, p *mqtt.PublishPacket) func(any) {
	topic := string(p.Props.ResponseTopic)
	if at, no := c.id.MaySubscribe(c.session.Key.Client, topic); topic == "" || mqtt.BadTopic(topic) != "" || no != nil || at != home {
		return func(any) {}
	}
	props := textProperty(nil, mqtt.PropContentType, mediaJSON)
	if p.Props.Has(mqtt.PropCorrelationData) {
		props = textProperty(props, mqtt.PropCorrelationData, string(p.Props.Binary(mqtt.PropCorrelationData)))
	}
	g := c.g
	return func(v any) {
		raw, err := json.Marshal(v)
		if err != nil {
			g.Logger.Error("gateway: a response cannot be written", "err", err)
			return
		}
		g.fanOut(home, &mqtt.Message{Topic: topic, Payload: raw, Qos: 1, Props: props}, nil)
	}
}

// textProperty writes a property that is one text or binary; with id 0 only its value.
func textProperty(b []byte, id byte, text string) []byte {
	if id != 0 {
		b = append(b, id)
	}
	return append(binary.BigEndian.AppendUint16(b, uint16(len(text))), text...) // #nosec G115 -- what came in a packet, or is ours
}

// later takes a message's place in the queue of acknowledgements, and gives what answers it. The answer may come when the
// connection has ended. MQTT 3.1.1 cannot say that the log does not take it: the connection ends, and the client sends it again
// on the next one.
func (c *connection) later(p *mqtt.PublishPacket) func(error) {
	if p.Qos == 0 {
		return func(error) {}
	}
	id, qos := p.ID, p.Qos
	c.mu.Lock()
	token := c.acks.push(ack{id: id, kind: ackKind(qos)})
	c.mu.Unlock()
	return func(err error) {
		code, why := codeOf(err)
		if code == mqtt.CodeUnspecified && c.terms.Version == mqtt.V311 {
			if qos == 2 {
				c.session.Unpend(id)
			}
			c.link.FinishApart()
			return
		}
		if !c.explains {
			why = ""
		}
		c.mu.Lock()
		c.acks.answer(token, code, why)
		c.mu.Unlock()
		if c.durable(token) {
			c.settle()
		}
	}
}

// codeOf is how MQTT 5 says what became of a command, or of a change of a shadow.
func codeOf(err error) (code byte, why string) {
	switch {
	case err == nil:
		return mqtt.CodeSuccess, ""
	case errors.Is(err, commands.ErrInvalid), errors.Is(err, commands.ErrConflict), errors.Is(err, shadow.ErrInvalid):
		return mqtt.CodePayloadFormat, err.Error()
	case errors.Is(err, commands.ErrTooMany), errors.Is(err, shadow.ErrTooMany), errors.Is(err, table.ErrFull):
		return mqtt.CodeQuota, err.Error()
	}
	return mqtt.CodeUnspecified, "the log does not take it now; send it again, a command with its id"
}

// answer says what a message is answered with.
func (a *ackQueue) answer(token uint64, code byte, why string) {
	if i := token - a.base; i < uint64(a.len()) {
		a.q[a.head+int(i)].code, a.q[a.head+int(i)].why = code, why // #nosec G115 -- an index
	}
}

// ready tells that a hub here hears commands or deltas: those that wait for it are sent.
func (c *connection) ready(filter string) {
	n := &c.g.near
	home := identity.HomeOf(filter)
	if n.desk == nil || c.id.MayTelemetry(home, "") != nil {
		return
	}
	if mayCommand(filter) {
		c.g.tasks.Go(func() { n.desk.Connected(home, filter) })
	}
	if mayDelta(filter) {
		c.g.tasks.Go(func() { n.shadow.Connected(home, filter) })
	}
}
