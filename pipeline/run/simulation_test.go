package run

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
)

// A schedule is one seeded run of a whole small pipeline with its faults, until it is drained. The task loop, the
// checkpoints, lineage, merges and sink tasks in it are the real ones; the world around them (streams, groups, commits,
// checkpoint store, sinks) is kept in memory, and time is virtual.
//
// Every use of the world, by any goroutine of any process, waits until the scheduler grants it. The scheduler waits
// until nobody has anything left to do but wait (synctest.Wait), and throws dice for what happens next: a request is
// granted; it is refused; it is carried out and its answer lost; its sender is told that it failed, and it arrives
// later, perhaps after its sender was replaced; it is slow; a process is killed, frozen (it goes on later and does not
// know that it was replaced), cut off from its group's coordinator, or told to stop; a coordinator forms a generation or
// expels a member; the gateways say the next thing, or repeat themselves; time passes. So a seed gives one order of all
// that happens.
//
// After a schedule: the sinks hold exactly the rows of an undisturbed run, which are those that the gateways said, in order in each partition; their ranges do
// not overlap, and one that was written again held the same rows; a batch published again under a lineage says the same;
// the stages' states equal those of the undisturbed run; no goroutine and no memory of Arrow's is left; and it has
// ended, within a number of steps after the last fault.

var (
	schedules     = flag.Int("schedules", 0, "schedules to simulate (0: a few thousand, fewer with -short or -race)")
	simulateFirst = flag.Uint64("simulate-seed", 0, "first seed of the simulation (0: by the clock)")
	simulateLog   = flag.Bool("simulate-log", false, "print what happens in the schedule -simulate-seed")
)

// outcome is what remains of a run.
type outcome struct {
	rows   map[at][]keptRow
	states map[string][]byte // unit/partition and stage → its state
}

// outcome reads what the sinks hold, and the last checkpoints.
func (s *simulation) outcome() (o outcome, err error) {
	o = outcome{rows: map[at][]keptRow{}, states: map[string][]byte{}}
	for _, sink := range s.plan.Sinks {
		for _, stream := range sink.Streams {
			for partition := range int32(s.partitions) {
				a := at{stream, partition}
				rows, err := s.keeps(a)
				if err != nil {
					return o, err
				}
				o.rows[a] = rows
			}
		}
	}
	for _, u := range s.plan.Units {
		for partition := range int32(s.partitions) {
			c := s.groups["sim."+u.Name].committed[at{u.Inputs[0], partition}]
			k := keeper{store: &process{s: s, dead: true}}
			if len(c.Metadata) > len(blobPrefix) && c.Metadata[:len(blobPrefix)] == blobPrefix {
				saved, err := decodeCheckpoint(s.blobs[c.Metadata[len(blobPrefix):]])
				if err != nil {
					return o, err
				}
				for stage, state := range saved.state {
					o.states[fmt.Sprintf("%s/%d %s", u.Name, partition, stage)] = state
				}
			} else if _, err := k.load(context.Background(), c.Metadata); err != nil {
				return o, err
			}
		}
	}
	return o, nil
}

// compare says how what a run left differs from what an undisturbed one leaves.
func (want outcome) compare(got outcome, fussy bool) error {
	for _, a := range slices.SortedFunc(maps.Keys(want.rows), func(a, b at) int { return cmp.Compare(a.String(), b.String()) }) {
		w, g := want.rows[a], got.rows[a]
		switch {
		case fussy && a.stream == "keep.dead":
			continue // looked at with the streams that its rows are of
		case fussy:
			// Where a sink refuses a whole range, the rows that it held depend on where it was cut.
			if i := slices.IndexFunc(g, keptRow.refused); i >= 0 {
				return fmt.Errorf("%v holds %v, which the sink refuses", a, g[i])
			}
			g = sorted(append(slices.Clone(g), got.refused(a)...))
			w = sorted(w)
		case a.stream == "keep.dead":
			w, g = sorted(w), sorted(g) // of several writers
		case a.stream == "shares" || a.stream == "all":
			if err := inOrderOfEach(g); err != nil {
				return fmt.Errorf("%v: %w", a, err)
			}
			w, g = sorted(w), sorted(g)
		}
		if !slices.Equal(w, g) {
			return fmt.Errorf("%v holds\n%v\nand not\n%v", a, g, w)
		}
	}
	for name, w := range want.states {
		if !bytes.Equal(got.states[name], w) {
			return fmt.Errorf("the state of %s is %x and not %x", name, got.states[name], w)
		}
	}
	return nil
}

