package run

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"hearthline/flow"
	"hearthline/pipeline"
)

// A task hands its partition over to another version of a stage between two messages, without leaving its group: it
// finishes what it has in hand, saves a checkpoint, makes of it the one that the other version goes on from, and is made anew
// with that. Which version a partition is at stands in the checkpoint alone, so that whoever takes the partition over,
// after kill -9 too, goes on with the right one.
//
// Nothing is handed over before the task has taken all that its inputs held when it took up the partition. Whatever a task
// before it, killed, may have published beyond its last checkpoint is made of that: it has been made again by the same version,
// and no message is ever made something of by two.
//
// A shadow that is promoted goes on from its own last checkpoint, which lies a little before or behind the stage's. Behind:
// the stage works on until it is there. Before: the shadow's version takes what lies between once more, muted: it learns
// from it, and what it makes of it is not published, since the stage has made it.

// Limits of a hand-over.
const (
	lookEvery = 50 * time.Millisecond // for a decision, and for the shadow's last checkpoint
	// How long a stage waits for its shadow to stop. Then the last checkpoint it has does, and what lies between takes longer.
	holdWait = 10 * time.Second
)

// turn is what a task knows of the hand-over that it may be heading for. It is used by the goroutine of task.read alone
// until that has returned.
type turn struct {
	watch *trialWatch
	reach map[string]int64 // stream → what it held when the task took up the partition
	looks time.Time        // when to look again

	promotion *trialNote // being carried out
	since     time.Time
	from      *checkpoint // the shadow's, which is gone on from
	canaries  map[string]float64
	due       bool        // the task ends here, to be made anew
	last      *checkpoint // the task's own
}

// watchful gives a task what it has to look at, where its unit tries a second version.
func (t *task) watchful(ctx context.Context, w *trialWatch) error {
	if w == nil {
		return nil
	}
	t.turn = &turn{watch: w, reach: map[string]int64{}}
	for _, in := range t.inputs {
		_, next, err := t.r.road.Bounds(ctx, in.stream, t.partition)
		if err != nil {
			return err
		}
		t.turn.reach[in.stream] = next
	}
	return nil
}

// turns says whether the task ends here, to be made anew. Trouble is told and does not keep the task from its work.
func (t *task) turns(ctx context.Context) bool {
	n := t.turn
	if n == nil || n.due || time.Now().Before(n.looks) || slices.ContainsFunc(t.inputs, func(in *input) bool { return in.ended }) {
		return n != nil && n.due
	}
	n.looks = time.Now().Add(lookEvery)
	var err error
	switch {
	case n.watch.shadow:
		of := firstOf(t.r.Plan, n.watch.unit).Stages[0].ID()
		if n.promotion = n.watch.promotion(of); n.promotion != nil && n.promotion.Done.IsZero() {
			t.held, n.due = n.promotion.ID, true
		}
	case !t.reached(n.reach):
	default:
		err = t.turnsTo(ctx, n)
	}
	if err != nil && ctx.Err() == nil {
		n.looks = time.Now().Add(time.Second)
		t.r.Log.Warn("a promotion waits", "node", t.unit.Name, "partition", t.partition, "error", err)
	}
	return n.due
}

// reached says whether every input has come to an offset.
func (t *task) reached(offsets map[string]int64) bool {
	return !slices.ContainsFunc(t.inputs, func(in *input) bool { return in.next < offsets[in.stream] })
}

// turnsTo looks for a decision about a stage of the unit, and whether its time has come.
func (t *task) turnsTo(ctx context.Context, n *turn) error {
	for _, s := range t.unit.Stages {
		if s.Trial == nil {
			continue
		}
		p := n.watch.promotion(s.ID())
		switch {
		case p == nil || !p.Done.IsZero() || t.promoted[s.ID()] == p.ID:
		case s.Trial.Kind == pipeline.TrialCanary:
			n.promotion, n.due = p, true
			return nil
		default:
			return t.turnsToShadow(ctx, n, s, p)
		}
	}
	if n.canaries = t.wanted(n.watch); !maps.Equal(n.canaries, t.canaries) {
		n.due = true
	}
	return nil
}

