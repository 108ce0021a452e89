package streams

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// fetched is a broker's answer about one partition.
type fetched struct {
	code      kafka.Error
	end       int64 // last stable offset: what may be read ends before it
	aborted   []aborted
	buf       []byte // pooled; records point into it
	records   []byte
	responded bool // the partition was in the answer
}

func (f *fetched) ApiKey() protocol.ApiKey { return protocol.Fetch }

// aborted is a transaction whose messages must not be seen.
type aborted struct {
	producerID  int64
	firstOffset int64
}

type fetchRequest struct {
	at      place
	request []byte
	limit   int
}

func (r *fetchRequest) ApiKey() protocol.ApiKey                 { return protocol.Fetch }
func (r *fetchRequest) Required(map[protocol.ApiKey]int16) bool { return true }
func (r *fetchRequest) Broker(c protocol.Cluster) (protocol.Broker, error) {
	return leaderOf(c, r.at.stream, r.at.partition)
}

func (r *fetchRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	b, err := swap(rw, r.request, r.limit)
	if err != nil {
		return nil, err
	}
	f, err := parseFetch(b)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func encodeFetch(clientID string, at place, offset int64, wait time.Duration, bytesMax int) []byte {
	be := binary.BigEndian
	b := beginRequest(make([]byte, 0, 128), protocol.Fetch, versionFetch, clientID, false)
	b = be.AppendUint32(b, 0xffffffff) // no replica
	b = be.AppendUint32(b, uint32(wait.Milliseconds()))
	b = be.AppendUint32(b, 1) // answer as soon as there is one byte
	b = be.AppendUint32(b, uint32(bytesMax))
	b = append(b, 1) // read committed
	b = be.AppendUint32(b, 0)
	b = be.AppendUint32(b, 0xffffffff) // no session
	b = be.AppendUint32(b, 1)
	b = appendString(b, at.stream)
	b = be.AppendUint32(b, 1)
	b = be.AppendUint32(b, uint32(at.partition))
	b = be.AppendUint32(b, 0xffffffff) // any leader epoch
	b = be.AppendUint64(b, uint64(offset))
	b = be.AppendUint64(b, 0xffffffffffffffff)
	b = be.AppendUint32(b, uint32(bytesMax))
	b = be.AppendUint32(b, 0)
	return endRequest(b)
}

func parseFetch(b []byte) (*fetched, error) {
	p := parser{b: b}
	f := &fetched{buf: b}
	p.int32()
	f.code = kafka.Error(p.int16())
	p.int32()
	for range p.array(6) {
		p.string()
		for range p.array(38) {
			f.responded = true
			p.int32()
			if code := kafka.Error(p.int16()); code != 0 {
				f.code = code
			}
			p.int64()
			f.end = p.int64()
			p.int64()
			for range p.array(16) {
				f.aborted = append(f.aborted, aborted{p.int64(), p.int64()})
			}
			f.records = p.take(max(int(p.int32()), 0))
		}
	}
	if p.err != nil {
		return nil, fmt.Errorf("fetch response: %w", p.err)
	}
	slices.SortFunc(f.aborted, func(a, b aborted) int { return int(min(max(a.firstOffset-b.firstOffset, -1), 1)) })
	return f, nil
}

// item is a message, or the place where none could be read.
type item struct {
	message
	bytes int // of the message on the wire, with its share of the record batch's header
	err   error
}

// chunk is what one fetch brought. Its messages point into buf.
type chunk struct {
	items []item
	end   int64
	buf   []byte
}

func (c *chunk) release() {
	giveBuffer(c.buf)
	c.buf, c.items = nil, nil
}

// fetcher reads a partition forward. It is used by one goroutine.
type fetcher struct {
	c       *Client
	at      place
	offset  int64     // of the next message wanted
	doubted int64     // first offset of a record batch whose checksum failed, plus one
	bytes   int       // asked for; 0 is the configured number
	beyond  time.Time // since when the broker says that offset is behind its end; zero: it does not
}

// beyondMax is how long a broker is not believed that its partition ends before an offset. One that was cut off from the others, while one
// of them took its place, does not know it and has not what came since; clients are told of the other as soon as they ask that.
const beyondMax = 10 * time.Second

// fetchBytesMax bounds what one fetch may ask for, in bytes, when a record batch is larger than the configured number.
const fetchBytesMax = 128 << 20

// fetch asks once, waiting up to wait for something to come, and moves on behind what came.
func (f *fetcher) fetch(ctx context.Context, wait time.Duration) (chunk, error) {
	if f.bytes == 0 {
		f.bytes = f.c.cfg.FetchBytesMax
	}
	// A broker sends a first record batch that is larger than asked for as a whole (KIP-74).
	limit := f.bytes + max(f.c.cfg.MessageBytesMax, 1<<20) + 1<<20
	res, err := f.c.exchange(ctx, protocol.Fetch, wait, &fetchRequest{f.at, encodeFetch(f.c.cfg.ClientID, f.at, f.offset, wait, f.bytes), limit})
	if err != nil {
		return chunk{}, err
	}
	got := res.(*fetched)
	switch {
	case got.code == kafka.OffsetOutOfRange:
		giveBuffer(got.buf)
		return chunk{}, f.outOfRange(ctx)
	case got.code != 0:
		giveBuffer(got.buf)
		return chunk{}, fmt.Errorf("fetch %s/%d: %w", f.at.stream, f.at.partition, got.code)
	case !got.responded:
		giveBuffer(got.buf)
		return chunk{}, fmt.Errorf("fetch %s/%d: the broker left it out of its answer", f.at.stream, f.at.partition)
	}
	f.beyond = time.Time{}
	f.c.count.bytesIn.Add(int64(len(got.records)))
	out, err := f.split(got)
	if err != nil {
		giveBuffer(got.buf)
		return chunk{}, err
	}
	return out, nil
}

func (f *fetcher) outOfRange(ctx context.Context) error {
	first, next, err := f.c.Bounds(ctx, f.at.stream, f.at.partition)
	if err != nil {
		return err
	}
	if f.offset >= first && f.offset <= next {
		return fmt.Errorf("fetch %s/%d: %w", f.at.stream, f.at.partition, kafka.OffsetNotAvailable) // in range again: ask again
	}
	out := &OutOfRangeError{Stream: f.at.stream, Partition: f.at.partition, Offset: f.offset, First: first, Next: next}
	if f.offset > next && f.beyond.IsZero() {
		f.beyond = time.Now()
	}
	if f.offset > next && time.Since(f.beyond) < beyondMax {
		return out
	}
	return final{out}
}

// split takes the record batches apart, leaving out what must not be seen: messages before the offset, markers, and
// those of aborted transactions.
func (f *fetcher) split(got *fetched) (chunk, error) {
	out := chunk{end: got.end, buf: got.buf}
	inAborted := map[int64]bool{}
	b, progress := got.records, false
	for len(b) > 0 {
		v, rest, err := cutBatch(b)
		if errors.Is(err, errPartial) {
			if !progress && f.bytes < fetchBytesMax {
				f.bytes = min(f.bytes*2, fetchBytesMax)
				return out, fmt.Errorf("fetch %s/%d: %w: asking for %d bytes", f.at.stream, f.at.partition, err, f.bytes)
			}
			break
		}
		if err != nil {
			return out, final{fmt.Errorf("fetch %s/%d at offset %d: %w: the log is damaged here; skip it by committing an offset behind it",
				f.at.stream, f.at.partition, f.offset, err)}
		}
		b, progress = rest, true
		if v.last < f.offset {
			continue
		}
		if !f.open(&out, &v, got, inAborted) {
			break
		}
	}
	return out, nil
}

// open adds the messages of one record batch. It says whether to go on to the next.
func (f *fetcher) open(out *chunk, v *batchView, got *fetched, inAborted map[int64]bool) bool {
	if err := v.checksum(); err != nil {
		// Once, it may have happened on the way here.
		if f.doubted != v.base+1 {
			f.doubted = v.base + 1
			return false
		}
		f.bad(out, v, err)
		return true
	}
	for len(got.aborted) > 0 && got.aborted[0].firstOffset <= v.last {
		inAborted[got.aborted[0].producerID] = true
		got.aborted = got.aborted[1:]
	}
	switch {
	case v.attributes&attrControl != 0:
		abort, err := v.aborts()
		if err != nil {
			f.bad(out, v, err)
			return true
		}
		if abort {
			delete(inAborted, v.producerID)
		}
	case v.attributes&attrTransactional != 0 && inAborted[v.producerID]:
		f.c.count.aborted.Add(int64(max(v.count, 0)))
	default:
		msgs, err := v.messages(f.c.cfg.DecodedBytesMax)
		if err != nil {
			f.bad(out, v, err)
			return true
		}
		for _, m := range msgs {
			if m.offset >= f.offset {
				out.items = append(out.items, item{message: m, bytes: len(v.raw) / len(msgs)})
			}
		}
	}
	f.offset = v.last + 1
	return true
}

func (f *fetcher) bad(out *chunk, v *batchView, err error) {
	offset := max(v.base, f.offset)
	out.items = append(out.items, item{message: message{offset: offset}, bytes: len(v.raw),
		err: fmt.Errorf("record batch of offsets %d to %d: %w", offset, v.last, err)})
	f.offset = v.last + 1
}
