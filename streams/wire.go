package streams

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"hearthline/flow"
)

// The batch on the wire, format 1.
//
// A Kafka message has no key. Its value is empty for heartbeats and ends. For rows it is a sequence of Arrow IPC
// messages (the encapsulated format: 0xFFFFFFFF, metadata length, metadata, body) without the schema message and
// without the end-of-stream mark: one dictionary batch for each dictionary, in the order of their ids, then one
// record batch. The whole of it is compressed as the header hl.body says. Putting the schema message of
// [SchemaStream] before it makes it an Arrow IPC stream that any Arrow library reads.
//
// Headers, in any order, each at most once; others are left alone, so that tracing tools may add theirs. Numbers are
// big-endian, instants µs since 1970 UTC.
//
//	name         bytes  content
//	hl.kind      2      format (1), kind (0 rows, 1 heartbeat, 2 end)
//	hl.producer  1–255  UTF-8: lineage, the producer's name
//	hl.stream    0–249  UTF-8: lineage, the stream it was made of; left out when empty
//	hl.at        16     lineage: partition int32, offset int64, k int32
//	hl.time      24     watermark int64, bounds: first int64, last int64
//	hl.run       0–255  UTF-8: the run that ends; left out when empty
//	hl.schema    8      rows only: fingerprint of the schema
//	traceparent  55     W3C Trace Context, of the span that made it; left out when none was sampled
//	hl.body      9      rows only: codec uint8 (0 none, 1 lz4 block, 2 zstd frame), rows int32, size before compression int32
const (
	wireFormat = 1
	// Formats up to so many ahead are taken for those of newer versions; anything else is no batch of ours.
	formatsAhead = 16

	headerKind     = "hl.kind"
	headerProducer = "hl.producer"
	headerStream   = "hl.stream"
	headerAt       = "hl.at"
	headerTime     = "hl.time"
	headerRun      = "hl.run"
	headerSchema   = "hl.schema"
	headerBody     = "hl.body"
	headerTrace    = "traceparent" // not ours alone: what is none is left alone

	nameBytesMax   = 255
	streamBytesMax = 249 // Kafka's limit for a topic
)

// header is one header of a Kafka message.
type header struct {
	key   string
	value []byte
}

// envelope is a batch without its rows, and what is needed to decode those.
type envelope struct {
	batch flow.Batch // Record is nil
	print fingerprint
	codec codec
	rows  int32
	size  int32 // of the value before compression
}

var errForeign = errors.New("it is no batch: header hl.kind is missing; something else writes to this stream")

// checkEnvelope is asserted when a batch is written and again when it is read.
func checkEnvelope(e *envelope) error {
	b := &e.batch
	switch {
	case b.Kind > flow.KindEnd:
		return fmt.Errorf("unknown %v", b.Kind)
	case b.Lineage.Producer == "" || len(b.Lineage.Producer) > nameBytesMax || !utf8.ValidString(b.Lineage.Producer):
		return fmt.Errorf("lineage: producer %.40q; want 1 to %d bytes of UTF-8", b.Lineage.Producer, nameBytesMax)
	case len(b.Lineage.Stream) > streamBytesMax || !utf8.ValidString(b.Lineage.Stream):
		return fmt.Errorf("lineage: stream %.40q; want at most %d bytes of UTF-8", b.Lineage.Stream, streamBytesMax)
	case b.Lineage.Partition < 0 || b.Lineage.Offset < 0 || b.Lineage.K < 0:
		return fmt.Errorf("lineage: %v at offset %d, k %d; want none below zero", b.Lineage.Source, b.Lineage.Offset, b.Lineage.K)
	case len(b.Run) > nameBytesMax || !utf8.ValidString(b.Run):
		return fmt.Errorf("run %.40q; want at most %d bytes of UTF-8", b.Run, nameBytesMax)
	case b.Bounds.First > b.Bounds.Last:
		return fmt.Errorf("bounds: first event time %d is after the last, %d", b.Bounds.First, b.Bounds.Last)
	case e.rows < 0 || e.size < 0:
		return fmt.Errorf("%d rows in %d bytes; want none below zero", e.rows, e.size)
	}
	return nil
}

