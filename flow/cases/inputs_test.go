package cases

import (
	"context"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/compute/exec"

	"hearthline/flow"
)

// labeler passes rows on with the last label that came by the other input.
type labeler struct {
	label  string
	primed []string
}

var labeled = arrow.NewSchema([]arrow.Field{{Name: "device", Type: flow.KeyType}, {Name: "label", Type: flow.KeyType}}, nil)

func (*labeler) InputNames() []string { return []string{"rows", "labels"} }

func (l *labeler) Process(context.Context, arrow.Record) ([]flow.Output, error) { panic("not called") }

func (l *labeler) ProcessInput(ctx context.Context, input string, in arrow.Record) ([]flow.Output, error) {
	if len(l.primed) < 2 {
		l.primed = append(l.primed, input)
		if in.NumRows() != 0 || l.InputNames()[len(l.primed)-1] != input {
			panic("rows came before the schemas of all inputs")
		}
	}
	b := array.NewRecordBuilder(exec.GetAllocator(ctx), labeled)
	defer b.Release()
	devices, err := flow.StringsOf(in, "device")
	if err != nil {
		return nil, err
	}
	for i := range int(in.NumRows()) {
		if input == "labels" {
			l.label = devices.Value(i) + "!"
			continue
		}
		_ = b.Field(0).(*array.BinaryDictionaryBuilder).AppendString(devices.Value(i))
		_ = b.Field(1).(*array.BinaryDictionaryBuilder).AppendString(l.label)
	}
	return []flow.Output{{To: "labeled", Record: b.NewRecord()}}, nil
}

const labelCase = `
name: labels
input: {rows: [device key], labels: [device key]}
steps:
- in: {rows: [{device: a}]}
  want: {labeled: [{device: a, label: ""}]}
- in: {labels: [{device: b}]}
- in: {rows: [{device: a}, {device: c}]}
  want: {labeled: [{label: b!}, {device: c, label: b!}]}
`

func TestInputsByName(t *testing.T) {
	made := func() flow.Stage { return &labeler{} }
	expect(t, "right", check(t, labelCase, made), "")
	expect(t, "another stage", check(t, labelCase, func() flow.Stage { return &summer{} }), "a stage that tells its inputs apart, and no other")
	for from, c := range map[string]struct{ to, want string }{
		"labels: [device key]}": {"lables: [device key]}", `there is no input "labels"; the inputs are lables, rows`},
		"{labels: [{device: b}": {"{labels: [], rows: [{device: b}", "one input a step"},
		"- in: {labels":         {"- in: {rows", "{device: b, label: }  not wanted"},
		", labels: [device key]}\nsteps:\n- in: {rows: [{device: a}]}\n  want: {labeled: [{device: a, label: \"\"}]}\n- in: {labels: [{device: b}]}": {"}\nsteps:",
			"the case does not say what the input labels holds"},
		"rows: [device key]": {"rows: [home key]", `the input has no column "device"; it has home`},
	} {
		expect(t, from, check(t, replaced(t, labelCase, from, c.to), made), c.want)
	}
}

func replaced(t *testing.T, text, from, to string) string {
	t.Helper()
	if !strings.Contains(text, from) {
		t.Fatalf("the case does not hold %q", from)
	}
	return strings.Replace(text, from, to, 1)
}
