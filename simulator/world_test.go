package simulator

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/csv"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLostAcknowledgements: the gateway stores, and loses every twentieth connection before it acknowledges.
func TestLostAcknowledgements(t *testing.T) {
	g := newGateway(t)
	chance := rand.New(rand.NewPCG(1, 2))
	g.lose = func() bool { return chance.IntN(20) == 0 } // under g.mu
	s := g.simulate(t.TempDir())
	finish(t, s)
	equal(t, g, s)
	if st := s.Stats(); g.copies == 0 || st.Resent == 0 || st.Reconnects == 0 || st.Unavailable == 0 || st.LastError == "" {
		t.Errorf("%d copies; %+v", g.copies, st)
	}
}

// TestGatewayAway: it comes late, goes in the middle of the work and comes again.
func TestGatewayAway(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.stop()
	g.delay = func() time.Duration { return time.Millisecond }
	s := g.simulate(t.TempDir())
	s.Rounds, s.History = 200, 200*time.Second
	done := make(chan error, 1)
	spawn(func() { done <- s.Run(context.Background()) })
	eventually(t, "it is told that nobody is there", func() bool { return s.Stats().Unavailable > 5 && s.Stats().LastError != "" })
	for range 3 {
		g.start()
		before := g.count()
		eventually(t, "rows come", func() bool { return g.count() > before+200 })
		g.stop()
	}
	g.start()
	must(t, <-done)
	equal(t, g, s)
}

// TestRefusedForNow: a gateway over its quota says so (MQTT 5); the same messages come again, and nothing is lost.
func TestRefusedForNow(t *testing.T) {
	g := newGateway(t)
	g.failNext = 40
	s := g.simulate(t.TempDir())
	s.MQTT = 5
	finish(t, s)
	equal(t, g, s)
	if st := s.Stats(); !strings.Contains(st.LastError, "quota") {
		t.Errorf("last error %q", st.LastError)
	}
}

// TestSilentGateway: one that takes connections and says nothing is given up after a while; a stopped run says
// what is not acknowledged.
func TestSilentGateway(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.stop()
	l, err := tls.Listen("tcp", g.addr, &tls.Config{Certificates: []tls.Certificate{g.cert}})
	must(t, err)
	defer l.Close()
	spawn(func() { // welcomes everybody, then only listens
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			spawn(func() {
				defer c.Close()
				io.ReadAtLeast(c, make([]byte, 512), 10)
				c.Write([]byte{0x20, 2, 0, 0})
				io.Copy(io.Discard, c)
			})
		}
	})
	s := g.simulate(t.TempDir())
	s.MQTT, s.AckTimeout, s.DrainWait = 4, 50*time.Millisecond, 100*time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	spawn(func() { done <- s.Run(ctx) })
	eventually(t, "connections are given up", func() bool { return s.Stats().Unavailable > 10 })
	if text := s.Stats().LastError; !strings.Contains(text, "does not answer") {
		t.Errorf("last error %q", text)
	}
	cancel()
	if err := <-done; !errors.Is(err, ErrUnacknowledged) {
		t.Errorf("error %v", err)
	}
	if rows, _ := s.ExpectedRows(); rows != 0 {
		t.Errorf("%d rows are taken for acknowledged", rows)
	}
	l.Close()
	g.start()
	again := g.simulate(s.JournalDir)
	finish(t, again)
	equal(t, g, again)
}

// TestKeepAlive: a hub with nothing to say pings, and stays connected; without, it would be cut off after 3 s (1.5 times
// the keep alive, 3.1.2.10).
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	s := g.simulate(t.TempDir())
	s.Homes, s.Interval, s.Rounds, s.History, s.KeepAlive = 2, time.Hour, 0, 0, 2*time.Second
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	must(t, s.Run(ctx))
	if st := s.Stats(); st.Reconnects != 0 || st.Unavailable != 0 || g.logins["true"] != 2 {
		t.Errorf("%+v; logins %v", st, g.logins)
	}
}

