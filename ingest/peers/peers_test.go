package peers

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/ingest/identity"
	"hearthline/ingest/peers/peerspb"
	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

// logs are what gateways share.
type logs struct{ gateways, sessions, audiences *tabletest.Log }

func newLogs() *logs {
	return &logs{tabletest.NewLog(2), tabletest.NewLog(2), tabletest.NewLog(2)}
}

// node is one gateway of the mesh, and what came to it.
type node struct {
	*Peers
	stop func()
	kill func() // ends it without a farewell

	mu       sync.Mutex
	messages []string
	evicted  []string
	commands []string
	sessions map[string][]byte // to be handed over, by user|client; nil: it ends
}

func (n *node) Deliver(m *peerspb.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.messages = append(n.messages, m.GetTopic()+"="+string(m.GetPayload()))
}

func (n *node) Evict(user, client string, _ uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.evicted = append(n.evicted, user+"|"+client)
}

func (n *node) HandOver(_ context.Context, user, client string) ([]byte, Found, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	state, ok := n.sessions[user+"|"+client]
	switch {
	case !ok:
		return nil, Nobody, nil
	case state == nil:
		return nil, Ended, nil
	}
	return state, Given, nil
}

func (n *node) Take(_ context.Context, command []byte) peerspb.CommandReply_Outcome {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.commands = append(n.commands, string(command))
	return peerspb.CommandReply_TAKEN
}

func (n *node) got(of *[]string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(*of)
}

func certificates(t testing.TB) identity.Certificates {
	t.Helper()
	certs, err := identity.DevCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

func start(t testing.TB, name string, l *logs, certs identity.Certificates) *node {
	t.Helper()
	n := &node{}
	p := &Peers{Settings: Defaults(), Start: name, StateBytesMax: 4 << 20, Local: n, Commands: n}
	n.Peers = p
	p.Settings.Listen, p.Certificate, p.Key, p.CA = "127.0.0.1:0", certs.Certificate, certs.Key, certs.CA
	p.Heartbeat, p.MissedMax = 50*time.Millisecond, 8
	if testing.Verbose() {
		p.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("gateway", name)
	}
	newTable := func(name string, log *tabletest.Log) *table.Table {
		tab := table.New()
		tab.Name, tab.Log, tab.Partitions = name, log, 2
		return tab
	}
	p.Tables = Tables{newTable("gateways", l.gateways), newTable("sessions", l.sessions), newTable("audiences", l.audiences)}
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	life, end := context.WithCancel(context.Background())
	var tables, mesh conc.WaitGroup
	for _, tab := range []*table.Table{p.Tables.Gateways, p.Tables.Sessions, p.Tables.Audiences} {
		if err := tab.Prepare(); err != nil {
			t.Fatal(err)
		}
		tables.Go(func() {
			if err := tab.Run(life); err != nil {
				t.Error(err)
			}
		})
		<-tab.CaughtUp()
	}
	dead := false
	mesh.Go(func() {
		if err := p.Run(ctx); err != nil && !dead {
			t.Error(err)
		}
	})
	n.stop = func() { cancel(); mesh.Wait(); end(); tables.Wait() }
	n.kill = func() { dead = true; end(); tables.Wait(); cancel(); mesh.Wait() }
	t.Cleanup(func() {
		if !dead {
			n.stop()
		}
	})
	return n
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came true: %s", what)
		}
	}
}

func mesh(t testing.TB, n int) (*logs, []*node) {
	t.Helper()
	l, certs := newLogs(), certificates(t)
	var nodes []*node
	for i := range n {
		nodes = append(nodes, start(t, fmt.Sprintf("gw-%d~start", i), l, certs))
	}
	for _, a := range nodes {
		eventually(t, "all know each other", func() bool {
			known := a.Live()
			return len(known) == n-1 && !slices.ContainsFunc(known, func(s string) bool { return a.way(s) == nil })
		})
	}
	return l, nodes
}

func message(home, topic, payload string) *peerspb.Message {
	return &peerspb.Message{Home: home, Topic: topic, Payload: []byte(payload)}
}

