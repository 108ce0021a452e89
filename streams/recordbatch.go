package streams

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	kcompress "github.com/segmentio/kafka-go/compress"
)

// Kafka's record batch, magic 2 (Apache Kafka documentation, "Message Format", 5.3):
//
//	0 base offset int64 · 8 length int32 (of what follows) · 12 partition leader epoch int32 · 16 magic int8 ·
//	17 crc uint32 (Castagnoli, of what follows) · 21 attributes int16 · 23 last offset delta int32 ·
//	27 base timestamp int64 · 35 max timestamp int64 · 43 producer id int64 · 51 producer epoch int16 ·
//	53 base sequence int32 · 57 record count int32 · 61 records
const (
	batchHeaderBytes = 61

	attrCompression   = 0x07
	attrAppendTime    = 0x08 // the broker's time stands for all records
	attrTransactional = 0x10
	attrControl       = 0x20

	// headersMax bounds the headers of one message, ours and those that tools add.
	headersMax = 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// message is one Kafka record.
type message struct {
	offset  int64
	millis  int64 // when it was written, by its producer or broker; 0 in what is to be written
	key     []byte
	value   []byte
	headers []header
}

// appendBatch appends msgs as one record batch, which a broker takes as a whole or not at all. The time and the
// producer's identity are put in by stamp.
func appendBatch(dst []byte, msgs []message) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, batchHeaderBytes)...)
	for i, m := range msgs {
		dst = binary.AppendVarint(dst, int64(messageBytes(&m, i)))
		dst = append(dst, 0) // attributes
		dst = binary.AppendVarint(dst, 0)
		dst = binary.AppendVarint(dst, int64(i))
		dst = appendBytes(dst, m.key)
		dst = appendBytes(dst, m.value)
		dst = binary.AppendVarint(dst, int64(len(m.headers)))
		for _, h := range m.headers {
			dst = binary.AppendVarint(dst, int64(len(h.key)))
			dst = append(dst, h.key...)
			dst = appendBytes(dst, h.value)
		}
	}
	b := dst[start:]
	be := binary.BigEndian
	be.PutUint32(b[8:], uint32(len(b)-12))
	be.PutUint32(b[12:], 0xffffffff)
	b[16] = 2
	be.PutUint32(b[23:], uint32(len(msgs)-1))
	be.PutUint32(b[57:], uint32(len(msgs)))
	return dst
}

// stamp puts the time, a producer's identity and the checksum into a record batch.
func stamp(b []byte, timestampMillis, id int64, epoch int16, sequence int32) {
	be := binary.BigEndian
	be.PutUint64(b[27:], uint64(timestampMillis))
	be.PutUint64(b[35:], uint64(timestampMillis))
	be.PutUint64(b[43:], uint64(id))
	be.PutUint16(b[51:], uint16(epoch))
	be.PutUint32(b[53:], uint32(sequence))
	be.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
}

func messageBytes(m *message, i int) int {
	n := 1 + 1 + varintBytes(int64(i)) + fieldBytes(m.key) + fieldBytes(m.value) + varintBytes(int64(len(m.headers)))
	for _, h := range m.headers {
		n += varintBytes(int64(len(h.key))) + len(h.key) + fieldBytes(h.value)
	}
	return n
}

func fieldBytes(b []byte) int {
	if b == nil {
		return 1
	}
	return varintBytes(int64(len(b))) + len(b)
}

func varintBytes(v int64) int {
	u := uint64(v<<1) ^ uint64(v>>63)
	n := 1
	for ; u >= 0x80; u >>= 7 {
		n++
	}
	return n
}

// appendBytes writes a nullable field.
func appendBytes(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}

// batchView is a record batch as it lies in a fetched buffer.
type batchView struct {
	raw        []byte // the whole batch
	base, last int64  // offsets, both included
	attributes uint16
	producerID int64
	count      int
	millis     int64 // of the first record; of all where the broker stamps them
}

var errPartial = errors.New("the record batch is cut off")

// cutBatch splits the first record batch off b. errPartial means that b ends within it, as fetches may.
func cutBatch(b []byte) (v batchView, rest []byte, err error) {
	if len(b) < batchHeaderBytes {
		return v, nil, errPartial
	}
	be := binary.BigEndian
	if b[16] != 2 {
		return v, nil, fmt.Errorf("record batch of format %d; want 2: it was written before Kafka 0.11", b[16])
	}
	size := int64(int32(be.Uint32(b[8:]))) + 12
	if size < batchHeaderBytes {
		return v, nil, fmt.Errorf("record batch of %d bytes", size)
	}
	if size > int64(len(b)) {
		return v, nil, errPartial
	}
	v = batchView{
		raw:        b[:size:size],
		base:       int64(be.Uint64(b)),
		attributes: be.Uint16(b[21:]),
		producerID: int64(be.Uint64(b[43:])),
		count:      int(int32(be.Uint32(b[57:]))),
		millis:     int64(be.Uint64(b[27:])),
	}
	if v.attributes&attrAppendTime != 0 {
		v.millis = int64(be.Uint64(b[35:]))
	}
	delta := int64(int32(be.Uint32(b[23:])))
	if v.base < 0 || delta < 0 || v.base+delta < v.base {
		return v, nil, fmt.Errorf("record batch at offset %d with %d more", v.base, delta)
	}
	v.last = v.base + delta
	return v, b[size:], nil
}

