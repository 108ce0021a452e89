package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

func newNew(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "new", Short: "Begin a stage"}
	var lang string
	stage := &cobra.Command{
		Use:   "stage NAME",
		Short: "Write a stage that works, with a case that passes",
		Long: `Writes stages/NAME beside pipeline.yaml: a small stage that works, and a case for it. In Python and in SQL that is a file; in Go
it is a package, and a line in stages/catalog.go. Nothing that is there is changed.`,
		Example: "  hearthline new stage warm\n  hearthline new stage warm --lang sql\n  hearthline new stage overheat --lang go",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return beginStage(cmd.OutOrStdout(), filepath.Dir(o.pipeline), args[0], lang)
		},
	}
	stage.Flags().StringVar(&lang, "lang", "python", "python, sql or go")
	cmd.AddCommand(stage)
	return cmd
}

// Names of new stages: a folder in Python and SQL, in Go a package.
var (
	newStageName   = regexp.MustCompile(`^[a-z][a-z0-9]*([-_][a-z0-9]+)*$`)
	newPackageName = regexp.MustCompile(`^[a-z][a-z0-9]*$`)
)

const newStageNameMax = 40

func beginStage(out io.Writer, root, name, lang string) error {
	if lang == "go" && !newPackageName.MatchString(name) || !newStageName.MatchString(name) || len(name) > newStageNameMax {
		return usagef("%q is no name for a stage: want up to %d small letters and digits, a letter first (in Python and SQL also - and _ between them)", name, newStageNameMax)
	}
	if newCatalog().Stages[name] != nil {
		return usagef("there is a stage %s already; take another name", name)
	}
	files, ok := map[string]map[string]string{
		"python": {"stage.py": pythonStage, "cases/first.yaml": strings.ReplaceAll(firstCase, "OUTPUT", "out")},
		"sql":    {"stage.sql": sqlStage, "cases/first.yaml": strings.ReplaceAll(firstCase, "OUTPUT", "out")},
		"go":     {name + ".go": goStage, name + "_test.go": goStageTest, "cases/first.yaml": strings.ReplaceAll(firstCase, "OUTPUT", name)},
	}[lang]
	if !ok {
		return usagef("no language %q; there are python, sql and go", lang)
	}
	if _, err := os.Stat(filepath.Join(root, "stages", "catalog.go")); lang == "go" && err != nil {
		return usagef("a stage in Go becomes part of the binary: run this in a checkout of Hearthline (there is no stages/catalog.go here), or take --lang python")
	}
	dir := filepath.Join(root, "stages", name)
	if err := os.Mkdir(filepath.Dir(dir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) { // #nosec G301 -- source code
		return err
	}
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) { // #nosec G301 -- likewise
		return usagef("%s is there already", dir)
	} else if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "cases"), 0o755); err != nil { // #nosec G301 -- likewise
		return err
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(strings.ReplaceAll(text, "NAME", name)), 0o644); err != nil { // #nosec G306 -- likewise
			return err
		}
	}
	if lang == "go" {
		fmt.Fprintf(out, "%s: a stage in Go, and a case. Put it into stages/catalog.go, with its import:\n\n    %q: %s.New,\n\nand try it: go test ./stages/%s (or, after make build: hearthline test %s)\n", dir, name, name, name, name)
	} else {
		fmt.Fprintf(out, "%s: a stage in %s, and a case. Try it: hearthline test %s\n", dir, map[string]string{"python": "Python", "sql": "SQL"}[lang], name)
	}
	node, use := strings.ReplaceAll(name, "_", "-"), "" // names of nodes are also names on Kubernetes
	if node != name {
		use = "use: " + name + ", "
	}
	fmt.Fprintf(out, "In pipeline.yaml:\n\n    stages:\n      %s: {%sfrom: readings, to: %s, settings: {above: 25}}\n    sinks:\n      clickhouse:\n        from: [%s, …]      # beside what stands there\n\n", node, use, name, name)
	fmt.Fprintln(out, "`hearthline lint` says whether it fits.")
	return nil
}

const pythonStage = `"""Passes temperatures above a limit."""

import pyarrow as pa
import pyarrow.compute as pc


def process(readings: pa.RecordBatch, above: float = 25.0) -> pa.RecordBatch:
    warm = pc.and_(pc.equal(readings["metric"], "temperature"), pc.greater(readings["value"], above))
    return readings.filter(warm).select(["time", "home", "device", "value"])
`

const sqlStage = `-- Passes temperatures above a limit.
SELECT time, home, device, value
FROM input
WHERE metric = 'temperature' AND value > $above
`

const goStage = `// Package NAME passes temperatures above a limit.
package NAME

import (
	"context"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// Stage is its own settings; New gives the defaults.
type Stage struct {
	Above float64 ` + "`yaml:\"above\"`" + ` // °C
}

// New gives the stage.
func New() flow.Stage { return &Stage{Above: 25} }

type reading struct {
	Time   flow.Micros ` + "`flow:\"time\"`" + `
	Home   string      ` + "`flow:\"home\"`" + `
	Device string      ` + "`flow:\"device\"`" + `
	Metric string      ` + "`flow:\"metric\"`" + `
	Value  *float64    ` + "`flow:\"value\"`" + `
}

// Process implements flow.Stage.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	return flow.Rows("NAME", func(r reading) (reading, bool) {
		return r, r.Metric == "temperature" && r.Value != nil && *r.Value > s.Above
	}).Process(ctx, in)
}
`

const goStageTest = `package NAME

import (
	"testing"

	"hearthline/flow/flowtest"
)

func TestCases(t *testing.T) { flowtest.Run(t, New, "cases") }
`

const firstCase = `name: what is above the limit passes
settings: {above: 20}
each: {home: h1, device: d1, metric: temperature}
steps:
- in:
  - {time: 0s, value: 19.5}
  - {time: 10s, value: 20.5}
  - {time: 20s, metric: humidity, value: 60}
  want:
    OUTPUT:
    - {time: 10s, home: h1, device: d1, value: 20.5}
`
