package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc/pool"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// survey is what is found of a pipeline before it is changed: what ran, how far it came, what the streams hold.
type survey struct {
	r       *Runner
	notes   map[string]*Note       // by consumer group
	groups  map[string]*groupFound // those that have commits, members or a note
	streams map[string]*streamFound
	pending *pendingChange
	trials  map[string]*trialNote // by stage
}

// groupFound is a consumer group as it stands.
type groupFound struct {
	name      string
	ids       []string // of the stages, or of the sink
	members   int
	committed map[string]map[int32]streams.Committed
}

// streamFound is a stream as it stands.
type streamFound struct {
	id    string
	first []int64 // by partition: the first offset that is kept
	next  []int64 // and the next that will be written
}

func (s *streamFound) held() (n int64) {
	for p := range s.next {
		n += s.next[p] - s.first[p]
	}
	return n
}

func (s *streamFound) written() bool {
	return slices.ContainsFunc(s.next, func(next int64) bool { return next > 0 })
}

func (r *Runner) survey(ctx context.Context) (*survey, error) {
	s := &survey{r: r, groups: map[string]*groupFound{}, streams: map[string]*streamFound{}}
	var err error
	if s.notes, s.pending, err = r.notes(ctx); err != nil {
		return nil, err
	}
	if s.trials, err = r.trialNotes(ctx); err != nil {
		return nil, err
	}
	prefix := r.Plan.Spec.Name + "."
	names, err := r.Client.Groups(ctx, prefix)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, r.readsForSource) // they read no stream, and keep no state
	for group := range s.notes {
		names = append(names, group)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	members, err := r.Client.Members(ctx, names...)
	if err != nil {
		return nil, err
	}
	found := make([]*groupFound, len(names))
	all := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError().WithMaxGoroutines(looksMax)
	for i, name := range names {
		all.Go(func(ctx context.Context) (err error) {
			found[i] = &groupFound{name: name, members: members[name], ids: strings.Split(strings.TrimPrefix(name, prefix), "+")}
			found[i].committed, err = r.Client.CommittedAll(ctx, name)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	for _, g := range found {
		if len(g.committed) > 0 || g.members > 0 || s.notes[g.name] != nil {
			s.groups[g.name] = g
		}
	}
	return s, s.readStreams(ctx)
}

// readsForSource says whether a group is one of a source, of this plan or of one before.
func (r *Runner) readsForSource(group string) bool {
	return strings.HasPrefix(group, r.Plan.Spec.Name+".source.") ||
		slices.ContainsFunc(r.Plan.Spec.Sources, func(s pipeline.Source) bool { return s.Group == group })
}

// readStreams looks at every stream that is planned, was written, or is committed for.
func (s *survey) readStreams(ctx context.Context) error {
	// Those that a node which ran wrote to Kafka, or has taken from there; and those that may be there, too: an edge inside of a
	// unit may have been on Kafka before, and what is new in the plan may be older than it.
	written, others := map[string]bool{}, map[string]bool{}
	for name := range s.r.Plan.Streams {
		others[name] = true
	}
	for _, n := range s.notes {
		for stream := range n.Schemas {
			written[stream] = true
		}
		for _, node := range n.Nodes {
			written[node.Dead] = true
			for _, stream := range node.To {
				others[stream] = true
			}
		}
	}
	for _, g := range s.groups {
		for stream := range g.committed {
			written[stream] = true
		}
	}
	maps.DeleteFunc(others, func(name string, _ bool) bool { return name == pipeline.Drop || written[name] })
	found, err := s.r.Client.Extents(ctx, slices.Collect(maps.Keys(written)), slices.Collect(maps.Keys(others)))
	for name, e := range found {
		s.streams[name] = &streamFound{id: e.ID, first: e.First, next: e.Next}
	}
	return err
}

// looksMax is how many groups are looked at at once.
const looksMax = 8

// node gives what is noted of a stage or sink.
func (s *survey) node(g *groupFound, id string) *NodeNote {
	if n := s.notes[g.name]; n != nil {
		for i := range n.Nodes {
			if n.Nodes[i].ID == id {
				return &n.Nodes[i]
			}
		}
	}
	return nil
}

// partitions lists the partitions that a group has committed for.
func (g *groupFound) partitions() []int32 {
	all := map[int32]bool{}
	for _, partitions := range g.committed {
		for p := range partitions {
			all[p] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// checkpoint reads the last checkpoint of a unit's partition; nil when there is none. Of inputs that were dropped an old
// commit may be left: the checkpoint that reaches furthest is the last.
func (s *survey) checkpoint(ctx context.Context, g *groupFound, partition int32) (*checkpoint, error) {
	for tries := 1; ; tries++ {
		c, err := s.lastCheckpoint(ctx, g, partition)
		if !errors.Is(err, fs.ErrNotExist) || tries == checkpointTries {
			return c, err
		}
		// A unit that runs has replaced it since the commits were read.
		if g.committed, err = s.r.Client.CommittedAll(ctx, g.name); err != nil {
			return nil, err
		}
	}
}

const checkpointTries = 3

func (s *survey) lastCheckpoint(ctx context.Context, g *groupFound, partition int32) (*checkpoint, error) {
	k := &keeper{store: s.r.Store, now: time.Now}
	c, err := k.last(ctx, commitsOf(g.committed, slices.Collect(maps.Keys(g.committed)), partition))
	if err != nil {
		return nil, fmt.Errorf("group %s, partition %d: %w", g.name, partition, err)
	}
	return c, nil
}

// behind counts the messages of a stream that a group has not taken, over all partitions.
func (s *survey) behind(g *groupFound, stream string) (n int64) {
	found := s.streams[stream]
	if found == nil {
		return 0
	}
	for p := range found.next {
		at := found.first[p]
		if c, ok := g.committed[stream][int32(p)]; ok {
			at = max(at, c.Offset)
		}
		n += found.next[p] - at
	}
	return n
}

// drained says whether a unit has taken everything that its inputs hold, and nobody works in it: then its checkpoints cover
// all that it ever published.
func (s *survey) drained(g *groupFound) error {
	if g.members > 0 {
		return fmt.Errorf("%s runs (%d members in its group): stop it", g.short(s.r), g.members)
	}
	for _, stream := range slices.Sorted(maps.Keys(g.committed)) {
		if n := s.behind(g, stream); n > 0 {
			return fmt.Errorf("%s has not taken all of %s (%d batches left): stop what writes it, let it read on, then stop it", g.short(s.r), stream, n)
		}
	}
	return nil
}

func (g *groupFound) short(r *Runner) string { return strings.TrimPrefix(g.name, r.Plan.Spec.Name+".") }

// stateOf sums up the state that a stage has in its group's checkpoints.
func (s *survey) stateOf(ctx context.Context, g *groupFound, id string) (bytes, partitions int, err error) {
	for _, p := range g.partitions() {
		c, err := s.checkpoint(ctx, g, p)
		if err != nil {
			return bytes, partitions, err
		}
		if c == nil {
			continue
		}
		if state, ok := c.state[id]; ok {
			bytes, partitions = bytes+len(state), partitions+1
		}
	}
	return bytes, partitions, nil
}

// fits gives a stage of the plan the state that it left, with the settings of the plan, as the next start will.
func (s *survey) fits(ctx context.Context, g *groupFound, node *pipeline.StageNode) error {
	for _, p := range g.partitions() {
		c, err := s.checkpoint(ctx, g, p)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		if err := fitsInto(ctx, c.state, node, s.r.Plan); err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
	}
	return nil
}

// fitsInto restores a stage's state, and gives it zero rows with the columns that its inputs have now: rows that it remembers must
// go with those that come.
func fitsInto(ctx context.Context, states map[string][]byte, node *pipeline.StageNode, plan *pipeline.Plan) (err error) {
	state, saved := states[node.ID()]
	if !saved {
		return nil
	}
	stage := node.New()
	stateful, ok := stage.(flow.Stateful)
	if !ok {
		return nil // what it remembered is not asked for any more
	}
	if err := flow.Open(ctx, stage); err != nil {
		return fmt.Errorf("open stage %s: %w", node.Name, err)
	}
	defer func() { err = errors.Join(err, flow.Close(stage)) }()
	return panicIsError(func() error {
		if err := stateful.Restore(bytes.NewReader(state)); err != nil {
			return err
		}
		return takesNothing(ctx, stage, node, plan)
	})
}

// takesNothing gives a stage zero rows of each of its inputs.
func takesNothing(ctx context.Context, stage flow.Stage, node *pipeline.StageNode, plan *pipeline.Plan) error {
	schemaOf := func(stream string) *arrow.Schema {
		if s := plan.Streams[stream]; s != nil {
			return s.Schema
		}
		return nil
	}
	if s, ok := stage.(flow.Inputs); ok {
		made, err := flow.Prime(ctx, s, func(input string) *arrow.Schema { return schemaOf(node.Inputs[input]) })
		flow.ReleaseOutputs(made)
		return err
	}
	for _, stream := range node.From {
		schema := schemaOf(stream)
		if schema == nil {
			continue
		}
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		none := b.NewRecord()
		made, err := stage.Process(ctx, none)
		flow.ReleaseOutputs(made)
		none.Release()
		b.Release()
		if err != nil {
			return err
		}
	}
	return nil
}
