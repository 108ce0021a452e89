package ingest

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// streamsMax is what serve.go allows a connection.
const streamsMax = 64

// rawHTTP2 is a client that speaks HTTP/2 frame by frame, and so what no good client says.
type rawHTTP2 struct {
	t       *testing.T
	c       *tls.Conn
	fr      *http2.Framer
	block   bytes.Buffer
	enc     *hpack.Encoder
	host    string
	streams uint32 // that the gateway allows at once
	gone    chan struct{}

	mu     sync.Mutex
	status map[uint32]string        // of answers
	resets map[uint32]http2.ErrCode // of streams that the gateway has reset
	goAway *http2.ErrCode
}

// http2 connects, and waits until both have said and taken their settings.
func (r *rig) http2(t *testing.T) *rawHTTP2 {
	t.Helper()
	config := r.tls()
	config.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", r.at.HTTP.String(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	h := &rawHTTP2{t: t, c: c, fr: http2.NewFramer(c, c), host: r.at.HTTP.String(), gone: make(chan struct{}), status: map[uint32]string{}, resets: map[uint32]http2.ErrCode{}}
	h.enc = hpack.NewEncoder(&h.block)
	h.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := h.fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	acknowledged := false
	for h.streams == 0 || !acknowledged {
		f, err := h.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := f.(*http2.SettingsFrame); ok && s.IsAck() {
			acknowledged = true
		} else if ok {
			h.streams, _ = s.Value(http2.SettingMaxConcurrentStreams)
			if err := h.fr.WriteSettingsAck(); err != nil {
				t.Fatal(err)
			}
		}
	}
	go h.read()
	return h
}

// read notes what the gateway says, until the connection ends.
func (h *rawHTTP2) read() {
	defer close(h.gone)
	for {
		f, err := h.fr.ReadFrame()
		if err != nil {
			return
		}
		h.mu.Lock()
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			h.status[f.StreamID] = f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			h.resets[f.StreamID] = f.ErrCode
		case *http2.GoAwayFrame:
			h.goAway = &f.ErrCode
		}
		h.mu.Unlock()
	}
}

// open begins a request, with headers, names and values in turn; body says that more follows.
func (h *rawHTTP2) open(stream uint32, body bool, header ...string) error {
	h.block.Reset()
	for i, all := 0, append([]string{":method", "POST", ":scheme", "https", ":authority", h.host, ":path", "/v1/telemetry", "content-type", mediaJSON}, header...); i < len(all); i += 2 {
		if err := h.enc.WriteField(hpack.HeaderField{Name: all[i], Value: all[i+1]}); err != nil {
			return err
		}
	}
	block := h.block.Bytes()
	first := block[:min(len(block), 16<<10)]
	rest := block[len(first):]
	err := h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: !body, EndHeaders: len(rest) == 0})
	for len(rest) > 0 && err == nil {
		part := rest[:min(len(rest), 16<<10)]
		rest = rest[len(part):]
		err = h.fr.WriteContinuation(stream, len(rest) == 0, part)
	}
	return err
}

// answered is the status of a stream's answer, "" if there is none; reset is whether the gateway reset it.
func (h *rawHTTP2) answered(stream uint32) (status string, code http2.ErrCode, reset bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	code, reset = h.resets[stream]
	return h.status[stream], code, reset
}

func (h *rawHTTP2) ended() bool {
	select {
	case <-h.gone:
		return true
	default:
		return false
	}
}

// othersAreServed has another user send over connections of its own while attack runs, and wants each request taken, soon.
func (r *rig) othersAreServed(t *testing.T, attack func()) {
	t.Helper()
	served, slowest := 0, time.Duration(0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			begun := time.Now()
			status, answer, _ := r.post("bert", mediaJSON, []byte(deviceReading))
			if status != http.StatusOK {
				t.Errorf("another client: %d %s", status, answer)
			}
			served, slowest = served+1, max(slowest, time.Since(begun))
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	defer func() {
		close(stop)
		<-done
		t.Logf("%d requests of another client were served meanwhile, the slowest in %v", served, slowest)
		if slowest > 10*time.Second {
			t.Errorf("another client waited %v", slowest)
		}
	}()
	attack()
}

// A body that comes a byte at a time is cut off over HTTP/2, too; the connection's other requests, and other clients, are served.
func TestSlowBodyOverHTTP2(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.ConnectTimeout, g.PacketTimeout = 500*time.Millisecond, time.Second })
	h := r.http2(t)
	r.othersAreServed(t, func() {
		if err := h.open(1, true, "authorization", r.basic("anna"), "content-length", "100000"); err != nil {
			t.Fatal(err)
		}
		if err := h.open(3, true, "authorization", r.basic("anna")); err != nil {
			t.Fatal(err)
		}
		if err := h.fr.WriteData(3, true, []byte(deviceReading)); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		for {
			status, _, reset := h.answered(1)
			if status != "" && status != "200" || reset || h.ended() {
				t.Logf("cut off after %v: status %q, reset %v", time.Since(begun), status, reset)
				break
			}
			if time.Since(begun) > 20*time.Second {
				t.Fatal("a slow body is waited for without an end")
			}
			_ = h.fr.WriteData(1, false, []byte(" ")) // it may just have been cut off
			time.Sleep(20 * time.Millisecond)
		}
	})
	if status, _, _ := h.answered(3); status != "200" {
		t.Errorf("a request beside it: %q", status)
	}
}

