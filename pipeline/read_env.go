package pipeline

import (
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expand puts the environment's values into the scalars of a tree, keys left alone, and says which were named.
//
// An expanded scalar loses its tag, so that its type is found anew: `port: ${PORT}` can be a number (in quotes it
// stays a text). The empty tag also marks it as text that no finding may quote: it may be a password.
func (d *decoder) expand(n *yaml.Node, path string, env func(string) (string, bool)) []EnvUse {
	var uses []EnvUse
	switch n.Kind {
	case yaml.SequenceNode:
		for i, c := range n.Content {
			uses = append(uses, d.expand(c, fmt.Sprintf("%s[%d]", path, i), env)...)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			uses = append(uses, d.expand(n.Content[i+1], join(path, n.Content[i].Value), env)...)
		}
	case yaml.ScalarNode:
		if !strings.Contains(n.Value, "$") {
			return nil
		}
		var value string
		before := len(d.findings)
		if value, uses = d.expandText(n, path, env); len(uses) > 0 {
			n.Tag = ""
		}
		if len(d.findings) > before {
			d.unset[Pos{n.Line, n.Column}] = true
		}
		n.Value = value
	}
	return uses
}

func (d *decoder) expandText(n *yaml.Node, path string, env func(string) (string, bool)) (string, []EnvUse) {
	var out strings.Builder
	var uses []EnvUse
	text := n.Value
	for i := 0; i < len(text); {
		rest := text[i:]
		switch {
		case strings.HasPrefix(rest, "$$"):
			out.WriteByte('$')
			i += 2
		case strings.HasPrefix(rest, "${"):
			use, size, problem := parseUse(rest)
			use.Path, use.Pos = path, within(n, i)
			i += size
			if problem != "" {
				d.findings = append(d.findings, Finding{File: d.file, Pos: use.Pos, Path: path, Message: problem, Hint: "write ${NAME} or ${NAME:-default}; a dollar sign is $$"})
				continue
			}
			uses = append(uses, use)
			value, ok := env(use.Name)
			switch {
			case use.HasDefault && value == "":
				value = use.Default
			case !ok:
				d.findings = append(d.findings, Finding{File: d.file, Pos: use.Pos, Path: path,
					Message: fmt.Sprintf("the environment variable %s is not set", use.Name), Hint: fmt.Sprintf("set it, or write ${%s:-default}", use.Name)})
			}
			out.WriteString(value)
		default:
			out.WriteByte(text[i])
			i++
		}
	}
	return out.String(), uses
}

// parseUse reads the ${…} that text starts with. size is how many bytes it takes.
func parseUse(text string) (use EnvUse, size int, problem string) {
	end := strings.IndexByte(text, '}')
	if end < 0 {
		return use, len(text), "${ without }"
	}
	inner := text[2:end]
	size = end + 1
	use.Name, use.Default, use.HasDefault = strings.Cut(inner, ":-")
	switch {
	case strings.Contains(use.Default, "${"):
		return use, size, "a variable within the default of another"
	case !envName.MatchString(use.Name):
		return use, size, fmt.Sprintf("%q is no name of an environment variable", clip(use.Name))
	}
	return use, size, ""
}

// within is the place of byte i of a scalar's text, as far as it can be told: a text over several lines, or with
// escapes, is only known by its start.
func within(n *yaml.Node, i int) Pos {
	at := Pos{n.Line, n.Column}
	switch {
	case strings.Contains(n.Value, "\n"):
	case n.Style == 0:
		at.Column += len([]rune(n.Value[:i]))
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 && !strings.ContainsAny(n.Value, "\\\"'\t"):
		at.Column += len([]rune(n.Value[:i])) + 1
	}
	return at
}
