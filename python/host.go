package python

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
)

// hosts are those of one stage: one for each settings it is used with.
type hosts struct {
	workers *Workers
	name    string
	folder  string // "" where the stage is a line of pipeline.yaml
	query   *query // nil where it is a function

	mu       sync.Mutex
	by       map[string]*host
	declared map[string]*stateTold // what the stage keeps, by the state of its files
	told     *stateTold            // what it said last
	spare    *worker               // one that has said so, and waits for settings
}

func (a *hosts) of(settings map[string]any, use flow.Workers) (*host, error) {
	text, err := settingsKey(settings)
	if err != nil {
		return nil, err
	}
	use.Processes = max(1, cmp.Or(use.Processes, a.workers.Max))
	use.Timeout = cmp.Or(use.Timeout, a.workers.Timeout)
	use.Attempts = cmp.Or(use.Attempts, a.workers.Attempts)
	use.MemoryBytesMax = cmp.Or(use.MemoryBytesMax, a.workers.MemoryMax)
	if use.MemoryBytesMax > 0 && !canMeasure {
		return nil, fmt.Errorf("workers.memory_bytes_max: what a process uses is known on Linux alone; leave it out on %s", runtime.GOOS)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := fmt.Sprintf("%s %+v", text, use)
	if a.by[key] == nil {
		a.by[key] = &host{hosts: a, settings: text, use: use, turns: make(chan struct{}, use.Processes)}
	}
	return a.by[key], nil
}

// host holds the worker processes of a stage with some settings. Instances that are open hold it; when the last leaves, the
// processes end. A stage whose files change gets new processes, from the next batch on.
type host struct {
	*hosts
	settings string        // JSON
	use      flow.Workers  // with defaults
	turns    chan struct{} // one for each worker that is taken

	mu      sync.Mutex
	schemas map[string]madeBy // of what was made, by output
	holders int
	idle    []*worker
	print   string    // of the stage's files, by which idle workers were made
	python  string    // the interpreter for them, once it was looked for
	looked  time.Time // at the files
}

// madeBy is a schema, and the state of the files that made it first.
type madeBy struct {
	schema *arrow.Schema
	print  string
}

// lookEvery is how often the files of a stage are looked at, at most.
const lookEvery = 250 * time.Millisecond

func (h *host) enter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holders++
}

func (h *host) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.holders--; h.holders == 0 {
		h.endIdle()
	}
}

func (h *host) unheld() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.holders == 0 {
		h.endIdle()
	}
}

// endIdle callers hold mu.
func (h *host) endIdle() {
	for _, w := range h.idle {
		w.end()
	}
	h.idle = nil
}

// take gives a worker that is ready, when it is there or one may be started. It is given back, or dropped.
func (h *host) take(ctx context.Context) (*worker, error) {
	select {
	case h.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("stage %s: wait for a worker: %w", h.name, ctx.Err())
	}
	w, print := h.ready()
	if w != nil {
		return w, nil
	}
	w, err := h.start(ctx, print, false)
	if err != nil {
		<-h.turns
		return nil, err
	}
	return w, nil
}

// ready gives an idle worker, if its code is that of the files, and what the files are.
func (h *host) ready() (*worker, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.looked) > lookEvery {
		h.looked = time.Now()
		if print := h.filesPrint(); print != h.print {
			h.endIdle()
			if h.print != "" {
				h.workers.Logger.Info("stage: its files have changed; new workers take over", "stage", h.name)
			}
			h.print, h.python = print, ""
		}
	}
	for n := len(h.idle); n > 0; n = len(h.idle) {
		w := h.idle[n-1]
		h.idle = h.idle[:n-1]
		if w.waits() {
			return w, h.print
		}
		h.workers.Logger.Warn("stage: an idle worker is gone", "stage", h.name, "err", w.why(io.EOF))
	}
	return nil, h.print
}

// unheldMax is how long workers wait that nobody has open: lint has just asked them, and runs them next or not at all.
const unheldMax = 5 * time.Second

func (h *host) give(w *worker) {
	h.mu.Lock()
	if w.print == h.print {
		h.idle = append(h.idle, w)
		w = nil
	}
	if h.holders == 0 {
		time.AfterFunc(unheldMax, h.unheld)
	}
	h.mu.Unlock()
	if w != nil {
		w.end()
	}
	<-h.turns
}

func (h *host) drop(w *worker) {
	w.end()
	<-h.turns
}

// keep holds a stage to its schemas: who reads its streams counts on them. Where the code is what it was, the batch is to blame, and is set aside
// (pandas makes other types of columns in which something is missing). Where it was saved since, the data are not: batches wait until it is put right.
func (h *host) keep(o flow.Output, print string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, known := h.schemas[o.To]
	now := o.Record.Schema()
	switch {
	case now.NumFields() > flow.ColumnsMax:
		return flow.Badf("it makes %d columns in %s; at most %d", now.NumFields(), o.To, flow.ColumnsMax)
	case !known:
		if h.schemas == nil {
			h.schemas = map[string]madeBy{}
		}
		h.schemas[o.To] = madeBy{now, print}
	case was.schema == now || was.schema.Equal(now):
	case was.print == print:
		return flow.Badf("of this batch it makes other columns of %s than before, (%s) instead of (%s): give them their types", o.To, columnsOf(now), columnsOf(was.schema))
	default:
		return fmt.Errorf("stage %s makes other columns of %s than when it started, (%s) instead of (%s): undo that, or start it anew with another stream", h.name, o.To,
			columnsOf(now), columnsOf(was.schema))
	}
	return nil
}

// interpreter is that of the stage's files as they are; looking for it starts a process, and is done once.
func (h *host) interpreter(ctx context.Context, print string) (string, error) {
	h.mu.Lock()
	python := h.python
	if h.print != print {
		python = ""
	}
	h.mu.Unlock()
	if python != "" {
		return python, nil
	}
	python, err := h.foundInterpreter(ctx)
	if err != nil {
		return "", err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.print == print {
		h.python = python
	}
	return python, nil
}

func columnsOf(s *arrow.Schema) string {
	var out []string
	for _, f := range s.Fields() {
		out = append(out, f.Name+" "+f.Type.String())
	}
	return strings.Join(out, ", ")
}

// filesPrint says in which state the stage's files are: names, sizes and times.
func (h *hosts) filesPrint() string {
	sum := sha256.New()
	for _, pattern := range h.watched() {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			if info, err := os.Stat(name); err == nil {
				fmt.Fprintf(sum, "%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
			}
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}
