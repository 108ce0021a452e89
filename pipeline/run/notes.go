package run

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"hearthline/pipeline"
)

// NoteStream holds, for every unit and sink that was ever started, what it was started with: key, the pipeline and the
// consumer group; value, a [Note] as JSON. It is compacted. It stands in Kafka, where the offsets are that
// it explains, so that every process of a pipeline, and `hearthline plan`, see the same.
const NoteStream = "hearthline.nodes"

// Note is what a unit or a sink was last started with.
type Note struct {
	Layout     int                 `json:"v"`
	Version    string              `json:"version"` // of the binary
	Started    time.Time           `json:"started"` // when it first ran like this
	Name       string              `json:"name"`
	Kind       string              `json:"kind"` // stage or sink
	Partitions int                 `json:"partitions"`
	Nodes      []NodeNote          `json:"nodes"`              // the stages of a unit, in the order of the data; of a sink, itself
	Schemas    map[string][]string `json:"schemas,omitempty"`  // of what a unit writes, by stream: name and type of each column
	Nullable   map[string][]string `json:"nullable,omitempty"` // which of them may be null; notes of older versions do not say
}

// NodeNote is one stage or sink of a [Note].
type NodeNote struct {
	Name string   `json:"name"`
	ID   string   `json:"id"`
	Use  string   `json:"use"`
	From []string `json:"from"`
	// To is the streams that it writes, by output; of a sink none.
	To map[string]string `json:"to,omitempty"`
	// Keys is by which columns the rows of a stream are parted, of those that have a key.
	Keys map[string][]string `json:"keys,omitempty"`
	Dead string              `json:"dead"`
	// Settings by their path, as pipeline.yaml has them. What comes from the environment, and what is named like a secret,
	// is left out: this is for people to compare.
	Settings map[string]string `json:"settings,omitempty"`
	// ShadowOf is the stage whose second version it is.
	ShadowOf string `json:"shadow_of,omitempty"`
}

const (
	noteLayout = 1
	kindStage  = "stage"
	kindSink   = "sink"
	pendingKey = "!change" // no node can be called so
)

// nodes gives the IDs of what a note is about.
func (n *Note) ids() []string {
	var ids []string
	for _, node := range n.Nodes {
		ids = append(ids, node.ID)
	}
	return ids
}

func (r *Runner) noteOfUnit(u *pipeline.Unit) *Note {
	n := &Note{Layout: noteLayout, Version: r.Version, Name: u.Name, Kind: kindStage, Partitions: r.Plan.Spec.Partitions, Schemas: map[string][]string{}, Nullable: map[string][]string{}}
	for _, s := range u.Stages {
		n.Nodes = append(n.Nodes, NodeNote{Name: s.Name, ID: s.ID(), Use: s.Use, From: s.From, To: s.Outputs, Keys: s.Keys, Dead: s.Dead, Settings: settingsOfStage(s), ShadowOf: s.ShadowOf})
		for _, stream := range s.Outputs {
			if st := r.Plan.Streams[stream]; st.OnKafka() && st.Schema != nil {
				n.Schemas[stream], n.Nullable[stream] = notedColumns(st.Schema)
			}
		}
	}
	return n
}

func (r *Runner) noteOfSink(s *pipeline.SinkNode) *Note {
	return &Note{Layout: noteLayout, Version: r.Version, Name: s.Name, Kind: kindSink, Partitions: r.Plan.Spec.Partitions,
		Nodes: []NodeNote{{Name: s.Name, ID: s.ID(), Use: s.Use, From: s.Streams, Dead: s.Dead, Settings: settingsOf(&s.Settings)}}}
}

// secretWords mark settings whose values are not written down.
var secretWords = []string{"password", "secret", "token", "key", "credential", "url"}

// settingsOf flattens a mapping: the value by its path.
func settingsOf(n *yaml.Node) map[string]string {
	flat := map[string]string{}
	if n.Kind == yaml.MappingNode {
		flatten(n, "", flat)
	}
	if len(flat) == 0 {
		return nil
	}
	return flat
}

// noted adds something to what settings a node has; nil are none.
func noted(settings map[string]string, key, value string) map[string]string {
	if settings == nil {
		settings = map[string]string{}
	}
	settings[key] = value
	return settings
}

// settingsOfStage is the settings of a stage, and what else of it changes what it makes: which of its inputs is which, and its
// canary.
func settingsOfStage(s *pipeline.StageNode) map[string]string {
	flat := settingsOf(&s.Settings)
	note := func(key, value string) { flat = noted(flat, key, value) }
	if s.SQL != nil {
		note("sql", s.SQL.Text)
	}
	if s.Window != nil {
		note("window", s.Window.String())
	}
	for name, stream := range s.Inputs {
		note("from "+name, stream)
	}
	if s.Trial != nil && s.Canary != nil {
		note("canary.use", s.Trial.Use)
		if s.Trial.SQL != nil {
			note("canary.sql", s.Trial.SQL.Text)
		}
		note("canary.percent", strconv.FormatFloat(s.Canary.Percent, 'g', -1, 64))
		for key, value := range settingsOf(&s.Trial.Settings) {
			note("canary.settings."+key, value)
		}
	}
	return flat
}

func flatten(n *yaml.Node, path string, into map[string]string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := strings.TrimPrefix(path+"."+n.Content[i].Value, "."), n.Content[i+1]
		if value.Kind == yaml.MappingNode {
			flatten(value, key, into)
			continue
		}
		into[key] = shown(n.Content[i].Value, value)
	}
}

