package pipeline

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of a pipeline.yaml. It is a page that a person reads; what is beyond them is a mistake or an attack.
const (
	fileBytesMax = 1 << 20
	depthMax     = 32
)

// Read reads a pipeline.yaml from disk with the process's environment; see [ReadBytes]. The error speaks of the
// file as a whole (it is not there, it is too large), the findings of what stands in it.
func Read(file string) (*Spec, []Finding, error) {
	f, err := os.Open(file) // #nosec G304 -- the operator names the file
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil, fmt.Errorf("read pipeline: %w; name the file with --pipeline, or go to the folder that holds it", err)
		}
		return nil, nil, fmt.Errorf("read pipeline: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read pipeline %s: %w", file, err)
	}
	if len(data) > fileBytesMax {
		return nil, nil, fmt.Errorf("read pipeline %s: larger than %d bytes; is it a pipeline.yaml?", file, fileBytesMax)
	}
	spec, findings := ReadBytes(file, data, os.LookupEnv)
	return spec, findings, nil
}

// ReadBytes reads the text of a pipeline.yaml strictly. name stands for it in the findings; env looks up the
// variables that its values name.
//
// All findings come at once, in the order of the file. Refused are keys that are unknown or stand twice, wrong
// types, missing keys, anchors, aliases, merge keys and tags (a pipeline is read by people, from top to bottom), and
// variables that are neither set nor have a default. ${NAME} and ${NAME:-default} are expanded in values only,
// never in keys, and never change the shape of the file: what a variable holds is one scalar. An empty variable
// counts as unset where there is a default; $$ is a dollar sign.
//
// The spec is as much as could be read; it is whole when there are no findings of [LevelError].
func ReadBytes(name string, data []byte, env func(string) (string, bool)) (*Spec, []Finding) {
	d := &decoder{file: name}
	spec := &Spec{File: name, Source: data, broken: true, failed: true}
	root := d.parse(data)
	if root == nil {
		return spec, sorted(d.findings)
	}
	d.tree(root, "", 1)
	if len(d.findings) > 0 {
		// Aliases and keys that stand twice have no one meaning: what follows from them would confuse.
		return spec, sorted(d.findings)
	}
	d.unset = map[Pos]bool{}
	spec.unset = d.unset
	spec.Env = d.expand(root, "", env)
	d.spec(root, spec)
	spec.failed = Failed(d.findings)
	return spec, sorted(d.findings)
}

// sorted puts findings in the order of the file, each once.
func sorted(findings []Finding) []Finding {
	slices.SortStableFunc(findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Message, b.Message))
	})
	return slices.CompactFunc(findings, func(a, b Finding) bool { return a == b })
}

