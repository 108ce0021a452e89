package flow

import (
	"context"
	"io"

	"github.com/apache/arrow/go/v15/arrow"
)

// Stage is one small section of a pipeline. A stage is a struct; its exported fields, with yaml tags, are its
// settings, and its constructor in the catalogue fills in the defaults.
//
// The runtime owns delivery, order, retries, state on disk, metrics and drain. It may hold several instances of
// a stage, each used by one goroutine at a time. What a stage returns must depend on nothing but what it was
// given (rows, watermarks, settings, its own state): no clock, no randomness, no map order. Replay after a crash relies on it.
type Stage interface {
	// Process turns one record batch into those that follow from it. The input is borrowed: Retain what is
	// kept. The outputs are given away; a stage that hands its input on retains it first.
	//
	// It must accept zero rows and then return one record of zero rows for every output it can have:
	// lint sends them, to learn the schemas of its outputs.
	//
	// An error that Is [ErrBad] sets data aside; a [*BadRows] may come with outputs, the rest of the rows.
	// Any other error is the world's: the batch is given to Process again, so a stage must not have changed
	// its state when it returns one.
	Process(ctx context.Context, in arrow.Record) ([]Output, error)
}

// Output is a record on its way to one of the stage's outputs. pipeline.yaml says which stream an output is.
type Output struct {
	To     string // the output's name, a plural noun: "readings"
	Record arrow.Record
	// Refused says, where it is not nil, why each row of Record is bad: they go to the stage's dead letters, and To means
	// nothing. It is for rows that a stage had kept; those of the record in hand are refused by a [*BadRows].
	Refused []string
}

// ColumnsMax is how many columns an output may have. Each costs memory in every batch, and a table in ClickHouse has them all.
const ColumnsMax = 1000

// Opener is a stage or sink that must make ready (read a file, load a model) before its first batch.
type Opener interface {
	Open(ctx context.Context) error
}

// Closer is a stage or sink that holds something to give back. Close is called once, after the last batch.
type Closer interface {
	Close() error
}

// Stateful is a stage that remembers. The runtime gives it one instance for each input partition, calls Restore
// before the first batch when there is a checkpoint, and Snapshot between batches.
type Stateful interface {
	Stage
	// Snapshot writes all state. The same state gives the same bytes.
	Snapshot(w io.Writer) error
	// Restore replaces all state by what Snapshot wrote. A snapshot of an older layout is either understood or
	// refused with an error, never misread.
	Restore(r io.Reader) error
}

// Timed is a stage that acts when time passes: windows that close, devices that fall silent.
type Timed interface {
	Stage
	// Advance tells it that no row received before the watermark will come any more. It is called after the
	// batch that moved the watermark, and for heartbeats; watermarks only rise. Outputs are given away. What the
	// stage emits for a key must not depend on how often Advance is called in between.
	Advance(ctx context.Context, watermark Micros) ([]Output, error)
}

// EndOfTime is the watermark after the last row of an input that ends for good, such as a replayed file:
// every window closes.
const EndOfTime = Micros(1<<63 - 1)

// Counting is a stage that counts something the runtime cannot see: duplicates dropped, series remembered. The
// numbers appear in the metrics beside the node's own, summed over its instances.
type Counting interface {
	// Counters gives the numbers by name, in snake_case. It is called at any time, by any goroutine.
	Counters() map[string]int64
}

// Checker is a stage or sink that can say more about its input's schema, or about its settings, than a run on zero
// rows shows. lint calls it before anything starts; it must not need the network.
type Checker interface {
	Check(stream string, schema *arrow.Schema) error
}
