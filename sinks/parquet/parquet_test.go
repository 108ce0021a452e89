package parquet_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	pq "github.com/parquet-go/parquet-go"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/sinks/parquet"
)

// eventsAt makes one record of rows at these times, with seq counting them.
func eventsAt(tb testing.TB, times ...time.Time) arrow.Record {
	tb.Helper()
	b := flow.NewEventBuilder()
	for i, at := range times {
		b.Append(&flow.Event{Time: flow.MicrosOf(at), Home: fmt.Sprintf("h%d", i%3), Device: "d", Metric: "m", Seq: int64(i), HasSeq: true})
	}
	rec, _ := b.Record()
	return rec
}

func opened(tb testing.TB, store blobs.Store) *parquet.Sink {
	tb.Helper()
	s := parquet.New()
	s.Store = store
	must(tb, s.Open(tb.Context()))
	tb.Cleanup(func() { must(tb, s.Close()) })
	return s
}

func names(tb testing.TB, store blobs.Store) []string {
	tb.Helper()
	list, err := store.List(tb.Context(), "")
	must(tb, err)
	var n []string
	for _, o := range list {
		n = append(n, o.Name)
	}
	return n
}

func content(tb testing.TB, store blobs.Store) map[string]string {
	tb.Helper()
	all := make(map[string]string)
	for _, n := range names(tb, store) {
		r, err := store.Get(tb.Context(), n)
		must(tb, err)
		b, err := io.ReadAll(r)
		must(tb, errors.Join(err, r.Close()))
		all[n] = string(b)
	}
	return all
}

func TestNames(t *testing.T) {
	store := newDirectory(t)
	s := opened(t, store)
	at := func(v string) time.Time { x, err := time.Parse(time.RFC3339Nano, v); must(t, err); return x }
	must(t, s.Write(t.Context(), rangeOf(100, 199), []arrow.Record{eventsAt(t,
		at("2026-11-22T18:59:59.999999Z"), at("2026-11-22T19:00:00Z"), at("2026-11-22T03:30:00+05:30"),
		at("1969-12-31T23:59:59.999999Z"), at("1970-01-01T00:00:00Z"), at("2026-11-22T18:00:00Z"))}))
	want := []string{
		"readings/dt=1969-12-31/hour=23/readings-k7-3-100-199.parquet",
		"readings/dt=1970-01-01/hour=00/readings-k7-3-100-199.parquet",
		"readings/dt=2026-11-21/hour=22/readings-k7-3-100-199.parquet",
		"readings/dt=2026-11-22/hour=18/readings-k7-3-100-199.parquet",
		"readings/dt=2026-11-22/hour=19/readings-k7-3-100-199.parquet",
	}
	if got := names(t, store); !slices.Equal(got, want) {
		t.Errorf("files %q", got)
	}
	n, err := parquet.Count(t.Context(), store, "readings")
	if err != nil || n.Files != 5 || n.Rows != 6 || n.Bytes != s.Stats().Bytes || s.Stats().Files != 5 || s.Stats().Rows != 6 {
		t.Errorf("count %+v, %v; stats %+v", n, err, s.Stats())
	}
}

// TestBytesFollowFromRows: however the rows are cut into records and whichever dictionaries they have, and in another
// process too, the files are equal byte for byte.
func TestBytesFollowFromRows(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	times := make([]time.Time, 3000)
	for i := range times {
		times[i] = time.Date(2026, 11, 22, 18, 50, 0, 0, time.UTC).Add(time.Duration(rnd.IntN(1200)) * time.Second)
	}
	whole := eventsAt(t, times...)
	write := func(recs []arrow.Record) map[string]string {
		store := newDirectory(t)
		s := parquet.New()
		s.Store, s.RowGroupRows = store, 1000
		must(t, s.Open(t.Context()))
		must(t, s.Write(t.Context(), rangeOf(0, 9), recs))
		return content(t, store)
	}
	want := write([]arrow.Record{whole})
	for range 5 {
		var recs []arrow.Record
		for at := int64(0); at < whole.NumRows(); {
			n := min(1+rnd.Int64N(700), whole.NumRows()-at)
			recs = append(recs, rebuilt(t, whole.NewSlice(at, at+n)))
			at += n
		}
		got := write(recs)
		for n, b := range want {
			if got[n] != b {
				t.Errorf("seed %d: %s differs when the rows are cut otherwise", seed, n)
			}
		}
		if len(got) != len(want) || len(got) != 2 {
			t.Errorf("seed %d: %d files; want %d", seed, len(got), len(want))
		}
	}
}

