package chaos

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/blobs"
	"hearthline/sinks/parquet"
)

// rows counts rows by what they say, bit for bit.
type rows map[string]int

// total is the number of rows, each as often as it is there.
func (r rows) total() (n int) {
	for _, times := range r {
		n += times
	}
	return n
}

// differences lists how b differs from a, the first few.
func differences(nameA string, a rows, nameB string, b rows) (list []string) {
	var keys []string
	for k, n := range a {
		if b[k] != n {
			keys = append(keys, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys[:min(len(keys), 5)] {
		list = append(list, fmt.Sprintf("%d times in %s, %d times in %s: %s", a[k], nameA, b[k], nameB, strings.ReplaceAll(k, "\x1f", " ")))
	}
	if len(keys) > len(list) {
		list = append(list, fmt.Sprintf("… and %d more", len(keys)-len(list)))
	}
	return list
}

// columnsOf says which columns of a stream are compared. A dead letter says at which offset of its stream its row was
// read: in a stream that a stage wrote, replays shift that.
func columnsOf(schema *arrow.Schema) (names []string) {
	dead := len(schema.FieldIndices("reason")) > 0
	for _, f := range schema.Fields() {
		if !dead || f.Name != "offset" {
			names = append(names, f.Name)
		}
	}
	slices.Sort(names)
	return names
}

// add counts the rows of a record.
func (r rows) add(rec arrow.Record) {
	names := columnsOf(rec.Schema())
	columns := make([]arrow.Array, len(names))
	for i, name := range names {
		columns[i] = rec.Column(rec.Schema().FieldIndices(name)[0])
	}
	cells := make([]string, len(names))
	for row := range int(rec.NumRows()) {
		for i, c := range columns {
			cells[i] = names[i] + "=" + cell(c, row)
		}
		r[strings.Join(cells, "\x1f")]++
	}
}

// cell writes one value: numbers by their bits, a string that is null as the empty one, as ClickHouse keeps it.
func cell(c arrow.Array, row int) string {
	isText := false
	switch c := c.(type) {
	case *array.String, *array.LargeString, *array.Binary:
		isText = true
	case *array.Dictionary:
		if c.IsNull(row) {
			return ""
		}
		return cell(c.Dictionary(), c.GetValueIndex(row))
	case *array.Map:
		from, to := c.ValueOffsets(row)
		var pairs []string
		for i := from; i < to; i++ {
			pairs = append(pairs, cell(c.Keys(), int(i))+":"+cell(c.Items(), int(i)))
		}
		slices.Sort(pairs)
		return strings.Join(pairs, ",")
	}
	if c.IsNull(row) {
		if isText {
			return ""
		}
		return "null"
	}
	switch c := c.(type) {
	case *array.Float64:
		return strconv.FormatUint(math.Float64bits(c.Value(row)), 10)
	case *array.Timestamp:
		return strconv.FormatInt(int64(c.Value(row)), 10)
	case *array.Int64:
		return strconv.FormatInt(c.Value(row), 10)
	case *array.Int32:
		return strconv.FormatInt(int64(c.Value(row)), 10)
	case *array.String:
		return c.Value(row)
	case *array.LargeString:
		return c.Value(row)
	case *array.Binary:
		return string(c.Value(row))
	}
	return c.ValueStr(row)
}

// fromParquet counts the rows of a stream in the files.
func fromParquet(ctx context.Context, store blobs.Store, stream string) (rows, error) {
	r := rows{}
	for some, err := range parquet.Read(ctx, store, stream) {
		if err != nil {
			return nil, err
		}
		r.add(some.Record)
	}
	return r, nil
}

// fromClickHouse counts the rows of a stream in its table.
func (w *world) fromClickHouse(ctx context.Context, stream string, schema *arrow.Schema) (rows, error) {
	table, where := stream, ""
	if producer, ok := strings.CutSuffix(stream, ".dead"); ok {
		table, where = "dead", " WHERE stage = '"+producer+"'"
	}
	r := rows{}
	if there, err := w.query(ctx, "SELECT toString(count()) FROM system.tables WHERE database = currentDatabase() AND name = '"+table+"'"); err != nil || there[0][0] == "0" {
		return r, err // the sink makes the table with its first row
	}
	names := columnsOf(schema)
	var columns []string
	for _, name := range names {
		f := schema.Field(schema.FieldIndices(name)[0])
		c, text := "`"+name+"`", ""
		switch f.Type.ID() {
		case arrow.TIMESTAMP:
			text = "toString(toUnixTimestamp64Micro(" + c + "))"
		case arrow.FLOAT64:
			text = "toString(reinterpretAsUInt64(assumeNotNull(" + c + ")))"
		case arrow.MAP:
			text = "arrayStringConcat(arraySort(arrayMap((k, v) -> concat(toString(k), ':', toString(v)), mapKeys(" + c + "), mapValues(" + c + "))), ',')"
		default:
			text = "toString(assumeNotNull(" + c + "))"
		}
		if f.Nullable && (f.Type.ID() == arrow.FLOAT64 || f.Type.ID() == arrow.INT64) {
			text = "if(isNull(" + c + "), 'null', " + text + ")"
		}
		columns = append(columns, text)
	}
	found, err := w.query(ctx, "SELECT "+strings.Join(columns, ", ")+" FROM "+table+where)
	if err != nil {
		return nil, err
	}
	for _, row := range found {
		for i := range row {
			row[i] = names[i] + "=" + row[i]
		}
		r[strings.Join(row, "\x1f")]++
	}
	return r, nil
}
