package cli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/sourcegraph/conc/pool"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
	"hearthline/streams/apache"
	"hearthline/streams/apache/apachetest"
)

// What runs with every other test shows that it works; `make bench` has more.
var (
	tapN      = flag.Int("tap", 50, "TestTapToDevice: commands")
	tapLoad   = flag.Int("tap-load", 500, "TestTapToDevice: readings a second, over both gateways")
	tapApache = flag.Bool("tap-apache", false, "TestTapToDevice: on Apache Kafka instead of the embedded broker")
)

// TestTapToDevice is the time from an app's request at one gateway until the hub has the command, which is connected to the other
// one: HTTP over TLS, mutual TLS between the gateways, MQTT over TLS, on loopback. The gateways are processes of their own on a
// broker that keeps each command before it is sent; telemetry comes in at both meanwhile.
func TestTapToDevice(t *testing.T) {
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	if *tapApache {
		c.Broker = apachetest.Start(t, apache.New())[0]
	} else {
		broker := c.StartBroker()
		t.Cleanup(func() { broker.End(t) })
	}
	users := []identity.DevUser{{User: "app", Home: "h1", Role: identity.RoleApp}, {User: "hub", Home: "h1"}}
	for i := range 16 {
		users = append(users, identity.DevUser{User: fmt.Sprintf("load%02d", i), Home: fmt.Sprintf("home%02d", i)})
	}
	g := startGateways(t, c, "    messages_per_second: 0\n    bytes_per_second: 0\n", users...)
	const holder, other = 0, 1
	came := g.hub(t, holder)
	c.Eventually("a command reaches the hub", "true", func() string {
		g.request(t, other, "POST", "/v1/devices/lamp/commands", `{"name":"on","ttl":5}`)
		select {
		case <-came:
			return "true"
		case <-time.After(time.Second):
			return "false"
		}
	})

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	load := pool.New().WithErrors()
	var acknowledged atomic.Int64
	for at := range g.mqtt {
		f := newFleet(t, &contestant{addr: g.mqtt[at], roots: g.certs.CA, users: users[2+8*at : 10+8*at], passwords: g.passwords})
		f.connect(50, nil)
		defer f.close()
		load.Go(func() error { return f.paced(ctx, at, *tapLoad/2, &acknowledged) })
	}
	time.Sleep(500 * time.Millisecond) // until it flows evenly
	begun, before := time.Now(), acknowledged.Load()
	var took []time.Duration
	for i := range *tapN {
		since := time.Now()
		answer := make(chan int, 1)
		go func() {
			status, _ := g.request(t, other, "POST", "/v1/devices/lamp/commands", fmt.Sprintf(`{"id":"tap%d","name":"on","ttl":30}`, i))
			answer <- status
		}()
		select {
		case <-came:
			took = append(took, time.Since(since))
		case <-time.After(20 * time.Second):
			t.Fatalf("command %d did not arrive; the app was answered %d", i, <-answer)
		}
		if status := <-answer; status != http.StatusAccepted {
			t.Fatalf("command %d: status %d", i, status)
		}
	}
	rate := float64(acknowledged.Load()-before) / time.Since(begun).Seconds()
	reports, wishes := g.reports(t, *tapN, holder, other)
	stop()
	if err := load.Wait(); err != nil {
		t.Error(err)
	}
	for what, took := range map[string][]time.Duration{"taps to their hub": took, "reports to an app's live stream": reports, "wishes to their hub": wishes} {
		slices.Sort(took)
		at := func(q float64) time.Duration { return took[int(q*float64(len(took)-1))].Round(10 * time.Microsecond) }
		t.Logf("%d %s under %.0f acknowledged readings a second: p50 %v, p99 %v, longest %v", len(took), what, rate, at(0.5), at(0.99), at(1))
	}
	if rate < 0.9*float64(*tapLoad) {
		t.Logf("the load fell short of %d a second: the machine does other things", *tapLoad)
	}
}

// hub is the hub of h1 at one gateway. It executes what it is told, and says so; the channel has each command as it comes.
func (g *gateways) hub(t *testing.T, at int) <-chan struct{} {
	t.Helper()
	came := make(chan struct{}, 1)
	options := mqtt.NewClientOptions().AddBroker("ssl://" + g.mqtt[at]).SetClientID("hub").SetUsername("hub").SetPassword(g.passwords["hub"]).
		SetTLSConfig(&tls.Config{RootCAs: g.roots, ServerName: "localhost"})
	hub := mqtt.NewClient(options)
	done := func(token mqtt.Token) {
		if !token.WaitTimeout(20*time.Second) || token.Error() != nil {
			t.Fatal("hub: ", token.Error())
		}
	}
	done(hub.Connect())
	t.Cleanup(func() { hub.Disconnect(100) })
	done(hub.Subscribe("homes/h1/devices/+/commands", 1, func(c mqtt.Client, m mqtt.Message) {
		came <- struct{}{}
		var command struct{ ID string }
		if err := json.Unmarshal(m.Payload(), &command); err != nil {
			t.Errorf("command %s: %v", m.Payload(), err)
		}
		c.Publish(m.Topic()+"/"+command.ID+"/status", 1, false, `{"state":"executed"}`)
	}))
	return came
}

// paced publishes so many readings a second in all until ctx ends, and counts the acknowledged ones.
func (f *fleet) paced(ctx context.Context, seed, perSecond int, acknowledged *atomic.Int64) error {
	work := pool.New().WithErrors()
	every := time.Duration(float64(time.Second) * float64(len(f.conns)) / float64(perSecond))
	for i, c := range f.conns {
		topic := fmt.Sprintf("homes/%s/devices/d%d-%05d/telemetry", f.to.users[i%len(f.to.users)].Home, seed, i)
		work.Go(func() error {
			return sendEvery(ctx, c, topic, every, time.Duration(i)*every/time.Duration(len(f.conns)))
		})
		work.Go(func() error {
			in := make([]byte, 4096)
			for have := 0; ; {
				n, err := c.Read(in[have:])
				if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) && ctx.Err() != nil {
					return nil
				}
				if err != nil {
					return fmt.Errorf("client %d: %w", i, err)
				}
				have += n
				acknowledged.Add(int64(have / 4))
				have = copy(in, in[have/4*4:have])
			}
		})
	}
	return work.Wait()
}

// sendEvery publishes until ctx ends, and lets the reader of the connection end soon after.
func sendEvery(ctx context.Context, c *tls.Conn, topic string, every, first time.Duration) error {
	time.Sleep(first)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var packet []byte
	for id := uint16(1); ; id = id%60000 + 1 {
		packet = publishPacket(packet[:0], topic, id)
		if _, err := c.Write(packet); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return c.SetReadDeadline(time.Now().Add(time.Second))
		}
	}
}
