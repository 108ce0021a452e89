package cli

import (
	"crypto/tls"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
	"hearthline/ingest/wire"
)

// How many connections, and for how long they publish. `make bench` has 10,000; what runs with every other test shows
// that it works.
var (
	connectionsN  = flag.Int("connections", 300, "TestConnections: idle connections, and those that all come back at once")
	connectionsOf = flag.Duration("connections-publish", time.Second, "TestConnections: how long is published")
	connectionsTo = flag.String("connections-only", "", "TestConnections: the only server to look at, by its name in the table")
)

// TestConnections sets the gateway beside mosquitto: the same clients, certificate, users and messages, each server in a
// process of its own, and only that process is counted. mosquitto acknowledges at once and keeps nothing; the gateway acknowledges
// what the broker has (acks=all), which runs beside the clients in the process of this test.
func TestConnections(t *testing.T) {
	certs, err := identity.DevCertificates(filepath.Join(t.TempDir(), "certificates"))
	if err != nil {
		t.Fatal(err)
	}
	var users []identity.DevUser
	for i := range 16 {
		users = append(users, identity.DevUser{User: fmt.Sprintf("hub%02d", i), Home: fmt.Sprintf("home%02d", i)})
	}
	var rows []*measured
	for _, s := range []struct {
		name  string
		start func(*testing.T, identity.Certificates, []identity.DevUser) *contestant
	}{
		{"mosquitto", startMosquitto},
		{"hearthline", func(t *testing.T, c identity.Certificates, u []identity.DevUser) *contestant {
			return startGateway(t, c, u, wire.Best, "")
		}},
		{"hearthline, goroutines", func(t *testing.T, c identity.Certificates, u []identity.DevUser) *contestant {
			return startGateway(t, c, u, wire.Goroutines, "")
		}},
	} {
		if *connectionsTo != "" && *connectionsTo != s.name {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			m := &measured{name: s.name}
			s.start(t, certs, users).measure(t, m)
			s.start(t, certs, users).measureWeb(t, m) // a new process: what the first has freed would not be seen to grow
			if s.name == "hearthline" {
				measureCertified(t, certs, users, m)
			}
			rows = append(rows, m)
		})
	}
	printConnections(t, rows)
	for _, m := range rows {
		if *connectionsN >= memoryCounts && m.name == "hearthline" && max(m.idle, m.idleWeb, m.idleCertified) > idleMax {
			t.Errorf("an idle connection has %.1f KB, over WebSocket %.1f, with a certificate of its own %.1f; at most %d was promised", m.idle, m.idleWeb, m.idleCertified, idleMax)
		}
	}
}

const (
	idleMax      = 12   // KB an idle connection
	memoryCounts = 5000 // connections from which on a process's memory says something about one
)

// contestant is a server in a process of its own, and how to come in.
type contestant struct {
	pid       int
	addr      string // of MQTT over TLS
	web       string // of MQTT over WebSocket
	roots     string
	users     []identity.DevUser
	passwords map[string]string
	devices   *devices // nil: clients come with passwords
}

