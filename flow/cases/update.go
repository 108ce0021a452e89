package cases

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// Update gives the text of a file of cases in which want and dead are what comes out now. Comments, the order of keys, what did not
// change and steps that want any or an error stay as they are written.
//
// What it gives has passed: cases that cannot be held whatever they want (another result the second time, or where the rows are cut in
// another way) are an error, and so are steps that fail where no error was wanted. ok says which cases are updated; nil is all.
func Update(ctx context.Context, file string, text []byte, newStage func() flow.Stage, seed uint64, ok func(*Case) bool) ([]byte, error) {
	all, err := parse(file, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	u := &updating{lines: strings.Split(string(text), "\n")}
	for _, c := range all {
		if c.refuses != "" || ok != nil && !ok(c) {
			continue
		}
		u.c = c
		if err := u.run(ctx, newStage); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", c.at, c.name, err)
		}
	}
	updated := u.text()
	again, err := parse(file, updated)
	if err != nil {
		return nil, fmt.Errorf("%s: what would be written cannot be read: %w", file, err)
	}
	for _, c := range again {
		if c.refuses != "" || ok != nil && !ok(c) {
			continue
		}
		if err := c.Check(ctx, newStage, seed); err != nil {
			return nil, fmt.Errorf("%s: %s: not updated, since it does not hold with what came out: %w", c.at, c.name, err)
		}
	}
	return updated, nil
}

// edit replaces lines of a file, counted from 1, to not included.
type edit struct {
	from, to int
	with     []string
}

// updating are the edits of a file, as its cases are run.
type updating struct {
	c     *Case
	lines []string
	edits []edit
	next  int // step
}

// observer is given what came of a step, in place of the comparison.
type observer func(r *runner, s step, res result) error

func (u *updating) run(ctx context.Context, newStage func() flow.Stage) error {
	u.next = 0
	watched := *u.c
	watched.observe = u.step
	kept, err := u.c.open(ctx, newStage) // what instances share is kept, as in Check
	if err != nil {
		return err
	}
	made := func() (flow.Stage, error) { return u.c.open(ctx, newStage) }
	return errors.Join(watched.asWritten(ctx, made, false), flow.Close(kept))
}

// step writes what came of a step, where it is not what was wanted.
func (u *updating) step(r *runner, s step, res result) error {
	at := u.next
	u.next++
	if s.err != "" {
		return nil
	}
	if res.err != nil {
		return fmt.Errorf("got the error %w; an error is not written into a case: mend the stage, or write it as error", res.err)
	}
	want, dead := u.wanted(r, s, res), u.refused(s, res)
	if want == nil && dead == nil {
		return nil
	}
	if s.node.Style&yaml.FlowStyle != 0 {
		return errors.New("this step stands in braces; write its keys on lines of their own, and it can be updated")
	}
	u.put(at, s, "want", want)
	u.put(at, s, "dead", dead)
	return nil
}

// wanted are the lines of what is to be wanted, without indent; nil where that is what is wanted already, none where nothing is.
func (u *updating) wanted(r *runner, s step, res result) []string {
	if s.any {
		return nil
	}
	var changed bool
	names := slices.AppendSeq(slices.Collect(maps.Keys(s.want)), maps.Keys(res.rows))
	slices.Sort(names)
	lines := []string{}
	for _, name := range slices.Compact(names) {
		schema, rows := r.schemas[name], res.rows[name]
		if schema == nil || u.c.diff(name, rows, schema, s.want[name]) != "" {
			changed = true
		}
		if len(rows) == 0 {
			continue
		}
		lines = append(lines, yamlText(plainNode(name))+":")
		columns := u.columns(name, s, schema)
		for _, p := range u.c.pairs(rows, schema, s.want[name]) {
			if p.got < 0 {
				continue
			}
			if p.want >= 0 && len(u.c.diffRow(rows[p.got], schema, s.want[name][p.want])) == 0 {
				lines = append(lines, u.asItWas(s.want[name], p.want))
				continue
			}
			lines = append(lines, "- "+u.row(rows[p.got], columns))
		}
	}
	if !changed {
		return nil
	}
	return lines
}

// columns are those that a new row of an output names: those of the rows that were wanted of it, in this step or any; or all.
func (u *updating) columns(output string, s step, schema *arrow.Schema) []string {
	var named []string
	for _, of := range append([]step{s}, u.c.steps...) {
		for _, row := range of.want[output] {
			for i := 0; i < len(row.node.Content); i += 2 {
				if name := row.node.Content[i].Value; !slices.Contains(named, name) && schema.HasField(name) {
					named = append(named, name)
				}
			}
		}
		if len(named) > 0 && !u.c.exact {
			return named
		}
	}
	for _, f := range schema.Fields() {
		if !slices.Contains(named, f.Name) {
			named = append(named, f.Name)
		}
	}
	return named
}

// row is a row in braces. Times are written from the start of the case, as those of its input mostly are.
func (u *updating) row(row outRow, columns []string) string {
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	for _, name := range columns {
		v, _ := row.value(name)
		value := valueNode(v)
		switch v := v.(type) {
		case nil:
			value = plainNode("null")
		case string:
			value = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: v} // in quotes where it needs them
		case flow.Micros:
			if d := v.Sub(flow.MicrosOf(u.c.start)); d > -100*24*time.Hour && d < 100*24*time.Hour {
				value = plainNode(shortDuration(d))
			}
		}
		n.Content = append(n.Content, plainNode(name), value)
	}
	return yamlText(n)
}

