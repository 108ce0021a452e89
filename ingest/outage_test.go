package ingest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/mochi-mqtt/server/v2/packets"

	"hearthline/flow"
)

// paho connects a client of the Eclipse project, version 3.1.1.
func (r *rig) paho(user, client string) mqtt.Client {
	r.t.Helper()
	o := mqtt.NewClientOptions().AddBroker("ssl://" + r.at.MQTT.String()).SetTLSConfig(r.tls()).SetClientID(client).
		SetUsername(user).SetPassword(r.passwords[user]).SetProtocolVersion(4).SetOrderMatters(true)
	c := mqtt.NewClient(o)
	if tok := c.Connect(); !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
		r.t.Fatal(tok.Error())
	}
	r.t.Cleanup(func() { c.Disconnect(0) })
	return c
}

func TestPaho(t *testing.T) {
	r := newRig(t, nil)
	var mu sync.Mutex
	var heard []string
	app := r.paho("app", "phone")
	if tok := app.Subscribe("homes/h1/devices/+/telemetry", 1, func(_ mqtt.Client, m mqtt.Message) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, string(m.Payload()))
	}); !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	hub := r.paho("anna", "hub")
	const n = 300
	var toks []mqtt.Token
	for i := range n {
		toks = append(toks, hub.Publish(lampTopic, byte(i%2), false, fmt.Sprintf(`{"metric":"power","value":%d,"seq":%d}`, i, i)))
	}
	for _, tok := range toks {
		if !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
			t.Fatal(tok.Error())
		}
	}
	eventually(t, "every row is in the log, in order", func() bool { return len(r.road.events()) == n })
	for i, e := range r.road.events() {
		if e.Seq != int64(i) {
			t.Fatalf("row %d has sequence %d", i, e.Seq)
		}
	}
	eventually(t, "the app has heard all", func() bool { mu.Lock(); defer mu.Unlock(); return len(heard) == n })
}

// TestOutage lets the log fail while many publish: what was acknowledged must be in the log in the end, memory must stay
// within the limits, and everybody must get through once it is back.
func TestOutage(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.RowsMax, g.QueueMax, g.ReceiveMaximum = 50, 2, 32 })
	const clients, each = 20, 200
	// Each of 4 partitions: being published 2+1, queued 2, gathered 1 batch of 50 and a message.
	bound := int64(4 * (3 + 2 + 1) * (50 + 1))
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked := map[string]int{}
	r.road.failing.Store(true)
	for i := range clients {
		wg.Add(1)
		user := []string{"anna", "bert"}[i%2]
		c := r.paho(user, fmt.Sprint("c", i))
		go func() {
			defer wg.Done()
			var toks []mqtt.Token
			for k := range each {
				toks = append(toks, c.Publish(fmt.Sprintf("homes/h%d/devices/c%d/telemetry", i%2+1, i), 1, false, fmt.Sprintf(`{"metric":"m","value":1,"seq":%d}`, k)))
			}
			for _, tok := range toks {
				if tok.WaitTimeout(30*time.Second) && tok.Error() == nil {
					mu.Lock()
					acked[fmt.Sprint("c", i)]++
					mu.Unlock()
				}
			}
		}()
	}
	eventually(t, "publishers are held", func() bool { return r.Stats().Held > 10 })
	until := time.Now().Add(500 * time.Millisecond)
	var most int64
	for time.Now().Before(until) {
		most = max(most, r.Stats().Waiting)
		runtime.Gosched()
	}
	if most > bound {
		t.Errorf("%d rows waiting; at most %d", most, bound)
	}
	if n := len(r.road.events()); n != 0 {
		t.Fatal("the log was away, and has rows", n)
	}
	mu.Lock()
	if len(acked) != 0 {
		t.Error("acknowledged what is not durable: ", acked)
	}
	mu.Unlock()
	r.road.failing.Store(false)
	wg.Wait()
	rows := map[string]int64{}
	for _, e := range r.road.events() {
		if e.Seq != rows[e.Device] {
			t.Fatalf("%s: sequence %d after %d", e.Device, e.Seq, rows[e.Device]-1)
		}
		rows[e.Device]++
	}
	for i := range clients {
		c := fmt.Sprint("c", i)
		if acked[c] != each || rows[c] != each {
			t.Errorf("%s: %d acknowledged, %d in the log; want %d", c, acked[c], rows[c], each)
		}
	}
	if n := r.Stats().Waiting; n != 0 {
		t.Errorf("%d rows still waiting", n)
	}
}

func TestHeartbeats(t *testing.T) {
	r := newRig(t, func(g *Gateway) { g.Heartbeat = 20 * time.Millisecond })
	eventually(t, "every partition has beaten", func() bool {
		r.road.mu.Lock()
		defer r.road.mu.Unlock()
		for p := range int32(4) {
			if len(r.road.batches[p]) < 3 {
				return false
			}
		}
		return true
	})
}

