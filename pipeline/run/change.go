package run

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"hearthline/pipeline"
)

// Change is one thing that differs between what runs and the plan.
type Change struct {
	Sign    string   `json:"sign"`              // + new, - gone, ~ different
	What    string   `json:"what"`              // "stage score"
	Says    []string `json:"says"`              // what follows from it
	Refused string   `json:"refused,omitempty"` // why it is not done; "" when it is
	Way     string   `json:"way,omitempty"`     // what allows it, or makes it possible
	// Apply says that something is to be carried out while its nodes are stopped; the others happen by themselves when
	// they are started with the new file.
	Apply bool `json:"apply"`

	stop  []*groupFound // these must have no members
	drain []*groupFound // and these must have taken all of their inputs
	still bool          // nothing may come in: the gateways are stopped
	steps func(context.Context) ([]step, error)
}

// then adds steps to those that there are.
func (c *Change) then(more func(context.Context) ([]step, error)) {
	before := c.steps
	c.steps = func(ctx context.Context) ([]step, error) {
		var steps []step
		if before != nil {
			var err error
			if steps, err = before(ctx); err != nil {
				return nil, err
			}
		}
		added, err := more(ctx)
		return append(steps, added...), err
	}
}

// Consent is what somebody has said of a change beforehand.
type Consent struct {
	LoseState   []string // stages that begin without the state they have
	Forget      []string // nodes that are gone for good: their groups and state are deleted
	BreakSchema []string // streams whose batches have other columns from now on, whoever counts on those they had
	BeginNow    []string // new stages that begin with what comes next, not with the oldest that is kept
	Repartition bool     // every stream is made anew
}

// Changes compares the plan with what runs. It changes nothing.
func (r *Runner) Changes(ctx context.Context, c Consent) ([]Change, error) {
	r.init()
	s, err := r.survey(ctx)
	if err != nil {
		return nil, fmt.Errorf("see what runs: %w", err)
	}
	return s.changes(ctx, c)
}

func (s *survey) changes(ctx context.Context, consent Consent) ([]Change, error) {
	if p := s.pending; p != nil {
		return []Change{{Sign: "~", What: "a change that was begun", Apply: true,
			Says:  []string{fmt.Sprintf("at %s, and not finished: nothing starts until it is", p.Begun.UTC().Format("2006-01-02 15:04:05"))},
			steps: func(context.Context) ([]step, error) { return p.Steps, nil }}}, nil
	}
	p := &planner{survey: s, consent: consent}
	for _, u := range s.r.Plan.Units {
		if err := p.unit(ctx, u); err != nil {
			return nil, err
		}
	}
	if err := p.regroup(ctx); err != nil {
		return nil, err
	}
	for _, sink := range s.r.Plan.Sinks {
		p.sink(sink)
	}
	if err := p.gone(ctx); err != nil {
		return nil, err
	}
	p.partitions()
	return p.changes, nil
}

// planner gathers changes.
type planner struct {
	*survey
	consent   Consent
	changes   []Change
	regrouped []*pipeline.Unit
	dissolved map[string]bool // groups whose stages go into others
}

func (p *planner) add(c Change) { p.changes = append(p.changes, c) }

// owner is the group that has a stage's checkpoints: by what is noted, and of what was never noted by the name.
func (s *survey) owner(id, kind string) *groupFound {
	var unnoted *groupFound
	for _, name := range slices.Sorted(maps.Keys(s.groups)) {
		g, n := s.groups[name], s.notes[name]
		switch {
		case n != nil && n.Kind == kind && slices.Contains(n.ids(), id):
			return g
		case n == nil && len(g.committed) > 0 && slices.Contains(g.ids, id):
			unnoted = g
		}
	}
	return unnoted
}

