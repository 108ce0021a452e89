package keyed

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"hearthline/flow"
	"hearthline/flow/snapshot"
)

// structField is a field of a state that is a struct.
type structField struct {
	Field
	at int
}

var microsType = reflect.TypeFor[flow.Micros]()

// fieldsOf reads the tags of S.
func fieldsOf[S any]() ([]structField, error) {
	t := reflect.TypeFor[S]()
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("state %v is no struct; its fields are what is kept", t)
	}
	var all []structField
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("state")
		switch {
		case name == "" || !f.IsExported():
			return nil, fmt.Errorf("field %s of state %v is not kept: export it, and give it a tag: `state:\"name\"`", f.Name, t)
		case slices.ContainsFunc(all, func(o structField) bool { return o.Name == name }):
			return nil, fmt.Errorf("two fields of state %v are called %q", t, name)
		}
		field := structField{Field: Field{Name: name}, at: i}
		of := f.Type
		if of.Kind() == reflect.Pointer {
			field.Nullable, of = true, of.Elem()
		}
		switch {
		case of == microsType:
			field.Kind = Instant
		case of == reflect.TypeFor[int64]():
			field.Kind = Int
		case of == reflect.TypeFor[float64]():
			field.Kind = Float
		case of == reflect.TypeFor[bool]():
			field.Kind = Bool
		case of == reflect.TypeFor[string]():
			field.Kind = Text
		default:
			return nil, fmt.Errorf("field %s of state %v is a %v; state is of int64, float64, bool, string, flow.Micros, and pointers to these", f.Name, t, f.Type)
		}
		all = append(all, field)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("state %v has no fields", t)
	}
	return all, nil
}

// of is the field in a state, which is behind a pointer; ok is false where it is nil.
func (f *structField) of(state any) (v reflect.Value, ok bool) {
	v = reflect.ValueOf(state).Elem().Field(f.at)
	if !f.Nullable {
		return v, true
	}
	return v.Elem(), !v.IsNil()
}

// own makes a text of a state that is to be kept the state's own: it may lie in a batch's memory.
func (f *structField) own(state any) error {
	v, ok := f.of(state)
	if !ok {
		return nil
	}
	if v.Len() > textMax {
		return flow.Badf("field %q of the state would be a text of %d bytes; at most %d", f.Name, v.Len(), textMax)
	}
	text := strings.Clone(v.String())
	if f.Nullable {
		reflect.ValueOf(state).Elem().Field(f.at).Set(reflect.ValueOf(&text).Convert(reflect.PointerTo(v.Type())))
	} else {
		v.SetString(text)
	}
	return nil
}

func (f *structField) save(w *snapshot.Writer, state any) {
	v, ok := f.of(state)
	if f.Nullable {
		w.Bool(ok)
	}
	if !ok {
		return
	}
	switch f.Kind {
	case Int, Instant:
		w.Int(v.Int())
	case Float:
		w.Float(v.Float())
	case Bool:
		w.Bool(v.Bool())
	case Text:
		w.String(v.String())
	}
}

func (f *structField) load(r *snapshot.Reader, state any) {
	v := reflect.ValueOf(state).Elem().Field(f.at)
	if f.Nullable {
		if !r.Bool() {
			v.SetZero()
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch f.Kind {
	case Int, Instant:
		v.SetInt(r.Int())
	case Float:
		v.SetFloat(r.Float())
	case Bool:
		v.SetBool(r.Bool())
	case Text:
		v.SetString(r.String())
	}
}
