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
	"regexp"
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
	v := testVerb{}
	var run string
	var watch bool
	cmd := &cobra.Command{
		Use:   "test [STAGE…]",
		Short: "Run the cases of stages: what goes in, what must come out",
		Long: `Runs the cases of the stages beside pipeline.yaml, in Go, Python and SQL: the .yaml files in stages/NAME/cases.
Nothing else is needed: no broker, no ClickHouse. Each case is run as it is written, and then cut into other
batches, twice, and with no rows first: a stage whose results depend on how its rows come together is found here.

--update writes what came out into the cases that fail, as want and dead, and shows what it changed. Comments, order
and what did not change stay. What is not the same each time it comes out is not written.

--watch goes on: whenever a file of a stage is saved, its cases run again, until Ctrl-C.

Exit code 0: all pass, or --watch was ended. 1: some fail.`,
		Example: "  hearthline test\n  hearthline test warm --run 'above.*limit'\n  hearthline test warm --update\n  hearthline test warm --watch",
		RunE: func(cmd *cobra.Command, names []string) error {
			var err error
			if v.run, err = regexp.Compile(run); err != nil {
				return usagef("--run: %s", err)
			}
			v.out, v.folder = cmd.OutOrStdout(), o.stages()
			if watch && v.update {
				return usagef("--watch runs cases, --update writes them: take one of both")
			}
			if watch {
				return v.watch(cmd.Context(), o, names)
			}
			if err := v.look(o); err != nil {
				return err
			}
			return v.all(cmd.Context(), names)
		},
	}
	cmd.Flags().StringVar(&run, "run", "", "only cases whose names match this regular expression")
	cmd.Flags().BoolVar(&watch, "watch", false, "run the cases of a stage again whenever a file of it is saved")
	cmd.Flags().BoolVar(&v.update, "update", false, "write what came out into the cases that fail")
	return cmd
}

// testVerb runs the cases of stages of a folder.
type testVerb struct {
	out     io.Writer
	folder  string
	catalog map[string]func() flow.Stage
	run     *regexp.Regexp // of names of cases
	update  bool
	seed    uint64
}

// look finds out which stages there are.
func (v *testVerb) look(o *options) error {
	cat, err := o.catalogOf()
	if err == nil {
		err = addLines(o.pipeline, &cat)
	}
	if err != nil {
		return usageError{err}
	}
	v.catalog = cat.Stages
	return nil
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

// all runs the cases of some stages, or of all that have any.
func (v *testVerb) all(ctx context.Context, names []string) error {
	if len(names) == 0 {
		if err := v.unbuilt(); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(v.catalog)) {
			if _, err := os.Stat(filepath.Join(v.folder, name, "cases")); err == nil {
				names = append(names, name)
			}
		}
	}
	ran, err := v.stages(ctx, names)
	switch {
	case err != nil:
		return err
	case ran == 0 && v.run.String() != "":
		return usagef("no case has a name like %q", v.run)
	case ran == 0:
		return usagef("no stage in %s has cases: they are .yaml files in %s", v.folder, filepath.Join(v.folder, "NAME", "cases"))
	}
	return nil
}

// stages runs the cases of stages, and says how many it ran.
func (v *testVerb) stages(ctx context.Context, names []string) (ran int, err error) {
	if v.seed, err = cases.Seed(); err != nil {
		return 0, usageError{err}
	}
	failed := 0
	for _, name := range names {
		if v.catalog[name] == nil {
			return ran, v.unknown(name)
		}
		dir := filepath.Join(v.folder, name, "cases")
		all, err := cases.Load(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return ran, usagef("stage %s has no cases: put .yaml files into %s (`hearthline new stage` writes one to begin with)", name, dir)
		} else if err != nil {
			return ran, usageError{err}
		}
		all = slices.DeleteFunc(all, func(c *cases.Case) bool { return !v.run.MatchString(c.Name()) })
		if len(all) == 0 {
			continue
		}
		bad, err := v.stage(ctx, name, dir, all)
		if err != nil {
			return ran, err
		}
		ran, failed = ran+len(all), failed+bad
	}
	if failed > 0 {
		fmt.Fprintf(v.out, "%d of %d cases failed; FLOWTEST_SEED=%d cuts them in the same way again\n", failed, ran, v.seed)
		return ran, errCases
	}
	return ran, nil
}

