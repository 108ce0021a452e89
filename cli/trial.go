package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hearthline/pipeline"
	"hearthline/pipeline/run"
)

// tried says whether a node is a shadow, or a sink that keeps what a second version makes.
func tried(plan *pipeline.Plan, node string) bool {
	if u := plan.Node(node); u != nil {
		return u.Stages[0].ShadowOf != ""
	}
	return slices.ContainsFunc(plan.Sinks, func(s *pipeline.SinkNode) bool {
		return s.Name == node && slices.ContainsFunc(s.Streams, func(stream string) bool { return plan.Streams[stream].Side })
	})
}

// trialVerb ends the trial of a second version, in one way or the other.
type trialVerb struct {
	*options
	force    bool
	streams  bool
	keepFile bool
	text     []byte // the file as it is to be
}

func newPromote(o *options) *cobra.Command {
	v := &trialVerb{options: o}
	cmd := &cobra.Command{
		Use:   "promote STAGE",
		Short: "Put the second version of a stage, its shadow or canary, in its place while both run",
		Long: `Hands the partitions of a stage over to its second version, which goes on under the stage's name with what
it remembers: no row is lost, none comes twice. The processes that run the stage and its shadow learn of
it through Kafka; nothing is restarted. Then pipeline.yaml is rewritten: the second version's use and
settings are the stage's. Started with either file, before or after, the second version runs.

Where it does not finish in time, it goes on by itself while the stage runs; the same command finishes it.

Exit code 0: done. 4: refused, nothing has been changed. 1: not finished, or Kafka does not answer.`,
		Example: `  hearthline compare score --for 1m     # look first
  hearthline promote score
  hearthline promote score --keep-file  # and edit pipeline.yaml yourself`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return v.run(cmd, args[0], pipeline.Promoted, v.promote)
		},
	}
	cmd.Flags().BoolVar(&v.force, "force", false, "also where it makes other columns, or is far behind")
	cmd.Flags().BoolVar(&v.keepFile, "keep-file", false, "leave pipeline.yaml as it is, and print how it has to be")
	return cmd
}

func newDrop(o *options) *cobra.Command {
	v := &trialVerb{options: o}
	cmd := &cobra.Command{
		Use:   "drop STAGE",
		Short: "End the trial of a stage's second version, its shadow or canary",
		Long: `Ends a shadow or a canary while it runs: its group and what it remembers are deleted, the first version has
all homes again, and pipeline.yaml loses the key. The side streams stay unless --streams.

Where the stage was promoted and pipeline.yaml still has the version before, it is the promotion that
is dropped: the version before comes back at the next start, and hearthline plan says whether it
understands what the second remembers.

Exit code 0: done. 4: refused. 1: not finished, or Kafka does not answer.`,
		Example: "  hearthline drop score\n  hearthline drop score --streams",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return v.run(cmd, args[0], pipeline.WithoutTrial, v.drop)
		},
	}
	cmd.Flags().BoolVar(&v.streams, "streams", false, "delete the side streams, too, as far as nobody has read them")
	cmd.Flags().BoolVar(&v.keepFile, "keep-file", false, "leave pipeline.yaml as it is, and print how it has to be")
	return cmd
}

// run does work on the runner of a stage's pipeline, and rewrites the file. What the file will be is found out before
// anything is touched.
func (v *trialVerb) run(cmd *cobra.Command, stage string, rewrite func([]byte, string) ([]byte, error),
	work func(context.Context, io.Writer, *run.Runner, string) error) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	if err := os.Setenv("HEARTHLINE_DATA", v.data); err != nil {
		return err
	}
	plan, err := load(ctx, cmd, v.options)
	if err != nil {
		return err
	}
	if !stageOf(plan, stage) {
		return usagef("no stage %q in %s; it has %s", stage, plan.Spec.File, stageNames(plan))
	}
	var why error
	v.text, why = v.rewritten(ctx, plan, stage, rewrite)
	if why != nil && !v.keepFile && stageTrial(plan, stage) != nil {
		return exitError{fmt.Errorf("%s is not changed and nothing is begun: %w; --keep-file leaves the file to you", v.pipeline, why), exitRefused}
	}
	p, err := newProcess(v.options, plan)
	if err != nil {
		return err
	}
	brokers, end, err := p.reach(ctx)
	if err != nil {
		return err
	}
	defer end()
	if len(brokers) == 0 {
		return exitError{fmt.Errorf("nothing of this pipeline has run in %s yet; hearthline up starts it", v.data), exitRefused}
	}
	if err := p.openCheckpoints(ctx); err != nil {
		return err
	}
	if err := p.dial(ctx, brokers); err != nil {
		return err
	}
	defer p.client.Close()
	p.configure(nil)
	r := p.runner(run.Drain{}, nil)
	err = work(ctx, out, r, stage)
	if errors.Is(err, run.ErrRefused) {
		return exitError{err, exitRefused}
	}
	return err
}