// unit compares one unit with what is found of its stages.
func (p *planner) unit(ctx context.Context, u *pipeline.Unit) error {
	u, refused := p.asItRuns(u)
	if refused != nil {
		p.add(*refused)
		return nil
	}
	group := p.r.group(u.Name)
	fresh, same := true, true
	for _, st := range u.Stages {
		g := p.owner(st.ID(), kindStage)
		fresh = fresh && g == nil
		same = same && g != nil && g.name == group
	}
	switch {
	case fresh:
		p.newUnit(u)
	case same:
		for _, st := range u.Stages {
			if err := p.stage(ctx, p.groups[group], st); err != nil {
				return err
			}
		}
	default:
		p.regrouped = append(p.regrouped, u)
	}
	return nil
}

// asItRuns is a unit with the versions that were promoted, where the file has both still.
func (p *planner) asItRuns(u *pipeline.Unit) (*pipeline.Unit, *Change) {
	run := u
	for _, s := range u.Stages {
		done, err := mayStart(s, p.trials[s.ID()])
		if err != nil {
			return nil, &Change{Sign: "~", What: "stage " + s.Name, Refused: err.Error(), Way: "put it into the file, or undo it, first"}
		}
		if done {
			run = promoted(p.r.Plan, run, s.ID())
		}
	}
	return run, nil
}

// newUnit says where a unit begins that never ran.
func (p *planner) newUnit(u *pipeline.Unit) {
	if of := firstOf(p.r.Plan, u); of != nil {
		p.add(Change{Sign: "+", What: "stage " + u.Name, Says: []string{"begins where " + of.Name + " stands, and writes side streams that are only compared"}})
		return
	}
	c := Change{Sign: "+", What: "stage " + u.Name}
	if len(u.Stages) > 1 {
		c.What = "stages " + u.Name
	}
	now := slices.ContainsFunc(u.Stages, func(s *pipeline.StageNode) bool { return slices.Contains(p.consent.BeginNow, s.Name) })
	for _, in := range u.Inputs {
		switch found := p.streams[in]; {
		case found == nil || !found.written():
			c.Says = append(c.Says, in+" holds nothing yet: it begins with the first batch")
		case now:
			c.Says = append(c.Says, "begins with what comes next on "+in)
		default:
			c.Says = append(c.Says, fmt.Sprintf("begins at the oldest batch kept of %s, %d batches back (--begin %s=now: with what comes next)", in, found.held(), u.Stages[0].Name))
		}
	}
	if now {
		c.Apply, c.steps = true, func(context.Context) ([]step, error) { return p.beginNow(u), nil }
	}
	p.mayBegin(&c, u, now)
	p.add(c)
}

// mayBegin refuses what a start would refuse too.
func (p *planner) mayBegin(c *Change, u *pipeline.Unit, now bool) {
	n := p.r.noteOfUnit(u)
	for _, group := range slices.Sorted(maps.Keys(p.notes)) {
		old := p.r.renamed(n, p.notes[group])
		if old == nil || slices.Contains(p.consent.Forget, old.ID) {
			continue
		}
		c.Refused = fmt.Sprintf("stage %s, which did the same, is gone from the file, and its state would be lost", old.Name)
		c.Way = fmt.Sprintf("if it was renamed, write `was: %s` under %s; if not, --forget %s", old.ID, u.Stages[0].Name, old.ID)
		return
	}
	for _, st := range u.Stages {
		for _, output := range slices.Sorted(maps.Keys(st.Outputs)) {
			stream := st.Outputs[output]
			if found := p.streams[stream]; found != nil && found.written() && p.r.Plan.Streams[stream].OnKafka() && !now {
				c.Refused = fmt.Sprintf("stream %s holds batches that another stage made: what it makes of the past would stand there twice", stream)
				c.Way = fmt.Sprintf("write `was: NAME` if this is that stage, give it a stream of its own, or --begin %s=now", st.Name)
				return
			}
		}
	}
}

