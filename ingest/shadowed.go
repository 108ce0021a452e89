package ingest

import (
	"fmt"
	"strings"
	"time"

	"hearthline/ingest/commands"
	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/reason"
	"hearthline/ingest/session"
	"hearthline/ingest/shadow"
	"hearthline/ingest/wire"
)

// shadowTopic takes homes/{home}/devices/{device}/shadow[/{what}] apart. what is "" for the document itself.
func shadowTopic(topic string) (device, what string, ok bool) {
	home := identity.HomeOf(topic)
	if home == "" {
		return "", "", false
	}
	rest, ok := strings.CutPrefix(topic[len("homes/")+len(home)+1:], "devices/")
	if !ok {
		return "", "", false
	}
	device, rest, _ = strings.Cut(rest, "/")
	rest, what, _ = strings.Cut(rest, "/")
	return device, what, rest == "shadow"
}

// mayDelta says whether a filter may match the topics that deltas go by; mayShadow, those of documents.
func mayDelta(filter string) bool {
	return strings.HasSuffix(filter, "/delta") || strings.HasSuffix(filter, "#") || strings.HasSuffix(filter, "+")
}

func mayShadow(filter string) bool {
	return strings.HasSuffix(filter, "/shadow") || strings.HasSuffix(filter, "#") || strings.HasSuffix(filter, "+")
}

// shadow handles a PUBLISH that changes a shadow. Its acknowledgement means that the table has it. ok is false for other topics,
// and where there is no table.
func (c *connection) shadow(home, topic string, p *mqtt.PublishPacket) (ok bool, h wire.Hold, err error) {
	all := c.g.near.shadow
	device, what, is := shadowTopic(topic)
	if all == nil || !is {
		return false, wire.Hold{}, nil
	}
	half := shadow.Reported
	switch what {
	case "reported":
	case "desired":
		half = shadow.Desired
	default:
		return true, wire.Hold{}, c.reject(p, reason.Topic, mqtt.CodeNotAuthorized, "of a shadow's topics, clients publish to desired and reported")
	}
	if no := shadow.May(c.id, home, device, half); no != nil {
		return true, wire.Hold{}, c.reject(p, no.Reason, mqtt.CodeNotAuthorized, no.Detail)
	}
	u := shadow.Update{Home: strings.Clone(home), Device: strings.Clone(device), Half: half, // what they are of points into the packet
		Patch: append([]byte(nil), p.Payload...), Version: shadow.AnyVersion, By: c.id.User}
	if !all.Offer(u, func() func(error) { return c.later(p) }) {
		return true, wire.Hold{AtMost: 5 * time.Millisecond}, nil
	}
	now := time.Now()
	spend(c.id.Messages, now, 1)
	spend(c.id.Bytes, now, len(p.Payload))
	return true, wire.Hold{}, nil
}

// shadowed is this gateway as shadows use it: it implements shadow.Clients.
type shadowed struct{ g *Gateway }

// Listening implements shadow.Clients.
func (s shadowed) Listening(home, topic string) bool { return s.g.audience.Listening(home, topic) }

var jsonProps = textProperty(nil, mqtt.PropContentType, mediaJSON)

// Publish implements shadow.Clients. Other gateways publish it to their clients themselves.
func (s shadowed) Publish(home, topic string, payload []byte) {
	s.g.delivered(s.g.audience.Publish(home, &mqtt.Message{Topic: topic, Payload: payload, Qos: 1, Props: jsonProps}, nil))
}

// Hand implements shadow.Clients.
func (s shadowed) Hand(home, device, topic string, payload []byte, acked func()) (sent, noRoom int) {
	hubs := 0
	hub := func(t *session.Terms) bool {
		id, ok := t.Who.(*identity.Identity)
		if ok = ok && id.MayTelemetry(home, device) == nil; ok {
			hubs++
		}
		return ok
	}
	sent = s.g.audience.Hand(home, &mqtt.Message{Topic: topic, Payload: payload, Qos: 1, Props: jsonProps}, hub, acked)
	return sent, hubs - sent
}

// replayShadows gives a session the documents that a subscription takes, as if they were retained.
func (c *connection) replayShadows(home string, sub session.Subscription) {
	if c.g.near.shadow != nil && mayShadow(sub.Filter) {
		c.g.delivered(c.g.audience.Replay(home, c.session, sub, documents{c.g.near.shadow}))
	}
}

// documents are shadows as retained messages: it implements session.Retained.
type documents struct{ *shadow.Shadows }

// Set implements session.Retained: clients set shadows by other topics.
func (documents) Set(string, *mqtt.Message) error { return session.ErrRetainedFull }

// Match implements session.Retained.
func (d documents) Match(home, filter string, f func(*mqtt.Message)) {
	d.Replay(home, filter, func(topic string, payload []byte) {
		f(&mqtt.Message{Topic: topic, Payload: payload, Qos: 1, Retain: true, Props: jsonProps})
	})
}

// wished writes down what a user wanted of a device, among the steps of commands: there is no other way to see who did.
func (n *neighbours) wished(c shadow.Change) {
	n.audit.Write(&commands.Command{ID: fmt.Sprintf("desired-%d", c.Version), Home: c.Home, Device: c.Device, Name: "shadow.desired",
		Arguments: c.Patch, By: c.By, State: commands.Accepted, Created: c.At, Deadline: c.At, Changed: c.At, Gateway: n.shadow.Gateway})
}
