package cases

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
	"hearthline/flow/window"
)

// Case is one case as it was written.
type Case struct {
	at        string // file:line
	name      string
	settings  *yaml.Node
	window    *window.Config // nil: the stage stands alone
	refuses   string
	start     time.Time
	schema    *arrow.Schema            // of the input
	inputs    map[string]*arrow.Schema // of each, for stages that tell them apart; else nil
	each      map[string]*yaml.Node
	exact     bool
	tolerance float64
	steps     []step

	observe observer // nil: what came is compared with what was wanted
}

// step is one step of a case. One of in, advance, snapshot and restore is set.
type step struct {
	line     int
	node     *yaml.Node
	kind     string // in, advance, snapshot, restore
	input    string // of in, by name; "" where the stage does not tell them apart
	in       []cells
	advance  flow.Micros
	name     string // of the snapshot
	want     map[string][]cells
	any      bool
	dead     []deadRow
	err      string
	counters map[string]int64
}

// cells is one row as it was written.
type cells struct {
	line int
	node *yaml.Node
	by   map[string]*yaml.Node
}

type deadRow struct {
	row    int
	reason string
}

// lineError is an error of a place in a file.
func lineError(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: %s", n.Line, fmt.Sprintf(format, args...))
}

// Load reads all cases of a file, or of the .yaml files of a directory.
func Load(path string) ([]*Case, error) {
	files := []string{path}
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "*.yaml")); err != nil {
			return nil, err
		}
		slices.Sort(files)
	}
	var all []*Case
	for _, f := range files {
		text, err := os.ReadFile(f) // #nosec G304 -- the cases that the author names
		if err != nil {
			return nil, err
		}
		cases, err := parse(f, text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		all = append(all, cases...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no cases; put .yaml files there", path)
	}
	return all, nil
}

func parse(file string, text []byte) ([]*Case, error) {
	var cases []*Case
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return cases, nil
		} else if err != nil {
			return nil, err
		}
		if len(doc.Content) == 0 {
			continue
		}
		c, err := parseCase(doc.Content[0])
		if err != nil {
			return nil, err
		}
		c.at = fmt.Sprintf("%s:%d", file, doc.Content[0].Line)
		cases = append(cases, c)
	}
}

// keys reads a mapping whose keys are all among known.
func keys(n *yaml.Node, known ...string) (map[string]*yaml.Node, error) {
	all, err := mapping(n)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(n.Content); i += 2 {
		if k := n.Content[i]; !slices.Contains(known, k.Value) {
			return nil, lineError(k, "unknown key %q; known are %s", k.Value, strings.Join(known, ", "))
		}
	}
	return all, nil
}

func mapping(n *yaml.Node) (map[string]*yaml.Node, error) {
	if n.Kind != yaml.MappingNode {
		return nil, lineError(n, "this must be a mapping")
	}
	all := map[string]*yaml.Node{}
	for i := 0; i < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if all[k.Value] != nil {
			return nil, lineError(k, "%q is there twice", k.Value)
		}
		if v.Kind == yaml.AliasNode {
			v = v.Alias
		}
		all[k.Value] = v
	}
	return all, nil
}

func list(n *yaml.Node) ([]*yaml.Node, error) {
	if n.Kind != yaml.SequenceNode {
		return nil, lineError(n, "this must be a list")
	}
	items := slices.Clone(n.Content)
	for i := range items {
		if items[i].Kind == yaml.AliasNode {
			items[i] = items[i].Alias
		}
	}
	return items, nil
}

