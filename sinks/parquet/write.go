package parquet

import (
	"fmt"
	"io"
	"strconv"
	"unsafe"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	pq "github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"

	"hearthline/flow"
)

// Keys of a file's metadata. The first is Arrow's own: with it, pyarrow gives back dictionary columns as such.
const (
	metaArrow       = "ARROW:schema"
	metaFingerprint = "hearthline.schema"     // of that schema: the first 8 bytes of its SHA-256
	metaStream      = "hearthline.stream"     // name
	metaStreamID    = "hearthline.stream_id"  // incarnation
	metaPartition   = "hearthline.partition"  // number
	metaOffsets     = "hearthline.offsets"    // first-last
	metaRangeRows   = "hearthline.range_rows" // rows of the whole range that are stored
	metaSpans       = "hearthline.spans"      // which of them are here; left out where all are
)

func metadataOf(r flow.Range, l *layout, p part, several bool, total int64) map[string]string {
	m := map[string]string{
		metaArrow:       l.ipc,
		metaFingerprint: l.fingerprint,
		metaStream:      r.Stream,
		metaStreamID:    r.StreamID,
		metaPartition:   strconv.Itoa(int(r.Partition)),
		metaOffsets:     fmt.Sprintf("%d-%d", r.First, r.Last),
		metaRangeRows:   strconv.FormatInt(total, 10),
	}
	if several {
		m[metaSpans] = encodeSpans(spansOf(p.runs))
	}
	return m
}

// blockRows is how many rows a column gets at once. Blocks are counted over the whole row group, not over records, since
// pages end where blocks do and the bytes must not depend on how the rows were cut.
const blockRows = 512

// file writes one Parquet file.
type file struct {
	*layout
	codec        compress.Codec
	rowGroupRows int64
	metadata     map[string]string

	out   []*pq.ColumnWriter // one a leaf
	block [][]pq.Value       // one a leaf: values that wait until the block is full
	rows  int64              // in the row group
}

func (f *file) write(w io.Writer, recs []arrow.Record, runs []run) error {
	config := &pq.WriterConfig{KeyValueMetadata: f.metadata}
	out := pq.NewGenericWriter[any](w, f.schema, config, pq.Compression(f.codec), pq.CreatedBy("hearthline", "1", ""),
		// Version 1 is what every reader knows; version 2 saves nothing worth with zstd.
		pq.DataPageVersion(1))
	f.out = out.ColumnWriters()
	f.block = make([][]pq.Value, f.leaves)
	var rec int32 = -1
	var appenders []appender
	for _, r := range runs {
		if r.rec != rec {
			rec = r.rec
			appenders = f.appenders(recs[rec])
		}
		for from := int64(r.from); from < int64(r.to); {
			to := min(int64(r.to), from+blockRows-f.rows%blockRows, from+f.rowGroupRows-f.rows)
			for _, add := range appenders {
				add(f.block, int(from), int(to))
			}
			f.rows += to - from
			from = to
			if err := f.end(out); err != nil {
				return err
			}
		}
	}
	if err := f.flushBlock(); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	return nil
}

// end ends the block or the row group if it is full.
func (f *file) end(out *pq.GenericWriter[any]) error {
	full := f.rows == f.rowGroupRows
	if f.rows%blockRows == 0 || full {
		if err := f.flushBlock(); err != nil {
			return err
		}
	}
	if !full {
		return nil
	}
	f.rows = 0
	if err := out.Flush(); err != nil {
		return fmt.Errorf("encode a row group: %w", err)
	}
	return nil
}

func (f *file) flushBlock() error {
	for i, values := range f.block {
		if len(values) == 0 {
			continue
		}
		if _, err := f.out[i].WriteRowValues(values); err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		f.block[i] = values[:0]
	}
	return nil
}

// appender appends rows from to to of one Arrow column to the blocks of its leaf columns.
type appender func(block [][]pq.Value, from, to int)

func (f *file) appenders(rec arrow.Record) []appender {
	all := make([]appender, len(f.columns))
	for i, c := range f.columns {
		switch a := rec.Column(i).(type) {
		case *array.Map:
			all[i] = c.repeated(a, a.ValueOffsets, a.Keys(), a.Items())
		case *array.List:
			all[i] = c.repeated(a, a.ValueOffsets, a.ListValues())
		default:
			all[i] = c.flat(a)
		}
	}
	return all
}

