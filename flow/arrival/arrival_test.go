package arrival_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/arrival"
	"hearthline/flow/window"
)

// telling writes down what it is given, in order. It sets rows of the device "bad" aside, and the world fails it now and then.
type telling struct {
	told  *[]string
	fails func() bool
}

var errWorld = errors.New("the world failed")

func (s telling) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	if in.NumRows() == 0 {
		return []flow.Output{{To: "told", Record: in.NewSlice(0, 0)}}, nil
	}
	if s.fails() {
		return nil, errWorld
	}
	events, err := flow.EventsOf(in)
	if err != nil {
		return nil, err
	}
	starts := make([]arrow.Timestamp, in.NumRows())
	if in.Schema().HasField(window.ColStart) {
		if starts, err = flow.Instants(in, window.ColStart); err != nil {
			return nil, err
		}
	}
	var bad flow.BadRows
	for i := range int(in.NumRows()) {
		*s.told = append(*s.told, fmt.Sprintln(starts[i], events.Time[i], events.Home.Value(i), events.Value.Value(i)))
		if events.Device.Value(i) == "bad" {
			bad.Add(i, "bad device")
		}
	}
	return nil, bad.Err()
}

// batch is what a task publishes: rows, and the time from which on no row of its comes.
type batch struct {
	rows []flow.Event
	time flow.Micros
}

// tasks makes what some tasks publish, each in its own order.
func tasks(dice *rand.Rand, n, batches int) [][]batch {
	all := make([][]batch, n)
	for task := range all {
		received := flow.Micros(1_700_000_000_000_000)
		for range batches {
			var b batch
			b.time = received
			for range dice.IntN(4) {
				e := flow.Event{Time: received - flow.Micros(dice.IntN(3)*9_000_000), Received: received + flow.Micros(dice.IntN(2)*500_000),
					Home: fmt.Sprintf("h%d", task), Device: "d", Metric: "m", Value: float64(dice.IntN(3)), HasValue: true}
				if dice.IntN(20) == 0 {
					e.Device = "bad"
				}
				b.rows = append(b.rows, e)
			}
			all[task] = append(all[task], b)
			received += flow.Micros(dice.IntN(2_000_000))
		}
	}
	return all
}

// run gives the stage the tasks' batches, coming together by chance, and gives what it was told, and how many rows were refused and late.
func run(t *testing.T, dice *rand.Rand, all [][]batch, windows bool) (told []string, refused, late int) {
	t.Helper()
	fails := func() bool { return dice.IntN(5) == 0 }
	fresh := func() *arrival.Stage {
		var inner flow.Stage = telling{&told, fails}
		if windows {
			none := time.Second
			inner = window.New(&window.Config{Size: 5 * time.Second, By: []string{"metric"}, Lateness: &none}, true, inner)
		}
		return arrival.New(inner)
	}
	s := fresh()
	take := func(made []flow.Output) {
		for _, o := range made {
			if o.Refused != nil {
				refused += len(o.Refused)
			} else if o.To == window.OutputLate {
				late += int(o.Record.NumRows())
			}
		}
		flow.ReleaseOutputs(made)
	}
	advance := func(to flow.Micros) {
		for {
			made, err := s.Advance(t.Context(), to)
			if err == nil {
				take(made)
				return
			}
			if !errors.Is(err, errWorld) {
				t.Fatal(err)
			}
		}
	}
	at, heard := make([]int, len(all)), make([]flow.Micros, len(all))
	for left := len(all) * len(all[0]); left > 0; {
		task := dice.IntN(len(all))
		if at[task] == len(all[task]) {
			continue
		}
		b := all[task][at[task]]
		at[task]++
		left--
		if len(b.rows) > 0 {
			e := flow.NewEventBuilder()
			for i := range b.rows {
				e.Append(&b.rows[i])
			}
			rec, _ := e.Record()
			made, err := s.Process(t.Context(), rec)
			if err != nil {
				t.Fatal(err)
			}
			take(made)
			rec.Release()
		}
		heard[task] = b.time
		if low := slices.Min(heard); low > 0 {
			advance(low)
		}
		if dice.IntN(10) == 0 { // it is killed, and goes on from a snapshot
			var state bytes.Buffer
			if err := s.Snapshot(&state); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = fresh()
			if err := s.Restore(&state); err != nil {
				t.Fatal(err)
			}
		}
	}
	advance(flow.EndOfTime)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return told, refused, late
}

