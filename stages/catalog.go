// Package stages lists the stages that a pipeline can be made of. Each has a folder of its own; adding one is a folder and a
// line here.
package stages

import (
	"hearthline/flow"
	"hearthline/stages/alert"
	"hearthline/stages/dedupe"
	"hearthline/stages/enrich"
	"hearthline/stages/features"
	"hearthline/stages/join"
	"hearthline/stages/lookup"
	"hearthline/stages/normalize"
	"hearthline/stages/score"
)

// Catalog gives, by name, what makes each stage with its default settings.
func Catalog() map[string]func() flow.Stage {
	return map[string]func() flow.Stage{
		"normalize": func() flow.Stage { return normalize.New() },
		"dedupe":    func() flow.Stage { return dedupe.New() },
		"enrich":    func() flow.Stage { return enrich.New() },
		"features":  func() flow.Stage { return features.New() },
		"lookup":    func() flow.Stage { return lookup.New() },
		"join":      func() flow.Stage { return join.New() },
		"score":     func() flow.Stage { return score.New() },
		"alert":     func() flow.Stage { return alert.New() },
	}
}
