package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"hearthline/console"
	"hearthline/ingest"
	"hearthline/ingest/identity"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/simulator"
	"hearthline/sinks/clickhouse/embedded"
	embeddedbroker "hearthline/streams/embedded"
)

// Waits of `up`.
const (
	startWait = 5 * time.Minute // for a server of its own to answer; the first start fetches ClickHouse
	drainWait = time.Minute     // for the last rows to reach the sinks
	triedWait = 5 * time.Second // and, when they have, for shadows and those who keep what they make
)

// gatewaysMax bounds the gateways of one process.
const gatewaysMax = 16

// up is the whole product in one process.
type up struct {
	*process
	services
	sim        *simulator.Simulator
	duration   time.Duration
	plain      bool
	clickhouse embedded.Endpoints
	chHTTP     string
	chTCP      string
	run        string // this run's id, which ends with the data
	gateways   int    // how many
	served     []*ingest.Gateway
	doors      []ingest.Addresses
	page       string // the console's address
	kafka      string // address
	certs      identity.Certificates
	passwords  map[string]string
	taps       *console.Taps
	books      *ledger
	nodes      []*service // units and sinks
	sources    []*service
	gws        []*service          // gateways
	pages      *service            // the console
	engine     *embedded.Endpoints // nil: none runs here
	file       fileMark            // of pipeline.yaml as it runs
	follow     bool                // it, when it is saved
	simRun     *service
	started    time.Time
	again      func(context.Context) (*pipeline.Plan, error) // reads the plan afresh
	reread     func(context.Context) (*pipeline.Plan, error) // likewise, and says on the screen what is wrong with it
}

func newUp(o *options) *cobra.Command {
	u := &up{sim: simulator.New()}
	u.sim.Speed = 2000  // the room's four days in three minutes
	u.sim.States = true // there is something to see from the first moment on
	faults := "few"
	noSim := false
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything on this machine: broker, ClickHouse, gateway, stages, sinks, console",
		Long: `Starts, in this one process and with one data folder: an embedded Kafka broker, ClickHouse (fetched at
the first start, 178 MB), the gateway, every stage and sink of pipeline.yaml, and the console.
Recorded rooms and simulated homes connect to the gateway over MQTT and TLS, like any hub.

When pipeline.yaml is saved, stages and sinks go on with it within two seconds: those that it changes start anew, the
others do not notice. What would lose something, or needs a start, is said and left as it was.

Ctrl-C drains: hubs stop, what they have sent flows through to the sinks, and the rows acknowledged,
in ClickHouse and in Parquet are compared. Started again, it goes on where it stopped. A second
Ctrl-C ends it at once; nothing acknowledged is lost by that either.

Exit code 0: drained. 1: something failed. 2: pipeline.yaml or the command line is wrong.`,
		Example: `  hearthline up                             # 200 simulated homes and the recorded rooms
  hearthline up --homes 1000 --faults all   # more, and everything that goes wrong in the field
  hearthline up --no-homes                  # only your own devices
  hearthline up --duration 30s              # drain and exit by itself`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := u.sim.Faults.UnmarshalText([]byte(faults)); err != nil {
				return usageError{fmt.Errorf("--faults: %w", err)}
			}
			if noSim {
				u.sim.Homes, u.sim.Recorded = 0, false
			}
			if err := u.sim.Validate(); err != nil {
				return usageError{err}
			}
			if u.gateways < 1 || u.gateways > gatewaysMax {
				return usagef("--gateways %d: want 1 to %d", u.gateways, gatewaysMax)
			}
			u.process = &process{options: o}
			return u.main(cmd)
		},
	}
	f := cmd.Flags()
	f.IntVar(&u.sim.Homes, "homes", u.sim.Homes, "simulated homes")
	f.DurationVar(&u.sim.Interval, "interval", u.sim.Interval, "time between the readings of a simulated device")
	f.Uint64Var(&u.sim.Seed, "seed", u.sim.Seed, "what the simulated homes are made of")
	f.BoolVar(&u.sim.Recorded, "recorded", u.sim.Recorded, "play the recorded rooms")
	f.Float64Var(&u.sim.Speed, "speed", u.sim.Speed, "how many times faster than recorded the rooms are played; 0 = as fast as acknowledged")
	f.StringVar(&faults, "faults", faults, "what goes wrong: none, few, all, or a list such as few,nan=0.01")
	f.BoolVar(&noSim, "no-homes", false, "no simulated homes and no recorded rooms: only your own devices")
	f.IntVar(&u.gateways, "gateways", 1, "gateways, on ports that follow each other: the homes are spread over them, and commands find their hubs")
	f.DurationVar(&u.duration, "duration", 0, "drain and exit after this time; 0 = run until Ctrl-C")
	f.BoolVar(&u.follow, "follow", true, "go on with pipeline.yaml whenever it is saved, where that loses nothing")
	f.BoolVar(&u.plain, "plain", false, "a line every few seconds instead of a live table")
	f.StringVar(&u.chHTTP, "clickhouse-http", "127.0.0.1:8123", "address of the embedded ClickHouse's HTTP port")
	f.StringVar(&u.chTCP, "clickhouse-tcp", "127.0.0.1:9000", "address of the embedded ClickHouse's native port")
	return cmd
}

