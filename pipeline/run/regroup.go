package run

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"hearthline/flow"
	"hearthline/pipeline"
)

// regroup plans what follows when stages run together otherwise than before. A checkpoint belongs to a unit; those
// of the old units are taken apart and put together for the new ones. It is right if every batch that an old unit ever
// published is covered by its last checkpoint, which is so when the unit has taken all of its inputs and
// stands still: what it published it made of what it has read.
//
// Where a stream between two stages leaves Kafka, its reader must have taken all of it; where it comes to Kafka,
// its reader begins at its end. Lineage names the input a batch was made of: a stage that reads another stream than
// before is a new source to its readers, and one that reads what it once read goes on above its old mark.
func (p *planner) regroup(ctx context.Context) error {
	if len(p.regrouped) == 0 {
		return nil
	}
	p.dissolved = map[string]bool{}
	var old []*groupFound
	for _, u := range p.regrouped {
		for _, st := range u.Stages {
			if g := p.owner(st.ID(), kindStage); g != nil && !p.dissolved[g.name] {
				p.dissolved[g.name] = true
				old = append(old, g)
			}
		}
	}
	c := Change{Sign: "~", What: "stages that run together", Apply: true, stop: old, drain: old}
	for _, g := range old {
		c.Says = append(c.Says, "until now: "+g.short(p.r))
		for _, id := range g.ids {
			if p.r.planned(id) {
				continue
			}
			if slices.Contains(p.consent.Forget, id) {
				c.Says = append(c.Says, "stage "+id+" is gone, and so is its state")
			} else {
				c.Refused, c.Way = fmt.Sprintf("stage %s, which ran in %s, is gone from the file: its state would be lost", id, g.short(p.r)),
					fmt.Sprintf("if it was renamed, write `was: %s`; if not, --forget %s", id, id)
			}
		}
	}
	for _, u := range p.regrouped {
		c.Says = append(c.Says, "from now on: "+u.Name)
	}
	for _, u := range p.regrouped {
		if err := p.regroupedUnit(ctx, &c, u); err != nil {
			return err
		}
	}
	c.steps = func(ctx context.Context) ([]step, error) {
		var steps []step
		for _, u := range p.regrouped {
			more, err := p.moved(ctx, u)
			if err != nil {
				return nil, err
			}
			steps = append(steps, more...)
		}
		for _, g := range old {
			steps = append(steps, step{Forget: g.name})
		}
		for _, u := range p.regrouped {
			steps = append(steps, p.noteStep(p.r.noteOfUnit(u)))
		}
		return steps, nil
	}
	p.add(c)
	return nil
}

// regroupedUnit finds what stands against a new unit.
func (p *planner) regroupedUnit(ctx context.Context, c *Change, u *pipeline.Unit) error {
	for _, st := range u.Stages {
		g := p.owner(st.ID(), kindStage)
		if g == nil {
			c.Says = append(c.Says, fmt.Sprintf("stage %s is new", st.Name))
			continue
		}
		old := p.node(g, st.ID())
		if old == nil {
			continue
		}
		if old.Name != st.Name {
			c.Says = append(c.Says, fmt.Sprintf("stage %s was called %s", st.Name, old.Name))
		}
		if !sameStrings(old.From, st.From) || !maps.Equal(old.To, st.Outputs) {
			c.Refused = fmt.Sprintf("stage %s reads or writes other streams than before, and runs in another group", st.Name)
			c.Way = "do one after the other: first the streams, then together (or the other way round)"
		}
		if misfit := p.fits(ctx, g, st); misfit != nil && !slices.Contains(p.consent.LoseState, st.Name) {
			c.Refused, c.Way = fmt.Sprintf("the state of %s does not fit: %v", st.Name, misfit), fmt.Sprintf("--allow lose-state:%s", st.Name)
		}
	}
	return nil
}

