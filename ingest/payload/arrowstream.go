package payload

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/ingest/reason"
)

// arrowExpansionMax is how many times its payload's size an Arrow stream may take in memory, when its buffers are
// compressed.
const arrowExpansionMax = 32

// arrow reads an Arrow IPC stream whose columns bear the names of [flow.EventSchema]: device (HTTP only), metric,
// and value or text; optionally home, unit, time, seq, attributes. Strings may be utf8, large_utf8 or
// dictionaries of utf8; value any float or integer; time a timestamp of any unit (no zone is UTC), or an integer
// of milliseconds; attributes a map of utf8 to utf8. Other columns are refused, as other members are in JSON.
//
// The reader trusts nothing: lengths are held against the payload before anything is allocated, decompression
// against a limit, and what the Arrow library panics on is malformed.
func (d *Decoder) arrow(payload []byte, s *Scope) (err error) {
	defer func() {
		p := recover()
		if r, ok := p.(*reason.Refusal); ok {
			err = r
		} else if p != nil {
			err = reason.Refuse(reason.Malformed, "not a valid Arrow IPC stream: %v", p)
		}
	}()
	mem := &boundedAllocator{left: int64(len(payload))*arrowExpansionMax + 1<<16}
	frames := &arrowFrames{rest: payload}
	defer frames.Release()
	r, err := ipc.NewReaderFromMessageReader(frames, ipc.WithAllocator(mem))
	if err != nil {
		return reason.Refuse(reason.Malformed, "not an Arrow IPC stream: %v", err)
	}
	defer r.Release()
	if err := arrowColumns(r.Schema(), s); err != nil {
		return err
	}
	for r.Next() {
		if err := d.record(r.Record(), s); err != nil {
			return err
		}
	}
	if err := r.Err(); err != nil && err != io.EOF {
		return reason.Refuse(reason.Malformed, "Arrow IPC stream: %v", err)
	}
	return nil
}

// arrowColumns refuses columns that nobody would read.
func arrowColumns(schema *arrow.Schema, s *Scope) error {
	for _, f := range schema.Fields() {
		if len(schema.FieldIndices(f.Name)) > 1 {
			return reason.Refuse(reason.Field, "column %.40q is given twice", f.Name)
		}
		switch f.Name {
		case flow.ColHome, flow.ColDevice, flow.ColMetric, flow.ColValue, flow.ColText, flow.ColUnit, flow.ColTime, flow.ColSeq, flow.ColAttributes:
		default:
			return reason.Refuse(reason.Field, "unknown column %.40q; known: home device metric value text unit time seq attributes", f.Name)
		}
	}
	if !schema.HasField(flow.ColDevice) && s.Device == "" || !schema.HasField(flow.ColMetric) {
		return reason.Refuse(reason.Missing, "the stream has no column device or metric")
	}
	return nil
}

// record reads the rows of one record batch.
func (d *Decoder) record(rec arrow.Record, s *Scope) error {
	if rec.NumRows() > int64(s.RowsMax-len(d.rows)) {
		return reason.Refuse(reason.Payload, "more than %d readings in one payload", s.RowsMax)
	}
	first := len(d.rows)
	for range rec.NumRows() {
		d.rows = append(d.rows, Row{})
	}
	for i, f := range rec.Schema().Fields() {
		if err := arrowColumn(f.Name, rec.Column(i), d.rows[first:]); err != nil {
			return err
		}
	}
	for i := first; i < len(d.rows); i++ {
		s.check(&d.rows[i])
	}
	return nil
}

