package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"hearthline/console"
	"hearthline/ingest"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
)

// role is one part of a pipeline as a process of its own, as on a cluster.
type role struct {
	*options
	ops         string
	instance    string
	openMetrics bool
}

func (r *role) flags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&r.ops, "ops", envOr("HEARTHLINE_OPS", "127.0.0.1:9600"),
		"address of /healthz, /readyz, /metrics and the console of this process; where others reach it, all but health asks for the token of console.token_env")
	cmd.Flags().StringVar(&r.instance, "instance", os.Getenv("HEARTHLINE_INSTANCE"),
		"lasting name of this process, unlike that of any other of the same role: killed and started again under it, it goes on at once, where the others would wait for kafka.session_timeout")
	cmd.Flags().BoolVar(&r.openMetrics, "open-metrics", os.Getenv("HEARTHLINE_OPEN_METRICS") == "true",
		"show /metrics to whoever reaches the address, because a NetworkPolicy or the like keeps others away")
	return cmd
}

const roleNote = `
It reads the same pipeline.yaml as every other role, and needs Kafka: set kafka.brokers. SIGTERM
makes it finish what it has in hand, checkpoint and leave; another process goes on from there.

Exit code 0: told to stop. 1: the world failed for too long; start it again. 2: pipeline.yaml or the
command line is wrong.`

func newGateway(o *options) *cobra.Command {
	r := &role{options: o}
	var address string
	cmd := r.flags(&cobra.Command{
		Use:   "gateway",
		Short: "Run the gateway: MQTT and HTTP over TLS into Kafka",
		Long: `Runs one gateway of the pipeline. Run as many as there are connections to carry. They find each other through
Kafka, and speak to each other at gateway.settings.peers.
` + roleNote,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.run(cmd, hasIdentity, func(ctx context.Context, p *process, ready *readiness) error {
				instance, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("name of this gateway: %w", err)
				}
				g := p.gateway(cmp.Or(r.instance, instance))
				g.Peers.AdvertiseAt(address)
				ready.set(g.Health, g.Readiness)
				p.registry.MustRegister(gatewayCollector{g.Stats})
				return g.Run(ctx)
			})
		},
	})
	cmd.Flags().StringVar(&address, "address", os.Getenv("HEARTHLINE_ADDRESS"),
		"host or IP address at which other gateways reach this one, where peers.listen is every address of the machine and peers.advertise is not set")
	return cmd
}

func newStage(o *options) *cobra.Command {
	r := &role{options: o}
	return r.flags(&cobra.Command{
		Use:   "stage NAME",
		Short: "Run one stage (or the group it is in): Kafka → stage → Kafka",
		Long: `Runs one stage of the pipeline, with those it stands together with. Run as many processes of it as it
takes, up to the number of partitions: they share the partitions among them.
` + roleNote,
		Example: "  hearthline stage features\n  hearthline stage normalize     # runs the group normalize+dedupe+enrich",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			known := func(plan *pipeline.Plan) error {
				unit := plan.Node(args[0])
				if unit == nil {
					return usagef("no stage %q in %s; it has %s", args[0], plan.Spec.File, stageNames(plan))
				}
				return r.runs(unit)
			}
			return r.run(cmd, known, func(ctx context.Context, p *process, ready *readiness) error {
				if err := p.openCheckpoints(ctx); err != nil {
					return err
				}
				ready.set(alive, alive)
				return r.runner(p).Unit(ctx, args[0])
			})
		},
	})
}

func newSink(o *options) *cobra.Command {
	r := &role{options: o}
	return r.flags(&cobra.Command{
		Use:     "sink NAME",
		Short:   "Run one sink: Kafka → ClickHouse, Parquet, webhook",
		Long:    "Runs one sink of the pipeline. Several processes of it share the partitions among them.\n" + roleNote,
		Example: "  hearthline sink clickhouse",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			known := func(plan *pipeline.Plan) error {
				if !hasSink(plan, args[0]) {
					return usagef("no sink %q in %s; it has %s", args[0], plan.Spec.File, sinkNames(plan))
				}
				return nil
			}
			return r.run(cmd, known, func(ctx context.Context, p *process, ready *readiness) error {
				if err := p.openCheckpoints(ctx); err != nil {
					return err
				}
				ready.set(alive, p.meter.Node(args[0]).Waiting) // a sink whose server is away lives, and is not ready
				return r.runner(p).Sink(ctx, args[0])
			})
		},
	})
}

