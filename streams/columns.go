package streams

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// fingerprint names a schema: the first eight bytes of the SHA-256 of its IPC message.
type fingerprint [8]byte

func (f fingerprint) String() string { return hex.EncodeToString(f[:]) }

// schemaBytesMax bounds a schema's IPC message, in bytes. A thousand columns take some 100 KB.
const schemaBytesMax = 256 << 10

// ipcSchema is a schema as it stands in an IPC stream.
type ipcSchema struct {
	print   fingerprint
	schema  *arrow.Schema
	message []byte // encapsulated
	meta    *memory.Buffer
}

// encodeSchema gives a schema its bytes and its name. Column types that readers could not check are refused.
func encodeSchema(schema *arrow.Schema) (*ipcSchema, error) {
	for _, f := range schema.Fields() {
		if err := checkType(f.Type); err != nil {
			return nil, fmt.Errorf("schema: column %q: %w", f.Name, err)
		}
	}
	w := &payloadWriter{}
	if err := ipc.NewWriterWithPayloadWriter(w, ipc.WithSchema(schema)).Close(); err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return newSchema(schema, w.buf)
}

func newSchema(schema *arrow.Schema, message []byte) (*ipcSchema, error) {
	if len(message) > schemaBytesMax {
		return nil, fmt.Errorf("schema of %d columns takes %d bytes; the limit is %d", len(schema.Fields()), len(message), schemaBytesMax)
	}
	sum := sha256.Sum256(message)
	s := &ipcSchema{schema: schema, message: message, meta: memory.NewBufferBytes(message[8:])}
	copy(s.print[:], sum[:])
	return s, nil
}

// decodeSchema reads the bytes of encodeSchema.
func decodeSchema(message []byte) (s *ipcSchema, err error) {
	defer recovered(&err)
	if len(message) > schemaBytesMax {
		return nil, fmt.Errorf("schema of %d bytes; the limit is %d", len(message), schemaBytesMax)
	}
	meta, rest, err := cutMetadata(message)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("schema: %d bytes too many", len(rest))
	}
	if err := checkSchemaMetadata(meta); err != nil {
		return nil, err
	}
	src := &messageSource{schema: memory.NewBufferBytes(meta)}
	r, err := ipc.NewReaderFromMessageReader(src)
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	defer r.Release()
	for _, f := range r.Schema().Fields() {
		if err := checkType(f.Type); err != nil {
			return nil, fmt.Errorf("schema: column %q: %w", f.Name, err)
		}
	}
	return newSchema(r.Schema(), message)
}

// encodeRecord appends the rows of rec to dst: dictionary batches and a record batch, complete in themselves.
func encodeRecord(dst []byte, rec arrow.Record, mem memory.Allocator) ([]byte, error) {
	w := &payloadWriter{buf: dst, skip: 1}
	// A writer keeps the dictionaries it wrote and leaves them out the next time: each message has a writer of its own.
	iw := ipc.NewWriterWithPayloadWriter(w, ipc.WithSchema(rec.Schema()), ipc.WithAllocator(mem))
	err := iw.Write(rec)
	return w.buf, errors.Join(err, iw.Close())
}

// payloadWriter gathers encapsulated IPC messages, without the first skip of them and without an end mark.
type payloadWriter struct {
	buf  []byte
	skip int
}

func (w *payloadWriter) Start() error { return nil }
func (w *payloadWriter) Close() error { return nil }
func (w *payloadWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	return len(p), nil
}

func (w *payloadWriter) WritePayload(p ipc.Payload) error {
	if w.skip > 0 {
		w.skip--
		return nil
	}
	meta := p.Meta()
	defer meta.Release()
	padded := (meta.Len() + 7) &^ 7
	w.buf = binary.LittleEndian.AppendUint32(w.buf, continuation)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(padded))
	w.buf = append(w.buf, meta.Bytes()...)
	w.buf = append(w.buf, make([]byte, padded-meta.Len())...)
	return p.SerializeBody(w)
}

// continuation opens every encapsulated message (Arrow columnar format, "Encapsulated message format").
const continuation = 0xffffffff