// arrowColumn fills one member of all rows. Strings are copied: the record's memory may be an allocator's.
func arrowColumn(name string, col arrow.Array, rows []Row) error {
	if col.Len() != len(rows) {
		return reason.Refuse(reason.Malformed, "column %q has %d rows; the record has %d", name, col.Len(), len(rows))
	}
	switch name {
	case flow.ColValue, flow.ColSeq, flow.ColTime:
		return arrowNumbers(name, col, rows)
	case flow.ColAttributes:
		return arrowAttributes(col, rows)
	}
	at, err := arrowStrings(name, col)
	if err != nil {
		return err
	}
	for i := range rows {
		if col.IsNull(i) {
			continue
		}
		v := strings.Clone(at(i))
		switch r := &rows[i]; name {
		case flow.ColHome:
			r.Home = v
		case flow.ColDevice:
			r.Device = v
		case flow.ColMetric:
			r.Metric = v
		case flow.ColUnit:
			r.Unit = v
		case flow.ColText:
			r.Text, r.HasText = v, true
		}
	}
	return nil
}

func arrowStrings(name string, col arrow.Array) (func(i int) string, error) {
	switch c := col.(type) {
	case *array.String:
		return c.Value, nil
	case *array.LargeString:
		return c.Value, nil
	case *array.Dictionary:
		values, err := arrowStrings(name, c.Dictionary())
		if err != nil {
			return nil, err
		}
		return func(i int) string { return values(c.GetValueIndex(i)) }, nil
	}
	return nil, reason.Refuse(reason.Field, "column %q is a %s; want utf8 or a dictionary of it", name, col.DataType())
}

func arrowNumbers(name string, col arrow.Array, rows []Row) error {
	integer := arrowInteger(col)
	var float func(i int) float64
	switch c := col.(type) {
	case *array.Float64:
		float = c.Value
	case *array.Float32:
		float = func(i int) float64 { return float64(c.Value(i)) }
	case *array.Timestamp:
		if name != flow.ColTime {
			return reason.Refuse(reason.Field, "column %q is a %s; want a number", name, col.DataType())
		}
		unit := c.DataType().(*arrow.TimestampType).Unit
		for i := range rows {
			if !c.IsNull(i) {
				rows[i].Time, rows[i].Timing = timestampMicros(int64(c.Value(i)), unit), timeAbsolute
			}
		}
		return nil
	default:
		if integer == nil {
			return reason.Refuse(reason.Field, "column %q is a %s; want a number", name, col.DataType())
		}
		float = func(i int) float64 { return float64(integer(i)) }
	}
	if integer == nil && name != flow.ColValue {
		return reason.Refuse(reason.Field, "column %q is a %s; want an integer", name, col.DataType())
	}
	for i := range rows {
		if col.IsNull(i) {
			continue
		}
		switch r := &rows[i]; name {
		case flow.ColValue:
			r.Value, r.HasValue = float(i), true
		case flow.ColSeq:
			r.Seq, r.HasSeq = integer(i), true
		case flow.ColTime:
			r.Time, r.Timing = timestampMicros(integer(i), arrow.Millisecond), timeAbsolute
		}
	}
	return nil
}

// arrowInteger gives the values of an integer column, nil for another one. Unsigned 64-bit columns are not taken:
// they do not fit.
func arrowInteger(col arrow.Array) func(i int) int64 {
	switch c := col.(type) {
	case *array.Int64:
		return c.Value
	case *array.Int32:
		return func(i int) int64 { return int64(c.Value(i)) }
	case *array.Int16:
		return func(i int) int64 { return int64(c.Value(i)) }
	case *array.Int8:
		return func(i int) int64 { return int64(c.Value(i)) }
	case *array.Uint32:
		return func(i int) int64 { return int64(c.Value(i)) }
	case *array.Uint16:
		return func(i int) int64 { return int64(c.Value(i)) }
	case *array.Uint8:
		return func(i int) int64 { return int64(c.Value(i)) }
	}
	return nil
}

// timestampMicros is v units in µs; what would overflow becomes an instant that no row may have.
func timestampMicros(v int64, unit arrow.TimeUnit) flow.Micros {
	scale := int64(1)
	switch unit {
	case arrow.Nanosecond:
		return flow.Micros(v / 1000)
	case arrow.Millisecond:
		scale = 1000
	case arrow.Second:
		scale = 1_000_000
	}
	if v > math.MaxInt64/scale || v < math.MinInt64/scale {
		return math.MaxInt64
	}
	return flow.Micros(v * scale)
}

