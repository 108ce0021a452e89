package ingest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/flow"
)

func TestDrainLosesNothingAcknowledged(t *testing.T) {
	r := newRig(t, nil)
	r.road.delay.Store(int64(100 * time.Millisecond))
	p := r.connect(5, "anna", "a")
	const n = 100
	for id := range uint16(n) {
		p.send(publishOf(lampTopic, fmt.Sprintf(`{"metric":"power","value":%d,"seq":%d}`, id, id), 1, id+1))
	}
	eventually(t, "all are taken", func() bool { return r.Stats().RowsAccepted == n })
	done := make(chan error, 1)
	go func() { done <- r.stop() }()
	acked := 0
	for {
		pk, err := p.read()
		if err != nil {
			break
		}
		if pk.FixedHeader.Type == packets.Puback {
			acked++
		} else if pk.ReasonCode != 0x8b {
			t.Errorf("DISCONNECT %#x; want 0x8b", pk.ReasonCode)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if acked != n || len(r.road.events()) != n {
		t.Errorf("%d acknowledged, %d in the log; want %d", acked, len(r.road.events()), n)
	}
	if got := r.road.kinds(flow.KindEnd); got != 4 {
		t.Errorf("%d ends; want one for each of 4 partitions", got)
	}
	for p, all := range r.road.batches {
		if last := all[len(all)-1]; last.Kind != flow.KindEnd || last.Run != "run-1" {
			t.Errorf("partition %d ends with %s of run %q", p, last.Kind, last.Run)
		}
	}
	if err := r.Health(); err == nil {
		t.Error("a gateway that has ended says it lives")
	}
}

func TestDrainIsBounded(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.DrainTimeout = 500 * time.Millisecond })
	r.road.failing.Store(true)
	p := r.connect(5, "anna", "a")
	p.send(publishOf(lampTopic, reading, 1, 1))
	eventually(t, "it is taken", func() bool { return r.Stats().RowsAccepted == 1 })
	start := time.Now()
	err := r.stop()
	if err == nil || !strings.Contains(err.Error(), "drain took longer") {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("it took %s", took)
	}
	for {
		pk, err := p.read()
		if err != nil {
			break
		}
		if pk.FixedHeader.Type == packets.Puback {
			t.Error("a row that the log does not have was acknowledged")
		}
	}
	*r = rig{Gateway: r.Gateway, t: r.t, road: r.road, stop: func() error { return nil }}
}

// Clients are sent away at a pace, each told where to go, and go on until it is their turn; what waits in front of the gateways has time to see it.
func TestDrainIsPaced(t *testing.T) {
	r := newRig(t, func(g *Gateway) {
		g.DrainWait, g.EvictPerSecond, g.ServerReference = 500*time.Millisecond, 20, "other.example:8883"
	})
	const n = 20
	var all []*peer
	for i := range n {
		all = append(all, r.connect(byte(4+i%2), "anna", fmt.Sprint("hub", i), func(p *packets.Packet) {
			p.Connect.WillFlag, p.Connect.WillTopic, p.Connect.WillPayload = true, "homes/h1/gone", []byte("x")
		}))
	}
	if r.Readiness() != nil {
		t.Fatal(r.Readiness())
	}
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- r.stop() }()
	eventually(t, "it is not ready any more", func() bool { return r.Readiness() != nil })
	r.connect(5, "anna", "late").conn.Close() // load balancers have not looked yet
	var first, last time.Time
	for i, p := range all {
		p.send(publishOf(lampTopic, reading, 1, 1)) // some are still served, some are gone
		for {
			pk, err := p.read()
			if err != nil {
				break
			}
			if pk.FixedHeader.Type == packets.Disconnect && (pk.ReasonCode != 0x9c || pk.Properties.ServerReference != "other.example:8883") {
				t.Errorf("client %d: DISCONNECT %#x to %q", i, pk.ReasonCode, pk.Properties.ServerReference)
			}
		}
		if last = time.Now(); i == 0 {
			first = last
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := last.Sub(start); first.Sub(start) < 500*time.Millisecond || took < 1300*time.Millisecond || took > r.DrainMax() {
		t.Errorf("the first went after %s, the last after %s", first.Sub(start), took)
	}
	if wills := r.Stats().Wills; wills != 0 {
		t.Errorf("%d wills of clients that were sent away", wills)
	}
	g := New()
	g.DrainWait, g.DrainTimeout, g.ConnectionsMax, g.EvictPerSecond = time.Second, 20*time.Second, 1000, 100
	if got := g.DrainMax(); got != 31*time.Second {
		t.Error(got)
	}
}