// turnsToShadow waits for the shadow to stop, and until the stage is where it stopped.
func (t *task) turnsToShadow(ctx context.Context, n *turn, s *pipeline.StageNode, p *trialNote) error {
	if n.promotion == nil {
		n.promotion, n.since = p, time.Now()
	}
	if n.from == nil {
		c, err := t.r.checkpointOf(ctx, shadowOf(t.r.Plan, s), t.partition)
		switch {
		case err != nil:
			return err
		case c == nil:
			return fmt.Errorf("the shadow of %s: %w", s.Name, errNothingYet)
		case c.Held != p.ID && time.Since(n.since) < holdWait:
			return nil
		}
		for _, in := range t.inputs {
			i := slices.IndexFunc(c.Inputs, func(m inputMark) bool { return m.Stream == in.stream })
			if i < 0 || c.Inputs[i].StreamID != in.id {
				return fmt.Errorf("the shadow's checkpoint says nothing of %s as it is now", in.stream)
			}
		}
		n.from = c
	}
	n.looks = time.Time{} // it may be there with the next message
	for _, m := range n.from.Inputs {
		if i := slices.IndexFunc(t.inputs, func(in *input) bool { return in.stream == m.Stream }); i >= 0 && t.inputs[i].next < m.Next {
			return nil
		}
	}
	n.due = true
	return nil
}

// wanted is the canaries that the plan has and nobody has dropped; nil when there are none.
func (t *task) wanted(w *trialWatch) map[string]float64 {
	var all map[string]float64
	for _, s := range t.unit.Stages {
		if s.Canary == nil || w != nil && w.dropped(s.ID()) {
			continue
		}
		if all == nil {
			all = map[string]float64{}
		}
		all[s.ID()] = s.Canary.Percent
	}
	return all
}

// next makes the checkpoint, valid from now on, that the task is made anew from.
func (n *turn) next(ctx context.Context, t *task) (*checkpoint, error) {
	c := n.last
	now := &checkpoint{
		Inputs: c.Inputs, Watermark: c.Watermark, Told: c.Told, Muted: c.Muted, state: maps.Clone(c.state),
		Promoted: maps.Clone(c.Promoted), Canaries: c.Canaries,
	}
	if now.state == nil {
		now.state = map[string][]byte{}
	}
	p := n.promotion
	switch {
	case p == nil:
		if err := n.otherCanaries(ctx, t, now); err != nil {
			return nil, err
		}
	case n.from != nil:
		n.goOnFrom(now, p)
	default:
		canary := canaryID(p.Stage)
		delete(now.state, p.Stage)
		if state, ok := c.state[canary]; ok {
			now.state[p.Stage] = state
		}
		delete(now.state, canary)
		now.Canaries = maps.Clone(c.Canaries)
		delete(now.Canaries, p.Stage)
	}
	if p != nil {
		if now.Promoted == nil {
			now.Promoted = map[string]string{}
		}
		now.Promoted[p.Stage] = p.ID
	}
	if _, err := t.keeper.save(ctx, t.partition, now); err != nil {
		return nil, err
	}
	return now, nil
}

// otherCanaries gives a canary that begins what it is to begin with, and forgets what one knew that ends.
func (n *turn) otherCanaries(ctx context.Context, t *task, now *checkpoint) error {
	now.Canaries = n.canaries
	for _, s := range t.unit.Stages {
		section := canaryID(s.ID())
		if _, works := n.canaries[s.ID()]; !works {
			delete(now.state, section)
			continue
		}
		if _, worked := n.last.Canaries[s.ID()]; worked {
			continue
		}
		one := &pipeline.StageNode{Stage: pipeline.Stage{Name: s.ID()}, New: s.Canary.New}
		state, err := t.r.begins(ctx, one, s.Canary.State, now.state[s.ID()])
		if err != nil {
			return err
		}
		if state != nil {
			now.state[section] = state
		}
	}
	return nil
}

// goOnFrom sets a checkpoint back to where the shadow was, muted up to where the stage is.
func (n *turn) goOnFrom(now *checkpoint, p *trialNote) {
	now.Muted = map[string]int64{}
	for _, in := range now.Inputs {
		now.Muted[in.Stream] = in.Next
	}
	now.Inputs, now.Watermark = n.from.Inputs, n.from.Watermark
	now.state = map[string][]byte{}
	for id, state := range n.from.state {
		if id == n.shadowID() {
			id = p.Stage
		}
		now.state[id] = state
	}
}

func (n *turn) shadowID() string {
	for _, s := range n.watch.unit.Stages {
		if s.Trial != nil && s.Trial.Kind == pipeline.TrialShadow {
			return shadowOf(n.watch.r.Plan, s).Stages[0].ID()
		}
	}
	return ""
}

