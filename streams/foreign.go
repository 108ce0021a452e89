package streams

import (
	"context"
	"fmt"
	"time"
)

// Record is a Kafka message that need not be a batch of ours. Its memory is valid until the next call of the reader.
type Record struct {
	Offset  int64
	Time    time.Time // as its producer or the broker stamped it; zero where nobody did
	Key     []byte
	Value   []byte
	Headers []RecordHeader
}

// RecordHeader is one header of a message.
type RecordHeader struct {
	Key   string
	Value []byte
}

// Header gives the first header of a name.
func (r *Record) Header(name string) (value []byte, ok bool) {
	for i := range r.Headers {
		if r.Headers[i].Key == name {
			return r.Headers[i].Value, true
		}
	}
	return nil, false
}

// NextRecord is [Reader.Next] for streams that others write: it gives messages as they are. A [*DecodeError] is a record
// batch that cannot be read: the next call gives what comes after it.
func (r *Reader) NextRecord(ctx context.Context) (Record, error) {
	it, err := r.peek(ctx)
	if err != nil {
		return Record{}, err
	}
	r.i++
	if it.err != nil {
		r.c.count.bad.Add(1)
		return Record{}, &DecodeError{Stream: r.at.stream, Partition: r.at.partition, Offset: it.offset, Err: it.err}
	}
	r.c.count.messages.Add(1)
	rec := Record{Offset: it.offset, Key: it.key, Value: it.value}
	if it.millis > 0 {
		rec.Time = time.UnixMilli(it.millis)
	}
	for _, h := range it.headers {
		rec.Headers = append(rec.Headers, RecordHeader{h.key, h.value})
	}
	return rec, nil
}

// String is for logs: what a message says is not for them.
func (r *Record) String() string {
	return fmt.Sprintf("message at offset %d, %d bytes", r.Offset, len(r.Value))
}