// TestJournalAway: while the journal cannot be written, hubs wait within what it reserved; then they go on.
func TestJournalAway(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	dir := filepath.Join(t.TempDir(), "journal")
	s := g.simulate(dir)
	s.Homes, s.Rounds, s.History = 2, 1000, 1000*time.Second
	done := make(chan error, 1)
	spawn(func() { done <- s.Run(context.Background()) })
	eventually(t, "rows come", func() bool { return g.count() > 500 })
	must(t, os.Rename(dir, dir+".away"))
	still, since := int64(-1), time.Now()
	eventually(t, "the hubs wait", func() bool {
		if n := g.count(); n != still {
			still, since = n, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
	if s.Stats().Finished != 0 {
		t.Error("a hub has finished without a journal")
	}
	must(t, os.Rename(dir+".away", dir))
	must(t, <-done)
	equal(t, g, s)
}

func TestWrongWorld(t *testing.T) {
	g := newGateway(t)
	for name, c := range map[string]struct {
		spoil func(s *Simulator)
		want  string // in LastError
	}{
		"wrong authority": {func(s *Simulator) { s.CAFile = newGateway(t).caFile }, "certificate"},
		"wrong password": {func(s *Simulator) {
			s.Credentials = func(home string) (string, string) { return home, "guess" }
		}, "login"},
		"no TLS": {func(s *Simulator) {
			l, err := net.Listen("tcp", freeAddress(t))
			must(t, err)
			t.Cleanup(func() { l.Close() })
			spawn(func() {
				for c, err := l.Accept(); err == nil; c, err = l.Accept() {
					c.Write([]byte("220 hello\r\n"))
					c.Close()
				}
			})
			s.Gateway = l.Addr().String()
		}, "TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			s := g.simulate(t.TempDir())
			c.spoil(s)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			spawn(func() { done <- s.Run(ctx) })
			eventually(t, "it is told", func() bool { return s.Stats().LastError != "" })
			cancel()
			must(t, <-done) // nothing was sent, so nothing is missing
			if st := s.Stats(); !strings.Contains(st.LastError, c.want) || st.Acknowledged != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestBadSettings(t *testing.T) {
	good := func() *Simulator {
		s := New()
		s.Gateway, s.JournalDir = "localhost:8883", t.TempDir()
		s.Credentials = func(string) (string, string) { return "", "" }
		return s
	}
	must(t, good().check())
	for want, spoil := range map[string]func(s *Simulator){
		"gateway is": func(s *Simulator) { s.Gateway = "localhost" }, "journal_dir": func(s *Simulator) { s.JournalDir = "" },
		"credentials": func(s *Simulator) { s.Credentials = nil }, "homes is -1": func(s *Simulator) { s.Homes = -1 },
		"nothing to play": func(s *Simulator) { s.Homes, s.Recorded = 0, false }, "interval": func(s *Simulator) { s.Interval = 0 },
		"negative": func(s *Simulator) { s.History = -1 }, "speed": func(s *Simulator) { s.Speed = -1 }, "mqtt is 3": func(s *Simulator) { s.MQTT = 3 },
		"window": func(s *Simulator) { s.Window = 65 }, "keep_alive": func(s *Simulator) { s.KeepAlive = 0 },
		"backoff_min": func(s *Simulator) { s.BackoffMax = 0 }, "connects_max": func(s *Simulator) { s.ConnectsMax = 0 },
		"ack_timeout": func(s *Simulator) { s.AckTimeout = 0 }, "journal_every": func(s *Simulator) { s.JournalEvery = time.Minute },
		"spike is 2": func(s *Simulator) { s.Faults.Spike = 2 }, "rounds": func(s *Simulator) { s.Rounds = -1 },
		"ca_file":         func(s *Simulator) { s.CAFile = filepath.Join(t.TempDir(), "none") },
		"no PEM":          func(s *Simulator) { s.CAFile = os.Args[0] },
		"its last line":   func(s *Simulator) { must(t, os.WriteFile(s.journalPath(), []byte("{}\nend 0\n"), 0o600)) },
		"not a directory": func(s *Simulator) { s.JournalDir = os.Args[0] },
	} {
		s := good()
		spoil(s)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.Run(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v; want one with %q", err, want)
		}
	}
}

func TestRegistry(t *testing.T) {
	s := New()
	path := filepath.Join(t.TempDir(), "registry.csv")
	must(t, s.WriteRegistry(path))
	b, err := os.ReadFile(path)
	must(t, err)
	lines, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	must(t, err)
	if got := strings.Join(lines[0], ","); got != "home,device,room,kind,model,zone" {
		t.Errorf("header %s", got)
	}
	homes := map[string]int{}
	seen := map[string]bool{}
	for _, l := range lines[1:] {
		homes[l[0]]++
		if key := l[0] + "/" + l[1]; seen[key] {
			t.Errorf("%s is there twice", key)
		} else {
			seen[key] = true
		}
	}
	names := s.HomeNames()
	if len(names) != 202 || len(homes) != 202 {
		t.Errorf("%d names, %d homes in the registry; want 202", len(names), len(homes))
	}
	for _, n := range names {
		if homes[n] < 3 || homes[n] > 8 {
			t.Errorf("%s has %d devices", n, homes[n])
		}
	}
	if homes["recorded-room"] != 8 || homes["recorded-office"] != 3 {
		t.Errorf("the recorded rooms have %d and %d devices", homes["recorded-room"], homes["recorded-office"])
	}
	var rows float64
	for i := 1; i <= 200; i++ {
		for _, d := range newHome(s.Seed, i).kit {
			rows += float64(len(d.metrics))
		}
	}
	t.Logf("200 homes make %.0f rows a second", rows/s.Interval.Seconds())
}
