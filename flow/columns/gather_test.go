package columns

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// Gather gives the rows it is asked for, of slices of several records, and the same bytes wherever the rows stood.
func TestGather(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 0))
		mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
		whole := wide(mem, 1+rng.IntN(200))
		for _, f := range whole.Schema().Fields() {
			if err := CanGather(f.Type); err != nil {
				t.Fatal(err)
			}
		}
		// The same rows stand in one record, and in several slices of it.
		var cuts []arrow.Record
		place := make([]Ref, whole.NumRows())
		for from := int64(0); from < whole.NumRows(); {
			to := from + 1 + rng.Int64N(whole.NumRows()-from)
			for r := from; r < to; r++ {
				place[r] = Ref{int32(len(cuts)), int32(r - from)}
			}
			cuts = append(cuts, whole.NewSlice(from, to))
			from = to
		}
		var rows, parts []Ref
		for range rng.IntN(300) {
			if rng.IntN(10) == 0 {
				rows, parts = append(rows, NoRow), append(parts, NoRow)
				continue
			}
			r := rng.IntN(int(whole.NumRows()))
			rows, parts = append(rows, Ref{0, int32(r)}), append(parts, place[r])
		}
		a, b := gatherAll(mem, []arrow.Record{whole}, rows), gatherAll(mem, cuts, parts)
		for c := range int(a.NumCols()) {
			for k, r := range rows {
				got, want := a.Column(c), whole.Column(c)
				if r.Chunk < 0 {
					if !got.IsNull(k) {
						t.Fatalf("seed %d: column %s: no row is %s", seed, a.ColumnName(c), got.ValueStr(k))
					}
				} else if got.IsNull(k) != want.IsNull(int(r.Row)) || got.ValueStr(k) != want.ValueStr(int(r.Row)) {
					t.Fatalf("seed %d: column %s: row %d is %s; want %s", seed, a.ColumnName(c), k, got.ValueStr(k), want.ValueStr(int(r.Row)))
				}
			}
		}
		if !bytes.Equal(bytesOf(t, a), bytesOf(t, b)) {
			t.Fatalf("seed %d: the same rows give other bytes when they stand in several records", seed)
		}
		for _, r := range append(cuts, whole, a, b) {
			r.Release()
		}
		mem.AssertSize(t, 0)
	}
}

func gatherAll(mem memory.Allocator, recs []arrow.Record, refs []Ref) arrow.Record {
	var cols []arrow.Array
	for c, f := range recs[0].Schema().Fields() {
		var arrays []arrow.Array
		for _, r := range recs {
			arrays = append(arrays, r.Column(c))
		}
		cols = append(cols, Gather(mem, f.Type, arrays, refs))
	}
	return Record(recs[0].Schema(), cols...)
}

func bytesOf(t *testing.T, rec arrow.Record) []byte {
	var b bytes.Buffer
	w := ipc.NewWriter(&b, ipc.WithSchema(rec.Schema()))
	if err := w.Write(rec); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	return b.Bytes()
}

func TestKeyOfRows(t *testing.T) {
	rec := wide(memory.DefaultAllocator, 120)
	defer rec.Release()
	k, err := KeyOf(rec, []string{"key", "text", "i32"})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string][]string{}
	for i := range 120 {
		var row []string
		for _, c := range []int{0, 1, 3} {
			row = append(row, rec.Column(c).ValueStr(i))
		}
		b := string(k.Append(nil, i))
		if was, ok := seen[b]; ok && !slices.Equal(was, row) {
			t.Errorf("%v and %v have one key", was, row)
		}
		seen[b] = row
	}
	if _, err := KeyOf(rec, []string{"f"}); err == nil {
		t.Error("a float was taken for a key")
	}
	if _, err := KeyOf(rec, []string{"none"}); err == nil {
		t.Error("a missing column was taken for a key")
	}
}

func TestRowSizes(t *testing.T) {
	rec := wide(memory.DefaultAllocator, 50)
	defer rec.Release()
	part := rec.NewSlice(10, 30)
	defer part.Release()
	all, some := RowSizes(rec), RowSizes(part)
	if !slices.Equal(all[10:30], some) {
		t.Errorf("the rows of a slice have other sizes: %v, %v", all[10:30], some)
	}
	for i, n := range all {
		if n < 30 || n > 300 {
			t.Errorf("row %d takes %d bytes", i, n)
		}
	}
}