// rebuilt is a copy with dictionaries of its own.
func rebuilt(tb testing.TB, rec arrow.Record) arrow.Record {
	tb.Helper()
	b, err := rec.MarshalJSON()
	must(tb, err)
	out, _, err := array.RecordFromJSON(memory.DefaultAllocator, rec.Schema(), bytes.NewReader(b))
	must(tb, err)
	return out
}

// TestOrder: what is read is what was written, in its order, over hours, records, ranges and row groups.
func TestOrder(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	store := newDirectory(t)
	s := parquet.New()
	s.Store, s.RowGroupRows = store, 300
	must(t, s.Open(t.Context()))
	var want []arrow.Record
	base := time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)
	for i := range int64(4) {
		times := make([]time.Time, 1+rnd.IntN(3000))
		for j := range times {
			base = base.Add(time.Duration(rnd.IntN(5)) * time.Second)
			times[j] = base.Add(-time.Duration(rnd.ExpFloat64() * float64(10*time.Minute))) // some come late
		}
		rec := eventsAt(t, times...)
		want = append(want, rec)
		must(t, s.Write(t.Context(), rangeOf(i*10, i*10+9), []arrow.Record{rec.NewSlice(0, rec.NumRows()/2), rec.NewSlice(rec.NumRows()/2, rec.NumRows())}))
	}
	mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
	defer mem.AssertSize(t, 0)
	r := parquet.Reader{Store: store, Stream: "readings", RecordRows: 700, Memory: mem}
	at, row := 0, int64(0)
	for rows, err := range r.Rows(t.Context()) {
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if rows.First != int64(at*10) || rows.Position != row || rows.Record.NumRows() > 700 {
			t.Fatalf("seed %d: got range %s, row %d, %d rows; want range %d, row %d", seed, rows.Range, rows.Position, rows.Record.NumRows(), at, row)
		}
		if !rows.Record.Schema().Equal(flow.EventSchema) {
			t.Fatalf("schema %s", rows.Record.Schema())
		}
		slice := want[at].NewSlice(row, row+rows.Record.NumRows())
		if !sameRows(t, slice, rows.Record) {
			t.Fatalf("seed %d: rows from %d of range %d differ", seed, row, at)
		}
		if row += rows.Record.NumRows(); row == want[at].NumRows() {
			at, row = at+1, 0
		}
	}
	if at != len(want) {
		t.Errorf("seed %d: read %d ranges; want %d", seed, at, len(want))
	}
}

func sameRows(tb testing.TB, a, b arrow.Record) bool {
	tb.Helper()
	x, err := a.MarshalJSON()
	must(tb, err)
	y, err := b.MarshalJSON()
	must(tb, err)
	return bytes.Equal(x, y)
}

