package run

import (
	"context"
	"errors"

	"hearthline/streams"
)

// source reads one partition of one input stream in order.
type source interface {
	Next(ctx context.Context) (streams.Message, error)
	Close() error
}

// merge joins the inputs of a task into one order that depends on data alone: the batch with the lowest
// watermark comes first, the name of the stream decides between equals. It therefore waits until every input has
// a batch; heartbeats see to it that none waits for long. An input that has ended is not waited for.
type merge struct {
	inputs []*mergeInput // sorted by stream
}

type mergeInput struct {
	stream string
	source source
	head   *streams.Message
	ended  bool
}

// next gives the message that comes next. A *streams.DecodeError concerns one message; the merge goes on after it.
func (m *merge) next(ctx context.Context) (streams.Message, error) {
	var first *mergeInput
	for _, in := range m.inputs {
		if in.ended {
			continue
		}
		if in.head == nil {
			msg, err := in.source.Next(ctx)
			if err != nil {
				return streams.Message{}, err
			}
			in.head = &msg
		}
		if first == nil || in.head.Batch.Watermark < first.head.Batch.Watermark {
			first = in
		}
	}
	if first == nil {
		return streams.Message{}, errAllEnded
	}
	msg := *first.head
	first.head = nil
	return msg, nil
}

var errAllEnded = errors.New("all inputs have ended")

// end stops waiting for a stream.
func (m *merge) end(stream string) {
	for _, in := range m.inputs {
		if in.stream == stream {
			in.ended = true
		}
	}
}

func (m *merge) close() error {
	var errs []error
	for _, in := range m.inputs {
		if in.head != nil && in.head.Batch.Record != nil {
			in.head.Batch.Record.Release()
		}
		in.head = nil
		errs = append(errs, in.source.Close())
	}
	return errors.Join(errs...)
}
