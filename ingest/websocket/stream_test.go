package websocket

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"hearthline/ingest/wire"
)

// sponge is a Handler that keeps all it is given, a few bytes at a time, and now and then asks for a pause.
type sponge struct {
	got   []byte
	step  int
	calls int
}

func (s *sponge) Receive(data []byte) (used int, h wire.Hold, err error) {
	if s.calls++; s.calls%7 == 0 {
		return 0, wire.Hold{AtMost: time.Nanosecond}, nil
	}
	n := len(data) - len(data)%s.step // it leaves what is less than a step
	s.got = append(s.got, data[:n]...)
	return n, h, nil
}

func (s *sponge) Deadline() time.Time { return time.Time{} }
func (s *sponge) End(error)           {}

// drive gives bytes to a stream in pieces, as a loop does, until it ends or they are used up.
func drive(s *Stream, data []byte, piece int) error {
	var held []byte
	for len(data) > 0 {
		n := min(piece, len(data))
		held = append(held, data[:n]...)
		data = data[n:]
		for {
			used, h, err := s.Receive(held)
			if used < 0 || used > len(held) {
				return errors.New("more was used than given")
			}
			held = append([]byte(nil), held[used:]...)
			if err != nil {
				return err
			}
			if h.Empty() {
				break
			}
		}
	}
	return nil
}

func newStream(step int) (*Stream, *sponge) {
	in := &sponge{step: step}
	return &Stream{In: in, Out: nowhere{}, BytesMax: 1 << 10}, in
}

type nowhere struct{}

func (nowhere) AddBare([]byte) bool { return true }
func (nowhere) Flush()              {}

// FuzzStream holds the stream to gobwas's own reader of whole frames: the same payload goes in whatever the pieces, as
// far as the frames are good, and a stream that is at fault ends.
func FuzzStream(f *testing.F) {
	frame := func(op ws.OpCode, fin bool, payload string) []byte {
		b, err := ws.CompileFrame(ws.MaskFrameInPlaceWith(ws.NewFrame(op, fin, []byte(payload)), [4]byte{1, 2, 3, 4}))
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(bytes.Join([][]byte{frame(ws.OpBinary, false, "hel"), frame(ws.OpPing, true, "p"), frame(ws.OpContinuation, true, "lo")}, nil), 1, 1)
	f.Add(bytes.Join([][]byte{frame(ws.OpBinary, true, "one"), frame(ws.OpBinary, true, ""), frame(ws.OpClose, true, "\x03\xe8")}, nil), 5, 3)
	f.Add(frame(ws.OpText, true, "text"), 3, 1)
	f.Add(frame(ws.OpBinary, true, string(make([]byte, 2000))), 100, 1)
	f.Add([]byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, 2, 1)
	f.Fuzz(func(t *testing.T, data []byte, piece, step int) {
		if piece < 1 || step < 1 || step > 64 {
			t.Skip()
		}
		s, in := newStream(step)
		err := drive(s, data, piece)
		want, wantErr := payloads(data)
		got := append(bytes.Clone(in.got), s.rest...)
		if (err != nil) != (wantErr != nil) || errors.Is(err, io.EOF) != errors.Is(wantErr, io.EOF) {
			t.Fatalf("%v; want %v", err, wantErr)
		}
		// What of a frame that has not come to its end is known to the stream alone.
		if !bytes.HasPrefix(got, want) {
			t.Fatalf("% x; want % x", got, want)
		}
		if err != nil && !bytes.Equal(got, want) {
			t.Fatalf("after the fault % x; want % x", got, want)
		}
	})
}

// payloads reads whole frames by gobwas, up to the first that is at fault.
func payloads(data []byte) (all []byte, err error) {
	in := bytes.NewReader(data)
	state := ws.StateServerSide
	for {
		h, err := ws.ReadHeader(in)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return all, nil
		}
		if err == nil {
			err = ws.CheckHeader(h, state)
		}
		if err == nil && (h.OpCode == ws.OpText || h.OpCode.IsData() && h.Length > 1<<10 || h.OpCode == ws.OpContinuation && h.Length > 1<<10) {
			err = errors.New("refused")
		}
		if err != nil {
			return all, errors.New(err.Error())
		}
		if int64(in.Len()) < h.Length {
			return all, nil
		}
		payload := make([]byte, h.Length)
		io.ReadFull(in, payload)
		ws.Cipher(payload, h.Mask, 0)
		switch {
		case h.OpCode == ws.OpClose:
			return all, io.EOF
		case h.OpCode.IsControl():
			continue
		}
		all = append(all, payload...)
		state = state.Clear(ws.StateFragmented)
		if !h.Fin {
			state = state.Set(ws.StateFragmented)
		}
	}
}

func TestHeads(t *testing.T) {
	s, _ := newStream(1)
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 1 << 20} {
		head := s.Head([]byte("before"), n)
		if !bytes.HasPrefix(head, []byte("before")) || len(head)-6 > wire.HeadMax {
			t.Fatalf("% x", head)
		}
		h, err := ws.ReadHeader(bytes.NewReader(head[6:]))
		if err != nil || h.Length != int64(n) || !h.Fin || h.OpCode != ws.OpBinary || h.Masked || ws.HeaderSize(h) != len(head)-6 {
			t.Errorf("%d: %+v %v", n, h, err)
		}
	}
}
