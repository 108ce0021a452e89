package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
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

// change goes on with pipeline.yaml as it was saved: the stages and sinks stop, save their checkpoints, and start with the new plan;
// the gateways, the broker and ClickHouse run on, so what comes in meanwhile waits on Kafka. What does not fit, what would lose
// something, and what only a start can change, leaves all as it is, and is said. It is called by the goroutine that
// draws the screen, and nothing else reads the plan while nodes and console are stopped.
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
	if u.user == nil && usesEmbeddedClickHouse(plan) {
		s.say("%s was saved with the embedded ClickHouse, which is started at the next start; what runs goes on as it was", u.pipeline)
		return
	}
	next := u.with(plan)
	next.configure(u.user)
	changes, err := next.runner(run.Drain{}, nil).Changes(ctx, run.Consent{})
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
	if err := u.swap(ctx, next); err != nil {
		u.fatal(fmt.Errorf("go on with %s as it was saved: %w", u.pipeline, err))
		return
	}
	s.say("%s was saved: %d stages and %d sinks go on with it, after %v", u.pipeline, len(plan.Spec.Stages), len(plan.Sinks), time.Since(begun).Round(10*time.Millisecond))
}

// swap stops the nodes and the console, and starts those of the next plan.
func (u *up) swap(ctx context.Context, next *process) error {
	stopped := append(append([]*service{u.pages}, u.sources...), u.nodes...)
	for _, v := range stopped {
		v.stop() // all at once
	}
	for _, v := range stopped {
		v.end()
	}
	u.books.close()
	u.process = next
	if err := u.runner(run.Drain{}, nil).Ensure(ctx); err != nil {
		return err
	}
	if err := u.startNodes(ctx); err != nil {
		return err
	}
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
