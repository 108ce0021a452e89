package ingest

import (
	"fmt"
	"mime"
	"strings"
	"time"

	"hearthline/ingest/mqtt"
	"hearthline/ingest/names"
	"hearthline/ingest/payload"
	"hearthline/ingest/reason"
	"hearthline/ingest/wire"
)

// topicAliasMax is how many topic aliases a client may use.
const topicAliasMax = 16

// publish handles PUBLISH. Everything that may say "not now" comes before anything that changes.
func (s *session) publish(flags byte, body []byte, d *payload.Decoder) (wire.Hold, error) {
	var p mqtt.PublishPacket
	if err := mqtt.ParsePublish(s.version, flags, body, &p); err != nil {
		return wire.Hold{}, err
	}
	switch {
	case p.Qos == 2:
		return wire.Hold{}, mqtt.Broken(mqtt.CodeQoSUnsupported, "QoS 2; this gateway takes 0 and 1")
	case p.Retain && s.version == mqtt.V5:
		return wire.Hold{}, mqtt.Broken(mqtt.CodeRetainUnsupported, "a retained message")
	}
	topic, err := s.topicOf(&p)
	if err != nil {
		return wire.Hold{}, err
	}
	if h, err := s.window(&p); err != nil || !h.Empty() {
		return h, err
	}
	home, no := s.id.MayPublish(s.clientID, topic)
	if no != nil {
		return wire.Hold{}, s.reject(&p, no.Reason, mqtt.CodeNotAuthorized, "topic "+no.Detail)
	}
	if len(p.Payload) > s.g.PayloadBytesMax {
		return wire.Hold{}, mqtt.Broken(mqtt.CodeTooLarge, "a payload of %d bytes; at most %d", len(p.Payload), s.g.PayloadBytesMax)
	}
	if wait := s.overRate(len(p.Payload)); wait > 0 {
		return wire.Hold{AtMost: wait}, nil
	}
	device, format, isTelemetry := telemetryTopic(topic)
	if isTelemetry {
		taken, h, err := s.telemetry(&p, home, device, format, d)
		if err != nil || !h.Empty() || !taken {
			return h, err
		}
	} else {
		s.g.count.live.Add(1)
		if p.Qos == 1 {
			s.acknowledgeNow(p.Id, mqtt.CodeSuccess, "")
		}
	}
	now := time.Now()
	spend(s.id.Messages, now, 1)
	spend(s.id.Bytes, now, len(p.Payload))
	if s.g.listeners.Load() > 0 {
		s.g.fanOut(home, &mqtt.Message{Topic: topic, Payload: p.Payload, Qos: p.Qos, Props: p.Props.Forwarded(nil)}, s)
	}
	return wire.Hold{}, nil
}

// topicOf resolves a topic alias (MQTT 5, section 3.3.2.3.4) and checks the name.
func (s *session) topicOf(p *mqtt.PublishPacket) (string, error) {
	topic := names.View(p.Topic)
	if p.Props.Has(mqtt.PropTopicAlias) {
		a := int(p.Props.TopicAlias)
		if a > topicAliasMax {
			return "", mqtt.Broken(mqtt.CodeTopicAlias, "topic alias %d; at most %d", a, topicAliasMax)
		}
		if topic == "" {
			if a > len(s.aliases) || s.aliases[a-1] == "" {
				return "", mqtt.Broken(mqtt.CodeProtocolError, "topic alias %d was not set", a)
			}
			return s.aliases[a-1], nil
		}
		if why := mqtt.BadTopic(topic); why != "" {
			return "", mqtt.Broken(mqtt.CodeTopicName, "the topic %s", why)
		}
		for len(s.aliases) < a {
			s.aliases = append(s.aliases, "")
		}
		s.aliases[a-1] = strings.Clone(topic)
		return topic, nil
	}
	if why := mqtt.BadTopic(topic); why != "" {
		return "", mqtt.Broken(mqtt.CodeTopicName, "the topic %s", why)
	}
	return topic, nil
}