// appendHeaders gives the headers of e. They share one allocation.
func appendHeaders(dst []header, e *envelope) []header {
	b := &e.batch
	buf := make([]byte, 0, 64+len(b.Lineage.Producer)+len(b.Lineage.Stream)+len(b.Run))
	put := func(key string, fill func([]byte) []byte) {
		start := len(buf)
		buf = fill(buf)
		dst = append(dst, header{key, buf[start:len(buf):len(buf)]})
	}
	text := func(s string) func([]byte) []byte { return func(p []byte) []byte { return append(p, s...) } }
	be := binary.BigEndian
	put(headerKind, func(p []byte) []byte { return append(p, wireFormat, byte(b.Kind)) })
	put(headerProducer, text(b.Lineage.Producer))
	if b.Lineage.Stream != "" {
		put(headerStream, text(b.Lineage.Stream))
	}
	put(headerAt, func(p []byte) []byte {
		p = be.AppendUint32(p, uint32(b.Lineage.Partition))
		p = be.AppendUint64(p, uint64(b.Lineage.Offset))
		return be.AppendUint32(p, uint32(b.Lineage.K))
	})
	put(headerTime, func(p []byte) []byte {
		p = be.AppendUint64(p, uint64(b.Watermark))
		p = be.AppendUint64(p, uint64(b.Bounds.First))
		return be.AppendUint64(p, uint64(b.Bounds.Last))
	})
	if b.Run != "" {
		put(headerRun, text(b.Run))
	}
	if b.Trace != "" {
		put(headerTrace, text(b.Trace))
	}
	if b.Kind == flow.KindRows {
		put(headerSchema, func(p []byte) []byte { return append(p, e.print[:]...) })
		put(headerBody, func(p []byte) []byte {
			p = be.AppendUint32(append(p, byte(e.codec)), uint32(e.rows))
			return be.AppendUint32(p, uint32(e.size))
		})
	}
	return dst
}

// parseHeaders reads what appendHeaders wrote, strictly.
func parseHeaders(headers []header) (envelope, error) {
	var e envelope
	var seen [8]bool
	for _, h := range headers {
		i, size := headerOf(h.key)
		if h.key == headerTrace && len(h.value) == flow.TraceparentBytes && flow.Traced(string(h.value)) {
			e.batch.Trace = string(h.value)
		}
		if i < 0 {
			continue
		}
		if seen[i] {
			return e, fmt.Errorf("header %s stands twice", h.key)
		}
		seen[i] = true
		if size >= 0 && len(h.value) != size {
			return e, fmt.Errorf("header %s has %d bytes; want %d", h.key, len(h.value), size)
		}
		if size < 0 && len(h.value) > nameBytesMax {
			return e, fmt.Errorf("header %s has %d bytes; want at most %d", h.key, len(h.value), nameBytesMax)
		}
		if err := e.read(h); err != nil {
			return e, err
		}
	}
	if !seen[0] {
		return e, errForeign
	}
	rows := e.batch.Kind == flow.KindRows
	for i, want := range [8]bool{1: true, 3: true, 4: true, 6: rows, 7: rows} {
		if want && !seen[i] {
			return e, fmt.Errorf("header %s is missing", headerNames[i].key)
		}
		if !rows && i >= 6 && seen[i] {
			return e, fmt.Errorf("header %s on a batch without rows", headerNames[i].key)
		}
	}
	return e, checkEnvelope(&e)
}

// headerNames are our headers and their sizes, -1 where those vary.
var headerNames = [8]struct {
	key  string
	size int
}{
	{headerKind, 2}, {headerProducer, -1}, {headerStream, -1}, {headerAt, 16},
	{headerTime, 24}, {headerRun, -1}, {headerSchema, 8}, {headerBody, 9},
}

func headerOf(key string) (index, size int) {
	for i := range headerNames {
		if headerNames[i].key == key {
			return i, headerNames[i].size
		}
	}
	return -1, 0
}

func (e *envelope) read(h header) error {
	be, p, b := binary.BigEndian, h.value, &e.batch
	switch h.key {
	case headerKind:
		if p[0] > wireFormat && p[0] < wireFormat+formatsAhead {
			return fmt.Errorf("wire format %d, this program knows %d: %w", p[0], wireFormat, ErrNewer)
		}
		if p[0] != wireFormat {
			return fmt.Errorf("wire format %d; this program knows %d: it was written by another version", p[0], wireFormat)
		}
		if b.Kind = flow.Kind(p[1]); b.Kind > flow.KindEnd {
			return fmt.Errorf("unknown %v", b.Kind)
		}
	case headerProducer:
		b.Lineage.Producer = string(p)
	case headerStream:
		b.Lineage.Stream = string(p)
	case headerAt:
		b.Lineage.Partition = int32(be.Uint32(p))
		b.Lineage.Offset = int64(be.Uint64(p[4:]))
		b.Lineage.K = int32(be.Uint32(p[12:]))
	case headerTime:
		b.Watermark = flow.Micros(be.Uint64(p))
		b.Bounds.First = flow.Micros(be.Uint64(p[8:]))
		b.Bounds.Last = flow.Micros(be.Uint64(p[16:]))
	case headerRun:
		b.Run = string(p)
	case headerSchema:
		copy(e.print[:], p)
	case headerBody:
		e.codec = codec(p[0])
		e.rows = int32(be.Uint32(p[1:]))
		e.size = int32(be.Uint32(p[5:]))
	}
	return nil
}
