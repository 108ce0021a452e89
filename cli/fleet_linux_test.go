package cli

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sourcegraph/conc/pool"
	"golang.org/x/sys/unix"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
)

// startMosquitto runs Debian's mosquitto with the same certificate and users, and nothing else than it needs.
func startMosquitto(t *testing.T, certs identity.Certificates, users []identity.DevUser) *contestant {
	binary, err := exec.LookPath("mosquitto")
	if err != nil {
		binary, err = exec.LookPath("/usr/sbin/mosquitto") // not in everybody's PATH
	}
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("NOT TESTED: mosquitto is not installed; .ci/install-tools does")
		}
		t.Fatal("mosquitto is not installed; .ci/install-tools does")
	}
	dir, addr := t.TempDir(), clitest.FreeAddr(t)
	passwords := make(map[string]string)
	file := filepath.Join(dir, "passwords")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, u := range users {
		passwords[u.User] = "secret-" + u.User
		if out, err := exec.Command("mosquitto_passwd", "-b", file, u.User, passwords[u.User]).CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_passwd: %v: %s", err, out)
		}
	}
	host, port, _ := net.SplitHostPort(addr)
	config := filepath.Join(dir, "mosquitto.conf")
	web := clitest.FreeAddr(t)
	_, webPort, _ := net.SplitHostPort(web)
	secured := fmt.Sprintf("cafile %s\ncertfile %s\nkeyfile %s\n", certs.CA, certs.Certificate, certs.Key)
	text := fmt.Sprintf("allow_anonymous false\npassword_file %s\npersistence false\nlog_type error\nset_tcp_nodelay true\nuser %s\nlistener %s %s\n%slistener %s %s\nprotocol websockets\n%s",
		file, userName(), port, host, secured, webPort, host, secured)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-c", config)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	waitForPort(t, addr)
	waitForPort(t, web)
	return &contestant{pid: cmd.Process.Pid, addr: addr, web: web, roots: certs.CA, users: users, passwords: passwords}
}

func userName() string {
	if os.Getuid() == 0 {
		return "root"
	}
	return os.Getenv("USER")
}

func waitForPort(t *testing.T, addr string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing listens on %s", addr)
		}
	}
}

// memory is what the server has resident, KB.
func (c *contestant) memory(t *testing.T) int64 {
	t.Helper()
	n := c.quietMemory()
	if n == 0 {
		t.Fatal("the server is gone")
	}
	return n
}

func (c *contestant) quietMemory() int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	n, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// cpu is the time that the server has computed, in user space and for it in the kernel.
func (c *contestant) cpu(t *testing.T) time.Duration {
	t.Helper()
	const scheduled = 2 // CPUCLOCK_SCHED of the process's own clock: exact, where /proc counts ticks
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^c.pid<<3|scheduled), &at); err != nil {
		t.Fatal(err)
	}
	return time.Duration(at.Nano())
}

// fleet is many MQTT 3.1.1 clients. They cost little: a connection each, and a goroutine only while it does something.
type fleet struct {
	t     *testing.T
	to    *contestant
	roots *x509.CertPool
	conns []*tls.Conn
}

func newFleet(t *testing.T, to *contestant) *fleet {
	t.Helper()
	f := &fleet{t: t, to: to, roots: x509.NewCertPool()}
	pem, err := os.ReadFile(to.roots)
	if err != nil || !f.roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA", err)
	}
	return f
}

// Limits of the clients: how many shake hands at once, and how often one tries.
const (
	fleetDials = 64
	fleetTries = 20
)

// connect opens n connections as fast as it can, from several addresses, each until it is in; it says how many
// attempts failed on the way.
func (f *fleet) connect(n int, curves []tls.CurveID) (again int) {
	f.t.Helper()
	return f.connectBy(n, func(i int) (*tls.Conn, error) { return f.dial(i, curves) })
}

