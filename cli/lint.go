package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"hearthline/pipeline"
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

Exit code 0: it fits. 2: it does not.`,
		Example: "  hearthline lint\n  hearthline lint --pipeline other.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := load(cmd.Context(), cmd, o)
			if err != nil {
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
