package flow

import (
	"context"
	"fmt"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
)

// Sink keeps what flows: in a data base, in files, at somebody's door. A sink is a struct; its exported fields,
// with yaml tags, are its settings.
//
// The runtime gathers batches of one partition into ranges, records durably which range it is about to write,
// calls Write, then records that it is written. After a crash it cuts the same range again, from the same offsets,
// and calls Write again, perhaps in another process. A sink therefore counts every row once if writing a range
// twice equals writing it once; sinks/sinktest holds every sink to that.
type Sink interface {
	// Write stores the rows of recs (borrowed; all of one schema, in stream order; at least one row) as range r.
	// When it returns nil they are durable. It is called by several goroutines at once, each for a partition of
	// its own.
	//
	// A [*BadRows] names rows that can never be stored, counted through recs from 0: they go to dead letters, and the
	// others are durable. Another error that Is [ErrBad] says that of all rows, none of which is stored. Any other error
	// is the world's: the same range is written again until it succeeds. Which rows are bad depends on the rows, and on
	// what somebody has made of the place where they are kept; a second time it must be the same.
	Write(ctx context.Context, r Range, recs []arrow.Record) error
}

// Range names a stretch of one partition of a stream, for ever: a stream that is deleted and made anew has
// another StreamID.
type Range struct {
	Stream      string
	StreamID    string // of this incarnation of the stream, file name safe
	Partition   int32
	First, Last int64 // offsets, both included
}

// String is stable, unique and file name safe: stream-id-partition-first-last.
func (r Range) String() string {
	return fmt.Sprintf("%s-%s-%d-%d-%d", r.Stream, r.StreamID, r.Partition, r.First, r.Last)
}

// Flushing is a sink with a wish about the size of its ranges. pipeline.yaml may overrule it.
type Flushing interface {
	// Flush says that a range is cut when it holds rows rows, or when its first row has waited for wait.
	Flush() (rows int64, wait time.Duration)
}
