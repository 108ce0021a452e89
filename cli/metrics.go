package cli

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"hearthline/ingest"
	"hearthline/ingest/latency"
)

// gatewayCollector gives a gateway's counters to Prometheus: rooms count, and do not know who reads.
type gatewayCollector struct{ stats func() ingest.Stats }

func gatewayDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hearthline_gateway_"+name, help, labels, nil)
}

var (
	connectionsDesc = gatewayDesc("connections", "MQTT clients connected now.")
	socketsDesc     = gatewayDesc("sockets", "TLS connections open now.")
	waitingDesc     = gatewayDesc("rows_waiting", "Rows taken that Kafka does not have yet.")
	acceptedDesc    = gatewayDesc("sockets_total", "Connections accepted.")
	handshakesDesc  = gatewayDesc("handshakes_failed_total", "TLS handshakes that failed.")
	connectsDesc    = gatewayDesc("connects_refused_total", "CONNECTs answered by a refusal.")
	loginsDesc      = gatewayDesc("logins_failed_total", "Unknown users and wrong passwords.")
	takeoversDesc   = gatewayDesc("takeovers_total", "Sessions taken over by a newer connection of the same client.")
	sessionsLost    = gatewayDesc("sessions_dropped_total", "Sessions that another gateway claimed without getting what they had here: it could not reach this one in time.")
	sessionsUnsaved = gatewayDesc("sessions_unsaved_total", "Times that a session whose client is away could not be stored: it is held by this gateway alone.")
	messagesDesc    = gatewayDesc("messages_total", "Telemetry messages taken.")
	liveDesc        = gatewayDesc("live_messages_total", "Other messages that MQTT clients published.")
	deliveredDesc   = gatewayDesc("messages_delivered_total", "Messages sent to subscribers.")
	requestsDesc    = gatewayDesc("requests_total", "HTTP requests.")
	bytesDesc       = gatewayDesc("bytes_total", "Payload bytes of telemetry taken.")
	durableDesc     = gatewayDesc("rows_durable_total", "Rows that Kafka has: what was acknowledged, at least.")
	gatewayRowsDesc = gatewayDesc("rows_refused_total", "Single rows refused.", "reason")
	refusedDesc     = gatewayDesc("refused_total", "Payloads, packets, requests and connections refused.", "reason")
	publishErrsDesc = gatewayDesc("publish_errors_total", "Attempts to publish that failed and were repeated.")
	heldDesc        = gatewayDesc("held_total", "Times a publisher was made to wait.")
	panicsDesc      = gatewayDesc("panics_total", "Connections that ended by a bug.")
	reloadsDesc     = gatewayDesc("reload_errors_total", "Credentials or certificates that could not be read again.")
	expiresDesc     = gatewayDesc("certificate_expires_timestamp_seconds", "When a certificate of this gateway ends, in seconds since 1970: that of its doors, and that for other gateways.", "certificate")
	publishDesc     = gatewayDesc("publish_seconds", "Time of one publish that succeeded.")
	acknowledgeDesc = gatewayDesc("acknowledge_seconds", "Time from a message's arrival until its acknowledgement was due.")
	repeatedDesc    = gatewayDesc("requests_repeated_total", "HTTP requests answered from memory: sent again under their key.")

	openDesc      = gatewayDesc("listener_connections", "Connections open now.", "listener")
	listenedDesc  = gatewayDesc("listener_accepted_total", "Connections accepted.", "listener")
	fullDesc      = gatewayDesc("listener_full_total", "Connections closed at once: over the limit.", "listener")
	shakeFailDesc = gatewayDesc("listener_handshakes_failed_total", "TLS handshakes that failed.", "listener")
	resumedDesc   = gatewayDesc("listener_handshakes_resumed_total", "TLS handshakes by ticket.", "listener")
	shakeDesc     = gatewayDesc("listener_handshake_seconds", "Time from a connection's being accepted to its handshake's end.", "listener")
	answersDesc   = gatewayDesc("http_answers_total", "HTTP requests answered.", "route", "class")
	routeTimeDesc = gatewayDesc("http_request_seconds", "Time of an HTTP request.", "route")
)

// Describe is of prometheus.Collector. What a gateway has no tables for it does not show, so it is an unchecked collector.
func (gatewayCollector) Describe(chan<- *prometheus.Desc) {}

// Collect is of prometheus.Collector.
func (c gatewayCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	to := sender{ch}
	to.gauge(connectionsDesc, s.Connections)
	to.gauge(socketsDesc, s.Sockets)
	to.gauge(waitingDesc, s.Waiting)
	for _, one := range []struct {
		d *prometheus.Desc
		v uint64
	}{
		{acceptedDesc, s.Accepted}, {handshakesDesc, s.HandshakesFailed}, {connectsDesc, s.ConnectsRefused}, {loginsDesc, s.LoginsFailed}, {takeoversDesc, s.Takeovers}, {sessionsLost, s.SessionsLost}, {sessionsUnsaved, s.SessionsUnsaved},
		{messagesDesc, s.Messages}, {liveDesc, s.LiveMessages}, {deliveredDesc, s.Delivered}, {requestsDesc, s.Requests}, {bytesDesc, s.Bytes},
		{durableDesc, s.RowsDurable}, {publishErrsDesc, s.PublishErrors}, {heldDesc, s.Held}, {panicsDesc, s.Panics}, {reloadsDesc, s.ReloadErrors}, {repeatedDesc, s.Repeated},
	} {
		to.counter(one.d, one.v)
	}
	for reason, n := range s.RowsRefused {
		to.counter(gatewayRowsDesc, n, reason)
	}
	for reason, n := range s.Refused {
		to.counter(refusedDesc, n, reason)
	}
	to.instant(expiresDesc, s.CertificateExpires, "gateway")
	to.histogram(publishDesc, s.Publish)
	to.histogram(acknowledgeDesc, s.Acknowledge)
	to.doors(&s)
	to.sessions(&s)
	to.peers(s.Peers)
	to.tables(s.Tables)
	to.commands(s.Commands, s.AuditDropped)
	to.shadow(s.Shadow)
	to.live(s.Live)
}

func (to sender) doors(s *ingest.Stats) {
	for listener, l := range s.Listeners {
		to.gauge(openDesc, l.Open, listener)
		to.counter(listenedDesc, l.Accepted, listener)
		to.counter(fullDesc, l.Full, listener)
		to.counter(shakeFailDesc, l.HandshakesFailed, listener)
		to.counter(resumedDesc, l.Resumed, listener)
		to.histogram(shakeDesc, l.Handshake, listener)
	}
	for route, r := range s.Routes {
		for class, n := range r.Answers {
			if class > 0 {
				to.counter(answersDesc, n, route, strconv.Itoa(class)+"xx")
			}
		}
		to.histogram(routeTimeDesc, r.Time, route)
	}
}

// histogram makes Prometheus's cumulative buckets of ours.
func histogram(d *prometheus.Desc, h latency.Histogram, labels ...string) prometheus.Metric {
	buckets, sum := map[float64]uint64{}, uint64(0)
	for i := range len(h.Buckets) - 1 {
		sum += h.Buckets[i]
		buckets[h.Bound(i).Seconds()] = sum
	}
	return prometheus.MustNewConstHistogram(d, h.Count, h.Sum.Seconds(), buckets, labels...)
}
