package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"hearthline/ingest"
	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

// A hub makes its lamp what an app wants, says so, and says by itself what was changed by hand; over connections that are cut
// all the time, in order, and from the outbox of the one before it.
func TestShadow(t *testing.T) {
	logs := map[string]*tabletest.Log{}
	for _, name := range ingest.Tables {
		logs[name] = tabletest.NewLog(2)
	}
	g := newGateway(t, func(g *ingest.Gateway) {
		g.Logs = func(name string) table.Log { return logs[name] }
	})
	app := &http.Client{Transport: &http.Transport{TLSClientConfig: g.tls}, Timeout: 10 * time.Second}
	defer app.CloseIdleConnections()
	shadow := func(method, body string) (desired, reported map[string]any) {
		t.Helper()
		req, err := http.NewRequest(method, "https://"+g.at.HTTP.String()+"/v1/devices/lamp/shadow", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("app", g.passwords["app"])
		res, err := app.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		raw, err := io.ReadAll(res.Body)
		var d struct{ Desired, Reported map[string]any }
		if err != nil || json.Unmarshal(raw, &d) != nil || res.StatusCode != 200 && method == "PATCH" {
			t.Fatal(res.Status, string(raw), err)
		}
		return d.Desired, d.Reported
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it never came true: ", what)
			}
		}
	}
	at := cutter(t, g.at.MQTT.String(), func() time.Duration { return 150 * time.Millisecond })
	c := g.client("mqtts://" + at)
	c.Dir = t.TempDir()
	var mu sync.Mutex
	atWork, most := 0, 0
	c.Delta = func(ctx context.Context, d Delta) {
		mu.Lock()
		atWork++
		most = max(most, atWork)
		mu.Unlock()
		time.Sleep(time.Millisecond)
		if d.Device != "lamp" || d.Version < 1 {
			t.Errorf("%+v", d)
		}
		if err := c.Report(ctx, d.Device, d.State); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		mu.Lock()
		atWork--
		mu.Unlock()
		if d.Version%7 == 0 {
			panic("a bug")
		}
	}
	ctx := context.Background()
	if err := c.Report(ctx, "lamp", map[string]any{"power": "off", "firmware": "1"}); err != nil {
		t.Fatal(err)
	}
	stop := run(t, c)
	for i := range 30 {
		shadow("PATCH", fmt.Sprintf(`{"desired":{"level":%d}}`, i))
		time.Sleep(5 * time.Millisecond)
	}
	until("the lamp is what was wanted last", func() bool {
		_, reported := shadow("GET", "")
		return reported["level"] == 29.0 && reported["power"] == "off"
	})
	// By hand, many times: what is said last stands.
	for i := range 50 {
		if err := errors.Join(c.Desire(ctx, "lamp", map[string]any{"level": nil}), c.Report(ctx, "lamp", map[string]any{"level": 1000 + i, "firmware": nil})); err != nil {
			t.Fatal(err)
		}
	}
	until("half of it has been said", func() bool {
		_, reported := shadow("GET", "")
		level, _ := reported["level"].(float64)
		return level >= 1010
	})
	stop()
	again := g.client("mqtts://" + g.at.MQTT.String())
	again.Dir = c.Dir
	run(t, again)
	flush(t, again)
	if desired, reported := shadow("GET", ""); reported["level"] != 1049.0 || len(desired) != 0 || reported["firmware"] != nil {
		t.Errorf("it ends as %v, desired %v", reported, desired)
	}
	mu.Lock()
	defer mu.Unlock()
	if most != 1 {
		t.Errorf("%d handlers were at work on one device at once", most)
	}
}

func TestWhatIsNoState(t *testing.T) {
	c := New("mqtts://localhost")
	c.Home = "h1"
	for device, state := range map[string]any{"a": 1, "b": nil, "c": []int{1}, "d": make(chan int), "e/f": map[string]any{}, "": map[string]any{}} {
		if err := c.Report(t.Context(), device, state); err == nil {
			t.Errorf("device %q is reported as %v", device, state)
		}
	}
	c = New("https://localhost")
	c.Home = "h1"
	if err := c.Report(t.Context(), "lamp", map[string]any{"a": 1}); !errors.Is(err, ErrState) {
		t.Errorf("over HTTP: %v", err)
	}
}
