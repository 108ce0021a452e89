package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hearthline/cli/clitest"
	"hearthline/flow"
	"hearthline/ingest/identity"
	"hearthline/streams/streamstest"
)

var (
	publishersN      = flag.Int("publishers", 150, "TestPublishers: MQTT connections that publish")
	publishersOutage = flag.Duration("publishers-outage", 5*time.Second, "TestPublishers: how long the broker is away")
	publishersRSS    = flag.Int64("publishers-rss", 128, "TestPublishers: by how much the gateway may grow while the broker is away, in MiB")
)

const publishersPipeline = `
pipeline: publishers
partitions: 4
kafka: {brokers: "%s"}
gateway:
  to: raw
  settings:
    mqtt: %s
    http: %s
    certificate: %s
    key: %s
    credentials: %s
    user_connections_max: 100000
    messages_per_second: 0
    bytes_per_second: 0
    address_connections_max: 0
    address_handshakes_per_second: 0
    accepts_per_second: 0
    store_timeout: 2s
sinks:
  parquet: {from: [raw], settings: {to: "${HEARTHLINE_DATA}/parquet"}}
`

// The broker is away while thousands publish. Whatever is acknowledged is there in the end; what the gateway holds is bounded; and
// publishers are told to wait by words that are clear: MQTT by no acknowledgement, HTTP by 503 with Retry-After.
func TestPublishers(t *testing.T) {
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	dir := filepath.Join(c.Data, "gateway")
	certs, err := identity.DevCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	file, passwords, err := identity.DevCredentials(dir, identity.DevUser{User: "cloud", Home: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	c.Write(fmt.Sprintf(publishersPipeline, c.Broker, c.MQTT, c.HTTP, certs.Certificate, certs.Key, file))
	pem, err := os.ReadFile(certs.CA)
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA", err)
	}
	conf := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	broker := c.StartBroker()
	gateway := c.Role("gateway")
	gateway.Expect("operations endpoints", time.Minute)
	all := &publishers{t: t, addr: c.MQTT, tls: conf, password: passwords["cloud"], acked: map[string]int64{}, codes: map[byte]int{}, dial: make(chan struct{}, 32)}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for n := range *publishersN {
		all.wait.Go(func() { all.publish(ctx, n) })
	}
	until := func(what string, limit time.Duration, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("it never came true: %s; %d connected, %d acknowledged, codes %v", what, all.connected.Load(), all.acknowledged.Load(), all.codes)
			}
		}
	}
	until("all are connected, and publish", 4*time.Minute, func() bool {
		return all.connected.Load() == int64(*publishersN) && all.acknowledged.Load() > int64(3**publishersN)
	})
	before, pid := residentKB(t, gateway.Cmd.Process.Pid), gateway.Cmd.Process.Pid
	broker.End(t)
	acked, most := all.acknowledged.Load(), int64(0)
	told := map[string]int{}
	for away := time.Now(); time.Since(away) < *publishersOutage; time.Sleep(100 * time.Millisecond) {
		most = max(most, residentKB(t, pid))
		told[postWhileAway(t, c.HTTP, conf, passwords["cloud"])]++
	}
	during := all.acknowledged.Load() - acked
	broker = c.StartBroker()
	defer broker.End(t)
	until("they publish again", 2*time.Minute, func() bool { return all.acknowledged.Load() > acked+during+int64(2**publishersN) })
	stop()
	all.wait.Wait()
	rows := rowsOfDevices(t, c.Broker)
	for device, seq := range all.acked {
		for n := int64(1); n <= seq; n++ {
			if !rows[device][n] {
				t.Errorf("%s: %d was acknowledged, and is not there", device, n)
			}
		}
	}
	t.Logf("%d publishers, %d acknowledged (%d while the broker was away), resident %d MiB before, %d at most while it was away; HTTP was told %v; reason codes %v; %d reconnects",
		*publishersN, all.acknowledged.Load(), during, before>>10, most>>10, told, all.codes, all.connects.Load()-int64(*publishersN))
	if grown := (most - before) >> 10; grown > *publishersRSS {
		t.Errorf("the gateway has grown by %d MiB; at most %d", grown, *publishersRSS)
	}
	if told["503, Retry-After, back_pressure"] == 0 || len(told) > 2 {
		t.Errorf("HTTP was told %v", told)
	}
	for code := range all.codes {
		if code != 0 {
			t.Errorf("reason code %#x, %d times: nothing was wrong with what was published", code, all.codes[code])
		}
	}
	gateway.Terminate()
}

