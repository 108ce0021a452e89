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
	b := NewDeadBuilder(mem)
	defer b.Release()
	if err := b.Rows(in, stage, from, bad); err != nil {
		return nil, err
	}
	return b.Record(), nil
}

// DeadBuilder gathers dead letters into records of [DeadSchema]. It is used by one goroutine at a time.
type DeadBuilder struct{ b *array.RecordBuilder }

// NewDeadBuilder returns an empty builder. Release it when done.
func NewDeadBuilder(mem memory.Allocator) *DeadBuilder {
	return &DeadBuilder{b: array.NewRecordBuilder(mem, DeadSchema)}
}

// Rows adds the rows of in that stage refused; see [DeadLetters].
func (d *DeadBuilder) Rows(in arrow.Record, stage string, from Origin, bad BadRows) error {
	rows, reason := bad.Rows, func(i int) string { return bad.Reasons[i] }
	if rows == nil {
		rows = make([]int, in.NumRows())
		for i := range rows {
			rows[i] = i
		}
		reason = func(int) string { return bad.Reasons[0] }
	}
	instant := func(name string, row int) Micros {
		if v, err := Instants(in, name); err == nil && !in.Column(in.Schema().FieldIndices(name)[0]).IsNull(row) {
			return Micros(v[row])
		}
		return from.Watermark
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
			return fmt.Errorf("dead letter of %s: row %d of %s/%d@%d: %w", stage, row, from.Stream, from.Partition, from.Offset, err)
		}
		d.add(deadLetter{
			time: instant(ColTime, row), received: instant(ColReceived, row),
			stage: stage, reason: reason(i), from: from, row: row,
			home: text(ColHome, row), device: text(ColDevice, row), body: body,
		})
	}
	return nil
}

// Message adds one dead letter for a whole message that holds no rows anyone could read.
func (d *DeadBuilder) Message(stage string, from Origin, reason string) {
	d.add(deadLetter{time: from.Watermark, received: from.Watermark, stage: stage, reason: reason, from: from, body: "null"})
}

// Foreign adds one dead letter for a row of a message that others wrote, -1 for all of it. text is what of it is kept: it
// becomes a JSON string.
func (d *DeadBuilder) Foreign(node string, from Origin, row int, reason, text string) {
	body, err := json.Marshal(text) // what is no UTF-8 in it is replaced
	if err != nil {
		body = []byte("null")
	}
	d.add(deadLetter{time: from.Watermark, received: from.Watermark, stage: node, reason: reason, from: from, row: row, body: string(body)})
}

type deadLetter struct {
	time, received     Micros
	stage, reason      string
	from               Origin
	row                int
	home, device, body string
}

func (d *DeadBuilder) add(l deadLetter) {
	instant := func(col int, at Micros) { d.b.Field(col).(*array.TimestampBuilder).Append(arrow.Timestamp(at)) }
	key := func(col int, s string) {
		if b := d.b.Field(col).(*array.BinaryDictionaryBuilder); s == "" && DeadSchema.Field(col).Nullable {
			b.AppendNull()
		} else {
			appendKey(b, s)
		}
	}
	instant(0, l.time)
	instant(1, l.received)
	key(2, l.stage)
	key(3, l.reason)
	key(4, l.from.Stream)
	d.b.Field(5).(*array.Int32Builder).Append(l.from.Partition)
	d.b.Field(6).(*array.Int64Builder).Append(l.from.Offset)
	d.b.Field(7).(*array.Int32Builder).Append(int32(l.row))
	key(8, l.home)
	key(9, l.device)
	d.b.Field(10).(*array.StringBuilder).Append(l.body)
}

// Record gives away what was gathered, and begins anew. The caller releases the record.
func (d *DeadBuilder) Record() arrow.Record {
	rec := d.b.NewRecord()
	for i := range DeadSchema.NumFields() {
		if b, ok := d.b.Field(i).(*array.BinaryDictionaryBuilder); ok {
			b.ResetFull() // or its keys would pile up from record to record
		}
	}
	return rec
}

// Release frees the builder's memory.
func (d *DeadBuilder) Release() { d.b.Release() }

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
