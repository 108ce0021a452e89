package wire

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sourcegraph/conc"
)

// door is a listener whose connections a loop drives.
type door struct {
	t     *testing.T
	ln    net.Listener
	loop  Loop
	tasks conc.WaitGroup
	stop  chan struct{}
	done  chan error

	mu       sync.Mutex
	handlers []*echo
	slow     bool
	timeout  time.Duration // of a write
}

// echo gives back lines. A line "hold" makes it wait, "panic" is a bug, "evict" closes from the other side, "big" is
// answered by 8 MB.
type echo struct {
	d     *door
	link  *Link
	slow  atomic.Bool
	by    atomic.Int64 // deadline, Unix ns; 0: none
	busy  atomic.Bool
	hold  chan struct{}
	held  atomic.Int32
	ended chan error // capacity 2, so that a second End is seen
}

func (e *echo) Slow() bool { return e.slow.Load() }

func (e *echo) Deadline() time.Time {
	if by := e.by.Load(); by != 0 {
		return time.Unix(0, by)
	}
	return time.Time{}
}

func (e *echo) End(err error) { e.ended <- err; e.link.Finish() }

func (e *echo) Receive(data []byte) (used int, h Hold, err error) {
	if e.busy.Swap(true) {
		return 0, h, errors.New("Receive was called twice at once")
	}
	defer e.busy.Store(false)
	defer e.link.Flush()
	e.slow.Store(false)
	for {
		line, _, whole := bytes.Cut(data[used:], []byte("\n"))
		if !whole {
			return used, h, nil
		}
		switch string(line) {
		case "hold":
			if e.held.Add(1) == 1 {
				return used, Hold{Until: e.hold}, nil
			}
		case "rest":
			if e.held.Add(1) == 1 {
				return used, Hold{AtMost: 20 * time.Millisecond}, nil
			}
		case "panic":
			panic("a bug")
		case "bye":
			return used, h, errors.New("bye")
		case "big":
			for range 8 {
				if !e.link.Add(1<<20, func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) }) {
					return used, h, errors.New("no room")
				}
			}
		}
		used += len(line) + 1
		if !e.link.Add(len(line)+1, func(b []byte) []byte { return append(append(b, line...), '\n') }) {
			return used, h, errors.New("no room")
		}
	}
}

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func open(t *testing.T, name string, set func(*door)) *door {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{t: t, ln: ln, stop: make(chan struct{}), done: make(chan error, 1), timeout: 10 * time.Second}
	if set != nil {
		set(d)
	}
	if d.loop, err = NewLoop(name, Settings{Stop: d.stop, BytesMax: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	go func() { d.done <- d.loop.Run() }()
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d.tasks.Go(func() { d.take(c, config) })
		}
	}()
	t.Cleanup(func() { d.close() })
	return d
}

func (d *door) close() {
	d.ln.Close()
	select {
	case <-d.stop:
		return
	default:
	}
	close(d.stop)
	select {
	case err := <-d.done:
		if err != nil {
			d.t.Error(err)
		}
	case <-time.After(20 * time.Second):
		d.t.Fatal("the loop does not end")
	}
	d.tasks.Wait()
	for _, e := range d.all() {
		if len(e.ended) > 1 {
			d.t.Errorf("End was called %d times", len(e.ended))
		}
	}
}

func (d *door) take(c net.Conn, config *tls.Config) {
	s := &Slot{Ctx: d.t.Context(), Free: make(chan struct{}, 1)}
	w, err := NewWire(c, s)
	if err != nil {
		d.t.Error(err)
		return
	}
	conn := tls.Server(w, config)
	if err := conn.Handshake(); err != nil {
		c.Close()
		return
	}
	w.Slot = nil
	e := &echo{d: d, link: &Link{Tls: conn, Wire: w, Tasks: &d.tasks, BytesMax: 16 << 20, Timeout: d.timeout}, hold: make(chan struct{}), ended: make(chan error, 2)}
	e.slow.Store(d.slow)
	d.mu.Lock()
	d.handlers = append(d.handlers, e)
	d.mu.Unlock()
	d.loop.Serve(e.link, e)
}

