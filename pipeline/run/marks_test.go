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
