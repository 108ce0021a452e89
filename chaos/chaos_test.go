package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearthline/simulator"
	"hearthline/streams/apache"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "the first seed; 0 draws one")
	countFlag  = flag.Int("count", 1, "how many seeds, one after the other")
	brokerFlag = flag.String("broker", "", "embedded, kafka1 or kafka3 for all seeds; empty: by seed")
	keepFlag   = flag.Bool("keep", false, "keep what is left also of a run that went well")
)

// tellsMin is how many readings a home tells at least, some minutes of it: enough for its first windows.
const tellsMin = 400

// How long the hubs may take until the first reading is acknowledged, and until so many are: three brokers on a machine that does
// other things are slow.
const (
	heardMax = 2 * time.Minute
	toldMax  = 6 * time.Minute
)

// drainMax is how long all may take to come to rest after the last fault.
const drainMax = 90 * time.Second

// TestChaos runs seeds and prints a line for each.
func TestChaos(t *testing.T) {
	first := *seedFlag
	if first == 0 {
		first = uint64(time.Now().UnixNano()) % 1_000_000
	}
	if !canMount() {
		if os.Getenv("CI") != "" {
			t.Fatal("full disks need disks of their own, and only root may mount them")
		}
		fmt.Println("NOT TESTED: full disks, which need root to mount disks of their own")
	}
	needPython(t)
	begun, all := time.Now(), &tally{ran: map[string]int{}, over: map[string]int{}}
	for i := range *countFlag {
		seed := first + uint64(i)
		name := fmt.Sprint(seed)
		if *seedFlag == 0 { // a name by which it can be run again: then with the clock's next seed
			name = fmt.Sprintf("%d of %d", i+1, *countFlag)
		}
		dice := rand.New(rand.NewPCG(seed, 1))
		kind, o := brokerOf(dice), (*outcome)(nil)
		ok := t.Run(name, func(t *testing.T) {
			o = chaos(t, seed, dice, kind, schedule(dice, kind, canMount()), "product")
			for _, wrong := range o.wrong {
				t.Errorf("seed %d: %s", seed, wrong)
			}
		})
		all.count(seed, kind, ok, o)
	}
	fmt.Printf("chaos: %d seeds from %d in %v: %v\n", *countFlag, first, time.Since(begun).Round(time.Second), all)
	for _, seed := range all.failed {
		fmt.Printf("chaos: again with: make chaos SEED=%d\n", seed)
	}
	for _, stream := range all.empty() {
		t.Errorf("%d seeds were run, and none had a row of %s to compare", all.runs(), stream)
	}
	if len(all.skipped) > 0 {
		const says = "NOT TESTED: seeds %v were not run"
		if os.Getenv("CI") != "" {
			t.Errorf(says, all.skipped)
		}
		fmt.Printf("chaos: "+says+"\n", all.skipped)
	}
	if all.runs() == 0 {
		t.Skip("NOT TESTED: no seed was run")
	}
}

// brokerOf says what Kafka is for a seed.
func brokerOf(dice *rand.Rand) string {
	kind := "embedded"
	switch k := dice.IntN(20); {
	case k < 3:
		kind = "kafka1"
	case k < 4:
		kind = "kafka3"
	}
	if *brokerFlag != "" {
		kind = *brokerFlag
	}
	return kind
}

// hubs are the simulated homes of a seed. They send as fast as they are acknowledged, from ten minutes ago on.
func hubs(dice *rand.Rand) *simulator.Simulator {
	s := simulator.New()
	s.Homes, s.Seed, s.Recorded = 6+dice.IntN(4), dice.Uint64N(1000)+1, false
	s.Interval, s.History = 2*time.Second, 30*time.Minute
	s.Window, s.AckTimeout, s.DrainWait = 1+dice.IntN(3), 3*time.Second, time.Minute
	s.BackoffMin, s.BackoffMax = 50*time.Millisecond, 500*time.Millisecond
	if dice.IntN(2) == 0 {
		s.Faults = simulator.AllFaults()
		s.Faults.Oversize, s.OfflineFor = 0, time.Second
	}
	return s
}

