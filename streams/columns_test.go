package streams

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

const testLimit = 8 << 20

// everyType has a column of every type that travels.
var everyType = arrow.NewSchema([]arrow.Field{
	{Name: "time", Type: flow.InstantType},
	{Name: "key", Type: flow.KeyType, Nullable: true},
	{Name: "small key", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Uint8, ValueType: arrow.BinaryTypes.String}},
	{Name: "code", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int16, ValueType: arrow.PrimitiveTypes.Int64}},
	{Name: "flag", Type: arrow.FixedWidthTypes.Boolean, Nullable: true},
	{Name: "int8", Type: arrow.PrimitiveTypes.Int8},
	{Name: "uint64", Type: arrow.PrimitiveTypes.Uint64},
	{Name: "float", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
	{Name: "half", Type: arrow.FixedWidthTypes.Float16},
	{Name: "text", Type: arrow.BinaryTypes.String, Nullable: true},
	{Name: "long text", Type: arrow.BinaryTypes.LargeString},
	{Name: "bytes", Type: arrow.BinaryTypes.Binary, Nullable: true},
	{Name: "uuid", Type: &arrow.FixedSizeBinaryType{ByteWidth: 16}},
	{Name: "decimal", Type: &arrow.Decimal128Type{Precision: 20, Scale: 3}},
	{Name: "day", Type: arrow.FixedWidthTypes.Date32},
	{Name: "nothing", Type: arrow.Null, Nullable: true},
	{Name: "list", Type: arrow.ListOf(arrow.PrimitiveTypes.Float32), Nullable: true},
	{Name: "vector", Type: arrow.FixedSizeListOf(4, arrow.PrimitiveTypes.Float32)},
	{Name: "struct", Type: arrow.StructOf(arrow.Field{Name: "a", Type: arrow.PrimitiveTypes.Int32}, arrow.Field{Name: "b", Type: arrow.BinaryTypes.String, Nullable: true})},
	{Name: "attributes", Type: flow.AttributesType, Nullable: true},
}, nil)

// randomRecord fills a schema from seed.
func randomRecord(t testing.TB, mem memory.Allocator, schema *arrow.Schema, seed uint64, rows int) arrow.Record {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	for i, f := range schema.Fields() {
		for range rows {
			fill(t, rnd, b.Field(i), f.Nullable)
		}
	}
	return b.NewRecord()
}

func fill(t testing.TB, rnd *rand.Rand, b array.Builder, nullable bool) {
	if nullable && rnd.IntN(4) == 0 {
		b.AppendNull()
		return
	}
	word := fmt.Sprintf("w%d", rnd.IntN(20))
	switch b := b.(type) {
	case *array.ListBuilder:
		b.Append(true)
		for range rnd.IntN(3) {
			fill(t, rnd, b.ValueBuilder(), false)
		}
	case *array.FixedSizeListBuilder:
		b.Append(true)
		for range 4 {
			fill(t, rnd, b.ValueBuilder(), false)
		}
	case *array.StructBuilder:
		b.Append(true)
		for i := range b.NumField() {
			fill(t, rnd, b.FieldBuilder(i), i == 1)
		}
	case *array.MapBuilder:
		b.Append(true)
		for i := range rnd.IntN(3) {
			b.KeyBuilder().(*array.StringBuilder).Append(fmt.Sprint("k", i))
			b.ItemBuilder().(*array.StringBuilder).Append(word)
		}
	case *array.NullBuilder:
		b.AppendNull()
	case *array.FixedSizeBinaryBuilder:
		b.Append([]byte(fmt.Sprintf("%16d", rnd.IntN(1000))))
	case *array.BinaryBuilder:
		b.Append([]byte(word))
	default:
		s := word
		switch b.Type().ID() {
		case arrow.DICTIONARY:
			if b.Type().(*arrow.DictionaryType).ValueType.ID() == arrow.INT64 {
				s = fmt.Sprint(rnd.IntN(9))
			}
		case arrow.STRING, arrow.LARGE_STRING:
		case arrow.TIMESTAMP, arrow.DATE32:
			s = fmt.Sprintf("2026-01-%02d", 1+rnd.IntN(28))
		case arrow.BOOL:
			s = fmt.Sprint(rnd.IntN(2) == 0)
		default:
			s = fmt.Sprint(rnd.IntN(100))
		}
		if err := b.AppendValueFromString(s); err != nil {
			t.Fatalf("%v: %v", b.Type(), err)
		}
	}
}

