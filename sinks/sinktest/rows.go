package sinktest

import (
	"errors"
	"fmt"
	"sort"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

// Values gives the rows of rec. It panics on a type that no stream of the project uses.
func Values(rec arrow.Record) []Row {
	rows := make([]Row, rec.NumRows())
	for i := range rows {
		rows[i] = make(Row, rec.NumCols())
	}
	for c, f := range rec.Schema().Fields() {
		for i := range rows {
			rows[i][f.Name] = value(rec.Column(c), i)
		}
	}
	return rows
}

func value(a arrow.Array, i int) any {
	if a.IsNull(i) {
		return nil
	}
	switch a := a.(type) {
	case *array.Dictionary:
		return value(a.Dictionary(), a.GetValueIndex(i))
	case *array.String:
		return string([]byte(a.Value(i))) // its own memory: the record is released before the rows are compared
	case *array.LargeString:
		return string([]byte(a.Value(i)))
	case *array.Binary:
		return string(a.Value(i))
	case *array.Timestamp:
		return a.Value(i).ToTime(a.DataType().(*arrow.TimestampType).Unit).UTC()
	case *array.Boolean:
		return a.Value(i)
	case *array.Float64:
		return a.Value(i)
	case *array.Float32:
		return float64(a.Value(i))
	case *array.Int64:
		return a.Value(i)
	case *array.Int32:
		return int64(a.Value(i))
	case *array.Int16:
		return int64(a.Value(i))
	case *array.Int8:
		return int64(a.Value(i))
	case *array.Uint64:
		return a.Value(i)
	case *array.Uint32:
		return uint64(a.Value(i))
	case *array.Map:
		from, to := a.ValueOffsets(i)
		m := make(map[string]string, to-from)
		for j := from; j < to; j++ {
			k, v := value(a.Keys(), int(j)), value(a.Items(), int(j))
			m[k.(string)], _ = v.(string)
		}
		return m
	case *array.List:
		from, to := a.ValueOffsets(i)
		list := make([]any, 0, to-from)
		for j := from; j < to; j++ {
			list = append(list, value(a.ListValues(), int(j)))
		}
		return list
	}
	panic(fmt.Sprintf("sinktest: no value for %s", a.DataType()))
}

// String is the same for equal rows: columns in the order of their names, nulls left out.
func (r Row) String() string {
	kept := make(map[string]any, len(r))
	for k, v := range r {
		if v != nil {
			kept[k] = v
		}
	}
	return fmt.Sprintf("%#v", kept) // prints maps sorted by key, and types too
}

// compare compares two multisets of rows.
func compare(got, want []Row) error {
	count := make(map[string]int, len(want))
	for _, r := range want {
		count[r.String()]++
	}
	for _, r := range got {
		count[r.String()]--
	}
	var lost, extra []string
	for r, n := range count {
		for ; n > 0; n-- {
			lost = append(lost, r)
		}
		for ; n < 0; n++ {
			extra = append(extra, r)
		}
	}
	if len(lost)+len(extra) == 0 {
		return nil
	}
	sort.Strings(lost)
	sort.Strings(extra)
	err := fmt.Errorf("%d rows stored; want %d: %d are missing, %d are too many", len(got), len(want), len(lost), len(extra))
	if len(lost) > 0 {
		err = errors.Join(err, fmt.Errorf("missing: %s", cut(lost[0])))
	}
	if len(extra) > 0 {
		err = errors.Join(err, fmt.Errorf("too many: %s", cut(extra[0])))
	}
	return err
}

func cut(s string) string { return s[:min(len(s), 1500)] }