func parseCase(n *yaml.Node) (*Case, error) {
	k, err := keys(n, "name", "settings", "window", "refuses", "start", "input", "each", "exact", "tolerance", "steps")
	if err != nil {
		return nil, err
	}
	c := &Case{settings: k["settings"], start: time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), schema: flow.EventSchema, tolerance: 1e-9}
	for name, into := range map[string]any{"name": &c.name, "refuses": &c.refuses, "exact": &c.exact, "tolerance": &c.tolerance, "start": &c.start} {
		if k[name] != nil {
			if err := k[name].Decode(into); err != nil {
				return nil, lineError(k[name], "%s: %v", name, err)
			}
		}
	}
	if k["window"] != nil {
		c.window = &window.Config{}
		if err := decodeStrictly(k["window"], c.window); err != nil {
			return nil, err
		}
		if err := c.window.Validate(); err != nil {
			return nil, lineError(k["window"], "window: %v", err)
		}
	}
	if c.name == "" {
		return nil, lineError(n, "a case needs a name")
	}
	if (c.refuses == "") == (k["steps"] == nil) {
		return nil, lineError(n, "a case has either steps or refuses")
	}
	if k["input"] != nil {
		if err := c.parseInput(k["input"]); err != nil {
			return nil, err
		}
	}
	if k["each"] != nil {
		if c.each, err = mapping(k["each"]); err != nil {
			return nil, err
		}
	}
	if k["steps"] == nil {
		return c, nil
	}
	steps, err := list(k["steps"])
	if err != nil {
		return nil, err
	}
	for _, s := range steps {
		st, err := c.parseStep(s)
		if err != nil {
			return nil, err
		}
		c.steps = append(c.steps, st)
	}
	return c, nil
}

func (c *Case) parseStep(n *yaml.Node) (step, error) {
	s := step{line: n.Line, node: n}
	k, err := keys(n, "in", "advance", "snapshot", "restore", "want", "dead", "error", "counters")
	if err != nil {
		return s, err
	}
	for _, kind := range []string{"in", "advance", "snapshot", "restore"} {
		if k[kind] == nil {
			continue
		}
		if s.kind != "" {
			return s, lineError(n, "a step is one of in, advance, snapshot, restore; this is %s and %s", s.kind, kind)
		}
		s.kind = kind
	}
	switch s.kind {
	case "in":
		err = c.parseIn(k["in"], &s)
	case "advance":
		if s.advance, err = c.instant(k["advance"]); k["advance"].Value == "end" {
			s.advance, err = flow.EndOfTime, nil
		}
	case "snapshot", "restore":
		s.name = k[s.kind].Value
	default:
		err = lineError(n, "a step is one of in, advance, snapshot, restore")
	}
	if err != nil {
		return s, err
	}
	if w := k["want"]; w != nil {
		if s.any = w.Kind == yaml.ScalarNode && w.Value == "any"; !s.any {
			if s.want, err = wantOf(w); err != nil {
				return s, err
			}
		}
	}
	if k["dead"] != nil {
		if s.dead, err = deadOf(k["dead"], len(s.in)); err != nil {
			return s, err
		}
	}
	for name, into := range map[string]any{"error": &s.err, "counters": &s.counters} {
		if k[name] != nil {
			if err := k[name].Decode(into); err != nil {
				return s, lineError(k[name], "%s: %v", name, err)
			}
		}
	}
	return s, nil
}

// parseInput reads what the input holds, or each of the inputs by its name.
func (c *Case) parseInput(n *yaml.Node) (err error) {
	if n.Kind != yaml.MappingNode {
		c.schema, err = parseSchema(n)
		return err
	}
	by, err := mapping(n)
	if err != nil {
		return err
	}
	c.inputs = map[string]*arrow.Schema{}
	for name, columns := range by {
		if c.inputs[name], err = parseSchema(columns); err != nil {
			return err
		}
	}
	return nil
}

// parseIn reads the rows of a step: a list, or {INPUT: a list} where the case names the inputs.
func (c *Case) parseIn(n *yaml.Node, s *step) (err error) {
	if c.inputs == nil {
		s.in, err = rowsOf(n)
		return err
	}
	by, err := mapping(n)
	if err != nil || len(by) != 1 {
		return lineError(n, "write {INPUT: rows}, one input a step; the inputs are %s", strings.Join(slices.Sorted(maps.Keys(c.inputs)), ", "))
	}
	for name, rows := range by {
		if c.inputs[name] == nil {
			return lineError(n, "there is no input %q; the inputs are %s", name, strings.Join(slices.Sorted(maps.Keys(c.inputs)), ", "))
		}
		s.input = name
		s.in, err = rowsOf(rows)
	}
	return err
}

