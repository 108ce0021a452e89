package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	"time"

	"go.yaml.in/yaml/v3"

	"hearthline/cli/clitest"
	"hearthline/ingest/identity"
	"hearthline/pipeline"
	"hearthline/python"
	"hearthline/simulator"
	clickhouse "hearthline/sinks/clickhouse/embedded"
	"hearthline/streams"
)

// world is one installation with all that stands around it.
type world struct {
	t      *testing.T
	dir    string
	data   string // of the roles: registry, checkpoints, Parquet files
	binary string
	begun  time.Time

	broker  broker
	kafka   []*proxy   // one a broker node
	between [][]*proxy // two a broker node, for the others; none where there is one
	doors   []*proxy   // one a gateway, for hubs
	native  *proxy     // ClickHouse's native door
	alerts  *receiver
	engine  clickhouse.Endpoints
	engines *conduct

	mu    sync.Mutex
	procs []*process
	disks map[string]string // name → mount point
	said  *os.File

	keepClock bool // gateways keep their clock in a file
	static    bool // stages and sinks have lasting names in their groups
	stepped   bool // a gateway's clock is set so far that others are not waited for
	inSQL     bool // the stage behind the stream with a key is in SQL, else in Python

	port  int // the last that was given
	ports struct{ chHTTP, chTCP string }
	homes *simulator.Simulator
	plan  *pipeline.Plan
	lock  *python.Lock
}

// addr is an address that no other run takes, also while nobody listens on it: each run has a loopback host of its own.
func (w *world) addr() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.port++
	n := w.begun.UnixMilli()
	return fmt.Sprintf("127.%d.%d.%d:%d", 64+n>>16&63, n>>8&255, 1+n&127, 21000+w.port)
}

// conduct is a part of the world that runs in this process.
type conduct struct {
	stop context.CancelFunc
	done chan error
}

func conducted(run func(context.Context) error) *conduct {
	ctx, stop := context.WithCancel(context.Background())
	c := &conduct{stop: stop, done: make(chan error, 1)}
	go func() { c.done <- run(ctx) }()
	return c
}

func (c *conduct) end() error {
	c.stop()
	return <-c.done
}

// logf notes what happens, with the time since the beginning.
func (w *world) logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.said, "%7.3f %s %s\n", time.Since(w.begun).Seconds(), time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

func (w *world) process(name, path string, args []string, env ...string) *process {
	p := &process{name: name, path: path, args: args, env: env, log: filepath.Join(w.dir, "logs", name+".log")}
	w.mu.Lock()
	w.procs = append(w.procs, p)
	w.mu.Unlock()
	return p
}

// role makes a process of the product, with a clock and a proxy's address of its own.
func (w *world) role(name string, args []string, env ...string) *process {
	clock := w.clock(name)
	args = append(args, "--pipeline", filepath.Join(w.dir, "pipeline.yaml"), "--data", w.data, "--ops", w.addr())
	env = append(append(env, w.env()...), interpreter(name)...)
	if w.static {
		env = append(env, "HEARTHLINE_INSTANCE="+name)
	}
	return w.process(name, w.binary, args, append(env, "HEARTHLINE_CHAOS_CLOCK="+clock, "HEARTHLINE_CHAOS_NAME="+name)...)
}

func (w *world) clock(name string) string {
	return filepath.Join(w.dir, "clock-"+strings.TrimSuffix(name, "-2"))
}

// env is what pipeline.yaml asks of the environment.
func (w *world) env() []string {
	var brokers []string
	for _, p := range w.kafka {
		brokers = append(brokers, p.listener.Addr().String())
	}
	dir := filepath.Join(w.dir, "gateway")
	return []string{
		"HEARTHLINE_KAFKA=" + strings.Join(brokers, ","), "HEARTHLINE_DATA=" + w.data,
		"HEARTHLINE_ALERT_URL=http://" + w.alerts.listener.Addr().String(),
		"HEARTHLINE_CLICKHOUSE=" + w.native.listener.Addr().String(), "HEARTHLINE_CLICKHOUSE_USER=" + w.engine.Writer.Name,
		"HEARTHLINE_CLICKHOUSE_PASSWORD=" + w.engine.Writer.Password,
		"HEARTHLINE_CERTIFICATE=" + filepath.Join(dir, "server.pem"), "HEARTHLINE_KEY=" + filepath.Join(dir, "server-key.pem"),
		"HEARTHLINE_CREDENTIALS=" + filepath.Join(dir, "credentials.yaml"),
	}
}

