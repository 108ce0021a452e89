package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"hearthline/pipeline"
	"hearthline/streams"
)

// Limits of a promotion.
const (
	promoteWait = 2 * time.Minute  // for every partition to be handed over
	leaveWait   = time.Minute      // for a shadow's processes to leave its group
	catchUpWait = 10 * time.Second // beside two checkpoints, for a shadow to come to where its stage was
)

// ErrUnderWay says that a promotion was begun and is not finished. It goes on by itself, and is finished by calling Promote
// again.
var ErrUnderWay = errors.New("the promotion is under way")

// trying finds a stage of the plan that tries a second version, and what was decided of it.
func (r *Runner) trying(ctx context.Context, stage string) (*pipeline.Unit, *pipeline.StageNode, *trialNote, error) {
	unit := r.Plan.Node(stage)
	if unit == nil {
		return nil, nil, nil, fmt.Errorf("no stage %q in %s", stage, r.Plan.Spec.File)
	}
	s := unit.Stages[slices.IndexFunc(unit.Stages, func(s *pipeline.StageNode) bool { return s.Name == stage || unit.Name == stage })]
	notes, err := r.trialNotes(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	return unit, s, notes[s.ID()], nil
}

// Promote puts the second version of a stage in its place while both run: partition by partition, without a gap and without
// a row twice (see turn). It returns when every partition has been handed over and the shadow's group is gone; the file is
// to say so from then on. tell is told how far it is.
//
// force promotes what makes other columns, or is far behind. An error that Is [ErrRefused] has changed nothing; one that Is
// [ErrUnderWay] says that it goes on by itself.
func (r *Runner) Promote(ctx context.Context, stage string, force bool, tell func(string)) error {
	r.init()
	unit, s, n, err := r.trying(ctx, stage)
	if err != nil {
		return err
	}
	if s.Trial == nil {
		return fmt.Errorf("%w: stage %s has neither a shadow nor a canary", ErrRefused, stage)
	}
	done, err := mayStart(s, n)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case done:
		return r.clearShadow(ctx, s, tell)
	case n == nil || n.Verb != verbPromote || !n.Done.IsZero():
		if err := r.mayPromote(ctx, unit, s, force); err != nil {
			return err
		}
		n = &trialNote{Layout: noteLayout, ID: strconv.FormatInt(time.Now().UnixMicro(), 36), Stage: s.ID(), Kind: s.Trial.Kind, Verb: verbPromote,
			First: first(s), Second: second(s), Begun: time.Now()}
		if err := r.writeTrialNote(ctx, n); err != nil {
			return err
		}
	}
	if err := r.handedOver(ctx, unit, n, tell); err != nil {
		return err
	}
	note := r.noteOfUnit(promoted(r.Plan, unit, s.ID()))
	if err := r.carryOut(ctx, (&survey{r: r}).noteStep(note)); err != nil {
		return err
	}
	n.Done = time.Now()
	if err := r.writeTrialNote(ctx, n); err != nil {
		return err
	}
	return r.clearShadow(ctx, s, tell)
}

// mayPromote says what stands against a promotion.
func (r *Runner) mayPromote(ctx context.Context, unit *pipeline.Unit, s *pipeline.StageNode, force bool) error {
	groups := []string{r.group(unit.Name)}
	sh := shadowOf(r.Plan, s)
	if sh != nil {
		groups = append(groups, r.group(sh.Name))
	}
	if err := r.atWork(ctx, groups); err != nil {
		return err
	}
	if _, pending, err := r.notes(ctx); err != nil {
		return err
	} else if pending != nil {
		return fmt.Errorf("%w: a change was begun and not finished: run `hearthline plan --apply` again", ErrRefused)
	}
	if sh == nil {
		return nil
	}
	for _, output := range slices.Sorted(maps.Keys(s.Outputs)) {
		one, two := r.Plan.Streams[s.Outputs[output]], r.Plan.Streams[pipeline.Side(s.Outputs[output], pipeline.TrialShadow)]
		if one != nil && (two == nil || one.Schema != nil && two.Schema != nil && !one.Schema.Equal(two.Schema)) && !force {
			return fmt.Errorf("%w: the second version of %s makes other columns in %s, which hearthline lint shows; --force promotes it all the same", ErrRefused, s.Name, one.Name)
		}
	}
	if force {
		return r.saved(ctx, unit, sh)
	}
	return r.near(ctx, unit, sh)
}