// TestClockNeverGoesBack sets the system clock back by an hour under a running gateway. The rig checks watermarks.
func TestClockNeverGoesBack(t *testing.T) {
	var mu sync.Mutex
	shift := time.Duration(0)
	r := newRig(t, func(g *Gateway) {
		g.Heartbeat = 10 * time.Millisecond
		g.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(shift) }
	})
	p := r.connect(5, "anna", "a")
	for id, s := range []time.Duration{0, -time.Hour, time.Minute, -time.Minute} {
		mu.Lock()
		shift = s
		mu.Unlock()
		p.send(publishOf(lampTopic, reading, 1, uint16(id+1)))
		p.want(packets.Puback)
	}
	var last flow.Micros
	for _, e := range r.road.events() {
		if e.Received < last {
			t.Errorf("received %d after %d", e.Received, last)
		}
		last = e.Received
	}
}

// TestClockIsKeptOverRestarts starts a second gateway of the same name with the system clock an hour back.
func TestClockIsKeptOverRestarts(t *testing.T) {
	log := newRoad()
	file := t.TempDir() + "/clock"
	for i, shift := range []time.Duration{0, -time.Hour} {
		r := newRig(t, func(g *Gateway) {
			g.Clock, g.Publisher = file, log
			g.Now = func() time.Time { return time.Now().Add(shift) }
		})
		p := r.connect(5, "anna", "a")
		p.send(publishOf(lampTopic, reading, 1, 1))
		p.want(packets.Puback)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if n := len(log.events()); n != i+1 {
			t.Errorf("%d rows after run %d", n, i)
		}
	}
	for _, f := range log.faults {
		t.Error("a promise is broken: ", f)
	}
}

// TestEveryStartIsAProducerOfItsOwn starts a gateway again with the system clock an hour back and nothing that remembers
// it, and beside it another of the same name: none of their batches may look like one that has been taken.
func TestEveryStartIsAProducerOfItsOwn(t *testing.T) {
	log := newRoad()
	start := func(shift time.Duration) *rig {
		return newRig(t, func(g *Gateway) {
			g.Publisher, g.Instance = log, "one"
			g.Now = func() time.Time { return time.Now().Add(shift) }
		})
	}
	first, second := start(0), start(0)
	for _, r := range []*rig{first, second} {
		p := r.connect(5, "anna", "a")
		p.send(publishOf(lampTopic, reading, 1, 1))
		p.want(packets.Puback)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
	third := start(-time.Hour)
	p := third.connect(5, "anna", "a")
	p.send(publishOf(lampTopic, reading, 1, 1))
	p.want(packets.Puback)
	if err := third.stop(); err != nil {
		t.Fatal(err)
	}
	sources, instances := map[flow.Source]bool{}, map[string]bool{}
	for _, batches := range log.batches {
		for _, b := range batches {
			if b.Record != nil {
				sources[b.Lineage.Source], instances[b.Lineage.Instance()] = true, true
			}
		}
	}
	if len(sources) != 3 || len(instances) != 1 || !instances["gateway/one"] {
		t.Errorf("three starts of a gateway speak as %v, of %v", sources, instances)
	}
}

var errTooLarge = errors.New("too large")

// TestBatchesThatTheLogFindsTooLarge are cut until they pass, and acknowledged once.
func TestBatchesThatTheLogFindsTooLarge(t *testing.T) {
	small := &smallRoad{road: newRoad(), rowsMax: 7}
	r := newRig(t, func(g *Gateway) {
		g.Publisher = small
		g.TooLarge = func(err error) bool { return errors.Is(err, errTooLarge) }
	})
	body := ""
	for i := range 100 {
		body += fmt.Sprintf(`{"device":"lamp","metric":"m","value":1,"seq":%d}`+"\n", i)
	}
	if status, answer, _ := r.post("anna", mediaLines, []byte(body)); status != 200 {
		t.Fatal(status, answer)
	}
	got := small.events()
	for i, e := range got {
		if e.Seq != int64(i) {
			t.Fatalf("row %d has sequence %d", i, e.Seq)
		}
	}
	if len(got) != 100 || len(small.faults) > 0 {
		t.Errorf("%d rows; %v", len(got), small.faults)
	}
}

// smallRoad refuses batches of more than rowsMax rows.
type smallRoad struct {
	*road
	rowsMax int64
}

func (s *smallRoad) Publish(ctx context.Context, stream string, partition int32, batches ...flow.Batch) (int64, error) {
	for i := range batches {
		if batches[i].Rows() > s.rowsMax {
			return 0, fmt.Errorf("message: %w", errTooLarge)
		}
	}
	return s.road.Publish(ctx, stream, partition, batches...)
}
