package sinktest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/sourcegraph/conc/pool"

	"hearthline/flow"
)

// brokenByContext cancels a write at its nth look at the context, for rising n, until one gets through; each time a
// fresh sink then finds what the broken one left.
func brokenByContext(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	return broken(ctx, p, mem, seed, func(b *bench, s span, n int) error {
		ctx := &fuse{Context: b.ctx, left: n, blown: make(chan struct{})}
		return writeTo(ctx, b.sink, s, b.gen.cut(s.whole))
	})
}

// brokenByTime cancels after a time that grows from nothing: it reaches what a sink does behind contexts of its own.
func brokenByTime(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	return broken(ctx, p, mem, seed, func(b *bench, s span, n int) error {
		ctx, cancel := context.WithTimeout(b.ctx, time.Duration(n*n)*50*time.Microsecond)
		defer cancel()
		return writeTo(ctx, b.sink, s, b.gen.cut(s.whole))
	})
}

func brokenByStorage(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	if p.Break == nil {
		return nil // the storage cannot be broken by hand; brokenByContext breaks it off all the same
	}
	return broken(ctx, p, mem, seed, func(b *bench, s span, n int) error {
		b.Break(n)
		defer b.Break(-1)
		return b.write(s)
	})
}

func broken(ctx context.Context, p Place, mem memory.Allocator, seed uint64, write func(b *bench, s span, n int) error) error {
	b, err := newBench(ctx, p, mem, seed)
	if err != nil {
		return err
	}
	s := b.span("a1", 0, 0, 100)
	defer s.whole.Release()
	for n := 0; n < breaksMax; n += 1 + n/6 { // each of the first steps, then fewer
		err := write(b, s, n)
		if errors.Is(err, flow.ErrBad) {
			return fmt.Errorf("broken off at step %d, it says that the rows are bad: %w", n, err)
		}
		if err == nil {
			break // it got through before the nth step
		}
		if err := b.fresh(); err != nil {
			return err
		}
	}
	next := b.span("a1", 0, 10, 20)
	defer next.whole.Release()
	return first(
		func() error { return b.write(s) },
		func() error { return b.write(next) },
		b.same)
}

// fuse is a context that ends when it has been looked at left times.
type fuse struct {
	context.Context
	mu    sync.Mutex
	left  int
	blown chan struct{}
}

func (f *fuse) look() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 {
		close(f.blown)
	}
	f.left--
	return f.left < 0
}

func (f *fuse) Done() <-chan struct{} {
	f.look()
	return f.blown
}

func (f *fuse) Err() error {
	if f.look() {
		return context.Canceled
	}
	return f.Context.Err()
}

// Deadline hides the suite's own limit: what derives a context from this one must look at Done and Err.
func (f *fuse) Deadline() (time.Time, bool) { return time.Time{}, false }

func partitionsAtOnce(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	b, err := newBench(ctx, p, mem, seed)
	if err != nil {
		return err
	}
	work := pool.New().WithErrors().WithContext(ctx)
	for partition := range int32(4) {
		var spans []span
		for i := range 4 {
			s := b.span("a1", partition, int64(i)*10, 80)
			defer s.whole.Release()
			spans = append(spans, s)
		}
		gen := b.gen.fork(uint64(partition))
		work.Go(func(ctx context.Context) error {
			for _, s := range spans {
				for range 2 {
					if err := writeTo(ctx, b.sink, s, gen.cut(s.whole)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return first(work.Wait, b.same)
}

func incarnations(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	b, err := newBench(ctx, p, mem, seed)
	if err != nil {
		return err
	}
	for _, id := range []string{"a1", "b2"} {
		s := b.span(id, 0, 0, 40)
		err = errors.Join(err, first(func() error { return b.write(s) }, func() error { return b.write(s) }))
		s.whole.Release()
	}
	// The very same rows under another identity are other rows.
	s := b.span("c3", 0, 0, 40)
	defer s.whole.Release()
	twin := s
	twin.StreamID = "d4"
	b.want = append(b.want, b.want[len(b.want)-40:]...)
	return first(
		func() error { return err },
		func() error { return b.write(s) },
		func() error { return b.write(twin) },
		b.same)
}

func largeRange(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	b, err := newBench(ctx, p, mem, seed)
	if err != nil {
		return err
	}
	s := b.span("a1", 0, 0, 5_000)
	defer s.whole.Release()
	return first(
		func() error { return b.write(s) },
		b.fresh,
		func() error { return b.write(s) },
		b.same)
}
