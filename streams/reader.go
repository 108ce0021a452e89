package streams

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/sourcegraph/conc"

	"hearthline/flow"
)

// Message is one batch as it stands on a stream. The receiver releases Batch.Record.
type Message struct {
	Stream    string
	Partition int32
	Offset    int64
	Bytes     int // on the wire
	Batch     flow.Batch
}

// Reader reads one partition forward. It fetches ahead of its caller: at most three fetches are held, one being
// taken apart, one waiting, one under way. Next is called by one goroutine at a time.
type Reader struct {
	c      *Client
	at     place
	ahead  chan chunk // closed by the fetching goroutine when it ends; failed is set by then
	failed error
	cancel context.CancelFunc
	work   conc.WaitGroup
	closed atomic.Bool
	end    atomic.Int64
	heard  atomic.Int64 // Unix ns

	now chunk // being taken apart
	i   int
}

// NewReader reads partition of stream from offset on. Close it when done.
func (c *Client) NewReader(stream string, partition int32, offset int64) *Reader {
	ctx, cancel := context.WithCancel(context.Background())
	r := &Reader{c: c, at: place{stream, partition}, ahead: make(chan chunk, 1), cancel: cancel}
	f := &fetcher{c: c, at: r.at, offset: offset}
	r.work.Go(func() {
		defer close(r.ahead)
		r.failed = r.fetchAhead(ctx, f)
	})
	return r
}

// fetchAhead fetches until ctx ends or something is wrong that time does not mend.
func (r *Reader) fetchAhead(ctx context.Context, f *fetcher) error {
	trouble := trouble{c: r.c, what: fmt.Sprintf("read %s/%d", r.at.stream, r.at.partition), stream: r.at.stream}
	for {
		asked := time.Now()
		got, err := f.fetch(ctx, r.c.cfg.FetchWait)
		if err != nil {
			if err := trouble.met(ctx, err); err != nil {
				return err
			}
			continue
		}
		trouble.over()
		r.end.Store(got.end)
		r.heard.Store(asked.UnixNano())
		if len(got.items) == 0 {
			got.release()
			continue
		}
		select {
		case r.ahead <- got:
		case <-ctx.Done():
			got.release()
			return ctx.Err()
		}
	}
}

// Next gives the next message. It blocks until there is one, ctx ends, or reading cannot go on; a broker that is away is waited
// for, also where it is asked for the columns of a message.
//
// A [*DecodeError] is one message that cannot be understood: the next call gives the one after it. An error that Is
// [ErrOutOfRange], [ErrNoStream] or [ErrClosed] comes again on every call. After any other error the same message is
// tried again at the next call.
func (r *Reader) Next(ctx context.Context) (Message, error) {
	it, err := r.peek(ctx)
	if err != nil {
		return Message{}, err
	}
	batch, err := r.decodeWaiting(ctx, it)
	var last final
	if err != nil && !errors.As(err, &last) {
		return Message{}, err
	}
	m := Message{Stream: r.at.stream, Partition: r.at.partition, Offset: it.offset, Bytes: it.bytes, Batch: batch}
	r.i++
	if err != nil {
		r.c.count.bad.Add(1)
		return Message{}, &DecodeError{Stream: m.Stream, Partition: m.Partition, Offset: m.Offset, Err: last.error}
	}
	r.c.count.messages.Add(1)
	return m, nil
}