// main starts the parts in the order of their dependence, shows what happens until ctx ends, then drains.
func (u *up) main(cmd *cobra.Command) (err error) {
	defer func() {
		if stopped(cmd.Context(), err) {
			err = nil // Ctrl-C before everything was up
		}
	}()
	// A part that ends with an error ends everything, also while draining; Ctrl-C only ends the watching.
	life, fatal := context.WithCancelCause(context.WithoutCancel(cmd.Context()))
	defer fatal(nil)
	ctx, interrupt := context.WithCancelCause(life)
	defer interrupt(nil)
	defer context.AfterFunc(cmd.Context(), func() { interrupt(context.Canceled) })()
	screen := newScreen(cmd.OutOrStdout(), u.plain)
	if screen.live {
		u.options.log = newLogger(screen, u.options) // log lines go above the table, not through it
	}
	u.services = services{log: u.options.log, fatal: fatal}
	u.started = time.Now()
	u.run, u.taps = strconv.FormatInt(u.started.UnixMicro(), 36), &console.Taps{}
	if err := os.MkdirAll(u.data, dataMode); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if st, err := os.Stat(u.data); err == nil && st.Mode().Perm()&0o007 != 0 {
		u.options.log.Warn("every user of this machine can look into the data folder; chmod o-rwx it, unless that is meant", "folder", u.data)
	}
	// pipeline.yaml speaks of ${HEARTHLINE_DATA}; it is the folder that --data names.
	if err := os.Setenv("HEARTHLINE_DATA", u.data); err != nil {
		return err
	}
	if err := u.prepareHomes(); err != nil {
		return err
	}
	u.again = func(ctx context.Context) (*pipeline.Plan, error) { return load(ctx, cmd, u.options) }
	u.reread = func(ctx context.Context) (*pipeline.Plan, error) { return loadTelling(ctx, screen, u.options) }
	u.file = markOf(u.pipeline)
	plan, err := u.again(ctx)
	if err != nil {
		return err
	}
	// Before anything is started that would have to be stopped again.
	if token, err := consoleToken(plan.Spec.Console); err != nil {
		return err
	} else if err := mayListen(plan.Spec.Console, token); err != nil {
		return err
	}
	if u.process, err = newProcess(u.options, plan); err != nil {
		return err
	}
	endTraces, err := u.trace(ctx, "up")
	if err != nil {
		return err
	}
	defer endTraces()
	if err := u.openCheckpoints(ctx); err != nil {
		return err
	}
	defer func() {
		for _, n := range append(u.nodes, u.sources...) {
			n.stop() // each takes a moment to leave its group: all at once
		}
		u.endAll()
		if cause := context.Cause(life); cause != nil {
			err = cause // why a part ended is why everything else did
		}
	}()
	if err := u.startServers(ctx, screen); err != nil {
		return err
	}
	u.startNodes(ctx, nil, nil)
	if err := u.startGateway(ctx); err != nil {
		return err
	}
	if err := u.startConsole(ctx); err != nil {
		return err
	}
	u.startHomes(ctx)
	u.showAddresses(screen)
	watching := ctx
	if u.duration > 0 {
		var stop context.CancelFunc
		watching, stop = context.WithTimeout(ctx, u.duration)
		defer stop()
	}
	u.watch(watching, screen)
	if life.Err() != nil {
		return nil // a part ended with an error, which the deferred function gives
	}
	return u.drain(life, screen)
}

// prepareHomes sees to what the plan may refer to before it is read: the registry of the homes' devices.
func (u *up) prepareHomes() error {
	u.sim.Log = u.log.With("node", "simulator")
	u.sim.JournalDir = filepath.Join(u.data, "simulator")
	registry := filepath.Join(u.data, "registry.csv")
	if u.hasHomes() {
		return u.sim.WriteRegistry(registry)
	}
	if _, err := os.Stat(registry); err == nil {
		return nil
	}
	return os.WriteFile(registry, []byte("home,device,room,kind,model,zone\n"), 0o600)
}

func (u *up) hasHomes() bool { return u.sim.Homes > 0 || u.sim.Recorded }

