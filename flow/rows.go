package flow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	gostrings "strings"
	"time"
	"unsafe"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/compute/exec"
)

// Rows makes a stage of a function on one row: f gets each row of the input as an In, and the Out it returns becomes a row of
// the output called to, unless it returns false. f must keep to what a [Stage] keeps to: no clock, no randomness.
//
// In and Out are structs; the fields' tags name their columns:
//
//	type Reading struct {
//		Time   flow.Micros       `flow:"time"`
//		Device string            `flow:"device"`
//		Value  *float64          `flow:"value"` // a pointer is nil where the column is null
//		Room   string            `flow:"room,key"`
//		Tags   map[string]string `flow:"attributes"`
//		Note   string            `flow:"-"` // no column
//	}
//
// Types: float64, int64, bool, string; time.Time (UTC, whole microseconds) and [Micros] for columns of [InstantType];
// map[string]string for [AttributesType], where nil is null; and pointers to all but maps. A string of In is read from
// either encoding of strings; one of Out becomes a column of [KeyType] where its tag says key or [EventSchema] has a
// column of that name and that type, and utf8 otherwise. A field without a tag, and any other type, is an error, told by
// Process: lint finds it with its run on zero rows.
//
// A row that is null in a column whose field is no pointer goes to the dead letters. The strings and maps that f gets
// are its own to keep.
//
// For stages that need more speed than a call and two structs a row (see BenchmarkRows), write Process on columns.
func Rows[In, Out any](to string, f func(In) (Out, bool)) Stage {
	return TryRows(to, func(_ int, in In) (Out, bool, error) {
		out, keep := f(in)
		return out, keep, nil
	})
}

// TryRows is [Rows] for a function that is also told the row's place in its batch, and may fail. A row for which it returns an
// [ErrBad] goes to the dead letters; any other error is that of the batch.
func TryRows[In, Out any](to string, f func(row int, in In) (Out, bool, error)) Stage {
	s := &rowStage[In, Out]{to: to, f: f}
	s.in, s.err = structOf(reflect.TypeFor[In]())
	if s.err == nil {
		s.out, s.err = structOf(reflect.TypeFor[Out]())
	}
	if s.err == nil {
		s.schema = s.out.schema()
	}
	return s
}

type rowStage[In, Out any] struct {
	to      string
	f       func(int, In) (Out, bool, error)
	in, out rowStruct
	schema  *arrow.Schema
	err     error // of the types
}

// Process calls f for each row.
func (s *rowStage[In, Out]) Process(ctx context.Context, rec arrow.Record) ([]Output, error) {
	if s.err != nil {
		return nil, s.err
	}
	read := make([]func(reflect.Value, int) bool, len(s.in))
	for i, f := range s.in {
		var err error
		if read[i], err = f.reader(rec); err != nil {
			return nil, err
		}
	}
	b := array.NewRecordBuilder(exec.GetAllocator(ctx), s.schema)
	defer b.Release()
	var bad BadRows
	var in In
	var out Out
	inValue, outValue := reflect.ValueOf(&in).Elem(), reflect.ValueOf(&out).Elem()
row:
	for row := range int(rec.NumRows()) {
		var zero In
		in = zero
		for i := range s.in {
			if !read[i](inValue.Field(s.in[i].index), row) {
				bad.Add(row, fmt.Sprintf("column %q is null", s.in[i].name))
				continue row
			}
		}
		var keep bool
		var err error
		if out, keep, err = s.f(row, in); errors.Is(err, ErrBad) {
			bad.Add(row, err.Error())
			continue
		} else if err != nil {
			return nil, err
		}
		if !keep {
			continue
		}
		for i, f := range s.out {
			f.append(b.Field(i), outValue.Field(f.index))
		}
	}
	return []Output{{To: s.to, Record: b.NewRecord()}}, bad.Err()
}

// rowStruct is the fields of a struct that are columns.
type rowStruct []rowField

type rowField struct {
	index   int
	name    string
	pointer bool
	goType  reflect.Type // behind the pointer
	column  arrow.DataType
}