// inputNames are the names of the inputs, sorted; one without a name where the stage does not tell them apart.
func (c *Case) inputNames() []string {
	if c.inputs == nil {
		return []string{""}
	}
	return slices.Sorted(maps.Keys(c.inputs))
}

// schemaOf is what an input holds.
func (c *Case) schemaOf(input string) *arrow.Schema {
	if c.inputs == nil {
		return c.schema
	}
	return c.inputs[input]
}

func rowsOf(n *yaml.Node) ([]cells, error) {
	items, err := list(n)
	if err != nil {
		return nil, err
	}
	rows := []cells{}
	for _, item := range items {
		by, err := mapping(item)
		if err != nil {
			return nil, err
		}
		rows = append(rows, cells{item.Line, item, by})
	}
	return rows, nil
}

func wantOf(n *yaml.Node) (map[string][]cells, error) {
	by, err := mapping(n)
	if err != nil {
		return nil, err
	}
	want := map[string][]cells{}
	for name, rows := range by {
		if want[name], err = rowsOf(rows); err != nil {
			return nil, err
		}
	}
	return want, nil
}

func deadOf(n *yaml.Node, rows int) ([]deadRow, error) {
	items, err := list(n)
	if err != nil {
		return nil, err
	}
	var dead []deadRow
	for _, item := range items {
		k, err := keys(item, "row", "reason")
		if err != nil {
			return nil, err
		}
		if k["reason"] == nil {
			return nil, lineError(item, "a dead row has a reason, and a row where it is one of this step")
		}
		if k["row"] == nil {
			dead = append(dead, deadRow{-1, k["reason"].Value})
			continue
		}
		at, err := strconv.Atoi(k["row"].Value)
		if err != nil || at < 0 || at >= rows {
			return nil, lineError(item, "row is %q; this step has the rows 0 to %d", k["row"].Value, rows-1)
		}
		dead = append(dead, deadRow{at, k["reason"].Value})
	}
	return dead, nil
}

// instant reads a time: RFC 3339, or a duration from the case's start.
func (c *Case) instant(n *yaml.Node) (flow.Micros, error) {
	if d, err := time.ParseDuration(n.Value); err == nil {
		return flow.MicrosOf(c.start.Add(d)), nil
	}
	t, err := time.Parse(time.RFC3339Nano, n.Value)
	if err != nil {
		return 0, lineError(n, "%q is neither a time (2024-01-01T00:00:00Z) nor a duration (90s)", n.Value)
	}
	return flow.MicrosOf(t), nil
}

var types = map[string]arrow.DataType{
	"key": flow.KeyType, "text": arrow.BinaryTypes.String, "float64": arrow.PrimitiveTypes.Float64,
	"int64": arrow.PrimitiveTypes.Int64, "int32": arrow.PrimitiveTypes.Int32, "bool": arrow.FixedWidthTypes.Boolean,
	"instant": flow.InstantType, "map": flow.AttributesType,
}

func parseSchema(n *yaml.Node) (*arrow.Schema, error) {
	items, err := list(n)
	if err != nil {
		return nil, err
	}
	var fields []arrow.Field
	for _, item := range items {
		if item.Value == "events" {
			fields = append(fields, flow.EventSchema.Fields()...)
			continue
		}
		name, kind, _ := strings.Cut(item.Value, " ")
		kind, nullable := strings.CutSuffix(kind, " null")
		t, ok := types[kind]
		if !ok {
			return nil, lineError(item, "column %q: write \"name type\" or \"name type null\", the type one of key, text, float64, int64, int32, bool, instant, map", item.Value)
		}
		fields = append(fields, arrow.Field{Name: name, Type: t, Nullable: nullable})
	}
	return arrow.NewSchema(fields, nil), nil
}