// peek gives the next item without passing it.
func (r *Reader) peek(ctx context.Context) (*item, error) {
	for r.i >= len(r.now.items) {
		r.now.release()
		r.i = 0
		if r.closed.Load() {
			return nil, r.closedError()
		}
		select {
		case got, ok := <-r.ahead:
			if !ok {
				return nil, r.closedError()
			}
			r.now = got
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &r.now.items[r.i], nil
}

func (r *Reader) closedError() error {
	if r.closed.Load() {
		return fmt.Errorf("read %s/%d: %w", r.at.stream, r.at.partition, ErrClosed)
	}
	return r.failed
}

// decodeWaiting decodes an item. A broker that cannot be asked for its columns now is asked again until ctx ends.
func (r *Reader) decodeWaiting(ctx context.Context, it *item) (flow.Batch, error) {
	batch, err := r.decode(ctx, it)
	var last final
	if err == nil || errors.As(err, &last) {
		return batch, err
	}
	what := fmt.Sprintf("read %s/%d at offset %d", r.at.stream, r.at.partition, it.offset)
	if errors.Is(err, ErrNewer) {
		return batch, fmt.Errorf("%s: %w", what, err)
	}
	trouble := trouble{c: r.c, what: what, stream: SchemaStream}
	for err != nil && !errors.As(err, &last) {
		if r.closed.Load() {
			return batch, r.closedError()
		}
		if err := trouble.met(ctx, err); err != nil {
			return batch, err
		}
		batch, err = r.decode(ctx, it)
	}
	trouble.over()
	return batch, err
}

// decode errors that are final are the message's own fault.
func (r *Reader) decode(ctx context.Context, it *item) (flow.Batch, error) {
	if it.err != nil {
		return flow.Batch{}, final{it.err}
	}
	return r.c.decode(ctx, &it.message)
}

// End is the offset behind the last message that may be read, as the last fetch saw it; 0 before the first.
func (r *Reader) End() int64 { return r.end.Load() }

// Heard is when the last fetch that the broker answered was asked: what stood on the partition then is before [Reader.End]. It is
// zero before the first.
func (r *Reader) Heard() time.Time {
	if at := r.heard.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// Close ends reading and waits for the fetch under way to be given up. It may be called while Next blocks, which then
// gives ErrClosed: at once, or when what was asked about a message's columns has been given up (retryMax).
func (r *Reader) Close() error {
	r.closed.Store(true)
	r.cancel()
	r.work.Wait()
	return nil
}

// trouble paces attempts that fail, and says so in the log when it lasts.
type trouble struct {
	c      *Client
	what   string
	stream string // that it is about; "" if about none
	wait   interface{ NextBackOff() time.Duration }
	since  time.Time
	logged time.Time
	gone   time.Time // since when the stream is said not to exist
}

// Trouble shorter than this is a leader that moves, or a broker that restarts, and is not worth a line.
const (
	troubleQuiet = 3 * time.Second
	troubleEvery = 30 * time.Second
	// A stream that was just made is not known everywhere at once.
	missingMax = 2 * time.Second
)

// met waits after a failed attempt; it returns an error when there should be no other.
func (t *trouble) met(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", t.what, ctx.Err())
	}
	if !mends(ctx, err) {
		return fmt.Errorf("%s: %w", t.what, hinted(err))
	}
	now := time.Now()
	if t.wait == nil {
		t.wait, t.since, t.logged = newBackOff(), now, now.Add(troubleQuiet-troubleEvery)
	}
	if code, _ := asCode(err); code != kafka.UnknownTopicOrPartition {
		t.gone = time.Time{}
	} else if t.gone.IsZero() {
		t.gone = now
	} else if now.Sub(t.gone) > missingMax && t.stream != "" {
		if err := t.c.missing(ctx, t.stream); err != nil {
			return fmt.Errorf("%s: %w", t.what, err)
		}
		t.gone = time.Time{}
	}
	if now.Sub(t.logged) >= troubleEvery {
		t.logged = now
		t.c.log.Warn("streams: still trying", "what", t.what, "for", now.Sub(t.since).Round(time.Second), "error", hinted(err))
	}
	t.c.count.retries.Add(1)
	t.c.refresh(err)
	return pause(ctx, t.wait.NextBackOff())
}

// missing asks a broker whether a stream does not exist, or is not for this client's user to see, and gives that as an
// error. What requests are routed by is a copy, which may lack streams for a while after a broker has come back.
func (c *Client) missing(ctx context.Context, stream string) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	known, err := c.metadata(ctx, []string{stream})
	switch code := known[stream].code; {
	case err != nil:
		return nil
	case code == kafka.UnknownTopicOrPartition:
		return noStream(stream)
	case denied(code):
		return hinted(fmt.Errorf("stream %s: %w", stream, code))
	}
	return nil
}

func (t *trouble) over() {
	if t.wait != nil && time.Since(t.since) > troubleQuiet {
		t.c.log.Info("streams: going on", "what", t.what, "after", time.Since(t.since).Round(time.Second))
	}
	t.wait, t.gone = nil, time.Time{}
}