// flat appends a value or a null for each row. Definition level 1 is a value in a nullable column (Dremel levels:
// Apache Parquet format, "Nested Encoding").
func (c column) flat(a arrow.Array) appender {
	value := valueOf(a)
	if !c.nullable {
		return func(block [][]pq.Value, from, to int) {
			b := block[c.leaf]
			for i := from; i < to; i++ {
				b = append(b, value(i).Level(0, 0, c.leaf))
			}
			block[c.leaf] = b
		}
	}
	null := pq.NullValue().Level(0, 0, c.leaf)
	return func(block [][]pq.Value, from, to int) {
		b := block[c.leaf]
		for i := from; i < to; i++ {
			if a.IsNull(i) {
				b = append(b, null)
			} else {
				b = append(b, value(i).Level(0, 1, c.leaf))
			}
		}
		block[c.leaf] = b
	}
}

// repeated appends the entries of a list, or the keys and items of a map, to a leaf each. Definition levels rise: the row is null,
// the list is empty, the item is null, there is an item; levels that the schema rules out are left out.
func (c column) repeated(a arrow.Array, offsets func(i int) (int64, int64), leaves ...arrow.Array) appender {
	empty := level(c.nullable)
	appendLeaf := make([]appender, len(leaves))
	for k, items := range leaves {
		leaf, value := c.leaf+k, valueOf(items)
		isItem := k == len(leaves)-1
		appendLeaf[k] = func(block [][]pq.Value, from, to int) {
			b := block[leaf]
			for i := from; i < to; i++ {
				start, end := offsets(i)
				if a.IsNull(i) {
					b = append(b, pq.NullValue().Level(0, 0, leaf))
					continue
				}
				if start == end {
					b = append(b, pq.NullValue().Level(0, empty, leaf))
				}
				for j := start; j < end; j++ {
					repetition := level(j > start)
					switch {
					case isItem && items.IsNull(int(j)):
						b = append(b, pq.NullValue().Level(repetition, empty+1, leaf))
					default:
						b = append(b, value(int(j)).Level(repetition, empty+1+level(isItem && c.itemNullable), leaf))
					}
				}
			}
			block[leaf] = b
		}
	}
	return func(block [][]pq.Value, from, to int) {
		for _, add := range appendLeaf {
			add(block, from, to)
		}
	}
}

func level(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// valueOf gives what reads value i of a, which is not null. Strings borrow the memory of a. The types are those of leafNode.
func valueOf(a arrow.Array) func(i int) pq.Value {
	switch a := a.(type) {
	case *array.Dictionary:
		values := a.Dictionary().(*array.String)
		return func(i int) pq.Value { return textValue(values.Value(a.GetValueIndex(i))) }
	case *array.String:
		return func(i int) pq.Value { return textValue(a.Value(i)) }
	case *array.LargeString:
		return func(i int) pq.Value { return textValue(a.Value(i)) }
	case *array.Binary:
		return func(i int) pq.Value { return pq.ByteArrayValue(a.Value(i)) }
	case *array.LargeBinary:
		return func(i int) pq.Value { return pq.ByteArrayValue(a.Value(i)) }
	case *array.FixedSizeBinary:
		return func(i int) pq.Value { return pq.FixedLenByteArrayValue(a.Value(i)) }
	case *array.Timestamp:
		return func(i int) pq.Value { return pq.Int64Value(int64(a.Value(i))) }
	case *array.Boolean:
		return func(i int) pq.Value { return pq.BooleanValue(a.Value(i)) }
	case *array.Float64:
		return func(i int) pq.Value { return pq.DoubleValue(a.Value(i)) }
	case *array.Float32:
		return func(i int) pq.Value { return pq.FloatValue(a.Value(i)) }
	case *array.Date32:
		return func(i int) pq.Value { return pq.Int32Value(int32(a.Value(i))) }
	case *array.Int64:
		return func(i int) pq.Value { return pq.Int64Value(a.Value(i)) }
	case *array.Int32:
		return func(i int) pq.Value { return pq.Int32Value(a.Value(i)) }
	case *array.Int16:
		return func(i int) pq.Value { return pq.Int32Value(int32(a.Value(i))) }
	case *array.Int8:
		return func(i int) pq.Value { return pq.Int32Value(int32(a.Value(i))) }
	case *array.Uint64:
		return func(i int) pq.Value { return pq.Int64Value(int64(a.Value(i))) }
	case *array.Uint32:
		return func(i int) pq.Value { return pq.Int32Value(int32(a.Value(i))) }
	case *array.Uint16:
		return func(i int) pq.Value { return pq.Int32Value(int32(a.Value(i))) }
	case *array.Uint8:
		return func(i int) pq.Value { return pq.Int32Value(int32(a.Value(i))) }
	}
	// newLayout has refused every other type.
	panic(fmt.Sprintf("parquet: a column of %s passed the check of its schema", a.DataType()))
}

func textValue(s string) pq.Value {
	return pq.ByteArrayValue(unsafe.Slice(unsafe.StringData(s), len(s))) // #nosec G103 -- a view of bytes that are written before they change
}