func sameStrings(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// moved makes the checkpoints of a new unit out of those of the units that its stages ran in.
func (p *planner) moved(ctx context.Context, u *pipeline.Unit) ([]step, error) {
	group := p.r.group(u.Name)
	steps := []step{{Empty: group}} // what stands there of long ago
	for partition := range int32(p.r.Plan.Spec.Partitions) {
		c := &checkpoint{state: map[string][]byte{}}
		for _, st := range u.Stages {
			g := p.owner(st.ID(), kindStage)
			if g == nil {
				continue
			}
			was, err := p.checkpoint(ctx, g, partition)
			if err != nil {
				return nil, err
			}
			if was == nil {
				return nil, fmt.Errorf("%s has no checkpoint of partition %d: let it run once, drain, and stop", g.short(p.r), partition)
			}
			c.Watermark = max(c.Watermark, was.Watermark)
			if state, ok := was.state[st.ID()]; ok && !slices.Contains(p.consent.LoseState, st.Name) {
				c.state[st.ID()] = state
			}
			if err := p.takeInputs(c, was, u, st, partition); err != nil {
				return nil, err
			}
		}
		slices.SortFunc(c.Inputs, func(a, b inputMark) int { return slices.Index(u.Inputs, a.Stream) - slices.Index(u.Inputs, b.Stream) })
		one, err := p.put(ctx, group, u.Inputs[0], partition, c)
		if err != nil {
			return nil, err
		}
		steps = append(steps, one)
	}
	return steps, nil
}

// takeInputs says where a stage's inputs go on, as far as its new unit reads them from Kafka.
func (p *planner) takeInputs(c, was *checkpoint, u *pipeline.Unit, st *pipeline.StageNode, partition int32) error {
	for _, stream := range st.From {
		at := slices.IndexFunc(was.Inputs, func(in inputMark) bool { return in.Stream == stream })
		found := p.streams[stream]
		if !slices.Contains(u.Inputs, stream) {
			continue // a plain call from now on; its old reader has taken all of it
		}
		if found == nil {
			return fmt.Errorf("stream %s is not there yet", stream)
		}
		in := inputMark{Stream: stream, StreamID: found.id, Next: found.next[partition], Watermark: was.Watermark}
		if at >= 0 {
			in = was.Inputs[at]
		} else {
			in.Marks = taken(was, partition, p.r.Plan.Streams[stream].Writer, p.r.Plan)
		}
		other := slices.IndexFunc(c.Inputs, func(in inputMark) bool { return in.Stream == stream })
		if other < 0 {
			c.Inputs = append(c.Inputs, in)
		} else if c.Inputs[other].Next != in.Next {
			return fmt.Errorf("two stages of %s stand at different offsets of %s (%d and %d of partition %d): drain first", u.Name, stream, c.Inputs[other].Next, in.Next, partition)
		}
	}
	return nil
}

// taken is what the reader of a stream that comes to Kafka has taken of its writer already: all that the writer has made of
// what it has read. Should a process that was thought to be gone publish once more, it is dropped.
func taken(was *checkpoint, partition int32, writer string, plan *pipeline.Plan) []mark {
	unit := plan.Node(writer)
	if unit == nil {
		return nil
	}
	var marks []mark
	for _, st := range unit.Stages {
		for _, in := range was.Inputs {
			if st.Name == writer && in.Next > 0 {
				marks = append(marks, mark{
					Source:    flow.Source{Producer: st.ID(), Stream: in.Stream, Partition: partition},
					Position:  flow.Position{Offset: in.Next - 1, K: endK},
					Watermark: was.Watermark,
				})
			}
		}
	}
	return marks
}

// withoutState makes the checkpoints of a group anew, without the state of one stage.
func (p *planner) withoutState(ctx context.Context, g *groupFound, id string) ([]step, error) {
	var steps []step
	for _, partition := range g.partitions() {
		c, err := p.checkpoint(ctx, g, partition)
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		delete(c.state, id)
		one, err := p.put(ctx, g.name, c.Inputs[0].Stream, partition, c)
		if err != nil {
			return nil, err
		}
		steps = append(steps, one)
	}
	return steps, nil
}

// beginNow sets a new unit behind what its inputs hold.
func (p *planner) beginNow(u *pipeline.Unit) []step {
	var steps []step
	for partition := range int32(p.r.Plan.Spec.Partitions) {
		s := step{Group: p.r.group(u.Name), Partition: partition}
		for _, stream := range u.Inputs {
			if found := p.streams[stream]; found != nil {
				s.Commits = append(s.Commits, stepCommit{Stream: stream, Offset: found.next[partition]})
			}
		}
		if len(s.Commits) > 0 {
			steps = append(steps, s)
		}
	}
	return steps
}

// anew deletes every group of the pipeline and every stream of the plan.
func (p *planner) anew() []step {
	var steps []step
	for _, name := range slices.Sorted(maps.Keys(p.groups)) {
		steps = append(steps, step{Forget: name})
	}
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(p.streams)) {
		if st := p.r.Plan.Streams[name]; st != nil || p.noted(name) {
			gone = append(gone, name)
		}
	}
	return append(steps, step{Streams: gone})
}

// noted says whether a node of this pipeline wrote a stream.
func (p *planner) noted(stream string) bool {
	for _, n := range p.notes {
		for _, node := range n.Nodes {
			if node.Dead == stream || slices.Contains(slices.Collect(maps.Values(node.To)), stream) {
				return true
			}
		}
	}
	return false
}
