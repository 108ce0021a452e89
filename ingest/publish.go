package ingest

import (
	"errors"
	"fmt"
	"mime"
	"strings"
	"time"

	"hearthline/flow"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/names"
	"hearthline/ingest/payload"
	"hearthline/ingest/reason"
	"hearthline/ingest/wire"
)

// topicAliasMax is how many topic aliases a client may use.
const topicAliasMax = 16

// publish handles PUBLISH. Everything that may say "not now" comes before anything that changes.
func (c *connection) publish(flags byte, body []byte, d *payload.Decoder) (h wire.Hold, err error) {
	var p mqtt.PublishPacket
	taken := false
	if err := mqtt.ParsePublish(c.terms.Version, flags, body, &p); err != nil {
		return wire.Hold{}, err
	}
	topic, err := c.topicOf(&p)
	if err != nil {
		return wire.Hold{}, err
	}
	if p.Qos == 2 {
		taken, wait := c.session.Seen(p.ID)
		if wait != nil { // it came before, on a connection that broke, and the log does not have it yet
			return wire.Hold{Until: wait}, nil
		}
		if taken {
			c.acknowledgeNow(&p, mqtt.CodeSuccess, "")
			return wire.Hold{}, nil
		}
	}
	if h, err := c.window(&p); err != nil || !h.Empty() {
		return h, err
	}
	home, no := c.id.MayPublish(c.session.Key.Client, topic)
	if no != nil {
		return wire.Hold{}, c.reject(&p, no.Reason, mqtt.CodeNotAuthorized, "topic "+no.Detail)
	}
	if len(p.Payload) > c.g.PayloadBytesMax {
		return wire.Hold{}, mqtt.Broken(mqtt.CodeTooLarge, "a payload of %d bytes; at most %d", len(p.Payload), c.g.PayloadBytesMax)
	}
	now := time.Now()
	if wait := c.overRate(now, len(p.Payload)); wait > 0 {
		return wire.Hold{AtMost: wait}, nil
	}
	if p.Qos == 2 {
		if !c.session.Pend(&c.terms, p.ID) {
			return wire.Hold{}, errTakenOver
		}
		defer func() {
			if !taken {
				c.session.Unpend(p.ID)
			}
		}()
	}
	h, taken, err = c.take(now, home, topic, &p, d)
	return h, err
}

var errTakenOver = errors.New("the session has another connection")

// take takes a message that the client may publish.
func (c *connection) take(now time.Time, home, topic string, p *mqtt.PublishPacket, d *payload.Decoder) (h wire.Hold, taken bool, err error) {
	device, format, isTelemetry := telemetryTopic(topic)
	if isTelemetry {
		taken, h, err := c.telemetry(p, home, device, format, d)
		if err != nil || !h.Empty() || !taken {
			return h, false, err
		}
	} else if ok, h, err := c.command(home, topic, p); ok {
		return h, err == nil && h.Empty(), err
	} else if ok, h, err := c.shadow(home, topic, p); ok {
		return h, err == nil && h.Empty(), err
	}
	spend(c.id.Messages, now, 1)
	spend(c.id.Bytes, now, len(p.Payload))
	c.relay(home, topic, p, isTelemetry, now)
	return wire.Hold{}, true, nil
}

// relay hands a message to the home's subscribers, and keeps it if it is to be retained. Telemetry is answered when the log has
// it; anything else is now.
func (c *connection) relay(home, topic string, p *mqtt.PublishPacket, isTelemetry bool, now time.Time) {
	answer := !isTelemetry && p.Qos > 0
	if !isTelemetry {
		c.g.count.live.Add(1)
	}
	if p.Retain || c.g.audience.Len() > 0 || c.g.heardElsewhere() {
		m := mqtt.Message{Topic: topic, Payload: p.Payload, Qos: p.Qos, Retain: p.Retain, Props: p.Props.Forwarded(nil)}
		if p.Props.Has(mqtt.PropMessageExpiry) {
			m.Expires = now.Add(time.Duration(p.Props.MessageExpiry) * time.Second)
		}
		if p.Retain && !c.g.retain(home, &m) && answer && c.terms.Version == mqtt.V5 {
			c.acknowledgeNow(p, mqtt.CodeQuota, "the home has as many retained messages as it may")
			return
		}
		c.g.fanOut(home, &m, c.session)
	}
	if answer {
		c.acknowledgeNow(p, mqtt.CodeSuccess, "")
	}
}

