package run

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"time"

	"hearthline/streams"
)

// ErrRefused says that a change is not carried out as things stand; the changes say why, and what allows it.
var ErrRefused = errors.New("refused")

// settleTime is how long the pipeline is watched before it is changed: a unit that was just starting has joined its group
// by then, and a gateway that runs has sent a heartbeat.
const settleTime = 4 * time.Second

// pendingChange is a change that was begun. It is written down before anything is touched; until it is finished no unit and no
// sink starts. Its steps can be carried out again from the first, whenever they were interrupted.
type pendingChange struct {
	Begun time.Time `json:"begun"`
	Steps []step    `json:"steps"`
}

// step does one thing, which done twice is done once.
type step struct {
	// Empty deletes what a group has committed.
	Empty string `json:"empty,omitempty"`
	// Group, Partition and Commits set what a group has committed for a partition of its inputs.
	Group     string       `json:"group,omitempty"`
	Partition int32        `json:"partition,omitempty"`
	Commits   []stepCommit `json:"commits,omitempty"`
	// Forget deletes a group, its checkpoints and its note.
	Forget string `json:"forget,omitempty"`
	// Streams are deleted.
	Streams []string `json:"streams,omitempty"`
	// Note is what Group runs from now on.
	Note *Note `json:"note,omitempty"`
}

type stepCommit struct {
	Stream   string `json:"stream"`
	Offset   int64  `json:"offset"`
	Metadata string `json:"metadata,omitempty"`
}

// Apply carries out what has to be done while the nodes concerned stand still; the other changes come about by starting
// the nodes with the new file. Nothing is done when one is refused (an error that Is [ErrRefused]). It may be
// interrupted at any time and called again.
func (r *Runner) Apply(ctx context.Context, consent Consent) ([]Change, error) {
	r.init()
	if err := r.Client.EnsureNotes(ctx, NoteStream); err != nil {
		return nil, err
	}
	s, changes, err := r.agreed(ctx, consent)
	if err != nil {
		return changes, err
	}
	if s.pending == nil {
		if s, changes, err = r.begin(ctx, s, changes, consent); err != nil || s == nil {
			return changes, err
		}
	}
	for _, one := range s.pending.Steps {
		if err := r.carryOut(ctx, one); err != nil {
			return changes, fmt.Errorf("%w; what was done stays done, and `hearthline plan --apply` goes on from here", err)
		}
		if r.stepped != nil {
			r.stepped()
		}
	}
	return changes, r.Client.WriteNote(ctx, NoteStream, r.noteKey(pendingKey), nil)
}

// agreed surveys, and fails when a change is refused or something does not stand as it has to.
func (r *Runner) agreed(ctx context.Context, consent Consent) (*survey, []Change, error) {
	s, err := r.survey(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("see what runs: %w", err)
	}
	changes, err := s.changes(ctx, consent)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range changes {
		if c.Refused != "" {
			return s, changes, fmt.Errorf("%w: %s: %s; %s", ErrRefused, c.What, c.Refused, c.Way)
		}
	}
	for _, c := range changes {
		if err := s.stands(c); err != nil {
			return s, changes, fmt.Errorf("%w: %s: %w", ErrRefused, c.What, err)
		}
	}
	return s, changes, nil
}

// stands says whether all that a change concerns is stopped and, where it must be, drained.
func (s *survey) stands(c Change) error {
	if !c.Apply {
		return nil
	}
	for _, g := range c.stop {
		if g.members > 0 {
			return fmt.Errorf("%s runs (%d members in its group): stop it first", g.short(s.r), g.members)
		}
	}
	for _, g := range c.drain {
		if err := s.drained(g); err != nil {
			return err
		}
	}
	return nil
}

