// Package snapshot is the form in which stages write down their state: a header line that names the stage and the
// version of its layout, then numbers and strings, then a checksum. Numbers are little-endian; integers are varints
// (Protocol Buffers encoding); floats are their IEEE 754 bits, so state comes back bit for bit.
package snapshot

import (
	"bufio"
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
func (w *Writer) String(s string) { w.Uint(uint64(len(s))); w.write([]byte(s)) }

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
	r   *bufio.Reader
	sum uint32
	err error
	tmp [8]byte
}

// NewReader reads the header and gives the version of the layout. Another stage's snapshot, and a version above
// newest, is an error.
func NewReader(r io.Reader, stage string, newest int) (*Reader, int, error) {
	in := &Reader{r: bufio.NewReaderSize(r, 64<<10)}
	head, err := in.r.ReadSlice(headerEnd)
	if err != nil {
		return nil, 0, fmt.Errorf("read snapshot of %s: no header: %w", stage, noEOF(err))
	}
	in.sum = crc32.Update(in.sum, crc32.IEEETable, head)
	digits, ok := strings.CutPrefix(strings.TrimSuffix(string(head), string(headerEnd)), "hearthline "+stage+" state ")
	if !ok {
		return nil, 0, fmt.Errorf("read snapshot of %s: this is the state of something else: header %.60q", stage, head)
	}
	version, err := strconv.Atoi(digits)
	if err != nil || version < 1 {
		return nil, 0, fmt.Errorf("read snapshot of %s: version %q is no number", stage, digits)
	}
	if version > newest {
		return nil, 0, fmt.Errorf("read snapshot of %s: layout %d is newer than %d, the newest this binary knows: run the newer binary, or reset the checkpoint", stage, version, newest)
	}
	return in, version, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadByte makes Reader an io.ByteReader, for the varints.
func (r *Reader) ReadByte() (byte, error) {
	b, err := r.r.ReadByte()
	if err == nil {
		r.tmp[0] = b
		r.sum = crc32.Update(r.sum, crc32.IEEETable, r.tmp[:1])
	}
	return b, err
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
	if r.err != nil {
		return 0
	}
	v, err := binary.ReadUvarint(r)
	r.fail(err)
	return v
}

// Int reads a zig-zag varint.
func (r *Reader) Int() int64 {
	if r.err != nil {
		return 0
	}
	v, err := binary.ReadVarint(r)
	r.fail(err)
	return v
}

func (r *Reader) full(b []byte) {
	if r.err != nil {
		return
	}
	_, err := io.ReadFull(r.r, b)
	r.fail(err)
	r.sum = crc32.Update(r.sum, crc32.IEEETable, b)
}

// Fixed reads eight bytes.
func (r *Reader) Fixed() uint64 {
	var b [8]byte
	r.full(b[:])
	if r.err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
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
	b := make([]byte, r.Count(MaxString))
	r.full(b)
	return b
}

// String reads a length and as many bytes.
func (r *Reader) String() string { return string(r.Bytes()) }

// Close checks the checksum. Only when it returns nil was what was read what had been written.
func (r *Reader) Close() error {
	if r.err == nil {
		sum := r.sum
		var b [4]byte
		r.full(b[:])
		if r.err == nil && binary.LittleEndian.Uint32(b[:]) != sum {
			r.err = errors.New("the checksum is wrong: the snapshot is damaged")
		}
	}
	if r.err != nil {
		return fmt.Errorf("read snapshot: %w", r.err)
	}
	return nil
}
