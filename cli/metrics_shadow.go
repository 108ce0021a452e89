package cli

import (
	"hearthline/ingest/live"
	"hearthline/ingest/shadow"
)

var (
	shadowChangesDesc   = gatewayDesc("shadow_changes_total", "Changes of shadows that this gateway wrote.", "half")
	shadowUnchangedDesc = gatewayDesc("shadow_unchanged_total", "Changes that asked for what was so already, and were not written.")
	shadowRefusedDesc   = gatewayDesc("shadow_refused_total", "Changes of shadows that were invalid, over a limit, or meant for another version.")
	shadowConflictsDesc = gatewayDesc("shadow_conflicts_total", "Attempts that were made anew, because another gateway was first.")
	shadowDeltasDesc    = gatewayDesc("shadow_deltas_total", "Deltas sent to hubs here (sent), acknowledged by them (acknowledged), and those for which a hub had no room (owed).", "state")
	shadowPendingDesc   = gatewayDesc("shadow_pending", "Changes of shadows that are being written.")
	shadowWriteDesc     = gatewayDesc("shadow_write_seconds", "Time from taking a change of a shadow until it stood, or had failed.")

	liveStreamsDesc = gatewayDesc("live_streams", "Live streams of homes that are open.")
	liveEventsDesc  = gatewayDesc("live_events_total", "Events sent by live streams.")
	liveResumedDesc = gatewayDesc("live_resumed_total", "Live streams that went on where another one had ended.")
	liveSlowDesc    = gatewayDesc("live_slow_total", "Live streams that were ended, because their reader took nothing.")
	liveLateDesc    = gatewayDesc("live_late_total", "Times a reader was too slow for each change, and was told what stood.")
)

func (to sender) shadow(s *shadow.Stats) {
	if s == nil {
		return
	}
	to.count(shadowChangesDesc, s.Desired, "desired")
	to.count(shadowChangesDesc, s.Reported, "reported")
	to.count(shadowUnchangedDesc, s.Unchanged)
	to.count(shadowRefusedDesc, s.Refused)
	to.count(shadowConflictsDesc, s.Conflicts)
	to.count(shadowDeltasDesc, s.Deltas, "sent")
	to.count(shadowDeltasDesc, s.Acked, "acknowledged")
	to.count(shadowDeltasDesc, s.Owed, "owed")
	to.gauge(shadowPendingDesc, s.Pending)
	to.histogram(shadowWriteDesc, s.Write)
}

func (to sender) live(s *live.Stats) {
	if s == nil {
		return
	}
	to.gauge(liveStreamsDesc, s.Open)
	to.count(liveEventsDesc, s.Events)
	to.count(liveResumedDesc, s.Resumed)
	to.count(liveSlowDesc, s.Slow)
	to.count(liveLateDesc, s.Late)
}
