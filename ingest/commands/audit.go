package commands

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/cenkalti/backoff/v5"
	"github.com/sourcegraph/conc/pool"

	"hearthline/flow"
)

// Publisher is the road into the log, as the gateway's rows have it.
type Publisher interface {
	Publish(ctx context.Context, stream string, partition int32, batches ...flow.Batch) (int64, error)
}

// Audit writes the steps of commands as rows of [flow.CommandSchema] into a stream of the pipeline, for sinks to keep. Steps
// that a killed gateway has not written by then (Linger, as a rule) are missing there, not in the table.
type Audit struct {
	To         string        // stream
	Partitions int           // of it
	Producer   string        // this start of the gateway, as of its rows
	RunID      string        // when set, Run ends with a KindEnd of this run in every partition
	Linger     time.Duration // how long the first row of a batch waits for others
	Heartbeat  time.Duration // between signs of life on a partition without rows
	RowsMax    int           // that wait, of one partition; what is more is dropped, and said in the log
	Publisher  Publisher
	Now        func() time.Time
	Logger     *slog.Logger

	parts []*auditPart
	lost  atomic.Int64
}

// Dropped is how many steps were dropped, because the log did not take them in time.
func (a *Audit) Dropped() int64 { return a.lost.Load() }

type auditPart struct {
	number   int32
	position int64
	clock    flow.Micros // never goes back

	mu      sync.Mutex
	rows    []*Command
	dropped int
	wake    chan struct{}
}

// Prepare comes before the other methods.
func (a *Audit) Prepare() error {
	if a.To == "" || a.Partitions < 1 || a.Publisher == nil || a.Producer == "" {
		return fmt.Errorf("audit of commands: no stream, partitions, publisher or producer")
	}
	if a.Linger <= 0 {
		a.Linger = 50 * time.Millisecond
	}
	if a.Heartbeat <= 0 {
		a.Heartbeat = time.Second
	}
	if a.RowsMax <= 0 {
		a.RowsMax = 100_000
	}
	if a.Now == nil {
		a.Now = time.Now
	}
	if a.Logger == nil {
		a.Logger = slog.New(slog.DiscardHandler)
	}
	for i := range a.Partitions {
		a.parts = append(a.parts, &auditPart{number: int32(i), wake: make(chan struct{}, 1)}) // #nosec G115 -- checked by the plan
	}
	return nil
}

// Write takes a step. It does not wait.
func (a *Audit) Write(c *Command) {
	p := a.parts[flow.PartitionOf(c.Home, a.Partitions)]
	p.mu.Lock()
	if len(p.rows) < a.RowsMax {
		p.rows = append(p.rows, c)
	} else {
		p.dropped++
		a.lost.Add(1)
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run publishes until ctx ends, then what is left, within patience, and the end of the run.
func (a *Audit) Run(ctx context.Context, patience time.Duration) error {
	work := pool.New().WithErrors()
	for _, p := range a.parts {
		work.Go(func() error { return a.loop(ctx, p, patience) })
	}
	return work.Wait()
}

func (a *Audit) loop(ctx context.Context, p *auditPart, patience time.Duration) error {
	live, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(patience, giveUp) })()
	for {
		beat := time.NewTimer(a.Heartbeat)
		select {
		case <-p.wake:
			select { // others may come
			case <-time.After(a.Linger):
			case <-ctx.Done():
			}
		case <-beat.C:
		case <-ctx.Done():
		}
		beat.Stop()
		ending := ctx.Err() != nil
		if err := a.flush(live, p, ending); err != nil {
			return fmt.Errorf("audit of commands: %w", err)
		}
		if ending {
			return nil
		}
	}
}

// flush publishes what waits, or a heartbeat, and at the end the end. It tries until ctx ends.
func (a *Audit) flush(ctx context.Context, p *auditPart, ending bool) error {
	p.mu.Lock()
	rows, dropped := p.rows, p.dropped
	p.rows, p.dropped = nil, 0
	p.mu.Unlock()
	if dropped > 0 {
		a.Logger.Error("audit of commands: steps were dropped: the log did not take them in time", "dropped", dropped)
	}
	b := p.next(a, flow.KindHeartbeat)
	if len(rows) > 0 {
		b.Kind = flow.KindRows
		b.Record, b.Bounds = record(rows)
		defer b.Record.Release()
	}
	batches := []flow.Batch{b}
	if ending && a.RunID != "" {
		end := p.next(a, flow.KindEnd)
		end.Run = a.RunID
		batches = append(batches, end)
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 20*time.Millisecond, 2*time.Second
	for {
		_, err := a.Publisher.Publish(ctx, a.To, p.number, batches...)
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
		}
	}
}

// next numbers a batch. Steps arrive when they are seen, so the clock is their arrival.
func (p *auditPart) next(a *Audit, kind flow.Kind) flow.Batch {
	p.position++
	p.clock = max(p.clock, flow.MicrosOf(a.Now()))
	return flow.Batch{Kind: kind, Watermark: p.clock,
		Lineage: flow.Lineage{Source: flow.Source{Producer: a.Producer, Partition: p.number}, Position: flow.Position{Offset: p.position}}}
}

// record makes a record batch of steps.
func record(rows []*Command) (arrow.Record, flow.Bounds) {
	b := array.NewRecordBuilder(memory.DefaultAllocator, flow.CommandSchema)
	defer b.Release()
	instant := func(i int, t time.Time) {
		if t.IsZero() {
			b.Field(i).AppendNull()
			return
		}
		b.Field(i).(*array.TimestampBuilder).Append(arrow.Timestamp(flow.MicrosOf(t)))
	}
	text := func(i int, s string) {
		if s == "" && flow.CommandSchema.Field(i).Nullable {
			b.Field(i).AppendNull()
			return
		}
		b.Field(i).(*array.StringBuilder).Append(s)
	}
	key := func(i int, s string) {
		if err := b.Field(i).(*array.BinaryDictionaryBuilder).AppendString(s); err != nil {
			b.Field(i).AppendNull() // a dictionary of 2^31 entries: it cannot be
		}
	}
	var bounds flow.Bounds
	for i, c := range rows {
		at := flow.MicrosOf(c.Changed)
		if i == 0 {
			bounds = flow.Bounds{First: at, Last: at}
		}
		bounds.First, bounds.Last = min(bounds.First, at), max(bounds.Last, at)
		instant(0, c.Changed)
		key(1, c.Home)
		key(2, c.Device)
		text(3, c.ID)
		key(4, c.Name)
		key(5, c.State.String())
		key(6, c.By)
		key(7, c.Gateway)
		instant(8, c.Deadline)
		text(9, c.Detail)
		arguments := ""
		if c.State == Accepted {
			arguments = string(c.Arguments)
		}
		text(10, arguments)
		instant(11, c.Executed)
	}
	return b.NewRecord(), bounds
}
