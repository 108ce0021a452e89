package python

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// Lock is what the stages of a plan lockedAnswer when they were asked without rows. It stands in a file beside pipeline.yaml where a role has
// no Python: such a role proves the whole plan by it, and runs none of these stages.
type Lock struct {
	mu      sync.Mutex
	answers []lockedAnswer
}

// lockedAnswer is one stage with some settings, on one schema.
type lockedAnswer struct {
	Stage    string          `json:"stage,omitempty"` // name of its folder
	SQL      string          `json:"sql,omitempty"`   // or its text
	Settings json.RawMessage `json:"settings"`
	Keeps    bool            `json:"keeps_state"`
	In       lockedSchema    `json:"in"`
	Out      []lockedOutput  `json:"out"`
}

type lockedOutput struct {
	Name   string       `json:"name"`
	Schema lockedSchema `json:"schema"`
}

// lockedSchema is a schema for readers, and as Arrow writes it.
type lockedSchema struct {
	Columns string `json:"columns"`
	Arrow   []byte `json:"arrow"` // an IPC stream without batches
}

func lockSchema(s *arrow.Schema) (lockedSchema, error) {
	var b bytes.Buffer
	err := ipc.NewWriter(&b, ipc.WithSchema(s)).Close()
	return lockedSchema{columnsOf(s), b.Bytes()}, err
}

func (l *lockedSchema) schema() (s *arrow.Schema, err error) {
	defer func() {
		if p := recover(); p != nil { // of the Arrow library
			s, err = nil, fmt.Errorf("a schema of the lock: %v", p)
		}
	}()
	r, err := ipc.NewReader(bytes.NewReader(l.Arrow))
	if err != nil {
		return nil, fmt.Errorf("a schema of the lock: %w", err)
	}
	defer r.Release()
	return r.Schema(), nil
}

// note adds an answer, unless it is there.
func (l *Lock) note(s *Stage, keeps bool, in *arrow.Schema, out []flow.Output) error {
	settings, err := settingsKey(s.settings)
	if err != nil {
		return err
	}
	a := lockedAnswer{Stage: s.hosts.name, Settings: json.RawMessage(settings), Keeps: keeps}
	if q := s.hosts.query; q != nil && q.text != "" {
		a.Stage, a.SQL = "", q.text
	}
	if a.In, err = lockSchema(in); err != nil {
		return err
	}
	for _, o := range out {
		schema, err := lockSchema(o.Record.Schema())
		if err != nil {
			return err
		}
		a.Out = append(a.Out, lockedOutput{o.To, schema})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.ContainsFunc(l.answers, func(b lockedAnswer) bool { return a.compare(b) == 0 }) {
		l.answers = append(l.answers, a)
	}
	return nil
}

func (a lockedAnswer) compare(b lockedAnswer) int {
	return cmp.Or(strings.Compare(a.Stage, b.Stage), strings.Compare(a.SQL, b.SQL), bytes.Compare(a.Settings, b.Settings), bytes.Compare(a.In.Arrow, b.In.Arrow))
}

// Bytes is the lock as a file: the same answers are the same bytes; nil when there are none.
func (l *Lock) Bytes() ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.answers) == 0 {
		return nil, nil
	}
	slices.SortFunc(l.answers, lockedAnswer.compare)
	text, err := json.MarshalIndent(map[string]any{"version": lockVersion, "stages": l.answers}, "", " ")
	return append(text, '\n'), err
}

const (
	lockVersion  = 1
	lockBytesMax = 64 << 20
)

// ReadLock reads a file of Bytes. The error Is fs.ErrNotExist when there is none.
func ReadLock(file string) (*Lock, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > lockBytesMax {
		return nil, fmt.Errorf("%s has %d bytes; at most %d", file, info.Size(), lockBytesMax)
	}
	text, err := os.ReadFile(file) // #nosec G304 -- beside pipeline.yaml
	if err != nil {
		return nil, err
	}
	var read struct {
		Version int
		Stages  []lockedAnswer
	}
	if err := json.Unmarshal(text, &read); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if read.Version != lockVersion {
		return nil, fmt.Errorf("%s has version %d; want %d: render it anew with this binary", file, read.Version, lockVersion)
	}
	return &Lock{answers: read.Stages}, nil
}

// Available says whether there is a Python to run stages with.
func (w *Workers) Available() bool {
	_, err := exec.LookPath(w.Interpreter)
	return err == nil
}

// Stages gives, by name, stages that answer as those did that the lock was made with, and run nothing.
func (l *Lock) Stages() map[string]func() flow.Stage {
	found := map[string]func() flow.Stage{}
	for _, a := range l.answers {
		if a.Stage != "" {
			found[a.Stage] = l.stage(a.Stage, func(b lockedAnswer) bool { return b.Stage == a.Stage })
		}
	}
	return found
}

