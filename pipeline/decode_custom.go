package pipeline

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// custom lets the type read n itself. It says whether the type does.
func (d *decoder) custom(n *yaml.Node, v reflect.Value, path string) bool {
	switch u := v.Addr().Interface().(type) {
	case nodeDecoder:
		u.decodeNode(d, n, path)
	case yaml.Unmarshaler:
		if err := safely(func() error { return u.UnmarshalYAML(n) }); err != nil {
			d.refused(n, path, err)
		}
	case encoding.TextUnmarshaler:
		if n.Kind != yaml.ScalarNode || isNull(n) {
			d.want(n, path, "", "a text")
		} else if err := safely(func() error { return u.UnmarshalText([]byte(n.Value)) }); err != nil {
			d.refused(n, path, err)
		}
	default:
		return false
	}
	return true
}

var errorLine = regexp.MustCompile(`^line (\d+): `)

// refused notes what a type said of n. A message that starts with "line 7: " is shown there.
func (d *decoder) refused(n *yaml.Node, path string, err error) {
	text := plainError(err)
	if n.Tag == "" && n.Value != "" { // from the environment
		text = strings.ReplaceAll(text, n.Value, "${…}")
	}
	if m := errorLine.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if line, err := strconv.Atoi(m[1]); err == nil && n.Line != line {
			n = cmp.Or(onLine(n, line), n)
		}
	}
	d.find(n, path, "", "%s", text)
}

// onLine is the first node of a tree that starts on a line, nil when none does.
func onLine(n *yaml.Node, line int) *yaml.Node {
	if n.Line == line {
		return n
	}
	for _, c := range n.Content {
		if found := onLine(c, line); found != nil {
			return found
		}
	}
	return nil
}

// safely turns a panic in a settings struct's own code into an error: lint goes on.
func safely(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f()
}

// plainError is an error's text on one line, without what the YAML package puts before it.
func plainError(err error) string {
	if te := (*yaml.TypeError)(nil); errors.As(err, &te) {
		return strings.Join(te.Errors, "; ")
	}
	return strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "\n", "; ")
}