// runner runs the node of a role that is a member of a consumer group.
func (r *role) runner(p *process) *run.Runner {
	runner := p.runner(run.Drain{}, nil)
	runner.Instance = r.instance
	return runner
}

// hasIdentity checks what a gateway needs of its own.
func hasIdentity(plan *pipeline.Plan) error {
	if g := plan.Gateway.(*ingest.Gateway); g.Certificate == "" || g.Key == "" || g.Credentials == "" {
		return usagef("%s: gateway.settings needs certificate, key and credentials; only `up` makes its own", plan.Spec.File)
	}
	return nil
}

func alive() error { return nil }

// run does what every role does: the plan, checked for what the role needs of it, the operations endpoints, Kafka; then
// work until told to stop.
func (r *role) run(cmd *cobra.Command, check func(*pipeline.Plan) error, work func(context.Context, *process, *readiness) error) (err error) {
	defer func() {
		if stopped(cmd.Context(), err) {
			err = nil
		}
	}()
	if err := os.Setenv("HEARTHLINE_DATA", r.data); err != nil {
		return err
	}
	plan, err := load(cmd.Context(), cmd, r.options)
	if err != nil {
		return err
	}
	if err := check(plan); err != nil {
		return err
	}
	token, err := consoleToken(plan.Spec.Console)
	if err != nil {
		return err
	}
	p, err := newProcess(r.options, plan)
	if err != nil {
		return err
	}
	endTraces, err := p.trace(cmd.Context(), cmd.Name())
	if err != nil {
		return err
	}
	defer endTraces()
	p.configure(nil)
	ctx, fatal := context.WithCancelCause(cmd.Context())
	defer fatal(nil)
	s := services{log: r.log, fatal: fatal}
	defer s.endAll()
	ready := newReadiness("connecting to Kafka")
	p.registry.MustRegister(processCollector{ready.ready, p.countKafka})
	ops := &console.Server{
		Listen: r.ops, Plan: plan, Meter: p.meter, Gatherer: p.registry, Log: r.log.With("node", "console"),
		Token: token, Insecure: plan.Spec.Console.Insecure, MetricsOpen: r.openMetrics,
		Live: ready.live, ReadyErr: ready.ready, Ready: func(addr string) { r.log.Info("operations endpoints", "address", addr) },
	}
	s.start(ctx, "operations endpoints", ops.Run)
	if err := p.connect(ctx, p.brokers()); err != nil {
		return firstCause(ctx, cmd.Context(), err)
	}
	return firstCause(ctx, cmd.Context(), work(ctx, p, ready))
}

// stopped says whether err is no more than that a signal has ended ctx: told to stop, and it has, also while it waited for what it
// needs to begin.
func stopped(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx)))
}

// firstCause says why ctx ended, if that is why err came, and not that a signal ended it.
func firstCause(ctx, signalled context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) && cause != context.Cause(signalled) {
		return cause
	}
	return err
}

func newHealth(*options) *cobra.Command {
	var addr string
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a role of this machine whether it is ready (for container health checks)",
		Long:  "Asks /readyz of a role's operations endpoint. Exit code 0: ready. 1: not, with the reason.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/readyz", nil)
			if err != nil {
				return usageError{err}
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			var why [512]byte
			n, _ := res.Body.Read(why[:])
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("not ready: %s", why[:n])
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&addr, "ops", envOr("HEARTHLINE_OPS", "127.0.0.1:9600"), "address of the role's operations endpoint")
	return cmd
}