func TestRecordsComeBack(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	for seed, rows := range []int{0, 1, 7, 8, 9, 1000} {
		whole := randomRecord(t, mem, everyType, uint64(seed), rows)
		for _, cut := range [][2]int64{{0, int64(rows)}, {int64(rows / 3), int64(rows / 2)}, {int64(rows / 2), int64(rows)}} {
			if cut[0] > cut[1] {
				continue
			}
			rec := whole.NewSlice(cut[0], cut[1])
			comeBack(t, mem, rec)
			rec.Release()
		}
		whole.Release()
	}
}

func comeBack(t testing.TB, mem memory.Allocator, rec arrow.Record) {
	t.Helper()
	written, err := encodeSchema(rec.Schema())
	if err != nil {
		t.Fatal(err)
	}
	schema, err := decodeSchema(written.message)
	if err != nil {
		t.Fatal(err)
	}
	if schema.print != written.print || !schema.schema.Equal(rec.Schema()) {
		t.Fatalf("schema %v came back as %v", rec.Schema(), schema.schema)
	}
	body, err := encodeRecord(nil, rec, mem)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []codec{codecNone, codecLZ4, codecZstd} {
		value, took := compress(nil, body, c)
		raw := make([]byte, len(body))
		if err := decompress(raw, value, took); err != nil {
			t.Fatal(err)
		}
		got, err := decodeRecord(raw, schema, rec.NumRows(), mem, testLimit)
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		clear(raw) // the record keeps nothing of it
		if !array.RecordEqual(rec, got) {
			t.Fatalf("%v: %v came back as %v", c, rec, got)
		}
		got.Release()
	}
}

// TestMessagesStandAlone: a writer that is used twice would leave out dictionaries it wrote before.
func TestMessagesStandAlone(t *testing.T) {
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	rec := randomRecord(t, mem, flow.EventSchema, 5, 50)
	defer rec.Release()
	one, err := encodeRecord(nil, rec, mem)
	if err != nil {
		t.Fatal(err)
	}
	two, err := encodeRecord(nil, rec, mem)
	if err != nil {
		t.Fatal(err)
	}
	if string(one) != string(two) {
		t.Error("the same record gave other bytes the second time")
	}
}

// TestOtherArrowReaders: the schema's message before the value is an Arrow IPC stream.
func TestOtherArrowReaders(t *testing.T) {
	rec := randomRecord(t, memory.DefaultAllocator, flow.EventSchema, 9, 20)
	defer rec.Release()
	schema, err := encodeSchema(rec.Schema())
	if err != nil {
		t.Fatal(err)
	}
	body, err := encodeRecord(nil, rec, memory.DefaultAllocator)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ipc.NewReader(strings.NewReader(string(schema.message) + string(body) + "\xff\xff\xff\xff\x00\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	if !r.Next() || !array.RecordEqual(r.Record(), rec) {
		t.Fatalf("%v: %v", r.Err(), r.Record())
	}
}

func TestTypesRefused(t *testing.T) {
	union := arrow.DenseUnionOf([]arrow.Field{{Name: "a", Type: arrow.PrimitiveTypes.Int32}}, []arrow.UnionTypeCode{0})
	for name, typ := range map[string]arrow.DataType{
		"union":   union,
		"nested":  arrow.ListOf(union),
		"view":    arrow.BinaryTypes.StringView,
		"run-end": arrow.RunEndEncodedOf(arrow.PrimitiveTypes.Int32, arrow.BinaryTypes.String),
	} {
		_, err := encodeSchema(arrow.NewSchema([]arrow.Field{{Name: "c", Type: typ}}, nil))
		if err == nil || !strings.Contains(err.Error(), `column "c"`) {
			t.Errorf("%s: %v; want an error that names the column", name, err)
		}
	}
}

// TestDamageIsFound changes single bytes of a message: the record is refused, or is one that can be used in full.
func TestDamageIsFound(t *testing.T) {
	const seed = 11
	rec := randomRecord(t, memory.DefaultAllocator, everyType, seed, 40)
	defer rec.Release()
	schema, err := encodeSchema(rec.Schema())
	if err != nil {
		t.Fatal(err)
	}
	body, err := encodeRecord(nil, rec, memory.DefaultAllocator)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(seed, 2))
	refused := 0
	const tries = 800
	for range tries {
		bad := append([]byte(nil), body...)
		at := rnd.IntN(len(bad))
		bad[at] ^= byte(1 << rnd.IntN(8))
		got, err := decodeRecord(bad, schema, 40, memory.DefaultAllocator, testLimit)
		if err != nil {
			refused++
			continue
		}
		use(got)
		got.Release()
	}
	if refused < tries/10 {
		t.Errorf("%d of %d damaged messages were refused (seed %d): are they checked?", refused, tries, seed)
	}
	for n := range len(body) / 256 {
		if _, err := decodeRecord(body[:n*256], schema, 40, memory.DefaultAllocator, testLimit); err == nil {
			t.Fatalf("cut off at %d of %d bytes, it was taken", n*256, len(body))
		}
	}
	if _, err := decodeRecord(body, schema, 41, memory.DefaultAllocator, testLimit); err == nil {
		t.Error("a wrong number of rows was taken")
	}
	if _, err := decodeRecord(append(body, 0), schema, 40, memory.DefaultAllocator, testLimit); err == nil {
		t.Error("bytes behind the record were taken")
	}
	if _, err := decodeRecord(body, schema, 40, memory.DefaultAllocator, 1000); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("memory beyond the limit: %v", err)
	}
}

