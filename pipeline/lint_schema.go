package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// openWait bounds what a stage may take to make ready when lint must open it to learn its outputs.
const openWait = 30 * time.Second

// schemas finds the schema of every stream by giving each stage records without rows, in the order of the data.
func (p *planner) schemas() {
	p.spread = map[string][]string{}
	for name, s := range p.plan.Streams {
		if s.Writer == gatewayNode { // gateways and sources part by home
			p.spread[name] = []string{flow.ColHome}
		}
	}
	for _, node := range p.order {
		if node.New == nil || len(node.From) == 0 || node.ToAny == "" && len(node.To) == 0 {
			continue
		}
		if outputs, ok := p.outputs(node); ok {
			p.resolve(node, outputs)
			p.parted(node)
		}
	}
	for _, node := range p.plan.Sinks {
		if node.New == nil {
			continue
		}
		sink := node.New()
		for _, stream := range node.Streams {
			if s := p.plan.Streams[stream]; s != nil && s.Schema != nil {
				p.check(sink, s, asked{"sink", node.Name, node.Use, &node.Settings, node.at, nil})
			}
		}
	}
}

// asked is a node whose Check is called.
type asked struct {
	what     string // stage or sink
	name     string
	use      string
	settings *yaml.Node
	at       places
	sql      *Query // of a stage that is one
}

// check asks a stage or sink what it thinks of a stream. What it says of columns is shown at the stream, the rest at
// the setting it names, or at the node.
func (p *planner) check(stageOrSink any, s *Stream, n asked) bool {
	err := safely(func() error { return flow.Check(stageOrSink, s.Name, s.Schema) })
	if err == nil {
		return true
	}
	text := strings.TrimPrefix(plainError(err), flow.ErrBad.Error()+": ")
	text = strings.TrimPrefix(text, n.use+": ")
	path := n.what + "s." + n.name
	placed := queryError(nil)
	switch {
	case errors.As(err, &placed) && n.sql != nil:
		p.find(n.sql.at(p.spec.Source, placed.Place()), path+".sql", "", "stage %s: %s", n.name, text)
		return false
	case errors.As(err, &placed):
		p.find(n.at.of(""), path, "", "stage %s: %s", n.name, text)
		return false
	case errors.Is(err, flow.ErrBad) || strings.Contains(text, "column"):
		p.find(n.at.of("from/"+s.Name, "from"), path+".from", p.columnsOf(s), "%s %s does not take %s: %s", n.what, n.name, s.Name, text)
		return false
	case errors.Is(err, fs.ErrNotExist):
		// A plan is also checked where it does not run: what is rendered here may be there.
		at, down := n.setting(path, text)
		p.findings = append(p.findings, Finding{File: p.spec.File, Pos: at, Path: down, Level: LevelWarning,
			Message: fmt.Sprintf("%s %s: %s", n.what, n.name, text), Hint: "it must be there where the pipeline runs"})
		return true
	}
	at, down := n.setting(path, text)
	p.find(at, down, "", "%s %s: %s", n.what, n.name, text)
	return false
}

// setting finds the setting in the file that a message names first, or else the node.
func (n asked) setting(path, message string) (Pos, string) {
	at, down, first := n.at.of(""), path, len(message)
	for i := 0; i+1 < len(n.settings.Content); i += 2 {
		key, value := n.settings.Content[i], n.settings.Content[i+1]
		if word := regexp.MustCompile(`\b` + regexp.QuoteMeta(key.Value) + `\b`).FindStringIndex(message); word != nil && word[0] < first {
			at, down, first = Pos{value.Line, value.Column}, path+".settings."+key.Value, word[0]
		}
	}
	return at, down
}

// columnsOf says what a stream holds, for a hint.
func (p *planner) columnsOf(s *Stream) string {
	var columns []string
	for _, f := range s.Schema.Fields() {
		columns = append(columns, f.Name)
	}
	return fmt.Sprintf("%s, written by %s, has the columns %s", s.Name, s.Writer, strings.Join(columns, ", "))
}