// topicOf resolves a topic alias (MQTT 5, section 3.3.2.3.4) and checks the name.
func (c *connection) topicOf(p *mqtt.PublishPacket) (string, error) {
	topic := names.View(p.Topic)
	if p.Props.Has(mqtt.PropTopicAlias) {
		a := int(p.Props.TopicAlias)
		if a > topicAliasMax {
			return "", mqtt.Broken(mqtt.CodeTopicAlias, "topic alias %d; at most %d", a, topicAliasMax)
		}
		if topic == "" {
			if a > len(c.aliases) || c.aliases[a-1] == "" {
				return "", mqtt.Broken(mqtt.CodeProtocolError, "topic alias %d was not set", a)
			}
			return c.aliases[a-1], nil
		}
		if why := mqtt.BadTopic(topic); why != "" {
			return "", mqtt.Broken(mqtt.CodeTopicName, "the topic %s", why)
		}
		for len(c.aliases) < a {
			c.aliases = append(c.aliases, "")
		}
		c.aliases[a-1] = strings.Clone(topic)
		return topic, nil
	}
	if why := mqtt.BadTopic(topic); why != "" {
		return "", mqtt.Broken(mqtt.CodeTopicName, "the topic %s", why)
	}
	return topic, nil
}

// window holds a client to the number of messages that may wait for the log. A version 5 client was told it and must
// keep to it; one of version 3.1.1 is not read from until there is room.
func (c *connection) window(p *mqtt.PublishPacket) (wire.Hold, error) {
	if p.Qos == 0 {
		return wire.Hold{}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	open := c.acks.len()
	if c.terms.Version == mqtt.V5 {
		open += c.unreleased // section 4.9: a QoS 2 message counts until PUBCOMP
	}
	if open < c.g.ReceiveMaximum {
		return wire.Hold{}, nil
	}
	if c.terms.Version == mqtt.V5 {
		return wire.Hold{}, mqtt.Broken(mqtt.CodeReceiveMaximum, "more than %d messages at once", c.g.ReceiveMaximum)
	}
	if c.space == nil {
		c.space = make(chan struct{})
	}
	return wire.Hold{Until: c.space}, nil
}

// overRate says how long the identity must wait before it may send so many bytes more.
func (c *connection) overRate(now time.Time, bytes int) time.Duration {
	wait := max(shortage(c.id.Messages, now, 1), shortage(c.id.Bytes, now, bytes))
	if wait > 0 {
		c.g.count.refused[reason.Rate].Add(1)
	}
	return wait
}

// telemetry decodes a payload and hands it in. taken is false when it was refused, and answered.
func (c *connection) telemetry(p *mqtt.PublishPacket, home, device string, f payload.Format, d *payload.Decoder) (taken bool, h wire.Hold, err error) {
	if no := c.id.MayTelemetry(home, device); no != nil {
		return false, wire.Hold{}, c.reject(p, no.Reason, mqtt.CodeNotAuthorized, no.Detail)
	}
	if len(p.Props.ContentType) > 0 {
		media, _, err := mime.ParseMediaType(string(p.Props.ContentType))
		var known bool
		if f, known = formatOf(media); err != nil || !known {
			c.refusePayload(p, reason.Refuse(reason.Media, "content type %.80q; %s", p.Props.ContentType, mediaReason))
			return false, wire.Hold{}, nil
		}
	}
	rows, err := d.Decode(f, p.Payload, &payload.Scope{Home: home, Device: device, Now: c.g.clock.now(), RowsMax: c.g.RowsMax})
	if err != nil {
		c.refusePayload(p, payload.Malformed(err))
		return false, wire.Hold{}, nil
	}
	bad, first := countRefused(rows)
	if bad == len(rows) {
		c.g.countRows(rows)
		c.refusePayload(p, first)
		return false, wire.Hold{}, nil
	}
	if full := c.handIn(p, c.g.homeOf(home), rows, bad, first); full != nil {
		return false, wire.Hold{Until: full}, nil
	}
	c.g.count.messages.Add(1)
	c.g.countRows(rows)
	return true, wire.Hold{}, nil
}

// handIn offers the rows to their partition. The queue of acknowledgements is extended under the same lock as
// its entry's token is given away, and shortened again if the partition has no room.
func (c *connection) handIn(p *mqtt.PublishPacket, to *gatherer, rows []payload.Row, bad int, first *reason.Refusal) <-chan struct{} {
	if p.Qos == 0 {
		return to.offer(rows, len(p.Payload), nil, 0, c.traces(p)...)
	}
	a := ack{id: p.ID, kind: ackKind(p.Qos)}
	if bad > 0 && c.explains && c.terms.Version == mqtt.V5 {
		a.why = fmt.Sprintf("%d of %d readings refused, the first: %v", bad, len(rows), first)
	}
	c.mu.Lock()
	token := c.acks.push(a)
	c.mu.Unlock()
	full := to.offer(rows, len(p.Payload), c, token, c.traces(p)...)
	if full != nil {
		c.mu.Lock()
		c.acks.unpush()
		c.mu.Unlock()
	}
	return full
}

// traceProperty is how the user property traceparent begins: identifier, length, name.
const traceProperty = "\x26\x00\x0btraceparent"

// traces gives the traceparent of a message, where somebody traces and it has one that is sampled. What only looks like one, in
// another property's value, would be linked to, and no more.
func (c *connection) traces(p *mqtt.PublishPacket) []string {
	if c.g.Tracer == nil {
		return nil
	}
	_, rest, ok := strings.Cut(names.View(p.Props.Raw), traceProperty)
	if !ok || len(rest) < 2+flow.TraceparentBytes {
		return nil
	}
	return c.g.traced(rest[2 : 2+flow.TraceparentBytes])
}

func countRefused(rows []payload.Row) (n int, first *reason.Refusal) {
	for i := range rows {
		if r := rows[i].Refused; r != nil {
			if n == 0 {
				first = r
			}
			n++
		}
	}
	return n, first
}

// refusePayload answers a message of which nothing can be used. It is answered, not held against the connection: to
// send it again would not help, and what comes after it may be good. Version 3.1.1 can only say yes; the
// gateway's counters know.
func (c *connection) refusePayload(p *mqtt.PublishPacket, r *reason.Refusal) {
	c.g.count.refused[r.Reason].Add(1)
	if p.Qos == 0 {
		return
	}
	code := byte(mqtt.CodePayloadFormat)
	switch r.Reason {
	case reason.Home, reason.Device:
		code = mqtt.CodeNotAuthorized
	case reason.Payload:
		code = mqtt.CodeQuota
	}
	c.acknowledgeNow(p, code, r.Error())
}

// reject answers a message that the client may not send. A version 5 client that asks for an acknowledgement is told
// in it; all others lose the connection, which is the only word there is for it: a positive acknowledgement would
// be a lie.
func (c *connection) reject(p *mqtt.PublishPacket, cause reason.Reason, code byte, why string) error {
	if c.terms.Version == mqtt.V5 && p.Qos > 0 {
		c.g.count.refused[cause].Add(1)
		c.acknowledgeNow(p, code, why)
		return nil
	}
	return mqtt.Broken(code, "%s", why)
}