func arrowAttributes(col arrow.Array, rows []Row) error {
	m, ok := col.(*array.Map)
	if !ok {
		return reason.Refuse(reason.Field, "column attributes is a %s; want a map of utf8 to utf8", col.DataType())
	}
	keys, err := arrowStrings("attributes key", m.Keys())
	if err != nil {
		return err
	}
	items, err := arrowStrings("attributes value", m.Items())
	if err != nil {
		return err
	}
	for i := range rows {
		if m.IsNull(i) {
			continue
		}
		from, to := m.ValueOffsets(i)
		if to-from > attributesMax || to < from {
			rows[i].wrong(reason.TooLong, "%d attributes; at most %d", to-from, attributesMax)
			continue
		}
		rows[i].Attributes = make([]flow.Attribute, 0, to-from)
		for k := from; k < to; k++ {
			if !m.Items().IsNull(int(k)) {
				rows[i].set(strings.Clone(keys(int(k))), strings.Clone(items(int(k))))
			}
		}
	}
	return nil
}

// arrowFrames cuts an Arrow IPC stream into messages (Arrow columnar format, "Encapsulated message format"). The
// library's own reader allocates what a length claims before it has seen a byte of it; this one looks first.
type arrowFrames struct {
	rest []byte
	msg  *ipc.Message
}

const arrowContinuation = 0xffffffff

var errFrame = fmt.Errorf("a message claims more bytes than the payload holds")

// Message implements ipc.MessageReader.
func (f *arrowFrames) Message() (*ipc.Message, error) {
	if len(f.rest) == 0 {
		return nil, io.EOF
	}
	if len(f.rest) < 8 {
		return nil, errFrame
	}
	n := binary.LittleEndian.Uint32(f.rest)
	if n == arrowContinuation {
		n = binary.LittleEndian.Uint32(f.rest[4:])
		f.rest = f.rest[8:]
	} else {
		f.rest = f.rest[4:]
	}
	if n == 0 {
		return nil, io.EOF
	}
	if uint64(n) > uint64(len(f.rest)) {
		return nil, errFrame
	}
	verifyArrow(f.rest[:n])
	meta := memory.NewBufferBytes(f.rest[:n:n])
	f.rest = f.rest[n:]
	peek := ipc.NewMessage(meta, memory.NewBufferBytes(nil))
	size := peek.BodyLen()
	peek.Release()
	if size < 0 || size > int64(len(f.rest)) {
		return nil, errFrame
	}
	f.Release()
	f.msg = ipc.NewMessage(meta, memory.NewBufferBytes(f.rest[:size:size]))
	f.rest = f.rest[size:]
	return f.msg, nil
}

// Release implements ipc.MessageReader.
func (f *arrowFrames) Release() {
	if f.msg != nil {
		f.msg.Release()
		f.msg = nil
	}
}

// Retain implements ipc.MessageReader. The decoder owns the reader alone.
func (f *arrowFrames) Retain() {}

// boundedAllocator refuses, by a panic that the decoder turns into a refusal, to give more than left bytes in all.
type boundedAllocator struct{ left int64 }

func (a *boundedAllocator) Allocate(size int) []byte {
	if size < 0 || int64(size) > a.left {
		panic("it takes too much memory")
	}
	a.left -= int64(size)
	return memory.DefaultAllocator.Allocate(size)
}

func (a *boundedAllocator) Reallocate(size int, b []byte) []byte {
	if grow := int64(size - len(b)); size < 0 || grow > a.left {
		panic("it takes too much memory")
	} else if grow > 0 {
		a.left -= grow
	}
	return memory.DefaultAllocator.Reallocate(size, b)
}

func (a *boundedAllocator) Free(b []byte) { memory.DefaultAllocator.Free(b) }
