package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
	"hearthline/simulator"
	"hearthline/sinks/parquet"
)

// How long ClickHouse is away, and how long the homes play before and after. `make outage` takes it away for ten
// minutes; what runs with every other test is the same with seconds.
var (
	outageFor    = flag.Duration("outage", 6*time.Second, "TestOutage: how long ClickHouse is away")
	outageMargin = flag.Duration("outage-margin", 2*time.Second, "TestOutage: how long the homes play before ClickHouse goes and after it is back")
	outageRSSMax = flag.Int64("outage-rss-max", 512, "TestOutage: the most that a role may hold, in MiB; it is told 90 % of that by GOMEMLIMIT, as in a pod")
)

// outage is one run: processes that are looked at every second while homes play as fast as they are acknowledged.
type outage struct {
	t *testing.T
	*clitest.Installation
	homes *simulator.Simulator
	watch *watcher
	kept  []*keptRole
	gone  func() // takes ClickHouse away
	back  func()
}

// ClickHouse is away for a long time, at full load. Kafka keeps what comes in; no process grows with it; and when
// ClickHouse is back, every acknowledged row is in both stores once.
func TestOutage(t *testing.T) {
	t.Run("refused, roles", func(t *testing.T) { rolesOutage(t).run() })
	t.Run("half-open, up", func(t *testing.T) { upOutage(t).run() })
}

