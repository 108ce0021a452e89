// Package sinktest is the contract suite of [flow.Sink]. It writes every range twice, by the same sink and by a fresh
// one, cut into other records, breaks off in between at every step it can reach, and then counts: each row must be
// there once, as it was. A sink that passes counts every row once whatever happens to its process.
package sinktest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// Place is an empty storage and how to reach it. Each check has one of its own.
type Place struct {
	// Stream and Schema of the rows to write. The schema has a column flow.ColTime; times fall into the hours around
	// 2026-11-22T18:00Z.
	Stream string
	Schema *arrow.Schema

	// Sink makes a sink over the storage as a new process would: nothing of earlier sinks but the storage is known to it.
	// The suite opens it (flow.Opener) and closes it (flow.Closer), except where it plays a crash.
	Sink func() flow.Sink

	// Rows reads back all rows of Stream, in any order. Values are of the types that Values gives; a null is nil or
	// left out.
	Rows func(ctx context.Context) ([]Row, error)

	// Stored says what the sink shall hold for a row that was written, where that is not the row itself (a column it
	// leaves out, a null it keeps as ""). Nil: the row itself. It may change row.
	Stored func(row Row) Row

	// NeedsTime says that a row without flow.ColTime cannot be stored. Such rows are to be refused by number, and the others
	// of their range stored.
	NeedsTime bool

	// Break makes the storage fail at its nth operation from now, counted from 0, and ever after; Break(-1) mends it.
	// Nil where the storage cannot be made to fail.
	Break func(n int)
}

// Row is a row by column name. Numbers are int64, uint64 or float64, timestamps are time.Time in UTC, maps are
// map[string]string, lists are []any.
type Row map[string]any

// Limits of the suite: how many steps of one write it breaks at, and how long one check may take.
const (
	breaksMax    = 60
	checkWaitMax = 2 * time.Minute
)

// Run checks a sink.
func Run(t *testing.T, create func(t *testing.T) Place) {
	for _, c := range Checks {
		t.Run(c.Name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			mem := memory.NewCheckedAllocator(memory.NewGoAllocator())
			p := create(t)
			ctx, cancel := context.WithTimeout(t.Context(), checkWaitMax)
			defer cancel()
			if err := c.Check(ctx, p, mem, seed); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			mem.AssertSize(t, 0)
		})
	}
}

// Check is one part of the contract. It says what is wrong as an error, so that the suite itself can be tested.
type Check struct {
	Name  string
	Check func(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error
}

// Checks are the parts of the contract.
var Checks = []Check{
	{"each row once", onceEach},
	{"a range again by the same sink", againSame},
	{"a range again by a fresh sink", againFresh},
	{"a range again, cut into other records", againOtherCuts},
	{"an old range again after newer ones", againLate},
	{"broken off by its context", brokenByContext},
	{"broken off in the midst of things", brokenByTime},
	{"broken off by its storage", brokenByStorage},
	{"partitions at once", partitionsAtOnce},
	{"two incarnations with the same offsets", incarnations},
	{"a large range", largeRange},
	{"rows that can never be stored", someBad},
}

// bench is one check at work.
type bench struct {
	Place
	ctx  context.Context
	gen  *generator
	want []Row
	sink flow.Sink
}

func newBench(ctx context.Context, p Place, mem memory.Allocator, seed uint64) (*bench, error) {
	b := &bench{Place: p, ctx: ctx, gen: &generator{mem: mem, rnd: rand.New(rand.NewPCG(seed, 1)), schema: p.Schema}}
	return b, b.fresh()
}

// fresh goes on with a new sink, as after a crash: the old one is not closed.
func (b *bench) fresh() error {
	b.sink = b.Sink()
	if err := flow.Open(b.ctx, b.sink); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	return nil
}

func (b *bench) close() error {
	if err := flow.Close(b.sink); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

// span is a range with its rows, which can be cut anew.
type span struct {
	flow.Range
	whole arrow.Record
}

// span makes a range of n rows and expects them, once.
func (b *bench) span(id string, partition int32, first int64, n int) span {
	s := span{
		Range: flow.Range{Stream: b.Stream, StreamID: id, Partition: partition, First: first, Last: first + 9},
		whole: b.gen.record(n, partition),
	}
	for _, row := range Values(s.whole) {
		if b.Stored != nil {
			row = b.Stored(row)
		}
		b.want = append(b.want, row)
	}
	return s
}

func (b *bench) write(s span) error { return writeTo(b.ctx, b.sink, s, b.gen.cut(s.whole)) }

func writeTo(ctx context.Context, sink flow.Sink, s span, recs []arrow.Record) error {
	defer releaseAll(recs)
	if err := sink.Write(ctx, s.Range, recs); err != nil {
		return fmt.Errorf("write %s: %w", s.Range, err)
	}
	return nil
}

// same reads back and compares, and closes the sink.
func (b *bench) same() error {
	if err := b.close(); err != nil {
		return err
	}
	got, err := b.Rows(b.ctx)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	return compare(got, b.want)
}

// first runs steps until one fails.
func first(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func onceEach(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	b, err := newBench(ctx, p, mem, seed)
	if err != nil {
		return err
	}
	for i, n := range []int{1, 7, 100, 1000} {
		s := b.span("a1", 0, int64(i)*10, n)
		err = errors.Join(err, b.write(s))
		s.whole.Release()
	}
	return first(func() error { return err }, b.same)
}

// again writes three ranges, each a second time by rewrite.
func again(ctx context.Context, p Place, mem memory.Allocator, seed uint64, rewrite func(b *bench, s span) error) error {
	b, err := newBench(ctx, p, mem, seed)
	if err != nil {
		return err
	}
	for i, n := range []int{1, 50, 400} {
		s := b.span("a1", 3, int64(i)*10, n)
		err = errors.Join(err, first(
			func() error { return b.write(s) },
			func() error { return rewrite(b, s) }))
		s.whole.Release()
	}
	return first(func() error { return err }, b.same)
}

func againSame(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	return again(ctx, p, mem, seed, func(b *bench, s span) error {
		return first(func() error { return b.write(s) }, func() error { return b.write(s) })
	})
}

func againFresh(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	return again(ctx, p, mem, seed, func(b *bench, s span) error {
		return first(b.fresh, func() error { return b.write(s) })
	})
}

// againOtherCuts: the same rows in the same order, but one record, then a record a row. Dictionaries differ with the
// cuts, too.
func againOtherCuts(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	return again(ctx, p, mem, seed, func(b *bench, s span) error {
		one := func() error { s.whole.Retain(); return writeTo(b.ctx, b.sink, s, []arrow.Record{s.whole}) }
		return first(one, b.fresh, func() error { return writeTo(b.ctx, b.sink, s, b.gen.single(s.whole)) }, b.fresh, one)
	})
}

// againLate: a task that was taken for dead finishes its write late.
func againLate(ctx context.Context, p Place, mem memory.Allocator, seed uint64) error {
	b, err := newBench(ctx, p, mem, seed)
	if err != nil {
		return err
	}
	old := b.span("a1", 0, 0, 60)
	defer old.whole.Release()
	err = b.write(old)
	stale := b.sink
	err = errors.Join(err, b.fresh())
	for i := range 5 {
		s := b.span("a1", 0, int64(i+1)*10, 60)
		err = errors.Join(err, b.write(s))
		s.whole.Release()
	}
	return first(
		func() error { return err },
		func() error { return writeTo(ctx, stale, old, b.gen.cut(old.whole)) },
		b.same)
}
