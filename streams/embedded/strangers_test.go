package embedded_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"hearthline/streams"
	"hearthline/streams/embedded"
	"hearthline/streams/streamstest"
)

// request is a frame of Kafka's protocol: size, key, version, correlation id, and what follows.
func request(key, version int16, rest []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(rest)))
	b = binary.BigEndian.AppendUint16(b, uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	return append(binary.BigEndian.AppendUint32(b, 7), rest...)
}

// TestStrangers: what is not Kafka's protocol ends a connection, not the broker, and takes no memory that it only claims.
func TestStrangers(t *testing.T) {
	b := embedded.New()
	b.Addr = "127.0.0.1:0"
	addr, _, _ := run(t, b)
	var hello bytes.Buffer
	_ = tls.Client(recorder{&hello}, &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS12}).Handshake() // nobody answers
	for name, sent := range map[string][]byte{
		"a browser's form":      []byte("POST / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"a browser's page":      []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"TLS":                   hello.Bytes(),
		"four gigabytes":        {0xff, 0xff, 0xff, 0xff, 0, 3},
		"nothing":               {0, 0, 0, 0, 0, 3, 0, 0},
		"an unknown request":    request(9999, 0, nil),
		"a negative request":    request(-1, 0, nil),
		"an unknown, with more": request(12345, 3, make([]byte, 100)),
	} {
		c := dial(t, addr)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(c); len(answer) > 0 || isTimeout(err) {
			t.Errorf("%s: answered %q, %v; want the connection closed", name, answer, err)
		}
	}
	half := dial(t, addr) // and stays
	if _, err := half.Write(request(3, 1, nil)[:7]); err != nil {
		t.Fatal(err)
	}
	alive(t, addr)
}

// TestRandomRequests: requests of known kinds with nonsense in them end a connection at most.
func TestRandomRequests(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	b := embedded.New()
	b.Addr = "127.0.0.1:0"
	addr, _, _ := run(t, b)
	for range 100 {
		c := dial(t, addr)
		rest := make([]byte, r.IntN(64))
		for i := range rest {
			rest[i] = byte(r.Uint32() >> r.IntN(9)) // more small numbers than large ones
		}
		if _, err := c.Write(request(int16(r.IntN(93)), int16(r.IntN(20)), rest)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Millisecond))
		_, _ = c.Read(make([]byte, 64)) // an answer, an end or a wait: all are well
		c.Close()
	}
	alive(t, addr)
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// alive publishes and reads.
func alive(t *testing.T, addr string) {
	t.Helper()
	c := streamstest.Cluster{Brokers: []string{addr}}.Dial(t)
	ctx := streamstest.Context(t)
	stream := streamstest.Name("alive")
	if err := c.Ensure(ctx, []streams.Spec{{Name: stream, Partitions: 1, Retention: time.Hour}}); err != nil {
		t.Fatal(err)
	}
	streamstest.Publish(t, c.NewProducer(), stream, 0, 1, 1)
	reader := c.NewReader(stream, 0, 0)
	defer reader.Close()
	if _, err := reader.Next(ctx); err != nil {
		t.Fatal(fmt.Errorf("read what was published: %w", err))
	}
}

// recorder keeps what is written to it, and says nothing.
type recorder struct{ *bytes.Buffer }

func (recorder) Read([]byte) (int, error)           { return 0, io.EOF }
func (recorder) Close() error                       { return nil }
func (recorder) LocalAddr() net.Addr                { return nil }
func (recorder) RemoteAddr() net.Addr               { return nil }
func (recorder) SetDeadline(time.Time) error        { return nil }
func (recorder) SetReadDeadline(time.Time) error    { return nil }
func (recorder) SetWriteDeadline(t time.Time) error { return nil }
