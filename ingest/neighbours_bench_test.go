package ingest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// BenchmarkTapToDevice is the time from an app's request at one gateway until a hub on the other has the command: HTTP over
// TLS, mutual TLS between the gateways, MQTT over TLS, on loopback, while 10,000 readings a second come in by the
// hub's gateway. Both gateways are in this process, and so are the clients.
func BenchmarkTapToDevice(b *testing.B) {
	one, two := pair(b)
	hub := one.hub("anna", "hub")
	eventually(b, "the other knows where the hub is", func() bool { return two.near.mesh.Heard("h1", "homes/h1/devices/lamp/commands") })
	ctx, cancel := context.WithCancel(b.Context())
	var load sync.WaitGroup
	sent := 0
	load.Add(1)
	go func() {
		defer load.Done()
		p := one.connect(5, "lamp", "load")
		batch := bytes.Repeat(encode(b, 5, publishOf(lampTopic, reading, 0, 0)), 100)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.write(batch...)
				sent += 100
			case <-ctx.Done():
				return
			}
		}
	}()
	client := two.client()
	defer client.CloseIdleConnections()
	var took []time.Duration
	begun := time.Now()
	for i := range b.N {
		req, err := http.NewRequest("POST", "https://"+two.at.HTTP.String()+"/v1/devices/lamp/commands", bytes.NewReader(fmt.Appendf(nil, `{"id":"c%d","name":"on"}`, i)))
		if err != nil {
			b.Fatal(err)
		}
		req.SetBasicAuth("app", two.passwords["app"])
		since := time.Now()
		done := make(chan error, 1)
		go func() {
			res, err := client.Do(req)
			if err == nil {
				res.Body.Close()
			}
			done <- err
		}()
		pk := hub.want(packets.Publish)
		took = append(took, time.Since(since))
		hub.send(puback(pk.PacketID))
		hub.send(publishOf(fmt.Sprintf("homes/h1/devices/lamp/commands/c%d/status", i), `{"state":"executed"}`, 1, uint16(i%60000+1)))
		hub.want(packets.Puback)
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	elapsed := time.Since(begun)
	cancel()
	load.Wait()
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(float64(sent)/elapsed.Seconds(), "readings/s")
}
