package run

import (
	"context"
	"sync"
)

// budget bounds the bytes of batches that the tasks of a node hold together in one process, in memory, as Arrow counts
// them. A count of batches bounds nothing: a row may have eight bytes or a megabyte. One batch is let in whatever its
// size, or a task that meets it could never go on.
type budget struct {
	max int64

	mu    sync.Mutex
	held  int64
	freed chan struct{} // closed, and made anew, whenever something is given back
}

func newBudget(bytesMax int64) *budget {
	return &budget{max: bytesMax, freed: make(chan struct{})}
}

// take waits until n bytes more may be held, or nothing is held, and holds them.
func (b *budget) take(ctx context.Context, n int64) error {
	for {
		b.mu.Lock()
		if b.held == 0 || b.held+n <= b.max {
			b.held += n
			b.mu.Unlock()
			return nil
		}
		freed := b.freed
		b.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// add holds n bytes more without waiting: they are in memory already.
func (b *budget) add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held += n
}

// give ends the holding of n bytes.
func (b *budget) give(n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held -= n
	close(b.freed)
	b.freed = make(chan struct{})
}

// full says whether nothing more should be taken.
func (b *budget) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held >= b.max
}
