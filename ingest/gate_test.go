package ingest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/ingest/identity"
	"hearthline/ingest/reason"
)

func TestGate(t *testing.T) {
	now := time.Now()
	g := newGate(&Admission{AddressConnections: 2, AddressHandshakes: 1.5})
	a, b := keyOf("192.0.2.1:1000"), keyOf("192.0.2.2:1000")
	enter := func(from netip.Addr) string {
		why, ok := g.enter(from, now)
		if ok {
			return "in"
		}
		return why.String()
	}
	for i, want := range []string{"in", "in", "connections"} {
		if got := enter(a); got != want {
			t.Errorf("connection %d: %s; want %s", i+1, got, want)
		}
	}
	if got := enter(b); got != "in" {
		t.Error("another address suffers:", got)
	}
	g.leave(a)
	if got := enter(a); got != "in" {
		t.Error("there is room again:", got)
	}
	g.leave(a)
	if got := enter(a); got != reason.Rate.String() {
		t.Error("a fourth handshake at once:", got)
	}
	now = now.Add(time.Second)
	if got := enter(a); got != "in" {
		t.Error("a second later:", got)
	}
	g.leave(a)
	g.leave(a)
	g.leave(b)
	g.sweep(now.Add(time.Hour))
	if len(g.from) != 0 {
		t.Errorf("%d addresses are remembered for ever", len(g.from))
	}
	for text, want := range map[string]string{
		"192.0.2.7:80": "192.0.2.7", "[::ffff:192.0.2.7]:80": "192.0.2.7", "[2001:db8:1:2:3:4:5:6]:80": "2001:db8:1:2::", "2001:db8:1:2:ffff::1": "2001:db8:1:2::",
		"[fe80::1%eth0]:1": "fe80::", "pipe": "invalid IP",
	} {
		if got := keyOf(text).String(); got != want {
			t.Errorf("%s is counted as %s; want %s", text, got, want)
		}
	}
	full := newGate(&Admission{AddressHandshakes: 1})
	for i := range addressesMax + 10 {
		full.enter(netip.AddrFrom4([4]byte{1, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	if n := len(full.from); n > addressesMax {
		t.Errorf("%d addresses are remembered", n)
	}
}

// A storm is stretched: nobody is refused who can wait, and who would have to wait too long knows at once. All come in the same
// instant of a clock of this test's own, so what is let in is exactly the burst of 20 and what comes due in half a second.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(&Admission{AcceptsPerSecond: 200, AcceptWait: 500 * time.Millisecond})
		start := time.Now()
		var in, away, last atomic.Int64
		for range 200 {
			go func() {
				switch err := g.wait(t.Context()); {
				case err == nil:
					in.Add(1)
				case errors.Is(err, errTooMany):
					away.Add(1)
					if took := time.Since(start); took != 0 {
						t.Errorf("refused after %s", took)
					}
				default:
					t.Error(err)
				}
				last.Store(int64(time.Since(start)))
			}()
		}
		synctest.Wait()
		if in.Load() != 20 || away.Load() != 80 {
			t.Errorf("%d in, %d away at once; want 20 and 80", in.Load(), away.Load())
		}
		time.Sleep(250 * time.Millisecond)
		synctest.Wait()
		if in.Load() != 70 {
			t.Errorf("%d in after a quarter of a second; want 70", in.Load())
		}
		time.Sleep(time.Hour)
		if in.Load() != 120 || in.Load()+away.Load() != 200 || time.Duration(last.Load()) != g.waitMax {
			t.Errorf("%d in, %d away, the last after %s; want 120, after %s", in.Load(), away.Load(), time.Duration(last.Load()), g.waitMax)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newGate(&Admission{AcceptsPerSecond: 0.001, AcceptWait: time.Hour}).wait(ctx); err != nil {
		t.Error("the first does not wait:", err)
	}
}

// Everybody who comes at once is let in, one after the other.
func TestStorm(t *testing.T) {
	const n = 150
	r := newRig(t, func(g *Gateway) { g.AcceptsPerSecond, g.UserConnections = 100, n })
	start := time.Now()
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() { r.connect(5, "anna", fmt.Sprint("hub", i)) })
	}
	wait.Wait()
	if took := time.Since(start); took < time.Second {
		t.Errorf("%d came in within %s, at 100 a second", n, took)
	}
	if refused := r.Stats().Refused; refused["rate"]+refused["connections"] > 0 {
		t.Error(refused)
	}
}

func TestAddressLimitAtTheDoor(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.AddressConnections = 2 })
	a, web := r.connect(5, "anna", "a"), r.client()
	r.connect(5, "anna", "b")
	if c, err := tls.Dial("tcp", r.at.MQTT.String(), r.tls()); err == nil {
		c.Close()
		t.Error("a third is let in")
	}
	if _, err := web.Get("https://" + r.at.HTTP.String()); err == nil {
		t.Error("the other door does not count")
	}
	a.conn.Close()
	eventually(t, "there is room again", func() bool { return r.Stats().Sockets == 1 })
	res, err := web.Get("https://" + r.at.HTTP.String())
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	web.CloseIdleConnections()
	eventually(t, "HTTP's is given back too", func() bool { return r.Stats().Sockets == 1 })
	r.connect(5, "anna", "c")
}