// decodeRecord reads the bytes of encodeRecord. What it allocates stays below limit bytes. The caller releases the
// record, which keeps nothing of body.
func decodeRecord(body []byte, s *ipcSchema, rows int64, mem memory.Allocator, limit int) (rec arrow.Record, err error) {
	defer recovered(&err)
	src := &messageSource{schema: s.meta, body: body}
	r, err := ipc.NewReaderFromMessageReader(src, ipc.WithAllocator(&limitedAllocator{mem: mem, left: limit}))
	if err != nil {
		return nil, fmt.Errorf("rows: %w", err)
	}
	defer r.Release()
	if !r.Next() {
		if r.Err() != nil {
			return nil, fmt.Errorf("rows: %w", r.Err())
		}
		return nil, errors.New("rows: the record batch is missing")
	}
	got := r.Record()
	if len(src.body) != 0 {
		return nil, fmt.Errorf("rows: %d bytes too many after the record batch", len(src.body))
	}
	if got.NumRows() != rows {
		return nil, fmt.Errorf("rows: %d in the record batch; the header says %d", got.NumRows(), rows)
	}
	for i, col := range got.Columns() {
		if int64(col.Len()) != rows {
			return nil, fmt.Errorf("column %q: %d values in %d rows", got.ColumnName(i), col.Len(), rows)
		}
		if err := checkArray(col.Data()); err != nil {
			return nil, fmt.Errorf("column %q: %w", got.ColumnName(i), err)
		}
	}
	// One schema object for all records of a stream, so that callers may compare pointers.
	return array.NewRecord(s.schema, got.Columns(), rows), nil
}

// recovered makes an error of a panic: arrow's reader panics on metadata that points out of its buffer.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("arrow data is damaged: %v", p)
	}
}

// messageSource feeds an ipc.Reader: first the schema, then the messages of body.
type messageSource struct {
	schema *memory.Buffer
	body   []byte
	sent   bool
	last   *ipc.Message
}

var noBody = memory.NewBufferBytes(nil)

func (m *messageSource) Retain() {}
func (m *messageSource) Release() {
	if m.last != nil {
		m.last.Release()
		m.last = nil
	}
}

// Message gives the next message; it is valid until the one after it.
func (m *messageSource) Message() (*ipc.Message, error) {
	m.Release()
	if !m.sent {
		m.sent = true
		m.last = ipc.NewMessage(m.schema, noBody)
		return m.last, nil
	}
	if len(m.body) == 0 {
		return nil, io.EOF
	}
	meta, rest, err := cutMetadata(m.body)
	if err != nil {
		return nil, err
	}
	buf := memory.NewBufferBytes(meta)
	peek := ipc.NewMessage(buf, noBody)
	n := peek.BodyLen()
	peek.Release()
	if n < 0 || n > int64(len(rest)) {
		return nil, fmt.Errorf("message body of %d bytes in %d", n, len(rest))
	}
	m.last = ipc.NewMessage(buf, memory.NewBufferBytes(rest[:n:n]))
	m.body = rest[n:]
	return m.last, nil
}

// cutMetadata splits an encapsulated message's metadata from what follows.
func cutMetadata(b []byte) (meta, rest []byte, err error) {
	if len(b) < 8 || binary.LittleEndian.Uint32(b) != continuation {
		return nil, nil, errors.New("no Arrow IPC message begins here")
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if n < 8 || uint64(n) > uint64(len(b)-8) {
		return nil, nil, fmt.Errorf("message metadata of %d bytes in %d", n, len(b)-8)
	}
	return b[8 : 8+n : 8+n], b[8+n:], nil
}

// limitedAllocator panics when more than its limit is asked for. It serves one decode at a time; what was allocated
// may be freed from anywhere.
type limitedAllocator struct {
	mem  memory.Allocator
	left int
}

func (a *limitedAllocator) take(n int) {
	if n < 0 || n > a.left {
		panic(fmt.Sprintf("it would take more memory than the limit: %d bytes with %d left", n, a.left))
	}
	a.left -= n
}

func (a *limitedAllocator) Allocate(n int) []byte {
	a.take(n)
	return a.mem.Allocate(n)
}

func (a *limitedAllocator) Reallocate(n int, b []byte) []byte {
	if n > len(b) {
		a.take(n - len(b))
	}
	return a.mem.Reallocate(n, b)
}

func (a *limitedAllocator) Free(b []byte) { a.mem.Free(b) }
