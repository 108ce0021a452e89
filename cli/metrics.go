package cli

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"hearthline/ingest"
)

// gatewayCollector gives a gateway's counters to Prometheus: rooms count, and do not know who reads.
type gatewayCollector struct{ stats func() ingest.Stats }

var (
	gatewayDesc = func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("hearthline_gateway_"+name, help, labels, nil)
	}
	connectionsDesc = gatewayDesc("connections", "MQTT clients connected now.")
	socketsDesc     = gatewayDesc("sockets", "TLS connections open now.")
	waitingDesc     = gatewayDesc("rows_waiting", "Rows taken that Kafka does not have yet.")
	acceptedDesc    = gatewayDesc("sockets_total", "Connections accepted.")
	handshakesDesc  = gatewayDesc("handshakes_failed_total", "TLS handshakes that failed.")
	loginsDesc      = gatewayDesc("logins_failed_total", "Unknown users and wrong passwords.")
	takeoversDesc   = gatewayDesc("takeovers_total", "Sessions taken over by a newer connection of the same client.")
	messagesDesc    = gatewayDesc("messages_total", "Telemetry messages taken.")
	requestsDesc    = gatewayDesc("requests_total", "HTTP requests.")
	bytesDesc       = gatewayDesc("bytes_total", "Payload bytes of telemetry taken.")
	durableDesc     = gatewayDesc("rows_durable_total", "Rows that Kafka has: what was acknowledged, at least.")
	gatewayRowsDesc = gatewayDesc("rows_refused_total", "Single rows refused.", "reason")
	refusedDesc     = gatewayDesc("refused_total", "Payloads, packets, requests and connections refused.", "reason")
	publishErrsDesc = gatewayDesc("publish_errors_total", "Attempts to publish that failed and were repeated.")
	heldDesc        = gatewayDesc("held_total", "Times a publisher was made to wait.")
	panicsDesc      = gatewayDesc("panics_total", "Connections that ended by a bug.")
	reloadsDesc     = gatewayDesc("reload_errors_total", "Credentials or certificates that could not be read again.")
	publishDesc     = gatewayDesc("publish_seconds", "Time of one publish that succeeded.")
	acknowledgeDesc = gatewayDesc("acknowledge_seconds", "Time from a message's arrival until its acknowledgement was due.")
	repeatedDesc    = gatewayDesc("requests_repeated_total", "HTTP requests answered from memory: sent again under their key.")
	openDesc        = gatewayDesc("listener_connections", "Connections open now.", "listener")
	listenedDesc    = gatewayDesc("listener_accepted_total", "Connections accepted.", "listener")
	fullDesc        = gatewayDesc("listener_full_total", "Connections closed at once: over the limit.", "listener")
	shakeFailDesc   = gatewayDesc("listener_handshakes_failed_total", "TLS handshakes that failed.", "listener")
	resumedDesc     = gatewayDesc("listener_handshakes_resumed_total", "TLS handshakes by ticket.", "listener")
	shakeDesc       = gatewayDesc("listener_handshake_seconds", "Time from a connection's being accepted to its handshake's end.", "listener")
	answersDesc     = gatewayDesc("http_answers_total", "HTTP requests answered.", "route", "class")
	routeTimeDesc   = gatewayDesc("http_request_seconds", "Time of an HTTP request.", "route")
	doorDescs       = []*prometheus.Desc{repeatedDesc, openDesc, listenedDesc, fullDesc, shakeFailDesc, resumedDesc, shakeDesc, answersDesc, routeTimeDesc}
	gatewayAllDescs = []*prometheus.Desc{connectionsDesc, socketsDesc, waitingDesc, acceptedDesc, handshakesDesc, loginsDesc, takeoversDesc, messagesDesc, requestsDesc, bytesDesc, durableDesc, gatewayRowsDesc, refusedDesc, publishErrsDesc, heldDesc, panicsDesc, reloadsDesc, publishDesc, acknowledgeDesc}
)

func (c gatewayCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range append(doorDescs, gatewayAllDescs...) {
		ch <- d
	}
}

func (c gatewayCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	gauge := func(d *prometheus.Desc, v int64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(connectionsDesc, s.Connections)
	gauge(socketsDesc, s.Sockets)
	gauge(waitingDesc, s.Waiting)
	counter(acceptedDesc, s.Accepted)
	counter(handshakesDesc, s.HandshakesFailed)
	counter(loginsDesc, s.LoginsFailed)
	counter(takeoversDesc, s.Takeovers)
	counter(messagesDesc, s.Messages)
	counter(requestsDesc, s.Requests)
	counter(bytesDesc, s.Bytes)
	counter(durableDesc, s.RowsDurable)
	counter(publishErrsDesc, s.PublishErrors)
	counter(heldDesc, s.Held)
	counter(panicsDesc, s.Panics)
	counter(reloadsDesc, s.ReloadErrors)
	for reason, n := range s.RowsRefused {
		counter(gatewayRowsDesc, n, reason)
	}
	for reason, n := range s.Refused {
		counter(refusedDesc, n, reason)
	}
	counter(repeatedDesc, s.Repeated)
	for listener, l := range s.Listeners {
		ch <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(l.Open), listener)
		counter(listenedDesc, l.Accepted, listener)
		counter(fullDesc, l.Full, listener)
		counter(shakeFailDesc, l.HandshakesFailed, listener)
		counter(resumedDesc, l.Resumed, listener)
		ch <- histogram(shakeDesc, l.Handshake, listener)
	}
	for route, r := range s.Routes {
		for class, n := range r.Answers {
			if n > 0 {
				counter(answersDesc, n, route, strconv.Itoa(class)+"xx")
			}
		}
		ch <- histogram(routeTimeDesc, r.Time, route)
	}
	ch <- histogram(publishDesc, s.Publish)
	ch <- histogram(acknowledgeDesc, s.Acknowledge)
}

// histogram makes Prometheus's cumulative buckets of ours.
func histogram(d *prometheus.Desc, h ingest.Histogram, labels ...string) prometheus.Metric {
	buckets, sum := map[float64]uint64{}, uint64(0)
	for i := range len(h.Buckets) - 1 {
		sum += h.Buckets[i]
		buckets[h.Bound(i).Seconds()] = sum
	}
	return prometheus.MustNewConstHistogram(d, h.Count, h.Sum.Seconds(), buckets, labels...)
}
