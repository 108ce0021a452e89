package ingest

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"hearthline/ingest/mqtt"

	"github.com/klauspost/compress/zstd"
	packets "github.com/mochi-mqtt/server/v2/packets"
)

// bomb is a little that becomes size bytes.
func bomb(encoding string, size int) []byte {
	var b bytes.Buffer
	var w io.WriteCloser
	if encoding == "gzip" {
		w, _ = gzip.NewWriterLevel(&b, gzip.BestSpeed)
	} else {
		w, _ = zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest))
	}
	zeros := bytes.Repeat([]byte(" "), 1<<20)
	for range size >> 20 {
		w.Write(zeros)
	}
	w.Close()
	return b.Bytes()
}

// A compressed body that becomes 96 MB is refused when it has become more than one may, also where it says that it is less, over
// HTTP/1.1 and over HTTP/2.
func TestBombs(t *testing.T) {
	r := newRig(t, nil)
	for _, encoding := range []string{"gzip", "zstd"} {
		body := bomb(encoding, 96<<20)
		if len(body) > 1<<20 {
			t.Fatalf("%s: %d bytes are no bomb", encoding, len(body))
		}
		for _, major := range []int{1, 2} {
			client := r.client()
			client.Transport.(*http.Transport).ForceAttemptHTTP2 = major == 2
			req, err := http.NewRequest(http.MethodPost, "https://"+r.at.HTTP.String()+"/v1/telemetry", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("anna", r.passwords["anna"])
			req.Header.Set("Content-Type", mediaJSON)
			req.Header.Set("Content-Encoding", encoding)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			client.CloseIdleConnections()
			runtime.ReadMemStats(&after)
			if res.StatusCode != http.StatusRequestEntityTooLarge || res.ProtoMajor != major {
				t.Errorf("%s: %s %s; want 413 over HTTP/%d", encoding, res.Proto, res.Status, major)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 256<<20 { // growing to 32 MB takes some doublings
				t.Errorf("%s, %s: %d bytes allocated", encoding, res.Proto, got)
			}
		}
	}
	if got := r.bodies.Load(); got != 0 {
		t.Errorf("%d bytes are still held", got)
	}
}

// Requests share the memory that bodies may take: who comes when it is taken is told to come again, and what has ended gives
// it back.
func TestBombsShareOneAllowance(t *testing.T) {
	r := newRig(t, func(g *Gateway) {
		g.HTTPPayloadBytesMax, g.DecompressedBytesMax, g.HTTPWaitingBytesMax = 1<<20, 1<<20, 1<<20+bodyStep
	})
	client := r.client()
	hold, sent := make(chan struct{}), make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() { // most of it, slowly
		body := io.MultiReader(strings.NewReader(strings.Repeat(" ", 1<<20-bodyStep)), after{hold, sent})
		req, err := http.NewRequest(http.MethodPost, "https://"+r.at.HTTP.String()+"/v1/telemetry", body)
		if err != nil {
			t.Error(err)
			return
		}
		req.SetBasicAuth("anna", r.passwords["anna"])
		req.Header.Set("Content-Type", mediaJSON)
		res, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		res.Body.Close()
	})
	<-sent
	eventually(t, "the slow one holds its bytes", func() bool { return r.bodies.Load() > 1<<20-2*bodyStep })
	large := []byte(strings.Repeat(" ", 512<<10) + deviceReading)
	if status, answer, header := r.post("bert", mediaJSON, large); status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
		t.Errorf("beside it: %d %s", status, answer)
	}
	if status, answer, _ := r.post("bert", mediaJSON, []byte(deviceReading)); status != 200 {
		t.Errorf("a small one beside it: %d %s", status, answer)
	}
	close(hold)
	wait.Wait()
	if status, answer, _ := r.post("bert", mediaJSON, large); status != 200 {
		t.Errorf("after it: %d %s", status, answer)
	}
	eventually(t, "all is given back", func() bool { return r.bodies.Load() == 0 })
}

// after ends when it may, and says that what was before it is gone.
type after struct{ until, reached chan struct{} }

func (a after) Read([]byte) (int, error) {
	select {
	case <-a.reached:
	default:
		close(a.reached)
	}
	<-a.until
	return 0, io.EOF
}

// What is refused costs its sender the same as what is taken: else nonsense would be the cheapest attack.
func TestRefusedRequestsAreRated(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.MessagesPerSecond, g.MessagesBurst = 0.01, 3 })
	for i, want := range []int{400, 400, 400, 429} {
		if status, body, _ := r.post("anna", mediaJSON, []byte("nonsense")); status != want {
			t.Errorf("request %d: %d %s; want %d", i, status, body, want)
		}
	}
	r = newRig(t, func(g *Gateway) { g.BytesPerSecond, g.BytesBurst = 1000, 32<<20 })
	bomb := bomb("gzip", 24<<20)
	for i, want := range []int{400, 429, 429} { // nothing but spaces; the second is read, the third is not
		if status, body, _ := r.post("anna", mediaJSON, bomb, "Content-Encoding", "gzip"); status != want {
			t.Errorf("bomb %d: %d %s; want %d", i, status, body, want)
		}
	}
	if got := r.door.Users["anna"].Bytes.Tokens(); got > 1<<20 {
		t.Errorf("%v bytes are left of its rate", got)
	}
}

// A body that comes a byte at a time is cut off, and takes nothing from others.
func TestSlowBody(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.ConnectTimeout, g.PacketTimeout = 500*time.Millisecond, time.Second })
	for name, head := range map[string]string{
		"header": "POST /v1/telemetry HTTP/1.1\r\nHost: x\r\nX-Slow: ",
		"body": "POST /v1/telemetry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\nAuthorization: Bearer anna:" +
			r.passwords["anna"] + "\r\n\r\n",
	} {
		config := r.tls()
		config.NextProtos = []string{"http/1.1"}
		c, err := tls.Dial("tcp", r.at.HTTP.String(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, head)
		ended := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(c)
			ended <- err
		}()
		start, tick := time.Now(), time.NewTicker(20*time.Millisecond)
		for open := true; open; {
			select {
			case <-ended:
				open = false
			case <-tick.C:
				_, _ = c.Write([]byte(" "))
			}
			if time.Since(start) > 20*time.Second {
				t.Fatalf("a slow %s is waited for without an end", name)
			}
		}
		tick.Stop()
	}
}

// One user's connections are limited: a stolen password does not shut the others out.
func TestConnectionsOfOneUser(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.UserConnections = 3 })
	var open []*peer
	for i := range 3 {
		open = append(open, r.connect(5, "anna", fmt.Sprint("hub", i)))
	}
	p := r.dial()
	p.version = 5
	p.send(connectPacketOf(r, "anna", "one-more"))
	if ack := p.want(packets.Connack); ack.ReasonCode != mqtt.CodeQuota {
		t.Errorf("CONNACK %#x; want quota exceeded (%#x)", ack.ReasonCode, mqtt.CodeQuota)
	}
	r.connect(5, "bert", "hub").conn.Close()
	open[0].conn.Close()
	eventually(t, "there is room again", func() bool {
		p := r.dial()
		p.version = 5
		p.send(connectPacketOf(r, "anna", "later"))
		return p.want(packets.Connack).ReasonCode == 0
	})
}
