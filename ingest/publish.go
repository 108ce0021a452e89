package ingest

import (
	"fmt"
	"mime"
	"strings"
	"time"
)

// topicAliasMax is how many topic aliases a client may use.
const topicAliasMax = 16

// publish handles PUBLISH. Everything that may say "not now" comes before anything that changes.
func (s *session) publish(flags byte, body []byte, d *decoder) (hold, error) {
	var p publishPacket
	if err := parsePublish(s.version, flags, body, &p); err != nil {
		return hold{}, err
	}
	switch {
	case p.qos == 2:
		return hold{}, broken(rcQoSUnsupported, "QoS 2; this gateway takes 0 and 1")
	case p.retain && s.version == v5:
		return hold{}, broken(rcRetainUnsupported, "a retained message")
	}
	topic, err := s.topicOf(&p)
	if err != nil {
		return hold{}, err
	}
	if h, err := s.window(&p); err != nil || !h.empty() {
		return h, err
	}
	if !inHome(topic, s.id.Home) {
		return hold{}, s.reject(&p, ReasonTopic, rcNotAuthorized, fmt.Sprintf("topic %.80q is not under homes/%s/", topic, s.id.Home))
	}
	if len(p.payload) > s.g.PayloadBytesMax {
		return hold{}, broken(rcTooLarge, "a payload of %d bytes; at most %d", len(p.payload), s.g.PayloadBytesMax)
	}
	if wait := s.overRate(len(p.payload)); wait > 0 {
		return hold{atMost: wait}, nil
	}
	device, format, isTelemetry := telemetryTopic(topic, s.id.Home)
	if isTelemetry {
		taken, h, err := s.telemetry(&p, device, format, d)
		if err != nil || !h.empty() || !taken {
			return h, err
		}
	} else {
		s.g.count.live.Add(1)
		if p.qos == 1 {
			s.acknowledgeNow(p.id, rcSuccess, "")
		}
	}
	now := time.Now()
	spend(s.id.messages, now, 1)
	spend(s.id.bytes, now, len(p.payload))
	if s.g.listeners.Load() > 0 {
		s.g.fanOut(s.id.Home, &message{topic: topic, payload: p.payload, qos: p.qos, props: p.props.forwarded(nil)}, s)
	}
	return hold{}, nil
}

// topicOf resolves a topic alias (MQTT 5, section 3.3.2.3.4) and checks the name.
func (s *session) topicOf(p *publishPacket) (string, error) {
	topic := view(p.topic)
	if p.props.has(propTopicAlias) {
		a := int(p.props.topicAlias)
		if a > topicAliasMax {
			return "", broken(rcTopicAlias, "topic alias %d; at most %d", a, topicAliasMax)
		}
		if topic == "" {
			if a > len(s.aliases) || s.aliases[a-1] == "" {
				return "", broken(rcProtocolError, "topic alias %d was not set", a)
			}
			return s.aliases[a-1], nil
		}
		if why := badTopic(topic); why != "" {
			return "", broken(rcTopicName, "the topic %s", why)
		}
		for len(s.aliases) < a {
			s.aliases = append(s.aliases, "")
		}
		s.aliases[a-1] = strings.Clone(topic)
		return topic, nil
	}
	if why := badTopic(topic); why != "" {
		return "", broken(rcTopicName, "the topic %s", why)
	}
	return topic, nil
}