// start brings everything up. Roles are started while the servers still come up, as on a cluster.
func (w *world) start(brokerKind string) error {
	for _, dir := range []string{w.data, filepath.Join(w.dir, "logs"), filepath.Join(w.dir, "gateway")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	ready, err := w.startEngine()
	if err != nil {
		return err
	}
	if err := w.startBroker(brokerKind); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	if w.alerts, err = newReceiver(w.addr()); err != nil {
		return err
	}
	select {
	case w.engine = <-ready:
	case err := <-w.engines.done:
		w.engines.done <- err
		return fmt.Errorf("clickhouse: %w", err)
	}
	if err := w.prepareHomes(); err != nil {
		return err
	}
	if err := w.writePlan(); err != nil {
		return err
	}
	return w.startRoles()
}

// startEngine starts ClickHouse and its proxy. The channel tells when it answers.
func (w *world) startEngine() (<-chan clickhouse.Endpoints, error) {
	w.ports.chHTTP, w.ports.chTCP = w.addr(), w.addr()
	s := clickhouse.New(w.disk("clickhouse"))
	s.Executable, s.HTTPAddr, s.TCPAddr, s.RestartsMax = w.binary, w.ports.chHTTP, w.ports.chTCP, 100
	file, err := os.Create(filepath.Join(w.dir, "logs", "engine.log"))
	if err != nil {
		return nil, err
	}
	s.Logger = slog.New(slog.NewTextHandler(file, nil))
	ready := make(chan clickhouse.Endpoints, 1)
	s.Ready = func(e clickhouse.Endpoints) { ready <- e }
	w.engines = conducted(func(ctx context.Context) error {
		defer file.Close()
		for { // killed while it starts it gives up; an orchestrator does not
			if err := s.Run(ctx); ctx.Err() != nil {
				return err
			}
			wait(ctx, time.Second)
		}
	})
	w.native, err = newProxy(w.addr(), func() string { return w.ports.chTCP }, nil)
	return ready, err
}

// enginePIDs are the engine's processes: children of this one that run the hidden verb.
func (w *world) enginePIDs() []int {
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(os.Getpid()), "-f", filepath.Join(w.disk("clickhouse"))).Output()
	if err != nil {
		return nil
	}
	var pids []int
	for _, f := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(f); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (w *world) signalEngine(sig syscall.Signal) {
	for _, pid := range w.enginePIDs() {
		_ = syscall.Kill(pid, sig)
	}
}

// prepareHomes makes the hubs, who reach the gateways through a proxy each chooses for itself.
func (w *world) prepareHomes() error {
	dir := filepath.Join(w.dir, "gateway")
	if _, err := identity.DevCertificates(dir); err != nil {
		return err
	}
	var users []identity.DevUser
	for _, home := range w.homes.HomeNames() {
		users = append(users, identity.DevUser{User: home, Home: home})
	}
	_, passwords, err := identity.DevCredentials(dir, users...)
	if err != nil {
		return err
	}
	w.homes.Credentials = func(home string) (string, string) { return home, passwords[home] }
	w.homes.CAFile, w.homes.JournalDir = filepath.Join(dir, "ca.pem"), filepath.Join(w.dir, "simulator")
	return w.homes.WriteRegistry(filepath.Join(w.data, "registry.csv"))
}

// writePlan writes the product's own pipeline.yaml, with shorter waits, and with every stream kept in both stores.
func (w *world) writePlan() error {
	root, err := clitest.Root()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(root, "pipeline.yaml"))
	if err != nil {
		return err
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return err
	}
	put := func(value any, path ...string) {
		at := doc
		for _, key := range path[:len(path)-1] {
			next, ok := at[key].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[key] = next
			}
			at = next
		}
		at[path[len(path)-1]] = value
	}
	put("400ms", "checkpoint", "every")
	put("2s", "kafka", "session_timeout")
	put("2s", "kafka", "request_timeout")
	put("10ms", "gateway", "settings", "linger")
	put("${HEARTHLINE_CHAOS_KEPT:-}", "gateway", "settings", "clock")
	if err := w.rekeyed(put, []string{"readings", "features", "late", "scores", "alerts", "*.dead"}); err != nil {
		return err
	}
	// A run is a few minutes of a home: windows, rows that are late for them (of two that change places), scores and alerts are
	// to come within it.
	put("1s", "stages", "features", "settings", "lateness")
	put(20, "stages", "score", "settings", "warmup")
	for key, value := range map[string]any{"raise": 2.5, "critical": 4, "clear": 2, "clear_readings": 3, "clear_after": "30s"} {
		put(value, "stages", "alert", "settings", key)
	}
	put("300ms", "sinks", "parquet", "settings", "flush_wait")
	put("200ms", "sinks", "clickhouse", "settings", "flush_wait")
	if b, err = yaml.Marshal(doc); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w.dir, "pipeline.yaml"), b, 0o600); err != nil {
		return err
	}
	w.lock = new(python.Lock)
	if w.plan, err = w.planOf(string(b), w.env()); err != nil {
		return err
	}
	return w.writeLock()
}

