package streams

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// decodedSlack is what decoding may allocate beyond the limit, in bytes: arrow rounds every buffer up to 64.
const decodedSlack = 1 << 20

// encode makes a Kafka message of a batch, and publishes its schema when that is new. The batch is borrowed. Errors
// that are final are the batch's fault.
func (c *Client) encode(ctx context.Context, b *flow.Batch) (message, error) {
	e := envelope{batch: *b}
	if (b.Kind == flow.KindRows) != (b.Record != nil) {
		return message{}, final{fmt.Errorf("a batch of kind %v, record: %v: rows have one, the others none", b.Kind, b.Record != nil)}
	}
	if err := checkEnvelope(&e); err != nil {
		return message{}, final{err}
	}
	if b.Kind != flow.KindRows {
		return message{headers: appendHeaders(make([]header, 0, 6), &e)}, nil
	}
	rows := b.Record.NumRows()
	if rows > rowsMax {
		return message{}, final{fmt.Errorf("%d rows: %w: the limit is %d", rows, ErrTooLarge, rowsMax)}
	}
	schema, err := c.schemas.publish(ctx, b.Record.Schema())
	if err != nil {
		return message{}, err
	}
	body, err := encodeRecord(takeBuffer(0), b.Record, memory.DefaultAllocator)
	if err != nil {
		return message{}, final{fmt.Errorf("encode %d rows: %w", rows, err)}
	}
	defer giveBuffer(body)
	if len(body) > c.cfg.DecodedBytesMax {
		return message{}, final{fmt.Errorf("%d rows take %d bytes, decoded_bytes_max is %d: %w", rows, len(body), c.cfg.DecodedBytesMax, ErrTooLarge)}
	}
	c.count.rawOut.Add(int64(len(body)))
	var value []byte
	value, e.codec = compress(takeBuffer(0), body, c.codec)
	e.print, e.rows, e.size = schema.print, int32(rows), int32(len(body))
	return message{value: value, headers: appendHeaders(make([]header, 0, 8), &e)}, nil
}

// rowsMax bounds the rows of one batch.
const rowsMax = 1 << 24

// decode makes a batch of a Kafka message. Errors that are final are the message's fault.
func (c *Client) decode(ctx context.Context, m *message) (flow.Batch, error) {
	e, err := parseHeaders(m.headers)
	if errors.Is(err, ErrNewer) {
		return flow.Batch{}, err // not the message's fault: it must be neither passed over nor set aside
	}
	if err != nil {
		return flow.Batch{}, final{err}
	}
	if e.batch.Kind != flow.KindRows {
		if len(m.value) != 0 {
			return flow.Batch{}, final{fmt.Errorf("a batch of kind %v with a value of %d bytes", e.batch.Kind, len(m.value))}
		}
		return e.batch, nil
	}
	if int64(e.size) > int64(len(m.value))*expansionMax || int(e.size) > c.cfg.DecodedBytesMax || e.rows > rowsMax {
		return flow.Batch{}, final{fmt.Errorf("%d bytes of value claim to be %d rows in %d bytes; the limit is %d", len(m.value), e.rows, e.size, c.cfg.DecodedBytesMax)}
	}
	schema, err := c.schemas.get(ctx, e.print)
	if err != nil {
		return flow.Batch{}, err
	}
	body := m.value
	if e.codec != codecNone || len(body) != int(e.size) {
		body = takeBuffer(int(e.size))[:e.size]
		defer giveBuffer(body)
		if err := decompress(body, m.value, e.codec); err != nil {
			return flow.Batch{}, final{err}
		}
	}
	c.count.rawIn.Add(int64(len(body)))
	e.batch.Record, err = decodeRecord(body, schema, int64(e.rows), c.cfg.Memory, c.cfg.DecodedBytesMax+decodedSlack)
	if err != nil {
		return flow.Batch{}, final{err}
	}
	return e.batch, nil
}