// inOrderOfEach says where rows of one task do not stand in its order: what comes of a partition has numbers that rise.
func inOrderOfEach(rows []keptRow) error {
	last := map[int64]int64{}
	for _, r := range rows {
		of := r.n / 1000
		if r.n <= last[of] {
			return fmt.Errorf("%d comes after %d", r.n, last[of])
		}
		last[of] = r.n
	}
	return nil
}

// refused gives the rows of a partition that are in the dead letters of the sink that should hold them.
func (o outcome) refused(a at) (rows []keptRow) {
	for _, k := range o.rows[at{"keep.dead", a.partition}] {
		if before, body, ok := strings.Cut(k.text, " {"); ok && strings.HasSuffix(before, " "+a.String()) {
			rows = append(rows, rowIn(body))
		}
	}
	return rows
}

// rowIn is the row of a dead letter: the text behind the brace that its body begins with.
func rowIn(body string) keptRow {
	var row struct {
		N        int64
		Received string
	}
	if err := json.NewDecoder(strings.NewReader("{" + body)).Decode(&row); err != nil {
		panic(err)
	}
	received, err := time.Parse("2006-01-02 15:04:05.999999999", row.Received)
	if err != nil {
		panic(err)
	}
	return keptRow{n: row.N, received: received.UnixMicro()}
}

func sorted(rows []keptRow) []keptRow {
	return slices.SortedFunc(slices.Values(rows), func(a, b keptRow) int {
		return cmp.Or(cmp.Compare(a.n, b.n), cmp.Compare(a.received, b.received), cmp.Compare(a.text, b.text))
	})
}

// campaign runs schedules one after the other. Seeds that share all but their last five bits share what the gateways
// say, and so the undisturbed run.
type campaign struct {
	alloc *counted
	meter *Meter
	story uint64
	texts []script
	want  outcome
	base  settings
	ran   tally
}

// tally is what has happened in schedules, all together.
type tally struct{ schedules, steps, faults, processes, late, frozen int }

func (t *tally) add(o tally) {
	t.schedules, t.steps, t.faults = t.schedules+o.schedules, t.steps+o.steps, t.faults+o.faults
	t.processes, t.late, t.frozen = t.processes+o.processes, t.late+o.late, t.frozen+o.frozen
}

func newCampaign() *campaign {
	return &campaign{alloc: &counted{Allocator: memory.NewGoAllocator()}, meter: NewMeter(), story: 1<<64 - 1}
}

const seedsPerStory = 32

// tell makes what the gateways say, and runs it undisturbed.
func (c *campaign) tell(story uint64) error {
	if c.story == story {
		return nil
	}
	c.forget()
	dice := rand.New(rand.NewPCG(story, 1))
	c.story = story
	c.base = settings{
		kind: dice.IntN(simKinds), partitions: 1 + dice.IntN(2), members: 1, workers: 1,
		checkpoint: 5 * time.Millisecond, flushRows: 10, flushWait: time.Millisecond, timeRate: 0.1, budget: 1 << 20,
	}
	for partition := range int32(c.base.partitions) {
		c.texts = append(c.texts, write(c.alloc, dice, partition, 4+dice.IntN(10)))
	}
	s := newSimulation(c.base, dice, c.alloc, c.meter, c.texts)
	if err := s.run(); err != nil {
		return fmt.Errorf("the undisturbed run: %w", err)
	}
	var err error
	c.want, err = s.outcome()
	s.release()
	if err == nil {
		err = c.want.fits(c.base.kind, c.texts)
	}
	if err != nil {
		return fmt.Errorf("the undisturbed run: %w", err)
	}
	return nil
}

func (c *campaign) forget() {
	for _, t := range c.texts {
		t.release()
	}
	c.texts = nil
}

