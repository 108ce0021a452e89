package simulator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// childSettings is what a child process of the test plays; see TestMain.
const childSettings = "SIMULATOR_TEST_CHILD"

type child struct {
	Gateway, CAFile, JournalDir string
	Homes                       int
	Rounds, RecordedRows        int64
	Interval, History           time.Duration
	Faults                      string
}

// TestMain is the test binary's own start, and that of the processes that tests kill or measure.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(childSettings) != "":
		if err := playChild(os.Getenv(childSettings)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv(measureSettings) != "":
		if err := measureChild(os.Getenv(measureSettings)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

func playChild(settings string) error {
	var c child
	if err := json.Unmarshal([]byte(settings), &c); err != nil {
		return err
	}
	return c.simulator().Run(context.Background())
}

func (c child) simulator() *Simulator {
	s := New()
	s.Gateway, s.CAFile, s.JournalDir = c.Gateway, c.CAFile, c.JournalDir
	s.Credentials = func(home string) (string, string) { return home, passwordOf(home) }
	s.Homes, s.Rounds, s.Interval, s.History = c.Homes, c.Rounds, c.Interval, c.History
	s.Recorded, s.RecordedRows, s.Speed = c.RecordedRows > 0, c.RecordedRows, 0
	s.BackoffMin, s.BackoffMax, s.OfflineFor = 5*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	if err := s.Faults.UnmarshalText([]byte(c.Faults)); err != nil {
		panic(err)
	}
	return s
}

// TestKilled kills the simulator ten times at random moments, then lets it finish: the gateway holds each row
// that counts, with one content, and none was sent again too late for a dedupe stage.
func TestKilled(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	chance := rand.New(rand.NewPCG(seed, 0))
	g := newGateway(t)
	g.delay = func() time.Duration { return 200 * time.Microsecond }
	c := child{Gateway: g.addr, CAFile: g.caFile, JournalDir: t.TempDir(), Homes: 4, Rounds: 900, RecordedRows: 1000,
		Interval: 10 * time.Millisecond, History: 5 * time.Second, Faults: "spike=0.01,stuck=0.05,disconnect=0.001,half_open=0.0005,duplicate=0.005,reorder=0.01,nan=0.002"}
	settings, err := json.Marshal(c)
	must(t, err)
	kills := 0
	for range 10 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childSettings+"="+string(settings))
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		before := g.count()
		deadline := time.Now().Add(20 * time.Second)
		for g.count() == before && time.Now().Before(deadline) {
			<-time.After(time.Millisecond)
		}
		<-time.After(time.Duration(chance.IntN(300)) * time.Millisecond)
		if cmd.Process.Kill() == nil {
			kills++
		}
		cmd.Wait()
	}
	s := c.simulator()
	finish(t, s)
	equalByName(t, g, s)
	if t.Failed() {
		t.Logf("seed %d", seed)
	}
	if g.copies == 0 {
		t.Errorf("nothing was sent again after %d kills: the test proves nothing", kills)
	}
	t.Logf("%d rows; %d came again, at most %d sequences behind; %d kills", g.count(), g.copies, g.behind, kills)
}

// TestJournalBehind is the worst moment to die: acknowledged, and not yet in the journal. The journal of an early moment is
// put back after much more was acknowledged, as far as the reservation allows.
func TestJournalBehind(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	dir := t.TempDir()
	s := g.simulate(dir)
	s.Homes, s.Rounds, s.History = 3, 1000, 1000*time.Second
	s.Faults = Faults{Reorder: 0.1, Duplicate: 0.05, Spike: 0.1, Stuck: 0.2, Malformed: 0.02}
	s.JournalEvery = 200 * time.Millisecond // hubs run into the end of what is reserved
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	early := make(chan []byte, 1)
	g.delay = func() time.Duration { // runs while messages arrive
		if s.Stats().Acknowledged < 3000 || len(early) > 0 {
			return 0
		}
		if b, err := os.ReadFile(s.journalPath()); err == nil {
			select {
			case early <- b:
				time.AfterFunc(300*time.Millisecond, cancel)
			default:
			}
		}
		return 0
	}
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	old := <-early
	atOld, err := decodeJournal(old)
	must(t, err)
	// What the old journal has not reserved can only have been sent under a later one: pretend that it was not.
	for _, h := range s.last.Load().hubs {
		g.forget(h.plan.name, atOld.hubs[h.plan.name].reserved)
	}
	must(t, os.WriteFile(s.journalPath(), old, 0o600))
	again := g.simulate(dir)
	again.Homes, again.Rounds, again.History, again.Faults = s.Homes, s.Rounds, s.History, s.Faults
	g.delay = nil
	finish(t, again)
	equal(t, g, again)
	if g.copies == 0 || g.behind < 4 {
		t.Errorf("%d rows came again, at most %d behind: the test proves nothing", g.copies, g.behind)
	}
	t.Logf("%d rows came again, at most %d sequences behind", g.copies, g.behind)
}

// TestStopAndGoOn: a stopped run brings home what is out, and the next one, in another process as it were, goes on.
func TestStopAndGoOn(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.delay = func() time.Duration { return time.Millisecond }
	dir := t.TempDir()
	var before int64
	for i := 1; ; i++ {
		s := g.simulate(dir)
		s.Rounds, s.History = 120, 120*time.Second
		if rows, err := s.ExpectedRows(); err != nil || rows != before {
			t.Fatalf("%d rows are expected before run %d, %d after the one before; error %v", rows, i, before, err)
		}
		s.Duration = 150 * time.Millisecond
		if err := s.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		equalByName(t, g, s)
		before, _ = s.ExpectedRows()
		if s.Stats().Finished == s.Homes {
			break
		}
		if i == 100 {
			t.Fatalf("not done after %d runs: %+v", i, s.Stats())
		}
	}
	if g.copies != 0 {
		t.Errorf("%d rows were sent again although each run ended in order", g.copies)
	}
}

