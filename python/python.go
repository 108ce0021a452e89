// Package python runs stages that are written in Python: stages/<name>/stage.py, one function on a record batch.
//
// The runtime owns everything else, as it does for stages in Go: Kafka, delivery, order, retries, metrics, drain. Worker processes, as
// many as there are cores, get batches as Arrow over a socket pair and send batches back; a stage's instances share them. A function
// that raises sends its batch to the dead letters, with the traceback. A worker that dies or does not answer in time is replaced, and
// gets the batch again; the third time the batch goes to the dead letters, too.
//
// What authors import is the folder hearthline beside this file. It is a package of its own, and part of the binary.
package python

import (
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"hearthline/flow"
	"hearthline/flow/cachedir"
)

//go:embed hearthline/*.py
var library embed.FS

// Workers says how worker processes are run. New gives the defaults.
type Workers struct {
	Interpreter string        // python3, where Requirements of a stage ask for no environment of its own
	Cache       string        // folder of the library and of environments
	Max         int           // processes of a stage
	Timeout     time.Duration // for the answer to a batch; then the process is killed and replaced
	StartTime   time.Duration // until a process is ready: it imports what the stage does
	Attempts    int           // processes that may die of a batch before it goes to the dead letters
	MemoryMax   int64         // bytes that a process may use before it is killed and replaced; 0 is no limit
	FrameMax    int           // bytes of an answer
	Lock        *Lock         // notes what stages make of no rows; nil: nobody does
	Logger      *slog.Logger
	// Terminal gives workers stdin, stdout and stderr of this process, so that the author can look into a stage at work: breakpoint()
	// stops it there. Otherwise breakpoint() does nothing: one that was forgotten stops no pipeline.
	Terminal bool
	// Debugger is an address of this machine at which a worker waits for an editor to attach, by debugpy, before it loads the stage. Terminal is set, too.
	Debugger string

	failed struct { // environments that could not be made, by folder
		sync.Mutex
		by map[string]failedAt
	}
	engine struct { // the interpreter of all SQL stages, once it was looked for
		sync.Mutex
		python string
	}
}

// New gives the default settings, with everything under a cache folder; "" is [cachedir.Find].
func New(cache string) *Workers {
	return &Workers{
		Interpreter: cmp.Or(os.Getenv("HEARTHLINE_PYTHON"), "python3"), Cache: cache, Max: runtime.GOMAXPROCS(0), Timeout: time.Minute, StartTime: 2 * time.Minute, Attempts: 3, MemoryMax: machineMemory() / 2, FrameMax: 512 << 20,
		Logger: slog.New(slog.DiscardHandler),
	}
}

// file is what makes a folder a Python stage.
const file = "stage.py"

// Stages gives, by name, what makes each stage of a folder of stages. A folder that does not exist holds none.
func (w *Workers) Stages(folder string) (map[string]func() flow.Stage, error) {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return nil, fmt.Errorf("python stages: %w", err)
	}
	if err := w.findCache(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("python stages: %w", err)
	}
	found := map[string]func() flow.Stage{}
	for _, e := range entries {
		dir := filepath.Join(folder, e.Name())
		python, sql := isFile(filepath.Join(dir, file)), isFile(filepath.Join(dir, sqlFile))
		if !python && !sql {
			continue
		}
		all := &hosts{workers: w, name: e.Name(), folder: dir, by: map[string]*host{}}
		if sql {
			all.query = &query{}
		}
		if python && sql {
			return nil, fmt.Errorf("%s holds a %s and a %s: a stage is one of them", dir, file, sqlFile)
		}
		found[e.Name()] = all.stage
	}
	return found, nil
}

func (w *Workers) findCache() (err error) {
	if w.Cache != "" {
		return nil
	}
	if w.Cache, err = cachedir.Find(); err != nil {
		return fmt.Errorf("python stages: %w", err)
	}
	return nil
}

func isFile(path string) bool {
	info, err := os.Stat(path) // #nosec G304 -- of the operator
	return err == nil && info.Mode().IsRegular()
}

// install puts the library where Python finds it, and gives the folder that is to be on its path.
func (w *Workers) install() (string, error) {
	dir := filepath.Join(w.Cache, "python", "library-"+libraryPrint()[:16])
	target := filepath.Join(dir, "hearthline")
	if _, err := os.Stat(target); err == nil {
		return dir, nil
	}
	made, err := os.MkdirTemp(ensured(filepath.Join(w.Cache, "python")), ".library-*")
	if err != nil {
		return "", fmt.Errorf("python library: %w", err)
	}
	defer os.RemoveAll(made)
	if err := os.CopyFS(made, library); err != nil {
		return "", fmt.Errorf("python library: %w", err)
	}
	if err := os.Rename(made, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, there := os.Stat(target); there != nil { // another process was first, unless it is not there
			return "", fmt.Errorf("python library: %w", err)
		}
	}
	return dir, nil
}

// ensured makes a folder; what is wrong with it shows when it is used.
func ensured(dir string) string {
	_ = os.MkdirAll(dir, 0o755) // #nosec G301 -- a cache of public code
	return dir
}

// libraryPrint is a hash of the library.
func libraryPrint() string {
	var names []string
	_ = fs.WalkDir(library, ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	slices.Sort(names)
	return printOf(names, func(name string) ([]byte, error) { return library.ReadFile(name) })
}
