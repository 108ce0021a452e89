package wire

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"sync"
	"unsafe"
)

// crypto/tls keeps the buffers of the handshake, some 5 KB, and of the largest record so far, up to 17 KB, for as
// long as a connection lives (golang.org/issue/43563), and has no way to give them back. So this lends a connection
// the buffer it reads into, and takes it back when it holds nothing; what the handshake left goes to the collector.
//
// These are private fields. They are found by name and type when the process starts: where a version of Go has none
// like them, nothing is lent, connections cost more, and TestTLSBuffersAreFound fails. They are touched only by the
// goroutine that reads, outside Read: crypto/tls uses them only in Read, and in the handshake, which is over.
type tlsFields struct{ rawInput, input, hand uintptr }

var tlsBuffers = findTLSBuffers(reflect.TypeFor[tls.Conn]())

// findTLSBuffers gives nil when the fields are not what they were.
func findTLSBuffers(conn reflect.Type) *tlsFields {
	at := func(name string, want reflect.Type) (uintptr, bool) {
		f, ok := conn.FieldByName(name)
		return f.Offset, ok && f.Type == want
	}
	rawInput, ok1 := at("rawInput", reflect.TypeFor[bytes.Buffer]())
	input, ok2 := at("input", reflect.TypeFor[bytes.Reader]())
	hand, ok3 := at("hand", reflect.TypeFor[bytes.Buffer]())
	if !ok1 || !ok2 || !ok3 {
		return nil
	}
	return &tlsFields{rawInput, input, hand}
}

// recordBuffer holds a whole TLS record, and what crypto/tls asks for besides.
const recordBuffer = 18 << 10

var recordBuffers = sync.Pool{New: func() any { return new([recordBuffer]byte) }}

func (f *tlsFields) fields(c *tls.Conn) (rawInput *bytes.Buffer, input *bytes.Reader, hand *bytes.Buffer) {
	p := unsafe.Pointer(c)                                                                                                             // #nosec G103 -- see tlsFields
	return (*bytes.Buffer)(unsafe.Add(p, f.rawInput)), (*bytes.Reader)(unsafe.Add(p, f.input)), (*bytes.Buffer)(unsafe.Add(p, f.hand)) // #nosec G103 -- fields that findTLSBuffers found by name and type
}

// lend gives a connection a buffer to read into, unless it holds part of a record.
func (f *tlsFields) lend(c *tls.Conn) {
	if f == nil {
		return
	}
	if raw, input, _ := f.fields(c); raw.Len() == 0 && input.Len() == 0 {
		*raw = *bytes.NewBuffer(recordBuffers.Get().(*[recordBuffer]byte)[:0])
	}
}

// reclaim takes back what holds nothing. Part of a record moves to a buffer of its size: who sends a few bytes and
// waits makes the gateway keep a few bytes.
func (f *tlsFields) reclaim(c *tls.Conn) {
	if f == nil {
		return
	}
	raw, input, hand := f.fields(c)
	if input.Len() > 0 {
		return // decrypted, not read yet: it lies in raw
	}
	*input = bytes.Reader{}
	if hand.Len() == 0 {
		*hand = bytes.Buffer{}
	}
	rest := bytes.Clone(raw.Bytes())
	raw.Reset()
	if b := raw.AvailableBuffer(); cap(b) == recordBuffer {
		recordBuffers.Put((*[recordBuffer]byte)(b[:recordBuffer]))
	}
	*raw = bytes.Buffer{}
	if len(rest) > 0 {
		*raw = *bytes.NewBuffer(rest)
	}
}
