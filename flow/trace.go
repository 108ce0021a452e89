package flow

import (
	"log/slog"
	"time"
)

// Tracer notes what happens to rows on their way, for tools that draw it. Where nobody traces it is nil, and nothing is done.
type Tracer interface {
	// Span notes something that began at a time and follows from others, named by their traceparents (W3C Trace Context): the
	// first is its parent, the others are linked to it. It gives the span's own traceparent, "" when it is not sampled, and
	// what ends the span.
	Span(name string, begun time.Time, from []string, about ...slog.Attr) (traceparent string, end func(error))
}

// TracesMax is how many traceparents one batch, or one range of a sink, is said to follow from. A batch holds thousands of
// messages, of which few are sampled.
const TracesMax = 16

// TraceparentBytes is the length of a traceparent of version 00.
const TraceparentBytes = 55

// Traced says whether s is a traceparent of a span that is sampled.
func Traced(s string) bool {
	if len(s) != TraceparentBytes || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return false
	}
	trace, span := false, false
	for i := 3; i < len(s); i++ {
		c := s[i]
		if i == 35 || i == 52 {
			continue
		}
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
		trace, span = trace || i < 35 && c != '0', span || i > 35 && i < 52 && c != '0'
	}
	return trace && span && (s[54]-'0')&1 == 1 && s[54] <= '9' || trace && span && s[54] >= 'a' && (s[54]-'a')&1 == 1
}