// chaos is one run: of a binary with changes, under faults. It prints a line and gives what it came to.
func chaos(t *testing.T, seed uint64, dice *rand.Rand, kind string, faults []fault, name string, changes ...change) *outcome {
	path, err := build(name, changes...)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, binary: path, begun: time.Now(), disks: map[string]string{}, homes: hubs(dice), keepClock: dice.IntN(2) == 0, static: dice.IntN(2) == 0, inSQL: dice.IntN(2) == 0, stepped: farStepped(faults)}
	if w.dir, err = os.MkdirTemp("", fmt.Sprintf("hearthline-chaos-%d-", seed)); err != nil {
		t.Fatal(err)
	}
	w.data = filepath.Join(w.dir, "data")
	if w.said, err = os.Create(filepath.Join(w.dir, "events.log")); err != nil {
		t.Fatal(err)
	}
	o := &outcome{}
	w.logf("seed %d, broker %s, %d faults, %d homes, hub faults %v, gateways keep their clock: %v, lasting names: %v, in SQL: %v",
		seed, kind, len(faults), w.homes.Homes, w.homes.Faults, w.keepClock, w.static, w.inSQL)
	for _, f := range faults {
		w.logf("  %v", f)
	}
	defer func() { w.bury(t.Failed() || len(o.wrong) > 0 && len(changes) == 0 || *keepFlag) }()
	if err := w.mount(faults); err != nil {
		t.Fatal(err)
	}
	defer w.destroy()
	err = w.run(t.Context(), kind, faults, o)
	if errors.Is(err, apache.ErrMissing) && os.Getenv("CI") == "" {
		t.Skipf("NOT TESTED: %v", err)
	}
	if err != nil {
		o.wrongf("%v", err)
	}
	fmt.Printf("seed %d: %s, %d faults (%s), %d lives, %d acknowledged, %d rows, %d windows, %d %s over all homes (%d late), %d alerts, %d dead letters (%d for acknowledged rows), %d MB, %v%s\n",
		seed, kind, len(faults), kinds(faults), o.lives, o.acknowledged, o.rows, o.windows, o.everywhere, map[bool]string{true: "windows", false: "numbers"}[w.inSQL], o.overdue, o.alerts, o.dead, o.excused, o.peakMB,
		time.Since(w.begun).Round(100*time.Millisecond), verdict(o))
	for _, wrong := range o.wrong {
		w.logf("WRONG: %s", wrong)
	}
	return o
}

func verdict(o *outcome) string {
	if len(o.wrong) > 0 {
		return "  FAILED"
	}
	return ""
}

func kinds(faults []fault) string {
	var list []string
	for _, f := range faults {
		list = append(list, strings.TrimSpace(f.kind+" "+f.way))
	}
	return strings.Join(list, ", ")
}

// run is the run itself.
func (w *world) run(ctx context.Context, kind string, faults []fault, o *outcome) error {
	if err := w.start(kind); err != nil {
		return err
	}
	w.logf("started")
	ended := make(chan error, 1)
	homes, stopHomes := context.WithCancel(ctx)
	defer stopHomes()
	go func() { ended <- w.homes.Run(homes) }()
	if err := w.acknowledged(ctx, 50, heardMax, ended); err != nil {
		return err
	}
	w.logf("hubs are heard; faults begin")
	told := make(chan error, 1)
	time.AfterFunc(faultsFor+time.Second, func() { // hubs that faults let tell little go on until there are windows to compare
		told <- w.acknowledged(ctx, int64(tellsMin*w.homes.Homes), toldMax, ended)
		stopHomes()
	})
	w.play(ctx, faults)
	w.logf("faults are over; %+v", w.homes.Stats())
	if err := <-told; err != nil {
		return err
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("hubs: %w; %+v", err, w.homes.Stats())
	}
	var err error
	if o.acknowledged, err = w.homes.ExpectedRows(); err != nil {
		return err
	}
	w.logf("hubs have finished: %+v", w.homes.Stats())
	for _, name := range []string{"g1", "g2"} {
		if err := w.named(name).end(40 * time.Second); err != nil {
			o.wrongf("%v", err)
		}
	}
	c, err := w.client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := w.passTime(ctx, c); err != nil {
		return err
	}
	late, cancel := context.WithTimeout(ctx, drainMax)
	defer cancel()
	if err := w.drained(late, c); err != nil {
		w.shutDown(o)
		return err
	}
	w.logf("drained")
	err = w.check(ctx, o)
	w.logf("checked: %v", err)
	w.shutDown(o)
	if err == nil && kind == "embedded" {
		err = w.broker.end()
	}
	w.logf("all have ended")
	return err
}

// acknowledged waits until so many readings are, for so long.
func (w *world) acknowledged(ctx context.Context, n int64, within time.Duration, ended <-chan error) error {
	late := time.After(within)
	for w.homes.Stats().Acknowledged < n {
		select {
		case err := <-ended:
			return fmt.Errorf("the hubs ended early: %v; %+v", err, w.homes.Stats())
		case <-late:
			return fmt.Errorf("not %d readings are acknowledged after %v: %+v", n, within, w.homes.Stats())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// bury removes what a run left, or keeps it and says where.
func (w *world) bury(keep bool) {
	w.said.Close()
	for name, dir := range w.disks {
		if keep { // what is on a disk of its own goes with it: copy it
			if out, err := exec.Command("cp", "-a", dir, filepath.Join(w.dir, name+"-kept")).CombinedOutput(); err != nil {
				w.t.Logf("keep %s: %v %s", dir, err, out)
			}
		}
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			w.t.Error(err)
		}
	}
	if keep {
		fmt.Printf("kept: %s\n", w.dir)
		return
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Error(err)
	}
}