func TestMessagesGoWhereSubscribersAre(t *testing.T) {
	_, n := mesh(t, 3)
	n[1].Subscribed("h1", []string{"homes/h1/devices/+/state", "homes/h1/x"})
	n[2].Subscribed("h2", []string{"homes/h2/#"})
	eventually(t, "the first knows who listens", func() bool {
		return len(n[0].Listeners("h1", "homes/h1/x")) == 1 && len(n[0].Listeners("h2", "homes/h2/y/z")) == 1
	})
	var want []string
	for i := range 500 {
		payload := fmt.Sprint(i)
		n[0].Publish(message("h1", "homes/h1/devices/lamp/state", payload))
		n[0].Publish(message("h1", "homes/h1/devices/lamp/telemetry", payload)) // nobody wants it
		want = append(want, "homes/h1/devices/lamp/state="+payload)
	}
	eventually(t, "all have come", func() bool { return len(n[1].got(&n[1].messages)) >= len(want) })
	if got := n[1].got(&n[1].messages); !slices.Equal(got, want) {
		t.Errorf("what came is not what was sent, in order: %d messages", len(got))
	}
	if got := n[2].got(&n[2].messages); len(got) > 0 {
		t.Errorf("a gateway without subscribers of the home got %d messages", len(got))
	}
	n[1].Subscribed("h1", nil)
	eventually(t, "nobody listens any more", func() bool { return n[0].Listeners("h1", "homes/h1/x") == nil })
	if s := n[0].Stats(); s.Sent != 500 || s.Lost != 0 || s.Others != 2 || s.Connected != 2 || s.Queued != 0 || time.Until(s.Expires) < time.Hour {
		t.Errorf("%+v", s)
	}
}

func TestCommandsAreForOneStart(t *testing.T) {
	_, n := mesh(t, 2)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	got, err := n[0].Command(ctx, n[1].Start, []byte("on"))
	if err != nil || got != peerspb.CommandReply_TAKEN {
		t.Fatalf("%v, %v", got, err)
	}
	if got := n[1].got(&n[1].commands); !slices.Equal(got, []string{"on"}) {
		t.Errorf("the other took %v", got)
	}
	if got, err := n[0].Command(ctx, "gw-1~another", []byte("on")); err != nil || got != peerspb.CommandReply_NOT_HERE {
		t.Errorf("a start that is not there: %v, %v", got, err)
	}
	// A gateway that was started again at the same address is not the one that is meant.
	l := n[0].way(n[1].Start)
	reply, err := l.client.Command(ctx, &peerspb.CommandRequest{To: "gw-1~before", Command: []byte("on")})
	if err != nil || reply.GetOutcome() != peerspb.CommandReply_NOT_HERE {
		t.Errorf("a command for the start before: %v, %v", reply, err)
	}
	if s := n[0].Stats(); s.Commands != 1 || s.Call.Count != 1 || s.Call.Sum <= 0 || s.Failed != 0 {
		t.Errorf("of one call: %+v", s)
	}
	n[1].kill()
	if got, err := n[0].Command(ctx, n[1].Start, []byte("on")); err == nil && got == peerspb.CommandReply_TAKEN {
		t.Errorf("a gateway that is dead took a command: %v", got)
	}
}

