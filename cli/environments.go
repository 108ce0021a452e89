package cli

import (
	"github.com/spf13/cobra"

	"hearthline/python"
)

func newEnvironments(o *options) *cobra.Command {
	var sql bool
	cmd := &cobra.Command{
		Use:   "environments",
		Short: "Make what stages in Python and SQL need, for an image",
		Long: `Makes the environments of the stages beside pipeline.yaml, or in $HEARTHLINE_STAGES, in the cache ($HEARTHLINE_CACHE), and loads every stage once.
A start then needs no network, and no disk that it can write. Elsewhere they are made when they are first needed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			workers := python.New("")
			workers.Logger = o.log
			found, err := workers.Stages(o.stages())
			if err != nil {
				return usageError{err}
			}
			return workers.Prepare(cmd.Context(), found, sql)
		},
	}
	cmd.Flags().BoolVar(&sql, "sql", false, "the engine of stages in SQL, too, whose queries stand in pipeline.yaml")
	return cmd
}