func (d *door) all() []*echo {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.handlers)
}

// dial gives both ends of a new connection.
func (d *door) dial() (*tls.Conn, *echo) {
	d.t.Helper()
	n := len(d.all())
	c, err := tls.Dial("tcp", d.ln.Addr().String(), &tls.Config{InsecureSkipVerify: true}) // #nosec G402 -- a test
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	for len(d.all()) == n {
		time.Sleep(time.Millisecond)
	}
	return c, d.all()[n]
}

func (d *door) say(c net.Conn, what string) {
	d.t.Helper()
	if _, err := c.Write([]byte(what)); err != nil {
		d.t.Fatal(err)
	}
}

func (d *door) hear(c net.Conn, want string) {
	d.t.Helper()
	got := make([]byte, len(want))
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		d.t.Fatalf("got %.60q, %v; want %.60q", got[:n], err, want)
	}
}

func (e *echo) end() error {
	e.d.t.Helper()
	select {
	case err := <-e.ended:
		return err
	case <-time.After(10 * time.Second):
		e.d.t.Fatal("the connection does not end")
		return nil
	}
}

// over runs a test over every loop there is here.
func over(t *testing.T, test func(t *testing.T, loop string)) {
	for _, name := range slices.Compact([]string{Goroutines, Best}) {
		t.Run(name, func(t *testing.T) { test(t, name) })
	}
}

func TestEcho(t *testing.T) {
	over(t, func(t *testing.T, loop string) {
		d := open(t, loop, nil)
		c, e := d.dial()
		d.say(c, "one\n")
		d.hear(c, "one\n")
		d.say(c, "two\nthree\nfo")
		d.hear(c, "two\nthree\n")
		d.say(c, "ur\n")
		d.hear(c, "four\n")
		long := string(bytes.Repeat([]byte("x"), 300_000)) + "\n"
		go c.Write([]byte(long))
		d.hear(c, long)
		c.Close()
		if err := e.end(); err != io.EOF {
			t.Error(err)
		}
	})
}

func TestBytesOfTheHandshakesLastFlightAreServed(t *testing.T) {
	over(t, func(t *testing.T, loop string) {
		d := open(t, loop, nil)
		for range 20 {
			tcp, err := net.Dial("tcp", d.ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer tcp.Close()
			corked := &cork{Conn: tcp}
			c := tls.Client(corked, &tls.Config{InsecureSkipVerify: true}) // #nosec G402 -- a test
			go func() {
				c.Handshake()
				c.Write([]byte("early\n"))
				corked.flush()
			}()
			got := make([]byte, 6)
			tcp.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "early\n" {
				t.Fatalf("%q %v", got, err)
			}
		}
	})
}

// cork keeps what is written after the first write, the ClientHello, until flush: the client's Finished and what it
// says after it go out together.
type cork struct {
	net.Conn
	mu          sync.Mutex
	hello, open bool
	kept        []byte
}

func (c *cork) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.hello || c.open {
		c.hello = true
		return c.Conn.Write(p)
	}
	c.kept = append(c.kept, p...)
	return len(p), nil
}

func (c *cork) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = true
	c.Conn.Write(c.kept)
}

func TestAClientThatDoesNotReadHoldsUpNobody(t *testing.T) {
	over(t, func(t *testing.T, loop string) {
		d := open(t, loop, func(d *door) { d.timeout = 3 * time.Second })
		var stuck []*echo
		for range 4 * runtime.GOMAXPROCS(0) {
			c, e := d.dial()
			d.say(c, "big\n") // and it does not read
			stuck = append(stuck, e)
		}
		reader, _ := d.dial()
		d.say(reader, "big\n")
		d.hear(reader, string(make([]byte, 8<<20))+"big\n")
		c, _ := d.dial()
		for range 100 {
			start := time.Now()
			d.say(c, "quick\n")
			d.hear(c, "quick\n")
			if took := time.Since(start); took > 2500*time.Millisecond {
				t.Fatalf("an answer took %s", took)
			}
		}
		for _, e := range stuck {
			e.end() // after one write's timeout
		}
	})
}