// parse makes a tree of the text, nil when it is not one YAML document holding a mapping.
func (d *decoder) parse(data []byte) *yaml.Node {
	if len(data) > fileBytesMax {
		d.findings = append(d.findings, Finding{File: d.file, Pos: Pos{1, 1}, Message: fmt.Sprintf("larger than %d bytes", fileBytesMax)})
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := decodeSafely(dec, &doc); err != nil {
		if errors.Is(err, io.EOF) {
			d.findings = append(d.findings, Finding{File: d.file, Pos: Pos{1, 1}, Message: "the file is empty", Hint: "start with `pipeline: NAME`"})
		} else {
			d.findings = append(d.findings, syntaxFinding(d.file, data, err))
		}
		return nil
	}
	if err := decodeSafely(dec, &more); err == nil {
		d.find(&more, "", "keep one, before the line ---", "a second document")
	} else if !errors.Is(err, io.EOF) {
		d.findings = append(d.findings, syntaxFinding(d.file, data, err))
		return nil
	}
	if len(doc.Content) != 1 {
		d.find(&doc, "", "start with `pipeline: NAME`", "the file is empty")
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		d.want(root, "", "start with `pipeline: NAME`", "a mapping")
		return nil
	}
	return root
}

// decodeSafely turns a panic of the YAML parser into an error: a file must never take the process with it.
func decodeSafely(dec *yaml.Decoder, into *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	return dec.Decode(into)
}

var (
	yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)$`)
	// The YAML package counts the lines of its parser's errors from 0, those of its scanner's from 1.
	yamlParser = regexp.MustCompile(`^(did not find expected (key|',' or|'-'|node content|<)|found (duplicate|incompatible|undefined tag))`)
)

// syntaxFinding says where the parser gave up. It knows lines only; for the common mistakes we know better.
func syntaxFinding(file string, data []byte, err error) Finding {
	f := Finding{File: file, Pos: Pos{1, 1}, Message: err.Error()}
	if m := yamlLine.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " ")); m != nil {
		f.Message = "not YAML: " + m[2]
		if n, convErr := strconv.Atoi(m[1]); convErr == nil {
			f.Line = n
			if yamlParser.MatchString(m[2]) {
				f.Line++
			}
		}
	}
	lines := strings.Split(string(data), "\n")
	f.Line = max(1, min(f.Line, len(lines)))
	line := lines[f.Line-1]
	f.Column = len(line) - len(strings.TrimLeft(line, " ")) + 1
	for i, line := range lines {
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if at := strings.IndexByte(indent, '\t'); at >= 0 && len(indent) < len(line) {
			f.Pos, f.Message, f.Hint = Pos{i + 1, at + 1}, "not YAML: a tab in the indentation", "indent with spaces"
			return f
		}
	}
	switch {
	case strings.Contains(f.Message, "alphabetic or numeric") || strings.Contains(f.Message, "unknown anchor"):
		for i, line := range lines {
			if at := bareStar.FindStringIndex(line); at != nil {
				f.Pos = Pos{i + 1, at[1]}
				break
			}
		}
		f.Message, f.Hint = "not YAML: a bare value cannot start with *", `write the pattern in quotes: "*.dead"`
	case strings.Contains(f.Message, "expected ',' or") && bytes.Contains(data, []byte("${")):
		f.Hint = `within { } and [ ] a variable needs quotes: "${NAME}"`
	}
	return f
}

// bareStar is a * where a value starts.
var bareStar = regexp.MustCompile(`^[^#"']*[\[,:-] *\*`)

// tree checks what holds for every node of the file, whatever it means.
func (d *decoder) tree(n *yaml.Node, path string, depth int) {
	if depth > depthMax {
		d.find(n, path, "", "more than %d levels deep", depthMax)
		return
	}
	if n.Anchor != "" {
		d.find(n, path, "write the settings out where they are used", "an anchor (&%s); anchors and aliases are not supported", n.Anchor)
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.find(n, path, "leave it out", "a tag (%s); tags are not supported", n.Tag)
	}
	switch n.Kind {
	case yaml.AliasNode:
		d.find(n, path, `write the settings out; a pattern goes in quotes: "*.dead"`, "an alias (*%s); anchors and aliases are not supported", n.Value)
	case yaml.SequenceNode:
		for i, c := range n.Content {
			d.tree(c, fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
	case yaml.MappingNode:
		seen := map[string]*yaml.Node{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			switch {
			case key.Kind != yaml.ScalarNode:
				d.find(key, path, "", "a key that is %s; want a name", kindOf(key))
				continue
			case key.Value == "<<" && key.Tag == "!!merge":
				d.find(key, path, "write the settings out where they are used", "a merge key (<<); anchors and aliases are not supported")
				continue
			case seen[key.Value] != nil:
				d.find(key, join(path, key.Value), "remove one", "%q stands here twice, first on line %d", key.Value, seen[key.Value].Line)
			}
			seen[key.Value] = key
			d.tree(value, join(path, key.Value), depth+1)
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch {
	case n.Tag == "":
		return "a value from the environment"
	case n.Tag == "!!null":
		return "empty"
	case n.Tag == "!!str":
		return "the text " + strconv.Quote(clip(n.Value))
	case n.Tag == "!!int", n.Tag == "!!float":
		return "the number " + clip(n.Value)
	}
	return clip(n.Value)
}

// clip keeps a finding on one line, whatever it quotes.
func clip(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return s
}
