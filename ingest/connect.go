package ingest

import (
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/reason"
)

// connect handles CONNECT. A refusal is answered with its code and ends the connection.
func (s *session) connect(body []byte) error {
	p, err := mqtt.ParseConnect(body)
	if p.Version == mqtt.V5 {
		s.version = mqtt.V5
	} else {
		s.version = mqtt.V311
	}
	s.explains = !p.Props.Has(mqtt.PropRequestProblem) || p.Props.RequestProblem == 1
	if err != nil {
		var pe *mqtt.ProtocolError
		if errors.As(err, &pe) && (p.Version == mqtt.V311 || p.Version == mqtt.V5 || pe.Code == mqtt.CodeUnsupportedVersion) {
			return s.refuse(pe.Code, pe.What, reason.Protocol)
		}
		return err
	}
	if p.Props.Has(mqtt.PropAuthMethod) {
		return s.refuse(mqtt.CodeBadAuthMethod, "only user name and password are known here", reason.Protocol)
	}
	if !p.HasUser || !p.HasPassword {
		return s.refuse(mqtt.CodeBadCredentials, "a user name and a password are needed", reason.Credentials)
	}
	id, err := s.g.door.Admit(string(p.User), string(p.Password), s.from)
	switch {
	case errors.Is(err, identity.ErrAttempts):
		return s.refuse(mqtt.CodeRate, err.Error(), reason.Credentials)
	case errors.Is(err, identity.ErrBusy):
		return s.refuse(mqtt.CodeBusy, err.Error(), reason.Rate)
	case err != nil:
		return s.refuse(mqtt.CodeBadCredentials, err.Error(), reason.Credentials)
	}
	if s.g.draining() {
		return s.refuse(mqtt.CodeBusy, "the gateway is going down", reason.Draining)
	}
	if code, why := s.takeWill(&p, id); code != mqtt.CodeSuccess {
		return s.refuse(code, why, reason.Topic)
	}
	return s.welcome(&p, id)
}

// takeWill checks the will and keeps it.
func (s *session) takeWill(p *mqtt.ConnectPacket, id *identity.Identity) (code byte, why string) {
	w := p.Will
	if w == nil {
		return mqtt.CodeSuccess, ""
	}
	topic := string(w.Topic)
	switch {
	case w.Qos > 1:
		return mqtt.CodeQoSUnsupported, "a will of QoS 2"
	case w.Retain && s.version == mqtt.V5:
		return mqtt.CodeRetainUnsupported, "a retained will"
	case mqtt.BadTopic(topic) != "":
		return mqtt.CodeTopicName, "the will's topic " + mqtt.BadTopic(topic)
	}
	if _, no := id.MayPublish(string(p.ClientID), topic); no != nil {
		return mqtt.CodeNotAuthorized, "the will's topic " + no.Detail
	}
	if _, _, ok := telemetryTopic(topic); ok {
		return mqtt.CodeTopicName, "the will's topic is a telemetry topic: a will is no reading"
	}
	s.will = &mqtt.Message{Topic: topic, Qos: w.Qos, Payload: append([]byte(nil), w.Payload...), Props: willProps(&w.Props)}
	return mqtt.CodeSuccess, ""
}

// willProps are the properties of a will that go out with it: all but the delay, which only matters to a session that
// outlives its connection.
func willProps(p *mqtt.Properties) []byte {
	var out []byte
	c := mqtt.Cursor{B: p.Raw}
	for len(c.B) > 0 {
		before := c.B
		id := byte(c.Varint())
		var skip mqtt.Properties
		skip.Value(&c, id)
		if id != mqtt.PropWillDelay {
			out = append(out, before[:len(before)-len(c.B)]...)
		}
	}
	return out
}

func (s *session) welcome(p *mqtt.ConnectPacket, id *identity.Identity) error {
	g := s.g
	ok := mqtt.Connack{ReceiveMaximum: g.ReceiveMaximum, PacketMax: g.packetMax(), AliasMax: topicAliasMax, SessionExpires: p.Props.SessionExpiry > 0}
	s.clientID = string(p.ClientID)
	if s.clientID == "" {
		if s.version == mqtt.V311 && !p.Clean {
			return s.refuse(mqtt.CodeClientID, "a client id is needed when the session is to be kept", reason.Protocol)
		}
		s.clientID = "hearthline-" + strings.ToLower(rand.Text())
		ok.Assigned = s.clientID
	}
	if len(s.clientID) > 256 {
		return s.refuse(mqtt.CodeClientID, "a client id of more than 256 bytes", reason.Protocol)
	}
	s.keepAlive = time.Duration(p.KeepAlive) * time.Second
	if s.version == mqtt.V5 && (s.keepAlive == 0 || s.keepAlive > g.KeepAliveMax) {
		s.keepAlive = g.KeepAliveMax
		ok.KeepAlive = int(g.KeepAliveMax / time.Second)
	}
	s.peerPacketMax, s.outWindow = 1<<28, outWindowMax
	if p.Props.Has(mqtt.PropMaximumPacketSize) {
		s.peerPacketMax = int(p.Props.MaximumPacket)
	}
	if p.Props.Has(mqtt.PropReceiveMaximum) {
		s.outWindow = min(outWindowMax, int(p.Props.ReceiveMaximum))
	}
	if id.Sessions.Add(1) > int64(g.UserConnections) {
		id.Sessions.Add(-1)
		return s.refuse(mqtt.CodeQuota, "too many connections of this user", reason.Connections)
	}
	s.lastPacket = time.Now()
	s.id = id
	g.count.connections.Add(1)
	// CONNACK is added before the session can be found: nothing may be sent before it.
	if err := s.answer(128, func(b []byte) []byte { return mqtt.AppendConnack(b, s.version, &ok) }); err != nil {
		return err
	}
	g.remember(s)
	return nil
}

// refuse answers CONNECT with a reason and ends the connection.
func (s *session) refuse(code byte, why string, cause reason.Reason) error {
	s.g.count.connectsRefused.Add(1)
	if cause != reason.Credentials { // the door has counted those
		s.g.count.refused[cause].Add(1)
	}
	c := mqtt.Connack{Code: code}
	if s.explains {
		c.Why = why
	}
	s.link.Add(16+len(why), func(b []byte) []byte { return mqtt.AppendConnack(b, s.version, &c) })
	return &refused{why: why}
}

// refused ends a connection that was answered already.
type refused struct{ why string }

func (r *refused) Error() string { return "connection refused: " + r.why }
