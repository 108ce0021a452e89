// Package snapshot is the form in which stages write down their state: a header line that names the stage and the
// version of its layout, then numbers and strings, then a checksum. Numbers are little-endian; integers are varints
// (Protocol Buffers encoding); floats are their IEEE 754 bits, so state comes back bit for bit.
package snapshot

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"
	"strconv"
	"strings"
)

// MaxString bounds what a corrupted length can make Reader allocate, in bytes. A registry is the largest string.
const MaxString = 1 << 28

const headerEnd = '\n'

// Writer writes a snapshot. Its errors stick: Close returns the first.
type Writer struct {
	w   *bufio.Writer
	sum hash.Hash32
	tmp []byte
	err error
}

// NewWriter begins the snapshot of the state of stage, in the given version of its layout.
func NewWriter(w io.Writer, stage string, version int) *Writer {
	out := &Writer{sum: crc32.NewIEEE()}
	out.w = bufio.NewWriterSize(io.MultiWriter(w, out.sum), 64<<10)
	out.write([]byte(fmt.Sprintf("hearthline %s state %d%c", stage, version, headerEnd)))
	return out
}

func (w *Writer) write(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
}

// Uint writes v as a varint.
func (w *Writer) Uint(v uint64) { w.tmp = binary.AppendUvarint(w.tmp[:0], v); w.write(w.tmp) }

// Int writes v as a zig-zag varint.
func (w *Writer) Int(v int64) { w.tmp = binary.AppendVarint(w.tmp[:0], v); w.write(w.tmp) }

// Fixed writes v as eight bytes: for bits that are rarely small.
func (w *Writer) Fixed(v uint64) {
	w.tmp = binary.LittleEndian.AppendUint64(w.tmp[:0], v)
	w.write(w.tmp)
}

// Float writes the bits of v.
func (w *Writer) Float(v float64) { w.Fixed(math.Float64bits(v)) }

// Bool writes one byte.
func (w *Writer) Bool(v bool) {
	if v {
		w.Uint(1)
	} else {
		w.Uint(0)
	}
}

// String writes the length and the bytes of s.
func (w *Writer) String(s string) {
	w.Uint(uint64(len(s)))
	if w.err == nil {
		_, w.err = w.w.WriteString(s)
	}
}

// Bytes writes the length of b and b.
func (w *Writer) Bytes(b []byte) { w.Uint(uint64(len(b))); w.write(b) }

// Close writes the checksum. It does not close the writer below.
func (w *Writer) Close() error {
	if w.err == nil {
		w.err = w.w.Flush()
	}
	w.write(binary.LittleEndian.AppendUint32(nil, w.sum.Sum32()))
	if w.err == nil {
		w.err = w.w.Flush()
	}
	if w.err != nil {
		return fmt.Errorf("write snapshot: %w", w.err)
	}
	return nil
}

// Reader reads what Writer wrote. Its errors stick: after the first, everything reads as zero, and Close returns it.
type Reader struct {
	r    io.Reader
	buf  []byte // of readerBytes; what is in it is buf[at:end]
	at   int
	end  int
	from int    // what lies before it is in sum
	sum  uint32 // CRC-32 (IEEE) of what has been read
	err  error
}

const readerBytes = 64 << 10

