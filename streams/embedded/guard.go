package embedded

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Limits of what a client may ask for. kfake has none: it makes room for whatever the first four bytes of a request
// claim, and an API key that it does not know takes the process with it. Both are easily sent by accident: a
// browser's "POST" on this port reads as a request of 1.3 GB.
const (
	requestBytesMax = 100 << 20 // Kafka's own default (socket.request.max.bytes)
	requestBytesMin = 8         // key, version and correlation id
	connectionsMax  = 2048
)

// guarded is a listener whose connections carry requests of Kafka's protocol, or end.
type guarded struct {
	net.Listener
	slots chan struct{}
}

func guard(l net.Listener) net.Listener {
	return &guarded{Listener: l, slots: make(chan struct{}, connectionsMax)}
}

// Accept closes connections beyond the limit.
func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case g.slots <- struct{}{}:
			return &requests{Conn: c, free: sync.OnceFunc(func() { <-g.slots })}, nil
		default:
			_ = c.Close() // one too many
		}
	}
}

// requests is a connection that looks at the start of each request before it hands it on. It is read by one
// goroutine at a time.
type requests struct {
	net.Conn
	free  func()
	head  [6]byte // size and API key
	given int     // bytes of head that were handed on, while whole
	whole bool    // head is read, and some of it may be left
	left  uint32  // bytes of the request behind head
}

func (r *requests) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !r.whole && r.left == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	if r.whole {
		n := copy(p, r.head[r.given:])
		if r.given += n; r.given == len(r.head) {
			r.whole = false
		}
		return n, nil
	}
	n, err := r.Conn.Read(p[:min(uint32(len(p)), r.left)])
	r.left -= uint32(n)
	return n, err
}

// next reads the head of a request and judges it.
func (r *requests) next() error {
	if _, err := io.ReadFull(r.Conn, r.head[:]); err != nil {
		return err
	}
	size, key := binary.BigEndian.Uint32(r.head[:]), int16(binary.BigEndian.Uint16(r.head[4:]))
	if size < requestBytesMin || size > requestBytesMax {
		return fmt.Errorf("embedded broker: a request of %d bytes; the limit is %d", size, requestBytesMax)
	}
	if kmsg.RequestForKey(key) == nil {
		return fmt.Errorf("embedded broker: no request of Kafka's has the key %d", key)
	}
	r.given, r.whole, r.left = 0, true, size-2
	return nil
}

func (r *requests) Close() error {
	r.free()
	return r.Conn.Close()
}
