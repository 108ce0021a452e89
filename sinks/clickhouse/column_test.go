package clickhouse

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// allTypes has a column of every type that a table can be made of, nullable and not.
func allTypes() *arrow.Schema {
	types := []arrow.DataType{
		flow.InstantType, flow.KeyType, flow.AttributesType,
		arrow.FixedWidthTypes.Timestamp_s, arrow.FixedWidthTypes.Timestamp_ms, arrow.FixedWidthTypes.Timestamp_ns,
		arrow.BinaryTypes.String, arrow.BinaryTypes.LargeString, arrow.FixedWidthTypes.Boolean,
		arrow.PrimitiveTypes.Int8, arrow.PrimitiveTypes.Int16, arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64,
		arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Uint16, arrow.PrimitiveTypes.Uint32, arrow.PrimitiveTypes.Uint64,
		arrow.PrimitiveTypes.Float32, arrow.PrimitiveTypes.Float64, arrow.FixedWidthTypes.Date32,
		arrow.MapOf(arrow.BinaryTypes.String, arrow.PrimitiveTypes.Float64),
		arrow.ListOf(arrow.PrimitiveTypes.Float64), arrow.ListOf(arrow.BinaryTypes.String),
		arrow.FixedSizeListOf(3, arrow.PrimitiveTypes.Float32),
	}
	fields := []arrow.Field{{Name: "time", Type: flow.InstantType}, {Name: "row", Type: arrow.PrimitiveTypes.Int32}}
	for i, t := range types {
		fields = append(fields, arrow.Field{Name: fmt.Sprintf("c%d_%s", i, t.ID()), Type: t},
			arrow.Field{Name: fmt.Sprintf("n%d_%s", i, t.ID()), Type: t, Nullable: true})
	}
	return arrow.NewSchema(fields, nil)
}

// TestEveryTypeComesBack writes every type in records of random lengths and offsets, and reads it back as Arrow.
func TestEveryTypeComesBack(t *testing.T) {
	seed := rand.Uint64()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	rng := rand.New(rand.NewPCG(seed, 4))
	s, schema := openSink(t), allTypes()
	whole := numbered(t, fill(t, checkedMem(t), schema, seed, 1000))
	var recs []arrow.Record
	for from := int64(0); from < whole.NumRows(); {
		to := min(from+rng.Int64N(300), whole.NumRows()) // zero rows too
		rec := whole.NewSlice(from, to)
		defer rec.Release()
		recs, from = append(recs, rec), to
	}
	write(t, s, "everything", 0, recs...)
	var got []map[string]string
	if err := selectArrow(s, "SELECT * FROM everything ORDER BY row", func(rec arrow.Record) {
		for row := range int(rec.NumRows()) {
			values := make(map[string]string)
			for i, f := range rec.Schema().Fields() {
				values[f.Name] = canonical(rec.Column(i), row)
			}
			got = append(got, values)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != int(whole.NumRows()) {
		t.Fatalf("%d rows came back; want %d", len(got), whole.NumRows())
	}
	for i, f := range schema.Fields() {
		for row := range got {
			want, has := canonical(whole.Column(i), row), got[row][f.Name]
			if want != has {
				t.Errorf("column %s (%s) row %d: %s; want %s", f.Name, f.Type, row, has, want)
				break
			}
		}
	}
}

// numbered is rec with its column "row" counting from 0.
func numbered(t *testing.T, rec arrow.Record) arrow.Record {
	b := array.NewInt32Builder(memory.DefaultAllocator)
	defer b.Release()
	for i := range rec.NumRows() {
		b.Append(int32(i))
	}
	rows := b.NewArray()
	defer rows.Release()
	cols := append([]arrow.Array(nil), rec.Columns()...)
	cols[1] = rows
	out := array.NewRecord(rec.Schema(), cols, rec.NumRows())
	t.Cleanup(out.Release)
	return out
}

// canonical is a value as JSON, with the nulls that a table does not tell apart written as what it holds for them.
func canonical(a arrow.Array, row int) string {
	if a.IsNull(row) {
		switch a.DataType().ID() {
		case arrow.DICTIONARY:
			return `""`
		case arrow.LIST, arrow.FIXED_SIZE_LIST, arrow.MAP:
			return "[]"
		}
	}
	v := a.GetOneForMarshal(row)
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// selectArrow reads rows as the server writes them in Arrow's own format: nothing of this package is in between.
func selectArrow(s *Sink, sql string, each func(arrow.Record)) error {
	q := url.Values{"database": {s.Database}, "output_format_arrow_string_as_string": {"1"},
		"output_format_arrow_low_cardinality_as_dictionary": {"0"}, "output_format_arrow_compression_method": {"none"}}
	req, err := http.NewRequest(http.MethodPost, "http://"+engine.ends.HTTP+"/?"+q.Encode(), strings.NewReader(sql+" FORMAT ArrowStream"))
	if err != nil {
		return err
	}
	req.SetBasicAuth(s.User, s.Password)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %w", resp.Status, body, err)
	}
	r, err := ipc.NewReader(bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer r.Release()
	for r.Next() {
		each(r.Record())
	}
	return r.Err()
}

// TestLowCardinalityWidths crosses the sizes at which an index gets wider, from dictionaries and from plain strings.
func TestLowCardinalityWidths(t *testing.T) {
	s := openSink(t)
	for i, distinct := range []int{1, 255, 256, 257, 65535, 65536, 65537} {
		schema := arrow.NewSchema([]arrow.Field{{Name: "k", Type: flow.KeyType, Nullable: true}}, nil)
		b := array.NewRecordBuilder(checkedMem(t), schema)
		keys := b.Field(0).(*array.BinaryDictionaryBuilder)
		for n := range distinct {
			if err := keys.AppendString(fmt.Sprint("key ", n)); err != nil {
				t.Fatal(err)
			}
		}
		keys.AppendNull()
		rec := b.NewRecord()
		write(t, s, fmt.Sprint("width_", i), 0, rec, rec)
		rec.Release()
		b.Release()
		got := scalar(t, s, fmt.Sprintf("SELECT (count(), uniqExact(k), countIf(k = ''), countIf(k = 'key %d')) FROM width_%d", distinct-1, i))
		if want := fmt.Sprintf("(%d,%d,2,2)", 2*(distinct+1), distinct+1); got != want {
			t.Errorf("%d distinct keys: %s; want %s", distinct, got, want)
		}
	}
}

// FuzzServerTypes holds the reading of the server's type names to: no panic, whatever a server says.
func FuzzServerTypes(f *testing.F) {
	for _, seed := range []string{"", "String", "LowCardinality(Nullable(String))", "Map(LowCardinality(String), Map(String, Array(Nullable(Float64))))",
		"DateTime64(6, 'UTC')", "DateTime64()", "Nullable(", "Map(,)", "Array()", "Enum8('a' = 1)", "Tuple(a String)"} {
		f.Add(seed)
	}
	schema := allTypes()
	f.Fuzz(func(t *testing.T, server string) {
		for _, field := range schema.Fields() {
			fill, err := fillerOf(field.Type, field.Nullable, server)
			if err != nil {
				continue
			}
			c := fill(nil)
			if c.Rows() != 0 || string(c.Type()) != server {
				t.Errorf("%s into %q: a column of %s with %d rows", field.Type, server, c.Type(), c.Rows())
			}
			c.EncodeColumn(&proto.Buffer{})
		}
	})
}
