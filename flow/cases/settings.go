package cases

import (
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decodeStrictly decodes n into the struct that into points to. A key without a field is an error: yaml.v3's own strictness
// does not reach a Node.
func decodeStrictly(n *yaml.Node, into any) error {
	if err := checkKeys(n, reflect.TypeOf(into)); err != nil {
		return err
	}
	return n.Decode(into)
}

var unmarshaler = reflect.TypeFor[yaml.Unmarshaler]()

func checkKeys(n *yaml.Node, t reflect.Type) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	for t.Kind() == reflect.Pointer {
		if t.Implements(unmarshaler) {
			return nil
		}
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		return nil // it looks at its own keys
	}
	switch {
	case t.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		fields := fieldsOf(t)
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			at := slices.IndexFunc(fields, func(f field) bool { return f.name == k.Value })
			if at < 0 {
				var known []string
				for _, f := range fields {
					known = append(known, f.name)
				}
				return lineError(k, "unknown setting %q; known are %s", k.Value, strings.Join(known, ", "))
			}
			if err := checkKeys(n.Content[i+1], fields[at].kind); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			if err := checkKeys(n.Content[i], t.Elem()); err != nil {
				return err
			}
		}
	case (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) && n.Kind == yaml.SequenceNode:
		for _, item := range n.Content {
			if err := checkKeys(item, t.Elem()); err != nil {
				return err
			}
		}
	}
	return nil
}

type field struct {
	name string
	kind reflect.Type
}

// fieldsOf lists what yaml.v3 would fill of a struct.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case strings.Contains(options, "inline"):
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				fields = append(fields, fieldsOf(inner)...)
			}
		case name == "":
			fields = append(fields, field{strings.ToLower(f.Name), f.Type})
		default:
			fields = append(fields, field{name, f.Type})
		}
	}
	return fields
}
