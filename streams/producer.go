package streams

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/segmentio/kafka-go"

	"hearthline/flow"
)

// Producer appends batches to streams: acknowledged by all replicas in sync, in order, and once (idempotent, KIP-98)
// as long as it lives. Its methods may be called from many goroutines at once.
type Producer struct {
	c     *Client
	mu    sync.Mutex
	lanes map[place]*lane
}

// NewProducer gives a producer of its own identity.
func (c *Client) NewProducer() *Producer {
	return &Producer{c: c, lanes: map[place]*lane{}}
}

// Publish appends batches, in order and all or none, to a partition of a stream, and returns the offset of the first.
// When it returns they are durable. It tries again, with the same bytes under the same sequence, until ctx ends: then
// it is unknown whether they were appended, and the caller publishes the same batches again, which readers recognize
// by their lineage.
//
// Concurrent calls for one partition queue up in the order of their arrival; there is one request under way for each
// partition. The batches are borrowed. An error that Is [ErrTooLarge] asks for smaller batches, one that Is
// [ErrNoStream] for the stream.
func (p *Producer) Publish(ctx context.Context, stream string, partition int32, batches ...flow.Batch) (int64, error) {
	if len(batches) == 0 {
		return 0, fmt.Errorf("publish to %s/%d: no batches", stream, partition)
	}
	at := place{stream, partition}
	offset, err := p.lane(at).publish(ctx, p.c, func(ctx context.Context) ([]message, error) {
		return p.encode(ctx, batches)
	})
	if err != nil {
		return 0, err
	}
	p.c.count.batches.Add(int64(len(batches)))
	return offset, nil
}

func (p *Producer) encode(ctx context.Context, batches []flow.Batch) ([]message, error) {
	msgs := make([]message, len(batches))
	for i := range batches {
		m, err := p.c.encode(ctx, &batches[i])
		if err != nil {
			for _, done := range msgs[:i] {
				giveBuffer(done.value)
			}
			return nil, err
		}
		msgs[i] = m
	}
	return msgs, nil
}

func (p *Producer) lane(at place) *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.lanes[at]
	if l == nil {
		l = newLane(at)
		p.lanes[at] = l
	}
	return l
}

// lane is a producer's way into one partition. Each lane has an identity of its own, so that one can be fenced off
// without the others noticing.
type lane struct {
	at   place
	turn chan struct{} // goroutines that wait to send on a channel are served in order of arrival

	// Guarded by turn.
	identity
	known    bool  // identity is valid
	doubtful bool  // a request of this identity and sequence may still arrive at the broker
	sequence int32 // of the next message
}

func newLane(at place) *lane { return &lane{at: at, turn: make(chan struct{}, 1)} }

// publish sends what encode gives: its values are pooled buffers, given away.
func (l *lane) publish(ctx context.Context, c *Client, encode func(context.Context) ([]message, error)) (int64, error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	trouble := trouble{c: c, what: fmt.Sprintf("publish to %s/%d", l.at.stream, l.at.partition), stream: l.at.stream}
	msgs, err := encode(ctx)
	for err != nil { // a new schema is published first, which may take more than one attempt
		if err := trouble.met(ctx, err); err != nil {
			return 0, err
		}
		msgs, err = encode(ctx)
	}
	trouble.over()
	size := 0
	for i := range msgs {
		size += len(msgs[i].value) + len(msgs[i].key) + 512
	}
	request := beginProduce(takeBuffer(size+256), c.cfg.ClientID, l.at.stream, l.at.partition, int32(c.cfg.RequestTimeout.Milliseconds()))
	batchAt := len(request)
	request = appendBatch(request, msgs)
	for i := range msgs {
		giveBuffer(msgs[i].value)
	}
	if n := len(request) - batchAt; n > c.cfg.MessageBytesMax {
		giveBuffer(request)
		return 0, fmt.Errorf("%d batches take %d bytes, message_bytes_max is %d: %w", len(msgs), n, c.cfg.MessageBytesMax, ErrTooLarge)
	}
	endProduce(request, batchAt)
	return l.send(ctx, c, &trouble, request, batchAt, int32(len(msgs)))
}

