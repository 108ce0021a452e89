package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sourcegraph/conc/pool"
	"go.yaml.in/yaml/v3"

	"hearthline/pipeline"
	"hearthline/streams"
)

// version is one version of a stage, as pipeline.yaml has it and as far as it may be written down (see settingsOf): enough
// for two processes to agree on which they mean, whatever their environments hold.
type version struct {
	Use      string            `json:"use"`
	Settings map[string]string `json:"settings,omitempty"`
}

func (v version) is(o version) bool { return v.Use == o.Use && maps.Equal(v.Settings, o.Settings) }

// written is how a stage says in pipeline.yaml that it is this version.
func (v version) written() string {
	if query, ok := v.Settings["sql"]; ok {
		return "sql: " + query
	}
	return "use: " + v.Use
}

func versionOf(use string, sql *pipeline.Query, settings *yaml.Node) version {
	v := version{use, settingsOf(settings)}
	if sql != nil {
		v.Settings = noted(v.Settings, "sql", sql.Text)
	}
	return v
}

// trialNote is what was decided of a stage's second version. It stands in NoteStream, where every process that runs the stage
// follows it: nobody has to reach them, and one that was away finds it when it comes back.
type trialNote struct {
	Layout int       `json:"v"`
	ID     string    `json:"id"`    // of the decision
	Stage  string    `json:"stage"` // ID of the stage
	Kind   string    `json:"kind"`  // shadow or canary
	Verb   string    `json:"verb"`  // promote or drop
	First  version   `json:"first"`
	Second version   `json:"second"`
	Begun  time.Time `json:"begun"`
	Done   time.Time `json:"done,omitzero"` // when every partition had been handed over
}

const (
	verbPromote = "promote"
	verbDrop    = "drop"
	trialPrefix = "!trial." // no node can be called so
)

func (r *Runner) trialKey(stage string) string { return r.noteKey(trialPrefix + stage) }

func decodeTrialNote(key string, value []byte) (*trialNote, error) {
	n := &trialNote{}
	if err := json.Unmarshal(value, n); err != nil || n.Layout != noteLayout {
		return nil, fmt.Errorf("note %s in %s has layout %d, this binary reads %d (%v): run the version that wrote it", key, NoteStream, n.Layout, noteLayout, err)
	}
	return n, nil
}

// trialNotes reads what was decided of second versions, by the ID of the stage.
func (r *Runner) trialNotes(ctx context.Context) (map[string]*trialNote, error) {
	all, err := r.Client.Notes(ctx, NoteStream)
	if err != nil {
		return nil, fmt.Errorf("what was decided of second versions: %w", err)
	}
	notes := map[string]*trialNote{}
	for key, raw := range all {
		if stage, ours := strings.CutPrefix(key, r.trialKey("")); ours {
			if notes[stage], err = decodeTrialNote(key, raw.Value); err != nil {
				return nil, err
			}
		}
	}
	return notes, nil
}

func (r *Runner) writeTrialNote(ctx context.Context, n *trialNote) error {
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return r.Client.WriteNote(ctx, NoteStream, r.trialKey(n.Stage), raw)
}

// firstOf finds the unit of the stage whose shadow u is; nil when u is none.
func firstOf(plan *pipeline.Plan, u *pipeline.Unit) *pipeline.Unit {
	if of := u.Stages[0].ShadowOf; of != "" {
		return plan.Node(of)
	}
	return nil
}

// shadowOf finds the unit of a stage's shadow; nil when it has none.
func shadowOf(plan *pipeline.Plan, s *pipeline.StageNode) *pipeline.Unit {
	for _, u := range plan.Units {
		if u.Stages[0].ShadowOf == s.Name {
			return u
		}
	}
	return nil
}

// second is the version that is tried beside a stage.
func second(s *pipeline.StageNode) version {
	return versionOf(s.Trial.Use, s.Trial.SQL, &s.Trial.Settings)
}

func first(s *pipeline.StageNode) version { return versionOf(s.Use, s.SQL, &s.Settings) }

