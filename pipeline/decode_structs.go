package pipeline

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	before := len(d.findings)
	fields := fieldsOf(v.Type())
	at := places{"": {max(1, d.home(n).Line), max(1, d.home(n).Column)}}
	switch {
	case n.Kind == yaml.MappingNode:
		d.keys(n, v, path, fields, at)
	case n.Kind == 0 || isNull(n):
	default:
		d.want(n, path, "", "a mapping of %s", strings.Join(keysOf(fields), ", "))
		return
	}
	for _, f := range fields {
		if _, ok := at[f.key]; f.need && !ok {
			d.find(d.home(n), path, "", "%s is missing", join(path, f.key))
		}
	}
	for i := range v.NumField() {
		if v.Type().Field(i).Type == placesType {
			v.Field(i).Set(reflect.ValueOf(at))
		}
	}
	if validator, ok := v.Addr().Interface().(Validator); ok && len(d.findings) == before {
		if err := safely(validator.Validate); err != nil {
			d.invalid(err, path, at)
		}
	}
}

func keysOf(fields []field) []string {
	var keys []string
	for _, f := range fields {
		if f.key != "" {
			keys = append(keys, f.key)
		}
	}
	return keys
}

// keys sets the fields that the mapping names, and notes where their values stand.
func (d *decoder) keys(n *yaml.Node, v reflect.Value, path string, fields []field, at places) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		down := join(path, key.Value)
		if _, twice := at[key.Value]; twice && key.Value != "" {
			d.find(key, down, "remove one", "%q stands here twice", key.Value)
			continue
		}
		at[key.Value] = Pos{value.Line, value.Column}
		d.under(key, value)
		j := slices.IndexFunc(fields, func(f field) bool { return f.key == key.Value && !f.rest })
		if j >= 0 {
			d.value(value, v.FieldByIndex(fields[j].index), down, fields[j])
			continue
		}
		if j = slices.IndexFunc(fields, func(f field) bool { return f.rest }); j >= 0 {
			d.entry(key, value, v.FieldByIndex(fields[j].index), down)
			continue
		}
		d.unknown(key, path, keysOf(fields))
	}
}

func (d *decoder) unknown(key *yaml.Node, path string, known []string) {
	down, what := join(path, key.Value), "unknown key"
	if strings.Contains("."+path+".", ".settings.") {
		what = "unknown setting"
	}
	hint := didYouMean(key.Value, known)
	if len(known) == 0 {
		hint = "there are none"
	}
	d.find(key, down, hint, "%s %q", what, clip(key.Value))
}

// invalid makes findings of a Validate's error.
func (d *decoder) invalid(err error, path string, at places) {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range many.Unwrap() {
			d.invalid(one, path, at)
		}
		return
	}
	text := plainError(err)
	f := Finding{File: d.file, Pos: at[""], Path: path, Message: text}
	if end := strings.IndexAny(text, ": "); end > 0 {
		if pos, ok := at[text[:end]]; ok {
			f.Pos, f.Path = pos, join(path, text[:end])
		}
	}
	d.findings = append(d.findings, f)
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == 0 || isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.want(n, path, "", "a mapping")
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	} else { // the default may be shared by all instances
		clone := reflect.MakeMapWithSize(v.Type(), v.Len())
		for k, e := range v.Seq2() {
			clone.SetMapIndex(k, e)
		}
		v.Set(clone)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		d.entry(n.Content[i], n.Content[i+1], v, join(path, n.Content[i].Value))
	}
}

// entry adds one entry to the map v, starting from the one that is there.
func (d *decoder) entry(key, value *yaml.Node, v reflect.Value, path string) {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	k := reflect.New(v.Type().Key()).Elem()
	before := len(d.findings)
	if k.Kind() == reflect.String && !k.Addr().Type().Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		k.SetString(key.Value) // a key needs no quotes: 1, on and null are names like any other
	} else {
		d.value(key, k, path, field{})
	}
	e := reflect.New(v.Type().Elem()).Elem()
	if len(d.findings) == before {
		if old := v.MapIndex(k); old.IsValid() {
			e.Set(old)
		}
	}
	d.under(key, value)
	d.value(value, e, path, field{})
	if len(d.findings) == before {
		v.SetMapIndex(k, e)
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	switch {
	case n.Kind == 0:
		return
	case n.Kind == yaml.ScalarNode && !isNull(n):
		d.want(n, path, fmt.Sprintf("write [%s]", shown(n)), "a list")
		return
	case n.Kind != yaml.SequenceNode:
		d.want(n, path, "", "a list")
		return
	case v.Kind() == reflect.Array && v.Len() != len(n.Content):
		d.find(n, path, "", "a list of %d; want %d", len(n.Content), v.Len())
		return
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	}
	for i, c := range n.Content {
		d.value(c, v.Index(i), fmt.Sprintf("%s[%d]", path, i), field{})
	}
}