func TestTheLastClaimStands(t *testing.T) {
	_, n := mesh(t, 3)
	n[0].Claim("anna", "hub/1")
	berts := n[0].Claim("bert", "hub")
	n[1].Claim("anna", "other")
	eventually(t, "the claims are known", func() bool { return len(n[2].Tables.Sessions.Scan("")) == 3 })
	n[2].Claim("anna", "hub/1")
	eventually(t, "who claimed first lets go", func() bool { return slices.Equal(n[0].got(&n[0].evicted), []string{"anna|hub/1"}) })
	last := n[0].Claim("anna", "hub/1") // and comes back
	eventually(t, "the other lets go", func() bool { return slices.Equal(n[2].got(&n[2].evicted), []string{"anna|hub/1"}) })
	eventually(t, "one claim of each stands", func() bool { return len(n[1].Tables.Sessions.Scan("")) == 3 })
	n[0].Release("anna", "hub/1", 1) // one of before
	n[0].Release("anna", "hub/1", last)
	n[0].Release("bert", "hub", berts)
	eventually(t, "what was let go is gone", func() bool { return len(n[1].Tables.Sessions.Scan("")) == 1 })
	if got := n[1].got(&n[1].evicted); len(got) > 0 {
		t.Errorf("%v was evicted", got)
	}
	// Both at once: one is left.
	for i := range 20 {
		client := fmt.Sprint("hub-", i)
		var both conc.WaitGroup
		both.Go(func() { n[0].Claim("carl", client) })
		both.Go(func() { n[1].Claim("carl", client) })
		both.Wait()
		eventually(t, "one of two is evicted", func() bool {
			evicted := 0
			for _, x := range n[:2] {
				if slices.Contains(x.got(&x.evicted), "carl|"+client) {
					evicted++
				}
			}
			return evicted == 1 && len(n[2].Tables.Sessions.Scan("carl/"+client+"/")) == 1
		})
	}
}

func TestTheDeadAreRetired(t *testing.T) {
	l, n := mesh(t, 3)
	n[0].Claim("anna", "hub")
	n[0].Subscribed("h1", []string{"homes/h1/#"})
	n[1].Claim("bert", "hub")
	eventually(t, "all know it", func() bool {
		return len(n[2].Tables.Sessions.Scan("")) == 2 && len(n[2].Listeners("h1", "homes/h1/x")) == 1
	})
	n[0].kill()
	eventually(t, "what the dead one had is taken away", func() bool {
		sessions := n[2].Tables.Sessions.Scan("")
		return len(sessions) == 1 && strings.HasPrefix(sessions[0].Key, "bert/") && len(n[2].Tables.Audiences.Scan("")) == 0 &&
			len(n[2].Tables.Gateways.Scan("")) == 2 && n[2].Listeners("h1", "homes/h1/x") == nil
	})
	if n[1].Stats().Retired != 1 || n[2].Stats().Retired != 0 {
		t.Errorf("retired by the second %d, by the third %d; want 1 and 0", n[1].Stats().Retired, n[2].Stats().Retired)
	}
	// While the log takes nothing, nobody is gone.
	for _, log := range []*tabletest.Log{l.gateways, l.sessions, l.audiences} {
		log.SetDown(true)
	}
	<-time.After(time.Second)
	if len(n[1].Live()) != 1 || len(n[2].Live()) != 1 {
		t.Errorf("without a log the second knows %v, the third %v", n[1].Live(), n[2].Live())
	}
	for _, log := range []*tabletest.Log{l.gateways, l.sessions, l.audiences} {
		log.SetDown(false)
	}
	n[2].stop()
	eventually(t, "who leaves is gone at once", func() bool { return len(n[1].Tables.Gateways.Scan("")) == 1 })
}

// One that others took for gone, and is not, says again what it has, but for what others have claimed since.
func TestTakenForGone(t *testing.T) {
	_, n := mesh(t, 2)
	n[0].Claim("anna", "hub")
	n[0].Claim("bert", "hub")
	n[0].Subscribed("h1", []string{"homes/h1/#"})
	eventually(t, "it is known", func() bool { return len(n[1].Tables.Sessions.Scan("")) == 2 })
	for _, tab := range []*table.Table{n[1].Tables.Sessions, n[1].Tables.Audiences} {
		for _, rec := range tab.Scan("") {
			at, err := tab.Put(context.Background(), rec.Key, nil)
			if err != nil || tab.Reached(context.Background(), at) != nil {
				t.Fatal(err)
			}
		}
	}
	n[1].Claim("bert", "hub")
	eventually(t, "the other has it", func() bool { return len(n[0].Tables.Sessions.Scan("")) == 1 })
	if _, err := n[1].Tables.Gateways.Put(context.Background(), n[0].Start, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is back", func() bool {
		return len(n[1].Tables.Sessions.Scan("anna/")) == 1 && len(n[1].Listeners("h1", "homes/h1/x")) == 1
	})
	eventually(t, "and lets go of what the other has", func() bool { return slices.Equal(n[0].got(&n[0].evicted), []string{"bert|hub"}) })
	if got := n[1].got(&n[1].evicted); len(got) > 0 {
		t.Errorf("the other lost %v", got)
	}
}

