package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/streams"
)

// sourceWait is how long the brokers of a source may take to say what they have.
const sourceWait = 10 * time.Second

// sources says what becomes of topics of others: where a new source begins, what cannot be read, which groups nobody
// reads by any more. They keep no state, so nothing is refused that was not wrong before.
func (p *process) sources(ctx context.Context) []run.Change {
	var changes []run.Change
	for i := range p.plan.Spec.Sources {
		s := &p.plan.Spec.Sources[i]
		if c, ok := p.sourceChange(ctx, s); ok {
			changes = append(changes, c)
		}
	}
	prefix := p.plan.Spec.Name + ".source."
	groups, err := p.client.Groups(ctx, prefix)
	if err != nil {
		return append(changes, run.Change{Sign: "~", What: "sources", Says: []string{"which were there before is not known: " + err.Error()}})
	}
	for _, g := range groups {
		if !slices.ContainsFunc(p.plan.Spec.Sources, func(s pipeline.Source) bool { return s.Group == g }) {
			changes = append(changes, run.Change{Sign: "-", What: "source " + strings.TrimPrefix(g, prefix),
				Says: []string{"its group " + g + " stays, and it goes on where it stood when it is put back"}})
		}
	}
	return changes
}

// sourceChange looks at one source; false says that it goes on where it stands.
func (p *process) sourceChange(ctx context.Context, s *pipeline.Source) (c run.Change, changed bool) {
	ctx, cancel := context.WithTimeout(ctx, sourceWait)
	defer cancel()
	c = run.Change{Sign: "~", What: "source " + s.Name}
	from, end, err := p.clusterOf(ctx, s)
	if err != nil {
		c.Says = []string{fmt.Sprintf("its brokers %s are not reached: %v", strings.Join(s.Kafka.Brokers, ", "), err)}
		return c, true
	}
	defer end()
	info, err := from.Info(ctx, s.Topic)
	if err != nil {
		c.Refused, c.Way = err.Error(), "have the topic made, or name another"
		return c, true
	}
	committed, err := from.Committed(ctx, s.Group, s.Topic)
	if err != nil {
		c.Refused, c.Way = err.Error(), "give its user Read on the group "+s.Group
		return c, true
	}
	for _, at := range committed {
		if at.Offset > 0 || at.Metadata != "" {
			return c, false
		}
	}
	c.Sign = "+"
	where := "at the oldest message that is kept"
	if s.Begin == "last" {
		where = "with what comes next"
	}
	c.Says = []string{fmt.Sprintf("begins %s of %s, %d partitions (begin: %s)", where, s.Topic, info.Partitions, s.Begin)}
	return c, true
}

// clusterOf reaches the brokers that hold a source's topic, and gives what lets go of them.
func (p *process) clusterOf(ctx context.Context, s *pipeline.Source) (from *streams.Client, end func(), err error) {
	if !s.Foreign {
		return p.client, func() {}, nil
	}
	c := streams.New()
	c.Brokers, c.TLS, c.SASL, c.RequestTimeout = s.Kafka.Brokers, s.Kafka.TLS, s.Kafka.SASL, s.Kafka.RequestTimeout
	if from, err = streams.Dial(ctx, c, p.log); err != nil {
		return nil, nil, err
	}
	return from, func() { _ = from.Close() }, nil // it only fails when it is closed
}
