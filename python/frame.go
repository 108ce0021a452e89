package python

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// Frames between the runtime and a worker: a byte that says what it is, four that say how long, little endian. They are those of
// hearthline/_frames.py.
const (
	frameOpen   = 'O'
	frameBatch  = 'B'
	frameTime   = 'T'
	frameState  = 'S'
	frameIndex  = 'I'
	frameReady  = 'Y'
	frameFailed = 'F'
	frameResult = 'R'
	frameArrow  = 'A'
	frameRaised = 'X'
)

const headBytes = 5

func writeFrame(w io.Writer, kind byte, body []byte) error {
	if uint64(len(body)) > 1<<32-1 {
		return fmt.Errorf("a frame of %d bytes", len(body))
	}
	head := [headBytes]byte{kind}
	binary.LittleEndian.PutUint32(head[1:], uint32(len(body)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// readFrame reads a frame of at most so many bytes. Memory grows with what has come, not with what is claimed.
func readFrame(r io.Reader, most int) (kind byte, body []byte, err error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := int64(binary.LittleEndian.Uint32(head[1:]))
	if size > int64(most) {
		return 0, nil, fmt.Errorf("a frame of %d bytes; at most %d", size, most)
	}
	var b bytes.Buffer
	b.Grow(int(min(size, 1<<20)))
	if n, err := io.CopyN(&b, r, size); err != nil {
		return 0, nil, fmt.Errorf("%d of %d bytes: %w", n, size, err)
	}
	return head[0], b.Bytes(), nil
}

// encode gives a record as an Arrow IPC stream.
func encode(rec arrow.Record) ([]byte, error) {
	var b bytes.Buffer
	w := ipc.NewWriter(&b, ipc.WithSchema(rec.Schema()))
	if err := errors.Join(w.Write(rec), w.Close()); err != nil {
		return nil, fmt.Errorf("encode a batch: %w", err)
	}
	return b.Bytes(), nil
}

// decode reads the one record of an Arrow IPC stream. A worker is a process of the stage's author: what it sends may be anything.
func decode(body []byte) (rec arrow.Record, err error) {
	defer func() {
		if p := recover(); p != nil { // of the Arrow library
			rec, err = nil, fmt.Errorf("decode a batch: %v", p)
		}
	}()
	r, err := ipc.NewReader(bytes.NewReader(body), ipc.WithAllocator(memory.DefaultAllocator), ipc.WithDelayReadSchema(false))
	if err != nil {
		return nil, fmt.Errorf("decode a batch: %w", err)
	}
	defer r.Release()
	if !r.Next() {
		if err := r.Err(); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("decode a batch: %w", err)
		}
		return nil, errors.New("decode a batch: the stream holds none")
	}
	rec = r.Record()
	rec.Retain()
	return rec, nil
}

// eachLine gives the lines of r, each cut to so many bytes, until it ends.
func eachLine(r io.Reader, most int, line func([]byte)) {
	b := bufio.NewReaderSize(r, most)
	skipping := false
	for {
		part, err := b.ReadSlice('\n')
		if !skipping && len(part) > 0 {
			line(bytes.TrimRight(part, "\r\n"))
		}
		skipping = errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !skipping {
			return
		}
	}
}

// levelOf is the level of Python's logging.
func levelOf(name string) slog.Level {
	switch name {
	case "DEBUG":
		return slog.LevelDebug
	case "WARNING":
		return slog.LevelWarn
	case "ERROR", "CRITICAL":
		return slog.LevelError
	}
	return slog.LevelInfo
}
