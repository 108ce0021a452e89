package flow

import (
	"context"

	"github.com/apache/arrow/go/v15/arrow"
)

// What a stage or sink may have beside its one method is asked for here, in one place. Of one that wraps another
// (windows around an author's stage) these are what it hands on.

// Open makes a stage or sink ready, if there is something to do.
func Open(ctx context.Context, stageOrSink any) error {
	if o, ok := stageOrSink.(Opener); ok {
		return o.Open(ctx)
	}
	return nil
}

// Close gives back what a stage or sink holds, if it holds anything.
func Close(stageOrSink any) error {
	if c, ok := stageOrSink.(Closer); ok {
		return c.Close()
	}
	return nil
}

// Check asks a stage or sink what it has to say about a stream's schema: nil from one that has nothing to say.
func Check(stageOrSink any, stream string, schema *arrow.Schema) error {
	if c, ok := stageOrSink.(Checker); ok {
		return c.Check(stream, schema)
	}
	return nil
}

// Counters gives what a stage or sink counts, as a map that the caller may change.
func Counters(stageOrSink any) map[string]int64 {
	if c, ok := stageOrSink.(Counting); ok {
		return c.Counters()
	}
	return map[string]int64{}
}