// startServers starts the broker and ClickHouse, where the plan does not name others.
func (u *up) startServers(ctx context.Context, screen *screen) error {
	brokers := u.plan.Spec.Kafka.Brokers
	brokerReady, engineReady := make(chan string, 1), make(chan embedded.Endpoints, 1)
	if len(brokers) == 0 {
		b := embeddedbroker.New()
		b.Dir, b.Addr, b.Log = filepath.Join(u.data, "kafka"), u.plan.Spec.Kafka.Listen, u.log.With("node", "broker")
		b.SyncWrites = u.plan.Spec.Durability == pipeline.DurabilityPower
		b.Ready = func(addr string) { brokerReady <- addr }
		u.start(ctx, "embedded broker", withHint(b.Run, "kafka.listen in "+u.pipeline+" is its address"))
	}
	engine := usesEmbeddedClickHouse(u.plan)
	if engine {
		s := embedded.New(filepath.Join(u.data, "clickhouse"))
		s.HTTPAddr, s.TCPAddr, s.Logger = u.chHTTP, u.chTCP, u.log.With("node", "clickhouse-server")
		s.Progress = screen.progress("fetching ClickHouse")
		var answered atomic.Bool
		s.Ready = func(e embedded.Endpoints) {
			answered.Store(true)
			select {
			case engineReady <- e:
			default: // a later start: where it answers has not changed
			}
		}
		u.keep(ctx, "clickhouse", withHint(s.Run, "--clickhouse-http and --clickhouse-tcp are its addresses"), answered.Load)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startWait, fmt.Errorf("not ready within %v", startWait))
	defer cancel()
	if len(brokers) == 0 {
		addr, err := await(ctx, brokerReady)
		if err != nil {
			return err
		}
		brokers = []string{addr}
	}
	u.kafka = brokers[0]
	if err := u.connect(ctx, brokers); err != nil {
		return err
	}
	if engine {
		var err error
		if u.clickhouse, err = await(ctx, engineReady); err != nil {
			return err
		}
		u.engine = &u.clickhouse
	}
	u.configure(u.engine)
	return nil
}

// withHint says what to change where an address is in use.
func withHint(run func(context.Context) error, hint string) func(context.Context) error {
	return func(ctx context.Context) error {
		err := run(ctx)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%w; %s", err, hint)
		}
		return err
	}
}

func await[T any](ctx context.Context, ready <-chan T) (T, error) {
	select {
	case v := <-ready:
		return v, nil
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// startNodes starts every source, unit and sink, downstream first, but for those that run already and are kept. One whose predecessor is
// leaving waits for it.
func (u *up) startNodes(ctx context.Context, kept, leaving map[string]*service) {
	u.nodes, u.sources = nil, nil
	p := u.process // who is kept outlives it
	r := p.runner(run.Drain{Run: u.run, Gateways: u.gateways}, u.taps.Offer)
	node := func(name string, run func(context.Context) error) *service {
		if v := kept[name]; v != nil {
			return v
		}
		return u.supervise(ctx, name, func() { p.meter.Node(name).Restarts.Add(1) }, func(ctx context.Context) error {
			if before := leaving[name]; before != nil {
				before.end()
			}
			return run(ctx)
		})
	}
	for i := range p.plan.Spec.Sources {
		name := p.plan.Spec.Sources[i].Name
		u.sources = append(u.sources, node(name, func(ctx context.Context) error { return p.runSource(ctx, r, name) }))
	}
	for _, s := range p.plan.Sinks {
		u.nodes = append(u.nodes, node(s.Name, func(ctx context.Context) error { return r.Sink(ctx, s.Name) }))
	}
	for _, unit := range slices.Backward(p.plan.Units) {
		u.nodes = append(u.nodes, node(unit.Name, func(ctx context.Context) error { return r.Unit(ctx, unit.Name) }))
	}
}

// startHomes starts the simulated homes and the recorded rooms.
func (u *up) startHomes(ctx context.Context) {
	if !u.hasHomes() || u.doors[0].MQTT == nil {
		return
	}
	var doors []string
	for _, at := range u.doors {
		doors = append(doors, addrText(at.MQTT))
	}
	u.sim.Gateway, u.sim.CAFile = strings.Join(doors, ","), u.certs.CA
	u.sim.Credentials = func(home string) (string, string) { return home, u.passwords[home] }
	u.simRun = u.start(ctx, "simulated homes", func(ctx context.Context) error {
		err := u.sim.Run(ctx)
		if errors.Is(err, simulator.ErrUnacknowledged) {
			u.log.Warn("homes stopped with readings outstanding; the next run sends them again", "error", err)
			return nil
		}
		return err
	})
}

// drain lets everything that was acknowledged flow through to the sinks, then compares.
func (u *up) drain(ctx context.Context, screen *screen) error {
	screen.say("draining: homes stop, then the gateway, then what is under way reaches the sinks")
	if u.simRun != nil {
		u.simRun.end()
	}
	for _, s := range u.sources {
		s.end() // what they have not read yet stays where it is
	}
	for _, gw := range u.gws {
		gw.stop() // all at once
	}
	for _, gw := range u.gws {
		if gw.end(); gw.err != nil {
			return gw.err
		}
	}
	deadline := time.Now().Add(drainWait)
	for i := len(u.nodes) - 1; i >= 0; i-- { // upstream first: units, then sinks
		if !tried(u.plan, u.nodes[i].name) && !u.nodes[i].finished(ctx, time.Until(deadline)) {
			return fmt.Errorf("%s had not finished after %v; what it has not done is done at the next start (hearthline up)", u.nodes[i].name, drainWait)
		}
	}
	// A second version may hang. Nobody waits long for it, nor for who keeps what it makes.
	for i := len(u.nodes) - 1; i >= 0; i-- {
		if tried(u.plan, u.nodes[i].name) && !u.nodes[i].finished(ctx, triedWait) {
			screen.say("%s had not finished; it goes on at the next start", u.nodes[i].name)
		}
	}
	return u.compare(ctx, screen)
}
