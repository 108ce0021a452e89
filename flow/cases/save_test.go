package cases

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// What a batch holds, a case holds: also texts that YAML would take for something else, and numbers that JSON has not.
func TestSavedRowsAreReadBack(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "time", Type: flow.InstantType}, {Name: "home", Type: flow.KeyType}, {Name: "text", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "value", Type: arrow.PrimitiveTypes.Float64}, {Name: "n", Type: arrow.PrimitiveTypes.Int64}, {Name: "on", Type: arrow.FixedWidthTypes.Boolean},
		{Name: "attributes", Type: flow.AttributesType, Nullable: true},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	for i, text := range []string{"no", "1e3", "null", "a: {b}", "\"\\\n\t", ""} {
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(1_700_000_000_123_456 + int64(i)))
		if err := b.Field(1).(*array.BinaryDictionaryBuilder).AppendString(text + "h"); err != nil {
			t.Fatal(err)
		}
		b.Field(2).(*array.StringBuilder).Append(text)
		b.Field(3).(*array.Float64Builder).Append([]float64{0.1, math.NaN(), math.Inf(1), math.Inf(-1), 1e300, 5e-324}[i])
		b.Field(4).(*array.Int64Builder).Append(math.MaxInt64 - int64(i))
		b.Field(5).(*array.BooleanBuilder).Append(i%2 == 0)
		m := b.Field(6).(*array.MapBuilder)
		m.Append(true)
		m.KeyBuilder().(*array.StringBuilder).Append("yes")
		m.ItemBuilder().(*array.StringBuilder).Append(text)
	}
	rec := b.NewRecord()
	saved, err := Save("all of it", nil, rec)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "cases"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "cases", "saved.yaml")
	if err := os.WriteFile(file, saved, 0o644); err != nil {
		t.Fatal(err)
	}
	all, err := Load(file)
	if err != nil || len(all) != 1 {
		t.Fatalf("%v\n%s", err, saved)
	}
	got, err := all[0].record(memory.DefaultAllocator, "", all[0].steps[0].in)
	if err != nil {
		t.Fatalf("%v\n%s", err, saved)
	}
	for i := range int(rec.NumCols()) {
		if a, b := rec.Column(i), got.Column(i); a.String() != b.String() {
			t.Errorf("column %s: %v, was %v\n%s", rec.ColumnName(i), b, a, strings.TrimSpace(string(saved)))
		}
	}
}
