package ingest

import (
	"errors"
	"fmt"

	"hearthline/ingest/mqtt"
	"hearthline/ingest/names"
	"hearthline/ingest/reason"
	"hearthline/ingest/session"
)

// fanOut gives a message to the home's subscribers, once to each, here and on other gateways, and says to how many here. It
// does not wait for any of them.
func (g *Gateway) fanOut(home string, m *mqtt.Message, from *session.Session) int {
	g.forward(home, m)
	sent, dropped := g.audience.Publish(home, m, from)
	g.delivered(sent, dropped)
	return sent
}

func (g *Gateway) delivered(sent, dropped int) {
	g.count.delivered.Add(uint64(sent))
	g.count.refused[reason.SlowConsumer].Add(uint64(dropped))
}

// retain keeps a message as the last of its topic. It says false when there is no room for it.
func (g *Gateway) retain(home string, m *mqtt.Message) bool {
	err := g.Retained.Set(home, m)
	if err != nil {
		g.count.refused[reason.Quota].Add(1)
		if !errors.Is(err, session.ErrRetainedFull) {
			g.Logger.Warn("gateway: a retained message is not kept", "home", home, "err", err)
		}
	}
	return err == nil
}

// remember makes a connection known.
func (g *Gateway) remember(c *connection) {
	g.connectionsMu.Lock()
	defer g.connectionsMu.Unlock()
	g.connections[c] = struct{}{}
}

func (g *Gateway) forget(c *connection) {
	g.connectionsMu.Lock()
	defer g.connectionsMu.Unlock()
	delete(g.connections, c)
}

// ErrNobody says that no session of this gateway has subscribed to a topic.
var ErrNobody = errors.New("no client has subscribed to it here")

// Send publishes a message to the sessions of this gateway that have subscribed to homes/{home}/{topic}, such as
// "devices/lamp/commands": those of clients that are connected, and with QoS 1 and 2 those of clients that are away, which get it
// when they come back. A client gets it with the lower of qos and its subscription's. Send does not wait: what it
// returns is the number of sessions that the message is on its way to, and ErrNobody when there is none.
func (g *Gateway) Send(home, topic string, payload []byte, qos byte) (int, error) {
	full := "homes/" + home + "/" + topic
	switch {
	case names.Bad(home) != "":
		return 0, fmt.Errorf("send to home %q: the name %s", home, names.Bad(home))
	case mqtt.BadTopic(full) != "":
		return 0, fmt.Errorf("send to %q: the topic %s", full, mqtt.BadTopic(full))
	case qos > 2:
		return 0, fmt.Errorf("send to %q: QoS %d; want 0 to 2", full, qos)
	case len(payload) > g.PayloadBytesMax:
		return 0, fmt.Errorf("send to %q: %d bytes; at most %d", full, len(payload), g.PayloadBytesMax)
	}
	n := g.fanOut(home, &mqtt.Message{Topic: full, Payload: payload, Qos: qos}, nil)
	if n == 0 {
		return 0, fmt.Errorf("send to %q: %w", full, ErrNobody)
	}
	return n, nil
}
