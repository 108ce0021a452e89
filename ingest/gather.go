package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/cenkalti/backoff/v5"

	"hearthline/flow"
	"hearthline/ingest/payload"
)

// Publisher is the road into the log.
type Publisher interface {
	// Publish appends batches to one partition of a stream, in order, and returns when they are durable (acks=all).
	// It borrows the records. When it fails, the same batches are given again.
	Publish(ctx context.Context, stream string, partition int32, batches ...flow.Batch) (int64, error)
}

// A waiter is told when what it handed in is durable.
type waiter interface {
	// durable marks the message with this token. It must not block. It says whether settle is to be called once
	// the batch's other messages are marked too.
	durable(token uint64) (settle bool)
	settle()
}

type waiting struct {
	to    waiter
	token uint64
	since flow.Micros
}

// sealed is a batch that takes no more rows.
type sealed struct {
	batch   flow.Batch
	waiters []waiting
	traces  []string // of its messages
	rows    int
	oldest  flow.Micros // arrival of its first row
}

// gatherer makes batches of one partition's rows and publishes them. Rows are gathered while the batch before them is
// on its way, so batches grow as the log slows down, up to limits: at most one batch being gathered, queueMax sealed
// ones, and as many being published. Then offer takes nothing until there is room.
type gatherer struct {
	// Settings, not changed after the start.
	partition  int32
	stream     string
	source     flow.Source
	publisher  Publisher
	tooLarge   func(error) bool // says of an error of publisher that smaller batches would pass; may be nil
	linger     time.Duration
	rowsMax    int
	bytesMax   int
	queueMax   int
	heartbeat  time.Duration
	attemptMax time.Duration // of one Publish call
	run        string
	clock      *clock
	count      *counters
	logger     *slog.Logger
	tracer     flow.Tracer // nil: nobody traces

	failing atomic.Bool // the last attempt failed

	mu       sync.Mutex
	builder  *flow.EventBuilder
	bytes    int
	waiters  []waiting
	traces   []string
	firstAt  time.Time   // arrival of the oldest row in builder
	oldest   flow.Micros // the same, by the arrival clock
	queue    []sealed
	position int64
	room     chan struct{} // Closed when there is room again; nil unless somebody waits
	closing  bool
	wake     chan struct{} // capacity 1: something is to be done
}

// offer hands in the rows of one message, in order, all or none of them. It returns a channel, and takes nothing,
// when there is no room: it is closed when it is worth trying again. Refused rows are passed over. Rows may borrow
// memory: nothing of it is kept. bytes is the size of their payload.
//
// The caller has just asked the clock. The rows' arrival is stamped under the same lock as batches are sealed, which is what makes the
// watermark true: a watermark was said by the clock before, so what the clock said last is no earlier.
func (g *gatherer) offer(rows []payload.Row, bytes int, to waiter, token uint64, traces ...string) (full <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing || g.isFull() && len(g.queue) >= g.queueMax {
		if g.room == nil {
			g.room = make(chan struct{})
		}
		return g.room
	}
	if g.isFull() {
		g.seal()
	}
	now, before := g.clock.latest(), g.builder.Len()
	if before == 0 {
		g.firstAt, g.oldest = time.Now(), now
	}
	for i := range rows {
		r := &rows[i]
		if r.Refused != nil {
			continue
		}
		e := r.Event
		e.Received = now
		switch r.Timing {
		case payload.TimeAbsent:
			e.Time = now
		case payload.TimeRelative:
			e.Time += now
		}
		g.builder.Append(&e)
	}
	taken := g.builder.Len() - before
	g.bytes += bytes
	if len(traces) > 0 && len(g.traces) < flow.TracesMax {
		g.traces = append(g.traces, traces...)
	}
	if to != nil {
		g.waiters = append(g.waiters, waiting{to: to, token: token, since: now})
	}
	g.count.rowsAccepted.Add(uint64(taken))
	g.count.waiting.Add(int64(taken))
	g.count.bytes.Add(uint64(bytes))
	if before == 0 || g.isFull() {
		g.signal()
	}
	return nil
}

// isFull says that the batch being gathered takes no further message. Messages are not torn, so a batch may exceed
// the limits by one message.
func (g *gatherer) isFull() bool { return g.builder.Len() >= g.rowsMax || g.bytes >= g.bytesMax }

