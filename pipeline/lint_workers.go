package pipeline

import "hearthline/flow"

// workers says to a stage how its processes are run, where the file does.
func (p *planner) workers(node *StageNode) {
	if node.Workers == nil || node.New == nil || node.Workers.Validate() != nil {
		return
	}
	inner, settings := node.New, *node.Workers
	if _, ok := inner().(flow.InWorkers); !ok {
		p.find(node.at.of("workers"), node.path()+".workers", "leave it out; parallel says how many batches it takes at once", "stage %s has no workers: it runs in this process", node.Use)
		return
	}
	node.New = func() flow.Stage {
		stage := inner()
		stage.(flow.InWorkers).UseWorkers(settings)
		return stage
	}
}
