// Package tabletest is a [table.Log] in memory, for tests of what stands on tables: several tables can share it, as
// several gateways share Kafka.
package tabletest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"hearthline/ingest/table"
)

// Log is a compacted stream in memory.
type Log struct {
	mu      sync.Mutex
	parts   [][]table.Record
	next    []int64
	changed chan struct{}
	down    bool
	delay   time.Duration
	appends int
}

// NewLog gives an empty log.
func NewLog(partitions int) *Log {
	return &Log{parts: make([][]table.Record, partitions), next: make([]int64, partitions), changed: make(chan struct{})}
}

// ErrDown is what a log that is down says.
var ErrDown = errors.New("the log is down")

// SetDown makes appends fail.
func (l *Log) SetDown(down bool) { l.mu.Lock(); l.down = down; l.mu.Unlock() }

// SetDelay makes each append take as long.
func (l *Log) SetDelay(d time.Duration) { l.mu.Lock(); l.delay = d; l.mu.Unlock() }

// Appends says how many there were.
func (l *Log) Appends() int { l.mu.Lock(); defer l.mu.Unlock(); return l.appends }

// Append implements table.Log.
func (l *Log) Append(ctx context.Context, partition int32, records []table.Record) (int64, error) {
	l.mu.Lock()
	delay := l.delay
	l.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appends++
	if l.down {
		return 0, ErrDown
	}
	first := l.next[partition]
	for _, r := range records {
		r.Offset = l.next[partition]
		l.next[partition]++
		l.parts[partition] = append(l.parts[partition], r)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return first, nil
}

// Follow implements table.Log.
func (l *Log) Follow(ctx context.Context, partition int32, take func(table.Read) error) error {
	next := int64(0)
	for {
		l.mu.Lock()
		changed := l.changed
		r := table.Read{Next: l.next[partition], End: l.next[partition], Whole: true}
		for _, rec := range l.parts[partition] {
			if rec.Offset >= next {
				r.Records = append(r.Records, rec)
			}
		}
		l.mu.Unlock()
		next = r.Next
		if err := take(r); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Compact keeps the last record of each key, as Kafka does, and takes back what is taken back.
func (l *Log) Compact() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, records := range l.parts {
		last := map[string]int64{}
		for _, r := range records {
			last[r.Key] = r.Offset
		}
		var kept []table.Record
		for _, r := range records {
			if last[r.Key] == r.Offset && r.Value != nil {
				kept = append(kept, r)
			}
		}
		l.parts[p] = kept
	}
}

// Len is how many records stand in the log.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, p := range l.parts {
		n += len(p)
	}
	return n
}

// Start is [Run] of a table over this log.
func Start(t testing.TB, l *Log, set func(*table.Table)) (tab *table.Table, stop func()) {
	t.Helper()
	tab = table.New()
	tab.Name, tab.Log, tab.Partitions, tab.RepairWait = "test", l, len(l.parts), 20*time.Millisecond
	if set != nil {
		set(tab)
	}
	return tab, Run(t, tab)
}

// Run prepares a table and runs it until the test ends, or stop is called. It returns when the table has caught up.
func Run(t testing.TB, tab *table.Table) (stop func()) {
	t.Helper()
	if err := tab.Prepare(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work conc.WaitGroup
	work.Go(func() {
		if err := tab.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); work.Wait() }
	t.Cleanup(stop)
	select {
	case <-tab.CaughtUp():
	case <-time.After(30 * time.Second):
		t.Fatal("the table does not catch up")
	}
	return stop
}
