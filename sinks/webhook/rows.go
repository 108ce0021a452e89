package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

const logLevel = slog.LevelInfo

// rowAttrs shows a row, which is a JSON object, in the log.
//
// The columns become attributes of the line, as they stand in the row, but for nulls.
func rowAttrs(row []byte) []slog.Attr {
	var attrs []slog.Attr
	d := json.NewDecoder(bytes.NewReader(row))
	d.UseNumber()
	_, _ = d.Token() // {
	for d.More() {
		name, err := d.Token()
		if err != nil {
			break
		}
		var v any
		if err := d.Decode(&v); err != nil {
			break
		}
		if v != nil {
			attrs = append(attrs, slog.Any(name.(string), v))
		}
	}
	return attrs
}

// batch gathers the rows of one request.
type batch struct {
	stream string
	single bool
	id     func(first int64) string // of the request whose first row is row first of the range
	first  int64
	rows   int64
	buf    bytes.Buffer // "[", rows joined by commas
	ends   []int        // where each row ends in buf
}

func (b *batch) add(w *rowWriter, row int) error {
	if b.rows == 0 {
		b.buf.WriteByte('[')
	} else {
		b.buf.WriteByte(',')
	}
	if err := w.write(&b.buf, row); err != nil {
		return err
	}
	b.ends = append(b.ends, b.buf.Len())
	b.rows++
	return nil
}

// each gives the rows, each a JSON object.
func (b *batch) each() [][]byte {
	rows := make([][]byte, len(b.ends))
	from := 1
	for i, to := range b.ends {
		rows[i] = b.buf.Bytes()[from:to]
		from = to + 1
	}
	return rows
}

// body is what is posted; valid until next. It is called once a batch.
func (b *batch) body() []byte {
	if b.single {
		return b.buf.Bytes()[1:]
	}
	b.buf.WriteByte(']')
	return b.buf.Bytes()
}

// next begins the batch after this one.
func (b *batch) next() {
	b.first += b.rows
	b.rows = 0
	b.ends = b.ends[:0]
	b.buf.Reset()
}

// rowWriter writes rows of a record as JSON objects, columns in their order, nulls as null, instants after RFC 3339 in
// UTC. Numbers that JSON lacks (NaN, infinities) become null.
type rowWriter struct {
	rec  arrow.Record
	keys [][]byte // `"name":`
}

func newRowWriter(rec arrow.Record) *rowWriter {
	w := &rowWriter{rec: rec}
	for _, f := range rec.Schema().Fields() {
		key, _ := json.Marshal(f.Name) // a string cannot fail
		w.keys = append(w.keys, append(key, ':'))
	}
	return w
}

func (w *rowWriter) write(to *bytes.Buffer, row int) error {
	to.WriteByte('{')
	for i, key := range w.keys {
		if i > 0 {
			to.WriteByte(',')
		}
		to.Write(key)
		b, err := json.Marshal(value(w.rec.Column(i), row))
		if err != nil {
			return fmt.Errorf("column %s as JSON: %w", key, err)
		}
		to.Write(b)
	}
	to.WriteByte('}')
	return nil
}

func value(a arrow.Array, i int) any {
	if a.IsNull(i) {
		return nil
	}
	switch a := a.(type) {
	case *array.Dictionary:
		return value(a.Dictionary(), a.GetValueIndex(i))
	case *array.String:
		return a.Value(i)
	case *array.Timestamp:
		return a.Value(i).ToTime(a.DataType().(*arrow.TimestampType).Unit).UTC().Format(time.RFC3339Nano)
	case *array.Float64:
		return number(a.Value(i))
	case *array.Float32:
		return number(float64(a.Value(i)))
	case *array.Map:
		from, to := a.ValueOffsets(i)
		m := make(map[string]any, to-from)
		for j := int(from); j < int(to); j++ {
			m[fmt.Sprint(value(a.Keys(), j))] = value(a.Items(), j)
		}
		return m
	case *array.List:
		from, to := a.ValueOffsets(i)
		list := make([]any, 0, to-from)
		for j := int(from); j < int(to); j++ {
			list = append(list, value(a.ListValues(), j))
		}
		return list
	}
	return a.GetOneForMarshal(i)
}

func number(v float64) any {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return v
}

// checkType refuses what value would write in a form that nobody agreed on.
func checkType(t arrow.DataType) error {
	switch t := t.(type) {
	case *arrow.DictionaryType:
		return checkType(t.ValueType)
	case *arrow.MapType:
		if t.KeyType().ID() != arrow.STRING {
			return fmt.Errorf("%s: a JSON object has strings as keys", t)
		}
		return checkType(t.ItemType())
	case *arrow.ListType:
		return checkType(t.Elem())
	case *arrow.TimestampType:
		return nil
	}
	switch t.ID() {
	case arrow.STRING, arrow.BOOL, arrow.FLOAT32, arrow.FLOAT64,
		arrow.INT8, arrow.INT16, arrow.INT32, arrow.INT64, arrow.UINT8, arrow.UINT16, arrow.UINT32, arrow.UINT64:
		return nil
	}
	return fmt.Errorf("type %s is not supported", t)
}
