package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hearthline/flow"
	"hearthline/flow/cases"
	"hearthline/pipeline"
)

// errCases says that cases failed, which is printed already.
var errCases = errors.New("cases failed")

func newTest(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "test [STAGE…]",
		Short: "Run the cases of stages: what goes in, what must come out",
		Long: `Runs the cases of the stages beside pipeline.yaml: the .yaml files in stages/NAME/cases. Nothing else is needed:
no broker, no ClickHouse. Each case is run as it is written, and then cut into other batches, twice, and with
no rows first: a stage whose results depend on how its rows come together is found here.

Exit code 0: all pass. 1: some fail.`,
		Example: "  hearthline test\n  hearthline test warm",
		RunE: func(cmd *cobra.Command, names []string) error {
			cat, err := o.catalogOf()
			if err != nil {
				return usageError{err}
			}
			if err := addLines(o.pipeline, &cat); err != nil {
				return usageError{err}
			}
			return testStages(cmd.Context(), cmd.OutOrStdout(), filepath.Join(filepath.Dir(o.pipeline), "stages"), cat.Stages, names)
		},
	}
}

// addLines puts the stages that pipeline.yaml has as SQL beside those of the catalogue: they have cases under their own names. A file
// that is not there, or not right, has none: lint says what is wrong with it.
func addLines(file string, cat *pipeline.Catalog) error {
	spec, _, err := pipeline.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, s := range spec.Stages {
		if s.SQL != nil && s.SQL.Text != "" && cat.Stages[s.Name] == nil {
			cat.Stages[s.Name] = cat.SQL(s.Name, s.SQL.Text, s.From)
		}
	}
	return nil
}

// testStages runs the cases of some stages of a folder, or of all that have any.
func testStages(ctx context.Context, out io.Writer, folder string, catalog map[string]func() flow.Stage, names []string) error {
	asked := len(names) > 0
	if !asked {
		names = slices.Sorted(maps.Keys(catalog))
	}
	seed, err := cases.Seed()
	if err != nil {
		return usageError{err}
	}
	ran, failed := 0, 0
	for _, name := range names {
		stage := catalog[name]
		if stage == nil {
			return usagef("there is no stage %s; there are %s", name, strings.Join(slices.Sorted(maps.Keys(catalog)), ", "))
		}
		dir := filepath.Join(folder, name, "cases")
		all, err := cases.Load(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !asked:
			continue
		case errors.Is(err, fs.ErrNotExist):
			return usagef("stage %s has no cases: put .yaml files into %s (`hearthline new stage` writes one to begin with)", name, dir)
		case err != nil:
			return usageError{err}
		}
		begun, bad := time.Now(), 0
		for _, c := range all {
			if err := within(filepath.Join(folder, name), func() error { return c.Check(ctx, stage, seed) }); err != nil {
				bad++
				fmt.Fprintf(out, "FAIL  %s: %s\n      %s\n", c.At(), c.Name(), strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "\n      "))
			}
		}
		ran, failed = ran+len(all), failed+bad
		word := "ok  "
		if bad > 0 {
			word = "FAIL"
		}
		fmt.Fprintf(out, "%s  %s: %d cases, %d failed, %s\n", word, name, len(all), bad, time.Since(begun).Round(10*time.Millisecond))
	}
	switch {
	case ran == 0:
		return usagef("no stage in %s has cases: they are .yaml files in %s", folder, filepath.Join(folder, "NAME", "cases"))
	case failed > 0:
		fmt.Fprintf(out, "%d of %d cases failed; FLOWTEST_SEED=%d cuts them in the same way again\n", failed, ran, seed)
		return errCases
	}
	return nil
}

// within calls f in the folder of a stage: files that its settings name are looked for there, as in a Go test.
func within(folder string, f func() error) error {
	was, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.Chdir(folder); err != nil {
		return err
	}
	return errors.Join(f(), os.Chdir(was))
}
