package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"hearthline/deploy"
	"hearthline/flow"
	"hearthline/ingest"
	"hearthline/pipeline"
	"hearthline/python"
	"hearthline/sinks/clickhouse"
	"hearthline/sinks/parquet"
	"hearthline/sinks/webhook"
	"hearthline/stages"
)

// catalogOf is everything that a pipeline.yaml can name, with the Python stages of the folder stages beside it.
func (o *options) catalogOf() (pipeline.Catalog, error) {
	cat := newCatalog()
	workers := python.New("")
	workers.Lock = o.lock
	if o.log != nil {
		workers.Logger = o.log
	}
	folder := o.stages()
	found, err := workers.Stages(folder)
	if err != nil {
		return cat, err
	}
	cat.SQL = workers.SQL
	if lock, err := python.ReadLock(filepath.Join(filepath.Dir(o.pipeline), deploy.LockFile)); err == nil && !workers.Available() {
		found, cat.SQL, o.locked = lock.Stages(), lock.SQL, true
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cat, err
	}
	for name, stage := range found {
		if cat.Stages[name] != nil {
			return cat, fmt.Errorf("%s: there is a stage %s already; give the folder another name", filepath.Join(folder, name), name)
		}
		cat.Stages[name] = stage
	}
	return cat, nil
}

// runs says whether this process can run a unit, whose stages it may know by the lock alone.
func (o *options) runs(u *pipeline.Unit) error {
	for _, s := range u.Stages {
		if s.InWorkers && o.locked {
			return usagef("stage %s runs in Python or SQL, and there is no python3 here: run it in the image of `hearthline render image`", s.Name)
		}
	}
	return nil
}

// stages is the folder of stages that are files: beside pipeline.yaml, unless an image has it elsewhere.
func (o *options) stages() string {
	if dir := os.Getenv("HEARTHLINE_STAGES"); dir != "" {
		return dir
	}
	return filepath.Join(filepath.Dir(o.pipeline), "stages")
}

// atTerminal gives what makes one of the Python stages of the folder stages, with workers that have this process's terminal and take as
// long as their author looks at them; nil where it is no stage in Python. debugger is where an editor attaches; "" for pdb.
func (o *options) atTerminal(name, debugger string) (func() flow.Stage, error) {
	workers := python.New("")
	workers.Debugger = debugger
	if o.log != nil {
		workers.Logger = o.log
	}
	workers.Terminal, workers.Max, workers.Attempts, workers.Timeout, workers.StartTime = true, 1, 1, debugTime, debugTime
	found, err := workers.Stages(o.stages())
	return found[name], err
}

// debugTime is how long an author may look into a stage.
const debugTime = 24 * time.Hour

// newCatalog is everything a pipeline.yaml can name anywhere.
func newCatalog() pipeline.Catalog {
	return pipeline.Catalog{
		Gateway: func() any { return ingest.New() },
		Stages:  stages.Catalog(),
		Sinks: map[string]func() flow.Sink{
			"clickhouse": func() flow.Sink { return clickhouse.New() },
			"parquet":    func() flow.Sink { return parquet.New() },
			"webhook":    func() flow.Sink { return webhook.New() },
		},
	}
}
