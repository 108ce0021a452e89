package streams

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Requests and responses that this package writes and reads itself. kafka-go hands a protocol.RawExchanger the
// connection, one request at a time, and closes it after any error. After a cancelled context an exchange may still be
// running: the bytes of its request are never written to again.

// correlation is the id of all requests of this package: only one is under way on a connection.
const correlation = 0x686c

// buffers are for fetched and encoded record batches, handed back by those who are sure to be the last to use them.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// bufferKeptMax bounds, in bytes, what a pooled buffer may hold on to.
const bufferKeptMax = 16 << 20

func takeBuffer(n int) []byte {
	b := *buffers.Get().(*[]byte)
	if cap(b) < n {
		b = make([]byte, 0, n)
	}
	return b[:0]
}

func giveBuffer(b []byte) {
	if cap(b) > 0 && cap(b) <= bufferKeptMax {
		buffers.Put(&b)
	}
}

// beginRequest writes a request header; flexible requests (KIP-482) carry tagged fields, none of them ours.
func beginRequest(dst []byte, api protocol.ApiKey, version int16, clientID string, flexible bool) []byte {
	be := binary.BigEndian
	dst = append(dst, 0, 0, 0, 0)
	dst = be.AppendUint16(dst, uint16(api))
	dst = be.AppendUint16(dst, uint16(version))
	dst = be.AppendUint32(dst, correlation)
	dst = appendString(dst, clientID)
	if flexible {
		dst = append(dst, 0)
	}
	return dst
}

func endRequest(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func appendString(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

// swap sends a request and reads the whole response body into a pooled buffer, of at most limit bytes.
func swap(rw io.ReadWriter, request []byte, limit int) ([]byte, error) {
	if _, err := rw.Write(request); err != nil {
		return nil, err
	}
	var h [8]byte
	if _, err := io.ReadFull(rw, h[:]); err != nil {
		return nil, err
	}
	n := int64(int32(binary.BigEndian.Uint32(h[:]))) - 4
	if n < 0 || n > int64(limit) {
		return nil, fmt.Errorf("response of %d bytes; the limit is %d: is this a Kafka broker?", n, limit)
	}
	if id := binary.BigEndian.Uint32(h[4:]); id != correlation {
		return nil, fmt.Errorf("response to request %d; want %d", id, correlation)
	}
	b := takeBuffer(int(n))[:n]
	if _, err := io.ReadFull(rw, b); err != nil {
		return nil, err
	}
	return b, nil
}

// responseBytesMax bounds responses other than fetches.
const responseBytesMax = 64 << 20

// parser reads a response. After the first thing that does not fit all reads give zero and err is set.
type parser struct {
	b   []byte
	err error
}

func (p *parser) take(n int) []byte {
	if p.err == nil && (n < 0 || n > len(p.b)) {
		p.err = fmt.Errorf("response ends early: %d bytes wanted, %d left", n, len(p.b))
	}
	if p.err != nil {
		return nil
	}
	b := p.b[:n:n]
	p.b = p.b[n:]
	return b
}

func (p *parser) int8() int8 {
	if b := p.take(1); b != nil {
		return int8(b[0])
	}
	return 0
}

func (p *parser) int16() int16 {
	if b := p.take(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (p *parser) int32() int32 {
	if b := p.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (p *parser) int64() int64 {
	if b := p.take(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

// string reads a nullable string; null is "".
func (p *parser) string() string {
	n := p.int16()
	if n == -1 {
		return ""
	}
	return string(p.take(int(n)))
}

// array reads the length of an array whose elements take min bytes at least.
func (p *parser) array(min int) int {
	n := int(p.int32())
	if n == -1 {
		return 0
	}
	return p.bounded(n, min)
}

func (p *parser) bounded(n, min int) int {
	if p.err == nil && (n < 0 || n > len(p.b)/min) {
		p.err = fmt.Errorf("response with %d elements in %d bytes", n, len(p.b))
	}
	if p.err != nil {
		return 0
	}
	return n
}

func (p *parser) uvarint() uint64 {
	v, n := binary.Uvarint(p.b)
	if n <= 0 {
		if p.err == nil {
			p.err = errShort
		}
		return 0
	}
	p.take(n)
	return v
}

func (p *parser) compactString() string {
	n := p.uvarint()
	if n == 0 {
		return ""
	}
	return string(p.take(p.bounded(int(n-1), 1)))
}

func (p *parser) compactArray(min int) int {
	n := p.uvarint()
	if n == 0 {
		return 0
	}
	return p.bounded(int(n-1), min)
}

// tags skips the tagged fields of a flexible response.
func (p *parser) tags() {
	for range p.bounded(int(p.uvarint()), 2) {
		p.uvarint()
		p.take(p.bounded(int(p.uvarint()), 1))
	}
}

// leaderOf routes a request to the broker that leads a partition.
func leaderOf(c protocol.Cluster, stream string, partition int32) (protocol.Broker, error) {
	p, ok := c.Topics[stream].Partitions[partition]
	if !ok {
		return protocol.Broker{ID: -1}, kafka.UnknownTopicOrPartition
	}
	b, ok := c.Brokers[p.Leader]
	if !ok {
		return protocol.Broker{ID: -1}, kafka.LeaderNotAvailable
	}
	return b, nil
}