// seed is where a shadow begins that has committed nothing: where its stage is, with what the stage remembers, if it is
// to have that. What a stage has taken already comes to neither again.
func (r *Runner) seed(ctx context.Context, unit *pipeline.Unit, partition int32) (*checkpoint, error) {
	one := firstOf(r.Plan, unit)
	c, err := r.checkpointOf(ctx, one, partition)
	if err != nil || c == nil {
		return nil, err
	}
	s := unit.Stages[0]
	state, err := r.begins(ctx, s, one.Stages[0].Trial.State, c.state[one.Stages[0].ID()])
	if err != nil {
		return nil, err
	}
	now := &checkpoint{Inputs: c.Inputs, Watermark: c.Watermark, Told: map[string]flow.Micros{}, state: map[string][]byte{}}
	if state != nil {
		now.state[s.ID()] = state
	}
	for stream, told := range c.Told {
		now.Told[pipeline.Side(stream, pipeline.TrialShadow)] = told
	}
	r.Log.Info("a shadow begins where its stage is", "node", unit.Name, "partition", partition, "state_bytes", len(state), "of", one.Name)
	return now, nil
}

// begins gives the state that a second version begins with: the first's, if it is to have it and understands it.
func (r *Runner) begins(ctx context.Context, node *pipeline.StageNode, how string, state []byte) ([]byte, error) {
	if how == pipeline.StateEmpty || state == nil {
		return nil, nil
	}
	if _, ok := node.New().(flow.Stateful); !ok {
		return nil, nil
	}
	err := fitsInto(ctx, map[string][]byte{node.ID(): state}, node, r.Plan)
	switch {
	case err == nil:
		return state, nil
	case how == pipeline.StateCopy:
		return nil, fmt.Errorf("the second version of %s cannot begin with a copy of the state (%d bytes): %w; `state: empty` lets it begin without", node.Name, len(state), err)
	}
	r.Log.Warn("a second version begins with an empty state, since it does not understand the first's", "node", node.Name, "error", err)
	return nil, nil
}

// takeUp decides with what a task begins: the version that the partition is at, and from which checkpoint.
func (r *Runner) takeUp(ctx context.Context, g *generation, unit *pipeline.Unit, partition int32, saved *checkpoint) (*pipeline.Unit, *checkpoint, bool, error) {
	if g.trial == nil {
		return unit, saved, false, nil
	}
	if g.trial.shadow {
		if saved == nil && !g.set(unit.Inputs, partition) {
			seeded, err := r.seed(ctx, unit, partition)
			return unit, seeded, seeded != nil, err
		}
		return unit, saved, false, nil
	}
	if saved == nil {
		return unit, saved, false, nil
	}
	for _, s := range unit.Stages {
		if p := g.trial.promotion(s.ID()); s.Trial != nil && p != nil && saved.Promoted[s.ID()] == p.ID {
			unit = promoted(r.Plan, unit, s.ID())
		}
	}
	return unit, saved, false, nil
}

// takeUpTrial is what a task has to know where its unit tries a second version.
func (r *Runner) takeUpTrial(ctx context.Context, t *task, g *generation, saved *checkpoint) error {
	if saved != nil {
		t.promoted, t.muted, t.canaries = saved.Promoted, saved.Muted, saved.Canaries
	}
	if g.trial == nil || saved == nil {
		t.canaries = t.wanted(g.trial)
	}
	return t.watchful(ctx, g.trial)
}

// turned gives the checkpoint that a task which has ended is made anew from. A shadow that has stopped waits here until it is
// not wanted any more.
func (r *Runner) turned(ctx context.Context, t *task) (*checkpoint, error) {
	if t.turn.watch.shadow {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	begun := time.Now()
	saved, err := t.turn.next(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("hand over to another version: %w", err)
	}
	if p := t.turn.promotion; p != nil {
		r.Log.Info("handed over to the second version", "node", t.unit.Name, "partition", t.partition, "use", p.Second.Use, "took", time.Since(begun).Round(time.Millisecond))
	} else {
		r.Log.Info("the canary works for other homes from here", "node", t.unit.Name, "partition", t.partition, "percent", saved.Canaries)
	}
	return saved, nil
}

// isMuted says whether what is made of a message has been made by the version before.
func (t *task) isMuted(stream string, offset int64) bool {
	return offset < t.muted[stream]
}

// stillMuted is what a checkpoint keeps of it.
func (t *task) stillMuted() map[string]int64 {
	var still map[string]int64
	for _, in := range t.inputs {
		if upTo := t.muted[in.stream]; in.next < upTo {
			if still == nil {
				still = map[string]int64{}
			}
			still[in.stream] = upTo
		}
	}
	return still
}