// window holds a client to the number of messages that may wait for the log. A version 5 client was told it and must
// keep to it; one of version 3.1.1 is not read from until there is room.
func (s *session) window(p *mqtt.PublishPacket) (wire.Hold, error) {
	if p.Qos == 0 {
		return wire.Hold{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.acks.len() < s.g.ReceiveMaximum {
		return wire.Hold{}, nil
	}
	if s.version == mqtt.V5 {
		return wire.Hold{}, mqtt.Broken(mqtt.CodeReceiveMaximum, "more than %d messages at once", s.g.ReceiveMaximum)
	}
	if s.space == nil {
		s.space = make(chan struct{})
	}
	return wire.Hold{Until: s.space}, nil
}

// overRate says how long the identity must wait before it may send so many bytes more.
func (s *session) overRate(bytes int) time.Duration {
	now := time.Now()
	wait := max(shortage(s.id.Messages, now, 1), shortage(s.id.Bytes, now, bytes))
	if wait > 0 {
		s.g.count.refused[reason.Rate].Add(1)
	}
	return wait
}

// telemetry decodes a payload and hands it in. taken is false when it was refused, and answered.
func (s *session) telemetry(p *mqtt.PublishPacket, home, device string, f payload.Format, d *payload.Decoder) (taken bool, h wire.Hold, err error) {
	if no := s.id.MayTelemetry(home, device); no != nil {
		return false, wire.Hold{}, s.reject(p, no.Reason, mqtt.CodeNotAuthorized, no.Detail)
	}
	if len(p.Props.ContentType) > 0 {
		media, _, err := mime.ParseMediaType(string(p.Props.ContentType))
		var known bool
		if f, known = formatOf(media); err != nil || !known {
			s.refusePayload(p, reason.Refuse(reason.Media, "content type %.80q; %s", p.Props.ContentType, mediaReason))
			return false, wire.Hold{}, nil
		}
	}
	rows, err := d.Decode(f, p.Payload, &payload.Scope{Home: home, Device: device, Now: s.g.clock.now(), RowsMax: s.g.RowsMax})
	if err != nil {
		s.refusePayload(p, payload.Malformed(err))
		return false, wire.Hold{}, nil
	}
	bad, first := countRefused(rows)
	if bad == len(rows) {
		s.g.countRows(rows)
		s.refusePayload(p, first)
		return false, wire.Hold{}, nil
	}
	if full := s.handIn(p, s.g.homeOf(home), rows, bad, first); full != nil {
		return false, wire.Hold{Until: full}, nil
	}
	s.g.count.messages.Add(1)
	s.g.countRows(rows)
	return true, wire.Hold{}, nil
}

// handIn offers the rows to their partition. The queue of acknowledgements is extended under the same lock as
// its entry's token is given away, and shortened again if the partition has no room.
func (s *session) handIn(p *mqtt.PublishPacket, to *gatherer, rows []payload.Row, bad int, first *reason.Refusal) <-chan struct{} {
	if p.Qos == 0 {
		return to.offer(rows, len(p.Payload), nil, 0)
	}
	a := ack{id: p.Id}
	if bad > 0 && s.explains && s.version == mqtt.V5 {
		a.why = fmt.Sprintf("%d of %d readings refused, the first: %v", bad, len(rows), first)
	}
	s.mu.Lock()
	token := s.acks.push(a)
	s.mu.Unlock()
	full := to.offer(rows, len(p.Payload), s, token)
	if full != nil {
		s.mu.Lock()
		s.acks.unpush()
		s.mu.Unlock()
	}
	return full
}

// unpush takes back the last push.
func (a *ackQueue) unpush() { a.q = a.q[:len(a.q)-1] }

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
func (s *session) refusePayload(p *mqtt.PublishPacket, r *reason.Refusal) {
	s.g.count.refused[r.Reason].Add(1)
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
	s.acknowledgeNow(p.Id, code, r.Error())
}

// reject answers a message that the client may not send. A version 5 client that asks for an acknowledgement is told
// in it; all others lose the connection, which is the only word there is for it: a positive acknowledgement would
// be a lie.
func (s *session) reject(p *mqtt.PublishPacket, cause reason.Reason, code byte, why string) error {
	if s.version == mqtt.V5 && p.Qos == 1 {
		s.g.count.refused[cause].Add(1)
		s.acknowledgeNow(p.Id, code, why)
		return nil
	}
	return mqtt.Broken(code, "%s", why)
}
