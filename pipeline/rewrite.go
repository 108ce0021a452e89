package pipeline

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// errRewrite says that a file is not rewritten, but by hand.
var errRewrite = errors.New("it has to be edited by hand")

// Promoted is the text of a pipeline.yaml in which the second version of a stage has taken the place of the first: its use and
// settings are the stage's, and shadow or canary is gone. All else stays as it is written, comments too.
func Promoted(text []byte, stage string) ([]byte, error) { return rewrite(text, stage, true) }

// WithoutTrial is the text of a pipeline.yaml in which a stage has neither shadow nor canary any more.
func WithoutTrial(text []byte, stage string) ([]byte, error) { return rewrite(text, stage, false) }

func rewrite(text []byte, stage string, promote bool) ([]byte, error) {
	node, _, err := stageIn(text, stage)
	if err != nil {
		return nil, err
	}
	want := edited(node, stage, promote)
	if want == nil {
		return nil, fmt.Errorf("stage %s has neither a shadow nor a canary in the file", stage)
	}
	var now []byte
	if node.Style&yaml.FlowStyle != 0 {
		now, err = inFlow(text, node, want)
	} else {
		now, err = inBlock(text, node, want)
	}
	if err != nil {
		return nil, err
	}
	// What was written is read again: it must be what was meant, and nothing else.
	got, whole, err := stageIn(now, stage)
	if err != nil || !sameTree(got, want) {
		return nil, fmt.Errorf("stages.%s: %w", stage, errRewrite)
	}
	_, before, err := stageIn(text, stage)
	if err != nil {
		return nil, err
	}
	if !sameBut(before, whole, stage) {
		return nil, fmt.Errorf("stages.%s: %w", stage, errRewrite)
	}
	return now, nil
}

// stageIn finds the mapping of a stage, and the whole file.
func stageIn(text []byte, stage string) (*yaml.Node, *yaml.Node, error) {
	var doc yaml.Node
	if err := decodeSafely(yaml.NewDecoder(bytes.NewReader(text)), &doc); err != nil {
		return nil, nil, fmt.Errorf("read the file again: %w", err)
	}
	if len(doc.Content) != 1 {
		return nil, nil, errRewrite
	}
	node := valueIn(valueIn(doc.Content[0], "stages"), stage)
	if node == nil || node.Kind != yaml.MappingNode {
		return nil, nil, fmt.Errorf("no stage %s in the file", stage)
	}
	return node, &doc, nil
}

func valueIn(n *yaml.Node, key string) *yaml.Node {
	if i := keyIn(n, key); i >= 0 {
		return n.Content[i+1]
	}
	return nil
}

func keyIn(n *yaml.Node, key string) int {
	if n == nil || n.Kind != yaml.MappingNode {
		return -1
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return i
		}
	}
	return -1
}

// trialIn finds the key shadow or canary of a stage.
func trialIn(n *yaml.Node) int { return max(keyIn(n, TrialShadow), keyIn(n, TrialCanary)) }

// edited is a stage's mapping as it is to be; nil where nothing is tried.
func edited(n *yaml.Node, stage string, promote bool) *yaml.Node {
	at := trialIn(n)
	if at < 0 {
		return nil
	}
	want := *n
	want.Content = slices.Delete(slices.Clone(n.Content), at, at+2)
	if !promote {
		return &want
	}
	trial := n.Content[at+1]
	if use := valueIn(trial, "use"); use != nil {
		set(&want, "use", use, use.Value == stage)
		set(&want, "sql", nil, true)
	}
	if query := valueIn(trial, "sql"); query != nil {
		set(&want, "sql", query, false)
		set(&want, "use", nil, true)
	}
	set(&want, "settings", valueIn(trial, "settings"), false)
	return &want
}

// set puts a value in the place of a key's, at the end, or takes the key away.
func set(n *yaml.Node, key string, value *yaml.Node, away bool) {
	at := keyIn(n, key)
	switch {
	case (value == nil || away) && at >= 0:
		n.Content = slices.Delete(n.Content, at, at+2)
	case value == nil || away:
	case at >= 0:
		n.Content[at+1] = value
	default:
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, value)
	}
}