// atWork refuses groups that stay without members: one that is being rebalanced may have none for a moment.
func (r *Runner) atWork(ctx context.Context, groups []string) error {
	until := time.Now().Add(cmp.Or(r.catchUp, catchUpWait))
	for {
		members, err := r.Client.Members(ctx, groups...)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(groups, func(g string) bool { return members[g] == 0 })
		switch {
		case i < 0:
			return nil
		case time.Now().After(until):
			return fmt.Errorf("%w: %s does not run: a promotion hands over what runs; start hearthline up, or the role", ErrRefused, strings.TrimPrefix(groups[i], r.Plan.Spec.Name+"."))
		}
		select {
		case <-time.After(2 * lookEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// saved refuses a shadow that has no checkpoint of some partition: there would be nothing to go on from.
func (r *Runner) saved(ctx context.Context, unit, sh *pipeline.Unit) error {
	theirs, err := r.Client.CommittedOf(ctx, r.group(sh.Name), unit.Inputs, r.Plan.Spec.Partitions)
	if err != nil {
		return err
	}
	for _, stream := range unit.Inputs {
		if n := len(theirs[stream]); n < r.Plan.Spec.Partitions {
			return fmt.Errorf("%w: %s has saved %d of %d partitions of %s: wait for its first checkpoints", ErrRefused, sh.Name, n, r.Plan.Spec.Partitions, stream)
		}
	}
	return nil
}

// near waits until a shadow has saved that it is where its stage was when it was asked: one that hangs, crashes or cannot keep
// up is refused, since the output of the stage would wait for it.
func (r *Runner) near(ctx context.Context, unit, sh *pipeline.Unit) error {
	at, err := r.Client.CommittedOf(ctx, r.group(unit.Name), unit.Inputs, r.Plan.Spec.Partitions)
	if err != nil {
		return err
	}
	wait := 2*r.Plan.Spec.Checkpoint + cmp.Or(r.catchUp, catchUpWait)
	until := time.Now().Add(wait)
	for {
		theirs, err := r.Client.CommittedOf(ctx, r.group(sh.Name), unit.Inputs, r.Plan.Spec.Partitions)
		if err != nil {
			return err
		}
		behind := int64(0)
		for stream, partitions := range at {
			for p, c := range partitions {
				behind += max(0, c.Offset-theirs[stream][p].Offset)
			}
		}
		switch {
		case behind == 0:
			return r.saved(ctx, unit, sh)
		case time.Now().After(until):
			return fmt.Errorf("%w: %s has not come, within %v, to where %s was: %d batches are left, which the output of the stage would wait for; "+
				"let it catch up, or --force", ErrRefused, sh.Name, wait, unit.Name, behind)
		}
		select {
		case <-time.After(2 * lookEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// handedOver waits until the checkpoint of every partition is the second version's.
func (r *Runner) handedOver(ctx context.Context, unit *pipeline.Unit, n *trialNote, tell func(string)) error {
	waiting, cancel := context.WithTimeout(ctx, promoteWait)
	defer cancel()
	seen := map[int32]string{} // partition → the last checkpoint that was looked at
	left := map[int32]bool{}
	for p := range int32(r.Plan.Spec.Partitions) {
		left[p] = true
	}
	for {
		committed, err := r.Client.CommittedOf(waiting, r.group(unit.Name), unit.Inputs, r.Plan.Spec.Partitions)
		if err != nil && waiting.Err() == nil {
			return fmt.Errorf("%w: %w", ErrUnderWay, err)
		}
		for _, p := range slices.Sorted(maps.Keys(left)) {
			c, ok := committed[unit.Inputs[0]][p]
			if !ok || c.Metadata+strconv.FormatInt(c.Offset, 10) == seen[p] {
				continue
			}
			saved, err := (&keeper{store: r.Store, now: time.Now}).load(waiting, c.Metadata)
			if err != nil || saved == nil {
				continue // replaced since: there is a newer one
			}
			seen[p] = c.Metadata + strconv.FormatInt(c.Offset, 10)
			if saved.Promoted[n.Stage] == n.ID {
				delete(left, p)
				tell(fmt.Sprintf("partition %d goes on with %s", p, n.Second.Use))
			}
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-time.After(2 * lookEvery):
		case <-waiting.Done():
			return fmt.Errorf("%w: %d of %d partitions are not handed over yet (%v); it goes on by itself while the stage runs, and `hearthline promote` finishes it",
				ErrUnderWay, len(left), r.Plan.Spec.Partitions, slices.Sorted(maps.Keys(left)))
		}
	}
}

// clearShadow deletes the group and the checkpoints of a shadow that is not wanted any more, when its processes have left.
func (r *Runner) clearShadow(ctx context.Context, s *pipeline.StageNode, tell func(string)) error {
	sh := shadowOf(r.Plan, s)
	if sh == nil {
		return nil
	}
	group := r.group(sh.Name)
	until := time.Now().Add(leaveWait)
	for {
		members, err := r.Client.Members(ctx, group)
		if err != nil {
			return err
		}
		if members[group] == 0 {
			break
		}
		if time.Now().After(until) {
			tell(fmt.Sprintf("%s still has %d members in its group: `hearthline plan --apply --forget %s` deletes its group and state when they are gone", sh.Name, members[group], sh.ID()))
			return nil
		}
		select {
		case <-time.After(2 * lookEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return r.forget(ctx, group)
}

// Dropped is what a drop has left, or taken.
type Dropped struct {
	Deleted []string `json:"deleted,omitempty"` // side streams
	Kept    []string `json:"kept,omitempty"`    // and those that are left
	Back    bool     `json:"back,omitempty"`    // what was dropped is a promotion: the version before comes back at the next start
}

// Drop ends the trial of a second version: its group and what it remembers are deleted, and with streams the side streams
// that nobody has read. Of a stage that was promoted, while the file still has the version before, it is the promotion that
// is dropped. Call [Runner.DropDone] when the file says so.
func (r *Runner) Drop(ctx context.Context, stage string, deleteStreams bool, tell func(string)) (Dropped, error) {
	r.init()
	var d Dropped
	unit, s, n, err := r.trying(ctx, stage)
	if err != nil {
		return d, err
	}
	if n != nil && n.Verb == verbPromote && n.First.is(first(s)) {
		if n.Done.IsZero() {
			return d, fmt.Errorf("%w: %s is being promoted; `hearthline promote %s` finishes that", ErrRefused, stage, stage)
		}
		d.Back = true
		return d, nil
	}
	if s.Trial == nil {
		return d, fmt.Errorf("%w: stage %s has neither a shadow nor a canary", ErrRefused, stage)
	}
	n = &trialNote{Layout: noteLayout, ID: strconv.FormatInt(time.Now().UnixMicro(), 36), Stage: s.ID(), Kind: s.Trial.Kind, Verb: verbDrop,
		First: first(s), Second: second(s), Begun: time.Now()}
	if err := r.Client.EnsureNotes(ctx, NoteStream); err != nil {
		return d, err
	}
	if err := r.writeTrialNote(ctx, n); err != nil {
		return d, err
	}
	if s.Trial.Kind == pipeline.TrialShadow {
		err = r.clearShadow(ctx, s, tell)
	} else {
		err = r.canaryGone(ctx, unit, s)
	}
	if err != nil {
		return d, err
	}
	return r.dropSides(ctx, s, deleteStreams)
}

// DropDone is called when the file has no second version any more, or has the promoted one no more: what was decided is
// forgotten.
func (r *Runner) DropDone(ctx context.Context, stage string) error {
	_, s, _, err := r.trying(ctx, stage)
	if err != nil {
		return err
	}
	return r.Client.WriteNote(ctx, NoteStream, r.trialKey(s.ID()), nil)
}

// canaryGone waits until no partition of a stage that runs has a canary any more.
func (r *Runner) canaryGone(ctx context.Context, unit *pipeline.Unit, s *pipeline.StageNode) error {
	until := time.Now().Add(leaveWait)
	for {
		members, err := r.Client.Members(ctx, r.group(unit.Name))
		if err != nil || members[r.group(unit.Name)] == 0 {
			return err
		}
		still := 0
		for p := range int32(r.Plan.Spec.Partitions) {
			c, err := r.checkpointOf(ctx, unit, p)
			if err != nil {
				return err
			}
			if c != nil && c.Canaries != nil {
				if _, works := c.Canaries[s.ID()]; works {
					still++
				}
			}
		}
		if still == 0 {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("the canary of %s still works in %d partitions; it ends when the stage is started with the new file", s.Name, still)
		}
		select {
		case <-time.After(5 * lookEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dropSides deletes the side streams of a stage, or names them.
func (r *Runner) dropSides(ctx context.Context, s *pipeline.StageNode, doDelete bool) (d Dropped, err error) {
	writer := s.Name
	if sh := shadowOf(r.Plan, s); sh != nil {
		writer = sh.Stages[0].Name
	}
	survey, err := r.survey(ctx)
	if err != nil {
		return d, err
	}
	for _, name := range slices.Sorted(maps.Keys(r.Plan.Streams)) {
		st := r.Plan.Streams[name]
		if !st.Side || st.Writer != writer {
			continue
		}
		if _, err := r.Client.Info(ctx, name); errors.Is(err, streams.ErrNoStream) {
			continue
		}
		read := len(st.Readers) > 0
		for _, g := range survey.groups {
			_, reads := g.committed[name]
			read = read || reads
		}
		if doDelete && !read {
			d.Deleted = append(d.Deleted, name)
		} else {
			d.Kept = append(d.Kept, name)
		}
	}
	if len(d.Deleted) > 0 {
		err = r.Client.DeleteStreams(ctx, d.Deleted...)
	}
	return d, err
}