func stageTrial(plan *pipeline.Plan, stage string) *pipeline.Trial {
	for _, s := range plan.Spec.Stages {
		if s.Name == stage {
			return s.Trial
		}
	}
	return nil
}

// rewritten is the file as it is to be, if it fits together then.
func (v *trialVerb) rewritten(ctx context.Context, plan *pipeline.Plan, stage string, rewrite func([]byte, string) ([]byte, error)) ([]byte, error) {
	text, err := rewrite(plan.Spec.Source, stage)
	if err != nil {
		return nil, err
	}
	cat, err := v.catalogOf()
	if err != nil {
		return nil, err
	}
	spec, findings := pipeline.ReadBytes(v.pipeline, text, os.LookupEnv)
	_, more := pipeline.NewPlan(ctx, spec, cat)
	for _, f := range append(findings, more...) {
		if f.Level == pipeline.LevelError {
			return text, fmt.Errorf("without it the file would not fit together: %s", f)
		}
	}
	return text, nil
}

// write puts the new file in the place of the old, whole or not at all.
func (v *trialVerb) write(out io.Writer) error {
	if v.keepFile && v.text == nil {
		fmt.Fprintf(out, "%s has to be edited by hand: take the key shadow or canary out, and after a promotion put its use, sql and settings in the place of the stage's\n", v.pipeline)
		return nil
	}
	if v.keepFile {
		fmt.Fprintf(out, "%s is to be:\n%s", v.pipeline, v.text)
		return nil
	}
	mode := os.FileMode(0o644)
	if st, err := os.Stat(v.pipeline); err == nil {
		mode = st.Mode().Perm()
	}
	file, err := filepath.EvalSymlinks(v.pipeline)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".pipeline-*.yaml")
	if err != nil {
		return fmt.Errorf("write %s: %w", v.pipeline, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(v.text)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", v.pipeline, err)
	}
	fmt.Fprintf(out, "%s is rewritten\n", v.pipeline)
	return nil
}

func (v *trialVerb) promote(ctx context.Context, out io.Writer, r *run.Runner, stage string) error {
	begun := time.Now()
	if err := r.Promote(ctx, stage, v.force, func(line string) { fmt.Fprintln(out, line) }); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is promoted, in %v\n", stage, time.Since(begun).Round(10*time.Millisecond))
	return v.write(out)
}

func (v *trialVerb) drop(ctx context.Context, out io.Writer, r *run.Runner, stage string) error {
	d, err := r.Drop(ctx, stage, v.streams, func(line string) { fmt.Fprintln(out, line) })
	if err != nil {
		return err
	}
	if d.Back {
		fmt.Fprintf(out, "the promotion of %s is forgotten: the version of %s comes back at the next start\n", stage, v.pipeline)
		return r.DropDone(ctx, stage)
	}
	if len(d.Deleted) > 0 {
		fmt.Fprintf(out, "deleted: %s\n", strings.Join(d.Deleted, ", "))
	}
	if len(d.Kept) > 0 {
		fmt.Fprintf(out, "kept: %s (--streams deletes those that nobody has read)\n", strings.Join(d.Kept, ", "))
	}
	// In this order: who starts with the old file in between finds that it was dropped.
	if err := v.write(out); err != nil {
		return err
	}
	return r.DropDone(ctx, stage)
}