// NewReader reads the header and gives the version of the layout. Another stage's snapshot, and a version above
// newest, is an error.
func NewReader(r io.Reader, stage string, newest int) (*Reader, int, error) {
	in := &Reader{r: r, buf: make([]byte, readerBytes)}
	head, err := in.header()
	if err != nil {
		return nil, 0, fmt.Errorf("read snapshot of %s: no header: %w", stage, noEOF(err))
	}
	digits, ok := strings.CutPrefix(strings.TrimSuffix(string(head), string(headerEnd)), "hearthline "+stage+" state ")
	if !ok {
		return nil, 0, fmt.Errorf("read snapshot of %s: this is the state of something else: header %.60q", stage, head)
	}
	version, err := strconv.Atoi(digits)
	if err != nil || version < 1 {
		return nil, 0, fmt.Errorf("read snapshot of %s: version %q is no number", stage, digits)
	}
	if version > newest {
		return nil, 0, fmt.Errorf("read snapshot of %s: layout %d is newer than %d, the newest this binary knows: run the newer binary; `hearthline plan` says how to go on without it", stage, version, newest)
	}
	return in, version, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// header reads the first line.
func (r *Reader) header() ([]byte, error) {
	for {
		if i := bytes.IndexByte(r.buf[r.at:r.end], headerEnd); i >= 0 {
			line := r.buf[r.at : r.at+i+1]
			r.at += i + 1
			return line, nil
		}
		if r.end-r.at == len(r.buf) {
			return nil, errors.New("the first line is too long")
		}
		if err := r.more(); err != nil {
			return nil, err
		}
	}
}

// more reads at least one byte. There must be room: what has been taken is summed up and makes it.
func (r *Reader) more() error {
	r.sum = crc32.Update(r.sum, crc32.IEEETable, r.buf[r.from:r.at])
	r.end = copy(r.buf, r.buf[r.at:r.end])
	r.at, r.from = 0, 0
	n, err := io.ReadAtLeast(r.r, r.buf[r.end:], 1)
	r.end += n
	return err
}

// take gives the next n bytes, no more than readerBytes, until the next call; nil after an error.
func (r *Reader) take(n int) []byte {
	for r.end-r.at < n && r.err == nil {
		r.fail(r.more())
	}
	if r.err != nil {
		return nil
	}
	b := r.buf[r.at : r.at+n]
	r.at += n
	return b
}

func (r *Reader) fail(err error) {
	if r.err == nil && err != nil {
		r.err = noEOF(err)
	}
}

// Fail makes err the reader's error, unless it has one: for values that were read but make no sense.
func (r *Reader) Fail(err error) { r.fail(err) }

// Err is the first error so far. Loops ask it, so that a broken count ends them.
func (r *Reader) Err() error { return r.err }

// Uint reads a varint.
func (r *Reader) Uint() uint64 {
	for r.err == nil {
		v, n := binary.Uvarint(r.buf[r.at:r.end])
		switch {
		case n > 0:
			r.at += n
			return v
		case n < 0 || r.end-r.at >= binary.MaxVarintLen64:
			r.fail(errors.New("a number of more than 64 bits"))
		default:
			r.fail(r.more())
		}
	}
	return 0
}

// Int reads a zig-zag varint.
func (r *Reader) Int() int64 {
	v := r.Uint()
	return int64(v>>1) ^ -int64(v&1)
}

// Fixed reads eight bytes.
func (r *Reader) Fixed() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// Float reads the bits of a float.
func (r *Reader) Float() float64 { return math.Float64frombits(r.Fixed()) }

// Bool reads one byte.
func (r *Reader) Bool() bool { return r.Uint() != 0 }

// Count reads a number of things that is at most limit.
func (r *Reader) Count(limit int) int {
	n := r.Uint()
	if n > uint64(limit) {
		r.fail(fmt.Errorf("a count of %d; at most %d makes sense", n, limit))
		return 0
	}
	return int(n)
}

// Bytes reads a length and as many bytes.
func (r *Reader) Bytes() []byte {
	n := r.Count(MaxString)
	var b []byte
	for n > 0 && r.err == nil { // what a broken length promises is not made before it is there
		part := r.take(min(n, readerBytes))
		b, n = append(b, part...), n-len(part)
	}
	return b
}

// String reads a length and as many bytes.
func (r *Reader) String() string {
	n := r.Count(MaxString)
	if n <= readerBytes {
		return string(r.take(n))
	}
	var b strings.Builder
	for n > 0 && r.err == nil {
		part := r.take(min(n, readerBytes))
		b.Write(part)
		n -= len(part)
	}
	return b.String()
}

// Close checks the checksum. Only when it returns nil was what was read what had been written.
func (r *Reader) Close() error {
	if r.err == nil {
		sum := crc32.Update(r.sum, crc32.IEEETable, r.buf[r.from:r.at])
		if b := r.take(4); b != nil && binary.LittleEndian.Uint32(b) != sum {
			r.err = errors.New("the checksum is wrong: the snapshot is damaged")
		}
	}
	if r.err != nil {
		return fmt.Errorf("read snapshot: %w", r.err)
	}
	return nil
}
