package streams

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// A broker that is frozen, or behind a network that swallows packets, still lets itself be connected to. kafka-go
// chooses among brokers by chance when it asks who leads what, and meanwhile all requests wait for that answer, those to
// healthy brokers too. So an address that has not answered is not connected to for a while: another is asked at once.

const (
	// suspectAfter is how long a request must have waited in vain: a caller that gave up sooner says nothing of the broker.
	suspectAfter = time.Second
	// suspectFor is how long an address is left alone.
	suspectFor = 3 * time.Second
	// probeMax is how long it may then take to answer a probe, before requests are sent to it again.
	probeMax = 2 * time.Second
)

// suspects are the addresses that did not answer lately, and until when they are left alone.
type suspects struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (s *suspects) add(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[string]time.Time{}
	}
	s.until[addr] = time.Now().Add(suspectFor)
}

func (s *suspects) clear(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.until, addr)
}

// of says whether an address is suspected, and whether it is to be left alone still.
func (s *suspects) of(addr string) (suspected, alone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.until[addr]
	return ok, ok && time.Now().Before(until)
}

// dial connects to a broker that is not suspected, or that answers a probe.
func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if suspected, alone := c.suspects.of(addr); alone {
		return nil, fmt.Errorf("broker %s did not answer within the last seconds", addr)
	} else if suspected {
		c.suspects.add(addr) // one probe at a time
		if err := c.probe(ctx, addr); err != nil {
			c.suspects.add(addr)
			return nil, fmt.Errorf("broker %s does not answer: %w", addr, err)
		}
		c.suspects.clear(addr)
	}
	c.count.connects.Add(1)
	begun := time.Now()
	conn, err := c.dialer.DialContext(ctx, network, addr)
	if err != nil {
		if time.Since(begun) >= suspectAfter {
			c.suspects.add(addr)
		}
		return nil, err
	}
	return &watched{Conn: conn, addr: addr, suspects: &c.suspects}, nil
}

// probe asks a broker for the versions it speaks, on a connection of its own. A broker that refuses connections, or
// answers wrongly, is not silent: what is wrong is for the connection itself to say.
func (c *Client) probe(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, probeMax)
	defer cancel()
	conn, err := c.connect(ctx, addr)
	if err == nil {
		defer conn.Close()
		err = c.checkVersions(conn)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// watched is a connection whose silence is noticed. kafka-go writes and reads by turns.
type watched struct {
	net.Conn
	addr     string
	suspects *suspects

	mu    sync.Mutex
	asked time.Time // when something was last written
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	w.asked = time.Now()
	w.mu.Unlock()
	return w.Conn.Write(b)
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		w.mu.Lock()
		waited := time.Since(w.asked)
		w.mu.Unlock()
		if waited >= suspectAfter {
			w.suspects.add(w.addr)
		}
	}
	return n, err
}
