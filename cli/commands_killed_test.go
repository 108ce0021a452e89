package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
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
	dir := filepath.Join(c.Data, "gateway")
	file, passwords, err := identity.DevCredentials(dir, identity.DevUser{User: "app", Home: homes.HomeNames()[0], Role: identity.RoleApp})
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.DevCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := identity.DevCertificates(filepath.Join(dir, "peers"))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := os.ReadFile(c.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	c.Write(strings.Replace(string(plan), "    linger: ", fmt.Sprintf(
		"    peers: {listen: \"${PEERS}\", certificate: %s, key: %s, ca: %s}\n    linger: ", mesh.Certificate, mesh.Key, mesh.CA), 1))
	type door struct{ mqtt, http string }
	start := func(name string) (*clitest.Running, door) {
		d := door{clitest.FreeAddr(t), clitest.FreeAddr(t)}
		c.Env = []string{"HEARTHLINE_KAFKA=" + c.Broker, "HEARTHLINE_MQTT=" + d.mqtt, "HEARTHLINE_HTTP=" + d.http, "PEERS=" + clitest.FreeAddr(t),
			"HEARTHLINE_CERTIFICATE=" + certs.Certificate, "HEARTHLINE_KEY=" + certs.Key, "HEARTHLINE_CREDENTIALS=" + file}
		return c.Role("gateway", "--instance", name), d
	}
	holder, holders := start("holder")
	other, others := start("other")
	homes.Gateway = holders.mqtt + "," + others.mqtt
	pem, err := os.ReadFile(certs.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}}}
	request := func(method, path, body string) (int, map[string]any) {
		req, err := http.NewRequest(method, "https://"+others.http+path, bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("app", passwords["app"])
		res, err := client.Do(req)
		if err != nil {
			return 0, nil
		}
		defer res.Body.Close()
		var got map[string]any
		_ = json.NewDecoder(res.Body).Decode(&got)
		return res.StatusCode, got
	}
	c.Eventually("the other gateway answers", "200", func() string {
		status, _ := request("GET", "/v1/devices/lamp/commands", "")
		return fmt.Sprint(status)
	})
	playing, leave := context.WithCancel(t.Context())
	defer leave()
	ended := clitest.Play(playing, homes)
	c.Eventually("the hub is there", "1", func() string { return fmt.Sprint(homes.Stats().Connected) })
	accepted := 0
	for i := range commands {
		device := fmt.Sprintf("lamp-%d", i%10) // a device has at most so many under way
		body := fmt.Sprintf(`{"id":"c%d","name":"on","ttl":%d}`, i, ttl)
		status, _ := request("POST", "/v1/devices/"+device+"/commands", body)
		if status == http.StatusAccepted || status == http.StatusOK {
			accepted++
		}
		if i == commands/2 {
			holder.Kill()
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
			_, got := request("GET", path, "")
			if state, _ = got["state"].(string); state == "executed" || state == "failed" || state == "expired" {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		states[state]++
	}
	s := homes.Stats()
	t.Logf("states %v; the hub executed %d, refused %d as late, was sent %d again", states, s.Executed, s.TooLate, s.Repeated)
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
	other.Terminate()
	broker.End(t)
}
