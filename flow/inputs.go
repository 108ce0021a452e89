package flow

import (
	"context"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// Inputs is a stage that tells its inputs apart: pipeline.yaml gives each a stream, `from: {rows: readings, table: rooms}`.
// Batches of all of them come in one order, which depends on data alone (see docs/decisions/0002). Process is not called.
//
// Before anything else, and again after Restore, it is given zero rows of each input, in the order of InputNames: so
// it knows all of their schemas when the first row comes. Zero rows of the last of them give zero rows of every output.
type Inputs interface {
	Stage
	// InputNames names them, plural nouns. They are the same for every instance.
	InputNames() []string
	// ProcessInput is Process for a record of one of the inputs.
	ProcessInput(ctx context.Context, input string, in arrow.Record) ([]Output, error)
}

// Give hands a record (borrowed) to a stage: to the input of that name, or to Process where the stage does not tell inputs apart.
func Give(ctx context.Context, s Stage, input string, in arrow.Record) ([]Output, error) {
	if several, ok := s.(Inputs); ok {
		return several.ProcessInput(ctx, input, in)
	}
	return s.Process(ctx, in)
}

// Prime gives a stage that tells its inputs apart zero rows of each, and returns what the last of them gave. schema says
// what an input holds; nil is an input that is not known, and is left out.
func Prime(ctx context.Context, s Inputs, schema func(input string) *arrow.Schema) (last []Output, err error) {
	for _, input := range s.InputNames() {
		of := schema(input)
		if of == nil {
			continue
		}
		none := withoutRows(of)
		made, err := s.ProcessInput(ctx, input, none)
		none.Release()
		ReleaseOutputs(last)
		if last = made; err != nil {
			ReleaseOutputs(last)
			return nil, err
		}
	}
	return last, nil
}

// ReleaseOutputs gives back the records of outputs that nobody takes.
func ReleaseOutputs(outputs []Output) {
	for _, o := range outputs {
		if o.Record != nil {
			o.Record.Release()
		}
	}
}

func withoutRows(of *arrow.Schema) arrow.Record {
	b := array.NewRecordBuilder(memory.DefaultAllocator, of)
	defer b.Release()
	return b.NewRecord()
}