// outputs learns the outputs of a stage and their schemas. ok is false when something was found, or when the schema
// of an input is unknown because something was found before.
func (p *planner) outputs(node *StageNode) (outputs []output, ok bool) {
	path := node.path()
	if named, is := node.New().(flow.Inputs); is {
		return p.outputsOfInputs(node, named)
	}
	if !p.inputNames(node, nil) && node.Inputs != nil {
		return nil, false
	}
	if !p.oneSchema(node) {
		return nil, false
	}
	for _, stream := range node.From {
		s := p.plan.Streams[stream]
		if s == nil || s.Schema == nil {
			return nil, false
		}
		at := node.at.of("from/"+stream, "from")
		if !p.check(node.New(), s, asked{"stage", node.Name, node.Use, &node.Settings, node.at, node.SQL}) {
			return nil, false
		}
		found, err := p.run(node, func(stage flow.Stage) ([]output, error) { return p.process(stage, s.Schema) })
		if err != nil {
			p.refused(node, s, at, path+".from", err)
			return nil, false
		}
		for _, o := range found {
			i := slices.IndexFunc(outputs, func(old output) bool { return old.name == o.name })
			if i < 0 {
				outputs = append(outputs, o)
			} else if why := difference(outputs[i].schema, o.schema); why != "" {
				p.find(at, path+".from", "let its inputs have one schema", "stage %s makes other %s of %s than of its other inputs: %s", node.Name, o.name, stream, why)
				return nil, false
			}
		}
	}
	return outputs, true
}

// outputsOfInputs is outputs for a stage that tells its inputs apart.
func (p *planner) outputsOfInputs(node *StageNode, named flow.Inputs) (found []output, ok bool) {
	if !p.inputNames(node, named.InputNames()) {
		return nil, false
	}
	var last *Stream
	for _, input := range named.InputNames() {
		s := p.plan.Streams[node.Inputs[input]]
		if s == nil || s.Schema == nil {
			return nil, false
		}
		if !p.check(node.New(), s, asked{"stage", node.Name, node.Use, &node.Settings, node.at, node.SQL}) {
			return nil, false
		}
		last = s
	}
	found, err := p.run(node, func(stage flow.Stage) (found []output, err error) {
		return found, safely(func() error {
			made, err := flow.Prime(p.ctx, stage.(flow.Inputs), func(input string) *arrow.Schema {
				last = p.plan.Streams[node.Inputs[input]]
				return last.Schema
			})
			defer flow.ReleaseOutputs(made)
			if err == nil {
				found, err = outputsOf(made)
			}
			return err
		})
	})
	if err != nil {
		p.refused(node, last, node.at.of("from/"+last.Name, "from"), node.path()+".from", err)
		return nil, false
	}
	return found, true
}

// refused says why a stage could not work on a stream.
func (p *planner) refused(node *StageNode, s *Stream, at Pos, path string, err error) {
	if placed := queryError(nil); node.SQL != nil && errors.As(err, &placed) {
		why := strings.TrimPrefix(plainError(err), flow.ErrBad.Error()+": ")
		p.find(node.SQL.at(p.spec.Source, placed.Place()), "stages."+node.Name+".sql", p.columnsOf(s), "stage %s: %s", node.Name, why)
		return
	}
	if errors.Is(err, flow.ErrBad) {
		why := strings.TrimPrefix(plainError(err), flow.ErrBad.Error()+": ")
		p.find(at, path, p.columnsOf(s), "stage %s does not take %s: %s", node.Name, s.Name, why)
		return
	}
	if closed := (*notOpened)(nil); errors.As(err, &closed) {
		p.find(at, path, "", "stage %s cannot be opened: %s", node.Name, plainError(err))
		return
	}
	p.find(at, path, "this is a defect of the stage", "stage %s fails on a record of %s without rows: %s", node.Name, s.Name, plainError(err))
}

type output struct {
	name   string
	schema *arrow.Schema
}