// TestChangedSettings: other faults, another interval and a long pause take effect after what can have been sent.
func TestChangedSettings(t *testing.T) {
	g := newGateway(t)
	dir := t.TempDir()
	run := func(change func(*Simulator)) *Simulator {
		s := g.simulate(dir)
		s.Rounds, s.History = 101, 101*time.Second
		change(s)
		finish(t, s)
		equal(t, g, s)
		return s
	}
	run(func(*Simulator) {})
	run(func(s *Simulator) {
		s.Rounds, s.Faults, s.Interval = 203, loud(), time.Millisecond
		s.Faults.Oversize = 0
	})
	run(func(s *Simulator) { s.Rounds, s.Interval, s.Homes = 300, 2*time.Millisecond, 6 })
	s := run(func(s *Simulator) {
		s.Rounds, s.Interval, s.History, s.Backlog = 310, 2*time.Millisecond, 0, time.Millisecond
	})
	for _, h := range s.last.Load().hubs[:4] {
		p := h.plan
		if n := len(p.stretches); n < 3 {
			t.Errorf("%s has %d stretches", p.name, n)
		}
		for r := int64(1); r < 310; r++ {
			if p.time(0, r) <= p.time(0, r-1) {
				t.Errorf("%s: round %d is at %d, the one before at %d", p.name, r, p.time(0, r), p.time(0, r-1))
			}
		}
	}
	s = g.simulate(dir)
	s.Seed++
	if err := s.Run(context.Background()); err == nil {
		t.Error("another seed was accepted with the same journal")
	}
}

// TestSlept: the wall clock jumps by an hour, as after a sleep. The homes skip what they missed instead of
// uploading it, and the run goes on.
func TestSlept(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	s := g.simulate(t.TempDir())
	s.Rounds, s.History, s.Interval, s.Backlog = 0, 0, 50*time.Millisecond, 10*time.Minute
	var asleep atomic.Bool
	asleep.Store(true)
	s.wall = func() time.Time {
		if asleep.Load() {
			return time.Now().Add(-time.Hour)
		}
		return time.Now()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	spawn(func() { done <- s.Run(ctx) })
	eventually(t, "rows come", func() bool { return g.count() > 500 })
	asleep.Store(false)
	eventually(t, "the homes catch up", func() bool {
		for _, h := range s.last.Load().hubs {
			if len(h.plan.stretches) != 2 || s.Positions()[0].Acknowledged < h.plan.stretches[1].from+4 {
				return false
			}
		}
		return true
	})
	for _, h := range s.last.Load().hubs {
		if missed := h.plan.stretches[1].start - h.plan.time(0, h.plan.stretches[1].from-1); missed < (30 * time.Minute).Microseconds() {
			t.Errorf("%s skipped %d µs only", h.plan.name, missed)
		}
	}
	cancel()
	must(t, <-done)
	equalByName(t, g, s)
}

func TestOneSimulatorAJournal(t *testing.T) {
	g := newGateway(t)
	a, b := g.simulate(t.TempDir()), g.simulate("")
	b.JournalDir = a.JournalDir
	a.Rounds, a.History = 0, 0
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	spawn(func() { done <- a.Run(ctx) })
	eventually(t, "the first one connects", func() bool { return a.Stats().Connected == a.Homes })
	if err := b.Run(context.Background()); err == nil {
		t.Error("a second simulator took the journal")
	}
	if err := a.Run(context.Background()); err == nil {
		t.Error("a simulator ran twice at once")
	}
	cancel()
	must(t, <-done)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 40 s: %s", what)
		}
	}
}

func TestJournalText(t *testing.T) {
	a, b := &terms{Interval: time.Second}, &terms{Rounds: 9, Faults: AllFaults()}
	j := &journal{head: journalHead{Version: 1, Seed: 1 << 63, Rows: map[string]int64{"good": 7, "nan": 1}, Terms: []*terms{a, b}},
		hubs: map[string]*hubMark{
			"home-0001": {12, 34, []stretch{{0, 1_700_000_000_000_000, a}, {30, 1_700_000_900_000_000, b}}},
			"home-0002": {0, 4, []stretch{{0, -5, b}}},
		}, list: []string{"home-0002", "home-0001"}}
	path := filepath.Join(t.TempDir(), "j")
	must(t, j.write(path))
	got, err := readJournal(path)
	must(t, err)
	first, _ := j.encode()
	second, err := got.encode()
	must(t, err)
	if string(first) != string(second) {
		t.Errorf("%s\nis read as\n%s", first, second)
	}
	for i := range first { // no damage goes unnoticed
		bad := append([]byte(nil), first...)
		bad[i] ^= 4
		if _, err := decodeJournal(bad); !errors.Is(err, errJournal) {
			t.Fatalf("damage at byte %d: error %v", i, err)
		}
		if _, err := decodeJournal(first[:i]); !errors.Is(err, errJournal) {
			t.Fatalf("cut at byte %d: error %v", i, err)
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add("home-0001 12 34 0:17:0 30:18:0")
	f.Add("home-0001 12 34")
	f.Add("x -1 0 0:0:0")
	f.Add("x 1 0 0:0:7")
	f.Fuzz(func(t *testing.T, line string) {
		name, m, err := decodeMark(line, []*terms{{}})
		if err == nil && (name == "" || m.acknowledged < 0 || len(m.stretches) == 0) {
			t.Errorf("%q gives %q, %+v", line, name, m)
		}
	})
}