// use looks at every value, as a stage might.
func use(rec arrow.Record) {
	for _, col := range rec.Columns() {
		useArray(col)
	}
}

func useArray(a arrow.Array) {
	switch a := a.(type) {
	case array.ListLike:
		for i := range a.Len() {
			from, to := a.ValueOffsets(i)
			array.NewSlice(a.ListValues(), from, to).Release()
		}
		useArray(a.ListValues())
	case *array.Struct:
		for i := range a.NumField() {
			useArray(a.Field(i))
		}
	default:
		for i := range a.Len() {
			_ = a.ValueStr(i)
		}
	}
}

func FuzzRecord(f *testing.F) {
	schema, err := encodeSchema(everyType)
	if err != nil {
		f.Fatal(err)
	}
	for rows := range 3 {
		rec := randomRecord(f, memory.DefaultAllocator, everyType, uint64(rows), rows*5)
		body, err := encodeRecord(nil, rec, memory.DefaultAllocator)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body, uint16(rec.NumRows()))
		rec.Release()
	}
	f.Fuzz(func(t *testing.T, body []byte, rows uint16) {
		rec, err := decodeRecord(body, schema, int64(rows), memory.DefaultAllocator, 1<<20)
		if err == nil {
			use(rec)
			rec.Release()
		}
	})
}

// TestSchemaDamage: Arrow's reader would allocate by lengths that are damaged.
func TestSchemaDamage(t *testing.T) {
	const seed = 13
	is, err := encodeSchema(everyType)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		bad := append([]byte(nil), is.message...)
		for range 1 + rnd.IntN(3) {
			bad[rnd.IntN(len(bad))] = byte(rnd.IntN(256))
		}
		_, _ = decodeSchema(bad)
	}
	for n := range len(is.message) {
		if _, err := decodeSchema(is.message[:n]); err == nil {
			t.Fatalf("%d of %d bytes were taken for a schema", n, len(is.message))
		}
	}
}

func FuzzSchema(f *testing.F) {
	for _, s := range []*arrow.Schema{flow.EventSchema, flow.DeadSchema, everyType} {
		is, err := encodeSchema(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(is.message)
	}
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = decodeSchema(b) })
}

func FuzzDecompress(f *testing.F) {
	for _, c := range []codec{codecNone, codecLZ4, codecZstd} {
		v, took := compress(nil, []byte(strings.Repeat("hearth", 100)), c)
		f.Add(v, uint8(took), uint16(600))
	}
	f.Fuzz(func(t *testing.T, b []byte, c uint8, size uint16) {
		_ = decompress(make([]byte, size), b, codec(c))
	})
}
