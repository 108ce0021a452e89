package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"hearthline/pipeline"
	"hearthline/pipeline/run"
)

// fileLookEvery is how often `up` looks whether pipeline.yaml was saved.
const fileLookEvery = 200 * time.Millisecond

// fileMark is a state of a file: what editors change when they save it.
type fileMark struct {
	size    int64
	changed time.Time
	missing bool
}

func markOf(path string) fileMark {
	st, err := os.Stat(path)
	if err != nil {
		return fileMark{missing: true} // an editor puts it back in a moment
	}
	return fileMark{size: st.Size(), changed: st.ModTime()}
}

// edited says whether pipeline.yaml was saved since it was last read. A file that is just being written is let be until the next look.
func (u *up) edited() bool {
	if !u.follow {
		return false
	}
	now := markOf(u.pipeline)
	return now != u.file && !now.missing && time.Since(now.changed) > fileLookEvery/2
}

// change goes on with pipeline.yaml as it was saved: the stages and sinks that it changes stop, save their checkpoints, and start with the new
// plan. The others, the gateways, the broker and ClickHouse run on; what comes in meanwhile waits on Kafka. What does not fit, what would
// lose something, and what only a start can change, leaves all as it is, and is said. It is called by the goroutine that
// draws the screen, and nobody else reads u's plan: nodes and console have that which they were started with.
func (u *up) change(ctx context.Context, s *screen) {
	begun := time.Now()
	u.file = markOf(u.pipeline)
	plan, err := u.reread(ctx)
	if err != nil {
		s.say("%s was saved and does not fit together; what runs goes on as it was (%v)", u.pipeline, err)
		return
	}
	if key := onlyAtStart(u.plan.Spec, plan.Spec); key != "" {
		s.say("%s was saved with another %s, which takes effect at the next start; what runs goes on as it was", u.pipeline, key)
		return
	}
	if u.engine == nil && usesEmbeddedClickHouse(plan) {
		s.say("%s was saved with the embedded ClickHouse, which is started at the next start; what runs goes on as it was", u.pipeline)
		return
	}
	next := u.with(plan)
	next.configure(u.engine)
	r := next.runner(run.Drain{}, nil)
	changes, err := r.Changes(ctx, run.Consent{})
	if err != nil {
		s.say("%s was saved; what that changes could not be found out, and what runs goes on as it was: %v", u.pipeline, err)
		return
	}
	if len(changes) == 0 && bytes.Equal(u.plan.Spec.Source, plan.Spec.Source) {
		return // saved as it was
	}
	for _, c := range changes {
		if c.Refused != "" || c.Apply {
			s.say("%s was saved; what runs goes on as it was, since %s is not changed while it runs. Stop, then: hearthline plan", u.pipeline, c.What)
			return
		}
	}
	if err := r.Ensure(ctx); err != nil {
		s.say("%s was saved; what runs goes on as it was: %v", u.pipeline, err)
		return
	}
	kept, ran := u.same(plan), u.nodes
	if err := u.swap(ctx, next, kept); err != nil {
		u.fatal(fmt.Errorf("go on with %s as it was saved: %w", u.pipeline, err))
		return
	}
	s.say("%s was saved: %d stages and %d sinks go on with it, after %v%s", u.pipeline, len(plan.Spec.Stages), len(plan.Sinks),
		time.Since(begun).Round(10*time.Millisecond), u.anew(kept))
	for _, c := range changes {
		if c.Sign == "-" && !slices.ContainsFunc(ran, func(v *service) bool { return strings.HasSuffix(c.What, " "+v.name) }) {
			continue // it went long ago, and could be put back
		}
		s.say("  %s %s: %s", c.Sign, c.What, strings.Join(c.Says, "; "))
	}
}

// same gives the nodes that run, and have to do in another plan what they do.
func (u *up) same(plan *pipeline.Plan) map[string]*service {
	kept := map[string]*service{}
	for _, v := range slices.Concat(u.sources, u.nodes) {
		if plan.Same(u.plan, v.name) {
			kept[v.name] = v
		}
	}
	return kept
}

// anew names the nodes that were started, beside those that were kept.
func (u *up) anew(kept map[string]*service) string {
	var names []string
	for _, v := range slices.Concat(u.sources, u.nodes) {
		if kept[v.name] == nil {
			names = append(names, v.name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "; started: " + strings.Join(names, ", ")
}

// swap stops the nodes that are not kept, and starts those of the next plan; then the console, which knows the graph, too. A sink may take
// seconds to write what it has in hand: only its successor waits for that.
func (u *up) swap(ctx context.Context, next *process, kept map[string]*service) error {
	gone := func(v *service) bool { return kept[v.name] != v }
	isSink := func(v *service) bool {
		return slices.ContainsFunc(u.plan.Sinks, func(s *pipeline.SinkNode) bool { return s.Name == v.name })
	}
	leaving := map[string]*service{}
	u.pages.stop()
	for _, v := range slices.Concat(u.sources, u.nodes) {
		if gone(v) {
			v.stop() // all at once
		}
	}
	for _, v := range slices.Concat(u.sources, u.nodes) {
		if gone(v) && isSink(v) {
			leaving[v.name] = v
		} else if gone(v) {
			v.end()
		}
	}
	u.process = next
	u.startNodes(ctx, kept, leaving)
	u.pages.end()
	u.books.close()
	return u.startConsole(ctx)
}

// onlyAtStart names what differs of two plans that only a start can change; "" when nothing does.
func onlyAtStart(was, now *pipeline.Spec) string {
	switch {
	case was.Name != now.Name:
		return "name"
	case was.Partitions != now.Partitions:
		return "number of partitions"
	case !was.Kafka.Same(now.Kafka):
		return "kafka"
	case was.Durability != now.Durability:
		return "durability"
	case was.CheckpointStore.To != now.CheckpointStore.To || was.CheckpointStore.S3 != now.CheckpointStore.S3:
		return "checkpoint store"
	case was.Gateway.To != now.Gateway.To || was.Gateway.Commands != now.Gateway.Commands || textOf(was.Gateway.Settings) != textOf(now.Gateway.Settings):
		return "gateway"
	case !was.Console.Same(now.Console): // who may see it is looked at before anything listens
		return "console"
	}
	return ""
}

// textOf is a node of YAML as text, without comments.
func textOf(n yaml.Node) string {
	var v any
	if n.Kind == 0 || n.Decode(&v) != nil {
		return ""
	}
	text, err := yaml.Marshal(v)
	if err != nil {
		return ""
	}
	return string(text)
}