// header makes a PROXY header.
func header(command, family byte, body []byte) []byte {
	return append(append(append([]byte(nil), proxySignature...), 0x20|command, family, byte(len(body)>>8), byte(len(body))), body...)
}

func TestProxyHeaders(t *testing.T) {
	v4 := []byte{192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 80}
	v6 := append(append(netip.MustParseAddr("2001:db8::7").AsSlice(), make([]byte, 16)...), 0x30, 0x39, 0, 80)
	for _, c := range []struct {
		name string
		in   []byte
		want string // address, "" where it speaks for itself, or part of the error
	}{
		{"IPv4", header(1, 0x11, v4), "192.0.2.7:12345"},
		{"IPv4 with extensions", header(1, 0x11, append(bytes.Clone(v4), 4, 0, 1, 0)), "192.0.2.7:12345"},
		{"IPv6", header(1, 0x21, v6), "[2001:db8::7]:12345"},
		{"health check", header(0, 0, nil), ""},
		{"unspecified", header(1, 0, nil), ""},
		{"short", header(1, 0x11, v4[:8]), "want TCP"},
		{"UDP", header(1, 0x12, v4), "want TCP"},
		{"command 7", header(7, 0x11, v4), "command"},
		{"version 1", []byte("PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n"), "not version 2"},
		{"version 3", append(append(append([]byte(nil), proxySignature...), 0x31, 0x11, 0, 12), v4...), "version 3"},
		{"large", append(append([]byte(nil), proxySignature...), 0x21, 0x11, 0xff, 0xff), "at most"},
		{"TLS", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and more"), "not version 2"},
		{"cut off", header(1, 0x11, v4)[:20], "EOF"},
	} {
		in := bytes.NewReader(append(bytes.Clone(c.in), "rest"...))
		if c.name == "cut off" {
			in = bytes.NewReader(c.in)
		}
		got, err := readProxy(in)
		switch {
		case err != nil:
			if c.want == "" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v; want %s", c.name, err, c.want)
			}
			continue
		case got == nil && c.want != "", got != nil && got.String() != c.want:
			t.Errorf("%s: %v; want %s", c.name, got, c.want)
		}
		if rest, err := io.ReadAll(in); err != nil || string(rest) != "rest" {
			t.Errorf("%s: it read too much: %q", c.name, rest)
		}
	}
}

func FuzzProxy(f *testing.F) {
	f.Add(header(1, 0x11, make([]byte, 12)))
	f.Add(header(0, 0, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		if a, err := readProxy(bytes.NewReader(in)); err == nil && a != nil {
			if _, err := netip.ParseAddrPort(a.String()); err != nil {
				t.Error(err)
			}
		}
	})
}

