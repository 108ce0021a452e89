package console

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	pollEvery   = 2 * time.Second
	pollTimeout = 5 * time.Second
	pollLinger  = 30 * time.Second // how long it goes on after the last one who looked
)

// poll keeps the answer to a question that costs something: a round trip to Kafka or to ClickHouse. It is asked
// while somebody looks, one at a time, and never by those who look, so that a slow answer delays no page.
type poll[T any] struct {
	ask    func(context.Context) (T, error)
	always bool // asked also when nobody looks
	// partial says whether an answer that came with an error is worth showing; nil: none is.
	partial func(T) bool

	mu     sync.Mutex
	answer T
	err    error
	at     time.Time // of the last try
	wanted time.Time
	wake   chan struct{}
	done   chan struct{} // closed after each try, then made anew
}

func newPoll[T any](ask func(context.Context) (T, error), always bool) *poll[T] {
	return &poll[T]{ask: ask, always: always, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// run asks until ctx ends.
func (p *poll[T]) run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		p.mu.Lock()
		wanted := p.always || time.Since(p.wanted) < pollLinger
		p.mu.Unlock()
		if wanted {
			p.try(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-tick.C:
		}
	}
}

func (p *poll[T]) try(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	answer, err := p.safely(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at, p.err = time.Now(), err; err == nil || p.partial != nil && p.partial(answer) {
		p.answer = answer
	}
	close(p.done)
	p.done = make(chan struct{})
}

// safely asks. A console that dies of a question would take the pipeline beside it along.
func (p *poll[T]) safely(ctx context.Context) (answer T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panicked: %v", r)
		}
	}()
	return p.ask(ctx)
}

// get gives the last answer that was worth showing, and the error of the last try.
func (p *poll[T]) get() (T, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = time.Now()
	return p.answer, p.err
}

// fresh waits, until ctx ends, for an answer that is no older than a few polls.
func (p *poll[T]) fresh(ctx context.Context) {
	p.mu.Lock()
	p.wanted = time.Now()
	fresh, done := time.Since(p.at) < 3*pollEvery, p.done
	p.mu.Unlock()
	if fresh {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}
