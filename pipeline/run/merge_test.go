package run

import (
	"bytes"
	"cmp"
	"context"
	"encoding/gob"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	gocmp "github.com/google/go-cmp/cmp"

	"hearthline/flow"
	"hearthline/pipeline"
)

// multiples passes the rows that a number divides, with the time they were received.
type multiples int64

func (m multiples) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	received := in.Column(1).(*array.Timestamp).TimestampValues()
	var rows []pending
	for i, v := range valuesOf(in) {
		if v%int64(m) == 0 {
			rows = append(rows, pending{int64(received[i]), v})
		}
	}
	return []flow.Output{{To: "out", Record: recordOf(rows)}}, nil
}

type pending struct{ Received, N int64 }

func recordOf(rows []pending) arrow.Record {
	b := array.NewRecordBuilder(memory.DefaultAllocator, numbers)
	defer b.Release()
	for _, r := range rows {
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(r.Received))
		b.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(r.Received))
		b.Field(2).(*array.Int64Builder).Append(r.N)
	}
	return b.NewRecord()
}

// weave tells, by a hash, the order in which all rows came, and gives every row again once its time has passed. The
// second depends on the watermark: one that is too high gives rows too early, and so in another order.
type weave struct {
	Hash    int64
	Pending []pending
}

func (w *weave) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	received := in.Column(1).(*array.Timestamp).TimestampValues()
	var order []pending
	for i, v := range valuesOf(in) {
		w.Hash = w.Hash*31 + v
		order = append(order, pending{int64(received[i]), w.Hash})
		w.Pending = append(w.Pending, pending{int64(received[i]), v})
	}
	return []flow.Output{{To: "order", Record: recordOf(order)}, {To: "due", Record: recordOf(nil)}}, nil
}

func (w *weave) Advance(_ context.Context, watermark flow.Micros) ([]flow.Output, error) {
	slices.SortFunc(w.Pending, func(a, b pending) int { return cmp.Or(cmp.Compare(a.Received, b.Received), cmp.Compare(a.N, b.N)) })
	n, _ := slices.BinarySearchFunc(w.Pending, int64(watermark), func(p pending, at int64) int { return cmp.Compare(p.Received, at) })
	due := w.Pending[:n]
	w.Pending = slices.Clone(w.Pending[n:])
	return []flow.Output{{To: "due", Record: recordOf(due)}}, nil
}

func (w *weave) Snapshot(to io.Writer) error  { return gob.NewEncoder(to).Encode(*w) }
func (w *weave) Restore(from io.Reader) error { return gob.NewDecoder(from).Decode(w) }

// mergePlan: raw → twos, raw → thirds and raw → rare; all three → weave. One of them seldom has rows.
func mergePlan() *pipeline.Plan {
	weaver := stage("weave", "rare", func() flow.Stage { return &weave{} }, map[string]string{"order": "order", "due": "due"})
	weaver.From = []string{"rare", "thirds", "twos"}
	p := &pipeline.Plan{
		Spec:    &pipeline.Spec{Name: "test", Partitions: 1, Gateway: pipeline.Gateway{To: "raw"}, Checkpoint: time.Microsecond},
		Streams: map[string]*pipeline.Stream{},
		Units:   []*pipeline.Unit{{Name: "weave", Inputs: weaver.From, Stages: []*pipeline.StageNode{weaver}}},
		Sinks: []*pipeline.SinkNode{{Sink: pipeline.Sink{Name: "keep", FlushRows: 40, FlushWait: time.Millisecond},
			Streams: []string{"order", "due", "twos.dead"}, Dead: "keep.dead"}},
	}
	for name, n := range map[string]int64{"twos": 2, "thirds": 3, "rare": 97} {
		node := stage(name, "raw", func() flow.Stage { return multiples(n) }, map[string]string{"out": name})
		p.Units = append(p.Units, &pipeline.Unit{Name: name, Inputs: []string{"raw"}, Stages: []*pipeline.StageNode{node}})
	}
	for _, s := range []string{"raw", "twos", "thirds", "rare", "order", "due", "weave.dead", "twos.dead", "thirds.dead", "rare.dead", "keep.dead"} {
		p.Streams[s] = &pipeline.Stream{Name: s}
	}
	return p
}

