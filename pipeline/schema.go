package pipeline

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Describe says what a field of a settings struct is, in a sentence; "" when it does not know. The project's own
// schema takes the comment that stands at the field in the source.
type Describe func(t reflect.Type, field string) string

// JSONSchema describes pipeline.yaml to editors (JSON Schema, draft 2020-12): the keys, and the settings of every
// stage and sink of the catalogue, with their defaults. deploy is a pointer to the struct of the section deploy, nil
// when nobody reads it; describe may be nil. The same catalogue gives the same bytes.
//
// An editor cannot see all that [NewPlan] sees: what it accepts may still not fit together.
func JSONSchema(cat Catalog, deploy any, describe Describe) ([]byte, error) {
	s := &schemas{describe: describe, defs: map[string]any{}}
	file := defaultShape()
	root := s.structure(reflect.ValueOf(&file).Elem())
	properties := root["properties"].(map[string]any)

	gateway := properties["gateway"].(map[string]any)["properties"].(map[string]any)
	gateway["settings"] = true
	if cat.Gateway != nil {
		gateway["settings"] = s.settings(cat.Gateway())
	}
	properties["stages"] = s.nodes("stage", stageShape{}, settingsOf(s, cat.Stages))
	properties["sinks"] = s.nodes("sink", sinkShape{}, settingsOf(s, cat.Sinks))
	properties["deploy"] = true
	if deploy != nil {
		properties["deploy"] = s.settings(deploy)
	}
	t := reflect.TypeFor[fileShape]()
	for i := range t.NumField() {
		key, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		describeAs(properties, key, t.Field(i).Tag.Get("doc"))
	}
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Hearthline pipeline"
	root["description"] = "What comes in, what is made of it, where it is kept. `hearthline lint` proves that it fits together."
	root["$defs"] = s.defs

	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		return nil, fmt.Errorf("write JSON Schema: %w", err)
	}
	return b.Bytes(), nil
}

type schemas struct {
	describe Describe
	defs     map[string]any
}

// settingsOf gives the schema of the settings of each entry of a catalogue.
func settingsOf[T any](s *schemas, catalog map[string]func() T) map[string]any {
	settings := map[string]any{}
	for name, make := range catalog {
		settings[name] = s.settings(make())
	}
	return settings
}

// settings is the schema of what a pointer to a struct can be set to.
func (s *schemas) settings(of any) any {
	v := reflect.ValueOf(of)
	if len(Keys(of)) == 0 || v.Kind() != reflect.Pointer || v.IsNil() {
		return map[string]any{"type": []string{"object", "null"}, "maxProperties": 0}
	}
	schema := s.structure(v.Elem())
	schema["type"] = []string{"object", "null"}
	return schema
}

// nodes is the schema of the stages, or of the sinks: what settings a node has depends on what it uses, which is its
// name unless it says otherwise.
func (s *schemas) nodes(kind string, shape any, settings map[string]any) any {
	v := reflect.New(reflect.TypeOf(shape)).Elem()
	base := s.structure(v)
	keys := base["properties"].(map[string]any)
	keys["settings"] = true
	keys["use"].(map[string]any)["enum"] = sortedKeys(settings)
	var uses []any
	for _, name := range sortedKeys(settings) {
		s.defs[kind+"."+name] = settings[name]
		uses = append(uses, map[string]any{
			"if":   map[string]any{"properties": map[string]any{"use": map[string]any{"const": name}}, "required": []string{"use"}},
			"then": map[string]any{"properties": map[string]any{"settings": reference(kind + "." + name)}},
		})
	}
	base["allOf"] = uses
	if len(uses) == 0 {
		delete(base, "allOf")
	}
	for _, trial := range []string{TrialShadow, TrialCanary} {
		if second, ok := keys[trial].(map[string]any); ok {
			version := second["anyOf"].([]any)[0].(map[string]any)
			version["properties"].(map[string]any)["use"].(map[string]any)["enum"] = sortedKeys(settings)
			version["properties"].(map[string]any)["settings"], version["allOf"] = true, uses
		}
	}
	s.defs[kind] = base
	named := map[string]any{}
	for _, name := range sortedKeys(settings) {
		named[name] = map[string]any{"allOf": []any{reference(kind), map[string]any{
			"if":   map[string]any{"not": map[string]any{"required": []string{"use"}}},
			"then": map[string]any{"properties": map[string]any{"settings": reference(kind + "." + name)}},
		}}}
	}
	other := map[string]any{"allOf": []any{reference(kind), map[string]any{"required": []string{"use"}}}}
	if kind == "stage" { // of another name it may be SQL, or a folder beside pipeline.yaml
		other = reference(kind)
	}
	return map[string]any{
		"type": []string{"object", "null"}, "properties": named, "additionalProperties": other,
		"propertyNames": map[string]any{"pattern": nodeNames.String(), "not": map[string]any{"const": gatewayNode}},
	}
}

