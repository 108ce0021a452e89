package console

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Verdict answers "why is it not moving?" in a sentence.
type Verdict struct {
	Level     string `json:"level"` // ok, idle, slow or stuck
	Text      string `json:"text"`
	Node      string `json:"node,omitempty"`      // what holds things up
	Stream    string `json:"stream,omitempty"`    // and where
	Partition int32  `json:"partition,omitempty"` // and on which partition, where Stream is set
}

// silentAge is how old the time of a partition may be though nothing waits on it: gateways send a heartbeat each
// second, so beyond this its gateway is silent.
const silentAge = 15.0

// judge finds what holds the pipeline up. What is furthest from working comes first: a node that fails, then one
// that stands, then one that falls behind, then a gateway that is silent.
func judge(g *Graph, s *Status) Verdict {
	for _, find := range []func(*Graph, *Status) *Verdict{restarting, retrying, stuck, slow, silent} {
		if v := find(g, s); v != nil {
			return *v
		}
	}
	return moving(g, s)
}

func restarting(_ *Graph, s *Status) *Verdict {
	for _, n := range s.Nodes {
		if n.Restarting > 0 {
			return &Verdict{Level: "stuck", Node: n.Name, Text: fmt.Sprintf(
				"%s ended with an error and was started again %s in the last minute; the log says why.", n.Name, times(n.Restarting))}
		}
	}
	return nil
}

func retrying(_ *Graph, s *Status) *Verdict {
	for _, n := range s.Nodes {
		if n.Retrying > 0 && n.InRate == 0 {
			return &Verdict{Level: "stuck", Node: n.Name, Text: fmt.Sprintf(
				"%s waits for the world: it tried again %s in the last minute (a network, a disk, a server that is away); the log says which.",
				n.Name, times(n.Retrying))}
		}
	}
	return nil
}

// worst finds the edge in a state on which most messages wait, and how many others are in that state.
func worst(s *Status, state string) (e *EdgeView, others int) {
	var found []*EdgeView
	for i := range s.Edges {
		if s.Edges[i].State == state {
			found = append(found, &s.Edges[i])
		}
	}
	if len(found) == 0 {
		return nil, 0
	}
	slices.SortStableFunc(found, func(a, b *EdgeView) int { return cmp.Compare(b.Lag, a.Lag) })
	return found[0], len(found) - 1
}

func stuck(_ *Graph, s *Status) *Verdict {
	e, others := worst(s, "stuck")
	if e == nil {
		return nil
	}
	text := fmt.Sprintf("%s stands still on %s/%d: %s messages wait and none was taken for %s.",
		e.Reader, e.Stream, e.Partition, thousands(e.Lags[e.Partition]), age(e.StillFor))
	return &Verdict{Level: "stuck", Node: e.Reader, Stream: e.Stream, Partition: e.Partition, Text: text + more(others)}
}

func slow(_ *Graph, s *Status) *Verdict {
	e, others := worst(s, "slow")
	if e == nil {
		return nil
	}
	text := fmt.Sprintf("%s falls behind on %s: %s messages wait", e.Reader, e.Stream, thousands(e.Lag))
	if e.LagRise > 0 {
		text += fmt.Sprintf(", %.1f more each second", e.LagRise)
	} else if e.LagRise < 0 {
		text += fmt.Sprintf(", and it catches up: %s to go", age(float64(e.Lag)/-e.LagRise))
	}
	if e.Partition >= 0 && int(e.Partition) < len(e.Lags) {
		text += fmt.Sprintf("; most of them on partition %d (%s)", e.Partition, thousands(e.Lags[e.Partition]))
	}
	return &Verdict{Level: "slow", Node: e.Reader, Stream: e.Stream, Partition: e.Partition, Text: text + "." + more(others)}
}

// silent finds a stream on which time itself does not pass.
func silent(g *Graph, s *Status) *Verdict {
	for i := range s.Edges {
		e := &s.Edges[i]
		if e.Lag != 0 || e.WatermarkAge < silentAge || g.stream(e.Stream).Dead {
			continue
		}
		return &Verdict{Level: "slow", Node: e.Reader, Stream: e.Stream, Partition: e.Partition, Text: fmt.Sprintf(
			"Nothing came on %s/%d for %s, not even a heartbeat: whoever writes it is silent, and windows wait for it.",
			e.Stream, e.Partition, age(e.WatermarkAge))}
	}
	return nil
}

func moving(g *Graph, s *Status) Verdict {
	in, rows, seen := 0.0, int64(0), false
	for _, v := range s.Streams {
		stream := g.stream(v.Name)
		if stream.Writer != gatewayName {
			continue
		}
		in, rows = in+v.Rate, rows+v.Rows
		for _, n := range s.Nodes {
			seen = seen || sameNode(n.Name, gatewayName) || slices.Contains(stream.Readers, n.Name)
		}
	}
	if !seen && len(s.Nodes) > 0 {
		return role(g, s)
	}
	switch {
	case rows == 0:
		return Verdict{Level: "idle", Text: "Ready. No row has come in yet."}
	case in == 0:
		return Verdict{Level: "idle", Text: "All caught up. No rows come in at the moment."}
	}
	text := fmt.Sprintf("Moving: %s rows a second come in", thousands(int64(in+0.5)))
	behind := &EdgeView{WatermarkAge: -1}
	for i := range s.Edges {
		if s.Edges[i].WatermarkAge > behind.WatermarkAge && !g.stream(s.Edges[i].Stream).Dead {
			behind = &s.Edges[i]
		}
	}
	if behind.WatermarkAge < 0 {
		return Verdict{Level: "ok", Text: text + "."}
	}
	return Verdict{Level: "ok", Text: fmt.Sprintf("%s; furthest from now is %s on %s/%d, by %s.",
		text, behind.Reader, behind.Stream, behind.Partition, age(behind.WatermarkAge))}
}

// role speaks of a process that runs a part of the graph, and sees nothing of the rows that come in.
func role(g *Graph, s *Status) Verdict {
	var names []string
	in := 0.0
	for _, n := range s.Nodes {
		if g.node(n.Name) != nil {
			names, in = append(names, n.Name), in+n.InRate
		}
	}
	here := "This process runs " + strings.Join(names, ", ")
	if in == 0 {
		return Verdict{Level: "idle", Text: here + "; no rows come to it at the moment."}
	}
	return Verdict{Level: "ok", Text: fmt.Sprintf("Moving. %s: %s rows a second.", here, thousands(int64(in+0.5)))}
}

func more(others int) string {
	switch others {
	case 0:
		return ""
	case 1:
		return " One more edge is like that."
	}
	return fmt.Sprintf(" %d more edges are like that.", others)
}

func times(n int64) string {
	if n == 1 {
		return "once"
	}
	return thousands(n) + " times"
}

// age writes seconds in the unit that fits.
func age(seconds float64) string {
	switch {
	case seconds < 10:
		return fmt.Sprintf("%.1f s", seconds)
	case seconds < 120:
		return fmt.Sprintf("%.0f s", seconds)
	case seconds < 2*3600:
		return fmt.Sprintf("%.0f min", seconds/60)
	case seconds < 48*3600:
		return fmt.Sprintf("%.0f h", seconds/3600)
	}
	return fmt.Sprintf("%.0f days", seconds/(24*time.Hour).Seconds())
}

// thousands writes 1234567 as 1,234,567.
func thousands(n int64) string {
	digits := strconv.FormatInt(n, 10)
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}
