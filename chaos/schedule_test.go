package chaos

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// fault is one thing that goes wrong.
type fault struct {
	at, lasts time.Duration
	kind      string // kill, pause, term, scale, rival, net, part, clock, disk
	whom      string // a role, broker-N, engine, *
	way       string // of net and part: see proxy; of clock: seconds; else ""
}

func (f fault) String() string {
	return fmt.Sprintf("%.1fs %s %s %s for %.1fs", f.at.Seconds(), f.kind, f.whom, f.way, f.lasts.Seconds())
}

// faultsFor is how long faults begin. Their ends may lie beyond.
const faultsFor = 9 * time.Second

// roles of the product's pipeline.yaml, and of what a run adds to it, as processes.
var stagesAndSinks = []string{"normalize", "features", "score", "alert", regroup, everywhere, "into-clickhouse", "into-parquet", "into-webhook"}

// schedule draws the faults of a seed.
func schedule(dice *rand.Rand, kind string, disks bool) []fault {
	n := 7 + dice.IntN(6)
	busy := map[string]time.Duration{} // victim → when it is well again
	var all []fault
	for len(all) < n {
		f := draw(dice, kind, disks)
		f.at = 300*time.Millisecond + rand64(dice, faultsFor-300*time.Millisecond)
		key := f.whom
		if f.kind == "net" || f.kind == "clock" || f.kind == "disk" {
			key += "/" + f.kind // may befall who is hurt otherwise
		}
		if f.at < busy[key] {
			continue
		}
		busy[key] = f.at + f.lasts + 200*time.Millisecond
		all = append(all, f)
	}
	if kind != "embedded" { // the embedded broker has no clock of its own
		all = append(all, fault{at: rand64(dice, faultsFor), kind: "clock", whom: nodeOf(dice, kind), way: step(dice), lasts: time.Second + rand64(dice, 3*time.Second)})
	}
	if kind == "kafka3" { // longer than the others wait for it, or not
		all = append(all, fault{at: rand64(dice, faultsFor), kind: "part", whom: nodeOf(dice, kind), way: []string{wayStall, wayLose, wayCut}[dice.IntN(3)],
			lasts: time.Second + rand64(dice, 7*time.Second)})
	}
	slices.SortFunc(all, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return all
}

func rand64(dice *rand.Rand, below time.Duration) time.Duration {
	return time.Duration(dice.Int64N(int64(below)))
}

// step is by how many seconds a clock is set.
func step(dice *rand.Rand) string {
	steps := []int{-1, 1, -5, 5, -40, 40, -200, 200, -7200, 7200}
	return strconv.Itoa(steps[dice.IntN(len(steps))])
}

// nodeOf is one of the brokers.
func nodeOf(dice *rand.Rand, kind string) string {
	nodes := 1
	if kind == "kafka3" {
		nodes = 3
	}
	return "broker-" + strconv.Itoa(dice.IntN(nodes))
}

// draw draws one fault, but for when.
func draw(dice *rand.Rand, kind string, disks bool) fault {
	role := func() string {
		return slices.Concat(stagesAndSinks, []string{"g1", "g2", "normalize", "features", "into-clickhouse", "into-parquet"})[dice.IntN(len(stagesAndSinks)+6)]
	}
	between := func(lo, hi float64) time.Duration {
		return time.Duration((lo + (hi-lo)*dice.Float64()) * float64(time.Second))
	}
	node := func() string { return nodeOf(dice, kind) }
	ways := []string{wayCut, wayStall, wayLose, wayHalf, wayDelay, wayThrottle, waySwallow, waySwallow}
	switch k := dice.IntN(100); {
	case k < 18:
		return fault{kind: "kill", whom: role(), lasts: between(0, 1)}
	case k < 27: // longer than the session: its partitions go to another, or to its own successor, and it wakes as a zombie
		return fault{kind: "pause", whom: role(), lasts: between(2.3, 4)}
	case k < 33:
		return fault{kind: "pause", whom: role(), lasts: between(0.2, 1.5)}
	case k < 39:
		return fault{kind: "term", whom: role(), lasts: between(0, 0.5)}
	case k < 47: // joined by a second process, which leaves again
		return fault{kind: "scale", whom: stagesAndSinks[dice.IntN(len(stagesAndSinks))], lasts: between(1, 4)}
	case k < 55: // a zombie with a rival: a second process takes over what the first, stopped, holds
		return fault{kind: "rival", whom: stagesAndSinks[dice.IntN(len(stagesAndSinks))], lasts: between(2.5, 4)}
	case k < 67:
		return fault{kind: "net", whom: role(), way: ways[dice.IntN(len(ways))], lasts: between(0.3, 3)}
	case k < 71:
		return fault{kind: "net", whom: "*", way: ways[dice.IntN(len(ways))], lasts: between(0.3, 2)}
	case k < 76:
		return fault{kind: "net", whom: []string{"hubs-1", "hubs-2"}[dice.IntN(2)], way: ways[dice.IntN(len(ways))], lasts: between(0.3, 2)}
	case k < 82:
		return fault{kind: "net", whom: "clickhouse", way: ways[dice.IntN(len(ways))], lasts: between(0.3, 3)}
	case k < 85:
		return fault{kind: "kill", whom: node(), lasts: between(0.1, 1.5)}
	case k < 87:
		return fault{kind: "pause", whom: node(), lasts: between(0.3, 2.5)}
	case k < 89:
		return fault{kind: "term", whom: node(), lasts: between(0, 0.5)}
	case k < 92:
		return fault{kind: "kill", whom: "engine", lasts: 0}
	case k < 94:
		return fault{kind: "pause", whom: "engine", lasts: between(0.5, 3)}
	case k < 96 && disks:
		return fault{kind: "disk", whom: []string{"broker", "roles", "clickhouse"}[dice.IntN(3)], lasts: between(0.5, 2.5)}
	default:
		whom := []string{"g1", "g2", "g1", "g2", "normalize", "features", "into-parquet"}[dice.IntN(7)]
		return fault{kind: "clock", whom: whom, way: step(dice), lasts: between(0.5, 4)}
	}
}

// play carries the faults out and returns when the last is over.
func (w *world) play(ctx context.Context, faults []fault) {
	begun := time.Now()
	var all sync.WaitGroup
	for _, f := range faults {
		all.Go(func() {
			wait(ctx, time.Until(begun.Add(f.at)))
			if ctx.Err() != nil {
				return
			}
			w.logf("fault: %v", f)
			if err := w.inject(ctx, f); err != nil {
				w.t.Errorf("fault %v cannot be carried out: %v", f, err)
			}
			w.logf("over:  %v", f)
		})
	}
	all.Wait()
}

// inject carries one fault out, and waits until it is over.
func (w *world) inject(ctx context.Context, f fault) error {
	if n, ok := cutNumber(f.whom, "broker-"); ok {
		return w.hurtBroker(ctx, n, f)
	}
	switch {
	case f.kind == "net":
		return w.disturb(ctx, f)
	case f.kind == "clock":
		if err := os.WriteFile(w.clock(f.whom), []byte(f.way), 0o600); err != nil {
			return err
		}
		wait(ctx, f.lasts)
		return os.WriteFile(w.clock(f.whom), []byte("0"), 0o600)
	case f.kind == "disk":
		return w.fill(ctx, f.whom, f.lasts)
	case f.whom == "engine" && f.kind == "kill":
		w.signalEngine(syscall.SIGKILL)
		return nil
	case f.whom == "engine":
		w.signalEngine(syscall.SIGSTOP)
		wait(ctx, f.lasts)
		w.signalEngine(syscall.SIGCONT)
		return nil
	}
	return w.hurtRole(ctx, f)
}

func (w *world) hurtBroker(ctx context.Context, node int, f fault) error {
	switch f.kind {
	case "clock":
		return w.broker.clock(ctx, node, f)
	case "part":
		w.part(ctx, node, f)
		return nil
	case "kill":
		return w.broker.kill(ctx, node, f.lasts)
	case "pause":
		return w.broker.pause(ctx, node, f.lasts)
	}
	return w.broker.restart(ctx, node, f.lasts)
}

func (w *world) hurtRole(ctx context.Context, f fault) error {
	p := w.named(f.whom)
	switch f.kind {
	case "kill":
		p.kill(f.lasts)
	case "pause":
		p.pause(ctx, f.lasts)
	case "term":
		p.terminate(f.lasts)
	case "scale":
		return w.double(ctx, p, f.lasts)
	case "rival":
		p.signal(syscall.SIGSTOP)
		err := w.double(ctx, p, f.lasts)
		p.signal(syscall.SIGCONT)
		return err
	}
	return nil
}

// double runs a second process of a role for a while.
func (w *world) double(ctx context.Context, p *process, lasts time.Duration) error {
	second := w.named(p.name + "-2")
	if second == nil {
		second = w.role(p.name+"-2", slices.Clone(p.args[:2]))
	}
	if err := second.start(); err != nil {
		return err
	}
	wait(ctx, lasts)
	if err := second.end(40 * time.Second); err != nil {
		w.logf("the second %s: %v", p.name, err) // it may have been cut off from all it needs
	}
	return nil
}

// disturb imposes a rule on connections.
func (w *world) disturb(ctx context.Context, f fault) error {
	proxies, client := w.kafka, f.whom
	switch n, isHub := cutNumber(f.whom, "hubs-"); {
	case isHub:
		proxies, client = w.doors[n-1:n], "*"
	case f.whom == "clickhouse":
		proxies, client = []*proxy{w.native}, "*"
	}
	var all sync.WaitGroup
	for _, p := range proxies {
		all.Go(func() {
			p.impose(ctx, client, &rule{way: f.way, delay: 60 * time.Millisecond, rate: 64 << 10, left: 3}, f.lasts)
		})
	}
	all.Wait()
	return nil
}

func cutNumber(s, prefix string) (int, bool) {
	if len(s) <= len(prefix) || s[:len(prefix)] != prefix {
		return 0, false
	}
	n, err := strconv.Atoi(s[len(prefix):])
	return n, err == nil
}

// disk gives the folder of a part of the world that may get a disk of its own.
func (w *world) disk(name string) string {
	dir := filepath.Join(w.dir, name)
	if name == "roles" {
		dir = w.data
	}
	_ = os.MkdirAll(dir, 0o755)
	return dir
}

// megabytes of the disks that can be filled up.
var megabytes = map[string]int{"broker": 256, "roles": 96, "clickhouse": 500}

// mount gives the parts whose disk will be full disks of their own.
func (w *world) mount(faults []fault) error {
	for _, f := range faults {
		if f.kind != "disk" || w.disks[f.whom] != "" {
			continue
		}
		dir := w.disk(f.whom)
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.Itoa(megabytes[f.whom])+"m"); err != nil {
			return fmt.Errorf("mount a disk for %s: %w", f.whom, err)
		}
		w.disks[f.whom] = dir
	}
	return nil
}

// fill leaves no room on a disk for a while.
func (w *world) fill(ctx context.Context, name string, lasts time.Duration) error {
	ballast := filepath.Join(w.disks[name], "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for begun := time.Now(); time.Since(begun) < lasts && ctx.Err() == nil; {
		if _, err := f.Write(block); err != nil {
			wait(ctx, 20*time.Millisecond) // full; what is freed meanwhile is taken too
		}
	}
	f.Close()
	return os.Remove(ballast)
}

// canMount says whether disks of our own can be had.
var canMount = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", "hearthline-chaos-disk-")
	if err != nil {
		return false
	}
	defer os.Remove(dir)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		return false
	}
	return syscall.Unmount(dir, syscall.MNT_DETACH) == nil
})