// run gives a fresh instance a record without rows. It is not opened, as lint should not depend on the files and
// services of the machine it runs on. Only where that fails, and the stage has something to open, it is tried
// once more the other way.
func (p *planner) run(node *StageNode, give func(flow.Stage) ([]output, error)) ([]output, error) {
	found, err := give(node.New())
	if err == nil {
		return found, nil
	}
	stage := node.New()
	opener, ok := stage.(flow.Opener)
	if !ok {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(p.ctx, openWait)
	defer cancel()
	if openErr := safely(func() error { return opener.Open(ctx) }); openErr != nil {
		return nil, &notOpened{openErr}
	}
	found, err = give(stage)
	return found, errors.Join(err, safely(func() error { return flow.Close(stage) }))
}

// notOpened is what a stage said when lint had to open it.
type notOpened struct{ error }

func (p *planner) process(stage flow.Stage, schema *arrow.Schema) (found []output, err error) {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	rec := b.NewRecord()
	defer rec.Release()
	var made []flow.Output
	err = safely(func() (err error) {
		made, err = stage.Process(p.ctx, rec)
		return err
	})
	defer flow.ReleaseOutputs(made)
	if err != nil {
		return nil, err
	}
	return outputsOf(made)
}

// outputsOf looks at what a stage made of records without rows.
func outputsOf(made []flow.Output) (found []output, err error) {
	for _, o := range made {
		switch {
		case o.To == "" || o.Record == nil:
			return nil, fmt.Errorf("it returned an output without a name or without a record (%q)", o.To)
		case o.Record.NumCols() > flow.ColumnsMax:
			return nil, fmt.Errorf("it makes %d columns in %s; at most %d", o.Record.NumCols(), o.To, flow.ColumnsMax)
		case o.Record.NumRows() != 0:
			return nil, fmt.Errorf("it made %d rows of none in %s", o.Record.NumRows(), o.To)
		case slices.ContainsFunc(found, func(f output) bool { return f.name == o.To && !f.schema.Equal(o.Record.Schema()) }):
			return nil, fmt.Errorf("it made records of two schemas in %s", o.To)
		case !slices.ContainsFunc(found, func(f output) bool { return f.name == o.To }):
			found = append(found, output{o.To, o.Record.Schema()})
		}
	}
	return found, nil
}

// difference says how two schemas differ, "" when they do not.
func difference(a, b *arrow.Schema) string {
	for _, f := range a.Fields() {
		others, ok := b.FieldsByName(f.Name)
		switch {
		case !ok:
			return "one has no column " + f.Name
		case !arrow.TypeEqual(f.Type, others[0].Type):
			return fmt.Sprintf("column %s is %s in one and %s in the other", f.Name, f.Type, others[0].Type)
		case f.Nullable != others[0].Nullable:
			return fmt.Sprintf("column %s can be null in one only", f.Name)
		}
	}
	for _, f := range b.Fields() {
		if !a.HasField(f.Name) {
			return "one has no column " + f.Name
		}
	}
	if !a.Equal(b) {
		return "their columns stand in another order"
	}
	return ""
}

// resolve joins a stage's outputs to streams.
func (p *planner) resolve(node *StageNode, outputs []output) {
	path := node.path() + ".to"
	var has []string
	for _, o := range outputs {
		has = append(has, o.name)
	}
	slices.Sort(has)
	node.Outputs = map[string]string{}
	switch {
	case len(has) == 0:
		p.find(node.at.of("to"), path, "it must return a record without rows for each of its outputs", "stage %s made nothing of a record without rows", node.Use)
		return
	case node.ToAny != "" && len(has) > 1:
		p.find(node.at.of("to"), path, fmt.Sprintf("write {%s}", strings.Join(has, ": …, ")+": …"), "stage %s has %d outputs", node.Use, len(has))
		return
	case node.ToAny != "":
		node.Outputs[has[0]] = node.ToAny
	}
	for _, name := range sortedKeys(node.To) {
		if !slices.Contains(has, name) {
			p.find(node.at.of("to/"+name, "to"), path+"."+name, didYouMean(name, has), "stage %s has no output %q", node.Use, clip(name))
			continue
		}
		node.Outputs[name] = node.To[name]
	}
	for _, o := range outputs {
		stream, ok := node.Outputs[o.name]
		switch s := p.plan.Streams[stream]; {
		case !ok:
			p.find(node.at.of("to"), path, fmt.Sprintf("add `%s: STREAM`, or `%s: _` if nobody wants it", o.name, o.name), "the output %s of stage %s goes nowhere", o.name, node.Use)
		case stream == Drop || s == nil || s.Writer != node.Name:
		case s.Schema == nil:
			s.Schema = o.schema
		default:
			if why := difference(s.Schema, o.schema); why != "" {
				p.find(node.at.of("to/"+o.name, "to"), path+"."+o.name, "give each a stream of its own", "two outputs of stage %s go to %s and differ: %s", node.Use, stream, why)
			}
		}
	}
}