// shortDuration writes 5m, not 5m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// asItWas is a wanted row as it stands in the file, with the comment behind it, where it has a line of its own.
func (u *updating) asItWas(rows []cells, i int) string {
	n := rows[i].node
	line := strings.TrimSpace(u.lines[n.Line-1])
	alone := strings.HasPrefix(line, "- {") && !slices.ContainsFunc(rows, func(o cells) bool { return o.node != n && o.node.Line == n.Line })
	if alone && lastLine(n) == n.Line {
		return line
	}
	copied := *n
	copied.Style, copied.HeadComment, copied.LineComment, copied.FootComment = yaml.FlowStyle, "", "", ""
	return "- " + yamlText(&copied)
}

// refused are the lines of the rows that were refused; nil where those were wanted.
func (u *updating) refused(s step, res result) []string {
	var b strings.Builder
	u.c.diffDead(&b, s, res)
	if b.Len() == 0 {
		return nil
	}
	lines := []string{}
	reason := func(why string, row int) string {
		for _, d := range s.dead { // a part of the reason that still is one
			if d.row == row && strings.Contains(why, d.reason) {
				return d.reason
			}
		}
		why, _, _ = strings.Cut(why, "\n")
		return why
	}
	for _, kept := range res.refused {
		lines = append(lines, "- "+yamlText(braces("reason", textNode(reason(kept.why, -1)))))
	}
	for i, row := range res.bad.Rows {
		lines = append(lines, "- "+yamlText(braces("row", valueNode(int64(row)), "reason", textNode(reason(res.bad.Reasons[i], row)))))
	}
	return lines
}

func textNode(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

func braces(pairs ...any) *yaml.Node {
	m := mappingOf(pairs...)
	m.Style = yaml.FlowStyle
	return m
}

// put writes a key of a step: in the place where it stands, or at the step's end.
func (u *updating) put(at int, s step, key string, lines []string) {
	if lines == nil {
		return
	}
	indent := strings.Repeat(" ", s.node.Column-1)
	var with []string
	if len(lines) > 0 {
		with = append(with, indent+key+":")
		for _, line := range lines {
			deeper := "  "
			if key == "dead" {
				deeper = ""
			}
			with = append(with, indent+deeper+line)
		}
	}
	for i := 0; i < len(s.node.Content); i += 2 {
		if name := s.node.Content[i]; name.Value == key {
			end := u.endOf(at, s, i)
			if before := u.lines[name.Line-1][:name.Column-1]; strings.TrimSpace(before) != "" { // "- " of the step
				if len(with) == 0 {
					with = []string{indent + key + ": " + map[string]string{"want": "{}", "dead": "[]"}[key]}
				}
				with[0] = before + strings.TrimPrefix(with[0], indent)
			}
			if len(with) > 1 {
				with = slices.Insert(with, 1, u.commentsIn(name.Line+1, end, indent+"  ")...)
			}
			u.edits = append(u.edits, edit{name.Line, end, with})
			return
		}
	}
	end := u.endOf(at, s, len(s.node.Content)-2)
	u.edits = append(u.edits, edit{end, end, with})
}

// commentsIn are the comments on lines of their own; they stand at the head of what is written instead.
func (u *updating) commentsIn(from, to int, indent string) (comments []string) {
	for _, line := range u.lines[from-1 : to-1] {
		if text := strings.TrimSpace(line); strings.HasPrefix(text, "#") {
			comments = append(comments, indent+text)
		}
	}
	return comments
}

// endOf is the line after the value of a step's key; blank lines and comments before what comes next are not part of it.
func (u *updating) endOf(at int, s step, key int) int {
	end := len(u.lines) + 1
	switch {
	case key+2 < len(s.node.Content):
		end = s.node.Content[key+2].Line
	case at+1 < len(u.c.steps):
		end = u.c.steps[at+1].node.Line
	default:
		for line := lastLine(s.node) + 1; line <= len(u.lines); line++ {
			text := u.lines[line-1]
			if strings.HasPrefix(text, "---") || text != "" && !strings.HasPrefix(text, " ") && !strings.HasPrefix(text, "#") && !strings.HasPrefix(text, "]") && !strings.HasPrefix(text, "}") {
				end = line
				break
			}
		}
	}
	for end > s.node.Content[key].Line+1 {
		text := strings.TrimSpace(u.lines[end-2])
		if text != "" && !strings.HasPrefix(text, "#") {
			break
		}
		end--
	}
	return end
}

// lastLine is where the last value of a node begins.
func lastLine(n *yaml.Node) int {
	last := n.Line
	for _, c := range n.Content {
		last = max(last, lastLine(c))
	}
	return last
}

// text is the file with the edits made, from its end on, so that lines keep their numbers until they are used.
func (u *updating) text() []byte {
	lines := slices.Clone(u.lines)
	slices.SortStableFunc(u.edits, func(a, b edit) int { return cmp.Or(b.from-a.from, b.to-a.to) })
	for i := 0; i < len(u.edits); i++ {
		e := u.edits[i]
		for i+1 < len(u.edits) && u.edits[i+1].from == e.from && u.edits[i+1].to == e.to { // both put at the end of a step
			i++
			e.with = append(slices.Clone(e.with), u.edits[i].with...)
		}
		lines = slices.Replace(lines, e.from-1, e.to-1, e.with...)
	}
	return []byte(strings.Join(lines, "\n"))
}

// yamlText is a node on one line.
func yamlText(n *yaml.Node) string {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	if err := enc.Encode(n); err != nil {
		return fmt.Sprintf("%q", n.Value)
	}
	return strings.TrimSpace(b.String())
}