// stage compares a stage that ran in the same unit.
func (p *planner) stage(ctx context.Context, g *groupFound, st *pipeline.StageNode) error {
	c := Change{Sign: "~", What: "stage " + st.Name}
	old, note := p.node(g, st.ID()), p.notes[g.name]
	if old == nil {
		// It ran before there were notes: all that can be said is whether its state fits.
		old = &NodeNote{Name: st.ID(), Use: st.Use, From: st.From, To: st.Outputs, Keys: st.Keys, Dead: st.Dead, Settings: settingsOfStage(st)}
	}
	differs := note == nil || !slices.Equal(old.From, st.From) // other rows, perhaps: what it remembers must go with them
	if old.Name != st.Name {
		c.Says = append(c.Says, fmt.Sprintf("was called %s: its group, state, lineage and dead letters go on under the name %s", old.Name, st.ID()))
	}
	if old.Use != st.Use {
		c.Says = append(c.Says, fmt.Sprintf("is a %s, was a %s", st.Use, old.Use))
		differs = true
	}
	for _, line := range compareSettings(old.Settings, settingsOfStage(st)) {
		c.Says = append(c.Says, line)
		differs = true
	}
	if note != nil && note.Version != p.r.Version {
		c.Says = append(c.Says, fmt.Sprintf("version %s → %s", note.Version, p.r.Version))
		differs = true
	}
	p.inputs(&c, g, st.From, old.From, "reads")
	p.outputs(&c, g, st, old, note)
	if differs {
		if err := p.state(ctx, &c, g, st); err != nil {
			return err
		}
	}
	if len(c.Says) > 0 || c.Refused != "" {
		p.add(c)
	}
	return nil
}

// state says whether what a stage remembers goes with what it has become.
func (p *planner) state(ctx context.Context, c *Change, g *groupFound, st *pipeline.StageNode) error {
	size, partitions, err := p.stateOf(ctx, g, st.ID())
	if err != nil || partitions == 0 {
		return err
	}
	state := fmt.Sprintf("its state (%s in %d partitions)", bytesText(size), partitions)
	misfit := p.fits(ctx, g, st)
	switch {
	case misfit == nil && p.notes[g.name] == nil: // nothing is known to differ
	case misfit == nil:
		c.Says = append(c.Says, state+" was read with the new settings and code: it fits")
	case slices.Contains(p.consent.LoseState, st.Name):
		c.Says = append(c.Says, state+" does not fit and is lost; it goes on at the same offsets")
		c.Apply, c.stop = true, append(c.stop, g)
		c.then(func(ctx context.Context) ([]step, error) { return p.withoutState(ctx, g, st.ID()) })
	default:
		c.Refused = fmt.Sprintf("%s does not fit: %v", state, misfit)
		c.Way = fmt.Sprintf("undo the change, or --allow lose-state:%s", st.Name)
	}
	return nil
}

// inputs says what begins to be read, and what is left.
func (p *planner) inputs(c *Change, g *groupFound, now, before []string, verb string) {
	for _, in := range now {
		if slices.Contains(before, in) {
			continue
		}
		if found := p.streams[in]; found != nil && found.written() {
			c.Says = append(c.Says, fmt.Sprintf("%s %s too, from the oldest batch kept, %d back", verb, in, p.behind(g, in)))
		} else {
			c.Says = append(c.Says, fmt.Sprintf("%s %s too, from its first batch", verb, in))
		}
	}
	for _, in := range before {
		if !slices.Contains(now, in) {
			c.Says = append(c.Says, fmt.Sprintf("%s %s no more; batches of it that it has not taken: %d", verb, in, p.behind(g, in)))
		}
	}
}

