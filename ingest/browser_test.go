package ingest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/mochi-mqtt/server/v2/packets"
)

// browser is a WebSocket client that can be made to send any frame. It shares no code with the gateway's.
type browser struct {
	t    *testing.T
	conn *tls.Conn
	in   *bufio.Reader
}

// browse sends a handshake, and gives the answer's status.
func (r *rig) browse(t *testing.T, header ...string) (*browser, int) {
	t.Helper()
	config := r.tls()
	config.NextProtos = []string{"http/1.1"}
	c, err := tls.Dial("tcp", r.at.HTTP.String(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if len(header) == 0 {
		header = []string{"Sec-WebSocket-Protocol: chat, mqtt"}
	}
	fmt.Fprintf(c, "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n\r\n", strings.Join(header, "\r\n"))
	b := &browser{t: t, conn: c, in: bufio.NewReader(c)}
	res, err := http.ReadResponse(b.in, &http.Request{Method: "GET"})
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		// The accept key is the example of RFC 6455, section 1.3.
		if a, p := res.Header.Get("Sec-WebSocket-Accept"), res.Header.Get("Sec-WebSocket-Protocol"); a != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || p != "mqtt" {
			t.Errorf("accept %q, protocol %q", a, p)
		}
		if e := res.Header.Get("Sec-WebSocket-Extensions"); e != "" {
			t.Errorf("extensions %q", e)
		}
	}
	return b, res.StatusCode
}

// frameOf is a client's frame; first is its first byte.
func frameOf(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{0x12, 0x34, 0x56, 0x78}
	b = append(b, mask[:]...)
	for i, p := range payload {
		b = append(b, p^mask[i%4])
	}
	return b
}

func (b *browser) send(frames ...[]byte) {
	b.t.Helper()
	if _, err := b.conn.Write(bytes.Join(frames, nil)); err != nil {
		b.t.Fatal(err)
	}
}

// frame gives the next frame from the gateway.
func (b *browser) frame() (first byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(b.in, head[:]); err != nil {
		return 0, nil, err
	}
	n := uint64(head[1])
	switch n {
	case 126:
		var long [2]byte
		_, err = io.ReadFull(b.in, long[:])
		n = uint64(binary.BigEndian.Uint16(long[:]))
	case 127:
		var long [8]byte
		_, err = io.ReadFull(b.in, long[:])
		n = binary.BigEndian.Uint64(long[:])
	}
	if err != nil || n > 1<<20 || head[1]&0x80 != 0 {
		b.t.Fatalf("frame % x of %d bytes, %v", head, n, err)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(b.in, payload)
	return head[0], payload, err
}

func (b *browser) want(first byte, payload []byte) {
	b.t.Helper()
	f, p, err := b.frame()
	if err != nil || f != first || !bytes.Equal(p, payload) {
		b.t.Fatalf("frame %#x % x, %v; want %#x % x", f, p, err, first, payload)
	}
}

// wantClose reads until the close frame and the end, and gives its code.
func (b *browser) wantClose() int {
	b.t.Helper()
	code := 0
	for {
		f, p, err := b.frame()
		if err != nil {
			return code
		}
		if f == 0x88 && len(p) == 2 {
			code = int(binary.BigEndian.Uint16(p))
		}
	}
}

const binaryFrame, lastFrame = 0x82, 0x80

func (r *rig) browserConnect(t *testing.T) *browser {
	t.Helper()
	b, status := r.browse(t)
	if status != http.StatusSwitchingProtocols {
		t.Fatal(status)
	}
	b.send(frameOf(binaryFrame, encode(t, 4, connectPacketOf(r, "anna", "browser"))))
	b.want(binaryFrame, []byte{0x20, 2, 0, 0})
	return b
}

func TestPacketsAndFramesNeedNotMeet(t *testing.T) {
	r := newRig(t, nil)
	b := r.browserConnect(t)
	ping := []byte{0xc0, 0}
	pong := []byte{0xd0, 0}
	// A packet in several frames, with a ping of WebSocket in between and empty frames.
	pub := encode(t, 4, publishOf(lampTopic, reading, 1, 7))
	b.send(frameOf(0x02, pub[:1]), frameOf(0x00, pub[1:9]), frameOf(0x89, []byte("are you there")), frameOf(0x00, nil))
	b.want(0x8a, []byte("are you there"))
	b.send(frameOf(lastFrame, pub[9:]))
	b.want(binaryFrame, []byte{0x40, 2, 0, 7})
	// Several packets in one frame; a packet that ends in the frame after it.
	b.send(frameOf(binaryFrame, append(append(bytes.Clone(ping), ping...), pub[:5]...)), frameOf(binaryFrame, append(bytes.Clone(pub[5:]), ping...)))
	b.want(binaryFrame, pong)
	b.want(binaryFrame, pong)
	for range 2 { // PUBACK when it is durable, PINGRESP at once
		_, p, err := b.frame()
		if err != nil || !bytes.Equal(p, pong) && !bytes.Equal(p, []byte{0x40, 2, 0, 7}) {
			t.Fatalf("% x %v", p, err)
		}
	}
	// Byte by byte, in records of their own.
	for _, c := range frameOf(binaryFrame, ping) {
		b.send([]byte{c})
	}
	b.want(binaryFrame, pong)
	// A long one in many small frames, and a long one to the client.
	b.send(frameOf(binaryFrame, encode(t, 4, subscribeOf(3, 0, "homes/h1/#"))))
	b.want(binaryFrame, []byte{0x90, 3, 0, 3, 0})
	long := encode(t, 4, publishOf("homes/h1/long", strings.Repeat("x", 100_000), 0, 0))
	for at := 0; at < len(long); at += 1000 {
		first := byte(0)
		if at == 0 {
			first = 0x02
		}
		if at+1000 >= len(long) {
			first |= 0x80
		}
		b.send(frameOf(first, long[at:min(len(long), at+1000)]))
	}
	b.want(binaryFrame, long)
	b.send(frameOf(0x88, binary.BigEndian.AppendUint16(nil, 1000)))
	if code := b.wantClose(); code != 1000 {
		t.Errorf("closed with %d", code)
	}
	eventually(t, "the connection is not counted any more", func() bool { s := r.Stats(); return s.Connections == 0 && s.Sockets == 0 })
	if n := len(r.road.events()); n != 2 {
		t.Errorf("%d rows", n)
	}
}

func TestFramesThatAreRefused(t *testing.T) {
	r := newRig(t, nil)
	unmasked := []byte{binaryFrame, 2, 0xc0, 0}
	for _, c := range []struct {
		name  string
		frame []byte
		code  int
	}{
		{"text", frameOf(0x81, []byte("hello")), 1003},
		{"compressed", frameOf(0xc2, []byte{0xc0, 0}), 1002},
		{"an unknown kind", frameOf(0x83, nil), 1002},
		{"unmasked", unmasked, 1002},
		{"a continuation of nothing", frameOf(0x80, []byte{0xc0, 0}), 1002},
		{"a new message inside another", append(frameOf(0x02, []byte{0xc0}), frameOf(binaryFrame, []byte{0xc0, 0})...), 1002},
		{"a long ping", frameOf(0x89, make([]byte, 126)), 1002},
		{"a ping in parts", frameOf(0x09, nil), 1002},
		{"more than a packet", []byte{binaryFrame, 0x80 | 127, 0, 0, 0, 0, 0x10, 0, 0, 0, 1, 2, 3, 4}, 1009},
		{"a length beyond 63 bits", []byte{binaryFrame, 0x80 | 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, 1002},
		{"a packet that is none", frameOf(binaryFrame, []byte{0xf0, 0}), 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := r.browserConnect(t)
			b.send(c.frame)
			if code := b.wantClose(); code != c.code {
				t.Errorf("closed with %d; want %d", code, c.code)
			}
		})
	}
}

func TestHandshakesOfBrowsers(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.WebSocketOrigins = []string{"https://app.example.com"} })
	const mqtt = "Sec-WebSocket-Protocol: mqtt"
	for _, c := range []struct {
		name   string
		header []string
		status int
	}{
		{"no page", []string{mqtt}, 101},
		{"a page of this host", []string{mqtt, "Origin: https://localhost"}, 101},
		{"a page that may", []string{mqtt, "Origin: https://app.example.com"}, 101},
		{"a page that may not", []string{mqtt, "Origin: https://evil.example.com"}, 403},
		{"a page of this host, not encrypted", []string{mqtt, "Origin: http://localhost"}, 403},
		{"no subprotocol", []string{"X: y"}, 400},
		{"another subprotocol", []string{"Sec-WebSocket-Protocol: mqttv3.1"}, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, status := r.browse(t, c.header...); status != c.status {
				t.Errorf("%d; want %d", status, c.status)
			}
		})
	}
	res, err := r.client().Get("https://" + r.at.HTTP.String() + "/mqtt")
	if err != nil || res.StatusCode != http.StatusHTTPVersionNotSupported {
		t.Errorf("HTTP/2: %v %v", res.StatusCode, err)
	}
	res.Body.Close()
}