func reference(def string) map[string]any { return map[string]any{"$ref": "#/$defs/" + def} }

// describeAs adds a description to a property, whatever its schema is.
func describeAs(properties map[string]any, key, text string) {
	if text == "" {
		return
	}
	schema, ok := properties[key].(map[string]any)
	if !ok {
		schema = map[string]any{}
	}
	schema["description"] = text
	properties[key] = schema
}

// structure is the schema of a struct, with the values it holds as defaults.
func (s *schemas) structure(v reflect.Value) map[string]any {
	properties, schema := map[string]any{}, map[string]any{"type": "object", "additionalProperties": false}
	var required []string
	for _, f := range fieldsOf(v.Type()) {
		fv := v.FieldByIndex(f.index)
		if f.rest {
			schema["additionalProperties"] = s.value(reflect.New(fv.Type().Elem()).Elem(), f)
			continue
		}
		tag := v.Type().FieldByIndex(f.index)
		properties[f.key] = s.value(fv, f)
		if text := cmp.Or(tag.Tag.Get("doc"), s.description(ownerOf(v.Type(), f.index), tag.Name)); text != "" {
			describeAs(properties, f.key, text)
		}
		if enum := tag.Tag.Get("enum"); enum != "" {
			properties[f.key] = map[string]any{"description": tag.Tag.Get("doc"),
				"anyOf": []any{map[string]any{"enum": strings.Split(enum, ",")}, map[string]any{"type": "string", "pattern": variable}}}
		}
		if f.need {
			required = append(required, f.key)
		}
	}
	schema["properties"] = properties
	if required != nil {
		schema["required"] = required
	}
	return schema
}

// ownerOf is the struct that declares a field, which may be inline in t.
func ownerOf(t reflect.Type, index []int) reflect.Type {
	for _, i := range index[:len(index)-1] {
		t = t.Field(i).Type
	}
	return t
}

func (s *schemas) description(t reflect.Type, field string) string {
	if s.describe == nil {
		return ""
	}
	return s.describe(t, field)
}

// variable matches a value with an environment variable in it.
const variable = `\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}`

// orVariable lets a scalar that is no text be a variable instead.
func orVariable(schemas ...any) map[string]any {
	return map[string]any{"anyOf": append(schemas, map[string]any{"type": "string", "pattern": variable})}
}