// Who has no certificate of the gateways' own authority is not let in, and learns nothing.
func TestStrangersAreRefused(t *testing.T) {
	_, n := mesh(t, 1)
	eventually(t, "it listens", func() bool { return n[0].address.Load() != nil })
	address := *n[0].address.Load()
	strange := certificates(t)
	pair, err := tls.LoadX509KeyPair(strange.Certificate, strange.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, certs := range map[string][]tls.Certificate{"no certificate": nil, "a strange one": {pair}} {
		conn, err := tls.Dial("tcp", address, &tls.Config{Certificates: certs, InsecureSkipVerify: true, NextProtos: []string{"h2"}}) // a stranger does not care whom it speaks to
		if err == nil {
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			for err == nil { // TLS 1.3: the refusal comes with the first bytes that are read
				_, err = conn.Read(make([]byte, 100))
			}
			conn.Close()
		}
		var timeout net.Error
		if e, ok := err.(net.Error); ok {
			timeout = e
		}
		if timeout != nil && timeout.Timeout() {
			t.Errorf("%s: the connection was kept open", name)
		}
		t.Log(name, ": ", err)
	}
}

// Certificates that change are taken up without a restart: gateways of the old authority are shut out from then on.
func TestCertificatesAreReadAgain(t *testing.T) {
	l, certs := newLogs(), certificates(t)
	a := start(t, "gw-a~1", l, certs)
	fresh := certificates(t)
	for from, to := range map[string]string{fresh.Certificate: certs.Certificate, fresh.Key: certs.Key, fresh.CA: certs.CA} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := identity.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := start(t, "gw-b~1", l, fresh)
	eventually(t, "the new certificate is taken", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		got, err := b.Command(ctx, a.Start, []byte("x"))
		return err == nil && got == peerspb.CommandReply_TAKEN
	})
}

// Others are told an address that they can reach, and never that a gateway is everywhere.
func TestWhereOthersReachAGateway(t *testing.T) {
	for _, c := range []struct{ listen, advertise, host, want string }{
		{"0.0.0.0:8884", "", "10.1.2.3", "10.1.2.3:8884"},
		{":8884", "", "fd00::7", "[fd00::7]:8884"},
		{"[::]:8884", "", "gateway", "gateway:8884"},
		{"127.0.0.1:8884", "", "10.1.2.3", ""},
		{"0.0.0.0:8884", "lb:1", "10.1.2.3", "lb:1"},
		{"0.0.0.0:8884", "", "", ""},
		{"", "", "10.1.2.3", ""},
	} {
		s := Settings{Listen: c.listen, Advertise: c.advertise}
		if s.AdvertiseAt(c.host); s.Advertise != c.want {
			t.Errorf("%+v advertises %q", c, s.Advertise)
		}
	}
	certs := certificates(t)
	p := &Peers{Settings: Defaults(), Start: "a"}
	p.Listen, p.Certificate, p.Key, p.CA = "0.0.0.0:8884", certs.Certificate, certs.Key, certs.CA
	if err := p.Prepare(); err == nil || !strings.Contains(err.Error(), "set advertise") {
		t.Errorf("a gateway that is everywhere: %v", err)
	}
	p.Advertise = "10.1.2.3:0"
	p.advertise(&net.TCPAddr{IP: net.IPv4zero, Port: 4711})
	if got := *p.address.Load(); got != "10.1.2.3:4711" {
		t.Errorf("with any free port it advertises %s", got)
	}
}
