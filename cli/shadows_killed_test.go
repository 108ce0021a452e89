package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
	"hearthline/simulator"
)

// Two gateways are processes of their own. First the one that holds the hub is killed with -9 while an app, at the other, wants one
// thing after another of ten devices; then, with the hub away, the one that took the wishes. Each wish that was answered stands, and
// every device becomes what was wanted last.
func TestBothGatewaysAreKilledUnderWishes(t *testing.T) {
	const wishes, devices = 200, 10
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	broker := c.StartBroker()
	homes := c.Homes(1, 1_000_000, 0)
	homes.History, homes.BackoffMax, homes.States = 0, 500*time.Millisecond, true
	if err := homes.WriteRegistry(filepath.Join(c.Data, "registry.csv")); err != nil {
		t.Fatal(err)
	}
	home := homes.HomeNames()[0]
	g := startGateways(t, c, "", identity.DevUser{User: "app", Home: home, Role: identity.RoleApp})
	const holder, other = 0, 1
	homes.Gateway = g.mqtt[other] + "," + g.mqtt[holder] // the first home is number one, and begins with the second
	playing, leave := context.WithCancel(t.Context())
	defer leave()
	ended := clitest.Play(playing, homes)
	c.Eventually("the hub is there", "1", func() string { return fmt.Sprint(homes.Stats().Connected) })
	want := func(i int) {
		path := fmt.Sprintf("/v1/devices/lamp-%d/shadow", i%devices)
		if status, got := g.request(t, other, "PATCH", path, fmt.Sprintf(`{"desired":{"level":%d,"n%d":%d}}`, i, i/devices, i)); status != http.StatusOK {
			t.Errorf("wish %d: %d %v", i, status, got)
		}
	}
	for i := range wishes {
		want(i)
		if i == wishes/2 {
			g.procs[holder].Kill()
		}
	}
	became := func(last int) string {
		_, got := g.request(t, other, "GET", "/v1/homes/"+home+"/shadows", "")
		raw, _ := json.Marshal(got["shadows"]) // what was decoded from JSON
		var all []struct {
			Device            string
			Desired, Reported map[string]int
			Delta             map[string]int
		}
		_ = json.Unmarshal(raw, &all) // firmware is a text, which the simulated devices have beside the lamps
		right := 0
		for _, s := range all {
			var n int
			if _, err := fmt.Sscanf(s.Device, "lamp-%d", &n); err != nil {
				continue
			}
			if level := last - devices + n; s.Desired["level"] == level && s.Reported["level"] == level && len(s.Delta) == 0 && len(s.Desired) == last/devices+1 {
				right++
			}
		}
		return fmt.Sprint(right)
	}
	c.Eventually("every device is what was wanted last", fmt.Sprint(devices), func() string { return became(wishes) })
	s := homes.Stats()
	t.Logf("%d wishes, one gateway killed: the hub followed %d deltas and came back %d times", wishes, s.Complied, s.Reconnects)
	if s.Reconnects == 0 {
		t.Error("the hub never lost its gateway: this test has shown nothing")
	}
	leave()
	if err := <-ended; err != nil && !errors.Is(err, simulator.ErrUnacknowledged) && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// The hub is away: what is wanted now outlives the gateway that took it.
	for i := wishes - devices; i < wishes; i++ {
		want(i + devices)
	}
	g.procs[other].Kill()
	g.again(t, other)
	playing, leaveAgain := context.WithCancel(t.Context())
	defer leaveAgain()
	ended = clitest.Play(playing, homes)
	c.Eventually("what was wanted while nobody was there is done", fmt.Sprint(devices), func() string { return became(wishes + devices) })
	// A command is later than what was desired, and is not undone by it.
	if status, got := g.request(t, other, "POST", "/v1/devices/lamp-0/commands", `{"name":"set","arguments":{"level":7},"ttl":20}`); status != http.StatusAccepted {
		t.Errorf("%d %v", status, got)
	}
	c.Eventually("the command is done, and nothing else is desired", "7 <nil>", func() string {
		_, got := g.request(t, other, "GET", "/v1/devices/lamp-0/shadow", "")
		desired, _ := got["desired"].(map[string]any)
		reported, _ := got["reported"].(map[string]any)
		return fmt.Sprint(reported["level"], " ", desired["level"])
	})
	leaveAgain()
	if err := <-ended; err != nil && !errors.Is(err, simulator.ErrUnacknowledged) && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	g.procs[other].Terminate()
	broker.End(t)

}
