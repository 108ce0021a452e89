package cli

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"hearthline/pipeline"
)

// readiness is what a role's probes are answered: not ready with a reason, until it has something better to say.
type readiness struct {
	mu      sync.Mutex
	isLive  func() error
	isReady func() error
}

func newReadiness(waiting string) *readiness {
	return &readiness{isLive: func() error { return nil }, isReady: func() error { return errors.New(waiting) }}
}

func (r *readiness) set(live, ready func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isLive, r.isReady = live, ready
}

func (r *readiness) live() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.isLive()
}

func (r *readiness) ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.isReady()
}

func stageNames(p *pipeline.Plan) string {
	var names []string
	for _, u := range p.Units {
		for _, s := range u.Stages {
			names = append(names, s.Name)
		}
	}
	return strings.Join(names, ", ")
}

func sinkNames(p *pipeline.Plan) string {
	var names []string
	for _, s := range p.Sinks {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

func hasSink(p *pipeline.Plan, name string) bool {
	return slices.ContainsFunc(p.Sinks, func(s *pipeline.SinkNode) bool { return s.Name == name })
}
