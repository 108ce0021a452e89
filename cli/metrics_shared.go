package cli

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hearthline/ingest"
	"hearthline/ingest/commands"
	"hearthline/ingest/latency"
	"hearthline/ingest/peers"
	"hearthline/ingest/table"
)

// What gateways share, and keep for their clients. Labels are tables and states: lists in the code.
var (
	sessionsDesc     = gatewayDesc("sessions", "Sessions that this gateway holds: connected, or resting while their clients are away.", "state")
	keptMessagesDesc = gatewayDesc("session_messages", "QoS 1 and 2 messages kept for clients that are away, slow, or have not acknowledged them.")
	keptBytesDesc    = gatewayDesc("session_bytes", "Bytes of these messages.")

	peersKnownDesc     = gatewayDesc("peers_known", "Other gateways that live, as the table of gateways says.")
	peersConnectedDesc = gatewayDesc("peers_connected", "Of them, those that are reached now.")
	peersQueuedDesc    = gatewayDesc("peers_queued_messages", "Messages that wait for other gateways.")
	peersMessagesDesc  = gatewayDesc("peers_messages_total", "Messages passed on to other gateways (sent), handed in by them (received), and not passed on because one was too slow or away (lost).", "direction")
	peersCallDesc      = gatewayDesc("peers_call_seconds", "Time of handing a command to another gateway, answered.")
	peersFailedDesc    = gatewayDesc("peers_calls_failed_total", "Calls to other gateways that were not answered.")
	peersEvictedDesc   = gatewayDesc("peers_sessions_lost_total", "Sessions whose clients came to another gateway.")
	peersHandoverDesc  = gatewayDesc("peers_handovers_total", "Sessions got from another gateway when their clients came here (taken), given to another (given), and asked for in vain (unanswered).", "outcome")
	peersWillsDesc     = gatewayDesc("peers_wills_total", "Wills of clients of gateways that were gone, published by this one.")
	peersRetiredDesc   = gatewayDesc("peers_retired_total", "Gateways that died, whose leavings this one took out of the tables.")

	tableRecordsDesc  = gatewayDesc("table_records", "Keys in a table that gateways share.", "table")
	tableBytesDesc    = gatewayDesc("table_bytes", "Memory that a table takes in this gateway.", "table")
	tableMaxDesc      = gatewayDesc("table_bytes_max", "What it may take (table_bytes_max); beyond, no new keys are put.", "table")
	tableLagDesc      = gatewayDesc("table_lag_records", "Records that stand in a table's stream and are not read yet.", "table")
	tableSilenceDesc  = gatewayDesc("table_silence_seconds", "Time since Kafka last answered for a table, of the partition for which that is longest.", "table")
	tablePutsDesc     = gatewayDesc("table_puts_total", "Records that this gateway has put.", "table")
	tableAppendsDesc  = gatewayDesc("table_appends_total", "Requests to Kafka by which they were.", "table")
	tableFailedDesc   = gatewayDesc("table_appends_failed_total", "Of these requests, those that Kafka did not take.", "table")
	tableChangesDesc  = gatewayDesc("table_changes_total", "Records that took effect, of all gateways.", "table")
	tableRefusedDesc  = gatewayDesc("table_refused_total", "Records that came too late to take effect, of all gateways.", "table")
	tableRewritesDesc = gatewayDesc("table_rewrites_total", "Records written again by this gateway, to stand behind refused ones.", "table")
	tableLostDesc     = gatewayDesc("table_watchers_lost_total", "Watchers that did not keep up, and looked anew.", "table")

	commandsDesc         = gatewayDesc("commands_total", "Steps of commands that this gateway saw.", "state")
	commandsOpenDesc     = gatewayDesc("commands_open", "Commands that have not ended, by how far they are: of all gateways, as this one knows.", "state")
	commandsTimeDesc     = gatewayDesc("command_seconds", "Time from a command's acceptance until its hub had it (delivered), or had done it (executed).", "until")
	commandsRepeatedDesc = gatewayDesc("commands_repeated_total", "Commands that came again under their id, and were not sent again.")
	commandsAwayDesc     = gatewayDesc("commands_away_total", "Commands that no gateway had a hub for when they were accepted; they wait in the table.")
	commandsReroutedDesc = gatewayDesc("commands_rerouted_total", "Commands whose hub had just gone to another gateway, and was looked for again.")
	commandsStreamsDesc  = gatewayDesc("command_streams", "Event streams of commands that are open.")
	commandsDroppedDesc  = gatewayDesc("commands_audit_dropped_total", "Steps of commands that are missing in their stream, because Kafka did not take them in time.")
)

