package cli

import (
	"github.com/prometheus/client_golang/prometheus"

	"hearthline/streams"
)

func kafkaDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hearthline_kafka_"+name, help, labels, nil)
}

var (
	readyDesc          = prometheus.NewDesc("hearthline_ready", "1 while /readyz says yes, else 0.", nil, nil)
	kafkaRequestsDesc  = kafkaDesc("requests_total", "Requests to brokers, by kind.", "kind")
	kafkaFailedDesc    = kafkaDesc("requests_failed_total", "Requests to brokers that got no answer: no connection, connection lost, timeout.")
	kafkaRetriesDesc   = kafkaDesc("retries_total", "Requests sent again, after no answer or a passing error.")
	kafkaConnectsDesc  = kafkaDesc("connects_total", "Connections to brokers that were opened.")
	kafkaBytesDesc     = kafkaDesc("bytes_total", "Bytes of record batches, compressed, retries included.", "direction")
	kafkaBadDesc       = kafkaDesc("bad_messages_total", "Messages that could not be decoded, and were left out.")
	kafkaForgottenDesc = kafkaDesc("producer_ids_renewed_total", "Times the brokers had forgotten a producer: one batch may be there twice, and is known by its lineage.")
)

// processCollector gives what every process has: whether it is ready, and how it gets on with Kafka.
type processCollector struct {
	ready func() error
	kafka func() (streams.Stats, bool) // false until there is a client
}

// Describe is of prometheus.Collector. There is no client until the brokers are there, so it is an unchecked collector.
func (processCollector) Describe(chan<- *prometheus.Desc) {}

// Collect is of prometheus.Collector.
func (c processCollector) Collect(ch chan<- prometheus.Metric) {
	to := sender{ch}
	ready := int64(1)
	if c.ready() != nil {
		ready = 0
	}
	to.gauge(readyDesc, ready)
	s, ok := c.kafka()
	if !ok {
		return
	}
	for kind, n := range map[string]int64{"produce": s.Produce, "fetch": s.Fetch, "metadata": s.Metadata, "offsets": s.Offsets, "commit": s.Commits, "heartbeat": s.Heartbeats, "join": s.Joins} {
		to.count(kafkaRequestsDesc, n, kind)
	}
	to.count(kafkaFailedDesc, s.Failures)
	to.count(kafkaRetriesDesc, s.Retries)
	to.count(kafkaConnectsDesc, s.Connects)
	to.count(kafkaBytesDesc, s.BytesOut, "out")
	to.count(kafkaBytesDesc, s.BytesIn, "in")
	to.count(kafkaBadDesc, s.Bad)
	to.count(kafkaForgottenDesc, s.NewIDs)
}