// shown writes a value on one line. A value without a tag is one that came from the environment.
func shown(key string, n *yaml.Node) string {
	switch {
	case slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(key, w) }):
		return "(not shown)"
	case n.Kind == yaml.SequenceNode:
		var all []string
		for _, c := range n.Content {
			all = append(all, shown("", c))
		}
		return "[" + strings.Join(all, ", ") + "]"
	case n.Kind == yaml.MappingNode:
		flat := map[string]string{}
		flatten(n, "", flat)
		return fmt.Sprint(flat)
	case n.Tag == "":
		return "${…}"
	}
	return n.Value
}

func (r *Runner) noteKey(group string) string { return r.Plan.Spec.Name + "/" + group }

// notes reads what was started of this pipeline, by consumer group, and the change that was begun and not finished.
func (r *Runner) notes(ctx context.Context) (map[string]*Note, *pendingChange, error) {
	all, err := r.Client.Notes(ctx, NoteStream)
	if err != nil {
		return nil, nil, fmt.Errorf("what ran before: %w", err)
	}
	notes := map[string]*Note{}
	var begun *pendingChange
	for key, raw := range all {
		group, ours := strings.CutPrefix(key, r.Plan.Spec.Name+"/")
		switch {
		case !ours, strings.HasPrefix(group, trialPrefix):
		case group == pendingKey:
			begun = &pendingChange{}
			if err := json.Unmarshal(raw.Value, begun); err != nil {
				return nil, nil, fmt.Errorf("the change that was begun (%s in %s): %w", key, NoteStream, err)
			}
		default:
			n := &Note{}
			if err := json.Unmarshal(raw.Value, n); err != nil || n.Layout != noteLayout {
				return nil, nil, fmt.Errorf("note %s in %s has layout %d, this binary reads %d (%v): run the version that wrote it", key, NoteStream, n.Layout, noteLayout, err)
			}
			notes[group] = n
		}
	}
	return notes, begun, nil
}

// enter is what every unit and sink does before it joins its group: it makes sure that nobody has to decide
// something first, and writes down what it runs with.
func (r *Runner) enter(ctx context.Context, n *Note) error {
	notes, begun, err := r.notes(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	if begun != nil {
		return fmt.Errorf("%s: a change of this pipeline was begun at %s and not finished: run `hearthline plan --apply` again",
			n.Name, begun.Begun.UTC().Format(time.RFC3339))
	}
	group := r.group(n.Name)
	for _, other := range slices.Sorted(maps.Keys(notes)) {
		if other == group {
			continue
		}
		if err := r.conflict(n, notes[group] != nil, notes[other]); err != nil {
			return fmt.Errorf("%s: %w; `hearthline plan` shows what to do", n.Name, err)
		}
	}
	if old := notes[group]; old != nil {
		if sameNote(old, n) {
			return nil
		}
		if err := sameKeys(old, n); err != nil {
			return fmt.Errorf("%s: %w; `hearthline plan` shows it", n.Name, err)
		}
		if err := r.mayWrite(ctx, old, n); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	n.Started = time.Now()
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return r.Client.WriteNote(ctx, NoteStream, r.noteKey(group), raw)
}

// sameNote compares all but the time.
func sameNote(a, b *Note) bool {
	x, y := *a, *b
	x.Started, y.Started = time.Time{}, time.Time{}
	p, err1 := json.Marshal(x)
	q, err2 := json.Marshal(y)
	return err1 == nil && err2 == nil && string(p) == string(q)
}

// conflict says what is wrong with starting n while other stands as it does: nothing that is wrong here can be seen
// from n's own checkpoints.
func (r *Runner) conflict(n *Note, ranBefore bool, other *Note) error {
	for _, id := range n.ids() {
		if n.Kind == kindStage && other.Kind == kindStage && slices.Contains(other.ids(), id) {
			return fmt.Errorf("stage %s ran in the group %s before: its checkpoints are there, and beginning anew would count rows twice", id, other.Name)
		}
	}
	if ranBefore {
		return nil
	}
	if old := r.renamed(n, other); old != nil {
		return fmt.Errorf("it is new, and %s %s, which did the same, is gone from the file: if it was renamed, write `was: %s`; "+
			"if not, `hearthline plan --apply --forget %s`", n.Kind, old.Name, old.ID, old.ID)
	}
	return nil
}

// renamed finds the node of other that a new node n may be under another name: of the same kind, reading one of the same
// streams, and not in the plan any more.
func (r *Runner) renamed(n, other *Note) *NodeNote {
	if n.Kind != other.Kind {
		return nil
	}
	for _, now := range n.Nodes {
		for i, old := range other.Nodes {
			if now.ShadowOf == "" && old.ShadowOf == "" && now.Use == old.Use && !r.planned(old.ID) && slices.ContainsFunc(now.From, func(s string) bool { return slices.Contains(old.From, s) }) {
				return &other.Nodes[i]
			}
		}
	}
	return nil
}

// planned says whether a node of the plan goes by an ID.
func (r *Runner) planned(id string) bool {
	return slices.ContainsFunc(r.Plan.Spec.Stages, func(s pipeline.Stage) bool { return s.ID() == id }) ||
		slices.ContainsFunc(r.Plan.Spec.Sinks, func(s pipeline.Sink) bool { return s.ID() == id })
}