// A connection has 64 requests at once: more are refused before anything is done for them, and those go on.
func TestStreamsOfOneConnection(t *testing.T) {
	r := newRig(t, nil)
	h := r.http2(t)
	if h.streams != streamsMax {
		t.Errorf("the gateway allows %d streams at once; want %d", h.streams, streamsMax)
	}
	const all = streamsMax + 40
	r.othersAreServed(t, func() {
		for i := range uint32(all) {
			if err := h.open(2*i+1, true, "authorization", r.basic("anna")); err != nil {
				t.Fatal(err)
			}
		}
		for i := range uint32(all) {
			if i < streamsMax {
				continue
			}
			eventually(t, "one stream more is refused", func() bool {
				_, code, reset := h.answered(2*i + 1)
				return reset && (code == http2.ErrCodeRefusedStream || code == http2.ErrCodeProtocol) // RFC 9113, section 5.1.2
			})
		}
	})
	for i := range uint32(streamsMax) {
		if err := h.fr.WriteData(2*i+1, true, []byte(deviceReading)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint32(streamsMax) {
		eventually(t, "the others are answered", func() bool { status, _, _ := h.answered(2*i + 1); return status == "200" })
	}
}

// Headers of more than 16 KB are refused before anything is done for them, in one field, in many, or without an end.
func TestLargeHeadersOverHTTP2(t *testing.T) {
	r := newRig(t, nil)
	many := []string{"authorization", r.basic("anna")}
	for i := range 400 {
		many = append(many, fmt.Sprint("x-", i), strings.Repeat("y", 50))
	}
	for name, header := range map[string][]string{
		"one field":   {"authorization", r.basic("anna"), "x-large", strings.Repeat("y", 20<<10)},
		"many fields": many,
		"a megabyte":  {"authorization", r.basic("anna"), "x-large", strings.Repeat("y", 1<<20)},
	} {
		h := r.http2(t)
		before := r.count.requests.Load()
		_ = h.open(1, false, header...) // the gateway may hang up before it has all
		eventually(t, name+" is refused", func() bool {
			status, _, reset := h.answered(1)
			return status == "431" || reset || h.ended()
		})
		if status, _, _ := h.answered(1); status != "" && status != "431" {
			t.Errorf("%s: answered %s", name, status)
		}
		if got := r.count.requests.Load(); got != before {
			t.Errorf("%s: reached the gateway's handler", name)
		}
	}
	h := r.http2(t)
	r.othersAreServed(t, func() {
		if err := h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}}); err != nil {
			t.Fatal(err)
		}
		for begun := time.Now(); !h.ended(); {
			_ = h.fr.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 16<<10)) // ":method: GET", each a byte
			if time.Since(begun) > 20*time.Second {
				t.Fatal("headers are taken without an end")
			}
		}
	})
}

// Streams that are opened and reset at once, again and again (CVE-2023-44487), take no more than those that one may have; others are
// served meanwhile.
func TestResetStreamsOverHTTP2(t *testing.T) {
	r := newRig(t, nil)
	before := runtime.NumGoroutine()
	most := 0
	h := r.http2(t)
	r.othersAreServed(t, func() {
		stream := uint32(1)
		// It hangs up where requests come faster than they are begun and given up, which depends on the machine; it never has more
		// at work than a connection may have.
		for begun := time.Now(); !h.ended() && time.Since(begun) < 5*time.Second; stream += 2 {
			if h.open(stream, true, "authorization", r.basic("anna")) != nil || h.fr.WriteRSTStream(stream, http2.ErrCodeCancel) != nil {
				break
			}
			most = max(most, runtime.NumGoroutine())
		}
		t.Logf("%d streams were opened and reset, hung up on: %v", stream/2, h.ended())
		if stream < 1000 {
			t.Errorf("only %d streams were opened and reset", stream/2)
		}
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.goAway != nil && *h.goAway != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("it says %v; want %v", *h.goAway, http2.ErrCodeEnhanceYourCalm)
	}
	if most > before+2*streamsMax+50 {
		t.Errorf("%d goroutines before and %d at most: a connection has %d requests at once", before, most, streamsMax)
	}
}
