package pipeline

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Decode sets the fields of into, a pointer to a struct of settings, from node, strictly, and says everything that
// is wrong with node. What node does not name keeps its value: the defaults.
//
// A setting is an exported field with a yaml tag; `yaml:"-"`, and fields without a tag, are none. Structs nest, with
// ",inline" without a name of their own. Slices are replaced, maps added to. Beyond YAML's scalars:
//
//   - time.Duration is written with its unit: 250ms, 30s, 5m, 36h, 7d.
//   - a whole number whose key speaks of bytes (bytes_max) may be written as a size: 64KiB, 10MB.
//   - a type with UnmarshalYAML(*yaml.Node) or UnmarshalText is asked.
//
// A struct with a method Validate() error is asked at the end, once its fields could be set. Its error becomes
// findings, one each when it was made by errors.Join; a message that starts with the name of a setting, then a colon
// or a space, is shown at that setting.
//
// path and file are put into the findings. A node of kind 0 (no settings in the file) leaves the defaults, which
// are validated all the same.
func Decode(node *yaml.Node, into any, path, file string) []Finding {
	d := &decoder{file: file}
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		panic(fmt.Sprintf("pipeline.Decode into %T; want a pointer", into))
	}
	d.value(node, v.Elem(), path, field{})
	return sorted(d.findings)
}

// Validator is a struct of settings that can say more than its types do.
type Validator interface{ Validate() error }

type decoder struct {
	file     string
	findings []Finding
	owner    map[*yaml.Node]*yaml.Node // of a value, the key it stands under
	unset    map[Pos]bool              // where a variable could not be expanded: nothing more is said of that value
}

// under notes whose value n is, so that what a mapping lacks is shown at its key.
func (d *decoder) under(key, n *yaml.Node) {
	if d.owner == nil {
		d.owner = map[*yaml.Node]*yaml.Node{}
	}
	d.owner[n] = key
}

// home is where a mapping as a whole is shown: at its key where it has one.
func (d *decoder) home(n *yaml.Node) *yaml.Node {
	if key := d.owner[n]; key != nil {
		return key
	}
	return n
}

// find notes what is wrong with n.
func (d *decoder) find(n *yaml.Node, path, hint, format string, args ...any) {
	at := Pos{max(1, n.Line), max(1, n.Column)}
	if d.unset[at] {
		return
	}
	d.findings = append(d.findings, Finding{File: d.file, Pos: at, Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// want notes that n is of the wrong kind.
func (d *decoder) want(n *yaml.Node, path, hint, format string, args ...any) {
	what := path[strings.LastIndexByte(path, '.')+1:]
	if what == "" {
		what = "the file"
	}
	d.find(n, path, hint, "%s is %s; want %s", clip(what), kindOf(n), fmt.Sprintf(format, args...))
}

// nodeDecoder is a type of this package that reads a node itself.
type nodeDecoder interface {
	decodeNode(d *decoder, n *yaml.Node, path string)
}

// places says where in the file the keys of a struct stand: the value by the key's name, "" the struct's own key.
type places map[string]Pos

// of is the place of the first of keys that is in the file, or of the struct itself.
func (p places) of(keys ...string) Pos {
	for _, k := range keys {
		if at, ok := p[k]; ok {
			return at
		}
	}
	return p[""]
}

// field is a setting of a struct.
type field struct {
	key   string
	index []int
	need  bool // must be in the file
	bytes bool // a whole number that may be written as a size
	rest  bool // an inline map, which takes the keys that no field has
	// secret: "true" for one that may come from the environment only, "names" for a mapping in which a key's name says so.
	secret string
}

// fieldsOf lists the settings of a struct, those of inline structs among them.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		inline := slices.Contains(strings.Split(options, ","), "inline")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case inline && f.Type.Kind() == reflect.Struct:
			for _, in := range fieldsOf(f.Type) {
				in.index = append([]int{i}, in.index...)
				fields = append(fields, in)
			}
		case inline && f.Type.Kind() == reflect.Map:
			fields = append(fields, field{index: f.Index, rest: true})
		case name != "" && f.IsExported():
			fields = append(fields, field{key: name, index: f.Index, need: f.Tag.Get("need") == "true", bytes: strings.Contains(name, "bytes"), secret: f.Tag.Get("secret")})
		}
	}
	return fields
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	nodeType     = reflect.TypeFor[yaml.Node]()
	placesType   = reflect.TypeFor[places]()
)

