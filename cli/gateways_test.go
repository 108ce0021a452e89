package cli

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
)

// gateways are two gateways of one installation, processes of their own, that know one another.
type gateways struct {
	*clitest.Cluster
	procs     [2]*clitest.Running
	mqtt      [2]string // host:port
	http      [2]string
	users     []identity.DevUser
	passwords map[string]string
	certs     identity.Certificates
	roots     *x509.CertPool
	client    *http.Client // of the app
	env       [2][]string
}

// startGateways runs them on the cluster's broker. settings are lines of the plan's gateway, indented by four; the app is the user "app".
func startGateways(t *testing.T, c *clitest.Cluster, settings string, users ...identity.DevUser) *gateways {
	t.Helper()
	g := &gateways{Cluster: c, users: users, roots: x509.NewCertPool()}
	dir := filepath.Join(c.Data, "gateway")
	file, passwords, err := identity.DevCredentials(dir, users...)
	if err != nil {
		t.Fatal(err)
	}
	g.passwords = passwords
	if g.certs, err = identity.DevCertificates(dir); err != nil {
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
	c.Write(strings.Replace(string(plan), "    linger: ", settings+"    linger: ", 1))
	for i, name := range []string{"holder", "other"} {
		g.mqtt[i], g.http[i] = clitest.FreeAddr(t), clitest.FreeAddr(t)
		g.env[i] = []string{"HEARTHLINE_KAFKA=" + c.Broker, "HEARTHLINE_MQTT=" + g.mqtt[i], "HEARTHLINE_HTTP=" + g.http[i],
			"HEARTHLINE_PEERS=" + clitest.FreeAddr(t), "HEARTHLINE_PEERS_CERTIFICATE=" + mesh.Certificate, "HEARTHLINE_PEERS_KEY=" + mesh.Key, "HEARTHLINE_PEERS_CA=" + mesh.CA,
			"HEARTHLINE_CERTIFICATE=" + g.certs.Certificate, "HEARTHLINE_KEY=" + g.certs.Key, "HEARTHLINE_CREDENTIALS=" + file}
		c.Env = g.env[i]
		g.procs[i] = c.Role("gateway", "--instance", name)
	}
	pem, err := os.ReadFile(g.certs.CA)
	if err != nil || !g.roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA", err)
	}
	g.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: g.roots, ServerName: "localhost"}}}
	c.Eventually("both gateways answer", "200 200", func() string {
		one, _ := g.request(t, 0, "GET", "/v1/devices/lamp/commands", "")
		two, _ := g.request(t, 1, "GET", "/v1/devices/lamp/commands", "")
		return fmt.Sprint(one, " ", two)
	})
	return g
}

// again starts one that has ended.
func (g *gateways) again(t *testing.T, at int) {
	t.Helper()
	g.Env = g.env[at]
	g.procs[at] = g.Role("gateway", "--instance", [2]string{"holder", "other"}[at])
	g.Eventually("it answers", "200", func() string {
		status, _ := g.request(t, at, "GET", "/v1/devices/lamp/commands", "")
		return fmt.Sprint(status)
	})
}

// request is the app's, at one of the two; a status of 0 is no answer.
func (g *gateways) request(t *testing.T, at int, method, path, body string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequest(method, "https://"+g.http[at]+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("app", g.passwords["app"])
	res, err := g.client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer res.Body.Close()
	var got map[string]any
	_ = json.NewDecoder(res.Body).Decode(&got)
	return res.StatusCode, got
}
