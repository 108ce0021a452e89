package cli

import (
	"crypto/tls"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
)

// said is what a client has heard.
type said chan string

// dial connects a client of MQTT 3.1.1 that keeps its session, and says whether there was one.
func (g *gateways) dial(t *testing.T, at int, user, id, will string) (c mqtt.Client, heard said, present bool) {
	t.Helper()
	heard = make(said, 100)
	o := mqtt.NewClientOptions().AddBroker("ssl://" + g.mqtt[at]).SetClientID(id).SetUsername(user).SetPassword(g.passwords[user])
	o.SetProtocolVersion(4).SetCleanSession(false).SetAutoReconnect(false).SetConnectTimeout(20 * time.Second)
	o.SetTLSConfig(&tls.Config{RootCAs: g.roots, ServerName: "localhost"})
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { heard <- string(m.Payload()) })
	if will != "" {
		o.SetWill("homes/h1/gone", will, 1, false)
	}
	c = mqtt.NewClient(o)
	tok := c.Connect().(*mqtt.ConnectToken)
	if !tok.WaitTimeout(30*time.Second) || tok.Error() != nil {
		t.Fatal("connect ", id, ": ", tok.Error())
	}
	t.Cleanup(func() { c.Disconnect(0) })
	return c, heard, tok.SessionPresent()
}

func (s said) want(t *testing.T, what string) {
	t.Helper()
	select {
	case got := <-s:
		if got != what {
			t.Errorf("%q was heard; want %q", got, what)
		}
	case <-time.After(60 * time.Second):
		t.Fatalf("%q was not heard", what)
	}
}

// Two gateways are processes of their own. A client moves from one to the other while its connection stands, with its session; then its
// gateway is killed with -9, and the other publishes its will, once.
func TestSessionsAndWillsOfGatewaysThatAreProcesses(t *testing.T) {
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	broker := c.StartBroker()
	g := startGateways(t, c, "", identity.DevUser{User: "app", Home: "h1", Role: identity.RoleApp}, identity.DevUser{User: "hub", Home: "h1"})
	const stays, dies = 0, 1
	app, gone, _ := g.dial(t, stays, "app", "phone", "")
	if tok := app.Subscribe("homes/h1/gone", 1, nil); !tok.WaitTimeout(30*time.Second) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	before, _, present := g.dial(t, stays, "hub", "hub", "moved")
	if present {
		t.Error("a session out of nothing")
	}
	if tok := before.Subscribe("homes/h1/news", 1, nil); !tok.WaitTimeout(30*time.Second) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	time.Sleep(500 * time.Millisecond) // the other knows by now who has it
	_, news, present := g.dial(t, dies, "hub", "hub", "killed")
	if !present {
		t.Error("the session did not move")
	}
	gone.want(t, "moved")
	c.Eventually("the subscription is known where the app is", "true", func() string {
		if tok := app.Publish("homes/h1/news", 1, false, "news"); !tok.WaitTimeout(30*time.Second) || tok.Error() != nil {
			t.Fatal(tok.Error())
		}
		select {
		case <-news:
			return "true"
		case <-time.After(time.Second):
			return "false"
		}
	})
	start := time.Now()
	g.procs[dies].Kill()
	gone.want(t, "killed")
	t.Logf("the will came %s after its gateway was killed", time.Since(start))
	g.again(t, dies)
	select {
	case again := <-gone:
		t.Errorf("%q came again", again)
	case <-time.After(2 * time.Second):
	}
	for _, p := range g.procs {
		p.Terminate()
	}
	broker.End(t)
}