func TestHolds(t *testing.T) {
	over(t, func(t *testing.T, loop string) {
		d := open(t, loop, nil)
		c, e := d.dial()
		d.say(c, "a\nhold\nb\n")
		d.hear(c, "a\n")
		d.say(c, "c\n")
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("it went on during a hold", err)
		}
		close(e.hold)
		d.hear(c, "hold\nb\nc\n")
		c, _ = d.dial()
		d.say(c, "rest\nd\n")
		d.hear(c, "rest\nd\n")
		c, e = d.dial()
		d.say(c, "hold\n")
		for e.held.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		e.link.FinishApart()
		if err := e.end(); err != ErrClosed {
			t.Error(err)
		}
	})
}

func TestEnds(t *testing.T) {
	over(t, func(t *testing.T, loop string) {
		d := open(t, loop, nil)
		c, e := d.dial()
		d.say(c, "panic\n")
		var bug *Panic
		if err := e.end(); !errors.As(err, &bug) || bug.Value != "a bug" || !bytes.Contains(bug.Stack, []byte("Receive")) {
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("it is still open")
		}
		c, e = d.dial()
		d.say(c, "ok\nbye\n")
		d.hear(c, "ok\n")
		if err := e.end(); err == nil || err.Error() != "bye" {
			t.Error(err)
		}
		c, e = d.dial()
		e.by.Store(time.Now().Add(300 * time.Millisecond).UnixNano())
		start := time.Now()
		d.say(c, "ok\n")
		if err := e.end(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		if took := time.Since(start); took < 250*time.Millisecond || took > 8*time.Second {
			t.Errorf("the deadline of 300 ms took %s", took)
		}
		c, e = d.dial()
		e.link.Add(4, func(b []byte) []byte { return append(b, "last"...) })
		e.link.FinishApart()
		d.hear(c, "last")
		if err := e.end(); err == nil {
			t.Error("no error")
		}
		select {
		case <-e.link.Gone():
		default:
			t.Error("Gone is not closed")
		}
	})
}

func TestStop(t *testing.T) {
	over(t, func(t *testing.T, loop string) {
		d := open(t, loop, nil)
		_, idle := d.dial()
		c, held := d.dial()
		d.say(c, "hold\n")
		for held.held.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		d.close()
		for _, e := range []*echo{idle, held} {
			if err := e.end(); err != ErrDraining {
				t.Error(err)
			}
		}
	})
}

func TestSlowHandlersHoldUpNobody(t *testing.T) {
	over(t, func(t *testing.T, loop string) {
		d := open(t, loop, func(d *door) { d.slow = true })
		var conns []net.Conn
		for range 50 {
			c, _ := d.dial()
			conns = append(conns, c)
		}
		for _, c := range conns {
			d.say(c, "x\n")
		}
		for _, c := range conns {
			d.hear(c, "x\n")
		}
	})
}

// Many connections come, talk and go at once, from either side: no answer is lost or another's, and no descriptor is
// left open.
func TestChurn(t *testing.T) {
	over(t, func(t *testing.T, loop string) {
		before := descriptors(t)
		d := open(t, loop, nil)
		var clients sync.WaitGroup
		for i := range 8 {
			clients.Go(func() {
				for j := range 40 {
					c, err := tls.Dial("tcp", d.ln.Addr().String(), &tls.Config{InsecureSkipVerify: true}) // #nosec G402 -- a test
					if err != nil {
						t.Error(err)
						return
					}
					for k := range 5 {
						line := []byte{'A' + byte(i), 'A' + byte(j%26), 'A' + byte(k), '\n'}
						c.Write(line)
						got := make([]byte, 4)
						c.SetReadDeadline(time.Now().Add(10 * time.Second))
						if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, line) {
							t.Errorf("%q %v", got, err)
						}
					}
					switch j % 3 {
					case 0:
						c.Close()
					case 1:
						c.NetConn().Close()
					case 2:
						c.Write([]byte("bye\n"))
						c.Read(make([]byte, 1))
						c.Close()
					}
				}
			})
		}
		clients.Wait()
		for _, e := range d.all() {
			e.end()
		}
		d.close()
		for range 100 {
			if descriptors(t) <= before {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("%d descriptors open, %d before", descriptors(t), before)
	})
}

func descriptors(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("NOT TESTED: descriptors left open: this system has no /proc/self/fd")
	}
	return len(all)
}

// Where this fails, this version of Go keeps its buffers elsewhere: connections cost some 8 KB more until
// findTLSBuffers finds them.
func TestTLSBuffersAreFound(t *testing.T) {
	if tlsBuffers == nil {
		t.Error("crypto/tls has changed: its buffers are not given back")
	}
	if findTLSBuffers(reflect.TypeFor[tls.Config]()) != nil {
		t.Error("fields are taken for what they are not")
	}
}

// What an idle connection holds in crypto/tls is not the handshake's buffers, and part of a record is kept.
func TestIdleConnectionsHoldNoBuffer(t *testing.T) {
	over(t, func(t *testing.T, loop string) {
		d := open(t, loop, nil)
		tcp, err := net.Dial("tcp", d.ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		torn := &tear{Conn: tcp}
		c := tls.Client(torn, &tls.Config{InsecureSkipVerify: true}) // #nosec G402 -- a test
		d.say(c, "one\n")
		d.hear(c, "one\n")
		torn.at = 9
		d.say(c, "two\n")
		e := d.all()[0]
		time.Sleep(50 * time.Millisecond)
		d.close() // nobody reads any more: the fields may be looked at
		raw, input, hand := tlsBuffers.fields(e.link.Tls)
		if raw.Len() != 9 || raw.Cap() > 64 || input.Size() != 0 || hand.Cap() != 0 {
			t.Errorf("%d bytes of %d, %d, %d are held", raw.Len(), raw.Cap(), input.Size(), hand.Cap())
		}
	})
}

// tear writes only the first at bytes of what it is given.
type tear struct {
	net.Conn
	at int
}

func (c *tear) Write(p []byte) (int, error) {
	if c.at > 0 && c.at < len(p) {
		_, err := c.Conn.Write(p[:c.at])
		return len(p), err
	}
	return c.Conn.Write(p)
}

// What a client has shown is let go, and the connection goes on.
func TestCertificatesAreForgotten(t *testing.T) {
	if tlsShown == nil {
		t.Fatal("crypto/tls has changed: certificates are not let go")
	}
	if findTLSCertificates(reflect.TypeFor[tls.Config]()) != nil {
		t.Error("fields are taken for what they are not")
	}
	cert := certificate(t)
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	near, far := net.Pipe()
	client := tls.Client(far, &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{cert}})
	server := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots})
	said := make(chan error, 1)
	go func() {
		_, err := client.Write([]byte("one"))
		got := make([]byte, 3)
		if err == nil {
			_, err = io.ReadFull(client, got)
		}
		if err == nil && string(got) != "two" {
			err = errors.New("it heard " + string(got))
		}
		said <- err
	}()
	got := make([]byte, 3)
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "one" {
		t.Fatal(string(got), err)
	}
	if s := server.ConnectionState(); len(s.PeerCertificates) != 1 || len(s.VerifiedChains) != 1 {
		t.Fatalf("%d certificates, %d chains", len(s.PeerCertificates), len(s.VerifiedChains))
	}
	ForgetCertificates(server)
	if s := server.ConnectionState(); s.PeerCertificates != nil || s.VerifiedChains != nil || !s.HandshakeComplete {
		t.Errorf("it still holds %d certificates, %d chains", len(s.PeerCertificates), len(s.VerifiedChains))
	}
	if _, err := server.Write([]byte("two")); err != nil {
		t.Error(err)
	}
	if err := <-said; err != nil {
		t.Error(err)
	}
}