// Behind a load balancer, limits see the client; and who is no load balancer cannot say that he is somebody else.
func TestLoadBalancer(t *testing.T) {
	client := func(last byte) []byte { return header(1, 0x11, []byte{192, 0, 2, last, 10, 0, 0, 1, 0, 1, 0, 2}) }
	dial := func(r *rig, head []byte) error {
		c, err := net.Dial("tcp", r.at.MQTT.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write(head); err != nil {
			return err
		}
		config := r.tls()
		conn := tls.Client(c, config)
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if err := conn.Handshake(); err != nil {
			return err
		}
		p := &peer{t: t, conn: conn, version: 5}
		p.send(connectPacketOf(r, "anna", rand.Text()))
		p.want(packets.Connack)
		return nil
	}
	r := newRig(t, func(g *Gateway) { g.ProxyProtocol, g.AddressConnections = []string{"127.0.0.0/8"}, 1 })
	for last := range byte(3) {
		if err := dial(r, client(last)); err != nil {
			t.Error(err)
		}
	}
	if err := dial(r, client(1)); err == nil {
		t.Error("a second of one client is let in")
	}
	if err := dial(r, nil); err == nil {
		t.Error("without a header it is let in")
	}
	r = newRig(t, nil)
	if err := dial(r, client(1)); err == nil {
		t.Error("a stranger's header is taken")
	}
	if err := (&Admission{EvictPerSecond: 1, ProxyProtocol: []string{"10.0.0.1"}}).check(); err == nil {
		t.Error("an address is taken for a network")
	}
}

// A client resumes its session on another replica, and after the keys have been rotated; when its key is gone, it shakes hands anew.
func TestSessionTickets(t *testing.T) {
	dir := t.TempDir()
	key := func() string {
		b := make([]byte, 32)
		rand.Read(b)
		return hex.EncodeToString(b)
	}
	first, second := key(), key()
	file := write(t, dir, "tickets", first+"\n")
	set := func(g *Gateway) { g.SessionTickets = file }
	a := newRig(t, set)
	b := newRig(t, func(g *Gateway) { set(g); g.Certificate, g.Key = a.Certificate, a.Key })
	own := newRig(t, func(g *Gateway) { g.Certificate, g.Key = a.Certificate, a.Key })
	config := a.tls()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	resumes := func(r *rig) bool {
		t.Helper()
		c, err := tls.Dial("tcp", r.at.MQTT.String(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p := &peer{t: t, conn: c, version: 5}
		p.send(connectPacketOf(r, "anna", "c")) // what comes back brings the ticket
		p.want(packets.Connack)
		return c.ConnectionState().DidResume
	}
	if resumes(a) {
		t.Fatal("there was nothing to resume")
	}
	if !resumes(a) || !resumes(b) {
		t.Error("a ticket of one replica is not taken by another")
	}
	if resumes(own) {
		t.Error("a replica with keys of its own takes it")
	}
	resumes(a) // a ticket of first
	write(t, dir, "tickets", "# rotated\n"+second+"\n"+first+"\n")
	seen := b.webTLS.now.Load()
	eventually(t, "b has read the new keys", func() bool { return b.webTLS.now.Load() != seen })
	if !resumes(b) {
		t.Error("a ticket from before the rotation is not taken")
	}
	write(t, dir, "tickets", second+"\n")
	seen = b.webTLS.now.Load()
	eventually(t, "b has forgotten the first", func() bool { return b.webTLS.now.Load() != seen })
	if !resumes(b) {
		t.Error("a ticket of the second key is not taken")
	}
	for _, bad := range []string{"", "xyz\n", first[:60] + "\n", strings.Repeat(first+"\n", ticketKeysMax+1)} {
		if _, err := readTicketKeys(write(t, dir, "bad", bad)); err == nil {
			t.Errorf("%.20q is taken", bad)
		}
	}
}

// A new certificate is shown to new connections while the old ones go on.
func TestCertificateIsReplaced(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect(5, "anna", "a")
	before := p.conn.ConnectionState().PeerCertificates[0].SerialNumber
	other, err := identity.DevCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{other.Key: r.Key, other.Certificate: r.Certificate} {
		write(t, filepath.Dir(to), filepath.Base(to), text(t, from))
	}
	r.roots.AppendCertsFromPEM([]byte(text(t, other.CA)))
	eventually(t, "the new certificate is shown", func() bool {
		c, err := tls.Dial("tcp", r.at.MQTT.String(), r.tls())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Cmp(before) != 0
	})
	p.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	p.want(packets.Pingresp)
}

func TestCurves(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.Curves = []string{"X25519"} })
	c := r.connect(5, "anna", "a")
	if id := c.conn.ConnectionState().CurveID; id != tls.X25519 {
		t.Error(id)
	}
	config := r.tls()
	config.CurvePreferences = []tls.CurveID{tls.CurveP256}
	if c, err := tls.Dial("tcp", r.at.MQTT.String(), config); err == nil {
		c.Close()
		t.Error("a curve that is not among the settings")
	}
	if err := (&Admission{EvictPerSecond: 1, Curves: []string{"P521x"}}).check(); err == nil {
		t.Error("an unknown curve is taken")
	}
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A handshake whose bytes come one by one is cut off, and many of them at once cost little and hold up nobody.
func TestTrickledHandshakes(t *testing.T) {
	const n = 200
	r := newRig(t, func(g *Gateway) { g.HandshakeTimeout = 3 * time.Second })
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var open []net.Conn
	for range n {
		c, err := net.Dial("tcp", r.at.MQTT.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	start := time.Now()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, c := range open {
			c.SetReadDeadline(time.Now().Add(15 * time.Second))
			if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a trickled handshake is waited for without an end")
			}
		}
	}()
	r.connect(5, "anna", "in-between").conn.Close()
	runtime.GC()
	runtime.ReadMemStats(&during)
	if each := (int64(during.HeapInuse+during.StackInuse) - int64(before.HeapInuse+before.StackInuse)) / n; each > 40<<10 {
		t.Errorf("a handshake that has not begun takes %d bytes", each)
	}
	record := append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, make([]byte, 500)...) // the head of a ClientHello, and nothing for long
	for i := 0; ; i++ {
		select {
		case <-ended:
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("they were waited for %s", took)
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
		for _, c := range open {
			_, _ = c.Write(record[i%len(record) : i%len(record)+1])
		}
	}
}
