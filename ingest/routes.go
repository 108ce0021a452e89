package ingest

import (
	"strings"

	"hearthline/ingest/identity"
	"hearthline/ingest/payload"
)

// telemetryTopic takes homes/{home}/devices/{device}/telemetry[/senml|/arrow] apart. The home has been checked.
func telemetryTopic(topic string) (device string, f payload.Format, ok bool) {
	home := identity.HomeOf(topic)
	rest, ok := strings.CutPrefix(topic[len("homes/")+len(home)+1:], "devices/")
	if !ok {
		return "", 0, false
	}
	device, rest, ok = strings.Cut(rest, "/")
	if !ok {
		return "", 0, false
	}
	switch rest {
	case "telemetry":
		return device, payload.FormatJSON, true
	case "telemetry/senml":
		return device, payload.FormatSenML, true
	case "telemetry/arrow":
		return device, payload.FormatArrow, true
	}
	return "", 0, false
}

// Media types of telemetry.
const (
	mediaJSON   = "application/json"
	mediaLines  = "application/x-ndjson"
	mediaSenML  = "application/senml+json"
	mediaArrow  = "application/vnd.apache.arrow.stream"
	mediaReason = "want " + mediaJSON + ", " + mediaLines + ", " + mediaSenML + " or " + mediaArrow
)

// formatOf finds the format of a media type without parameters.
func formatOf(media string) (payload.Format, bool) { return payload.FormatOf(media) }
