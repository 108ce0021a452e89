package run

import (
	"math/rand/v2"
	"testing"
	"time"

	"hearthline/flow"
)

func told(producer string, offset int64, k int32, watermark flow.Micros) *flow.Batch {
	return &flow.Batch{
		Lineage: flow.Lineage{
			Source:   flow.Source{Producer: producer, Stream: "in", Partition: 3},
			Position: flow.Position{Offset: offset, K: k},
		},
		Watermark: watermark,
	}
}

// A producer that starts again from an older offset repeats what it has said. Whatever it repeats, from wherever,
// and however often, a reader takes every position once.
func TestMarksTakeEveryPositionOnce(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	dice := rand.New(rand.NewPCG(seed, 0))
	m := newMarks()
	taken := map[flow.Position]int{}
	at := int64(0)
	for range 200 {
		for range dice.IntN(30) {
			for k := range int32(3) {
				if m.take(told("p", at, k, flow.Micros(at))) {
					taken[flow.Position{Offset: at, K: k}]++
				}
				if dice.IntN(50) == 0 {
					break // killed in the middle of a message
				}
			}
			at++
		}
		at = max(0, at-int64(dice.IntN(20))) // back to a checkpoint
		if dice.IntN(4) == 0 {               // the reader, too, is killed, and goes on from its own checkpoint
			m = restoreMarks(m.list(), m.watermark)
		}
	}
	for pos, n := range taken {
		if n != 1 {
			t.Fatalf("seed %d: position %v was taken %d times", seed, pos, n)
		}
	}
}

func TestMarksKeepProducersApart(t *testing.T) {
	m := newMarks()
	if !m.take(told("a", 5, 0, 1)) || !m.take(told("b", 5, 0, 1)) {
		t.Fatal("one producer's mark hides another's batch")
	}
	if m.take(told("a", 5, 0, 1)) || m.take(told("b", 4, 9, 1)) {
		t.Fatal("a batch was taken twice")
	}
}

func TestWatermarkIsTheLowestLivePromise(t *testing.T) {
	minute := flow.Micros(time.Minute / time.Microsecond)
	m := newMarks()
	steps := []struct {
		why  string
		b    *flow.Batch
		want flow.Micros
	}{
		{"one producer alone", told("a", 1, 0, 10*minute), 10 * minute},
		{"a second one, behind: the watermark never falls", told("b", 1, 0, 9*minute+1), 10 * minute},
		{"the first runs ahead: the second holds it", told("a", 2, 0, 10*minute+1), 10 * minute},
		{"the second catches up", told("b", 2, 0, 10*minute+2), 10*minute + 1},
		{"the second falls silent for more than a minute of the first's time", told("a", 3, 0, 12*minute), 12 * minute},
	}
	for _, s := range steps {
		m.take(s.b)
		if m.watermark != s.want {
			t.Errorf("%s: watermark %d, want %d", s.why, m.watermark, s.want)
		}
	}
	end := told("a", 4, 0, 12*minute)
	end.Kind, end.Run = flow.KindEnd, "run-1"
	m.take(end)
	if m.ended("run-1") != 1 || m.ended("run-2") != 0 {
		t.Errorf("ended: %d of run-1, %d of run-2", m.ended("run-1"), m.ended("run-2"))
	}
	m.take(told("a", 5, 0, 12*minute))
	if m.ended("run-1") != 0 {
		t.Error("a producer that speaks again has not ended")
	}
}

// Two starts of a gateway: neither hides the other's rows, wherever their positions begin, and one that was killed
// does not hold the watermark once the next has spoken, unless it turns out to be alive.
func TestStartsOfAGatewayAreProducersOfTheirOwn(t *testing.T) {
	minute := flow.Micros(time.Minute / time.Microsecond)
	m := newMarks()
	one, two := flow.GatewayProducer("a", "1"), flow.GatewayProducer("a", "2")
	take := func(producer string, offset int64, watermark, want flow.Micros) {
		t.Helper()
		if !m.take(told(producer, offset, 0, watermark)) {
			t.Errorf("%s at %d was not taken", producer, offset)
		}
		if m.watermark != want {
			t.Errorf("%s at %d: watermark %d, want %d", producer, offset, m.watermark, want)
		}
		m = restoreMarks(m.list(), m.watermark) // a reader that is killed remembers as much
	}
	take(one, 100, 10*minute, 10*minute)
	take(two, 1, 10*minute+5, 10*minute+5)   // the first is gone
	take(two, 2, 10*minute+9, 10*minute+9)   //
	take(one, 101, 10*minute+7, 10*minute+9) // it is not
	take(two, 3, 10*minute+20, 10*minute+9)  // and is waited for
	take(one, 102, 10*minute+15, 10*minute+15)
	if m.take(told(one, 102, 0, 11*minute)) || m.take(told(two, 3, 0, 11*minute)) {
		t.Error("a batch was taken twice")
	}
	for i := range int64(500) { // a gateway that is started over and over
		m.take(told(flow.GatewayProducer("a", time.Duration(i).String()), 1, 0, (20+flow.Micros(i))*minute))
	}
	if len(m.of) > 70 {
		t.Errorf("%d starts of one gateway are remembered", len(m.of))
	}
}

func TestForgottenProducersCostNoMemory(t *testing.T) {
	m := newMarks()
	day := flow.Micros(24 * time.Hour / time.Microsecond)
	for i := range int64(1000) {
		m.take(told("gateway/"+time.Duration(i).String(), 1, 0, flow.Micros(i)*day))
	}
	if len(m.of) > 3 {
		t.Errorf("%d producers remembered", len(m.of))
	}
}

// A source that lags by days, but sends, is not forgotten: what it repeats counts once.
func TestASourceThatLagsByDaysIsRemembered(t *testing.T) {
	m := newMarks()
	day := flow.Micros(24 * time.Hour / time.Microsecond)
	for i := range int64(5) {
		m.take(told("live", i, 0, 10*day+flow.Micros(i)))
		if !m.take(told("replay", i, 0, flow.Micros(i))) {
			t.Fatalf("batch %d was not taken", i)
		}
		m = restoreMarks(m.list(), m.watermark)
		if m.take(told("replay", i, 0, flow.Micros(i))) {
			t.Fatalf("batch %d was taken twice", i)
		}
	}
	m.take(told("live", 9, 0, 12*day))
	if len(m.of) != 1 {
		t.Errorf("%d sources remembered two days later; want 1", len(m.of))
	}
}
