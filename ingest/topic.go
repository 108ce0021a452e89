package ingest

import (
	"strings"
)

// topicBytesMax bounds topics and filters; MQTT's own limit is 65,535.
const topicBytesMax = 1024

// badTopic says why a topic name cannot be published to, "" when it can (section 4.7).
func badTopic(t string) string {
	switch {
	case t == "":
		return "is empty"
	case len(t) > topicBytesMax:
		return "is too long"
	case strings.ContainsAny(t, "+#"):
		return "holds a wildcard"
	}
	return badRunes(t, false)
}

// badFilter says why a topic filter is none, "" when it is one.
func badFilter(f string) string {
	switch {
	case f == "":
		return "is empty"
	case len(f) > topicBytesMax:
		return "is too long"
	}
	for rest, last := f, false; !last; {
		var level string
		var more bool
		level, rest, more = strings.Cut(rest, "/")
		last = !more
		if strings.Contains(level, "#") && (level != "#" || !last) {
			return "has # elsewhere than as its last level"
		}
		if strings.Contains(level, "+") && level != "+" {
			return "has + beside other characters in a level"
		}
	}
	return badRunes(f, false)
}

// matches says whether a topic name is in a filter.
func matches(filter, topic string) bool {
	for {
		if filter == "#" {
			return true
		}
		f, frest, fmore := strings.Cut(filter, "/")
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		switch {
		case fmore && tmore:
			filter, topic = frest, trest
		case fmore:
			return frest == "#" // a/# is also a
		default:
			return !tmore
		}
	}
}

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