var (
	microsType = reflect.TypeFor[Micros]()
	timeType   = reflect.TypeFor[time.Time]()
	mapType    = reflect.TypeFor[map[string]string]()
)

func structOf(t reflect.Type) (rowStruct, error) {
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("flow.Rows: %v is no struct; its fields name the columns", t)
	}
	var s rowStruct
	for i := range t.NumField() {
		f := t.Field(i)
		tag, tagged := f.Tag.Lookup("flow")
		name, option, _ := gostrings.Cut(tag, ",")
		switch {
		case name == "-" && option == "":
			continue
		case !tagged || name == "":
			return nil, fmt.Errorf("flow.Rows: field %s of %v names no column; give it a tag: `flow:\"name\"`, or `flow:\"-\"`", f.Name, t)
		case !f.IsExported():
			return nil, fmt.Errorf("flow.Rows: field %s of %v is not exported, so it cannot be a column", f.Name, t)
		case slices.ContainsFunc(s, func(o rowField) bool { return o.name == name }):
			return nil, fmt.Errorf("flow.Rows: two fields of %v name the column %q", t, name)
		}
		field := rowField{index: i, name: name, goType: f.Type}
		if f.Type.Kind() == reflect.Pointer {
			field.pointer, field.goType = true, f.Type.Elem()
		}
		var err error
		if field.column, err = columnType(field.goType, name, option); err != nil || field.pointer && field.goType == mapType {
			return nil, fmt.Errorf("flow.Rows: field %s of %v is a %v%s; columns are float64, int64, bool, string, time.Time, flow.Micros, pointers to these, and map[string]string",
				f.Name, t, f.Type, optionText(err))
		}
		s = append(s, field)
	}
	return s, nil
}

func optionText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func columnType(t reflect.Type, name, option string) (arrow.DataType, error) {
	if option != "" && !(option == "key" && t.Kind() == reflect.String) {
		return nil, fmt.Errorf(" with the option %q (only key is known, for strings)", option)
	}
	switch {
	case t == microsType, t == timeType:
		return InstantType, nil
	case t == mapType:
		return AttributesType, nil
	case t == reflect.TypeFor[float64]():
		return arrow.PrimitiveTypes.Float64, nil
	case t == reflect.TypeFor[int64]():
		return arrow.PrimitiveTypes.Int64, nil
	case t == reflect.TypeFor[bool]():
		return arrow.FixedWidthTypes.Boolean, nil
	case t == reflect.TypeFor[string]():
		at := EventSchema.FieldIndices(name)
		if option == "key" || len(at) > 0 && arrow.TypeEqual(EventSchema.Field(at[0]).Type, KeyType) {
			return KeyType, nil
		}
		return arrow.BinaryTypes.String, nil
	}
	return nil, fmt.Errorf("")
}

func (s rowStruct) schema() *arrow.Schema {
	fields := make([]arrow.Field, len(s))
	for i, f := range s {
		fields[i] = arrow.Field{Name: f.name, Type: f.column, Nullable: f.pointer || f.goType == mapType}
	}
	return arrow.NewSchema(fields, nil)
}

// reader gives what fills the field from a row of its column; it returns false where a null has no place to go.
func (f rowField) reader(rec arrow.Record) (func(reflect.Value, int) bool, error) {
	set, null, err := f.setter(rec)
	if err != nil {
		return nil, err
	}
	if f.goType == mapType {
		return func(v reflect.Value, row int) bool { set(v, row); return true }, nil
	}
	return func(v reflect.Value, row int) bool {
		if null(row) {
			return f.pointer
		}
		if f.pointer {
			p := reflect.New(f.goType)
			v.Set(p)
			v = p.Elem()
		}
		set(v, row)
		return true
	}, nil
}