// promoted is a unit in whose place the second version of a stage works: under the name, the lineage and the streams of the
// first.
func promoted(plan *pipeline.Plan, u *pipeline.Unit, stage string) *pipeline.Unit {
	now := *u
	now.Stages = slices.Clone(u.Stages)
	i := slices.IndexFunc(u.Stages, func(s *pipeline.StageNode) bool { return s.ID() == stage })
	node := *u.Stages[i]
	node.Use, node.SQL, node.Settings = node.Trial.Use, node.Trial.SQL, node.Trial.Settings
	if node.Canary != nil {
		node.New, node.Outputs = node.Canary.New, node.Canary.Outputs
	} else {
		sh := shadowOf(plan, u.Stages[i]).Stages[0]
		node.New, node.Outputs = sh.New, map[string]string{}
		for output, side := range sh.Outputs {
			node.Outputs[output] = strings.TrimSuffix(side, "."+pipeline.TrialShadow)
		}
	}
	node.Trial, node.Canary = nil, nil
	now.Stages[i] = &node
	return &now
}

// trialWatch knows what has been decided of the second versions of a unit's stages while the unit runs.
type trialWatch struct {
	r      *Runner
	unit   *pipeline.Unit // as the plan has it
	shadow bool           // the unit is a shadow
	ended  chan struct{}  // closed when a shadow is not wanted any more

	once  sync.Once
	mu    sync.Mutex
	notes map[string]*trialNote // by stage: decisions about the versions that the plan has
	gone  map[string]bool       // stages whose second version was dropped: for as long as this process runs
}

// watchTrials gives what a unit runs, by what has been decided of its stages' second versions, and what it has to look at
// while it does; no watch where nothing is tried.
func (r *Runner) watchTrials(ctx context.Context, u *pipeline.Unit) (*pipeline.Unit, *trialWatch, error) {
	if r.Client == nil {
		return u, nil, nil
	}
	notes, err := r.trialNotes(ctx)
	if err != nil {
		return nil, nil, err
	}
	w := &trialWatch{r: r, unit: u, notes: map[string]*trialNote{}, gone: map[string]bool{}, ended: make(chan struct{})}
	if one := firstOf(r.Plan, u); one != nil {
		w.shadow = true
		w.note(one.Stages[0].ID(), notes[one.Stages[0].ID()])
		return u, w, nil
	}
	run, tried := u, false
	for _, s := range u.Stages {
		n := notes[s.ID()]
		done, err := mayStart(s, n)
		if err != nil {
			return nil, nil, err
		}
		tried = tried || s.Trial != nil && !done
		if done {
			run = promoted(r.Plan, run, s.ID())
			continue
		}
		w.note(s.ID(), n)
	}
	if !tried {
		return run, nil, nil
	}
	w.unit = run
	return run, w, nil
}

// mayStart says whether a promotion has put the second version of a stage in its place, and refuses to start a file that
// knows nothing of one.
func mayStart(s *pipeline.StageNode, n *trialNote) (done bool, err error) {
	if n == nil || n.Verb != verbPromote || n.Second.is(first(s)) && !n.Done.IsZero() {
		return false, nil
	}
	tries := s.Trial != nil && s.Trial.Kind == n.Kind && n.Second.is(second(s)) && n.First.is(first(s))
	when := n.Begun.UTC().Format("2006-01-02 15:04")
	switch {
	case tries:
		return !n.Done.IsZero(), nil
	case n.Done.IsZero():
		return false, fmt.Errorf("stage %s is being promoted to %s (begun at %s): start it with the file that has the %s, and `hearthline promote %s` finishes it",
			s.Name, n.Second.Use, when, n.Kind, s.Name)
	case n.First.is(first(s)):
		return false, fmt.Errorf("stage %s was promoted to %s (at %s), and this pipeline.yaml has the version before: write `%s` and its settings; "+
			"`hearthline drop %s` goes back to it instead", s.Name, n.Second.Use, when, n.Second.written(), s.Name)
	}
	return false, nil // another version altogether: a change like any other
}

