package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/sourcegraph/conc"

	"hearthline/streams"
)

// services are the parts of one process, started in the order of their dependence and stopped in the reverse.
type services struct {
	log     *slog.Logger
	wait    conc.WaitGroup
	running []*service
	fatal   context.CancelCauseFunc
}

// service is one part: something whose Run(ctx) blocks.
type service struct {
	name string
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}
	err  error // why it ended, valid after done
}

// start runs a part until it is stopped. If it ends by itself with an error, all of the process ends with it.
func (s *services) start(ctx context.Context, name string, run func(context.Context) error) *service {
	// A part outlives the signal that ends the process: it is stopped in its turn.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	v := &service{name: name, log: s.log, stop: cancel, done: make(chan struct{})}
	s.running = append(s.running, v)
	s.wait.Go(func() {
		defer close(v.done)
		defer func() {
			if p := recover(); p != nil {
				v.err = fmt.Errorf("%s panicked: %v\n%s", name, p, debug.Stack())
				s.fatal(v.err)
			}
		}()
		if err := run(ctx); err != nil && !(ctx.Err() != nil && errors.Is(err, context.Canceled)) {
			v.err = err
			if !strings.HasPrefix(err.Error(), name) {
				v.err = fmt.Errorf("%s: %w", name, err)
			}
			s.fatal(v.err)
		}
	})
	return v
}

// keep runs a server that may crash. Until it has been ready, an error ends the process, since it will not get
// better by itself (a busy port, no library); from then on the server is started again.
func (s *services) keep(ctx context.Context, name string, run func(context.Context) error, wasReady func() bool) *service {
	return s.start(ctx, name, func(ctx context.Context) error {
		for {
			err := run(ctx)
			if err == nil || ctx.Err() != nil || !wasReady() {
				return err
			}
			s.log.Error("ended, starting again", "what", name, "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
			}
		}
	})
}

// supervise runs a node again whenever it ends with an error, as Kubernetes would, after a pause that grows.
func (s *services) supervise(ctx context.Context, name string, restarted func(), run func(context.Context) error) *service {
	return s.start(ctx, name, func(ctx context.Context) error {
		pause := backoff.NewExponentialBackOff()
		pause.InitialInterval, pause.MaxInterval = time.Second, 30*time.Second
		for {
			begun := time.Now()
			err := run(ctx)
			if err == nil || ctx.Err() != nil {
				return nil
			}
			if time.Since(begun) > 2*pause.MaxInterval {
				pause.Reset() // it had been well for a while
			}
			d := pause.NextBackOff()
			s.log.Error("ended, starting again", "node", name, "error", err, "pause", d.Round(time.Millisecond))
			restarted()
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(d):
			}
		}
	})
}

// finished waits until v has ended by itself, no longer than limit and ctx; then it stops it.
func (v *service) finished(ctx context.Context, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-v.done:
		return v.err == nil
	case <-t.C:
	case <-ctx.Done():
	}
	v.end()
	return false
}

// endWait is how long a part may take to end. It is above what any part allows itself (the gateway 30 s, ClickHouse 30 s).
const endWait = 45 * time.Second

// end stops v and waits for it. A part that does not end is left behind: the process is about to end with it.
func (v *service) end() {
	v.stop()
	select {
	case <-v.done:
	case <-time.After(endWait):
		v.log.Error("does not end and is left behind; what it has not done is done at the next start", "what", v.name, "after", endWait)
	}
}

// endAll stops what still runs, the last started first.
func (s *services) endAll() {
	for i := len(s.running) - 1; i >= 0; i-- {
		s.running[i].end()
	}
}

// Limits of retryUntil.
const (
	readyWait    = 5 * time.Minute  // then the process ends with the error, for whoever runs it to see
	readyRemind  = 30 * time.Second // between two lines that say what is waited for
	readyWaitMax = 5 * time.Second  // between two tries
)

// retryUntil calls f until it succeeds: what is started together need not be ready together.
func retryUntil[T any](ctx context.Context, log *slog.Logger, what string, f func() (T, error)) (T, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 200*time.Millisecond, readyWaitMax
	var said time.Time
	v, err := backoff.Retry(ctx, func() (T, error) {
		v, err := f()
		if err != nil && streams.Permanent(err) {
			return v, backoff.Permanent(err)
		}
		if err != nil && time.Since(said) > readyRemind {
			said = time.Now()
			log.Warn("not ready, waiting", "for", what, "error", err)
		}
		return v, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(readyWait))
	if err == nil && !said.IsZero() {
		log.Info("ready", "what", what)
	}
	return v, err
}