// value sets v from n.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, f field) {
	switch n.Kind {
	case yaml.DocumentNode:
		if len(n.Content) == 1 {
			d.value(n.Content[0], v, path, f)
		}
		return
	case yaml.AliasNode:
		d.find(n, path, "write the settings out", "an alias (*%s); anchors and aliases are not supported", n.Value)
		return
	}
	if f.secret != "" {
		before := len(d.findings)
		if d.outOfSight(n, path, f.secret == "true"); len(d.findings) > before {
			return // and let no other finding quote it
		}
	}
	switch {
	case v.Type() == nodeType:
		v.Set(reflect.ValueOf(*n))
	case v.Type() == durationType:
		d.duration(n, v, path)
	case v.Kind() == reflect.Pointer:
		d.pointer(n, v, path, f)
	case v.CanAddr() && d.custom(n, v, path):
	case v.Kind() == reflect.Struct:
		d.structure(n, v, path)
	case v.Kind() == reflect.Map:
		d.mapping(n, v, path)
	case v.Kind() == reflect.Slice || v.Kind() == reflect.Array:
		d.list(n, v, path)
	case v.Kind() == reflect.Interface && v.NumMethod() == 0:
		var any any
		if err := n.Decode(&any); err != nil {
			d.find(n, path, "", "%s", plainError(err))
			return
		}
		if any != nil {
			v.Set(reflect.ValueOf(any))
		}
	default:
		d.scalar(n, v, path, f)
	}
}

// secretNames are keys, of headers above all, whose values are secrets.
var secretNames = regexp.MustCompile(`(?i)auth|cookie|token|secret|password|key`)

// outOfSight refuses a secret that stands in the file, where everybody reads it who reads the plan: version control, a
// ConfigMap, a colleague. all says that every scalar is one, else the names of the keys do.
func (d *decoder) outOfSight(n *yaml.Node, path string, all bool) {
	switch n.Kind {
	case yaml.SequenceNode:
		for i, c := range n.Content {
			d.outOfSight(c, fmt.Sprintf("%s[%d]", path, i), all)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			d.outOfSight(n.Content[i+1], join(path, n.Content[i].Value), all || secretNames.MatchString(n.Content[i].Value))
		}
	case yaml.ScalarNode:
		if all && n.Tag != "" && n.Value != "" && !isNull(n) {
			d.find(n, path, "write ${NAME}, and set the variable where the process runs", "a secret that stands in the file, for all to read who read the plan")
		}
	}
}

// pointer sets v to a new value, so that what a default points to, perhaps shared by all instances, is left alone.
func (d *decoder) pointer(n *yaml.Node, v reflect.Value, path string, f field) {
	if isNull(n) {
		v.SetZero()
		return
	}
	fresh := reflect.New(v.Type().Elem())
	if !v.IsNil() {
		fresh.Elem().Set(v.Elem())
	}
	d.value(n, fresh.Elem(), path, f)
	v.Set(fresh)
}

// Keys lists the settings that a struct of settings has, sorted: what a misspelt one is compared with.
func Keys(settings any) []string {
	t := reflect.TypeOf(settings)
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	keys := map[string]bool{}
	for _, k := range keysOf(fieldsOf(t)) {
		keys[k] = true
	}
	return slices.Sorted(maps.Keys(keys))
}

func valueOf(pointer any) reflect.Value { return reflect.ValueOf(pointer).Elem() }
