package python

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// Stage is one instance of a Python stage. Its settings are the function's arguments, which the function's own annotations
// check.
type Stage struct {
	hosts    *hosts
	settings map[string]any
	use      flow.Workers // 0 is the default
	host     *host        // while it is open
}

// UnmarshalYAML takes any settings: the stage is asked about them by Check.
func (s *Stage) UnmarshalYAML(n *yaml.Node) error { return decodeSettings(n, &s.settings) }

func decodeSettings(n *yaml.Node, into *map[string]any) error {
	if n.Kind == 0 || n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return errors.New("want settings by name")
	}
	return n.Decode(into)
}

// UseWorkers implements flow.InWorkers.
func (s *Stage) UseWorkers(use flow.Workers) { s.use = use }

// Check implements flow.Checker: it starts the stage, and has it look at its settings.
func (s *Stage) Check(string, *arrow.Schema) error {
	h, err := s.hosts.of(s.settings, s.use)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.hosts.workers.StartTime)
	defer cancel()
	w, err := h.take(ctx)
	if err != nil {
		return err
	}
	h.give(w)
	return nil
}

// Open implements flow.Opener.
func (s *Stage) Open(ctx context.Context) error {
	h, err := s.hosts.of(s.settings, s.use)
	if err != nil {
		return err
	}
	h.enter()
	w, err := h.take(ctx)
	if err != nil {
		h.leave()
		return err
	}
	h.give(w)
	s.host = h
	return nil
}

// Close implements flow.Closer. The last instance's ends the workers.
func (s *Stage) Close() error {
	if s.host == nil {
		return nil
	}
	s.host.leave()
	s.host = nil
	return nil
}

var errNotOpen = errors.New("a Python stage is not open")

// Process implements flow.Stage.
func (s *Stage) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if s.host == nil {
		return nil, errNotOpen
	}
	batch, err := encode(in)
	if err != nil {
		return nil, fmt.Errorf("stage %s: %w", s.hosts.name, err)
	}
	print, got, err := s.ask(ctx, in.NumRows(), s.keepsNothing, frame{frameBatch, batch})
	if err != nil {
		return nil, err
	}
	out, err := s.made(got, in.NumRows(), print)
	return s.locked(false, in, out, err)
}

// locked notes what a stage makes of no rows, where that is asked for.
func (s *Stage) locked(keeps bool, in arrow.Record, out []flow.Output, err error) ([]flow.Output, error) {
	if lock := s.hosts.workers.Lock; lock != nil && err == nil && in.NumRows() == 0 {
		if err := lock.note(s, keeps, in.Schema(), out); err != nil {
			flow.ReleaseOutputs(out)
			return nil, err
		}
	}
	return out, err
}

func (s *Stage) keepsNothing(w *worker) error {
	if w.state != nil {
		return fmt.Errorf("stage %s keeps state now (%s), and kept none when it started: undo that, or start it anew", s.hosts.name, w.state.Name)
	}
	return nil
}

// ask gives frames to a worker that fits, and to others when it dies. It gives the answer, and the state of the files that made it.
func (s *Stage) ask(ctx context.Context, rows int64, fits func(*worker) error, frames ...frame) (print string, got *answer, err error) {
	for attempt := 1; ; attempt++ {
		w, err := s.host.take(ctx)
		if err != nil {
			return "", nil, err
		}
		if err := fits(w); err != nil {
			s.host.give(w)
			return "", nil, err
		}
		got, err := w.ask(ctx, frames...)
		if err == nil {
			print := w.print
			s.host.give(w)
			return print, got, nil
		}
		s.host.drop(w)
		if ctx.Err() != nil {
			return "", nil, fmt.Errorf("stage %s: %w", s.hosts.name, ctx.Err())
		}
		s.hosts.workers.Logger.Warn("stage: a worker is replaced", "stage", s.hosts.name, "attempt", attempt, "rows", max(rows, 0), "err", err)
		if attempt >= s.host.use.Attempts {
			return "", nil, flow.Badf("stage %s: %d workers died of this batch, the last: %v", s.hosts.name, attempt, err)
		}
	}
}

// made is what the answer of a worker means, whose code was that of print.
func (s *Stage) made(got *answer, rows int64, print string) ([]flow.Output, error) {
	if r := got.raised; r != nil && rows == 0 { // lint asks
		return nil, r.at(flow.Badf("%s", r.line()))
	} else if r != nil {
		return nil, flow.Badf("%s", r.text())
	}
	bad := &flow.BadRows{Rows: got.Rows, Reasons: got.Reasons}
	if len(bad.Rows) != len(bad.Reasons) || !slices.IsSorted(bad.Rows) || len(bad.Rows) > 0 && (bad.Rows[0] < 0 || int64(bad.Rows[len(bad.Rows)-1]) >= rows) {
		got.release()
		return nil, flow.Badf("a worker's answer rejects rows that there are not")
	}
	for _, o := range got.made {
		if err := s.host.keep(o, print); err != nil {
			got.release()
			return nil, err
		}
	}
	return got.made, bad.Err()
}

// failure is what a stage says that could not be loaded, or that raised.
type failure struct {
	Kind     string `json:"kind"`
	Said     string `json:"said"`
	Plain    bool   `json:"plain"`    // what it said is meant for the author: the traceback says no more
	Settings bool   `json:"settings"` // it begins with the name of a setting
	At       string `json:"at"`       // stage.py, line 7
	Place    *int   `json:"place"`    // byte of a query
	Trace    string `json:"trace"`
}

// line is what it says in one line.
func (f *failure) line() string {
	if f.Plain {
		return f.Said
	}
	text := f.Kind + ": " + strings.TrimSpace(f.Said)
	if f.At != "" {
		text = f.At + ": " + text
	}
	return text
}

// text is the line, and the traceback.
func (f *failure) text() string {
	if f.Plain {
		return f.Said
	}
	return f.line() + "\n" + f.Trace
}

// settingsKey is one text for the same settings.
func settingsKey(settings map[string]any) (string, error) {
	if settings == nil {
		settings = map[string]any{}
	}
	key, err := json.Marshal(settings)
	if err != nil {
		return "", fmt.Errorf("settings: %w: use texts, numbers, true and false, lists, and maps with texts for keys", err)
	}
	return string(key), nil
}
