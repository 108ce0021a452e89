package streams_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"hearthline/streams"
	"hearthline/streams/streamstest"
)

// holder is a road to a broker on which the first commit is held up for as long as the test likes.
type holder struct {
	net.Listener
	front   net.Listener
	held    atomic.Bool
	release chan struct{}
	passed  chan struct{} // the held commit has gone on to the broker
}

// Addr is what clients are told: the road, not its end.
func (h *holder) Addr() net.Addr { return h.front.Addr() }

func (h *holder) run() {
	for {
		near, err := h.front.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", h.Listener.Addr().String())
		if err != nil {
			near.Close()
			continue
		}
		var late atomic.Bool
		go h.answers(near, far, &late)
		go h.requests(near, far, &late)
	}
}

// requests carries requests, one after the other. What was received is sent on, however long it takes, as in a network.
func (h *holder) requests(near, far net.Conn, late *atomic.Bool) {
	for {
		head := make([]byte, 4)
		if _, err := io.ReadFull(near, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head))
		if _, err := io.ReadFull(near, body); err != nil {
			return
		}
		mine := kmsg.Key(binary.BigEndian.Uint16(body)) == kmsg.OffsetCommit && h.held.CompareAndSwap(false, true)
		if mine {
			<-h.release
			late.Store(true)
		}
		if _, err := far.Write(append(head, body...)); err != nil {
			return
		}
	}
}

// answers carries answers back, and notes that of the commit that was held up, which nobody waits for any more.
func (h *holder) answers(near, far net.Conn, late *atomic.Bool) {
	defer far.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := far.Read(b)
		if err != nil {
			return
		}
		if late.CompareAndSwap(true, false) {
			close(h.passed)
		}
		_, _ = near.Write(b[:n])
	}
}

// TestCommitThatArrivesLate: a commit is held up, given up, and arrives when a later one has long been made. It must not
// undo that: a sink's would have ranges cut anew that were written already.
func TestCommitThatArrivesLate(t *testing.T) {
	h := &holder{release: make(chan struct{}), passed: make(chan struct{})}
	_, _ = startCluster(t, 1, kfake.ListenFn(func(network, addr string) (net.Listener, error) {
		var err error
		if h.Listener, err = listenLow(network, addr); err != nil {
			return nil, err
		}
		if h.front, err = listenLow(network, addr); err != nil {
			return nil, err
		}
		return h, nil
	}))
	t.Cleanup(func() { h.front.Close() })
	go h.run()
	c := streamstest.Cluster{Brokers: []string{h.front.Addr().String()}, Config: func(c *streams.Config) { c.RequestTimeout = time.Second }}.Dial(t)
	stream := streamstest.Stream(t, c, 1)
	ctx, cancel := context.WithCancel(streamstest.Context(t))
	defer cancel()
	err := c.Join(ctx, streams.GroupConfig{ID: "g", Streams: []string{stream}, Heartbeat: 50 * time.Millisecond}, func(ctx context.Context, a *streams.Assignment) error {
		defer cancel()
		if err := a.Commit(ctx, []streams.Commit{{Stream: stream, Offset: 3, Metadata: "held up"}}); err != nil {
			t.Errorf("the commit whose first request was held up: %v", err)
		}
		if err := a.Commit(ctx, []streams.Commit{{Stream: stream, Offset: 9, Metadata: "later"}}); err != nil {
			t.Errorf("the next commit: %v", err)
		}
		close(h.release)
		select {
		case <-h.passed:
		case <-ctx.Done():
			t.Error("the commit that was held up did not arrive")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Committed(streamstest.Context(t), "g", stream)
	if err != nil || got[0] != (streams.Committed{Offset: 9, Metadata: "later"}) {
		t.Errorf("the group has committed %+v, %v", got, err)
	}
}
