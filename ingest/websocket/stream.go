package websocket

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"

	"hearthline/ingest/wire"
)

// Out is a connection's way out, a [wire.Link].
type Out interface {
	AddBare(b []byte) bool
	Flush()
}

// Stream is a connection's Handler: it takes frames, and gives what they carry to In. It is its link's Framing too.
type Stream struct {
	In       wire.Handler
	Out      Out
	BytesMax int    // of a frame
	Early    []byte // What came with the handshake

	state ws.State
	left  int64   // of the payload of the frame that is coming in
	mask  [4]byte // of it
	at    int     // how much of it is unmasked
	rest  []byte  // What frames have carried and In has not used up; nil while there is none
	code  atomic.Int32
}

// Slow implements wire.Slow.
func (s *Stream) Slow() bool {
	slow, ok := s.In.(wire.Slow)
	return ok && slow.Slow()
}

// Deadline implements wire.Handler.
func (s *Stream) Deadline() time.Time { return s.In.Deadline() }

// End implements wire.Handler.
func (s *Stream) End(err error) { s.In.End(err) }

// Receive implements wire.Handler.
func (s *Stream) Receive(data []byte) (used int, h wire.Hold, err error) {
	defer s.Out.Flush()
	if s.Early == nil {
		return s.receive(data)
	}
	early := append(s.Early, data...) // few clients, and once
	s.Early = nil
	used, h, err = s.receive(early)
	if used < len(early) {
		s.Early = early[used:]
	}
	return len(data), h, err
}

func (s *Stream) receive(data []byte) (used int, h wire.Hold, err error) {
	for {
		// First what is there: after a hold, nothing new may have come.
		if h, err = s.give(); err != nil || !h.Empty() {
			return used, h, err
		}
		if s.left > 0 {
			n := int(min(s.left, int64(len(data)-used)))
			if n == 0 {
				return used, h, nil
			}
			s.take(data[used : used+n])
			used += n
			continue
		}
		n, err := s.frame(data[used:])
		used += n
		if n == 0 || err != nil {
			return used, h, err
		}
	}
}

// give hands on what is there.
func (s *Stream) give() (h wire.Hold, err error) {
	if len(s.rest) == 0 {
		return h, nil
	}
	n, h, err := s.In.Receive(s.rest)
	if n == len(s.rest) {
		s.rest = nil
	} else if n > 0 {
		s.rest = append(s.rest[:0], s.rest[n:]...)
	}
	return h, err
}

// take unmasks part of a frame's payload. In says when a packet is too large, from its first bytes on, so what is
// kept is bounded by one packet.
func (s *Stream) take(part []byte) {
	at := len(s.rest)
	s.rest = append(s.rest, part...)
	ws.Cipher(s.rest[at:], s.mask, s.at)
	s.at += len(part)
	s.left -= int64(len(part))
}

// frame reads the head of a data frame, or a whole control frame. It says how long that is, 0 when it is not all there.
func (s *Stream) frame(data []byte) (used int, err error) {
	in := bytes.NewReader(data)
	head, err := ws.ReadHeader(in)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return 0, nil
	case err != nil:
		return 0, s.broken(ws.StatusProtocolError, err)
	}
	used = len(data) - in.Len()
	if err := ws.CheckHeader(head, ws.StateServerSide|s.state); err != nil {
		return 0, s.broken(ws.StatusProtocolError, err)
	}
	switch {
	case head.OpCode.IsControl():
		return s.control(head, data, used)
	case head.OpCode == ws.OpText:
		return 0, s.broken(ws.StatusUnsupportedData, errors.New("a text frame; packets go in binary ones"))
	case head.Length > int64(s.BytesMax):
		return 0, s.broken(ws.StatusMessageTooBig, fmt.Errorf("a frame of %d bytes; at most %d", head.Length, s.BytesMax))
	}
	s.state = s.state.Clear(ws.StateFragmented)
	if !head.Fin {
		s.state = s.state.Set(ws.StateFragmented)
	}
	s.left, s.mask, s.at = head.Length, head.Mask, 0
	return used, nil
}

// control answers a control frame. CheckHeader has seen to it that it is short.
func (s *Stream) control(head ws.Header, data []byte, used int) (int, error) {
	end := used + int(head.Length)
	if end > len(data) {
		return 0, nil
	}
	switch head.OpCode {
	case ws.OpClose:
		return end, io.EOF
	case ws.OpPing:
		payload := bytes.Clone(data[used:end])
		ws.Cipher(payload, head.Mask, 0)
		if !s.Out.AddBare(append([]byte{0x80 | byte(ws.OpPong), byte(len(payload))}, payload...)) {
			return end, errors.New("the client does not read its pongs")
		}
	}
	return end, nil
}

// broken has the client told why when the connection is closed.
func (s *Stream) broken(code ws.StatusCode, err error) error {
	s.code.Store(int32(code))
	return fmt.Errorf("websocket: %w", err)
}

// Head implements wire.Framing: each packet is a frame of its own.
func (s *Stream) Head(b []byte, size int) []byte {
	b = append(b, 0x80|byte(ws.OpBinary))
	switch {
	case size < 126:
		return append(b, byte(size))
	case size <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, 126), uint16(size))
	}
	return binary.BigEndian.AppendUint64(append(b, 127), uint64(size))
}

// Last implements wire.Framing: it says goodbye.
func (s *Stream) Last(b []byte) []byte {
	code := uint16(s.code.Load())
	if code == 0 {
		code = uint16(ws.StatusNormalClosure)
	}
	return binary.BigEndian.AppendUint16(append(b, 0x80|byte(ws.OpClose), 2), code)
}
