package ingest

import (
	"errors"
	"fmt"
	"strings"

	"hearthline/ingest/identity"
	"hearthline/ingest/mqtt"
	"hearthline/ingest/names"
)

// subscriptionsMax is how many topic filters one connection may hold.
const subscriptionsMax = 32

// subscription is one topic filter of a client.
type subscription struct {
	filter  string
	options byte
}

func (s *session) subscribe(body []byte) error {
	p, err := mqtt.ParseSubscribe(s.version, body, false)
	if err != nil {
		return err
	}
	if p.Props.Has(mqtt.PropSubscriptionID) {
		return mqtt.Broken(mqtt.CodeSubIDsUnsupported, "subscription identifiers are not taken")
	}
	codes := make([]byte, len(p.Filters))
	for i, f := range p.Filters {
		codes[i] = s.grant(string(f), p.Options[i])
	}
	return s.answer(16+len(codes), func(b []byte) []byte { return mqtt.AppendSuback(b, s.version, mqtt.TypeSuback, p.Id, codes) })
}

// grant answers one filter: its QoS, or why not.
func (s *session) grant(filter string, options byte) byte {
	switch {
	case strings.HasPrefix(filter, "$share/"):
		return mqtt.CodeSharedUnsupported
	case mqtt.BadFilter(filter) != "":
		return mqtt.CodeTopicFilter
	}
	home, no := s.id.MaySubscribe(s.clientID, filter)
	if no != nil {
		s.g.count.refused[no.Reason].Add(1)
		return mqtt.CodeNotAuthorized
	}
	if !s.g.listen(s, home, subscription{filter: filter, options: options}) {
		return mqtt.CodeQuota
	}
	return min(options&mqtt.SubQoS, 1)
}

func (s *session) unsubscribe(body []byte) error {
	p, err := mqtt.ParseSubscribe(s.version, body, true)
	if err != nil {
		return err
	}
	codes := make([]byte, len(p.Filters))
	for i, f := range p.Filters {
		if !s.g.unlisten(s, string(f)) {
			codes[i] = mqtt.CodeNoSubscription
		}
	}
	return s.answer(16+len(codes), func(b []byte) []byte { return mqtt.AppendSuback(b, s.version, mqtt.TypeUnsuback, p.Id, codes) })
}

// listen adds a subscription, or replaces the one with the same filter.
func (g *Gateway) listen(s *session, of string, sub subscription) bool {
	g.audienceMu.Lock()
	defer g.audienceMu.Unlock()
	home := g.audience[of]
	if home == nil {
		home = make(map[*session][]subscription)
		g.audience[of] = home
	}
	for i, old := range home[s] {
		if old.filter == sub.filter {
			home[s][i] = sub
			return true
		}
	}
	if s.listens >= subscriptionsMax {
		return false
	}
	s.listens++
	home[s] = append(home[s], sub)
	g.listeners.Add(1)
	return true
}

func (g *Gateway) unlisten(s *session, filter string) bool {
	g.audienceMu.Lock()
	defer g.audienceMu.Unlock()
	home := identity.HomeOf(filter)
	subs := g.audience[home][s]
	for i, old := range subs {
		if old.filter == filter {
			g.audience[home][s] = append(subs[:i:i], subs[i+1:]...)
			s.listens--
			g.listeners.Add(-1)
			return true
		}
	}
	return false
}

// fanOut delivers a message to the home's subscribers on this gateway, once to each, and says to how many. It does not
// wait for any of them.
func (g *Gateway) fanOut(home string, m *mqtt.Message, from *session) int {
	g.audienceMu.RLock()
	defer g.audienceMu.RUnlock()
	n := 0
	for s, subs := range g.audience[home] {
		found, qos := false, byte(0)
		for _, sub := range subs {
			if (s != from || sub.options&mqtt.SubNoLocal == 0) && mqtt.Matches(sub.filter, m.Topic) {
				found, qos = true, max(qos, min(sub.options&mqtt.SubQoS, m.Qos, 1))
			}
		}
		if found && s.deliver(m, qos) {
			n++
		}
	}
	return n
}

// remember makes a session known, and ends the one that the same user had under the same client id.
func (g *Gateway) remember(s *session) {
	g.sessionsMu.Lock()
	old := g.sessions[s.key()]
	g.sessions[s.key()] = s
	g.sessionsMu.Unlock()
	if old != nil {
		g.count.takeovers.Add(1)
		old.evict(mqtt.CodeTakenOver, "another connection uses this client id")
	}
}

// key of a session: a client id belongs to the identity that uses it, so that nobody takes over a stranger's.
func (s *session) key() string { return s.id.Subject + "\x00" + s.clientID }

func (g *Gateway) forget(s *session) {
	g.sessionsMu.Lock()
	if g.sessions[s.key()] == s {
		delete(g.sessions, s.key())
	}
	g.sessionsMu.Unlock()
	g.audienceMu.Lock()
	defer g.audienceMu.Unlock()
	for i := 0; i < len(s.id.Grants) && s.listens > 0; i++ {
		of := s.id.Grants[i].Home
		home := g.audience[of]
		g.listeners.Add(-int64(len(home[s])))
		s.listens -= len(home[s])
		if delete(home, s); len(home) == 0 {
			delete(g.audience, of)
		}
	}
}

// ErrNobody says that no client connected to this gateway has subscribed to a topic.
var ErrNobody = errors.New("no client has subscribed to it here")

// Send publishes a message to the clients of a home that are connected to this gateway and have subscribed to
// homes/{home}/{topic}, such as "devices/lamp/commands". qos is 0 or 1; a client gets it with the lower of this and
// its subscription's. Send does not wait: what it returns is the number of clients that the message is on its way
// to, and ErrNobody when there is none.
func (g *Gateway) Send(home, topic string, payload []byte, qos byte) (int, error) {
	full := "homes/" + home + "/" + topic
	switch {
	case names.Bad(home) != "":
		return 0, fmt.Errorf("send to home %q: the name %s", home, names.Bad(home))
	case mqtt.BadTopic(full) != "":
		return 0, fmt.Errorf("send to %q: the topic %s", full, mqtt.BadTopic(full))
	case qos > 1:
		return 0, fmt.Errorf("send to %q: QoS %d; want 0 or 1", full, qos)
	case len(payload) > g.PayloadBytesMax:
		return 0, fmt.Errorf("send to %q: %d bytes; at most %d", full, len(payload), g.PayloadBytesMax)
	}
	n := g.fanOut(home, &mqtt.Message{Topic: full, Payload: payload, Qos: qos}, nil)
	if n == 0 {
		return 0, fmt.Errorf("send to %q: %w", full, ErrNobody)
	}
	return n, nil
}