func (f rowField) setter(rec arrow.Record) (set func(reflect.Value, int), null func(int) bool, err error) {
	switch {
	case f.column == InstantType:
		values, err := Instants(rec, f.name)
		if err != nil {
			return nil, nil, err
		}
		a, err := Column[*array.Timestamp](rec, f.name)
		if f.goType == timeType {
			return func(v reflect.Value, row int) { v.Set(reflect.ValueOf(Micros(values[row]).Time())) }, a.IsNull, err
		}
		return func(v reflect.Value, row int) { v.SetInt(int64(values[row])) }, a.IsNull, err
	case f.goType.Kind() == reflect.String:
		s, err := StringsOf(rec, f.name)
		if err != nil {
			return nil, nil, err
		}
		return stringSetter(s), s.IsNull, nil
	case f.goType.Kind() == reflect.Float64:
		a, err := Column[*array.Float64](rec, f.name)
		return func(v reflect.Value, row int) { v.SetFloat(a.Value(row)) }, func(row int) bool { return a.IsNull(row) }, err
	case f.goType.Kind() == reflect.Int64:
		a, err := Column[*array.Int64](rec, f.name)
		return func(v reflect.Value, row int) { v.SetInt(a.Value(row)) }, func(row int) bool { return a.IsNull(row) }, err
	case f.goType.Kind() == reflect.Bool:
		a, err := Column[*array.Boolean](rec, f.name)
		return func(v reflect.Value, row int) { v.SetBool(a.Value(row)) }, func(row int) bool { return a.IsNull(row) }, err
	default:
		a, err := Column[*array.Map](rec, f.name)
		return func(v reflect.Value, row int) { v.Set(reflect.ValueOf(mapAt(a, row))) }, nil, err
	}
}

// stringSetter copies each string once a key, or once a row where the column has no dictionary.
func stringSetter(s Strings) func(reflect.Value, int) {
	values, ok := s.Dictionary()
	if !ok {
		return func(v reflect.Value, row int) { v.SetString(gostrings.Clone(s.Value(row))) }
	}
	copies := make([]string, values.Len())
	done := make([]bool, values.Len())
	return func(v reflect.Value, row int) {
		i := s.Index(row)
		if !done[i] {
			copies[i], done[i] = gostrings.Clone(values.Value(i)), true
		}
		v.SetString(copies[i])
	}
}

func mapAt(a *array.Map, row int) map[string]string {
	if a.IsNull(row) {
		return nil
	}
	from, to := a.ValueOffsets(row)
	m := make(map[string]string, to-from)
	for i := int(from); i < int(to); i++ {
		if a.Items().IsNull(i) {
			continue
		}
		m[gostrings.Clone(a.Keys().(*array.String).Value(i))] = gostrings.Clone(a.Items().(*array.String).Value(i))
	}
	return m
}

func (f rowField) append(b array.Builder, v reflect.Value) {
	if f.pointer {
		if v.IsNil() {
			b.AppendNull()
			return
		}
		v = v.Elem()
	}
	switch b := b.(type) {
	case *array.TimestampBuilder:
		if f.goType == timeType {
			b.Append(arrow.Timestamp(MicrosOf(v.Interface().(time.Time))))
		} else {
			b.Append(arrow.Timestamp(v.Int()))
		}
	case *array.Float64Builder:
		b.Append(v.Float())
	case *array.Int64Builder:
		b.Append(v.Int())
	case *array.BooleanBuilder:
		b.Append(v.Bool())
	case *array.StringBuilder:
		b.Append(v.String())
	case *array.BinaryDictionaryBuilder:
		appendKey(b, v.String())
	case *array.MapBuilder:
		appendMap(b, v.Interface().(map[string]string))
	}
}

// appendKey panics only on a memo table that cannot grow any more (2³¹ distinct keys in one batch).
func appendKey(b *array.BinaryDictionaryBuilder, s string) {
	view := []byte{}
	if s != "" {
		view = unsafe.Slice(unsafe.StringData(s), len(s)) // #nosec G103 -- read, not kept; AppendString would copy it first
	}
	if err := b.Append(view); err != nil {
		panic(err)
	}
}

func appendMap(b *array.MapBuilder, m map[string]string) {
	if m == nil {
		b.AppendNull()
		return
	}
	b.Append(true)
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b.KeyBuilder().(*array.StringBuilder).Append(k)
		b.ItemBuilder().(*array.StringBuilder).Append(m[k])
	}
}
