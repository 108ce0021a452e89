package ingest

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"strings"
	"time"

	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/reason"
	"hearthline/ingest/session"
	"hearthline/ingest/wire"
)

// connect handles CONNECT. A refusal is answered with its code and ends the connection.
func (c *connection) connect(body []byte) error {
	p, err := mqtt.ParseConnect(body)
	if p.Version == mqtt.V5 {
		c.terms.Version = mqtt.V5
	} else {
		c.terms.Version = mqtt.V311
	}
	c.explains = !p.Props.Has(mqtt.PropRequestProblem) || p.Props.RequestProblem == 1
	c.terms.PacketMax = 1 << 28
	if p.Props.MaximumPacket > 0 { // 0 is an error, and may be said
		c.terms.PacketMax = int(p.Props.MaximumPacket)
	}
	if err != nil {
		var pe *mqtt.ProtocolError
		if errors.As(err, &pe) && (p.Version == mqtt.V311 || p.Version == mqtt.V5 || pe.Code == mqtt.CodeUnsupportedVersion) {
			return c.refuse(pe.Code, pe.What, reason.Protocol)
		}
		return err
	}
	if p.Props.Has(mqtt.PropAuthData) && !p.Props.Has(mqtt.PropAuthMethod) {
		return c.refuse(mqtt.CodeProtocolError, "authentication data without a method", reason.Protocol)
	}
	if p.Props.Has(mqtt.PropAuthMethod) {
		return c.refuse(mqtt.CodeBadAuthMethod, "only user name and password are known here", reason.Protocol)
	}
	ctx, cancel := context.WithTimeout(c.g.open, c.g.ConnectTimeout)
	defer cancel()
	id, err := c.g.door.Admit(ctx, identity.Proof{User: string(p.User), Password: string(p.Password), Chains: c.link.Tls.ConnectionState().VerifiedChains, Address: c.from})
	switch {
	case errors.Is(err, identity.ErrAttempts):
		return c.refuse(mqtt.CodeRate, err.Error(), reason.Credentials)
	case errors.Is(err, identity.ErrBusy):
		return c.refuse(mqtt.CodeBusy, err.Error(), reason.Rate)
	case err != nil:
		return c.refuse(mqtt.CodeBadCredentials, err.Error(), reason.Credentials)
	}
	wire.ForgetCertificates(c.link.Tls)
	if c.g.draining() {
		return c.refuse(mqtt.CodeBusy, "the gateway is going down", reason.Draining)
	}
	will, code, why := takeWill(&p, id)
	if code != mqtt.CodeSuccess {
		return c.refuse(code, why, reason.Topic)
	}
	return c.welcome(&p, id, will)
}

// takeWill checks the will.
func takeWill(p *mqtt.ConnectPacket, id *identity.Identity) (will *session.Will, code byte, why string) {
	w := p.Will
	if w == nil {
		return nil, mqtt.CodeSuccess, ""
	}
	topic := string(w.Topic)
	if bad := mqtt.BadTopic(topic); bad != "" {
		return nil, mqtt.CodeTopicName, "the will's topic " + bad
	}
	if _, no := id.MayPublish(string(p.ClientID), topic); no != nil {
		return nil, mqtt.CodeNotAuthorized, "the will's topic " + no.Detail
	}
	if _, _, ok := telemetryTopic(topic); ok {
		return nil, mqtt.CodeTopicName, "the will's topic is a telemetry topic: a will is no reading"
	}
	if _, _, ok := commandTopic(topic); ok {
		return nil, mqtt.CodeTopicName, "the will's topic is one of commands: a will is none, and reports none"
	}
	if _, _, ok := shadowTopic(topic); ok {
		return nil, mqtt.CodeTopicName, "the will's topic is one of shadows: a will changes none"
	}
	m := mqtt.Message{Topic: topic, Qos: w.Qos, Retain: w.Retain, Payload: append([]byte(nil), w.Payload...), Props: w.Props.Forwarded(nil)}
	return &session.Will{Message: m, Expiry: w.Props.MessageExpiry, Delay: w.Props.WillDelay}, mqtt.CodeSuccess, ""
}

// publishWill publishes what a client left behind.
func (g *Gateway) publishWill(m *mqtt.Message) {
	g.count.wills.Add(1)
	home, ok := session.HomeOf(m.Topic)
	if !ok {
		return // taken for a home once, by takeWill
	}
	if m.Retain {
		g.retain(home, m)
	}
	g.fanOut(home, m, nil)
}

// sessionExpiry is how long a session may outlive its connection, of what its client asks for; seconds.
func (g *Gateway) sessionExpiry(asked uint32) uint32 {
	return min(asked, uint32(g.SessionExpiryMax/time.Second))
}