// TestPartitionsAndHours: a reader takes the partitions and hours it is asked for, in order, and stops when it is told.
func TestPartitionsAndHours(t *testing.T) {
	store := newDirectory(t)
	s := opened(t, store)
	base := time.Date(2026, 11, 22, 18, 30, 0, 0, time.UTC)
	for _, id := range []string{"k8", "k7"} {
		for _, p := range []int32{10, 2} {
			for _, first := range []int64{100, 20, 3} { // as text, 100 stands before 20
				r := flow.Range{Stream: "readings", StreamID: id, Partition: p, First: first, Last: first}
				must(t, s.Write(t.Context(), r, []arrow.Record{eventsAt(t, base, base.Add(time.Hour), base)}))
			}
		}
	}
	must(t, store.Put(t.Context(), "readings/README.md", strings.NewReader("not ours")))
	must(t, store.Put(t.Context(), "readings/dt=2026-11-22/hour=18/part-0.parquet", strings.NewReader("not ours")))
	read := func(r parquet.Reader) string {
		r.Store, r.Stream = store, "readings"
		var got []string
		for rows, err := range r.Rows(t.Context()) {
			must(t, err)
			got = append(got, fmt.Sprintf("%s/%d@%d+%d:%d", rows.StreamID, rows.Partition, rows.First, rows.Position, rows.Record.NumRows()))
		}
		return strings.Join(got, " ")
	}
	all := "k7/2@3+0:3 k7/2@20+0:3 k7/2@100+0:3 k8/2@3+0:3 k8/2@20+0:3 k8/2@100+0:3 k7/10@3+0:3 k7/10@20+0:3 k7/10@100+0:3 k8/10@3+0:3 k8/10@20+0:3 k8/10@100+0:3"
	for _, c := range []struct {
		r    parquet.Reader
		want string
	}{
		{parquet.Reader{}, all},
		{parquet.Reader{Partitions: []int32{2}, RecordRows: 2}, "k7/2@3+0:2 k7/2@3+2:1 k7/2@20+0:2 k7/2@20+2:1 k7/2@100+0:2 k7/2@100+2:1 k8/2@3+0:2 k8/2@3+2:1 k8/2@20+0:2 k8/2@20+2:1 k8/2@100+0:2 k8/2@100+2:1"},
		{parquet.Reader{Partitions: []int32{7}}, ""},
		{parquet.Reader{Partitions: []int32{2}, From: flow.MicrosOf(base.Add(30 * time.Minute))}, "k7/2@3+1:1 k7/2@20+1:1 k7/2@100+1:1 k8/2@3+1:1 k8/2@20+1:1 k8/2@100+1:1"},
		{parquet.Reader{Partitions: []int32{2}, To: flow.MicrosOf(base.Add(30 * time.Minute))}, "k7/2@3+0:1 k7/2@3+2:1 k7/2@20+0:1 k7/2@20+2:1 k7/2@100+0:1 k7/2@100+2:1 k8/2@3+0:1 k8/2@3+2:1 k8/2@20+0:1 k8/2@20+2:1 k8/2@100+0:1 k8/2@100+2:1"},
	} {
		if got := read(c.r); got != c.want {
			t.Errorf("%+v:\n got %s\nwant %s", c.r, got, c.want)
		}
	}
	n := 0
	for range parquet.Read(t.Context(), store, "readings") {
		if n++; n == 2 {
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range parquet.Read(ctx, store, "readings") {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled read: %v", err)
		}
	}
	counter := &parquet.Counter{Store: store}
	for range 2 { // the second time without footers
		if n, err := counter.Count(t.Context(), "readings"); err != nil || n.Files != 24 || n.Rows != 36 {
			t.Errorf("count %+v, %v", n, err)
		}
	}
	if n, err := parquet.Count(t.Context(), store, "nothing"); err != nil || n != (parquet.Counts{}) {
		t.Errorf("count of nothing: %+v, %v", n, err)
	}
}

// TestNotWhole: a last range that lacks a file is being written; an earlier one is damaged.
func TestNotWhole(t *testing.T) {
	store := newDirectory(t)
	s := opened(t, store)
	base := time.Date(2026, 11, 22, 18, 30, 0, 0, time.UTC)
	for _, first := range []int64{0, 10} {
		must(t, s.Write(t.Context(), rangeOf(first, first+9), []arrow.Record{eventsAt(t, base, base.Add(time.Hour))}))
	}
	read := func() (rows int64, err error) {
		for r, err := range parquet.Read(t.Context(), store, "readings") {
			if err != nil {
				return rows, err
			}
			rows += r.Record.NumRows()
		}
		return rows, nil
	}
	must(t, store.Delete(t.Context(), "readings/dt=2026-11-22/hour=19/readings-k7-3-10-19.parquet"))
	if rows, err := read(); err != nil || rows != 2 {
		t.Errorf("with the last range half written: %d rows, %v; want 2", rows, err)
	}
	must(t, store.Delete(t.Context(), "readings/dt=2026-11-22/hour=19/readings-k7-3-0-9.parquet"))
	if _, err := read(); err == nil || !strings.Contains(err.Error(), "1 of its 2 rows") {
		t.Errorf("with an earlier range damaged: %v", err)
	}
	must(t, s.Write(t.Context(), rangeOf(5, 12), []arrow.Record{eventsAt(t, base)}))
	if _, err := read(); err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("with ranges that overlap: %v", err)
	}
}

