package cli

import (
	"slices"

	"hearthline/pipeline"
)

// tried says whether a node is a shadow, or a sink that keeps what a second version makes.
func tried(plan *pipeline.Plan, node string) bool {
	if u := plan.Node(node); u != nil {
		return u.Stages[0].ShadowOf != ""
	}
	return slices.ContainsFunc(plan.Sinks, func(s *pipeline.SinkNode) bool {
		return s.Name == node && slices.ContainsFunc(s.Streams, func(stream string) bool { return plan.Streams[stream].Side })
	})
}