// send repeats one request until it is answered for good.
func (l *lane) send(ctx context.Context, c *Client, trouble *trouble, request []byte, batchAt int, messages int32) (int64, error) {
	if l.known && (l.doubtful || l.sequence > math.MaxInt32-messages) {
		l.raise()
	}
	stamped := false
	lost := false // some attempt had no answer: the connection may still hold the request's bytes
	for {
		if err := l.identify(ctx, c); err != nil {
			if err := trouble.met(ctx, err); err != nil {
				return 0, err
			}
			continue
		}
		if !stamped {
			if lost {
				request = slices.Clone(request)
				lost = false
			}
			stamp(request[batchAt:], c.now().UnixMilli(), l.id, l.epoch, l.sequence)
			stamped = true
		}
		c.count.bytesOut.Add(int64(len(request) - batchAt))
		r, err := c.produce(ctx, l.at.stream, l.at.partition, request)
		switch {
		case err != nil:
			// Codes come from routing here, before anything was sent.
			if _, ok := asCode(err); !ok {
				lost, l.doubtful = true, true
			}
		case r.code == 0, r.code == kafka.DuplicateSequenceNumber:
			trouble.over()
			l.sequence += messages
			l.doubtful = false
			if !lost {
				giveBuffer(request)
			}
			return r.offset, nil
		case r.code == kafka.OutOfOrderSequenceNumber, r.code == kafka.UnknownProducerId, r.code == kafka.InvalidProducerEpoch,
			r.code == kafka.InvalidProducerIDMapping:
			// The broker lost what it knew of us. If it had the batch it is there twice now: lineage tells.
			c.count.newIDs.Add(1)
			l.known, stamped = false, false
			err = fmt.Errorf("the broker does not know this producer any more: %v %s", r.code, r.reason)
		default:
			switch r.code {
			case kafka.RequestTimedOut, kafka.NotEnoughReplicasAfterAppend:
				l.doubtful = true
			case kafka.Unknown, kafka.KafkaStorageError:
				// Something broke inside the broker (a full disk, say), perhaps after it had noted the sequence and
				// before it had the batch: sent again under that sequence it would be answered as a repetition, and
				// be lost. Under a new epoch it is stored; if it had been after all, lineage tells.
				l.raise()
				stamped = false
			case kafka.InvalidTimestamp:
				stamped = false // one of the two clocks may have been set since
			}
			err = answered(r)
		}
		if err := trouble.met(ctx, err); err != nil {
			return 0, err
		}
	}
}

func answered(r produced) error {
	switch r.code {
	case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge:
		return fmt.Errorf("%w: the broker's limit (max.message.bytes of the stream) is lower than message_bytes_max: %w", ErrTooLarge, r.code)
	}
	if r.reason != "" {
		return fmt.Errorf("the broker refused: %s: %w", r.reason, r.code)
	}
	return fmt.Errorf("the broker refused: %w", r.code)
}

// identify gives the lane an identity if it has none that will do.
func (l *lane) identify(ctx context.Context, c *Client) error {
	if l.known {
		return nil
	}
	id, err := c.initProducerID(ctx)
	if err != nil {
		return fmt.Errorf("take a producer id: %w", err)
	}
	l.identity, l.sequence, l.known, l.doubtful = id, 0, true, false
	return nil
}

// raise begins a new epoch of the lane's identity (KIP-360). A request that was given up may still arrive: the broker
// refuses it by its epoch, where it would otherwise take the next request for its repetition, and lose that.
func (l *lane) raise() {
	if l.epoch == math.MaxInt16 {
		l.known = false
		return
	}
	l.epoch++
	l.sequence, l.doubtful = 0, false
}