// welcome lets a client in that has shown who it is.
func (c *connection) welcome(p *mqtt.ConnectPacket, id *identity.Identity, will *session.Will) error {
	g := c.g
	ok := mqtt.Connack{ReceiveMaximum: g.ReceiveMaximum, PacketMax: g.packetMax(), AliasMax: topicAliasMax}
	client := string(p.ClientID)
	if client == "" {
		if c.terms.Version == mqtt.V311 && !p.Clean {
			return c.refuse(mqtt.CodeClientID, "a client id is needed when the session is to be kept", reason.Protocol)
		}
		client = "hearthline-" + strings.ToLower(rand.Text())
		ok.Assigned = client
	}
	if !g.clientIDFits(id.User, client) {
		return c.refuse(mqtt.CodeClientID, "the client id does not belong to these credentials", reason.Protocol)
	}
	if len(client) > 256 {
		return c.refuse(mqtt.CodeClientID, "a client id of more than 256 bytes", reason.Protocol)
	}
	c.keepAlive = time.Duration(p.KeepAlive) * time.Second
	if c.terms.Version == mqtt.V5 && (c.keepAlive == 0 || c.keepAlive > g.KeepAliveMax) {
		c.keepAlive = g.KeepAliveMax
		ok.KeepAlive = int(g.KeepAliveMax / time.Second)
	}
	if p.Props.Has(mqtt.PropRequestResponse) && p.Props.RequestResponse == 1 {
		ok.ResponseInfo = responseInfo(id, client)
	}
	expiry := c.agree(p)
	c.terms.Who = id
	if c.terms.Version == mqtt.V5 && expiry != p.Props.SessionExpiry {
		ok.TellExpiry, ok.Expiry = true, expiry
	}
	if c.tooLarge(&ok) {
		ok.ResponseInfo = "" // it may be left out, the rest says what the client must know
	}
	if c.tooLarge(&ok) {
		return c.refuse(mqtt.CodeTooLarge, "the client takes no packet of the size of a CONNACK", reason.Protocol)
	}
	if id.Sessions.Add(1) > int64(cmp.Or(id.SessionsMax, g.UserConnections)) {
		id.Sessions.Add(-1)
		return c.refuse(mqtt.CodeQuota, "too many connections of this user", reason.Connections)
	}
	entry := session.Entry{
		Key: session.Key{User: id.Subject, Client: client}, Clean: p.Clean, Expiry: expiry, Will: will, Terms: &c.terms,
		May: func(filter string) bool { _, no := id.MaySubscribe(client, filter); return no == nil },
		Welcome: func(present bool) error {
			ok.Present = present
			return c.answer(connackBytesMax, func(b []byte) []byte { return mqtt.AppendConnack(b, c.terms.Version, &ok) })
		},
	}
	s, tookOver, err := g.registry.Claim(context.Background(), &entry)
	if tookOver {
		g.count.takeovers.Add(1)
	}
	if err != nil {
		id.Sessions.Add(-1)
		if errors.Is(err, errSlow) {
			return err
		}
		g.Logger.Warn("gateway: a session cannot be found; its client is sent away", "client", client, "err", err)
		return c.refuse(mqtt.CodeUnavailable, "the session cannot be found now; try again", reason.BackPressure)
	}
	c.lastPacket = time.Since(epoch)
	c.id, c.session = id, s
	g.count.connections.Add(1)
	g.remember(c)
	if g.near.mesh != nil {
		for _, sub := range s.Subscriptions() {
			c.ready(sub.Filter)
		}
	}
	return nil
}

// tooLarge says whether the client takes no packet of the size of a CONNACK [MQTT-3.1.2-24].
func (c *connection) tooLarge(ok *mqtt.Connack) bool {
	return c.terms.PacketMax < connackBytesMax && len(mqtt.AppendConnack(nil, c.terms.Version, ok)) > c.terms.PacketMax
}

// connackBytesMax is more than a CONNACK may have.
const connackBytesMax = 1024

// agree sets the terms of a connection, and gives how long the session will outlive it, seconds.
func (c *connection) agree(p *mqtt.ConnectPacket) (expiry uint32) {
	c.terms.Link, c.terms.Window = c.link, session.WindowMax
	if p.Props.Has(mqtt.PropReceiveMaximum) {
		c.terms.Window = min(session.WindowMax, p.Props.ReceiveMaximum)
	}
	c.terms.AliasMax = p.Props.AliasMaximum
	asked := p.Props.SessionExpiry
	if c.terms.Version == mqtt.V311 && !p.Clean {
		asked = session.Forever
	}
	c.persists = asked > 0
	return c.g.sessionExpiry(asked)
}

// responseInfo is a prefix for response topics that nobody else is given (MQTT 5, section 3.2.2.3.15).
func responseInfo(id *identity.Identity, client string) string {
	home := id.OnlyHome()
	if home == "" {
		return "" // which of its homes is not known
	}
	sum := sha256.Sum256([]byte(id.Subject + "\x00" + client))
	return "homes/" + home + "/responses/" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10])) + "/"
}

// refuse answers CONNECT with a reason and ends the connection.
func (c *connection) refuse(code byte, why string, cause reason.Reason) error {
	c.g.count.connectsRefused.Add(1)
	if cause != reason.Credentials { // the door has counted those
		c.g.count.refused[cause].Add(1)
	}
	said := mqtt.Connack{Code: code}
	if c.explains {
		said.Why = why
	}
	if c.tooLarge(&said) {
		said.Why = ""
	}
	if c.tooLarge(&said) {
		return &refused{why: why} // without a word
	}
	c.link.Add(16+len(why), func(b []byte) []byte { return mqtt.AppendConnack(b, c.terms.Version, &said) })
	return &refused{why: why}
}

// refused ends a connection that was answered already.
type refused struct{ why string }

func (r *refused) Error() string { return "connection refused: " + r.why }
