package cli

import (
	"context"
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

// Two gateways are processes of their own. The one that holds the hub is killed with -9 under commands that an app sends to the
// other: the hub comes to the other one, and each command that was accepted is executed once, or reported expired.
func TestTheGatewayOfTheHubIsKilledUnderCommands(t *testing.T) {
	const commands, ttl = 200, 30
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	broker := c.StartBroker()
	homes := c.Homes(1, 1_000_000, 0)
	homes.History, homes.BackoffMax = 0, 500*time.Millisecond
	if err := homes.WriteRegistry(filepath.Join(c.Data, "registry.csv")); err != nil {
		t.Fatal(err)
	}
	g := startGateways(t, c, "", identity.DevUser{User: "app", Home: homes.HomeNames()[0], Role: identity.RoleApp})
	const holder, other = 0, 1
	homes.Gateway = g.mqtt[other] + "," + g.mqtt[holder] // the first home is number one, and begins with the second
	playing, leave := context.WithCancel(t.Context())
	defer leave()
	ended := clitest.Play(playing, homes)
	c.Eventually("the hub is there", "1", func() string { return fmt.Sprint(homes.Stats().Connected) })
	accepted := 0
	for i := range commands {
		device := fmt.Sprintf("lamp-%d", i%10) // a device has at most so many under way
		body := fmt.Sprintf(`{"id":"c%d","name":"on","ttl":%d}`, i, ttl)
		status, _ := g.request(t, other, "POST", "/v1/devices/"+device+"/commands", body)
		if status == http.StatusAccepted || status == http.StatusOK {
			accepted++
		}
		if i == commands/2 {
			g.procs[holder].Kill()
		}
	}
	if accepted < commands {
		t.Errorf("%d of %d commands were accepted by the gateway that lives", accepted, commands)
	}
	states := map[string]int{}
	for i := range commands {
		path := fmt.Sprintf("/v1/devices/lamp-%d/commands/c%d", i%10, i)
		deadline := time.Now().Add((ttl + 30) * time.Second)
		state := ""
		for time.Now().Before(deadline) {
			_, got := g.request(t, other, "GET", path, "")
			if state, _ = got["state"].(string); state == "executed" || state == "failed" || state == "expired" {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		states[state]++
	}
	s := homes.Stats()
	t.Logf("states %v; the hub executed %d, refused %d as late, was sent %d again", states, s.Executed, s.TooLate, s.Repeated)
	if s.Reconnects == 0 {
		t.Error("the hub never lost its gateway: this test has shown nothing")
	}
	if states["executed"]+states["failed"]+states["expired"] != accepted {
		t.Errorf("not every accepted command came to an end: %v", states)
	}
	if int(s.Executed) < states["executed"] || int(s.Executed) > accepted {
		t.Errorf("the hub executed %d commands; %d are said to be executed", s.Executed, states["executed"])
	}
	if states["executed"] < accepted/2 {
		t.Errorf("too few were executed: %v", states)
	}
	leave()
	if err := <-ended; err != nil && !errors.Is(err, simulator.ErrUnacknowledged) && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	g.procs[other].Terminate()
	broker.End(t)
}