func (g *gatherer) signal() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// seal closes the batch being gathered and queues it. Callers hold mu.
func (g *gatherer) seal() {
	rec, bounds := g.builder.Record()
	b := g.next(flow.KindRows)
	b.Record, b.Bounds = rec, bounds
	g.queue = append(g.queue, sealed{batch: b, waiters: g.waiters, traces: g.traces, rows: int(rec.NumRows()), oldest: g.oldest})
	g.waiters, g.traces, g.bytes = nil, nil, 0
}

// next numbers a batch and gives it the watermark. Callers hold mu: rows that are stamped later are stamped no
// earlier than this.
func (g *gatherer) next(kind flow.Kind) flow.Batch {
	g.position++
	return flow.Batch{Kind: kind, Lineage: flow.Lineage{Source: g.source, Position: flow.Position{Offset: g.position}}, Watermark: g.clock.now()}
}

// take gives what is due: sealed batches, with the one being gathered when it has lingered enough, or a heartbeat.
// Otherwise it says how long to wait.
func (g *gatherer) take(idleSince time.Time) (due []sealed, wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.builder.Len(); n > 0 && (g.closing || g.isFull() || time.Since(g.firstAt) >= g.linger) {
		g.seal()
	}
	if len(g.queue) > 0 {
		due, g.queue = g.queue, nil
		if g.room != nil {
			close(g.room)
			g.room = nil
		}
		return due, 0
	}
	idle := time.Since(idleSince)
	if g.builder.Len() > 0 {
		return nil, max(0, g.linger-time.Since(g.firstAt))
	}
	if idle < g.heartbeat || g.closing {
		return nil, g.heartbeat - idle
	}
	return []sealed{{batch: g.next(flow.KindHeartbeat)}}, 0
}

// loop publishes until close is called and everything gathered is durable, or until ctx ends. It then ends the run.
func (g *gatherer) loop(ctx context.Context) error {
	defer g.abandon()
	// Partitions begin their heartbeats at different times: a hundred at once every second would be a burst.
	idleSince := time.Now().Add(-time.Duration(g.partition%16) * g.heartbeat / 16)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due, wait := g.take(idleSince)
		switch {
		case len(due) > 0:
			if err := g.publish(ctx, due); err != nil {
				return err
			}
			idleSince = time.Now()
			continue
		case g.isClosing():
			if g.run == "" {
				return nil
			}
			g.mu.Lock()
			end := g.next(flow.KindEnd)
			g.mu.Unlock()
			end.Run = g.run
			return g.publish(ctx, []sealed{{batch: end}})
		}
		timer.Reset(wait)
		select {
		case <-g.wake:
		case <-timer.C:
		case <-ctx.Done():
			return g.unpublished(ctx)
		}
	}
}