// sameTree compares what two nodes mean, whatever their style; keys in any order.
func sameTree(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || a.Value != b.Value || a.Kind == yaml.ScalarNode && a.ShortTag() != b.ShortTag() || len(a.Content) != len(b.Content) {
		return false
	}
	if a.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(a.Content); i += 2 {
			other := valueIn(b, a.Content[i].Value)
			if other == nil || !sameTree(a.Content[i+1], other) {
				return false
			}
		}
		return true
	}
	for i := range a.Content {
		if !sameTree(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}

// sameBut compares two files but for a stage.
func sameBut(a, b *yaml.Node, stage string) bool {
	for _, doc := range []*yaml.Node{a, b} {
		stages := valueIn(doc.Content[0], "stages")
		stages.Content[keyIn(stages, stage)+1] = &yaml.Node{Kind: yaml.ScalarNode}
	}
	return sameTree(a.Content[0], b.Content[0])
}

// inBlock rewrites lines of a mapping that is written in lines.
func inBlock(text []byte, n, want *yaml.Node) ([]byte, error) {
	lines := strings.SplitAfter(string(text), "\n")
	indent := n.Content[0].Column - 1
	at := trialIn(n)
	from, to := linesOf(lines, n.Content[at].Line-1, indent)
	var put []string // in the place of the trial
	cut := map[int]int{from: to}
	for _, key := range []string{"use", "sql", "settings"} {
		now, before := keyIn(want, key), keyIn(n, key)
		if before >= 0 && now >= 0 && want.Content[now+1] == n.Content[before+1] {
			continue // as it was
		}
		if before >= 0 {
			first, last := linesOf(lines, n.Content[before].Line-1, indent)
			cut[first] = last
		}
		if now >= 0 {
			written, err := linesFor(lines, key, want.Content[now+1], n.Content[at+1], indent)
			if err != nil {
				return nil, err
			}
			put = append(put, written...)
		}
	}
	var out strings.Builder
	for i := 0; i < len(lines); i++ {
		end, gone := cut[i]
		if i == from {
			out.WriteString(strings.Join(put, ""))
		}
		if gone {
			i = end - 1
			continue
		}
		out.WriteString(lines[i])
	}
	return []byte(out.String()), nil
}

// linesOf is the lines, to exclusive, of a key that stands at an indentation, without the blank lines and comments behind it.
func linesOf(lines []string, from, indent int) (int, int) {
	to := from + 1
	for i := from + 1; i < len(lines); i++ {
		text := strings.TrimSpace(lines[i])
		if text == "" {
			continue
		}
		if len(lines[i])-len(strings.TrimLeft(lines[i], " ")) <= indent {
			break
		}
		to = i + 1
	}
	return from, to
}

// linesFor writes a key of the trial as a key of the stage: its lines moved to the left, or, where the trial is written in one
// line, in one line.
func linesFor(lines []string, key string, value, trial *yaml.Node, indent int) ([]string, error) {
	if trial.Style&yaml.FlowStyle == 0 {
		at := trial.Content[keyIn(trial, key)]
		from, to := linesOf(lines, at.Line-1, at.Column-1)
		var moved []string
		for _, line := range lines[from:to] {
			if len(strings.TrimSpace(line)) > 0 {
				line = line[min(at.Column-1-indent, len(line)-len(strings.TrimLeft(line, " "))):]
			}
			if !strings.HasSuffix(line, "\n") {
				line += "\n"
			}
			moved = append(moved, line)
		}
		return moved, nil
	}
	written, err := written(value)
	if err != nil {
		return nil, err
	}
	return []string{strings.Repeat(" ", indent) + key + ": " + written + "\n"}, nil
}

// written is a node in one line.
func written(n *yaml.Node) (string, error) {
	one := inOneLine(n)
	b, err := yaml.Marshal(one)
	if err != nil || bytes.Count(bytes.TrimSpace(b), []byte("\n")) > 0 {
		return "", errRewrite
	}
	return strings.TrimSpace(string(b)), nil
}

func inOneLine(n *yaml.Node) *yaml.Node {
	one := *n
	one.HeadComment, one.LineComment, one.FootComment = "", "", ""
	if one.Kind != yaml.ScalarNode {
		one.Style |= yaml.FlowStyle
	}
	one.Content = nil
	for _, c := range n.Content {
		one.Content = append(one.Content, inOneLine(c))
	}
	return &one
}

// inFlow rewrites a mapping that stands between braces.
func inFlow(text []byte, n, want *yaml.Node) ([]byte, error) {
	lines := bytes.SplitAfter(text, []byte("\n"))
	from := 0
	for _, line := range lines[:n.Line-1] {
		from += len(line)
	}
	// Columns count characters.
	from += len(string([]rune(string(lines[n.Line-1]))[:n.Column-1]))
	to := closing(text, from)
	if to < 0 {
		return nil, errRewrite
	}
	now, err := written(want)
	if err != nil {
		return nil, err
	}
	return slices.Concat(text[:from], []byte(now), text[to:]), nil
}

// closing is the place behind the brace that closes the one at from.
func closing(text []byte, from int) int {
	depth, quote := 0, byte(0)
	for i := from; i < len(text); i++ {
		switch c := text[i]; {
		case quote == '"' && c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}
