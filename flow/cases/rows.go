package cases

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"go.yaml.in/yaml/v3"

	"hearthline/flow"
)

// record makes the record of some rows of an input. The caller releases it.
func (c *Case) record(mem memory.Allocator, input string, rows []cells) (arrow.Record, error) {
	schema := c.schemaOf(input)
	b := array.NewRecordBuilder(mem, schema)
	defer b.Release()
	for _, r := range rows {
		for name := range r.by {
			if !schema.HasField(name) {
				return nil, fmt.Errorf("line %d: the input has no column %q; it has %s", r.line, name, names(schema))
			}
		}
		for i, f := range schema.Fields() {
			n := r.by[f.Name]
			if n == nil {
				n = c.each[f.Name]
			}
			if n == nil && f.Name == flow.ColReceived {
				if n = r.by[flow.ColTime]; n == nil {
					n = c.each[flow.ColTime]
				}
			}
			if n == nil || n.Tag == "!!null" {
				if !f.Nullable {
					return nil, fmt.Errorf("line %d: column %q must not be null: name it in the row or in each", r.line, f.Name)
				}
				b.Field(i).AppendNull()
				continue
			}
			v, err := c.cell(n, f.Type)
			if err != nil {
				return nil, fmt.Errorf("column %q: %w", f.Name, err)
			}
			appendCell(b.Field(i), v)
		}
	}
	return b.NewRecord(), nil
}

func names(s *arrow.Schema) string {
	var all []string
	for _, f := range s.Fields() {
		all = append(all, f.Name)
	}
	return strings.Join(all, ", ")
}

// cell reads a value as one of a column's type: nil, float64, int64 (of int32 too), bool, string, flow.Micros or
// map[string]string.
func (c *Case) cell(n *yaml.Node, t arrow.DataType) (any, error) {
	if n.Tag == "!!null" {
		return nil, nil
	}
	decode := func(into any) error {
		if err := n.Decode(into); err != nil {
			return lineError(n, "%v", err)
		}
		return nil
	}
	switch t.ID() {
	case arrow.TIMESTAMP:
		return c.instant(n)
	case arrow.FLOAT64:
		var v float64
		err := decode(&v)
		return v, err
	case arrow.INT64, arrow.INT32:
		var v int64
		err := decode(&v)
		return v, err
	case arrow.BOOL:
		var v bool
		err := decode(&v)
		return v, err
	case arrow.STRING, arrow.DICTIONARY:
		if n.Kind != yaml.ScalarNode {
			return nil, lineError(n, "this must be a text")
		}
		return n.Value, nil
	case arrow.MAP:
		var v map[string]string
		err := decode(&v)
		return v, err
	}
	return nil, lineError(n, "columns of type %s cannot be written in a case", t)
}

func appendCell(b array.Builder, v any) {
	switch b := b.(type) {
	case *array.TimestampBuilder:
		b.Append(arrow.Timestamp(v.(flow.Micros)))
	case *array.Float64Builder:
		b.Append(v.(float64))
	case *array.Int64Builder:
		b.Append(v.(int64))
	case *array.Int32Builder:
		b.Append(int32(v.(int64)))
	case *array.BooleanBuilder:
		b.Append(v.(bool))
	case *array.StringBuilder:
		b.Append(v.(string))
	case *array.BinaryDictionaryBuilder:
		if err := b.AppendString(v.(string)); err != nil {
			panic(err)
		}
	case *array.MapBuilder:
		b.Append(true)
		for _, k := range slices.Sorted(maps.Keys(v.(map[string]string))) {
			b.KeyBuilder().(*array.StringBuilder).Append(k)
			b.ItemBuilder().(*array.StringBuilder).Append(v.(map[string]string)[k])
		}
	default:
		panic(fmt.Sprintf("flowtest: no way to fill a %T", b))
	}
}

// valueOf reads a cell of a record, as cell gives it.
func valueOf(a arrow.Array, row int) any {
	if a.IsNull(row) {
		return nil
	}
	switch a := a.(type) {
	case *array.Timestamp:
		return flow.Micros(a.Value(row))
	case *array.Float64:
		return a.Value(row)
	case *array.Int64:
		return a.Value(row)
	case *array.Int32:
		return int64(a.Value(row))
	case *array.Boolean:
		return a.Value(row)
	case *array.String:
		return strings.Clone(a.Value(row))
	case *array.Dictionary:
		return strings.Clone(a.Dictionary().ValueStr(a.GetValueIndex(row)))
	case *array.Map:
		from, to := a.ValueOffsets(row)
		m := map[string]string{}
		for i := from; i < to; i++ {
			m[a.Keys().ValueStr(int(i))] = a.Items().ValueStr(int(i))
		}
		return m
	}
	return a.ValueStr(row)
}

// outRow is one row that came out, by column.
type outRow struct {
	columns []string
	values  []any
}

func rowsOfRecord(rec arrow.Record) []outRow {
	var columns []string
	for _, f := range rec.Schema().Fields() {
		columns = append(columns, f.Name)
	}
	rows := make([]outRow, rec.NumRows())
	for i := range rows {
		rows[i] = outRow{columns, make([]any, len(columns))}
		for c := range columns {
			rows[i].values[c] = valueOf(rec.Column(c), i)
		}
	}
	return rows
}

func (r outRow) value(column string) (any, bool) {
	i := slices.Index(r.columns, column)
	if i < 0 {
		return nil, false
	}
	return r.values[i], true
}

// text is a value as a case would write it; floats so that each bit shows.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case flow.Micros:
		return v.Time().Format(time.RFC3339Nano)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case map[string]string:
		return fmt.Sprint(v) // fmt sorts keys
	}
	return fmt.Sprint(v)
}

// String is the row with all its columns.
func (r outRow) String() string {
	var b strings.Builder
	for i, c := range r.columns {
		if r.values[i] != nil {
			fmt.Fprintf(&b, "%s: %s, ", c, text(r.values[i]))
		}
	}
	return "{" + strings.TrimSuffix(b.String(), ", ") + "}"
}

// series is what a row's order counts within.
func (r outRow) series() string {
	var key []string
	for _, c := range []string{flow.ColHome, flow.ColDevice, flow.ColMetric} {
		v, _ := r.value(c)
		key = append(key, text(v))
	}
	return strings.Join(key, "\x00")
}

func equal(got, want any, tolerance float64) bool {
	g, ok := got.(float64)
	w, ok2 := want.(float64)
	if ok && ok2 {
		if math.Float64bits(g) == math.Float64bits(w) || math.IsNaN(g) && math.IsNaN(w) {
			return true
		}
		return math.Abs(g-w) <= tolerance*math.Max(math.Abs(g), math.Abs(w))
	}
	return text(got) == text(want)
}