// TestDamage flips and cuts bytes: reading may fail or, in a value, find another; it must not panic or hang.
func TestDamage(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	store := newDirectory(t)
	must(t, opened(t, store).Write(t.Context(), rangeOf(0, 9), readings(2000)))
	files := content(t, store)
	name := names(t, store)[0]
	failed := 0
	for range 300 {
		b := []byte(files[name])
		if rnd.IntN(4) == 0 {
			b = b[:rnd.IntN(len(b))]
		} else {
			for range 1 + rnd.IntN(4) {
				b[rnd.IntN(len(b))] ^= byte(1 + rnd.IntN(255))
			}
		}
		must(t, store.Put(t.Context(), name, bytes.NewReader(b)))
		mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
		r := parquet.Reader{Store: store, Stream: "readings", Memory: mem}
		for _, err := range r.Rows(t.Context()) {
			if err != nil {
				failed++
				if !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), "readings-k7-3-0-9") {
					t.Errorf("seed %d: the error does not name the file: %v", seed, err)
				}
			}
		}
		if n := mem.CurrentAlloc(); n != 0 {
			t.Fatalf("seed %d: %d bytes leaked", seed, n)
		}
	}
	if failed == 0 {
		t.Errorf("seed %d: no damage was found", seed)
	}
}

// TestManyHours: a recorded history in one range. What is held beside the range itself is one file.
func TestManyHours(t *testing.T) {
	const rows, hours = 20_000, 400
	times := make([]time.Time, rows)
	for i := range times {
		times[i] = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(i*hours/rows) * time.Hour)
	}
	rec := eventsAt(t, times...)
	var peak, before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	store := &watched{onPut: func(n int) {
		if n%50 == 0 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			peak.HeapAlloc = max(peak.HeapAlloc, m.HeapAlloc)
		}
	}}
	must(t, opened(t, store).Write(t.Context(), rangeOf(0, 9), []arrow.Record{rec}))
	if store.puts != hours {
		t.Errorf("%d files; want %d", store.puts, hours)
	}
	if grown := int64(peak.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("the heap grew by %d MB while %d files were written", grown>>20, hours)
	}
}

type watched struct {
	devNull
	puts  int
	onPut func(n int)
}

func (w *watched) Put(ctx context.Context, name string, r io.Reader) error {
	w.puts++
	w.onPut(w.puts)
	return w.devNull.Put(ctx, name, r)
}

// TestForeignReader reads with parquet-go alone, as any program would: order of columns, types, encodings, metadata.
func TestForeignReader(t *testing.T) {
	store := newDirectory(t)
	must(t, opened(t, store).Write(t.Context(), rangeOf(0, 9), readings(1000)))
	b := content(t, store)[names(t, store)[0]]
	f, err := pq.OpenFile(strings.NewReader(b), int64(len(b)))
	must(t, err)
	want := `message row {
	required int64 time (TIMESTAMP(isAdjustedToUTC=true,unit=MICROS));
	required int64 received (TIMESTAMP(isAdjustedToUTC=true,unit=MICROS));
	required binary home (STRING);
	required binary device (STRING);
	required binary metric (STRING);
	optional double value;
	optional binary text (STRING);
	optional binary unit (STRING);
	optional int64 seq (INT(64,true));
	optional group attributes (MAP) {
		repeated group key_value {
			required binary key (STRING);
			optional binary value (STRING);
		}
	}
}`
	if got := f.Schema().String(); got != want {
		t.Errorf("schema %s", got)
	}
	for key, want := range map[string]string{
		"hearthline.stream": "readings", "hearthline.stream_id": "k7", "hearthline.partition": "3",
		"hearthline.offsets": "0-9", "hearthline.range_rows": "1000",
	} {
		if got, _ := f.Lookup(key); got != want {
			t.Errorf("metadata %s: %q; want %q", key, got, want)
		}
	}
	for _, key := range []string{"ARROW:schema", "hearthline.schema"} {
		if got, _ := f.Lookup(key); got == "" {
			t.Errorf("no metadata %s", key)
		}
	}
	home := f.Metadata().RowGroups[0].Columns[2].MetaData
	if !strings.Contains(fmt.Sprint(home.Encoding), "RLE_DICTIONARY") || home.Codec.String() != "ZSTD" {
		t.Errorf("home has %v, %v", home.Encoding, home.Codec)
	}
	type row struct {
		Time  time.Time `parquet:"time"`
		Home  string    `parquet:"home"`
		Value *float64  `parquet:"value"`
	}
	rows, err := pq.Read[row](strings.NewReader(b), int64(len(b)))
	must(t, err)
	if len(rows) != 1000 || rows[0].Time.Year() != 2026 || !strings.HasPrefix(rows[7].Home, "home-") || *rows[9].Value < 20 {
		t.Errorf("%d rows, the first %+v", len(rows), rows[0])
	}
}

