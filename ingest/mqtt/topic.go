package mqtt

import (
	"strings"

	"hearthline/ingest/names"
)

// topicBytesMax bounds topics and filters; MQTT's own limit is 65,535.
const topicBytesMax = 1024

// BadTopic says why a topic name cannot be published to, "" when it can (section 4.7).
func BadTopic(t string) string {
	switch {
	case t == "":
		return "is empty"
	case len(t) > topicBytesMax:
		return "is too long"
	case strings.ContainsAny(t, "+#"):
		return "holds a wildcard"
	}
	return names.BadRunes(t, false)
}

// BadFilter says why a topic filter is none, "" when it is one.
func BadFilter(f string) string {
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
	return names.BadRunes(f, false)
}

// Matches says whether a topic name is in a filter. The filter is one ([BadFilter]).
func Matches(filter, topic string) bool {
	j := 0
	for i := 0; i < len(filter); i++ {
		switch c := filter[i]; {
		case c == '#':
			return true
		case c == '+':
			for j < len(topic) && topic[j] != '/' {
				j++
			}
		case j < len(topic) && topic[j] == c:
			j++
		default:
			return j == len(topic) && filter[i:] == "/#" // a/# is also a
		}
	}
	return j == len(topic)
}

// sharePrefix begins the filters of shared subscriptions (section 4.8.2).
const sharePrefix = "$share/"

// Shared takes $share/{group}/{filter} apart. group is "" for a filter that is not shared. bad says why it is neither.
func Shared(filter string) (group, rest, bad string) {
	after, ok := strings.CutPrefix(filter, sharePrefix)
	if !ok {
		return "", filter, ""
	}
	group, rest, ok = strings.Cut(after, "/")
	switch {
	case group == "" || strings.ContainsAny(group, "+#"):
		return "", "", "has no share name, or one with a wildcard"
	case !ok || rest == "":
		return "", "", "is shared and has no filter"
	}
	return group, rest, ""
}
