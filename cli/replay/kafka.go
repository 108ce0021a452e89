package replay

import (
	"context"
	"errors"
	"fmt"

	"hearthline/flow"
	"hearthline/pipeline/run"
	"hearthline/streams"
)

// Kafka is history on a stream of Kafka, which is only read. Batches come as they are: with their lineages, by which what was
// published twice counts once, and with the time they told.
type Kafka struct {
	Client      *streams.Client
	Stream      string
	First, Next []int64 // of each partition: the first offset that is read, and the one behind the last
	Bound       Bound
	Done        *Progress
}

// Bounds implements run.History.
func (k *Kafka) Bounds(partition int32) (first, next int64) {
	if int(partition) >= len(k.First) {
		return 0, 1
	}
	return k.First[partition], k.Next[partition] + 1
}

// Read implements run.History.
func (k *Kafka) Read(partition int32, offset int64) run.Messages {
	first, behind := k.Bounds(partition)
	m := &kafkaMessages{k: k, partition: partition, last: behind - 1, from: offset}
	m.done = k.Done.part(k.Stream, partition, max(0, min(offset, m.last)-first), m.last-first)
	m.at = max(offset, first)
	if m.at < m.last {
		m.reader = k.Client.NewReader(k.Stream, partition, m.at)
	}
	return m
}

type kafkaMessages struct {
	k         *Kafka
	partition int32
	reader    *streams.Reader // nil: there is nothing to read
	at, last  int64           // the next offset; that of the end
	from      int64
	ended     bool
	done      *part
}

// Next implements run.Messages.
func (m *kafkaMessages) Next(ctx context.Context) (streams.Message, error) {
	if m.ended {
		<-ctx.Done()
		return streams.Message{}, ctx.Err()
	}
	if m.reader == nil || m.at >= m.last {
		return m.end(ctx)
	}
	msg, err := m.reader.Next(ctx)
	var broken *streams.DecodeError
	switch {
	case errors.As(err, &broken):
		m.passed(broken.Offset, 0)
		return msg, err
	case errors.Is(err, streams.ErrOutOfRange):
		return msg, fmt.Errorf("replay %s/%d: Kafka no longer keeps offset %d (kafka.retention): begin another replay: %w", m.k.Stream, m.partition, m.at, err)
	case err != nil:
		return msg, err
	}
	if msg.Offset >= m.last { // what stood at the end has been compacted away
		release(&msg)
		return m.end(ctx)
	}
	m.passed(msg.Offset, msg.Batch.Watermark)
	if rec := msg.Batch.Record; rec != nil {
		msg.Batch.Record = m.k.Bound.within(rec)
		rec.Release()
	}
	return msg, nil
}

func release(m *streams.Message) {
	if m.Batch.Record != nil {
		m.Batch.Record.Release()
	}
}

func (m *kafkaMessages) passed(offset int64, watermark flow.Micros) {
	m.done.add(offset+1-m.at, watermark)
	m.at = offset + 1
}

func (m *kafkaMessages) end(ctx context.Context) (streams.Message, error) {
	m.ended = true
	m.done.finish()
	if m.last < m.from {
		<-ctx.Done()
		return streams.Message{}, ctx.Err()
	}
	return m.k.Bound.end(m.k.Stream, m.partition, m.last), nil
}

// Close implements run.Messages.
func (m *kafkaMessages) Close() error {
	if m.reader == nil {
		return nil
	}
	return m.reader.Close()
}