// checksum says whether the batch is as it was written.
func (v *batchView) checksum() error {
	if got, want := crc32.Checksum(v.raw[21:], castagnoli), binary.BigEndian.Uint32(v.raw[17:]); got != want {
		return fmt.Errorf("checksum of the record batch at offsets %d to %d is %08x; want %08x", v.base, v.last, got, want)
	}
	return nil
}

// messages reads the records of the batch. They point into the batch's bytes, or into a decompressed copy of at
// most limit bytes: brokers may be told to compress what they store.
func (v *batchView) messages(limit int) ([]message, error) {
	body := v.raw[batchHeaderBytes:]
	if c := v.attributes & attrCompression; c != 0 {
		var err error
		if body, err = unpackBatch(body, c, limit); err != nil {
			return nil, err
		}
	}
	// A record takes seven bytes at least: a count beyond that is no reason to allocate.
	if v.count < 0 || v.count > len(body)/7 {
		return nil, fmt.Errorf("%d records in %d bytes", v.count, len(body))
	}
	p := cursor{b: body}
	out := make([]message, 0, v.count)
	for range v.count {
		m, err := p.message(v)
		if err != nil {
			return nil, err
		}
		if m.offset < v.base || m.offset > v.last {
			return nil, fmt.Errorf("record at offset %d in a batch of %d to %d", m.offset, v.base, v.last)
		}
		out = append(out, m)
	}
	if len(p.b) != 0 {
		return nil, fmt.Errorf("%d bytes too many after the last record", len(p.b))
	}
	return out, nil
}

func unpackBatch(body []byte, kind uint16, limit int) (out []byte, err error) {
	defer recovered(&err)
	if int(kind) >= len(kcompress.Codecs) || kcompress.Codecs[kind] == nil {
		return nil, fmt.Errorf("record batch with unknown compression %d", kind)
	}
	codec := kcompress.Codecs[kind]
	r := codec.NewReader(bytes.NewReader(body))
	defer func() { err = errors.Join(err, r.Close()) }()
	out, err = io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("record batch compressed by %s: %w", codec.Name(), err)
	}
	if len(out) > limit {
		return nil, fmt.Errorf("record batch compressed by %s is larger than %d bytes", codec.Name(), limit)
	}
	return out, nil
}

// aborts reads a control batch: whether it ends a transaction by aborting it.
func (v *batchView) aborts() (bool, error) {
	msgs, err := v.messages(1 << 10)
	if err != nil {
		return false, err
	}
	for _, m := range msgs {
		// Control key: version int16, type int16 (0 abort, 1 commit).
		if len(m.key) >= 4 && binary.BigEndian.Uint16(m.key[2:]) == 0 {
			return true, nil
		}
	}
	return false, nil
}

// cursor reads a record's fields and never beyond its bytes.
type cursor struct{ b []byte }

var errShort = errors.New("record ends too early")

func (c *cursor) varint() (int64, error) {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		return 0, errShort
	}
	c.b = c.b[n:]
	return v, nil
}

// bytes reads a nullable field.
func (c *cursor) bytes() ([]byte, error) {
	n, err := c.varint()
	if err != nil {
		return nil, err
	}
	if n == -1 {
		return nil, nil
	}
	if n < 0 || n > int64(len(c.b)) {
		return nil, fmt.Errorf("field of %d bytes in %d", n, len(c.b))
	}
	b := c.b[:n:n]
	c.b = c.b[n:]
	return b, nil
}

func (c *cursor) message(v *batchView) (m message, err error) {
	body, err := c.bytes()
	if err != nil {
		return m, err
	}
	r := cursor{b: body}
	if len(r.b) < 1 {
		return m, errShort
	}
	r.b = r.b[1:] // attributes
	later, err := r.varint()
	if err != nil {
		return m, err
	}
	if m.millis = v.millis; v.attributes&attrAppendTime == 0 {
		m.millis += later
	}
	delta, err := r.varint()
	if err != nil {
		return m, err
	}
	m.offset = v.base + delta
	if m.key, err = r.bytes(); err != nil {
		return m, err
	}
	if m.value, err = r.bytes(); err != nil {
		return m, err
	}
	n, err := r.varint()
	if err != nil {
		return m, err
	}
	if n < 0 || n > headersMax {
		return m, fmt.Errorf("%d headers; the limit is %d", n, headersMax)
	}
	for range n {
		key, err := r.bytes()
		if err != nil {
			return m, err
		}
		value, err := r.bytes()
		if err != nil {
			return m, err
		}
		m.headers = append(m.headers, header{string(key), value})
	}
	if len(r.b) != 0 {
		return m, fmt.Errorf("%d bytes too many in a record", len(r.b))
	}
	return m, nil
}
