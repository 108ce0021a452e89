package ingest

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"hearthline/ingest/identity"
	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

// barrier lets calls through while it is open.
type barrier struct {
	mu   sync.Mutex
	open chan struct{} // closed while it is open
}

func newBarrier() *barrier {
	g := &barrier{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *barrier) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *barrier) unshut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

func (g *barrier) wait(ctx context.Context) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// gatedLog is a log behind a gate: a gateway that stands still neither writes nor reads.
type gatedLog struct {
	table.Log
	gate *barrier
}

func (l gatedLog) Append(ctx context.Context, partition int32, records []table.Record) (int64, error) {
	if err := l.gate.wait(ctx); err != nil {
		return 0, err
	}
	return l.Log.Append(ctx, partition, records)
}

func (l gatedLog) Follow(ctx context.Context, partition int32, take func(table.Read) error) error {
	return l.Log.Follow(ctx, partition, func(r table.Read) error {
		if err := l.gate.wait(ctx); err != nil {
			return err
		}
		return take(r)
	})
}

// street is the way to a gateway, for the others: what goes along it waits while the gate is shut.
type street struct {
	at   string
	gate *barrier
}

func newStreet(t testing.TB, g *barrier, to string) *street {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); ln.Close() })
	carry := func(to, from net.Conn) {
		defer to.Close()
		defer from.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if g.wait(ctx) != nil || err != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			o, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			go carry(o, c)
			go carry(c, o)
		}
	}()
	return &street{at: ln.Addr().String(), gate: g}
}

// shared is a gateway of several that share tables. It can be made to stand still, and be killed.
type shared struct {
	*rig
	gate *barrier
	of   *neighbourhood
}

// neighbourhood is where gateways are started that share their tables and their certificates.
type neighbourhood struct {
	t     testing.TB
	logs  map[string]*tabletest.Log
	certs identity.Certificates
	all   []*shared
}

func newNeighbourhood(t testing.TB) *neighbourhood {
	t.Helper()
	n := &neighbourhood{t: t, logs: map[string]*tabletest.Log{}}
	for _, name := range Tables {
		n.logs[name] = tabletest.NewLog(4)
	}
	var err error
	if n.certs, err = identity.DevCertificates(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return n
}

// start adds a gateway, and waits until all know each other.
func (n *neighbourhood) start(name string, set func(*Gateway)) *shared {
	n.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	listen := ln.Addr().String()
	ln.Close()
	s := &shared{gate: newBarrier(), of: n}
	way := newStreet(n.t, s.gate, listen)
	s.rig = newRig(n.t, func(g *Gateway) {
		g.Instance, g.CommandsTo = name, ""
		g.Logs = func(name string) table.Log { return gatedLog{n.logs[name], s.gate} }
		g.Peers.Listen, g.Peers.Advertise, g.Peers.Certificate, g.Peers.Key, g.Peers.CA = listen, way.at, n.certs.Certificate, n.certs.Key, n.certs.CA
		g.Peers.Heartbeat, g.Peers.CallTimeout = 50*time.Millisecond, time.Second
		if set != nil {
			set(g)
		}
	})
	n.all = append(n.all, s)
	for _, r := range n.all {
		eventually(n.t, "all reach each other", func() bool { return r.near.mesh.Stats().Connected >= len(n.all)-1 })
	}
	return s
}

// kill is kill -9, as far as others see it: what it has not written it never writes, it says nothing to anybody, and its clients lose
// their connections.
func (s *shared) kill(clients ...*peer) {
	s.t.Helper()
	s.stall()
	s.near.stopWork()
	eventually(s.t, s.Instance+" reaches nobody", func() bool { return s.near.mesh.Stats().Connected == 0 })
	s.of.all = slices.DeleteFunc(s.of.all, func(o *shared) bool { return o == s })
	for _, p := range clients {
		p.conn.NetConn().(*net.TCPConn).SetLinger(0)
		p.conn.NetConn().Close()
	}
}

// stall makes a gateway stand still for the others, until the test lets it go on, or ends.
func (s *shared) stall() {
	s.gate.shut()
	s.t.Cleanup(s.gate.unshut)
}
