package simulator

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// measureSettings says what a child process measures: itself, so that the server's memory does not count.
const measureSettings = "SIMULATOR_TEST_MEASURE"

type measure struct {
	Client          string // hub or paho
	Gateway, CAFile string
	JournalDir      string
	Homes           int
}

type measured struct {
	KB         float64 // resident, a connection
	Goroutines float64
}

func resident() float64 {
	runtime.GC()
	runtime.GC()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %g kB", &kb); n == 1 {
			return kb
		}
	}
	panic("no VmRSS in /proc/self/status")
}

func measureChild(settings string) error {
	var m measure
	if err := json.Unmarshal([]byte(settings), &m); err != nil {
		return err
	}
	kb, routines := resident(), runtime.NumGoroutine()
	var err error
	if m.Client == "paho" {
		err = m.pahoClients()
	} else {
		err = m.hubs()
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(measured{
		KB: (resident() - kb) / float64(m.Homes), Goroutines: float64(runtime.NumGoroutine()-routines) / float64(m.Homes)})
}

func (m measure) hubs() error {
	s := New()
	s.Gateway, s.CAFile, s.JournalDir, s.Homes, s.Recorded, s.Interval = m.Gateway, m.CAFile, m.JournalDir, m.Homes, false, 2*time.Second
	s.Faults = Faults{}
	s.Credentials = func(home string) (string, string) { return home, passwordOf(home) }
	failed := make(chan error, 1)
	spawn(func() { failed <- s.Run(context.Background()) })
	for s.Stats().Connected < m.Homes || s.Stats().Acknowledged < int64(20*m.Homes) {
		select {
		case err := <-failed:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// pahoClients publishes the same with the client library for applications, with its own smallest settings.
func (m measure) pahoClients() error {
	pem, err := os.ReadFile(m.CAFile)
	if err != nil {
		return err
	}
	c := &tls.Config{ServerName: "127.0.0.1", RootCAs: x509.NewCertPool(), CurvePreferences: []tls.CurveID{tls.X25519}}
	c.RootCAs.AppendCertsFromPEM(pem)
	for i := 1; i <= m.Homes; i++ {
		home := HomeName(i)
		o := paho.NewClientOptions().AddBroker("ssl://" + m.Gateway).SetTLSConfig(c).SetClientID(home).SetUsername(home).
			SetPassword(passwordOf(home)).SetMessageChannelDepth(0).SetProtocolVersion(4)
		client := paho.NewClient(o)
		if t := client.Connect(); !t.WaitTimeout(20*time.Second) || t.Error() != nil {
			return fmt.Errorf("connect %s: %v", home, t.Error())
		}
		p := testPlan(1, i, Faults{})
		for pos := range 2 * p.devices() {
			d := int(pos % p.devices())
			t := client.Publish("homes/"+home+"/devices/"+p.device(d)+"/telemetry", 1, false, p.payload(nil, message{d, pos / p.devices(), Good}))
			if !t.WaitTimeout(20*time.Second) || t.Error() != nil {
				return fmt.Errorf("publish as %s: %v", home, t.Error())
			}
		}
	}
	return nil
}

func measureHubs(b testing.TB, client string, homes int) measured {
	g := newGateway(b)
	settings, err := json.Marshal(measure{client, g.addr, g.caFile, b.TempDir(), homes})
	must(b, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), measureSettings+"="+string(settings))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	var m measured
	line, _ := bufio.NewReader(out).ReadBytes('\n')
	must(b, cmd.Wait())
	must(b, json.Unmarshal(line, &m))
	return m
}

// BenchmarkHub and BenchmarkPaho measure what a connection costs the client that holds it.
func BenchmarkHub(b *testing.B)  { benchmarkClient(b, "hub") }
func BenchmarkPaho(b *testing.B) { benchmarkClient(b, "paho") }

func benchmarkClient(b *testing.B, client string) {
	for range b.N {
		m := measureHubs(b, client, 400)
		b.ReportMetric(m.KB, "KB/hub")
		b.ReportMetric(m.Goroutines, "goroutines/hub")
	}
}

// TestLean keeps a hub small: it runs beside everything else, and later by ten thousands.
func TestLean(t *testing.T) {
	m := measureHubs(t, "hub", 200)
	t.Logf("%.1f KB and %.2f goroutines a hub", m.KB, m.Goroutines)
	if m.Goroutines > 1.1 {
		t.Errorf("%.2f goroutines a hub, want one", m.Goroutines)
	}
	if !raceDetector && m.KB > 60 {
		t.Errorf("%.1f KB a hub, want at most 60", m.KB)
	}
}

// BenchmarkPayload is what a message costs to make.
func BenchmarkPayload(b *testing.B) {
	p := testPlan(1, 1, FewFaults())
	var buf []byte
	b.ReportAllocs()
	rows := 0
	for i := range b.N {
		d := i % len(p.rows)
		buf = p.payload(buf[:0], message{d, int64(i / len(p.rows)), Good})
		rows += p.rows[d]
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rows), "ns/row")
}

// BenchmarkJournal is what noting the progress of 10,000 homes costs, but for the disk.
func BenchmarkJournal(b *testing.B) {
	s := New()
	s.Gateway, s.JournalDir, s.Homes, s.Recorded = "127.0.0.1:1", b.TempDir(), 10_000, false
	r, err := s.open(time.Now(), &counters{})
	must(b, err)
	must(b, r.note(false))
	for range b.N {
		for _, h := range r.hubs {
			h.acknowledged++
		}
		text, err := r.journal.encode()
		must(b, err)
		b.SetBytes(int64(len(text)))
	}
}
