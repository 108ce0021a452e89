package pipeline

import "hearthline/flow"

// workers notes whether a stage runs in processes of its own, and says to it how they are run, where the file does.
func (p *planner) workers(node *StageNode) {
	if node.New == nil {
		return
	}
	_, in := node.New().(flow.InWorkers)
	node.InWorkers = node.InWorkers || in
	if node.Workers == nil || node.Workers.Validate() != nil {
		return
	}
	inner, settings := node.New, *node.Workers
	if !in {
		p.find(node.at.of("workers"), node.path()+".workers", "leave it out; parallel says how many batches it takes at once", "stage %s has no workers: it runs in this process", node.Use)
		return
	}
	node.New = func() flow.Stage {
		stage := inner()
		stage.(flow.InWorkers).UseWorkers(settings)
		return stage
	}
}
