package python

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"

	"hearthline/flow"
)

// sqlFile is what makes a folder a SQL stage.
const sqlFile = "stage.sql"

// engine is what workers of SQL stages need. The version is one: what a query gives, and in which order, is to be the same everywhere
// (docs/decisions has why it is this engine).
const engine = "duckdb==2.0.0"

// query makes workers run SQL instead of a function.
type query struct {
	text    string   // "" where it stands in the folder's stage.sql
	streams []string // names that it may have for its input, beside "input"; nil: any one
}

// SQL gives what makes a stage of a query, written in pipeline.yaml under the name of a node. streams are those that the node reads.
func (w *Workers) SQL(node, text string, streams []string) func() flow.Stage {
	all := &hosts{workers: w, name: node, query: &query{text, streams}, by: map[string]*host{}}
	return all.stage
}

// module is the program of the library that a stage's workers run.
func (a *hosts) module() string {
	if a.query != nil {
		return "hearthline._sql"
	}
	return "hearthline._worker"
}

// task is what a worker is told to be.
func (a *hosts) task() map[string]any {
	task := map[string]any{"stage": a.name, "folder": a.folder}
	if a.query != nil {
		task["sql"], task["streams"] = a.query.text, a.query.streams
	}
	return task
}

// watched are the files, as patterns, whose change makes a stage another.
func (a *hosts) watched() []string {
	switch {
	case a.folder == "":
		return nil
	case a.query != nil:
		return []string{filepath.Join(a.folder, sqlFile)}
	}
	return []string{filepath.Join(a.folder, "*.py"), filepath.Join(a.folder, requirementsFile)}
}

// foundInterpreter is the Python that the stage's workers run on.
func (a *hosts) foundInterpreter(ctx context.Context) (string, error) {
	if a.query == nil {
		return a.workers.interpreter(ctx, a.folder)
	}
	e := &a.workers.engine
	e.Lock()
	defer e.Unlock()
	if e.python != "" {
		return e.python, nil
	}
	if err := a.workers.findCache(); err != nil {
		return "", err
	}
	python, version, err := a.workers.installed(ctx)
	if err != nil {
		return "", err
	}
	if !hasEngine(ctx, python) {
		if python, err = a.workers.environment(ctx, python, version, engine); err != nil {
			return "", err
		}
	}
	e.python = python
	return python, nil
}

// hasEngine says whether an interpreter has what workers of SQL stages need, in the version that they need.
func hasEngine(ctx context.Context, python string) bool {
	out, err := exec.CommandContext(ctx, python, "-c", "import duckdb, pyarrow; print(duckdb.__version__)").Output() // #nosec G204 -- the operator's interpreter
	return err == nil && "duckdb=="+strings.TrimSpace(string(out)) == engine
}

// queryError is what is wrong with a query at a byte of its text. It says where it is, for who knows where the text stands.
type queryError struct {
	error
	place int
}

func (e *queryError) Unwrap() error { return e.error }

// Place is the byte of the query, from 0; below 0 it is the query as a whole.
func (e *queryError) Place() int { return e.place }

// at gives an error the place that a worker told.
func (f *failure) at(err error) error {
	if f.Place == nil {
		return err
	}
	return &queryError{err, *f.Place}
}