// startRoles starts two gateways, every unit and every sink.
func (w *world) startRoles() error {
	var roles []*process
	var addrs []string
	for i := range 2 {
		name := fmt.Sprintf("g%d", i+1)
		mqtt, kept := w.addr(), ""
		if w.keepClock {
			kept = filepath.Join(w.dir, "kept-"+name)
		}
		roles = append(roles, w.role(name, []string{"gateway"}, "HEARTHLINE_INSTANCE="+name, "HEARTHLINE_MQTT="+mqtt,
			"HEARTHLINE_HTTP="+w.addr(), "HEARTHLINE_CHAOS_KEPT="+kept))
		door, err := newProxy(w.addr(), func() string { return mqtt }, nil)
		if err != nil {
			return err
		}
		w.doors, addrs = append(w.doors, door), append(addrs, door.listener.Addr().String())
	}
	for _, u := range w.plan.Units {
		roles = append(roles, w.role(u.Stages[0].Name, []string{"stage", u.Stages[0].Name}))
	}
	for _, s := range w.plan.Sinks {
		roles = append(roles, w.role("into-"+s.Name, []string{"sink", s.Name}))
	}
	balancer, err := newBalancer(clitest.FreeAddr(w.t), addrs) // the one address that stands in the certificate
	if err != nil {
		return err
	}
	w.doors = append(w.doors, balancer)
	w.homes.Gateway = balancer.listener.Addr().String()
	for _, p := range roles {
		if err := p.start(); err != nil {
			return err
		}
	}
	return nil
}

// newBalancer spreads connections over the gateways that can be reached, one after the other, as a load balancer does.
func newBalancer(addr string, targets []string) (*proxy, error) {
	var mu sync.Mutex
	n := 0
	return newProxy(addr, func() string {
		mu.Lock()
		defer mu.Unlock()
		n++
		return targets[n%len(targets)]
	}, nil)
}

// named finds a process.
func (w *world) named(name string) *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.procs {
		if p.name == name {
			return p
		}
	}
	return nil
}

// client connects the harness itself to Kafka.
func (w *world) client(ctx context.Context) (*streams.Client, error) {
	cfg := streams.New()
	cfg.ClientID = harness
	for _, p := range w.kafka {
		cfg.Brokers = append(cfg.Brokers, p.listener.Addr().String())
	}
	return streams.Dial(ctx, cfg, nil)
}

// query asks ClickHouse and gives the rows, as JSON arrays. The engine may just be starting again.
func (w *world) query(ctx context.Context, sql string) (rows [][]string, err error) {
	for range 10 {
		if rows, err = w.queryOnce(ctx, sql); err == nil {
			return rows, nil
		}
		wait(ctx, time.Second)
	}
	return nil, err
}

func (w *world) queryOnce(ctx context.Context, sql string) ([][]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+w.ports.chHTTP+"/?database=hearthline", strings.NewReader(sql+" FORMAT JSONCompactEachRow"))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(w.engine.Dashboard.Name, w.engine.Dashboard.Password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(res.Body)
		return nil, fmt.Errorf("%s: %s %s", sql, res.Status, b)
	}
	var rows [][]string
	for d := json.NewDecoder(res.Body); ; {
		var row []string
		if err := d.Decode(&row); errors.Is(err, io.EOF) {
			return rows, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", sql, err)
		}
		rows = append(rows, row)
	}
}

// destroy ends whatever still runs.
func (w *world) destroy() {
	w.mu.Lock()
	procs := w.procs
	w.mu.Unlock()
	for _, p := range procs {
		p.destroy()
	}
	if b, ok := w.broker.(*apacheBroker); ok {
		_ = b.end()
	}
	if w.engines != nil {
		w.signalEngine(syscall.SIGCONT)
		_ = w.engines.end()
	}
	if w.alerts != nil {
		w.alerts.listener.Close()
	}
	for _, p := range slices.Concat([]*proxy{w.native}, w.kafka, w.doors, slices.Concat(w.between...)) {
		if p != nil {
			p.close()
		}
	}
}
