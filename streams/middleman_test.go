package streams_test

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/segmentio/kafka-go/protocol"
)

// middleman stands between clients and one broker, and may keep or change what the broker answers.
type middleman struct {
	addr string // where clients find it

	mu     sync.Mutex
	answer func(api protocol.ApiKey, body []byte) (pass bool) // nil passes everything
	hold   func(api protocol.ApiKey, request []byte)          // returns when the answer may go on; nil holds nothing
}

// newMiddleman listens; serve says for whom.
func newMiddleman(t *testing.T) (m *middleman, serve func(broker string)) {
	t.Helper()
	l, err := listenLow("tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	m = &middleman{addr: l.Addr().String()}
	t.Cleanup(func() { _ = l.Close() })
	return m, func(broker string) {
		go func() {
			for {
				client, err := l.Accept()
				if err != nil {
					return
				}
				go m.pass(client, broker)
			}
		}()
	}
}

// set changes what becomes of the answers from now on.
func (m *middleman) set(answer func(api protocol.ApiKey, body []byte) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = answer
}

// setHold changes what answers wait for from now on. Unlike answer, hold may be called for several connections at once.
func (m *middleman) setHold(hold func(api protocol.ApiKey, request []byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold = hold
}

// pass carries requests and answers of one connection. An answer that is not passed on leaves its client waiting.
func (m *middleman) pass(client net.Conn, addr string) {
	defer client.Close()
	broker, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer broker.Close()
	for {
		request, err := readFrame(client)
		if err != nil {
			return
		}
		if _, err := broker.Write(request); err != nil {
			return
		}
		response, err := readFrame(broker)
		if err != nil {
			return
		}
		api := protocol.ApiKey(binary.BigEndian.Uint16(request[4:]))
		m.mu.Lock()
		hold, passes := m.hold, m.answer == nil || m.answer(api, response[8:])
		m.mu.Unlock()
		if hold != nil {
			hold(api, request)
		}
		if !passes {
			_, _ = io.Copy(io.Discard, client) // until it gives up
			return
		}
		if _, err := client.Write(response); err != nil {
			return
		}
	}
}

// readFrame reads a request or an answer, with its length.
func readFrame(r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	b := append(head, make([]byte, binary.BigEndian.Uint32(head))...)
	_, err := io.ReadFull(r, b[4:])
	return b, err
}