func (f *fleet) connectBy(n int, dial func(i int) (*tls.Conn, error)) (again int) {
	f.t.Helper()
	first := len(f.conns)
	f.conns = append(f.conns, make([]*tls.Conn, n)...)
	var failed atomic.Int64
	dials := pool.New().WithErrors().WithFirstError().WithMaxGoroutines(fleetDials)
	for i := first; i < first+n; i++ {
		dials.Go(func() error {
			for try := 1; ; try++ {
				c, err := dial(i)
				if err == nil {
					f.conns[i] = c
					return nil
				}
				if try == fleetTries {
					return fmt.Errorf("connection %d is refused for good: %w", i, err)
				}
				failed.Add(1)
				time.Sleep(time.Duration(rand.Int64N(int64(100*time.Millisecond) << min(try, 5))))
			}
		})
	}
	if err := dials.Wait(); err != nil {
		f.t.Fatal(err)
	}
	return int(failed.Load())
}

// dial connects over MQTT.
func (f *fleet) dial(i int, curves []tls.CurveID) (*tls.Conn, error) {
	c, err := f.shake(i, f.to.addr, curves)
	if err != nil {
		return nil, err
	}
	if _, err = c.Write(f.connectPacket(i)); err == nil {
		err = wantBytes(c, []byte{0x20, 2, 0, 0})
	}
	return in(c, err)
}

// dialWeb connects over MQTT over WebSocket.
func (f *fleet) dialWeb(i int) (*tls.Conn, error) {
	c, err := f.shake(i, f.to.web, nil)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c, "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n")
	answer := make([]byte, 0, 512)
	for err == nil && !bytes.HasSuffix(answer, []byte("\r\n\r\n")) && len(answer) < cap(answer) {
		var n int
		n, err = c.Read(answer[len(answer) : len(answer)+1])
		answer = answer[:len(answer)+n]
	}
	if err == nil && !bytes.HasPrefix(answer, []byte("HTTP/1.1 101 ")) {
		err = fmt.Errorf("answer %.40q", answer)
	}
	if err == nil {
		packet := f.connectPacket(i)
		frame := append([]byte{0x82, 0x80 | byte(len(packet)), 0, 0, 0, 0}, packet...) // a mask of zeros changes nothing
		if _, err = c.Write(frame); err == nil {
			err = wantBytes(c, []byte{0x82, 4, 0x20, 2, 0, 0})
		}
	}
	return in(c, err)
}

// shake opens a TLS connection, from one of a hundred addresses.
func (f *fleet) shake(i int, addr string, curves []tls.CurveID) (*tls.Conn, error) {
	d := &tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%100))}},
		Config:    &tls.Config{RootCAs: f.roots, ServerName: "localhost", CurvePreferences: curves},
	}
	if f.to.devices != nil {
		d.Config.Certificates = []tls.Certificate{f.to.devices.certs[i]}
	}
	raw, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(30 * time.Second))
	return raw.(*tls.Conn), nil
}

func wantBytes(c *tls.Conn, want []byte) error {
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("CONNACK % x", got)
	}
	return nil
}

func in(c *tls.Conn, err error) (*tls.Conn, error) {
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, c.SetDeadline(time.Time{})
}

func (f *fleet) connectPacket(i int) []byte {
	if f.to.devices != nil {
		client := fmt.Sprintf("client-%05d", i)
		body := append([]byte{0, 4}, "MQTT\x04\x02\x04\xb0"...)
		body = append(binary.BigEndian.AppendUint16(body, uint16(len(client))), client...)
		return append([]byte{0x10, byte(len(body))}, body...)
	}
	u := f.to.users[i%len(f.to.users)].User
	return connectPacket(fmt.Sprintf("client-%05d", i), u, f.to.passwords[u])
}

func connectPacket(client, user, password string) []byte {
	body := append([]byte{0, 4}, "MQTT\x04\xc2\x04\xb0"...) // clean session, user, password, keep alive of 20 minutes
	for _, s := range []string{client, user, password} {
		body = append(binary.BigEndian.AppendUint16(body, uint16(len(s))), s...)
	}
	return append([]byte{0x10, byte(len(body))}, body...)
}