// However the batches of several tasks come together, wherever the stage is killed and the world fails it, it is given the same rows
// in the same order.
func TestRowsComeInTheOrderOfTheirArrival(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	dice := rand.New(rand.NewPCG(seed, 1))
	all := tasks(dice, 3, 60)
	sum := 0
	for _, of := range all {
		for _, b := range of {
			sum += len(b.rows)
		}
	}
	first, refused, _ := run(t, dice, all, false)
	if len(first) != sum || refused == 0 || refused > sum/5 {
		t.Fatalf("seed %d: %d rows of %d, %d refused", seed, len(first), sum, refused)
	}
	for range 8 {
		again, n, _ := run(t, dice, all, false)
		if !slices.Equal(first, again) || n != refused {
			t.Fatalf("seed %d: other rows, or in another order; %d refused, then %d", seed, refused, n)
		}
	}
}

// So the windows of several tasks' rows hold the same, and the same rows are late.
func TestWindowsOverSeveralTasks(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	dice := rand.New(rand.NewPCG(seed, 2))
	all := tasks(dice, 4, 80)
	first, refused, late := run(t, dice, all, true)
	if len(first) == 0 || late == 0 {
		t.Fatalf("seed %d: %d rows in windows, %d late: nothing is shown", seed, len(first), late)
	}
	for range 8 {
		if again, n, l := run(t, dice, all, true); !slices.Equal(sorted(first), sorted(again)) || n != refused || l != late {
			t.Fatalf("seed %d: other windows: %d rows, then %d; late %d, then %d", seed, len(first), len(again), late, l)
		}
	}
}

// sorted is what was told; windows of which several close together come in one call or in several.
func sorted(told []string) []string {
	return slices.SortedFunc(slices.Values(told), cmp.Compare[string])
}

// The state of a stage whose rows were not yet put in order is its own; that of another stage is refused.
func TestOlderState(t *testing.T) {
	none := time.Second
	var told []string
	windows := func() flow.Stage {
		return window.New(&window.Config{Size: 5 * time.Second, By: []string{"metric"}, Lateness: &none}, true, telling{&told, func() bool { return false }})
	}
	old := windows()
	e := flow.NewEventBuilder()
	e.Append(&flow.Event{Time: 1, Received: 1, Home: "h", Device: "d", Metric: "m", Value: 7, HasValue: true})
	rec, _ := e.Record()
	defer rec.Release()
	if _, err := old.Process(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	var state bytes.Buffer
	if err := old.(flow.Stateful).Snapshot(&state); err != nil {
		t.Fatal(err)
	}
	s := arrival.New(windows())
	if err := s.Restore(bytes.NewReader(state.Bytes())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Advance(t.Context(), flow.EndOfTime); err != nil || len(told) != 1 {
		t.Errorf("%d rows of the older state (%v)", len(told), err)
	}
	for what, state := range map[string]string{"another stage's": "hearthline features state 1\n", "cut off": state.String()[:40], "newer": "hearthline arrival state 2\n"} {
		if err := arrival.New(windows()).Restore(strings.NewReader(state)); err == nil {
			t.Errorf("a state that is %s is taken", what)
		}
	}
}

// A stream whose rows cannot be put in order is refused before anything starts.
func TestRowsWithoutArrival(t *testing.T) {
	var told []string
	s := arrival.New(telling{&told, func() bool { return false }})
	if err := s.Check("rows", arrow.NewSchema([]arrow.Field{{Name: flow.ColTime, Type: flow.InstantType}}, nil)); err == nil || !strings.Contains(err.Error(), `no column "received"`) {
		t.Errorf("%v", err)
	}
}