// rolesOutage is every role as a process of its own, restarted when it ends as Kubernetes would. ClickHouse's port
// refuses connections.
func rolesOutage(t *testing.T) *outage {
	c := &clitest.Cluster{Installation: clitest.New(t), Broker: clitest.FreeAddr(t)}
	o := &outage{Installation: c.Installation, t: t, homes: fastHomes(c.Installation), watch: newWatcher()}
	if err := o.homes.WriteRegistry(filepath.Join(c.Data, "registry.csv")); err != nil {
		t.Fatal(err)
	}
	certs, err := identity.DevCertificates(filepath.Join(c.Data, "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	clickhouse := c.StartClickHouse()
	c.Env = roleEnv(c, certs)
	broker := c.StartBroker()
	o.watch.add("broker and homes (this test)", os.Getpid)
	o.watch.add("ClickHouse", func() int { return engineOf(os.Getpid(), c.Data) })
	for _, args := range [][]string{{"gateway"}, {"stage", "normalize"}, {"stage", "features"}, {"stage", "score"}, {"stage", "alert"},
		{"sink", "clickhouse"}, {"sink", "parquet"}, {"sink", "webhook"}} {
		o.kept = append(o.kept, keep(t, c, args...))
	}
	for _, k := range o.kept {
		o.watch.add(k.name, k.pid)
		if k.name == "sink clickhouse" {
			k.now.Expect("0003_views.sql", time.Minute) // the tables are there
		}
	}
	o.gone = func() { clickhouse.End(t) }
	o.back = func() { clickhouse = c.StartClickHouse() }
	t.Cleanup(func() {
		for _, k := range o.kept {
			k.end()
		}
		broker.End(t)
		clickhouse.End(t)
	})
	return o
}

// upOutage is everything in one process. ClickHouse is stopped in the middle of what it does: it still takes
// connections, and answers nothing.
func upOutage(t *testing.T) *outage {
	i := clitest.New(t)
	o := &outage{Installation: i, t: t, homes: fastHomes(i), watch: newWatcher()}
	if err := o.homes.WriteRegistry(filepath.Join(i.Data, "registry.csv")); err != nil {
		t.Fatal(err)
	}
	up := i.Up("--no-homes")
	up.Expect("0003_views.sql", time.Minute) // the tables are there
	o.watch.add("up", func() int { return up.Cmd.Process.Pid })
	engine := func() int { return engineOf(up.Cmd.Process.Pid, i.Data) }
	o.watch.add("ClickHouse", engine)
	o.watch.add("homes (this test)", os.Getpid)
	signal := func(s syscall.Signal) func() {
		return func() {
			if err := syscall.Kill(engine(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	o.gone, o.back = signal(syscall.SIGSTOP), signal(syscall.SIGCONT)
	return o
}

// fastHomes have more to say than can be taken, so they play as fast as they are acknowledged, for as long as they are let.
func fastHomes(i *clitest.Installation) *simulator.Simulator {
	homes := i.Homes(24, 100_000_000, 0)
	homes.Interval, homes.History, homes.Backlog = time.Millisecond, 0, 0
	homes.Window, homes.AckTimeout, homes.DrainWait = 64, time.Minute, time.Minute
	return homes
}

func (o *outage) run() {
	t := o.t
	t.Helper()
	ctx, stopHomes := context.WithCancel(t.Context())
	defer stopHomes()
	watching, stopWatch := context.WithCancel(t.Context())
	defer stopWatch()
	o.watch.phase("before")
	go o.watch.run(watching)
	ended := clitest.Play(ctx, o.homes)
	o.flows(time.Minute)
	o.wait(ended, *outageMargin)

	o.watch.phase("away")
	before := o.homes.Stats().Acknowledged
	began := time.Now()
	o.gone()
	o.wait(ended, *outageFor)
	during := o.homes.Stats().Acknowledged - before
	o.back()
	returned := time.Now()
	o.watch.phase("after")
	behind := o.homes.Stats().Acknowledged - o.rows("readings")
	o.wait(ended, *outageMargin)
	stopHomes()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	want, err := o.homes.ExpectedRows()
	if err != nil {
		t.Fatal(err)
	}
	o.until("rows in ClickHouse", strconv.FormatInt(want, 10), func() string { return strconv.FormatInt(o.rows("readings"), 10) })
	caughtUp := time.Since(returned)
	stopWatch()
	o.compare(want)
	o.watch.print(t)
	t.Logf("ClickHouse away for %v; rows acknowledged: %d, of them %d meanwhile (%.0f a second); behind when it came back: %d; caught up %v after that",
		returned.Sub(began).Round(time.Second), want, during, float64(during)/outageFor.Seconds(), behind, caughtUp.Round(time.Second))
	for _, k := range o.kept {
		// Nobody is asked often in a short outage, but the sink says that it is not ready all along.
		if k.name == "sink clickhouse" && k.notReady < int(outageFor.Seconds()/2) {
			t.Errorf("%s said %d times of %d that it is not ready", k.name, k.notReady, k.asked)
		}
		t.Logf("%s: ended %d times, said %d lines, readyz said no %d times of %d", k.name, k.restarts(), strings.Count(k.said(), "\n"), k.notReady, k.asked)
	}
	for name, most := range o.watch.most() {
		limit := *outageRSSMax
		if name == "up" {
			limit *= 3 // a gateway, a broker, four units and three sinks
		}
		if most > limit && !strings.Contains(name, "this test") && name != "ClickHouse" {
			t.Errorf("%s held %d MiB; at most %d was wanted", name, most, limit)
		}
	}
}

// until waits for what may take as long as the outage took.
func (o *outage) until(what, want string, ask func() string) {
	o.t.Helper()
	deadline := time.Now().Add(time.Minute + 2**outageFor)
	for got := ask(); got != want; got = ask() {
		if time.Now().After(deadline) {
			o.t.Fatalf("%s: %s, want %s", what, got, want)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// flows waits until rows arrive in ClickHouse.
func (o *outage) flows(limit time.Duration) {
	o.t.Helper()
	for deadline := time.Now().Add(limit); o.rows("readings") == 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			o.t.Fatalf("no row in ClickHouse after %v; %+v", limit, o.homes.Stats())
		}
	}
}

// wait lets time pass, in which roles are asked whether they are ready. The homes must not end in it.
func (o *outage) wait(ended <-chan error, d time.Duration) {
	o.t.Helper()
	over := time.After(d)
	for {
		select {
		case err := <-ended:
			o.t.Fatalf("the homes ended: %v, %+v", err, o.homes.Stats())
		case <-over:
			return
		case <-time.After(time.Second):
			for _, k := range o.kept {
				k.ask()
			}
		}
	}
}

// rows counts a table's rows; -1 when ClickHouse does not say.
func (o *outage) rows(table string) int64 {
	o.t.Helper()
	n, err := strconv.ParseInt(o.Query("SELECT count() FROM " + table)[0], 10, 64)
	if err != nil {
		o.t.Fatal(err)
	}
	return n
}

// compare holds everything that is stored against what was acknowledged.
func (o *outage) compare(want int64) {
	o.t.Helper()
	numeric := o.Query("SELECT count() FROM readings WHERE metric NOT IN ('motion', 'contact', 'occupied')")[0]
	o.Eventually("scores", numeric, func() string {
		return o.Query("SELECT count() FROM scores WHERE metric NOT IN ('motion', 'contact', 'occupied')")[0]
	})
	o.Eventually("rows in Parquet", strconv.FormatInt(want, 10), func() string {
		n, err := parquet.Count(o.t.Context(), o.ParquetStore(), "readings")
		if err != nil {
			return err.Error()
		}
		return strconv.FormatInt(n.Rows, 10)
	})
	for what, sql := range map[string]string{
		"readings twice":     "SELECT count() - uniqExact(cityHash64(home, device, metric, seq)) FROM readings",
		"scores twice":       "SELECT count() - uniqExact(cityHash64(home, device, metric, seq)) FROM scores",
		"features twice":     "SELECT count() - uniqExact(cityHash64(home, device, metric, window, time)) FROM features",
		"not in the minutes": "SELECT (SELECT countIf(isFinite(value)) FROM readings) - (SELECT sum(rows) FROM readings_1m)",
		"not in the hours":   "SELECT (SELECT countIf(isFinite(value)) FROM readings) - (SELECT sum(rows) FROM readings_1h)",
	} {
		if got := o.Query(sql + " SETTINGS max_execution_time = 0")[0]; got != "0" {
			o.t.Errorf("%s: %s", what, got)
		}
	}
}

// roleEnv is what roles need to know of a cluster.
func roleEnv(c *clitest.Cluster, certs identity.Certificates) []string {
	return []string{
		"HEARTHLINE_KAFKA=" + c.Broker, "HEARTHLINE_CLICKHOUSE=" + c.ClickHouseTCP, "HEARTHLINE_CLICKHOUSE_USER=" + c.Engine.Writer.Name,
		"HEARTHLINE_CLICKHOUSE_PASSWORD=" + c.Engine.Writer.Password, "HEARTHLINE_MQTT=" + c.MQTT, "HEARTHLINE_HTTP=" + c.HTTP,
		"HEARTHLINE_CERTIFICATE=" + certs.Certificate, "HEARTHLINE_KEY=" + certs.Key,
		"HEARTHLINE_CREDENTIALS=" + filepath.Join(c.Data, "gateway", "credentials.yaml"), "HEARTHLINE_INSTANCE=g1",
		fmt.Sprintf("GOMEMLIMIT=%dMiB", *outageRSSMax*9/10),
	}
}

// keptRole is a role that is started again whenever it ends.
type keptRole struct {
	name string

	asked, notReady int // by one goroutine

	mu      sync.Mutex
	now     *clitest.Running
	before  []*clitest.Running
	stopped bool
	done    chan struct{}
}

// keep runs a role, again and again.
func keep(t *testing.T, c *clitest.Cluster, args ...string) *keptRole {
	t.Helper()
	k := &keptRole{name: strings.Join(args, " "), done: make(chan struct{})}
	start := func() *clitest.Running { return c.Role(args...) }
	k.now = start()
	go func() { // a test's own Kubernetes
		defer close(k.done)
		for {
			<-k.now.Done
			time.Sleep(time.Second)
			k.mu.Lock()
			if k.stopped {
				k.mu.Unlock()
				return
			}
			k.before = append(k.before, k.now)
			k.now = start()
			k.mu.Unlock()
		}
	}()
	return k
}

func (k *keptRole) pid() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now.Cmd.Process.Pid
}

func (k *keptRole) restarts() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.before)
}

func (k *keptRole) said() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all strings.Builder
	for _, r := range append(slices.Clone(k.before), k.now) {
		all.WriteString(r.Out.String())
	}
	return all.String()
}

// ask counts whether the role says that it is ready.
func (k *keptRole) ask() {
	k.asked++
	k.mu.Lock()
	ops := k.now.Ops
	k.mu.Unlock()
	client := http.Client{Timeout: time.Second}
	res, err := client.Get("http://" + ops + "/readyz")
	if err == nil {
		res.Body.Close()
	}
	if err != nil || res.StatusCode != http.StatusOK {
		k.notReady++
	}
}

func (k *keptRole) end() {
	k.mu.Lock()
	k.stopped = true
	_ = k.now.Cmd.Process.Signal(syscall.SIGTERM)
	k.mu.Unlock()
	<-k.done
}

// engineOf finds the ClickHouse among the children of a process; 0 when there is none.
func engineOf(parent int, data string) int {
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(parent), "-f", filepath.Join(data, "clickhouse")).Output()
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.Fields(string(out))[0])
	return pid
}

// watcher looks at the memory of processes every second.
type watcher struct {
	mu     sync.Mutex
	names  []string
	pids   map[string]func() int
	now    string
	phases []string
	peak   map[string]map[string]int64 // process → phase → MiB
	last   map[string]map[string]int64 // at the end of the phase
}

func newWatcher() *watcher {
	return &watcher{pids: map[string]func() int{}, peak: map[string]map[string]int64{}, last: map[string]map[string]int64{}}
}

func (w *watcher) add(name string, pid func() int) {
	w.names = append(w.names, name)
	w.pids[name], w.peak[name], w.last[name] = pid, map[string]int64{}, map[string]int64{}
}

func (w *watcher) phase(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now, w.phases = name, append(w.phases, name)
}

func (w *watcher) run(ctx context.Context) {
	for tick := time.NewTicker(time.Second); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		for _, name := range w.names {
			mib := rss(w.pids[name]())
			w.mu.Lock()
			w.peak[name][w.now] = max(w.peak[name][w.now], mib)
			w.last[name][w.now] = mib
			w.mu.Unlock()
		}
	}
}

// rss is what a process holds in memory, in MiB, but for pages of files, which the kernel takes back when it wants.
func rss(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kib); n == 1 {
			return kib >> 10
		}
	}
	return 0
}

func (w *watcher) most() map[string]int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	most := map[string]int64{}
	for name, phases := range w.peak {
		for _, mib := range phases {
			most[name] = max(most[name], mib)
		}
	}
	return most
}

func (w *watcher) print(t *testing.T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "MiB, most (at the end of the phase)\t")
	for _, phase := range w.phases {
		fmt.Fprintf(table, "%s\t", phase)
	}
	for _, name := range w.names {
		fmt.Fprintf(table, "\n%s\t", name)
		for _, phase := range w.phases {
			fmt.Fprintf(table, "%d (%d)\t", w.peak[name][phase], w.last[name][phase])
		}
	}
	table.Flush()
	t.Logf("memory:\n%s", b.String())
}