// SQL does so for a query.
func (l *Lock) SQL(node, text string, _ []string) func() flow.Stage {
	return l.stage(node, func(b lockedAnswer) bool { return b.SQL == text })
}

func (l *Lock) stage(name string, is func(lockedAnswer) bool) func() flow.Stage {
	s := lockedStage{name: name}
	keeps := false
	for _, a := range l.answers {
		if is(a) {
			s.answers = append(s.answers, a)
			keeps = keeps || a.Keeps
		}
	}
	return func() flow.Stage {
		one := s
		if keeps {
			return &lockedKeyed{&one}
		}
		return &one
	}
}

// lockedStage says what a stage makes of no rows, as the lock has it.
type lockedStage struct {
	name     string
	answers  []lockedAnswer
	settings map[string]any
}

// UnmarshalYAML takes any settings: those that the lock does not know are refused by Process.
func (s *lockedStage) UnmarshalYAML(n *yaml.Node) error { return decodeSettings(n, &s.settings) }

// UseWorkers implements flow.InWorkers.
func (s *lockedStage) UseWorkers(flow.Workers) {}

var errLocked = errors.New("this image has no Python: a role that runs the stage needs the one of `hearthline render image`")

// Process implements flow.Stage, for lint.
func (s *lockedStage) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	if in.NumRows() > 0 {
		return nil, fmt.Errorf("stage %s: %w", s.name, errLocked)
	}
	settings, err := settingsKey(s.settings)
	if err != nil {
		return nil, err
	}
	for _, a := range s.answers {
		schema, err := a.In.schema()
		if err != nil {
			return nil, err
		}
		if !schema.Equal(in.Schema()) || !sameJSON(a.Settings, settings) {
			continue
		}
		return a.outputs()
	}
	return nil, errors.New("the lock beside pipeline.yaml was made of another plan: render it anew, where there is a Python")
}

func sameJSON(a json.RawMessage, b string) bool {
	var flat bytes.Buffer
	return json.Compact(&flat, a) == nil && flat.String() == b
}

func (a *lockedAnswer) outputs() ([]flow.Output, error) {
	var all []flow.Output
	for _, o := range a.Out {
		schema, err := o.Schema.schema()
		if err != nil {
			flow.ReleaseOutputs(all)
			return nil, err
		}
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		all = append(all, flow.Output{To: o.Name, Record: b.NewRecord()})
		b.Release()
	}
	return all, nil
}

// lockedKeyed is one that keeps state.
type lockedKeyed struct{ *lockedStage }

// Advance implements flow.Timed.
func (s *lockedKeyed) Advance(context.Context, flow.Micros) ([]flow.Output, error) {
	return nil, fmt.Errorf("stage %s: %w", s.name, errLocked)
}

// Snapshot implements flow.Stateful.
func (s *lockedKeyed) Snapshot(io.Writer) error { return fmt.Errorf("stage %s: %w", s.name, errLocked) }

// Restore implements flow.Stateful.
func (s *lockedKeyed) Restore(io.Reader) error { return fmt.Errorf("stage %s: %w", s.name, errLocked) }

// Prepare makes all that workers of these stages need, so that they start without network and on a disk that cannot be written: the
// library, the environments, and with sql the engine. It proves that each stage loads.
func (w *Workers) Prepare(ctx context.Context, stages map[string]func() flow.Stage, sql bool) error {
	if err := w.findCache(); err != nil {
		return err
	}
	if _, err := w.install(); err != nil {
		return err
	}
	if sql {
		if _, err := (&hosts{workers: w, query: &query{}}).foundInterpreter(ctx); err != nil {
			return err
		}
	}
	for _, stage := range stages {
		a := hostsOf(stage())
		if a == nil || a.query != nil && sql {
			continue
		}
		python, err := a.foundInterpreter(ctx)
		if err != nil {
			return fmt.Errorf("stage %s: %w", a.name, err)
		}
		w.Logger.Info("stage: what it needs is there", "stage", a.name, "python", python)
		if a.query != nil {
			continue
		}
		one, err := (&host{hosts: a, print: a.filesPrint(), use: flow.Workers{MemoryBytesMax: w.MemoryMax}}).start(ctx, a.filesPrint(), true)
		if err != nil {
			return fmt.Errorf("stage %s: %w", a.name, err)
		}
		one.end()
	}
	return nil
}

func hostsOf(s flow.Stage) *hosts {
	switch s := s.(type) {
	case *KeyedStage:
		return s.hosts
	case *Stage:
		return s.hosts
	}
	return nil
}