// window holds a client to the number of messages that may wait for the log. A version 5 client was told it and must
// keep to it; one of version 3.1.1 is not read from until there is room.
func (s *session) window(p *publishPacket) (hold, error) {
	if p.qos == 0 {
		return hold{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.acks.len() < s.g.ReceiveMaximum {
		return hold{}, nil
	}
	if s.version == v5 {
		return hold{}, broken(rcReceiveMaximum, "more than %d messages at once", s.g.ReceiveMaximum)
	}
	if s.space == nil {
		s.space = make(chan struct{})
	}
	return hold{until: s.space}, nil
}

// overRate says how long the identity must wait before it may send so many bytes more.
func (s *session) overRate(bytes int) time.Duration {
	now := time.Now()
	wait := max(shortage(s.id.messages, now, 1), shortage(s.id.bytes, now, bytes))
	if wait > 0 {
		s.g.count.refused[ReasonRate].Add(1)
	}
	return wait
}

// telemetry decodes a payload and hands it in. taken is false when it was refused, and answered.
func (s *session) telemetry(p *publishPacket, device string, f format, d *decoder) (taken bool, h hold, err error) {
	if s.id.Role != RoleHub {
		return false, hold{}, s.reject(p, ReasonTopic, rcNotAuthorized, "these credentials may not send telemetry")
	}
	if !s.id.sends(device) {
		return false, hold{}, s.reject(p, ReasonDevice, rcNotAuthorized, fmt.Sprintf("device %.40q is not one of these credentials", device))
	}
	if len(p.props.contentType) > 0 {
		media, _, err := mime.ParseMediaType(string(p.props.contentType))
		var known bool
		if f, known = formatOf(media); err != nil || !known {
			s.refusePayload(p, refuse(ReasonMedia, "content type %.80q; %s", p.props.contentType, mediaReason))
			return false, hold{}, nil
		}
	}
	home := s.g.homeOf(s.id.Home)
	rows, err := d.decode(f, p.payload, &scope{home: s.id.Home, device: device, now: s.g.clock.now(), rowsMax: s.g.RowsMax})
	if err != nil {
		s.refusePayload(p, malformed(err))
		return false, hold{}, nil
	}
	bad, first := countRefused(rows)
	if bad == len(rows) {
		s.g.countRows(rows)
		s.refusePayload(p, first)
		return false, hold{}, nil
	}
	if full := s.handIn(p, home, rows, bad, first); full != nil {
		return false, hold{until: full}, nil
	}
	s.g.count.messages.Add(1)
	s.g.countRows(rows)
	return true, hold{}, nil
}

// handIn offers the rows to their partition. The queue of acknowledgements is extended under the same lock as
// its entry's token is given away, and shortened again if the partition has no room.
func (s *session) handIn(p *publishPacket, to *gatherer, rows []row, bad int, first *refusal) <-chan struct{} {
	if p.qos == 0 {
		return to.offer(rows, len(p.payload), nil, 0)
	}
	a := ack{id: p.id}
	if bad > 0 && s.explains && s.version == v5 {
		a.why = fmt.Sprintf("%d of %d readings refused, the first: %v", bad, len(rows), first)
	}
	s.mu.Lock()
	token := s.acks.push(a)
	s.mu.Unlock()
	full := to.offer(rows, len(p.payload), s, token)
	if full != nil {
		s.mu.Lock()
		s.acks.unpush()
		s.mu.Unlock()
	}
	return full
}

// unpush takes back the last push.
func (a *ackQueue) unpush() { a.q = a.q[:len(a.q)-1] }

func countRefused(rows []row) (n int, first *refusal) {
	for i := range rows {
		if r := rows[i].refused; r != nil {
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
func (s *session) refusePayload(p *publishPacket, r *refusal) {
	s.g.count.refused[r.Reason].Add(1)
	if p.qos == 0 {
		return
	}
	code := byte(rcPayloadFormat)
	switch r.Reason {
	case ReasonHome, ReasonDevice:
		code = rcNotAuthorized
	case ReasonPayload:
		code = rcQuota
	}
	s.acknowledgeNow(p.id, code, r.Error())
}

// reject answers a message that the client may not send. A version 5 client that asks for an acknowledgement is told
// in it; all others lose the connection, which is the only word there is for it: a positive acknowledgement would
// be a lie.
func (s *session) reject(p *publishPacket, reason Reason, code byte, why string) error {
	if s.version == v5 && p.qos == 1 {
		s.g.count.refused[reason].Add(1)
		s.acknowledgeNow(p.id, code, why)
		return nil
	}
	return broken(code, "%s", why)
}