// feedMerge writes the gateway's stream: rows, heartbeats, batches sent twice, messages that nobody can read, the end.
// The time it tells passes fast enough that stages have to send heartbeats on.
func feedMerge(w *world, seed uint64) {
	dice := rand.New(rand.NewPCG(seed, 1))
	l := &life{world: w, uses: -1}
	const step = 700_000
	n := int64(0)
	for i := range int64(120) {
		b := flow.Batch{Watermark: flow.Micros(i * step)}
		b.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: i}}
		switch dice.IntN(6) {
		case 0, 1:
			b.Kind = flow.KindHeartbeat
		case 2:
			b.Kind = unreadable
		default:
			var rows []pending
			for range 1 + dice.IntN(8) {
				n++
				rows = append(rows, pending{i * step, n})
			}
			b.Record = recordOf(rows)
		}
		_, _ = l.Publish(context.Background(), "raw", 0, b)
		if dice.IntN(6) == 0 && b.Kind != unreadable {
			_, _ = l.Publish(context.Background(), "raw", 0, b)
		}
	}
	end := flow.Batch{Kind: flow.KindEnd, Run: "r", Watermark: 200 * step}
	end.Lineage = flow.Lineage{Source: flow.Source{Producer: "gateway/0"}, Position: flow.Position{Offset: 1000}}
	_, _ = l.Publish(context.Background(), "raw", 0, end)
}

// A task that reads several streams takes them in the same order whenever it is killed, and knows what time it is.
func TestMergeIsTheSameHoweverOftenItIsKilled(t *testing.T) {
	runs := 40
	if testing.Short() {
		runs = 4
	}
	first := uint64(time.Now().UnixNano())
	for i := range runs {
		seed := first + uint64(i)
		want, _ := runWorld(t, mergePlan(), feedMerge, seed, false)
		if len(want["order"]) < 100 || len(want["order"]) != len(want["due"]) || len(want["twos.dead"]) < 5 {
			t.Fatalf("seed %d: the undisturbed run kept %d rows, %d of them when due, and %d dead letters",
				seed, len(want["order"]), len(want["due"]), len(want["twos.dead"]))
		}
		got, lives := runWorld(t, mergePlan(), feedMerge, seed, true)
		if d := gocmp.Diff(want, got); d != "" {
			t.Fatalf("seed %d, %d lives: what the sinks hold differs from an undisturbed run (-want +got):\n%s", seed, lives, d)
		}
	}
}

// A checkpoint holds the task's own watermark: what one input has told by then may be more than the task may know.
func TestWatermarkAfterARestartIsTheOneBefore(t *testing.T) {
	r := &Runner{Meter: NewMeter(), road: &life{world: newWorld(), uses: -1}, Plan: mergePlan()}
	r.once.Do(func() {})
	unit := r.Plan.Node("weave")
	saved := &checkpoint{Watermark: 7, state: map[string][]byte{"weave": encodeWeave(t)}}
	for i, stream := range unit.Inputs {
		saved.Inputs = append(saved.Inputs, inputMark{Stream: stream, Watermark: flow.Micros(20 - 6*i)}) // 20, 14, 8
	}
	restarted := func() flow.Micros {
		task := &task{r: r, unit: unit, told: map[string]flow.Micros{}}
		defer task.close()
		if err := r.prepare(t.Context(), task, &generation{ids: map[string]string{}}, saved); err != nil {
			t.Fatal(err)
		}
		return task.watermark
	}
	if w := restarted(); w != 8 {
		t.Errorf("watermark %d; want 8, the lowest of the inputs'", w)
	}
	saved.Watermark = 30 // an input that has ended since did not hold it
	if w := restarted(); w != 30 {
		t.Errorf("watermark %d; want 30, which the task has told", w)
	}
}

func encodeWeave(t *testing.T) []byte {
	var b bytes.Buffer
	if err := (&weave{}).Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