// begin works out the steps, writes them down, and makes sure that nothing moved meanwhile. No survey: there is nothing to
// carry out.
func (r *Runner) begin(ctx context.Context, s *survey, changes []Change, consent Consent) (*survey, []Change, error) {
	if !slices.ContainsFunc(changes, func(c Change) bool { return c.Apply }) {
		return nil, changes, nil
	}
	still := slices.ContainsFunc(changes, func(c Change) bool { return c.still })
	if !still {
		// A stream that comes to Kafka has to be there before offsets of it can be committed.
		if err := r.Ensure(ctx); err != nil {
			return nil, changes, err
		}
		var err error
		if s, changes, err = r.agreed(ctx, consent); err != nil {
			return nil, changes, err
		}
	}
	begun := &pendingChange{Begun: time.Now()}
	for _, c := range changes {
		if !c.Apply {
			continue
		}
		steps, err := c.steps(ctx)
		if err != nil {
			return nil, changes, fmt.Errorf("%s: %w", c.What, err)
		}
		begun.Steps = append(begun.Steps, steps...)
	}
	raw, err := json.Marshal(begun)
	if err != nil {
		return nil, changes, err
	}
	if err := r.Client.WriteNote(ctx, NoteStream, r.noteKey(pendingKey), raw); err != nil {
		return nil, changes, err
	}
	if err := r.settled(ctx, s, changes, still); err != nil {
		// Nothing has been touched: the change is taken back.
		return nil, changes, errors.Join(err, r.Client.WriteNote(context.WithoutCancel(ctx), NoteStream, r.noteKey(pendingKey), nil))
	}
	s.pending = begun
	return s, changes, nil
}

// settled looks again after a while: nobody has joined or committed, and where nothing may come in, nothing has.
func (r *Runner) settled(ctx context.Context, before *survey, changes []Change, still bool) error {
	select {
	case <-time.After(cmp.Or(r.settle, settleTime)):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := r.survey(ctx)
	if err != nil {
		return err
	}
	for _, c := range changes {
		if !c.Apply {
			continue
		}
		for _, g := range slices.Concat(c.stop, c.drain) {
			now := after.groups[g.name]
			if now != nil && now.members > 0 {
				return fmt.Errorf("%w: %s has been started: stop it first", ErrRefused, g.short(r))
			}
			if now != nil && !reflect.DeepEqual(now.committed, g.committed) {
				return fmt.Errorf("%w: %s has gone on: stop it first", ErrRefused, g.short(r))
			}
		}
	}
	if !still {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(before.streams)) {
		if now := after.streams[name]; now == nil || !slices.Equal(now.next, before.streams[name].next) {
			return fmt.Errorf("%w: stream %s is still written to: stop the gateways, and what else writes to it", ErrRefused, name)
		}
	}
	return nil
}

// carryOut does one step.
func (r *Runner) carryOut(ctx context.Context, s step) error {
	switch {
	case s.Empty != "":
		return r.Client.DeleteGroups(ctx, s.Empty)
	case s.Forget != "":
		return r.forget(ctx, s.Forget)
	case s.Streams != nil:
		return r.Client.DeleteStreams(ctx, s.Streams...)
	case s.Note != nil:
		raw, err := json.Marshal(s.Note)
		if err != nil {
			return err
		}
		return r.Client.WriteNote(ctx, NoteStream, r.noteKey(s.Group), raw)
	case s.Group != "":
		var commits []streams.Commit
		for _, c := range s.Commits {
			commits = append(commits, streams.Commit{Stream: c.Stream, Partition: s.Partition, Offset: c.Offset, Metadata: c.Metadata})
		}
		return r.Client.SetCommitted(ctx, s.Group, commits)
	}
	return nil
}

// forget deletes a group, its checkpoints and its note, in this order: until the note is gone it is known what was there.
func (r *Runner) forget(ctx context.Context, group string) error {
	if err := r.Client.DeleteGroups(ctx, group); err != nil {
		return err
	}
	infos, err := r.Store.List(ctx, "checkpoints/"+group+"/")
	if err != nil {
		return fmt.Errorf("list checkpoints of %s: %w", group, err)
	}
	for _, info := range infos {
		if err := r.Store.Delete(ctx, info.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete checkpoint %s: %w", info.Name, err)
		}
	}
	return r.Client.WriteNote(ctx, NoteStream, r.noteKey(group), nil)
}

// put keeps a checkpoint and gives the step that makes it valid.
func (s *survey) put(ctx context.Context, group, input string, partition int32, c *checkpoint) (step, error) {
	one := step{Group: group, Partition: partition}
	k := &keeper{store: s.r.Store, now: time.Now, prefix: blobsOf(group, input, partition)}
	k.commit = func(_ context.Context, commits []streams.Commit) error {
		for _, c := range commits {
			one.Commits = append(one.Commits, stepCommit{Stream: c.Stream, Offset: c.Offset, Metadata: c.Metadata})
		}
		return nil
	}
	_, err := k.save(ctx, partition, c)
	return one, err
}

// noteStep notes what a unit runs from now on, so that the next look finds nothing to do.
func (s *survey) noteStep(n *Note) step {
	n.Started = time.Now()
	return step{Group: s.r.group(n.Name), Note: n}
}
