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
