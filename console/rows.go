package console

import (
	"encoding/json"
	"math"
	"strconv"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

// rowWriter writes rows as NDJSON: one object a row, columns in the order of the schema, null where there is no
// value. Instants are RFC 3339 in UTC; numbers that JSON cannot hold (NaN, infinities) are strings.
type rowWriter struct {
	names [][]byte // `"time":`, one a column
	buf   []byte
}

func newRowWriter(schema *arrow.Schema) *rowWriter {
	w := &rowWriter{}
	for _, f := range schema.Fields() {
		w.names = append(w.names, append(appendString(nil, f.Name), ':'))
	}
	return w
}

// row gives one row with its line end. The bytes are valid until the next call.
func (w *rowWriter) row(rec arrow.Record, row int) []byte {
	b := append(w.buf[:0], '{')
	for col, name := range w.names {
		if col > 0 {
			b = append(b, ',')
		}
		b = append(b, name...)
		b = appendValue(b, rec.Column(col), row)
	}
	w.buf = append(b, '}', '\n')
	return w.buf
}

func appendValue(b []byte, a arrow.Array, row int) []byte {
	if a.IsNull(row) {
		return append(b, "null"...)
	}
	switch a := a.(type) {
	case *array.Dictionary:
		return appendValue(b, a.Dictionary(), a.GetValueIndex(row))
	case *array.String:
		return appendString(b, a.Value(row))
	case *array.Float64:
		return appendFloat(b, a.Value(row))
	case *array.Float32:
		return appendFloat(b, float64(a.Value(row)))
	case *array.Int64:
		return strconv.AppendInt(b, a.Value(row), 10)
	case *array.Int32:
		return strconv.AppendInt(b, int64(a.Value(row)), 10)
	case *array.Boolean:
		return strconv.AppendBool(b, a.Value(row))
	case *array.Timestamp:
		unit := a.DataType().(*arrow.TimestampType).Unit
		b = append(b, '"')
		b = a.Value(row).ToTime(unit).UTC().AppendFormat(b, time.RFC3339Nano)
		return append(b, '"')
	case *array.Map:
		return appendMap(b, a, row)
	}
	return appendOther(b, a, row)
}

// appendOther takes the types that the project's own streams do not use; a stage may.
func appendOther(b []byte, a arrow.Array, row int) []byte {
	v, err := json.Marshal(a.GetOneForMarshal(row))
	if err != nil {
		return appendString(b, a.ValueStr(row))
	}
	return append(b, v...)
}

func appendFloat(b []byte, v float64) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return appendString(b, strconv.FormatFloat(v, 'g', -1, 64))
	}
	return strconv.AppendFloat(b, v, 'g', -1, 64)
}

// appendMap writes pairs as an object. A map may hold a key twice; JSON readers then keep the last.
func appendMap(b []byte, a *array.Map, row int) []byte {
	keys, ok := a.Keys().(*array.String)
	if !ok {
		return appendOther(b, a, row)
	}
	start, end := a.ValueOffsets(row)
	b = append(b, '{')
	for i := start; i < end; i++ {
		if i > start {
			b = append(b, ',')
		}
		b = append(appendString(b, keys.Value(int(i))), ':')
		b = appendValue(b, a.Items(), int(i))
	}
	return append(b, '}')
}

// appendString escapes as encoding/json does, HTML's characters included: a device may be called anything.
func appendString(b []byte, s string) []byte {
	v, err := json.Marshal(s)
	if err != nil { // a string always marshals; bytes that are no UTF-8 become U+FFFD
		return append(b, `""`...)
	}
	return append(b, v...)
}