// publish makes batches durable and acknowledges them. After a failure they go one by one: what is acknowledged no
// longer waits for what is not.
func (g *gatherer) publish(ctx context.Context, due []sealed) error {
	defer g.release(due)
	if len(due) > 1 {
		if err := g.attempt(ctx, due); err == nil {
			g.succeeded(due)
			return nil
		} else {
			g.failed(err)
		}
	}
	for i := range due {
		if err := g.persist(ctx, due[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// persist retries one batch until it is durable or ctx ends.
func (g *gatherer) persist(ctx context.Context, one []sealed) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 20*time.Millisecond, 2*time.Second
	for {
		err := g.attempt(ctx, one)
		if err == nil {
			g.succeeded(one)
			return nil
		}
		g.failed(err)
		if g.tooLarge != nil && g.tooLarge(err) && one[0].rows > 1 {
			return g.halves(ctx, one[0])
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return fmt.Errorf("publish to %s/%d: %w (last error: %v)", g.stream, g.partition, context.Cause(ctx), err)
		}
	}
}

// halves publishes a batch that the log refused for its size, which it has therefore not appended, in two. They keep
// the batch's offset; K is the first of its rows that a part holds, so positions rise. The second half carries the
// waiters: what is durable last acknowledges all. The first half's
// watermark is the arrival of the batch's oldest row, since rows of the second half may be as old.
func (g *gatherer) halves(ctx context.Context, s sealed) error {
	rows, first := int64(s.rows), s.batch.Lineage.K
	for i, cut := range [][2]int64{{0, rows / 2}, {rows / 2, rows}} {
		part := s
		part.batch.Record, part.rows = s.batch.Record.NewSlice(cut[0], cut[1]), int(cut[1]-cut[0])
		part.batch.Lineage.K = first + int32(cut[0])
		part.batch.Bounds = boundsOf(part.batch.Record)
		if i == 0 {
			part.waiters = nil
			part.batch.Watermark = s.oldest
		}
		err := g.persist(ctx, []sealed{part})
		part.batch.Record.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

// boundsOf are the event times' bounds of a record that flow.EventBuilder made.
func boundsOf(rec arrow.Record) flow.Bounds {
	times, err := flow.Instants(rec, flow.ColTime)
	if err != nil || len(times) == 0 {
		return flow.Bounds{}
	}
	return flow.Bounds{First: flow.Micros(slices.Min(times)), Last: flow.Micros(slices.Max(times))}
}

func (g *gatherer) failed(err error) {
	g.count.publishErrors.Add(1)
	if !g.failing.Swap(true) {
		g.logger.Warn("gateway: the log does not take batches; publishers wait until it does", "stream", g.stream, "partition", g.partition, "err", err)
	}
}

func (g *gatherer) succeeded(done []sealed) {
	if g.failing.Swap(false) {
		g.logger.Info("gateway: the log takes batches again", "stream", g.stream, "partition", g.partition)
	}
	g.acknowledge(done)
}

func (g *gatherer) attempt(ctx context.Context, due []sealed) error {
	batches := make([]flow.Batch, len(due))
	for i := range due {
		batches[i] = due[i].batch
	}
	ctx, cancel := context.WithTimeout(ctx, g.attemptMax)
	defer cancel()
	start := time.Now()
	end := g.trace(due, batches)
	_, err := g.publisher.Publish(ctx, g.stream, g.partition, batches...)
	end(err)
	if err != nil {
		return err
	}
	g.count.publish.Observe(time.Since(start))
	g.count.batches.Add(uint64(len(batches)))
	return nil
}

// trace begins a span for each batch of rows: from its oldest row's arrival until it is durable.
func (g *gatherer) trace(due []sealed, batches []flow.Batch) (end func(error)) {
	if g.tracer == nil {
		return func(error) {}
	}
	var ends []func(error)
	for i := range due {
		if due[i].rows == 0 {
			continue
		}
		trace, end := g.tracer.Span("gateway.publish", due[i].oldest.Time(), due[i].traces,
			slog.String("messaging.destination.name", g.stream), slog.Int("messaging.destination.partition.id", int(g.partition)), slog.Int("hearthline.rows", due[i].rows))
		batches[i].Trace = trace
		ends = append(ends, end)
	}
	return func(err error) {
		for _, end := range ends {
			end(err)
		}
	}
}

func (g *gatherer) release(due []sealed) {
	for i := range due {
		if due[i].batch.Record != nil {
			due[i].batch.Record.Release()
			due[i].batch.Record = nil
		}
	}
}

// acknowledge marks all messages first, so that a client's acknowledgements leave in one write.
func (g *gatherer) acknowledge(due []sealed) {
	now := g.clock.now()
	var settle []waiter
	for _, s := range due {
		g.count.rowsDurable.Add(uint64(s.rows))
		g.count.waiting.Add(-int64(s.rows))
		for _, w := range s.waiters {
			g.count.acknowledge.Observe(now.Sub(w.since))
			if w.to.durable(w.token) {
				settle = append(settle, w.to)
			}
		}
	}
	for _, w := range settle {
		w.settle()
	}
}

// close makes loop flush and end. Nothing is taken any more.
func (g *gatherer) close() {
	g.mu.Lock()
	g.closing = true
	g.mu.Unlock()
	g.signal()
}

func (g *gatherer) isClosing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closing
}

// backlog is the number of rows not yet handed to the publisher.
func (g *gatherer) backlog() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	if g.builder != nil {
		n = g.builder.Len()
	}
	for _, s := range g.queue {
		n += s.rows
	}
	return n
}

func (g *gatherer) unpublished(ctx context.Context) error {
	if n := g.backlog(); n > 0 {
		return fmt.Errorf("publish to %s/%d: %d rows not sent: %w", g.stream, g.partition, n, context.Cause(ctx))
	}
	return nil
}

// abandon frees what could not be published. Its senders were told nothing, and send it again.
func (g *gatherer) abandon() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closing = true
	g.release(g.queue)
	g.queue, g.waiters = nil, nil
	g.builder = nil
}
