package ingest

import (
	"crypto/rand"
	"errors"
	"strings"
	"time"
)

// connect handles CONNECT. A refusal is answered with its code and ends the connection.
func (s *session) connect(body []byte) error {
	p, err := parseConnect(body)
	if p.version == v5 {
		s.version = v5
	} else {
		s.version = v311
	}
	s.explains = !p.props.has(propRequestProblem) || p.props.requestProblem == 1
	if err != nil {
		var pe *protocolError
		if errors.As(err, &pe) && (p.version == v311 || p.version == v5 || pe.code == rcUnsupportedVersion) {
			return s.refuse(pe.code, pe.what, ReasonProtocol)
		}
		return err
	}
	if p.props.has(propAuthMethod) {
		return s.refuse(rcBadAuthMethod, "only user name and password are known here", ReasonProtocol)
	}
	if !p.hasUser || !p.hasPassword {
		return s.refuse(rcBadCredentials, "a user name and a password are needed", ReasonCredentials)
	}
	id, err := s.g.door.admit(string(p.user), string(p.password), s.from)
	switch {
	case errors.Is(err, errAttempts):
		return s.refuse(rcRate, err.Error(), ReasonCredentials)
	case errors.Is(err, errBusy):
		return s.refuse(rcBusy, err.Error(), ReasonRate)
	case err != nil:
		return s.refuse(rcBadCredentials, err.Error(), ReasonCredentials)
	}
	if s.g.draining() {
		return s.refuse(rcBusy, "the gateway is going down", ReasonDraining)
	}
	if code, why := s.takeWill(&p, id); code != rcSuccess {
		return s.refuse(code, why, ReasonTopic)
	}
	return s.welcome(&p, id)
}

// takeWill checks the will and keeps it.
func (s *session) takeWill(p *connectPacket, id *identity) (code byte, why string) {
	w := p.will
	if w == nil {
		return rcSuccess, ""
	}
	topic := string(w.topic)
	switch {
	case w.qos > 1:
		return rcQoSUnsupported, "a will of QoS 2"
	case w.retain && s.version == v5:
		return rcRetainUnsupported, "a retained will"
	case badTopic(topic) != "":
		return rcTopicName, "the will's topic " + badTopic(topic)
	case !inHome(topic, id.Home):
		return rcNotAuthorized, "the will's topic is not under homes/" + id.Home + "/"
	}
	if _, _, ok := telemetryTopic(topic, id.Home); ok {
		return rcTopicName, "the will's topic is a telemetry topic: a will is no reading"
	}
	s.will = &message{topic: topic, qos: w.qos, payload: append([]byte(nil), w.payload...), props: willProps(&w.props)}
	return rcSuccess, ""
}

// willProps are the properties of a will that go out with it: all but the delay, which only matters to a session that
// outlives its connection.
func willProps(p *properties) []byte {
	var out []byte
	c := cursor{b: p.raw}
	for len(c.b) > 0 {
		before := c.b
		id := byte(c.varint())
		var skip properties
		skip.value(&c, id)
		if id != propWillDelay {
			out = append(out, before[:len(before)-len(c.b)]...)
		}
	}
	return out
}

func (s *session) welcome(p *connectPacket, id *identity) error {
	g := s.g
	ok := connack{receiveMaximum: g.ReceiveMaximum, packetMax: g.packetMax(), aliasMax: topicAliasMax, sessionExpires: p.props.sessionExpiry > 0}
	s.clientID = string(p.clientID)
	if s.clientID == "" {
		if s.version == v311 && !p.clean {
			return s.refuse(rcClientID, "a client id is needed when the session is to be kept", ReasonProtocol)
		}
		s.clientID = "hearthline-" + strings.ToLower(rand.Text())
		ok.assigned = s.clientID
	}
	if len(s.clientID) > 256 {
		return s.refuse(rcClientID, "a client id of more than 256 bytes", ReasonProtocol)
	}
	s.keepAlive = time.Duration(p.keepAlive) * time.Second
	if s.version == v5 && (s.keepAlive == 0 || s.keepAlive > g.KeepAliveMax) {
		s.keepAlive = g.KeepAliveMax
		ok.keepAlive = int(g.KeepAliveMax / time.Second)
	}
	s.peerPacketMax, s.outWindow = 1<<28, outWindowMax
	if p.props.has(propMaximumPacketSize) {
		s.peerPacketMax = int(p.props.maximumPacket)
	}
	if p.props.has(propReceiveMaximum) {
		s.outWindow = min(outWindowMax, int(p.props.receiveMaximum))
	}
	if id.sessions.Add(1) > int64(g.UserConnections) {
		id.sessions.Add(-1)
		return s.refuse(rcQuota, "too many connections of this user", ReasonConnections)
	}
	s.lastPacket = time.Now()
	s.id = id
	g.count.connections.Add(1)
	// CONNACK is added before the session can be found: nothing may be sent before it.
	if err := s.answer(128, func(b []byte) []byte { return appendConnack(b, s.version, &ok) }); err != nil {
		return err
	}
	g.remember(s)
	return nil
}

// refuse answers CONNECT with a reason and ends the connection.
func (s *session) refuse(code byte, why string, reason Reason) error {
	s.g.count.connectsRefused.Add(1)
	if reason != ReasonCredentials { // the door has counted those
		s.g.count.refused[reason].Add(1)
	}
	c := connack{code: code}
	if s.explains {
		c.why = why
	}
	s.link.add(16+len(why), func(b []byte) []byte { return appendConnack(b, s.version, &c) })
	return &refused{why: why}
}

// refused ends a connection that was answered already.
type refused struct{ why string }

func (r *refused) Error() string { return "connection refused: " + r.why }
