package cli

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// reports is how long it takes each time from a hub's report at one gateway until the app's live stream at the other shows it,
// kept by the log in between; wishes, from the app's change of what is desired until the hub is sent the delta.
func (g *gateways) reports(t *testing.T, n, holder, other int) (reports, wishes []time.Duration) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+g.http[other]+"/v1/homes/h1/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("app", g.passwords["app"])
	client := &http.Client{Transport: g.client.Transport}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	shows := func(text string) {
		t.Helper()
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "data: ") && strings.Contains(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("the live stream ended without %s: %v", text, lines.Err())
	}
	shows(`"shadows":[`)
	hub := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("ssl://" + g.mqtt[holder]).SetClientID("reporter").SetUsername("hub").SetPassword(g.passwords["hub"]).
		SetTLSConfig(&tls.Config{RootCAs: g.roots, ServerName: "localhost"}))
	done := func(token mqtt.Token) {
		t.Helper()
		if !token.WaitTimeout(20*time.Second) || token.Error() != nil {
			t.Fatal("hub: ", token.Error())
		}
	}
	done(hub.Connect())
	defer hub.Disconnect(100)
	deltas := make(chan time.Time, 1)
	done(hub.Subscribe("homes/h1/devices/+/shadow/delta", 1, func(mqtt.Client, mqtt.Message) { deltas <- time.Now() }))
	for i := range n {
		since := time.Now()
		token := hub.Publish("homes/h1/devices/lamp/shadow/reported", 1, false, fmt.Sprintf(`{"level":%d}`, i))
		shows(fmt.Sprintf(`"reported":{"level":%d}`, i))
		reports = append(reports, time.Since(since))
		done(token)
	}
	for i := range n {
		since := time.Now()
		if status, got := g.request(t, other, "PATCH", "/v1/devices/lamp/shadow", fmt.Sprintf(`{"desired":{"level":%d}}`, n+i)); status != http.StatusOK {
			t.Fatalf("wish %d: %d %v", i, status, got)
		}
		select {
		case at := <-deltas:
			wishes = append(wishes, at.Sub(since))
		case <-time.After(20 * time.Second):
			t.Fatalf("delta %d did not arrive", i)
		}
	}
	return reports, wishes
}
