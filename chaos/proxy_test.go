package chaos

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// proxy stands between clients and one server, and does to their connections what its rules say.
type proxy struct {
	listener net.Listener
	target   func() string             // the server's address; asked for each connection
	whose    func(first []byte) string // who a client is, by the first bytes it sends; nil: all are alike

	mu    sync.Mutex
	rules map[string]*rule // by client; "*" is for all
	conns map[*pair]bool
}

// Ways of a connection to go wrong.
const (
	wayCut      = "cut"      // connections are reset, new ones too
	wayStall    = "stall"    // no byte passes; then all go on
	wayLose     = "lose"     // no byte passes, and connections are reset at the end: what was under way is lost
	wayHalf     = "half"     // requests pass, answers do not; connections are reset at the end
	wayDelay    = "delay"    // each chunk waits
	wayThrottle = "throttle" // few bytes a second
	waySwallow  = "swallow"  // requests pass; some of the next answers are replaced by a reset
)

// rule is what happens to a client's connections until it is lifted.
type rule struct {
	way    string
	delay  time.Duration // of a chunk
	rate   int           // bytes a second
	lifted chan struct{}

	mu   sync.Mutex
	left int // answers to swallow
}

// pair is one connection: both halves.
type pair struct {
	client    string
	near, far net.Conn
}

func (c *pair) reset() {
	for _, conn := range []net.Conn{c.near, c.far} {
		if t, ok := conn.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		conn.Close()
	}
}

func newProxy(addr string, target func() string, whose func([]byte) string) (*proxy, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, target: target, whose: whose, rules: map[string]*rule{}, conns: map[*pair]bool{}}
	go p.accept()
	return p, nil
}

func (p *proxy) close() {
	p.listener.Close()
	p.each("*", (*pair).reset)
}

func (p *proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.serve(conn)
	}
}

func (p *proxy) serve(near net.Conn) {
	c := &pair{near: near, far: near}
	var first []byte
	if p.whose != nil {
		b := make([]byte, 4<<10)
		n, err := near.Read(b)
		if err != nil {
			near.Close()
			return
		}
		first = b[:n]
		c.client = p.whose(first)
	}
	far, err := net.DialTimeout("tcp", p.target(), 2*time.Second)
	if err != nil {
		c.reset()
		return
	}
	c.far = far
	p.mu.Lock()
	p.conns[c] = true
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.pump(c, io.MultiReader(bytes.NewReader(first), near), far, false) })
	both.Go(func() { p.pump(c, far, near, true) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	near.Close()
	far.Close()
}

// clientID is who sends a Kafka request: size, key, version, correlation id, client id.
func clientID(first []byte) string {
	if len(first) < 14 {
		return ""
	}
	n := int(binary.BigEndian.Uint16(first[12:]))
	if len(first) < 14+n {
		return ""
	}
	return string(first[14 : 14+n])
}

// pump carries bytes one way, until the connection ends.
func (p *proxy) pump(c *pair, from io.Reader, to net.Conn, answers bool) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 && !p.pass(c, n, answers) {
			c.reset()
			return
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				c.reset()
				return
			}
		}
		if err != nil {
			if t, ok := to.(*net.TCPConn); ok && err == io.EOF {
				_ = t.CloseWrite()
				return
			}
			c.reset()
			return
		}
	}
}

// pass holds n bytes up as the rule says. It says whether they may go on; if not, the connection ends.
func (p *proxy) pass(c *pair, n int, answers bool) bool {
	r := p.rule(c.client)
	if r == nil {
		return true
	}
	switch r.way {
	case wayStall:
		<-r.lifted
	case wayLose:
		<-r.lifted
		return false
	case wayHalf:
		if answers {
			<-r.lifted
			return false
		}
	case wayDelay:
		time.Sleep(r.delay/2 + rand.N(r.delay))
	case wayThrottle:
		time.Sleep(time.Duration(n) * time.Second / time.Duration(r.rate))
	case waySwallow:
		// Not always the first: ClickHouse answers an insert before it has the rows, and again when it has kept them.
		if answers && rand.IntN(3) == 0 {
			return !r.swallow()
		}
	case wayCut:
		return false
	}
	return true
}

func (r *rule) swallow() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left == 0 {
		return false
	}
	r.left--
	return true
}

func (p *proxy) rule(client string) *rule {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.rules[client]; r != nil && client != "" {
		return r
	}
	if client == harness {
		return nil // the one who counts is not disturbed
	}
	return p.rules["*"]
}

// harness is the name of this process's own connections.
const harness = "harness"

// impose makes r hold for a client, or for all ("*"), for a while.
func (p *proxy) impose(ctx context.Context, client string, r *rule, lasts time.Duration) {
	r.lifted = make(chan struct{})
	p.mu.Lock()
	p.rules[client] = r
	p.mu.Unlock()
	if r.way == wayCut {
		p.each(client, (*pair).reset)
	}
	select {
	case <-time.After(lasts):
	case <-ctx.Done():
	}
	p.mu.Lock()
	if p.rules[client] == r {
		delete(p.rules, client)
	}
	p.mu.Unlock()
	close(r.lifted)
}

func (p *proxy) each(client string, do func(*pair)) {
	p.mu.Lock()
	var some []*pair
	for c := range p.conns {
		if client == "*" && c.client != harness || c.client == client {
			some = append(some, c)
		}
	}
	p.mu.Unlock()
	for _, c := range some {
		do(c)
	}
}
