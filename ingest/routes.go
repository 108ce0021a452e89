package ingest

import "strings"

// inHome says whether a topic or filter lies under homes/{home}/. The home is a whole level: no wildcard reaches
// another one.
func inHome(topic, home string) bool {
	rest, ok := strings.CutPrefix(topic, "homes/")
	if !ok {
		return false
	}
	rest, ok = strings.CutPrefix(rest, home)
	return ok && strings.HasPrefix(rest, "/")
}

// telemetryTopic takes homes/{home}/devices/{device}/telemetry[/senml|/arrow] apart. The home has been checked.
func telemetryTopic(topic, home string) (device string, f format, ok bool) {
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
		return device, formatJSON, true
	case "telemetry/senml":
		return device, formatSenML, true
	case "telemetry/arrow":
		return device, formatArrow, true
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
func formatOf(media string) (format, bool) {
	switch media {
	case mediaJSON:
		return formatJSON, true
	case mediaLines, "application/ndjson", "application/jsonl":
		return formatLines, true
	case mediaSenML:
		return formatSenML, true
	case mediaArrow:
		return formatArrow, true
	}
	return 0, false
}