// postWhileAway says how a request was answered.
func postWhileAway(t *testing.T, addr string, conf *tls.Config, password string) string {
	t.Helper()
	req, err := http.NewRequest("POST", "https://"+addr+"/v1/telemetry", strings.NewReader(`{"device":"web","metric":"m","value":1}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.SetBasicAuth("cloud", password)
	transport := &http.Transport{TLSClientConfig: conf}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	said := fmt.Sprint(res.StatusCode)
	if res.Header.Get("Retry-After") != "" {
		said += ", Retry-After"
	}
	if strings.Contains(string(body), "the log") {
		said += ", back_pressure"
	}
	return said
}

// residentKB is what a process holds in memory.
func residentKB(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kb int64
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}

// rowsOfDevices reads what the gateway's stream holds: sequences by device.
func rowsOfDevices(t *testing.T, broker string) map[string]map[int64]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := streamstest.Cluster{Brokers: []string{broker}}.Dial(t)
	rows := map[string]map[int64]bool{}
	for p := range int32(4) {
		for m := range readStream(ctx, t, c, "raw", p) {
			if m.Batch.Record == nil {
				continue
			}
			e, err := flow.EventsOf(m.Batch.Record)
			if err != nil {
				t.Fatal(err)
			}
			for i := range e.Time {
				device := e.Device.Value(i)
				if rows[device] == nil {
					rows[strings.Clone(device)] = map[int64]bool{}
				}
				rows[device][e.Seq.Value(i)] = true
			}
		}
	}
	return rows
}

// publishers are many MQTT 5 clients, each of a device of its own with one message under way: what a client library does not
// hide can be counted.
type publishers struct {
	t        *testing.T
	addr     string
	tls      *tls.Config
	password string
	dial     chan struct{} // handshakes at a time
	wait     sync.WaitGroup

	connected, connects, acknowledged atomic.Int64

	mu    sync.Mutex
	acked map[string]int64 // device → the last sequence that was acknowledged; those before it were too
	codes map[byte]int     // of PUBACK, CONNACK and DISCONNECT
}

func (p *publishers) publish(ctx context.Context, n int) {
	device, seq := fmt.Sprintf("d%d", n), int64(1)
	for ctx.Err() == nil {
		seq = p.session(ctx, device, seq)
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(time.Second)):
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acked[device] = seq - 1
}

// session publishes on one connection, from seq on; it gives the first that is not acknowledged.
func (p *publishers) session(ctx context.Context, device string, seq int64) int64 {
	p.dial <- struct{}{}
	d := tls.Dialer{Config: p.tls}
	conn, err := d.DialContext(ctx, "tcp", p.addr)
	<-p.dial
	if err != nil {
		return seq
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	connect := append([]byte("\x00\x04MQTT\x05\xc2\x04\xb0\x00"), mqttText(device)...) // user, password, clean start, keep alive 20 min
	connect = append(append(connect, mqttText("cloud")...), mqttText(p.password)...)
	if _, err := conn.Write(mqttPacket(0x10, connect)); err != nil {
		return seq
	}
	if kind, body, err := p.read(conn); err != nil || kind != 2 || body[1] != 0 {
		return seq
	}
	p.connects.Add(1)
	p.connected.Add(1)
	defer p.connected.Add(-1)
	for ctx.Err() == nil {
		body := append(mqttText("homes/h1/devices/"+device+"/telemetry"), 0, 1, 0) // packet id 1, no properties
		body = fmt.Appendf(body, `{"metric":"m","value":1,"seq":%d}`, seq)
		if _, err := conn.Write(mqttPacket(0x32, body)); err != nil {
			return seq
		}
		kind, _, err := p.read(conn)
		if err != nil || kind != 4 {
			return seq
		}
		seq++
		p.acknowledged.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(2 * time.Second)):
		}
	}
	return seq
}

// read gives a packet's kind and body, and counts its reason code.
func (p *publishers) read(conn io.Reader) (kind byte, body []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return 0, nil, err
	}
	size, shift := int(head[1]&0x7f), 7
	for b := head[1]; b&0x80 != 0; shift += 7 {
		var next [1]byte
		if _, err := io.ReadFull(conn, next[:]); err != nil {
			return 0, nil, err
		}
		b = next[0]
		size |= int(b&0x7f) << shift
	}
	body = make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return 0, nil, err
	}
	kind = head[0] >> 4
	code := byte(0)
	switch {
	case kind == 2 && size > 1:
		code = body[1]
	case kind == 4 && size > 2:
		code = body[2]
	case kind == 14 && size > 0:
		code = body[0]
	}
	p.mu.Lock()
	codes := maps.Clone(p.codes)
	codes[code]++
	p.codes = codes
	p.mu.Unlock()
	if code >= 0x80 {
		return kind, body, fmt.Errorf("reason code %#x", code)
	}
	return kind, body, nil
}

func mqttText(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func mqttPacket(head byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{head}, uint64(len(body))), body...)
}