func TestRefused(t *testing.T) {
	field := func(name string, dt arrow.DataType) arrow.Field { return arrow.Field{Name: name, Type: dt} }
	instant := field(flow.ColTime, flow.InstantType)
	for want, fields := range map[string][]arrow.Field{
		`no column "time"`:        {field("x", flow.KeyType)},
		`column "time" is a utf8`: {field(flow.ColTime, arrow.BinaryTypes.String)},
		"no unit of seconds":      {instant, field("s", arrow.FixedWidthTypes.Timestamp_s)},
		"the name is taken":       {instant, field("hour", flow.KeyType)},
		"is there twice":          {instant, field("x", flow.KeyType), field("x", flow.KeyType)},
		"has no comma":            {instant, field("a,b", flow.KeyType)},
		"type decimal":            {instant, field("d", &arrow.Decimal128Type{Precision: 5})},
		"indices=int8":            {instant, field("k", &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String})},
		"type list":               {instant, field("l", arrow.ListOf(arrow.ListOf(flow.InstantType)))},
		"type struct":             {instant, field("m", arrow.MapOf(arrow.BinaryTypes.String, arrow.StructOf(instant)))},
	} {
		schema := arrow.NewSchema(fields, nil)
		s := parquet.New()
		s.To = t.TempDir()
		if err := s.Check("x", schema); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("check: %v; want %q", err, want)
		}
		rec := array.NewRecord(schema, columnsOf(schema), 0)
		if err := opened(t, newDirectory(t)).Write(t.Context(), rangeOf(0, 0), []arrow.Record{rec}); !errors.Is(err, flow.ErrBad) {
			t.Errorf("write with %q: %v; want bad data", want, err)
		}
	}
}

func columnsOf(schema *arrow.Schema) []arrow.Array {
	var cols []arrow.Array
	for _, f := range schema.Fields() {
		cols = append(cols, array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, 0))
	}
	return cols
}

func TestSettings(t *testing.T) {
	for want, set := range map[string]func(*parquet.Sink){
		"":                  func(*parquet.Sink) {},
		"setting to":        func(s *parquet.Sink) { s.To = "" },
		"gs is not":         func(s *parquet.Sink) { s.To = "gs://bucket" },
		"zstd_level: 23":    func(s *parquet.Sink) { s.Level = 23 },
		"row_group_rows: 0": func(s *parquet.Sink) { s.RowGroupRows = 0 },
		"flush_rows: -1":    func(s *parquet.Sink) { s.FlushRows = -1 },
		"flush_wait: 0s":    func(s *parquet.Sink) { s.FlushWait = 0 },
	} {
		s := parquet.New()
		s.To = t.TempDir()
		set(s)
		err := s.Check("readings", flow.EventSchema)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("check: %v; want %q", err, want)
		}
		if openErr := s.Open(t.Context()); (openErr == nil) != (err == nil) {
			t.Errorf("check says %v, open %v", err, openErr)
		} else if openErr == nil {
			must(t, s.Close())
		}
	}
	s := parquet.New()
	s.To = t.TempDir()
	if err := s.Check("a/../b", flow.EventSchema); !errors.Is(err, blobs.ErrName) {
		t.Errorf("check of a stream that climbs out: %v", err)
	}
	if rows, wait := s.Flush(); rows != 1_000_000 || wait != 10*time.Second {
		t.Errorf("flush %d, %s", rows, wait)
	}
}