// draw is the settings of a schedule.
func (c *campaign) draw(dice *rand.Rand) settings {
	set := c.base
	set.fussy = dice.IntN(6) == 0
	set.members = 1 + dice.IntN(3)/2 + dice.IntN(4)/3
	set.workers = 1 + dice.IntN(3)
	set.checkpoint = []time.Duration{time.Microsecond, 100 * time.Microsecond, 2 * time.Millisecond, 50 * time.Millisecond, time.Second}[dice.IntN(5)]
	set.flushRows = int64(1 + dice.IntN(12))
	set.flushWait = []time.Duration{time.Microsecond, time.Millisecond, 100 * time.Millisecond, time.Hour}[dice.IntN(4)]
	set.faultsMax = dice.IntN(25)
	set.faultRate = float64(set.faultsMax) / 400 * []float64{0.5, 1, 3}[dice.IntN(3)]
	set.ills = []ills{kills, freezes, cuts, freezes, stops, kills | freezes, kills | freezes | cuts | stops}[dice.IntN(7)]
	set.outcomes = []faults{canFail, canLose, canBeLate, slow, canBeLate | slow, canFail | canLose | canBeLate | slow}[dice.IntN(6)]
	set.timeRate = []float64{0.02, 0.1, 0.3}[dice.IntN(3)]
	set.streak = []float64{0, 0.5, 0.9}[dice.IntN(3)]
	set.burst = dice.IntN(3) == 0
	set.budget = []int64{1, 2000, 1 << 20}[dice.IntN(3)]
	set.tooLarge = []int{0, 30}[dice.IntN(2)]
	return set
}

// run runs the schedule of a seed, with a bug if there is one, and says what is wrong.
func (c *campaign) run(seed uint64, planted bug, keepLog bool) (s *simulation, err error) {
	if err := c.tell(seed / seedsPerStory); err != nil {
		return nil, err
	}
	before := c.alloc.out.Load()
	dice := rand.New(rand.NewPCG(seed, 2))
	set := c.draw(dice)
	set.bug = planted
	s = newSimulation(set, dice, c.alloc, c.meter, c.texts)
	s.keepLog = keepLog
	err = s.run()
	if err == nil {
		var got outcome
		if got, err = s.outcome(); err == nil {
			err = c.want.compare(got, set.fussy)
		}
	}
	s.release()
	if left := c.alloc.out.Load() - before; left != 0 && err == nil {
		err = fmt.Errorf("%d bytes of records are not released", left)
	}
	c.ran.schedules++
	c.ran.steps += s.step
	c.ran.faults += set.faultsMax - s.faults
	c.ran.processes += s.ended.processes
	c.ran.late += s.ended.late
	c.ran.frozen += s.ended.frozen
	if c.ran.schedules%50 == 0 {
		runtime.GC() // see inBubble
	}
	return s, err
}

// inBubble runs f with virtual time on one thread, and with no garbage collection but f's own, which would move
// goroutines about. What lies in sync.Pools must not go from one bubble into another: conc/stream keeps channels there.
func inBubble(t *testing.T, f func(*testing.T)) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(4 << 30))
	empty := func() { runtime.GC(); runtime.GC() }
	empty()
	defer empty()
	synctest.Test(t, f)
}

func TestSimulation(t *testing.T) {
	n := *schedules
	switch {
	case n > 0:
	case testing.Short(), raceDetector: // which takes ten times as long; a second of it shows races
		n = 100
	default:
		n = 2000
	}
	first := cmp.Or(*simulateFirst, uint64(time.Now().UnixNano()))
	start, end := time.Now(), first+uint64(n)
	var ran tally
	for seed := first; seed < end; seed += bubbleSchedules {
		inBubble(t, func(t *testing.T) {
			c := newCampaign()
			defer c.forget()
			for seed, last := seed, min(seed+bubbleSchedules, end); seed < last; seed++ {
				simulate(t, c, seed)
				if done := seed - first + 1; done%10_000 == 0 {
					fmt.Fprintf(os.Stderr, "%d schedules from seed %d\n", done, first)
				}
			}
			ran.add(c.ran)
		})
	}
	t.Logf("%d schedules from seed %d in %v: %+v", n, first, time.Since(start).Round(time.Millisecond), ran)
}

// bubbleSchedules is how many schedules run in one bubble. What a bubble has made is not all collected before its end: a million in
// one took two gigabytes, and the collector more time than the schedules.
const bubbleSchedules = 5000

// simulate runs one schedule of the campaign.
func simulate(t *testing.T, c *campaign, seed uint64) {
	s, err := c.run(seed, bug{}, *simulateLog)
	if *simulateLog {
		for _, line := range s.log {
			fmt.Fprintln(os.Stderr, line)
		}
	}
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
}
