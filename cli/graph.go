package cli

import (
	"io"

	"github.com/spf13/cobra"
)

func newGraph(o *options) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Draw the pipeline: Mermaid, DOT or SVG",
		Example: `  hearthline graph                        # Mermaid, for Markdown
  hearthline graph --format svg > graph.svg
  hearthline graph --format dot | dot -Tpdf > graph.pdf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := load(cmd.Context(), cmd, o)
			if err != nil {
				return err
			}
			var text string
			switch format {
			case "mermaid":
				text = plan.Mermaid()
			case "dot":
				text = plan.DOT()
			case "svg":
				text = plan.SVG()
			default:
				return usagef("no format %q; there are mermaid, dot and svg", format)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "mermaid", "mermaid, dot or svg")
	return cmd
}
