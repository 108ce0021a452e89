package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/ingest"
	"hearthline/ingest/table"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/sinks/clickhouse"
	"hearthline/sinks/clickhouse/embedded"
	"hearthline/sinks/webhook"
	"hearthline/stages/enrich"
	"hearthline/streams"
)

// process is what every role needs: the plan, Kafka, the checkpoint store, metrics.
type process struct {
	*options
	plan     *pipeline.Plan
	client   *streams.Client
	dialled  atomic.Pointer[streams.Client] // client, for those who count while it is dialled
	store    blobs.Store
	meter    *run.Meter
	registry *prometheus.Registry
	tracer   flow.Tracer // nil: nobody traces
}

// with is the process with another plan: its Kafka, checkpoints and numbers are the same.
func (p *process) with(plan *pipeline.Plan) *process {
	next := &process{options: p.options, plan: plan, client: p.client, store: p.store, meter: p.meter, registry: p.registry, tracer: p.tracer}
	next.dialled.Store(p.client)
	return next
}

// dataMode is of the data folder where it is made: passwords, keys and what people do at home are in it. Who wants to share
// it makes it beforehand.
const dataMode = 0o700

// bucketPatience is how long a checkpoint waits for a bucket that does not answer, before its task ends with the error
// and is started afresh. Sinks wait as long for what they write to.
const bucketPatience = 2 * time.Minute

func newProcess(o *options, plan *pipeline.Plan) (*process, error) {
	if err := os.MkdirAll(o.data, dataMode); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	p := &process{options: o, plan: plan, meter: run.NewMeter(), registry: prometheus.NewRegistry()}
	p.registry.MustRegister(p.meter, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p, nil
}

// openCheckpoints opens the store of those who have a state: a gateway needs no keys to it.
func (p *process) openCheckpoints(ctx context.Context) error {
	at := p.plan.Spec.CheckpointStore
	if at.To == "" {
		at.To = filepath.Join(p.data, "checkpoints")
	}
	store, err := blobs.Open(at.To, at.S3)
	if err == nil && blobs.IsShared(at.To) {
		store = blobs.Patient{Store: store, For: bucketPatience, Log: p.log}
		_, err = store.List(ctx, "probe") // says what is wrong now, not with the first checkpoint
	}
	if err != nil {
		return fmt.Errorf("checkpoint store: %w", err)
	}
	p.store = store
	return nil
}

// connect reaches Kafka and sees to the streams. A broker that is not there yet is waited for.
func (p *process) connect(ctx context.Context, brokers []string) error {
	_, err := retryUntil(ctx, p.log, "kafka", func() (struct{}, error) { return struct{}{}, p.dial(ctx, brokers) })
	if err != nil {
		return err
	}
	_, err = retryUntil(ctx, p.log, "streams", func() (struct{}, error) { return struct{}{}, p.runner(run.Drain{}, nil).Ensure(ctx) })
	if err != nil {
		return err
	}
	_, err = retryUntil(ctx, p.log, "tables", func() (struct{}, error) { return struct{}{}, p.ensureTables(ctx) })
	return err
}

// kafka is how this process reaches brokers.
func (p *process) kafka(brokers []string) streams.Config {
	k, c := p.plan.Spec.Kafka, streams.New()
	c.Brokers, c.Compression, c.RequestTimeout = brokers, k.Compression, k.RequestTimeout
	if len(k.Brokers) > 0 { // the embedded broker has no TLS and asks for no login
		c.TLS, c.SASL, c.Replication = k.TLS, k.SASL, k.Replication // 0 is the default: what the brokers do
	}
	return c
}

// dial reaches Kafka, or says why it cannot.
func (p *process) dial(ctx context.Context, brokers []string) (err error) {
	p.client, err = streams.Dial(ctx, p.kafka(brokers), p.log)
	if err == nil {
		p.dialled.Store(p.client)
	}
	return err
}

// countKafka is what the client has counted, once there is one.
func (p *process) countKafka() (streams.Stats, bool) {
	c := p.dialled.Load()
	if c == nil {
		return streams.Stats{}, false
	}
	return c.Stats(), true
}

func (p *process) runner(drain run.Drain, tap run.TapFunc) *run.Runner {
	return &run.Runner{Plan: p.plan, Client: p.client, Store: p.store, Log: p.log, Meter: p.meter, Drain: drain, Tap: tap, Version: version, Tracer: p.tracer}
}

// brokers says where Kafka is for a role that starts none.
func (p *process) brokers() []string {
	if b := p.plan.Spec.Kafka.Brokers; len(b) > 0 {
		return b
	}
	return []string{p.plan.Spec.Kafka.Listen}
}

// configure gives the plan's instances what settings cannot hold: loggers, and where the embedded servers are.
func (p *process) configure(ch *embedded.Endpoints) {
	for _, s := range p.plan.Sinks {
		made := s.New
		s.New = func() flow.Sink {
			sink := made()
			if c, ok := sink.(*clickhouse.Sink); ok {
				c.Logger = p.log.With("node", s.Name)
				if ch != nil && c.Address == clickhouse.AddressEmbedded {
					c.Address, c.User, c.Password = ch.TCP, ch.Writer.Name, ch.Writer.Password
					c.Keeper, c.KeeperPassword = ch.Admin.Name, ch.Admin.Password
					c.PasswordEnv, c.PasswordFile = "", "" // those are for the server of the settings, which this is not
				}
			}
			if w, ok := sink.(*webhook.Sink); ok {
				w.Logger = p.log.With("node", s.Name)
			}
			return sink
		}
	}
	for _, u := range p.plan.Units {
		for _, s := range u.Stages {
			made := s.New
			s.New = func() flow.Stage {
				stage := made()
				if e, ok := stage.(*enrich.Stage); ok {
					e.Log = p.log.With("node", s.Name)
				}
				return stage
			}
		}
	}
}

// gateway gives the plan's gateway, ready but for its credentials and certificates.
func (p *process) gateway(instance string) *ingest.Gateway { return p.gatewayOf(p.plan, instance) }

// gatewayOf takes the settings from another reading of the plan: each gateway of a process has its own.
func (p *process) gatewayOf(plan *pipeline.Plan, instance string) *ingest.Gateway {
	g := plan.Gateway.(*ingest.Gateway)
	g.To, g.Partitions, g.Instance = p.plan.Spec.Gateway.To, p.plan.Spec.Partitions, instance
	g.Publisher, g.Logger = p.client.NewProducer(), p.log.With("node", "gateway")
	g.Tracer = p.tracer
	g.CommandsTo = p.plan.Spec.Gateway.Commands
	g.TablePartitions = tablePartitions
	g.Logs = func(name string) table.Log { return tableLog{p.client, p.client.NewProducer(), p.tableStream(name)} }
	g.TooLarge = func(err error) bool { return errors.Is(err, streams.ErrTooLarge) }
	return g
}

// usesEmbeddedClickHouse says whether some sink wants the server that `up` starts.
func usesEmbeddedClickHouse(plan *pipeline.Plan) bool {
	return slices.ContainsFunc(plan.Sinks, func(s *pipeline.SinkNode) bool {
		c, ok := s.New().(*clickhouse.Sink)
		return ok && c.Address == clickhouse.AddressEmbedded
	})
}