// unbuilt says of a stage in Go whose cases would be left out in silence that it is to be built.
func (v *testVerb) unbuilt() error {
	folders, err := filepath.Glob(filepath.Join(v.folder, "*", "cases"))
	if err != nil {
		return err
	}
	for _, dir := range folders {
		if name := filepath.Base(filepath.Dir(dir)); v.catalog[name] == nil && v.inGo(name) {
			return v.unknown(name)
		}
	}
	return nil
}

func (v *testVerb) unknown(name string) error {
	if v.inGo(name) {
		return usagef("%s is a stage in Go, and not part of this binary: put it into stages/catalog.go, then make build", filepath.Join(v.folder, name))
	}
	return usagef("there is no stage %s; there are %s", name, strings.Join(slices.Sorted(maps.Keys(v.catalog)), ", "))
}

// inGo says whether a folder holds a package.
func (v *testVerb) inGo(name string) bool {
	files, err := filepath.Glob(filepath.Join(v.folder, name, "*.go"))
	return err == nil && len(files) > 0
}

// stage runs cases of one stage, and says how many failed, and still do.
func (v *testVerb) stage(ctx context.Context, name, dir string, all []*cases.Case) (bad int, err error) {
	begun, stage, failed := time.Now(), v.catalog[name], map[string]bool{}
	for _, c := range all {
		if err := within(filepath.Dir(dir), func() error { return c.Check(ctx, stage, v.seed) }); err != nil {
			failed[c.At()] = true
			if !v.update {
				fmt.Fprintf(v.out, "FAIL  %s: %s\n      %s\n", c.At(), c.Name(), indented(err.Error()))
			}
		}
	}
	if bad = len(failed); v.update && bad > 0 {
		if bad, err = v.updateFiles(ctx, dir, stage, failed); err != nil {
			return bad, err
		}
	}
	word := "ok  "
	if bad > 0 {
		word = "FAIL"
	}
	fmt.Fprintf(v.out, "%s  %s: %d cases, %d failed, %s\n", word, name, len(all), bad, time.Since(begun).Round(10*time.Millisecond))
	return bad, nil
}

func indented(text string) string {
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n      ")
}

// updateFiles writes what comes out into the cases that failed, and says how many cannot be helped so.
func (v *testVerb) updateFiles(ctx context.Context, dir string, stage func() flow.Stage, failed map[string]bool) (bad int, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		of := 0
		for at := range failed {
			if strings.HasPrefix(at, file+":") {
				of++
			}
		}
		if of == 0 {
			continue
		}
		old, err := os.ReadFile(file) // #nosec G304 -- a case of the author
		if err != nil {
			return bad, err
		}
		var updated []byte
		err = within(filepath.Dir(dir), func() (err error) {
			updated, err = cases.Update(ctx, file, old, stage, v.seed, func(c *cases.Case) bool { return failed[c.At()] })
			return err
		})
		if err != nil {
			bad += of
			fmt.Fprintf(v.out, "FAIL  %s\n", indented(err.Error()))
			continue
		}
		fmt.Fprintf(v.out, "%s\n%s", file, linesChanged(string(old), string(updated)))
		info, err := os.Stat(file)
		if err != nil {
			return bad, err
		}
		if err := os.WriteFile(file, updated, info.Mode().Perm()); err != nil { // #nosec G703 -- likewise
			return bad, err
		}
	}
	return bad, nil
}

// linesChanged shows which lines became which others.
func linesChanged(old, now string) string {
	var b strings.Builder
	a, z := strings.Split(old, "\n"), strings.Split(now, "\n")
	// longest[i][j] is how many lines from i and j on are the same.
	longest := make([][]int, len(a)+1)
	for i := range longest {
		longest[i] = make([]int, len(z)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(z) - 1; j >= 0; j-- {
			if longest[i][j] = max(longest[i+1][j], longest[i][j+1]); a[i] == z[j] {
				longest[i][j] = longest[i+1][j+1] + 1
			}
		}
	}
	for i, j := 0, 0; i < len(a) || j < len(z); {
		switch {
		case i < len(a) && j < len(z) && a[i] == z[j]:
			i, j = i+1, j+1
		case i < len(a) && (j == len(z) || longest[i+1][j] >= longest[i][j+1]):
			fmt.Fprintf(&b, "  %4d - %s\n", i+1, a[i])
			i++
		default:
			fmt.Fprintf(&b, "  %4d + %s\n", j+1, z[j])
			j++
		}
	}
	return b.String()
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