// outputs says what is written elsewhere, or otherwise.
func (p *planner) outputs(c *Change, g *groupFound, st *pipeline.StageNode, old *NodeNote, note *Note) {
	for _, output := range slices.Sorted(maps.Keys(st.Outputs)) {
		stream := st.Outputs[output]
		if before, ok := old.To[output]; ok && before != stream {
			c.Says = append(c.Says, fmt.Sprintf("writes %s to %s, wrote it to %s; what is in %s stays there", output, stream, before, before))
		} else if !ok {
			c.Says = append(c.Says, fmt.Sprintf("writes %s to %s, which it did not have", output, stream))
		}
		if found := p.streams[stream]; found != nil && found.written() {
			if why := rekeyed(old, stream, st.Keys); why != "" {
				c.Refused, c.Way = why, "give it a new stream: the old one keeps what is in it"
			}
		}
		p.columns(c, g, stream, note)
	}
}

// sink compares a sink with what is found of it.
func (p *planner) sink(sink *pipeline.SinkNode) {
	g := p.owner(sink.ID(), kindSink)
	if g == nil {
		c := Change{Sign: "+", What: "sink " + sink.Name}
		for _, in := range sink.Streams {
			if found := p.streams[in]; found != nil && found.held() > 0 {
				c.Says = append(c.Says, fmt.Sprintf("keeps %s from the oldest batch kept, %d back", in, found.held()))
			}
		}
		n := p.r.noteOfSink(sink)
		for _, group := range slices.Sorted(maps.Keys(p.notes)) {
			if old := p.r.renamed(n, p.notes[group]); old != nil && !slices.Contains(p.consent.Forget, old.ID) {
				c.Refused = fmt.Sprintf("sink %s, which kept the same, is gone from the file: rows that it has written would be written again", old.Name)
				c.Way = fmt.Sprintf("if it was renamed, write `was: %s` under %s; if it keeps them elsewhere, --forget %s", old.ID, sink.Name, old.ID)
			}
		}
		p.add(c)
		return
	}
	note := p.notes[g.name]
	if note == nil || len(note.Nodes) != 1 {
		return
	}
	old, c := &note.Nodes[0], Change{Sign: "~", What: "sink " + sink.Name}
	if old.Name != sink.Name {
		c.Says = append(c.Says, fmt.Sprintf("was called %s: its group and dead letters go on under the name %s", old.Name, sink.ID()))
	}
	c.Says = append(c.Says, compareSettings(old.Settings, settingsOf(&sink.Settings))...)
	if note.Version != p.r.Version {
		c.Says = append(c.Says, fmt.Sprintf("version %s → %s", note.Version, p.r.Version))
	}
	p.inputs(&c, g, sink.Streams, old.From, "keeps")
	if len(c.Says) > 0 {
		p.add(c)
	}
}

// gone finds groups of which nothing is in the plan any more.
func (p *planner) gone(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(p.groups)) {
		g, note := p.groups[name], p.notes[name]
		if p.dissolved[name] || slices.ContainsFunc(g.ids, p.r.planned) {
			continue
		}
		short := g.short(p.r)
		c := Change{Sign: "-", What: "stage " + short}
		if note != nil && note.Kind == kindSink {
			c.What = "sink " + short
		}
		for _, stream := range slices.Sorted(maps.Keys(g.committed)) {
			if n := p.behind(g, stream); n > 0 {
				c.Says = append(c.Says, fmt.Sprintf("batches of %s that it has not taken: %d", stream, n))
			}
		}
		size := 0
		for _, id := range g.ids {
			n, _, err := p.stateOf(ctx, g, id)
			if err != nil && !slices.Contains(p.consent.Forget, short) {
				c.Says = append(c.Says, err.Error()) // what is to be forgotten need not be readable
			}
			size += n
		}
		if slices.ContainsFunc(g.ids, func(id string) bool { return slices.Contains(p.consent.Forget, id) }) || slices.Contains(p.consent.Forget, short) {
			streams := p.nobodys(note)
			c.Says = append(c.Says, fmt.Sprintf("its group and its state (%s) are deleted%s", bytesText(size), withList(", and the streams ", streams)))
			c.Apply, c.stop = true, append(c.stop, g)
			c.steps = func(context.Context) ([]step, error) {
				return []step{{Forget: name}, {Streams: streams}}, nil
			}
		} else {
			c.Says = append(c.Says, fmt.Sprintf("its group, its state (%s) and its streams stay (--forget %s deletes them): put back, it goes on where it was", bytesText(size), short))
		}
		p.add(c)
	}
	return nil
}

