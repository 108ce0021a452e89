package columns

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// wide has a column of every kind that Take treats in its own way, each with nulls.
func wide(mem memory.Allocator, rows int) arrow.Record {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "key", Type: flow.KeyType, Nullable: true}, {Name: "text", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "f", Type: arrow.PrimitiveTypes.Float64, Nullable: true}, {Name: "i32", Type: arrow.PrimitiveTypes.Int32, Nullable: true},
		{Name: "i8", Type: arrow.PrimitiveTypes.Int8, Nullable: true}, {Name: "bool", Type: arrow.FixedWidthTypes.Boolean, Nullable: true},
		{Name: "time", Type: flow.InstantType, Nullable: true}, {Name: "map", Type: flow.AttributesType, Nullable: true},
		{Name: "list", Type: arrow.ListOf(arrow.PrimitiveTypes.Int64), Nullable: true},
	}, nil)
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	for i := range rows {
		for c, f := range b.Fields() {
			if (i+c)%5 == 0 {
				f.AppendNull()
				continue
			}
			switch f := f.(type) {
			case *array.BinaryDictionaryBuilder:
				_ = f.AppendString(fmt.Sprint("k", i%7))
			case *array.MapBuilder:
				f.Append(true)
				for k := range i % 3 {
					f.KeyBuilder().(*array.StringBuilder).Append(fmt.Sprint("a", k))
					f.ItemBuilder().(*array.StringBuilder).Append(fmt.Sprint(i))
				}
			case *array.ListBuilder:
				f.Append(true)
				for k := range i % 3 {
					f.ValueBuilder().(*array.Int64Builder).Append(int64(i * k))
				}
			case *array.BooleanBuilder:
				f.Append(i%2 == 0)
			case *array.TimestampBuilder:
				f.Append(arrow.Timestamp(i))
			default:
				if err := f.AppendValueFromString(fmt.Sprint(i % 100)); err != nil {
					panic(err)
				}
			}
		}
	}
	return b.NewRecord()
}

func TestTake(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 0))
		mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
		whole := wide(mem, 1+rng.IntN(200))
		from := rng.Int64N(whole.NumRows())
		rec := whole.NewSlice(from, from+rng.Int64N(whole.NumRows()-from+1))
		var rows []int
		keep := rng.Float64()
		for i := range int(rec.NumRows()) {
			if rng.Float64() < keep {
				rows = append(rows, i)
			}
		}
		out, err := Take(mem, rec, rows)
		if err != nil {
			t.Fatal(err)
		}
		if int(out.NumRows()) != len(rows) || !out.Schema().Equal(rec.Schema()) {
			t.Fatalf("seed %d: %d rows of %v", seed, out.NumRows(), out.Schema())
		}
		for c := range int(rec.NumCols()) {
			for k, r := range rows {
				if got, want := out.Column(c).ValueStr(k), rec.Column(c).ValueStr(r); got != want || out.Column(c).IsNull(k) != rec.Column(c).IsNull(r) {
					t.Errorf("seed %d: column %s: row %d is %s; want %s", seed, rec.ColumnName(c), k, got, want)
				}
			}
			if out.Column(c).NullN() > len(rows) {
				t.Errorf("seed %d: column %s counts %d nulls in %d rows", seed, rec.ColumnName(c), out.Column(c).NullN(), len(rows))
			}
		}
		out.Release()
		rec.Release()
		whole.Release()
		mem.AssertSize(t, 0)
	}
}

func TestKeys(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	var k Keys
	for range 2 { // it begins anew after Column
		k.AppendString("a")
		k.Append(Null)
		k.AppendString("b")
		k.AppendString("a")
		a := k.Column(mem).(*array.Dictionary)
		if a.Len() != 4 || a.Dictionary().Len() != 2 || !a.IsNull(1) || a.ValueStr(3) != "a" || !arrow.TypeEqual(a.DataType(), flow.KeyType) {
			t.Errorf("got %v", a)
		}
		a.Release()
	}
}
