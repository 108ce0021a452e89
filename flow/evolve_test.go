package flow_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

func field(name string, t arrow.DataType, nullable bool) arrow.Field {
	return arrow.Field{Name: name, Type: t, Nullable: nullable}
}

func TestWhatBreaksReaders(t *testing.T) {
	float, text := arrow.PrimitiveTypes.Float64, arrow.BinaryTypes.String
	was := []arrow.Field{field("home", flow.KeyType, false), field("value", float, false), field("note", text, true)}
	for _, c := range []struct {
		what string
		now  []arrow.Field
		want string
	}{
		{"nothing", was, ""},
		{"another order", []arrow.Field{was[2], was[0], was[1]}, ""},
		{"a nullable column", append(was[:3:3], field("room", flow.KeyType, true)), ""},
		{"a column that is not", append(was[:3:3], field("room", flow.KeyType, false)), "column room is new, and cannot be null"},
		{"one is gone", was[:2], "column note is gone"},
		{"one is renamed", append(was[:2:2], field("remark", text, true)), "column note is gone (remark is new: a column that is renamed is another one)"},
		{"another type", []arrow.Field{was[0], field("value", arrow.PrimitiveTypes.Float32, false), was[2]}, "column value was float64 and is float32"},
		{"may be null now", []arrow.Field{was[0], field("value", float, true), was[2]}, "column value could not be null, and can be now"},
		{"may not be null now", []arrow.Field{was[0], was[1], field("note", text, false)}, "column note could be null, and cannot be any more"},
	} {
		got := strings.Join(flow.Breaks(flow.ColumnTypes(arrow.NewSchema(was, nil)), flow.ColumnTypes(arrow.NewSchema(c.now, nil))), "; ")
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

// A batch from before a column was added, and one from after, have the columns that the reader counts on.
func TestBatchesFitTheirReaders(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	schema := arrow.NewSchema([]arrow.Field{field("home", flow.KeyType, false), field("value", arrow.PrimitiveTypes.Float64, true)}, nil)
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	for _, home := range []string{"a", "b", "a"} {
		if err := b.Field(0).(*array.BinaryDictionaryBuilder).AppendString(home); err != nil {
			t.Fatal(err)
		}
	}
	b.Field(1).(*array.Float64Builder).AppendValues([]float64{1, 0, 3}, []bool{true, false, true})
	rec := b.NewRecord()
	defer rec.Release()
	wide := arrow.NewSchema([]arrow.Field{field("value", arrow.PrimitiveTypes.Float64, true), field("room", flow.KeyType, true), field("attributes", flow.AttributesType, true), schema.Field(0)}, nil)
	got, err := flow.Fit(rec, wide)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Schema().Equal(wide) || got.NumRows() != 3 || got.Column(1).NullN() != 3 || got.Column(2).NullN() != 3 || got.Column(0).NullN() != 1 {
		t.Errorf("%v", got)
	}
	back, err := flow.Fit(got, schema)
	if err != nil || !array.RecordEqual(back, rec) {
		t.Errorf("%v, %v", back, err)
	}
	if same := flow.Widen(got, schema); same != got { // a sink loses no column
		t.Errorf("%v", same)
	} else {
		same.Release()
	}
	if w := flow.Widen(rec, wide); !w.Schema().Equal(wide) {
		t.Errorf("%v", w)
	} else {
		w.Release()
	}
	got.Release()
	back.Release()
	for _, c := range []struct {
		want  string
		field arrow.Field
	}{
		{`no column "room"`, field("room", flow.KeyType, false)},
		{`column "value" is a float64, not a int64`, field("value", arrow.PrimitiveTypes.Int64, true)},
		{`column "value" is null in 1 rows`, field("value", arrow.PrimitiveTypes.Float64, false)},
	} {
		if _, err := flow.Fit(rec, arrow.NewSchema([]arrow.Field{c.field}, nil)); !errors.Is(err, flow.ErrBad) || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}
