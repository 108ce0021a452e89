package ingest

import (
	"sync/atomic"
	"time"

	"hearthline/ingest/commands"
	"hearthline/ingest/latency"
	"hearthline/ingest/live"
	"hearthline/ingest/peers"
	"hearthline/ingest/reason"
	"hearthline/ingest/shadow"
	"hearthline/ingest/table"
)

// Stats are a gateway's counters since it began, and its gauges now.
type Stats struct {
	Connections      int64 // MQTT clients whose CONNECT was accepted, now
	Sockets          int64 // TLS connections of every kind, now
	Accepted         uint64
	HandshakesFailed uint64
	ConnectsRefused  uint64 // CONNECTs answered by a refusal
	LoginsFailed     uint64 // unknown users and wrong passwords, MQTT and HTTP
	Takeovers        uint64
	SessionsUnsaved  uint64 // times that one could not be stored
	SessionsLost     uint64 // claimed by another gateway that did not ask for what they had here
	Wills            uint64
	Messages         uint64            // telemetry messages taken, MQTT and HTTP
	LiveMessages     uint64            // other messages published by MQTT clients
	Delivered        uint64            // Messages written to subscribers
	Requests         uint64            // HTTP requests
	Repeated         uint64            // HTTP requests answered from memory: sent again under their key
	Bytes            uint64            // Payload bytes of telemetry taken
	RowsAccepted     uint64            // rows gathered into a batch
	RowsDurable      uint64            // rows the log has
	RowsRefused      map[string]uint64 // by Reason: single rows
	Refused          map[string]uint64 // by Reason: whole payloads, packets, requests, connections
	Batches          uint64
	PublishErrors    uint64                   // attempts of a batch that failed; it is tried again
	Held             uint64                   // times a publisher was made to wait: queue full, window full, over its rate
	Waiting          int64                    // rows gathered and not yet durable, now
	Panics           uint64                   // connections that ended by a bug
	ReloadErrors     uint64                   // credentials or certificate files that could not be read again
	Publish          latency.Histogram        // time of one Publish call that succeeded
	Listeners        map[string]ListenerStats // mqtt and http, which WebSockets belong to
	Routes           map[string]RouteStats    // HTTP requests, by path
	Acknowledge      latency.Histogram        // time from a message's arrival to its acknowledgement being due

	Sessions, SessionsAway  int64 // all that this gateway holds; of them, those whose clients are away
	KeptMessages, KeptBytes int64 // QoS 1 and 2 messages for clients that are away, slow, or have not acknowledged them
	CertificateExpires      time.Time
	Peers                   *peers.Stats // nil where there are no tables
	Tables                  map[string]table.Stats
	Commands                *commands.Stats // nil likewise
	Shadow                  *shadow.Stats   // nil likewise
	Live                    *live.Stats     // nil likewise
	AuditDropped            int64           // steps of commands that are missing in their stream
}

// counters is Stats as it is counted.
type counters struct {
	connections, sockets, waiting                                                      atomic.Int64
	accepted, handshakesFailed, connectsRefused, loginsFailed, takeovers, sessionsLost atomic.Uint64
	wills, messages, live, delivered, requests, repeated, bytes                        atomic.Uint64
	rowsAccepted, rowsDurable, batches, publishErrors, held                            atomic.Uint64
	panics, reloadErrors                                                               atomic.Uint64
	rowsRefused, refused                                                               [reason.Count]atomic.Uint64
	publish, acknowledge                                                               latency.Meter
	mqttDoor, webDoor                                                                  listenerCounters
	routes                                                                             [len(routeNames)]routeCounters
}

func (c *counters) loginFailed() {
	c.loginsFailed.Add(1)
	c.refused[reason.Credentials].Add(1)
}

func (c *counters) read() Stats {
	s := Stats{
		Connections: c.connections.Load(), Sockets: c.sockets.Load(), Waiting: c.waiting.Load(),
		Accepted: c.accepted.Load(), HandshakesFailed: c.handshakesFailed.Load(), ConnectsRefused: c.connectsRefused.Load(),
		LoginsFailed: c.loginsFailed.Load(), Takeovers: c.takeovers.Load(), SessionsLost: c.sessionsLost.Load(), Wills: c.wills.Load(),
		Messages: c.messages.Load(), LiveMessages: c.live.Load(), Delivered: c.delivered.Load(), Requests: c.requests.Load(), Repeated: c.repeated.Load(), Bytes: c.bytes.Load(),
		RowsAccepted: c.rowsAccepted.Load(), RowsDurable: c.rowsDurable.Load(), Batches: c.batches.Load(),
		PublishErrors: c.publishErrors.Load(), Held: c.held.Load(), Panics: c.panics.Load(), ReloadErrors: c.reloadErrors.Load(),
		RowsRefused: make(map[string]uint64, reason.Count), Refused: make(map[string]uint64, reason.Count),
		Publish: c.publish.Read(), Acknowledge: c.acknowledge.Read(),
	}
	s.Listeners = map[string]ListenerStats{"mqtt": c.mqttDoor.read(), "http": c.webDoor.read()}
	s.Routes = make(map[string]RouteStats, len(routeNames))
	for i, name := range routeNames {
		s.Routes[name] = c.routes[i].read()
	}
	for r := range reason.Count {
		s.RowsRefused[r.String()] = c.rowsRefused[r].Load()
		s.Refused[r.String()] = c.refused[r].Load()
	}
	return s
}

// Stats gives the counters. It may be called at any time.
func (g *Gateway) Stats() Stats {
	s := g.count.read()
	if !g.prepared.Load() {
		return s
	}
	all, away := g.registry.Len()
	s.Sessions, s.SessionsAway = int64(all), int64(away)
	s.KeptMessages, s.KeptBytes = g.registry.Kept()
	s.SessionsUnsaved = g.registry.Unsaved()
	if c := g.mqttTLS.now.Load(); c != nil && c.Certificates[0].Leaf != nil {
		s.CertificateExpires = c.Certificates[0].Leaf.NotAfter
	}
	n := &g.near
	if n.mesh == nil {
		return s
	}
	mesh, desk := n.mesh.Stats(), n.desk.Stats()
	s.Peers, s.Commands = &mesh, &desk
	shadows, streams := n.shadow.Stats(), n.live.Stats()
	s.Shadow, s.Live = &shadows, &streams
	s.Tables = make(map[string]table.Stats, len(n.tables))
	for _, t := range n.tables {
		s.Tables[t.Name] = t.Stats()
	}
	if n.audit != nil {
		s.AuditDropped = n.audit.Dropped()
	}
	return s
}