// nobodys lists the streams that a node wrote and nobody of the plan writes or reads. Readers remember how far they have
// taken a producer by the offsets of what it read: a stream that is the input of such a memory is not deleted,
// since made anew under the same name it would be dropped as taken already.
func (p *planner) nobodys(n *Note) []string {
	if n == nil {
		return nil
	}
	var streams []string
	for _, node := range n.Nodes {
		for _, stream := range slices.Sorted(maps.Values(node.To)) {
			if _, planned := p.r.Plan.Streams[stream]; planned || stream == pipeline.Drop || p.streams[stream] == nil || p.inputOfAnother(stream, n) {
				continue
			}
			streams = append(streams, stream)
		}
	}
	return slices.Compact(streams)
}

func (p *planner) inputOfAnother(stream string, but *Note) bool {
	for _, g := range p.groups {
		if _, reads := g.committed[stream]; reads && p.notes[g.name] != but {
			return true
		}
	}
	return false
}

// partitions compares the number of partitions with that of the streams that are there.
func (p *planner) partitions() {
	want, have := p.r.Plan.Spec.Partitions, 0
	for _, name := range slices.Sorted(maps.Keys(p.r.Plan.Streams)) {
		if found := p.streams[name]; found != nil && p.r.Plan.Streams[name].OnKafka() && len(found.next) != want {
			have = len(found.next)
		}
	}
	if have == 0 {
		return
	}
	c := Change{Sign: "~", What: fmt.Sprintf("partitions %d → %d", have, want), Says: []string{
		"a home's rows stand in another partition then, where its state is not",
		fmt.Sprintf("every stream is made anew (%d batches that Kafka keeps go), every group and all state is deleted; what sinks have written stays", p.held()),
	}}
	if !p.consent.Repartition {
		c.Refused, c.Way = "all state would be lost, and what has not reached the sinks", "drain the pipeline, stop it, and --allow repartition"
		p.add(c)
		return
	}
	c.Apply, c.still = true, true
	for _, name := range slices.Sorted(maps.Keys(p.groups)) {
		if g := p.groups[name]; slices.ContainsFunc(g.ids, p.r.planned) || g.members > 0 {
			c.stop, c.drain = append(c.stop, g), append(c.drain, g)
		}
	}
	c.steps = func(context.Context) ([]step, error) { return p.anew(), nil }
	// All that concerns what is there is void with it.
	var others []Change
	for _, other := range p.changes {
		other.Apply, other.steps, other.Refused, other.Way = false, nil, "", ""
		others = append(others, other)
	}
	p.changes = append([]Change{c}, others...)
}

func (s *survey) held() (n int64) {
	for _, found := range s.streams {
		n += found.held()
	}
	return n
}

// compareSettings writes what differs, by path.
func compareSettings(old, now map[string]string) []string {
	var lines []string
	keys := slices.Collect(maps.Keys(old))
	for key := range now {
		if _, ok := old[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		before, was := old[key]
		after, is := now[key]
		switch {
		case !was:
			lines = append(lines, fmt.Sprintf("settings: %s: %s (was not set)", key, after))
		case !is:
			lines = append(lines, fmt.Sprintf("settings: %s is not set any more (was %s)", key, before))
		case before != after:
			lines = append(lines, fmt.Sprintf("settings: %s: %s → %s", key, before, after))
		}
	}
	return lines
}

func withList(words string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	return words + strings.Join(names, ", ")
}

func bytesText(n int) string {
	switch {
	case n >= 10<<20:
		return strconv.Itoa(n>>20) + " MiB"
	case n >= 10<<10:
		return strconv.Itoa(n>>10) + " KiB"
	}
	return strconv.Itoa(n) + " B"
}