// TestSchemaChange: a stream whose plan changed has files of both schemas; each comes back in its own.
func TestSchemaChange(t *testing.T) {
	store := newDirectory(t)
	s := opened(t, store)
	wider := arrow.NewSchema(append(slices.Clone(flow.EventSchema.Fields()), arrow.Field{Name: "room", Type: flow.KeyType, Nullable: true}), nil)
	rec := eventsAt(t, time.Unix(1_800_000_000, 0))
	cols := append(slices.Clone(rec.Columns()), array.MakeArrayOfNull(memory.DefaultAllocator, flow.KeyType, 1))
	must(t, s.Write(t.Context(), rangeOf(0, 9), []arrow.Record{rec}))
	must(t, s.Write(t.Context(), rangeOf(10, 19), []arrow.Record{array.NewRecord(wider, cols, 1)}))
	var got []int
	for r, err := range parquet.Read(t.Context(), store, "readings") {
		must(t, err)
		got = append(got, r.Record.Schema().NumFields())
	}
	if fmt.Sprint(got) != "[10 11]" {
		t.Errorf("columns %v; want [10 11]", got)
	}
}

// TestRareTypes go there and back, too: those that no stream of the project's own uses.
func TestRareTypes(t *testing.T) {
	fields := []arrow.Field{{Name: flow.ColTime, Type: flow.InstantType}}
	for _, dt := range []arrow.DataType{
		arrow.PrimitiveTypes.Int8, arrow.PrimitiveTypes.Int16, arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Uint16,
		arrow.PrimitiveTypes.Uint32, arrow.FixedWidthTypes.Date32, arrow.BinaryTypes.Binary, arrow.BinaryTypes.LargeString,
		&arrow.FixedSizeBinaryType{ByteWidth: 3}, arrow.ListOfNonNullable(arrow.BinaryTypes.String),
		arrow.MapOf(arrow.PrimitiveTypes.Int32, arrow.FixedWidthTypes.Boolean),
		&arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int64, ValueType: arrow.BinaryTypes.String},
	} {
		fields = append(fields, arrow.Field{Name: strings.ReplaceAll(dt.String(), ",", ";"), Type: dt, Nullable: true})
	}
	meta := arrow.NewMetadata([]string{"author"}, []string{"me"})
	schema := arrow.NewSchema(fields, &meta)
	values := []string{
		`-5`, `-300`, `250`, `65000`, `4000000000`, `"2026-11-22"`, `"AAEC/w=="`, `"ü"`, `"AQID"`, `["", "x"]`,
		`[{"key": 1, "value": true}, {"key": 2, "value": null}]`, `"k"`,
	}
	rows := []string{}
	for i := range len(values) + 2 { // a row where all are there, one where none is, rows where one is
		row := []string{`"time": "2026-11-22T18:00:00Z"`}
		for j, v := range values {
			if i == 0 || i == j+2 {
				name, _ := json.Marshal(fields[j+1].Name)
				row = append(row, string(name)+": "+v)
			}
		}
		rows = append(rows, "{"+strings.Join(row, ", ")+"}")
	}
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader("["+strings.Join(rows, ",")+"]"))
	must(t, err)
	store := newDirectory(t)
	must(t, opened(t, store).Write(t.Context(), rangeOf(0, 9), []arrow.Record{rec}))
	for r, err := range parquet.Read(t.Context(), store, "readings") {
		must(t, err)
		if !sameRows(t, rec, r.Record) || !r.Record.Schema().Equal(schema) {
			t.Errorf("got %v\nwant %v", r.Record, rec)
		}
	}
}
