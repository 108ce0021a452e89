package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"hearthline/pipeline"
	"hearthline/pipeline/run"
)

// load reads the pipeline and proves that it fits together. Findings are printed; errors among them end it.
func load(ctx context.Context, cmd *cobra.Command, o *options) (*pipeline.Plan, error) {
	return loadTelling(ctx, cmd.ErrOrStderr(), o)
}

// loadTelling is load whose findings go to out.
func loadTelling(ctx context.Context, out io.Writer, o *options) (*pipeline.Plan, error) {
	cat, err := o.catalogOf()
	if err != nil {
		return nil, usageError{err}
	}
	plan, findings, err := pipeline.Lint(ctx, o.pipeline, cat)
	if err != nil {
		if os.IsNotExist(err) {
			return nil, usagef("no pipeline file %s here: run in the folder that holds it, or name it with --pipeline", o.pipeline)
		}
		return nil, usageError{err}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx) // what could not be asked any more would be found wrong
	}
	for _, f := range findings {
		fmt.Fprintln(out, f)
	}
	if pipeline.Failed(findings) {
		return nil, errFindings
	}
	return plan, nil
}

func newLint(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "lint",
		Short: "Prove that pipeline.yaml fits together, without starting anything",
		Long: `Reads pipeline.yaml strictly, then gives every stage a batch of no rows to learn what it makes of its
input, and so checks that all streams, stages and sinks fit each other. Every finding says
file:line:column, what is wrong, and what to do.

Where Kafka answers, the columns of each stream are compared with those of the batches that it holds: readers may
count on them, so that a column may only be added, and must be nullable (docs/schemas.md).

Exit code 0: it fits. 2: it does not.`,
		Example: "  hearthline lint\n  hearthline lint --pipeline other.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := os.Setenv("HEARTHLINE_DATA", o.data); err != nil {
				return err
			}
			plan, err := load(cmd.Context(), cmd, o)
			if err != nil {
				return err
			}
			if err := compareRunning(cmd, o, plan); err != nil {
				return err
			}
			stages := 0
			for _, u := range plan.Units {
				stages += len(u.Stages)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d streams, %d stages in %d tasks a partition, %d sinks: it fits together\n",
				o.pipeline, len(plan.Streams), stages, len(plan.Units), len(plan.Sinks))
			return nil
		},
	}
}

// lintWait is how long lint waits for Kafka: what it says beside is known without.
const lintWait = 3 * time.Second

// compareRunning compares the plan's streams with what they hold, where Kafka answers. What would break their readers is a finding.
func compareRunning(cmd *cobra.Command, o *options, plan *pipeline.Plan) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), lintWait)
	defer cancel()
	p := &process{options: o, plan: plan, meter: run.NewMeter()}
	err := p.dial(ctx, p.brokers())
	var broken []run.Broken
	if err == nil {
		defer p.client.Close()
		broken, err = p.runner(run.Drain{}, nil).Broken(ctx)
	}
	if err != nil {
		if len(plan.Spec.Kafka.Brokers) > 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: not compared with what runs: %s\n", o.pipeline, harmlessLines(err.Error()))
		}
		return nil // an embedded broker that does not run is no news
	}
	for i := range broken {
		at, path := plan.WrittenAt(broken[i].Stream)
		fmt.Fprintln(cmd.ErrOrStderr(), pipeline.Finding{File: plan.Spec.File, Pos: at, Path: path, Message: broken[i].Error(), Hint: broken[i].Way()})
	}
	if len(broken) > 0 {
		return errFindings
	}
	return nil
}