// sender gives single values to Prometheus.
type sender struct{ ch chan<- prometheus.Metric }

func (to sender) value(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels []string) {
	to.ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
}

func (to sender) gauge(d *prometheus.Desc, v int64, labels ...string) {
	to.value(d, prometheus.GaugeValue, float64(v), labels)
}

func (to sender) counter(d *prometheus.Desc, v uint64, labels ...string) {
	to.value(d, prometheus.CounterValue, float64(v), labels)
}

func (to sender) count(d *prometheus.Desc, v int64, labels ...string) {
	to.value(d, prometheus.CounterValue, float64(v), labels)
}

// instant gives a time, unless there is none.
func (to sender) instant(d *prometheus.Desc, t time.Time, labels ...string) {
	if !t.IsZero() {
		to.value(d, prometheus.GaugeValue, float64(t.Unix()), labels)
	}
}

func (to sender) histogram(d *prometheus.Desc, h latency.Histogram, labels ...string) {
	to.ch <- histogram(d, h, labels...)
}

func (to sender) sessions(s *ingest.Stats) {
	to.gauge(sessionsDesc, s.Sessions-s.SessionsAway, "connected")
	to.gauge(sessionsDesc, s.SessionsAway, "resting")
	to.gauge(keptMessagesDesc, s.KeptMessages)
	to.gauge(keptBytesDesc, s.KeptBytes)
}

func (to sender) peers(s *peers.Stats) {
	if s == nil {
		return
	}
	to.gauge(peersKnownDesc, int64(s.Others))
	to.gauge(peersConnectedDesc, int64(s.Connected))
	to.gauge(peersQueuedDesc, int64(s.Queued))
	to.count(peersMessagesDesc, s.Sent, "sent")
	to.count(peersMessagesDesc, s.Received, "received")
	to.count(peersMessagesDesc, s.Lost, "lost")
	to.histogram(peersCallDesc, s.Call)
	to.count(peersFailedDesc, s.Failed)
	to.count(peersEvictedDesc, s.Evicted)
	to.count(peersHandoverDesc, s.Taken, "taken")
	to.count(peersHandoverDesc, s.Given, "given")
	to.count(peersHandoverDesc, s.Unanswered, "unanswered")
	to.count(peersWillsDesc, s.Wills)
	to.count(peersRetiredDesc, s.Retired)
	to.instant(expiresDesc, s.Expires, "peers")
}

func (to sender) tables(tables map[string]table.Stats) {
	for name, s := range tables {
		to.gauge(tableRecordsDesc, s.Keys, name)
		to.gauge(tableBytesDesc, s.Bytes, name)
		to.gauge(tableMaxDesc, s.BytesMax, name)
		to.gauge(tableLagDesc, s.Lag, name)
		to.value(tableSilenceDesc, prometheus.GaugeValue, s.Silence.Seconds(), []string{name})
		to.count(tablePutsDesc, s.Puts, name)
		to.count(tableAppendsDesc, s.Appends, name)
		to.count(tableFailedDesc, s.Failed, name)
		to.count(tableChangesDesc, s.Changes, name)
		to.count(tableRefusedDesc, s.Refused, name)
		to.count(tableRewritesDesc, s.Repairs, name)
		to.count(tableLostDesc, s.Lost, name)
	}
}

func (to sender) commands(s *commands.Stats, dropped int64) {
	if s == nil {
		return
	}
	for state, n := range map[commands.State]int64{commands.Accepted: s.Accepted, commands.Sent: s.Sent, commands.Delivered: s.Delivered,
		commands.Executed: s.Executed, commands.Failed: s.Failed, commands.Expired: s.Expired} {
		to.count(commandsDesc, n, state.String())
	}
	for state := commands.Accepted; !state.Final(); state++ {
		to.gauge(commandsOpenDesc, s.Open[state], state.String())
	}
	to.histogram(commandsTimeDesc, s.UntilDelivered, "delivered")
	to.histogram(commandsTimeDesc, s.UntilExecuted, "executed")
	to.count(commandsRepeatedDesc, s.Repeated)
	to.count(commandsAwayDesc, s.Away)
	to.count(commandsReroutedDesc, s.Rerouted)
	to.gauge(commandsStreamsDesc, s.Streams)
	to.count(commandsDroppedDesc, dropped)
}
