package replay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc/pool"

	"hearthline/blobs"
	"hearthline/pipeline"
	"hearthline/pipeline/run"
	"hearthline/streams"
	"hearthline/streams/embedded"
)

// Engine runs a part of a pipeline on history, to its end.
type Engine struct {
	Dir       string         // of the replay
	Plan      *pipeline.Plan // a part, with the sinks that keep what it makes
	Histories map[string]run.History
	Run       string // that the histories end
	Log       *slog.Logger
	Meter     *run.Meter
	Version   string
	Mem       memory.Allocator // nil: the Go heap
}

// Limits of an Engine.
const (
	brokerWait    = time.Minute // until its broker answers; reading back what it kept takes a while
	brokerEndWait = 30 * time.Second
)

// Go runs until all of history has gone through and is kept, or ctx ends. Called again after any end, a crash among them, it
// goes on.
func (e *Engine) Go(ctx context.Context) error {
	broker, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	at, ended, err := e.broker(broker, cancel)
	if err != nil {
		return err
	}
	defer func() {
		cancel(nil)
		select {
		case <-ended:
		case <-time.After(brokerEndWait):
			e.Log.Error("replay: the broker does not end and is left behind", "after", brokerEndWait)
		}
	}()
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(broker, func() { stop(context.Cause(broker)) })()
	err = e.nodes(work, at)
	if cause := context.Cause(broker); cause != nil {
		return cause
	}
	return err
}

// broker starts the replay's own broker. fail is called if it ends by itself.
func (e *Engine) broker(ctx context.Context, fail context.CancelCauseFunc) (at string, ended <-chan struct{}, err error) {
	ready, done := make(chan string, 1), make(chan struct{})
	b := embedded.New()
	b.Dir, b.Addr, b.Log = filepath.Join(e.Dir, "kafka"), "127.0.0.1:0", e.Log.With("node", "broker")
	b.Ready = func(addr string) { ready <- addr }
	failed := make(chan error, 1)
	p := pool.New()
	p.Go(func() {
		defer close(done)
		err := b.Run(ctx)
		failed <- err
		if err != nil {
			fail(err)
		}
	})
	select {
	case at := <-ready:
		return at, done, nil
	case err := <-failed:
		return "", nil, fmt.Errorf("replay: %w", errors.Join(err, ctx.Err()))
	case <-time.After(brokerWait):
		fail(nil)
		return "", nil, fmt.Errorf("replay: the broker of %s is not ready within %v", e.Dir, brokerWait)
	}
}

// nodes runs the units and sinks until each has seen the end.
func (e *Engine) nodes(ctx context.Context, broker string) error {
	c := streams.New()
	c.Brokers, c.Compression = []string{broker}, e.Plan.Spec.Kafka.Compression
	c.Memory = e.Mem
	client, err := streams.Dial(ctx, c, e.Log)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	defer client.Close()
	store, err := blobs.Dir(filepath.Join(e.Dir, "checkpoints"))
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	r := &run.Runner{
		Plan: e.Plan, Client: client, Store: store, Log: e.Log, Meter: e.Meter, Version: e.Version, Mem: e.Mem,
		Drain: run.Drain{Run: e.Run, Gateways: 1}, Histories: e.Histories,
	}
	if err := r.Ensure(ctx); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	for _, s := range e.Plan.Sinks {
		p.Go(func(ctx context.Context) error { return r.Sink(ctx, s.Name) })
	}
	for _, u := range e.Plan.Units {
		p.Go(func(ctx context.Context) error { return r.Unit(ctx, u.Name) })
	}
	return p.Wait()
}

// Tidy removes what a replay needs only to go on: what it has made is kept in its files.
func Tidy(dir string) error {
	return errors.Join(os.RemoveAll(filepath.Join(dir, "kafka")), os.RemoveAll(filepath.Join(dir, "checkpoints")))
}