// close says goodbye for all.
func (f *fleet) close() {
	for _, c := range f.conns {
		c.Write([]byte{0xe0, 0})
		c.Close()
	}
	f.conns = nil
}

// drop is a power cut at the clients' end: all connections are reset at once.
func (f *fleet) drop() {
	for _, c := range f.conns {
		tcp := c.NetConn().(*net.TCPConn)
		tcp.SetLinger(0)
		tcp.Close()
	}
	f.conns = nil
}

// publish has every client keep so many QoS 1 messages in flight, and gives the messages acknowledged a second of the
// server's CPU, and the median time to an acknowledgement.
func (f *fleet) publish(window int) (perCore float64, median time.Duration) {
	f.t.Helper()
	var acknowledged atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	run := func(length time.Duration) {
		end := time.Now().Add(length)
		work := pool.New().WithErrors()
		for i, c := range f.conns {
			work.Go(func() error {
				mine, err := f.keepInFlight(c, i, window, end, &acknowledged)
				mu.Lock()
				defer mu.Unlock()
				took = append(took, mine...)
				return err
			})
		}
		if err := work.Wait(); err != nil {
			f.t.Fatal(err)
		}
	}
	run(*connectionsOf / 4) // warm
	took = nil
	acknowledged.Store(0)
	before := f.to.cpu(f.t)
	run(*connectionsOf)
	used := f.to.cpu(f.t) - before
	slices.Sort(took)
	if len(took) == 0 {
		f.t.Fatal("nothing was acknowledged")
	}
	return float64(acknowledged.Load()) / used.Seconds(), took[len(took)/2]
}

// keepInFlight sends so many messages, and one more for each that is acknowledged, until end.
func (f *fleet) keepInFlight(c *tls.Conn, i, window int, end time.Time, acknowledged *atomic.Int64) (took []time.Duration, err error) {
	home := f.to.users[i%len(f.to.users)].Home
	next := uint16(0)
	packet := func(b []byte) []byte {
		next = next%1000 + 1
		return publishPacket(b, fmt.Sprintf("homes/%s/devices/d%05d/telemetry", home, i), next)
	}
	var out []byte
	for range window {
		out = packet(out)
	}
	sent := window
	in := make([]byte, 4*window)
	have := 0
	c.SetDeadline(time.Now().Add(time.Minute))
	defer c.SetDeadline(time.Time{})
	for start := time.Now(); ; start = time.Now() {
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return took, err
			}
		}
		n, err := c.Read(in[have:])
		if err != nil {
			return took, fmt.Errorf("client %d: %w", i, err)
		}
		took = append(took, time.Since(start))
		have += n
		acks := have / 4
		for k := range acks {
			if in[4*k] != 0x40 {
				return took, fmt.Errorf("client %d: % x; want PUBACK", i, in[4*k:4*k+4])
			}
		}
		have = copy(in, in[4*acks:have])
		acknowledged.Add(int64(acks))
		sent -= acks
		out = out[:0]
		if time.Now().Before(end) {
			for ; sent < window; sent++ {
				out = packet(out)
			}
		} else if sent == 0 {
			return took, nil
		}
	}
}

// publishPacket is a reading of some 150 bytes, as hubs send them.
func publishPacket(b []byte, topic string, id uint16) []byte {
	payload := fmt.Sprintf(`{"metric":"temperature","value":21.%03d,"unit":"Cel","seq":%d,"time":%d,"attributes":{"room":"living room","firmware":"1.22.3"}}`, id, id, time.Now().UnixMilli())
	n := 2 + len(topic) + 2 + len(payload)
	b = append(b, 0x32, byte(n&0x7f|0x80), byte(n>>7))
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(topic))), topic...)
	return append(binary.BigEndian.AppendUint16(b, id), payload...)
}
