package ingest

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// TestAKeyIsKnownToTheOthers sends requests again to another gateway than the first time, as a balancer does.
func TestAKeyIsKnownToTheOthers(t *testing.T) {
	a, b := pair(t)
	rows := func() int { return len(a.road.events()) + len(b.road.events()) }
	lines := []byte(deviceReading + "\n" + `{"device":"lamp","metric":"power"}` + "\n")
	status, first, _ := a.post("anna", mediaLines, lines, key("one")...)
	if status != 200 {
		t.Fatal(status, first)
	}
	eventually(t, "the other knows the answer", func() bool {
		status, again, header := b.post("anna", mediaLines, lines, key("one")...)
		return status == 200 && again == first && header.Get("Idempotency-Replayed") == "true"
	})
	if n := rows(); n != 1 {
		t.Errorf("%d rows; want 1", n)
	}
	if status, answer, _ := b.post("anna", mediaLines, []byte(deviceReading), key("one")...); status != 422 {
		t.Errorf("another body: %d %s; want 422", status, answer)
	}
	if status, answer, _ := b.post("lamp", mediaLines, []byte(deviceReading), key("one")...); status != 200 {
		t.Errorf("another user: %d %s; want 200", status, answer)
	}
	event := []byte(`[{"specversion":"1.0","id":"7","source":"/cloud","type":"temperature","subject":"lamp","data":{"value":21}},
		{"specversion":"1.0","id":"8","source":"/cloud","type":"temperature","subject":"lamp","data":{"value":22}}]`)
	before := rows()
	if status, answer, _ := a.post("anna", mediaEvents, event); status != 200 {
		t.Fatal(status, answer)
	}
	eventually(t, "the other knows the events", func() bool {
		status, answer, _ := b.post("anna", mediaEvents, event)
		return status == 200 && answer == `{"accepted":2,"refused":0,"repeated":2}`+"\n"
	})
	if n := rows() - before; n != 2 {
		t.Errorf("%d rows of 2 events", n)
	}
}

// TestAKeyAtTwoGatewaysAtOnce: of two that get a request at once one writes it; the other says that it is under way, or what the
// first answered.
func TestAKeyAtTwoGatewaysAtOnce(t *testing.T) {
	a, b := pair(t)
	const tries = 30
	for i := range tries {
		body, k := []byte(deviceReading), key(fmt.Sprint("k", i))
		var both sync.WaitGroup
		var statuses [2]int
		for j, r := range []*rig{a, b} {
			both.Add(1)
			go func() {
				defer both.Done()
				statuses[j], _, _ = r.post("anna", mediaJSON, body, k...)
			}()
		}
		both.Wait()
		for j, s := range statuses {
			if s != 200 && (s != 409 || statuses[1-j] != 200) {
				t.Errorf("try %d: %v", i, statuses)
			}
		}
	}
	if n := len(a.road.events()) + len(b.road.events()); n != tries {
		t.Errorf("%d rows of %d requests, each sent to both", n, tries)
	}
}

// TestAKeyOfAGatewayThatIsGone: as long as the gateway lives that has a request under way, another does not take it; when it is gone,
// another does.
func TestAKeyOfAGatewayThatIsGone(t *testing.T) {
	a, b := pair(t, func(g *Gateway) { g.StoreTimeout = time.Second })
	a.road.failing.Store(true)
	if status, answer, _ := a.post("anna", mediaJSON, []byte(deviceReading), key("slow")...); status != 503 {
		t.Fatal(status, answer)
	}
	if status, answer, header := b.post("anna", mediaJSON, []byte(deviceReading), key("slow")...); status != 409 || header.Get("Retry-After") == "" {
		t.Errorf("%d %s; want 409: it is under way at the other", status, answer)
	}
	a.near.stopWork()
	eventually(t, "b takes it", func() bool {
		status, _, header := b.post("anna", mediaJSON, []byte(deviceReading), key("slow")...)
		return status == 200 && header.Get("Idempotency-Replayed") == ""
	})
	if n := len(b.road.events()); n != 1 {
		t.Errorf("%d rows; want 1", n)
	}
	a.road.failing.Store(false)
}

// TestForgottenKeysAreSwept: what one gateway remembers no longer, all forget.
func TestForgottenKeysAreSwept(t *testing.T) {
	a, b := pair(t, func(g *Gateway) { g.IdempotencyKeysMax = 4 * senderPart })
	for i := range 10 {
		if status, answer, _ := a.post("anna", mediaJSON, []byte(deviceReading), key(fmt.Sprint("k", i))...); status != 200 {
			t.Fatal(status, answer)
		}
	}
	valid := func() (n int) {
		for _, rec := range b.repeats.shared.table.Scan("") {
			if got, ok := decodeAnswer(rec); ok && got.valid(b.Now()) {
				n++
			}
		}
		return n
	}
	eventually(t, "four are left", func() bool { return valid() == 4 })
	shared := b.repeats.shared
	if err := shared.table.SweepOnce(t.Context(), shared.dead); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the others are gone", func() bool { return len(shared.table.Scan("")) == 4 && valid() == 4 })
}
