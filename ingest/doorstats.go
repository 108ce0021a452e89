package ingest

import (
	"crypto/tls"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"hearthline/ingest/latency"
)

// ListenerStats are of one address that the gateway listens on.
type ListenerStats struct {
	Open             int64  // connections, now
	Accepted         uint64 // by the kernel
	Full             uint64 // closed at once: over the limit of connections
	HandshakesFailed uint64
	Resumed          uint64            // handshakes by ticket, which cost no signature
	Handshake        latency.Histogram // time from a connection's being accepted to its handshake's end, waiting for a turn included
}

// RouteStats are of one kind of HTTP request.
type RouteStats struct {
	Answers [6]uint64         // by the first digit of the status
	Time    latency.Histogram // until it was answered
}

// listenerCounters is ListenerStats as it is counted.
type listenerCounters struct {
	open                                      atomic.Int64
	accepted, full, handshakesFailed, resumed atomic.Uint64
	handshake                                 latency.Meter
}

func (c *listenerCounters) shaken(conn *tls.Conn, since time.Time) {
	c.handshake.Observe(time.Since(since))
	if conn.ConnectionState().DidResume {
		c.resumed.Add(1)
	}
}

func (c *listenerCounters) read() ListenerStats {
	return ListenerStats{Open: c.open.Load(), Accepted: c.accepted.Load(), Full: c.full.Load(), HandshakesFailed: c.handshakesFailed.Load(), Resumed: c.resumed.Load(), Handshake: c.handshake.Read()}
}

// routeNames are the kinds of request that are told apart.
var routeNames = [...]string{"/v1/telemetry", "/v1/hooks/{name}", "other"}

// routeCounters is RouteStats as it is counted.
type routeCounters struct {
	answers [6]atomic.Uint64
	time    latency.Meter
}

func (c *routeCounters) read() (s RouteStats) {
	for i := range c.answers {
		s.Answers[i] = c.answers[i].Load()
	}
	s.Time = c.time.Read()
	return s
}

// counted counts what a handler answers, under the path of its route.
func (g *Gateway) counted(path string, serve http.HandlerFunc) http.HandlerFunc {
	i := slices.Index(routeNames[:], path)
	if i < 0 {
		i = len(routeNames) - 1
	}
	c := &g.count.routes[i]
	return func(w http.ResponseWriter, r *http.Request) {
		since, s := time.Now(), &statusWriter{ResponseWriter: w}
		serve(s, r)
		c.time.Observe(time.Since(since))
		c.answers[min(s.status/100, 5)].Add(1)
	}
}

// statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *statusWriter) Write(p []byte) (int, error) {
	if s.status == 0 {
		s.status = http.StatusOK
	}
	return s.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach deadlines and flushing.
func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }
