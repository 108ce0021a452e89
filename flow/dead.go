package flow

import (
	"encoding/json"
	"fmt"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// DeadSchema is one dead letter a row: what could not be used, why, and where it came from.
var DeadSchema = arrow.NewSchema([]arrow.Field{
	{Name: ColTime, Type: InstantType},     // event time of the row; the batch's watermark where it has none
	{Name: ColReceived, Type: InstantType}, // likewise
	{Name: "stage", Type: KeyType},         // who could not use it
	{Name: "reason", Type: KeyType},
	{Name: "stream", Type: KeyType}, // where it was read: stream, partition, offset, row of the batch
	{Name: "partition", Type: arrow.PrimitiveTypes.Int32},
	{Name: "offset", Type: arrow.PrimitiveTypes.Int64},
	{Name: "row", Type: arrow.PrimitiveTypes.Int32},
	{Name: ColHome, Type: KeyType, Nullable: true},
	{Name: ColDevice, Type: KeyType, Nullable: true},
	{Name: "body", Type: arrow.BinaryTypes.String}, // the row as a JSON object, by column name
}, nil)

// Origin says where a batch was read.
type Origin struct {
	Stream    string
	Partition int32
	Offset    int64
	Watermark Micros
}

// DeadLetters makes the record of [DeadSchema] for the rows of in that stage refused. A nil bad.Rows is every
// row, for bad.Reasons[0]. The caller releases the record.
func DeadLetters(mem memory.Allocator, in arrow.Record, stage string, from Origin, bad BadRows) (arrow.Record, error) {
	rows, reason := bad.Rows, func(i int) string { return bad.Reasons[i] }
	if rows == nil {
		rows = make([]int, in.NumRows())
		for i := range rows {
			rows[i] = i
		}
		reason = func(int) string { return bad.Reasons[0] }
	}
	b := array.NewRecordBuilder(mem, DeadSchema)
	defer b.Release()
	key := func(col int, s string) {
		if d := b.Field(col).(*array.BinaryDictionaryBuilder); s == "" && DeadSchema.Field(col).Nullable {
			d.AppendNull()
		} else {
			appendKey(d, s)
		}
	}
	instant := func(col int, row int) {
		at := from.Watermark
		if v, err := Instants(in, DeadSchema.Field(col).Name); err == nil {
			at = Micros(v[row])
		}
		b.Field(col).(*array.TimestampBuilder).Append(arrow.Timestamp(at))
	}
	text := func(name string, row int) string {
		if s, err := StringsOf(in, name); err == nil {
			return s.Value(row)
		}
		return ""
	}
	for i, row := range rows {
		body, err := rowJSON(in, row)
		if err != nil {
			return nil, fmt.Errorf("dead letter of %s: row %d of %s/%d@%d: %w", stage, row, from.Stream, from.Partition, from.Offset, err)
		}
		instant(0, row)
		instant(1, row)
		key(2, stage)
		key(3, reason(i))
		key(4, from.Stream)
		b.Field(5).(*array.Int32Builder).Append(from.Partition)
		b.Field(6).(*array.Int64Builder).Append(from.Offset)
		b.Field(7).(*array.Int32Builder).Append(int32(row))
		key(8, text(ColHome, row))
		key(9, text(ColDevice, row))
		b.Field(10).(*array.StringBuilder).Append(body)
	}
	return b.NewRecord(), nil
}

// rowJSON is one row as a JSON object. Columns whose value JSON cannot hold (NaN, infinities) are written as
// their text: a dead letter must never die of what it carries.
func rowJSON(rec arrow.Record, row int) (string, error) {
	out := make(map[string]any, rec.NumCols())
	for i, f := range rec.Schema().Fields() {
		col := rec.Column(i)
		if col.IsNull(row) {
			continue
		}
		v := col.GetOneForMarshal(row)
		if _, err := json.Marshal(v); err != nil {
			v = col.ValueStr(row)
		}
		out[f.Name] = v
	}
	b, err := json.Marshal(out)
	return string(b), err
}