// A browser that never says CONNECT is cut off like any other client, and one that says its page's origin but no
// packet holds nothing open.
func TestBrowsersHaveDeadlines(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.ConnectTimeout = 300 * time.Millisecond })
	b, _ := r.browse(t)
	start := time.Now()
	b.wantClose()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestPahoOverWebSocket(t *testing.T) {
	r := newRig(t, nil)
	options := func(user, id string) *paho.ClientOptions {
		return paho.NewClientOptions().AddBroker("wss://" + r.at.HTTP.String() + "/mqtt").SetClientID(id).SetUsername(user).SetPassword(r.passwords[user]).
			SetTLSConfig(&tls.Config{RootCAs: r.roots, ServerName: "localhost"}).SetAutoReconnect(false).SetConnectTimeout(10 * time.Second)
	}
	done := func(tok paho.Token) {
		t.Helper()
		if !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
			t.Fatal(tok.Error())
		}
	}
	got := make(chan string, 100)
	app := paho.NewClient(options("app", "phone"))
	done(app.Connect())
	done(app.Subscribe("homes/h1/#", 1, func(_ paho.Client, m paho.Message) { got <- m.Topic() + " " + string(m.Payload()) }))
	hub := paho.NewClient(options("anna", "hub"))
	done(hub.Connect())
	for i := range 50 {
		done(hub.Publish(lampTopic, 1, false, fmt.Sprintf(`{"metric":"power","value":%d}`, i)))
	}
	big := strings.Repeat("y", 70_000)
	done(hub.Publish("homes/h1/big", 1, false, big))
	for i := range 50 {
		if m := <-got; m != fmt.Sprintf(`%s {"metric":"power","value":%d}`, lampTopic, i) {
			t.Fatal(i, m)
		}
	}
	if m := <-got; m != "homes/h1/big "+big {
		t.Errorf("%.40q of %d bytes", m, len(m))
	}
	if n := len(r.road.events()); n != 50 {
		t.Errorf("%d rows", n)
	}
	hub.Disconnect(100)
	app.Disconnect(100)
	eventually(t, "both are gone", func() bool { return r.Stats().Connections == 0 })
}

// A publisher over WebSocket waits while the log takes nothing, and loses nothing.
func TestBrowsersWaitForTheLog(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.RowsMax, g.QueueMax, g.ReceiveMaximum = 2, 1, 4 })
	r.road.failing.Store(true)
	b := r.browserConnect(t)
	var all []byte
	for id := range uint16(40) {
		all = append(all, encode(t, 4, publishOf(lampTopic, reading, 1, id+1))...)
	}
	for at := 0; at < len(all); at += 77 {
		b.send(frameOf(binaryFrame, all[at:min(len(all), at+77)]))
	}
	eventually(t, "it waits", func() bool { return r.Stats().Held > 0 })
	r.road.failing.Store(false)
	for id := range uint16(40) {
		b.want(binaryFrame, []byte{packets.Puback << 4, 2, 0, byte(id + 1)})
	}
	if n := len(r.road.events()); n != 40 {
		t.Errorf("%d rows", n)
	}
}