var (
	unmarshalerType = reflect.TypeFor[yaml.Unmarshaler]()
	textType        = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// value is the schema of a setting; v holds its default.
func (s *schemas) value(v reflect.Value, f field) any {
	t := v.Type()
	switch pointer := reflect.PointerTo(t); {
	case t == nodeType:
		return true
	case t == durationType:
		schema := orVariable(map[string]any{"type": "string", "pattern": `^[-+]?([0-9]+d)?([0-9]*\.?[0-9]+(ns|us|µs|ms|s|m|h))*$`, "examples": []string{"250ms", "30s", "5m", "7d"}})
		if d := time.Duration(v.Int()); d != 0 {
			schema["default"] = shortTime(d)
		}
		return schema
	case pointer == reflect.TypeFor[*name](), pointer == reflect.TypeFor[**Query]():
		return map[string]any{"type": "string"}
	case pointer == reflect.TypeFor[*names]():
		one := map[string]any{"type": "string"}
		return map[string]any{"anyOf": []any{one, map[string]any{"type": "array", "items": one, "minItems": 1}}}
	case pointer == reflect.TypeFor[*inputs]():
		one := map[string]any{"type": "string"}
		return map[string]any{"anyOf": []any{one, map[string]any{"type": "array", "items": one, "minItems": 1},
			map[string]any{"type": "object", "additionalProperties": one, "minProperties": 1}}}
	case pointer == reflect.TypeFor[*outputs]():
		one := map[string]any{"anyOf": []any{map[string]any{"type": "string"}, keyedSchema()}}
		return map[string]any{"anyOf": []any{map[string]any{"type": "string"}, keyedSchema(), map[string]any{"type": "object", "additionalProperties": one, "minProperties": 1}}}
	case t == reflect.TypeFor[checkpointShape]():
		c := v.Interface().(checkpointShape)
		fields := checkpointFields(c)
		every := s.value(reflect.ValueOf(&c.Every).Elem(), field{})
		return map[string]any{"anyOf": []any{every, s.structure(reflect.ValueOf(&fields).Elem())}}
	case pointer.Implements(reflect.TypeFor[nodeDecoder]()):
		return map[string]any{} // stages and sinks, which have schemas of their own
	case t.Kind() == reflect.Pointer:
		schema := s.value(reflect.New(t.Elem()).Elem(), f)
		return map[string]any{"anyOf": []any{schema, map[string]any{"type": "null"}}}
	case pointer.Implements(unmarshalerType):
		return map[string]any{}
	case pointer.Implements(textType):
		return map[string]any{"type": "string"}
	}
	return s.plain(v, f)
}

func (s *schemas) plain(v reflect.Value, f field) any {
	t := v.Type()
	schema := map[string]any{}
	switch t.Kind() {
	case reflect.Struct:
		return s.structure(v)
	case reflect.Map:
		return map[string]any{"type": []string{"object", "null"}, "additionalProperties": s.value(reflect.New(t.Elem()).Elem(), field{})}
	case reflect.Slice, reflect.Array:
		return map[string]any{"type": "array", "items": s.value(reflect.New(t.Elem()).Elem(), field{})}
	case reflect.String:
		schema["type"] = "string"
	case reflect.Bool:
		schema = orVariable(map[string]any{"type": "boolean"})
	case reflect.Float32, reflect.Float64:
		schema = orVariable(map[string]any{"type": "number"})
	case reflect.Interface:
		return schema
	default:
		whole := map[string]any{"type": "integer"}
		if v.CanUint() {
			whole["minimum"] = 0
		}
		schema = orVariable(whole)
		if f.bytes {
			schema = orVariable(whole, map[string]any{"type": "string", "pattern": `^[0-9]+(\.[0-9]+)? ?([kKMGT]?B|[KMGT]iB)$`, "examples": []string{"64KiB", "10MB"}})
		}
	}
	if v.CanInterface() && !v.IsZero() {
		schema["default"] = v.Interface()
	}
	return schema
}

// keyedSchema is a stream whose rows are parted by columns.
func keyedSchema() map[string]any {
	text := map[string]any{"type": "string"}
	return map[string]any{"type": "object", "additionalProperties": false, "required": []string{"stream", "key"}, "properties": map[string]any{
		"stream": text, "key": map[string]any{"description": "Columns by whose values its rows are parted over its partitions.",
			"anyOf": []any{text, map[string]any{"type": "array", "items": text, "minItems": 1}}}}}
}