// note takes in what is noted of a stage.
func (w *trialWatch) note(stage string, n *trialNote) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.of(stage)
	if s == nil || s.Trial == nil {
		return
	}
	if n != nil && !(s.Trial.Kind == n.Kind && n.Second.is(second(s)) && n.First.is(first(s))) {
		n = nil
	}
	w.notes[stage] = n
	w.gone[stage] = w.gone[stage] || n != nil && n.Verb == verbDrop
	if over := w.gone[stage] || n != nil && !n.Done.IsZero(); w.shadow && over {
		w.once.Do(func() { close(w.ended) })
	}
}

// of finds a stage of the unit, or the one whose shadow it is.
func (w *trialWatch) of(stage string) *pipeline.StageNode {
	u := w.unit
	if w.shadow {
		u = firstOf(w.r.Plan, w.unit)
	}
	for _, s := range u.Stages {
		if s.ID() == stage {
			return s
		}
	}
	return nil
}

// promotion is the promotion of a stage that was begun, nil when there is none.
func (w *trialWatch) promotion(stage string) *trialNote {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.notes[stage]; n != nil && n.Verb == verbPromote {
		return n
	}
	return nil
}

// dropped says whether a stage's second version was dropped.
func (w *trialWatch) dropped(stage string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gone[stage]
}

// over says whether the unit is a shadow that is not wanted any more.
func (w *trialWatch) over() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// run does work while it follows what is decided.
func (w *trialWatch) run(ctx context.Context, work func(context.Context) error) error {
	working, end := context.WithCancel(ctx)
	defer end()
	p := pool.New().WithContext(working).WithCancelOnError().WithFirstError()
	p.Go(func(ctx context.Context) error {
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("follow %s: %w", NoteStream, err)
	})
	if w.shadow {
		p.Go(func(ctx context.Context) error {
			select {
			case <-w.ended:
				end()
			case <-ctx.Done():
			}
			return nil
		})
	}
	var err error
	p.Go(func(ctx context.Context) error {
		defer end()
		err = work(ctx)
		return nil
	})
	if followed := p.Wait(); followed != nil {
		return followed
	}
	if w.over() && ctx.Err() == nil {
		return w.rest(ctx)
	}
	return err
}

// rest is what a shadow does that is not wanted any more: nothing, until it is told to stop or the run it is part of ends.
func (w *trialWatch) rest(ctx context.Context) error {
	w.r.Log.Info("a shadow has ended: its stage was promoted, or it was dropped", "node", w.unit.Name)
	if w.r.Drain.Run == "" {
		<-ctx.Done()
	}
	return ctx.Err()
}

// follow takes in decisions as they are made.
func (w *trialWatch) follow(ctx context.Context) error {
	newest := map[string]streams.Note{}
	return w.r.Client.Follow(ctx, NoteStream, 0, func(f streams.Followed) error {
		for _, n := range f.Notes {
			if stage, ours := strings.CutPrefix(n.Key, w.r.trialKey("")); ours {
				newest[stage] = n
			}
		}
		if !f.Whole {
			return nil // what stands further on may have taken it back
		}
		for stage, raw := range newest {
			var n *trialNote
			if len(raw.Value) > 0 {
				var err error
				if n, err = decodeTrialNote(raw.Key, raw.Value); err != nil {
					return err
				}
			}
			w.note(stage, n)
		}
		clear(newest)
		return nil
	})
}

// errNothingYet says that a shadow has no checkpoint from which anything could go on.
var errNothingYet = errors.New("it has no checkpoint yet")

// checkpointOf reads the last checkpoint that the group of a unit has for a partition.
func (r *Runner) checkpointOf(ctx context.Context, u *pipeline.Unit, partition int32) (*checkpoint, error) {
	s := &survey{r: r}
	g := &groupFound{name: r.group(u.Name)}
	var err error
	if g.committed, err = r.Client.CommittedOf(ctx, g.name, u.Inputs, r.Plan.Spec.Partitions); err != nil {
		return nil, err
	}
	return s.checkpoint(ctx, g, partition)
}