// startGateway runs the gateway of the product's own plan.
func startGateway(t *testing.T, certs identity.Certificates, users []identity.DevUser, loop, settings string) *contestant {
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	plan, err := os.ReadFile(c.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	settings += fmt.Sprintf("    loop: %s\n    connections_max: 1000000\n    user_connections_max: 1000000\n    messages_per_second: 0\n    bytes_per_second: 0\n", loop)
	c.Write(strings.Replace(string(plan), "    linger: ", settings+"    linger: ", 1))
	file, passwords, err := identity.DevCredentials(filepath.Join(c.Dir, "users"), users...)
	if err != nil {
		t.Fatal(err)
	}
	broker := c.StartBroker()
	t.Cleanup(func() { broker.End(t) })
	c.Env = []string{"HEARTHLINE_KAFKA=" + c.Broker, "HEARTHLINE_MQTT=" + c.MQTT, "HEARTHLINE_HTTP=" + c.HTTP, "HEARTHLINE_CERTIFICATE=" + certs.Certificate,
		"HEARTHLINE_KEY=" + certs.Key, "HEARTHLINE_CREDENTIALS=" + file, "HEARTHLINE_INSTANCE=g1"}
	r := c.Role("gateway")
	waitForPort(t, c.MQTT)
	return &contestant{pid: r.Cmd.Process.Pid, addr: c.MQTT, web: c.HTTP, roots: certs.CA, users: users, passwords: passwords}
}

// measured is one row of the table.
type measured struct {
	name    string
	idle    float64 // KB of resident memory an idle connection
	idleWeb float64 // the same over WebSocket
	// The same, and accept, of clients that prove themselves by a certificate each, under mutual TLS.
	idleCertified   float64
	acceptCertified time.Duration
	accept          time.Duration // CPU of TCP, TLS, CONNECT and its end, a connection
	acceptX         time.Duration // the same for clients without the post-quantum key exchange
	back            time.Duration // until all are back
	again           int           // attempts that were refused and tried again
	one, many       float64       // QoS 1 messages a second of CPU: 1 and 64 in flight
	oneTook         time.Duration // median time to the acknowledgement, 1 in flight
}

func (c *contestant) measure(t *testing.T, m *measured) {
	f := newFleet(t, c)
	defer f.close()
	f.connect(min(*connectionsN, 1500), nil) // what is made once is made: caches, arenas, verified passwords
	f.close()
	c.rest()
	rss, cpu := c.memory(t), c.cpu(t)
	f.connect(*connectionsN, nil)
	m.accept = (c.cpu(t) - cpu) / time.Duration(*connectionsN)
	c.rest()
	m.idle = float64(c.memory(t)-rss) / float64(*connectionsN)

	f.drop()
	start := time.Now()
	m.again = f.connect(*connectionsN, nil)
	m.back = time.Since(start)
	f.close()
	c.rest()

	cpu = c.cpu(t)
	f.connect(*connectionsN, []tls.CurveID{tls.X25519})
	m.acceptX = (c.cpu(t) - cpu) / time.Duration(*connectionsN)
	f.close()

	f.connect(min(*connectionsN, 1000), nil)
	m.one, m.oneTook = f.publish(1)
	f.close()
	f.connect(32, nil)
	m.many, _ = f.publish(64)
}

func (c *contestant) measureWeb(t *testing.T, m *measured) {
	f := newFleet(t, c)
	defer f.close()
	f.connectBy(min(*connectionsN, 1500), f.dialWeb)
	f.close()
	c.rest()
	rss := c.memory(t)
	f.connectBy(*connectionsN, f.dialWeb)
	c.rest()
	m.idleWeb = float64(c.memory(t)-rss) / float64(*connectionsN)
}

// measureCertified does so for devices with a certificate each.
func measureCertified(t *testing.T, certs identity.Certificates, users []identity.DevUser, m *measured) {
	d := newDevices(t, *connectionsN)
	c := startGateway(t, certs, users, wire.Best, fmt.Sprintf("    client_certificates: {ca: %s, name: \"uri:spiffe://example.com/{home}/{name}\"}\n", d.ca))
	c.devices = d
	f := newFleet(t, c)
	defer f.close()
	f.connect(min(*connectionsN, 1500), nil)
	f.close()
	c.rest()
	rss, cpu := c.memory(t), c.cpu(t)
	f.connect(*connectionsN, nil)
	m.acceptCertified = (c.cpu(t) - cpu) / time.Duration(*connectionsN)
	c.rest()
	m.idleCertified = float64(c.memory(t)-rss) / float64(*connectionsN)
}

// rest waits until the server has done what it does after a storm: the gateway collects garbage and gives memory back
// once connections have stopped coming.
func (c *contestant) rest() {
	least, since := c.quietMemory(), time.Now()
	for begun := time.Now(); time.Since(since) < 6*time.Second && time.Since(begun) < time.Minute; time.Sleep(250 * time.Millisecond) {
		if now := c.quietMemory(); now < least-64 {
			least, since = now, time.Now()
		}
		if *connectionsN < memoryCounts {
			return
		}
	}
}

// kilobytes of a connection, where there are enough to tell.
func kilobytes(x float64) string {
	if *connectionsN < memoryCounts {
		return "–"
	}
	return fmt.Sprintf("%.1f", x)
}

func printConnections(t *testing.T, rows []*measured) {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "server\tKB/idle conn\tKB/idle wss\taccept, CPU\taccept, X25519\t%d back in\ttried again\tQoS 1, 1 in flight\t(median)\t64 in flight\t\n", *connectionsN)
	line := func(m *measured, than *measured) {
		us := func(d time.Duration) string { return fmt.Sprintf("%d µs", d.Microseconds()) }
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.1f s\t%d\t%.0f /core-s\t%.1f ms\t%.0f /core-s\t\n", m.name, kilobytes(m.idle), kilobytes(m.idleWeb), us(m.accept), us(m.acceptX), m.back.Seconds(), m.again,
			m.one, m.oneTook.Seconds()*1e3, m.many)
		if than != m {
			fmt.Fprintf(w, "to %s\t%s\t%s\t%.2f\t%.2f\t%.2f\t\t%.2f\t\t%.2f\t\n", than.name, kilobytes(m.idle/than.idle), kilobytes(m.idleWeb/than.idleWeb), float64(m.accept)/float64(than.accept),
				float64(m.acceptX)/float64(than.acceptX), float64(m.back)/float64(than.back), m.one/than.one, m.many/than.many)
		}
	}
	for _, m := range rows {
		line(m, rows[0])
	}
	w.Flush()
	for _, m := range rows {
		if m.acceptCertified > 0 {
			fmt.Fprintf(&out, "%s, each client with a certificate of its own: %s KB/idle conn, accept %d µs\n", m.name, kilobytes(m.idleCertified), m.acceptCertified.Microseconds())
		}
	}
	t.Logf("%d cores, shared with the clients and the broker; memory and CPU are the server's alone\n%s", runtime.NumCPU(), out.String())
}
