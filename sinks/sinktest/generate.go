package sinktest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// generator makes rows of a schema, from a seed, and cuts records. It is used by one goroutine at a time.
type generator struct {
	mem    memory.Allocator
	rnd    *rand.Rand
	schema *arrow.Schema
	made   int64
}

func (g *generator) fork(seed uint64) *generator {
	return &generator{mem: g.mem, rnd: rand.New(rand.NewPCG(g.rnd.Uint64(), seed)), schema: g.schema}
}

// Texts are strings that sinks get wrong.
var Texts = []string{
	"", " ", "plain", "Wohnzimmer", "リビング", "🏠🔥", "a\tb\nc\r\n", `quo"te'd\`, "\\N", "NULL", "null", "0", "%s{}$1", "é", "é",
	"\u200b\ufeff", "a\x00b", strings.Repeat("x", 300), "-", "../../etc", "a,b;c|d",
}

// base is the end of an hour: rows fall into the hours on both sides of it, and some into others.
var base = time.Date(2026, 11, 22, 19, 0, 0, 0, time.UTC)

// record makes n rows. No two of a suite's rows are equal: a column of integers, where there is one, counts them.
func (g *generator) record(n int, partition int32) arrow.Record {
	b := array.NewRecordBuilder(g.mem, g.schema)
	defer b.Release()
	for range n {
		g.made++
		for c, f := range g.schema.Fields() {
			g.append(b.Field(c), f.Name, f.Nullable && g.rnd.IntN(4) == 0, n, partition)
		}
	}
	return b.NewRecord()
}

func (g *generator) append(b array.Builder, name string, null bool, n int, partition int32) {
	if null {
		b.AppendNull()
		return
	}
	switch b := b.(type) {
	case *array.TimestampBuilder:
		at := base.Add(time.Duration(g.rnd.Int64N(int64(20*time.Minute))) - 10*time.Minute)
		if g.rnd.IntN(10) == 0 {
			at = at.Add(time.Duration(g.rnd.IntN(5)-2) * time.Hour)
		}
		// Each row has a time of its own: a sink may tell rows apart by it.
		us := at.UnixMicro()/1_000_000*1_000_000 + (g.made+int64(partition)*100_003)%1_000_000
		b.Append(arrow.Timestamp(us * int64(time.Microsecond) / int64(b.Type().(*arrow.TimestampType).Unit.Multiplier())))
	case *array.BinaryDictionaryBuilder:
		s := Texts[g.rnd.IntN(len(Texts))]
		if name == flow.ColHome || name == flow.ColDevice || name == flow.ColMetric {
			s = fmt.Sprintf("%s-%d-%d", name, partition, g.rnd.IntN(20))
		}
		if err := b.AppendString(s); err != nil {
			panic(err)
		}
	case *array.StringBuilder:
		s := Texts[g.rnd.IntN(len(Texts))]
		if n < 1000 && g.rnd.IntN(50) == 0 {
			s = strings.Repeat("große Texte ☃ ", 10_000)
		}
		b.Append(s)
	case *array.Float64Builder:
		b.Append([]float64{0, -1.5, 21.25, math.MaxFloat64, math.SmallestNonzeroFloat64, g.rnd.NormFloat64()}[g.rnd.IntN(6)])
	case *array.Float32Builder:
		b.Append(float32(g.rnd.NormFloat64()))
	case *array.Int64Builder:
		b.Append(g.made + int64(partition)<<40)
	case *array.Int32Builder:
		b.Append(int32(g.rnd.Uint32()))
	case *array.Uint64Builder:
		b.Append(g.rnd.Uint64())
	case *array.BooleanBuilder:
		b.Append(g.rnd.IntN(2) == 0)
	case *array.MapBuilder:
		b.Append(true)
		keys, items := b.KeyBuilder().(*array.StringBuilder), b.ItemBuilder().(*array.StringBuilder)
		for i := range g.rnd.IntN(4) {
			keys.Append(fmt.Sprintf("key %d", i))
			items.Append(Texts[g.rnd.IntN(len(Texts))])
		}
	case *array.ListBuilder:
		b.Append(true)
		items := b.ValueBuilder().(*array.Float64Builder)
		for range g.rnd.IntN(4) {
			if g.rnd.IntN(5) == 0 {
				items.AppendNull()
			} else {
				items.Append(g.rnd.NormFloat64())
			}
		}
	default:
		panic(fmt.Sprintf("sinktest: no generator for column %q, a %s", name, b.Type()))
	}
}

// cut cuts a record at random places. The pieces are slices, some of them copies with dictionaries of their own, in
// which entries are unused, doubled and in another order: all that the contract of a record allows.
func (g *generator) cut(whole arrow.Record) []arrow.Record {
	var recs []arrow.Record
	for at := int64(0); at < whole.NumRows(); {
		n := min(1+g.rnd.Int64N(1+whole.NumRows()/3), whole.NumRows()-at)
		recs = append(recs, g.piece(whole, at, n))
		at += n
	}
	return recs
}

// single cuts a record into records of one row.
func (g *generator) single(whole arrow.Record) []arrow.Record {
	recs := make([]arrow.Record, whole.NumRows())
	for i := range recs {
		recs[i] = g.piece(whole, int64(i), 1)
	}
	return recs
}

func (g *generator) piece(whole arrow.Record, at, n int64) arrow.Record {
	slice := whole.NewSlice(at, at+n)
	if g.rnd.IntN(2) == 0 {
		return slice
	}
	defer slice.Release()
	cols := make([]arrow.Array, slice.NumCols())
	for i := range cols {
		if d, ok := slice.Column(i).(*array.Dictionary); ok {
			cols[i] = g.shuffled(d)
		} else {
			cols[i] = slice.Column(i)
			cols[i].Retain()
		}
	}
	rec := array.NewRecord(slice.Schema(), cols, n)
	for _, c := range cols {
		c.Release()
	}
	return rec
}

// shuffled is d with its dictionary written twice, in random order, with an entry that no row uses.
func (g *generator) shuffled(d *array.Dictionary) arrow.Array {
	from, ok := d.Dictionary().(*array.String)
	dt := d.DataType().(*arrow.DictionaryType)
	if !ok || !arrow.TypeEqual(dt.IndexType, arrow.PrimitiveTypes.Int32) {
		d.Retain()
		return d
	}
	n := from.Len()
	place := g.rnd.Perm(2 * n)
	entries := make([]string, 2*n)
	for i, p := range place {
		entries[p] = from.Value(i % n)
	}
	values := array.NewStringBuilder(g.mem)
	defer values.Release()
	values.AppendValues(append(entries, "used by no row"), nil)
	index := array.NewInt32Builder(g.mem)
	defer index.Release()
	for i := range d.Len() {
		if d.IsNull(i) {
			index.AppendNull()
		} else {
			index.Append(int32(place[d.GetValueIndex(i)+n*g.rnd.IntN(2)]))
		}
	}
	v, x := values.NewArray(), index.NewArray()
	defer v.Release()
	defer x.Release()
	return array.NewDictionaryArray(dt, x, v)
}

func releaseAll(recs []arrow.Record) {
	for _, r := range recs {
		r.Release()
	}
}
