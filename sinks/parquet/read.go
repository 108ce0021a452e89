package parquet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/blobs"
	"hearthline/flow"
)

// Reader reads a stream's files back as records, in the schema they were written with.
type Reader struct {
	Store  blobs.Store
	Stream string
	// Partitions to read; nil is all.
	Partitions []int32
	// From and To bound the hours to read by event time: those that overlap [From, To). Rows are not cut, hours are
	// whole. Zero is no bound.
	From, To flow.Micros
	// RecordRows is the largest number of rows of a record. 0 is 8192.
	RecordRows int
	// Memory of the records. Nil is Go's.
	Memory memory.Allocator
}

// Rows is a stretch of a range as it was written.
type Rows struct {
	flow.Range
	Position int64        // of the first row in the range, counted from 0
	Record   arrow.Record // borrowed until the next turn of the loop: Retain what is kept
}

// Read is [Reader.Rows] over all of a stream.
func Read(ctx context.Context, store blobs.Store, stream string) iter.Seq2[Rows, error] {
	return (&Reader{Store: store, Stream: stream}).Rows(ctx)
}

// Rows gives the rows of one partition after the other; in a partition, of one incarnation of the stream after the
// other, in the order of their StreamIDs; in that, in the order of the stream. An error is the last thing it gives.
//
// A last range of which files are missing is left out: a sink is still writing it, or died at it and will write it
// again. Missing files of an earlier one are an error, as are ranges that overlap.
func (r *Reader) Rows(ctx context.Context) iter.Seq2[Rows, error] {
	return func(yield func(Rows, error) bool) {
		groups, err := r.groups(ctx)
		if err != nil {
			yield(Rows{}, fmt.Errorf("read stream %q: %w", r.Stream, err))
			return
		}
		for i, g := range groups {
			last := i+1 == len(groups) || !sameLine(g.Range, groups[i+1].Range)
			more, err := r.readRange(ctx, g, last, yield)
			if err != nil {
				yield(Rows{}, fmt.Errorf("read %s: %w", g.Range, err))
			}
			if err != nil || !more {
				return
			}
		}
	}
}

// group is a range with its files, in the order of their hours.
type group struct {
	flow.Range
	files []blobs.Info
}

func sameLine(a, b flow.Range) bool { return a.Partition == b.Partition && a.StreamID == b.StreamID }

// folder is what has to be listed: of a reader whose bounds are one hour, that hour's.
func (r *Reader) folder() string {
	if from, to := hourOf(arrow.Timestamp(r.From)), hourOf(arrow.Timestamp(r.To)); r.From != 0 && to == from+1 && r.To == to.start() {
		return r.Stream + "/" + from.folder() + "/"
	}
	return r.Stream + "/"
}

// groups lists the ranges in the order in which they are read.
func (r *Reader) groups(ctx context.Context) ([]group, error) {
	list, err := r.Store.List(ctx, r.folder())
	if err != nil {
		return nil, err
	}
	at := make(map[flow.Range]int)
	var groups []group
	for _, o := range list { // by name, which is by hour
		rng, h, ok := parseName(r.Stream, o.Name)
		if !ok || r.Partitions != nil && !slices.Contains(r.Partitions, rng.Partition) || !r.wants(h) {
			continue
		}
		i, ok := at[rng]
		if !ok {
			i = len(groups)
			at[rng] = i
			groups = append(groups, group{Range: rng})
		}
		groups[i].files = append(groups[i].files, o)
	}
	slices.SortFunc(groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.StreamID, b.StreamID), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	for i := 1; i < len(groups); i++ {
		if a, b := groups[i-1], groups[i]; sameLine(a.Range, b.Range) && b.First <= a.Last {
			return nil, fmt.Errorf("ranges %s and %s overlap: rows would count twice; remove the files of one", a.Range, b.Range)
		}
	}
	return groups, nil
}

// errNotWhole says that a range lacks files.
var errNotWhole = errors.New("files are missing")

// readRange gives the rows of a range; more is false when the caller of the iterator wants no more.
func (r *Reader) readRange(ctx context.Context, g group, last bool, yield func(Rows, error) bool) (more bool, err error) {
	var files []*source
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.close())
		}
	}()
	for _, o := range g.files {
		f, err := openSource(ctx, r.Store, o)
		if err != nil {
			return false, err
		}
		files = append(files, f)
	}
	if r.From == 0 && r.To == 0 {
		if err := checkWhole(files); err != nil {
			if last && errors.Is(err, errNotWhole) {
				return true, nil
			}
			return false, err
		}
	}
	m := merge{files: files, target: newTarget(cmp.Or(r.Memory, memory.Allocator(memory.DefaultAllocator)), files[0].layout)}
	defer m.target.release()
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		position, rec, err := m.next(int64(cmp.Or(r.RecordRows, 8192)))
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		more := yield(Rows{Range: g.Range, Position: position, Record: rec}, nil)
		rec.Release()
		if !more {
			return false, nil
		}
	}
}

// checkWhole checks that the files of a range hold all its rows, each once, all of one schema.
func checkWhole(files []*source) error {
	rows := int64(0)
	for _, f := range files {
		if f.rangeRows != files[0].rangeRows || f.layout.ipc != files[0].layout.ipc {
			return fmt.Errorf("%s and %s are not of one range: their metadata differ", files[0].name, f.name)
		}
		rows += f.file.NumRows()
	}
	if rows < files[0].rangeRows {
		return fmt.Errorf("%w: they hold %d of its %d rows", errNotWhole, rows, files[0].rangeRows)
	}
	return nil
}

// merge puts the rows of a range's files in the order of the range.
type merge struct {
	files  []*source
	target *target
}

// next gives a record of at most max rows, which do not leap over rows of the range that are not read.
func (m *merge) next(max int64) (position int64, rec arrow.Record, err error) {
	start, rows := int64(-1), int64(0)
	for rows < max {
		f := m.first()
		if f == nil || start >= 0 && f.spans[0].position != start+rows {
			break
		}
		s := &f.spans[0]
		if start < 0 {
			start = s.position
		} else if s.position < start+rows {
			return 0, nil, fmt.Errorf("%s: its rows are in another file, too", f.name)
		}
		n := min(s.rows, max-rows)
		if err := f.copyRows(m.target, n); err != nil {
			return 0, nil, fmt.Errorf("%s: %w", f.name, err)
		}
		rows += n
		s.position += n
		if s.rows -= n; s.rows == 0 {
			f.spans = f.spans[1:]
		}
	}
	if rows == 0 {
		return 0, nil, io.EOF
	}
	return start, m.target.record(), nil
}

// first gives the file that holds the next row, nil at the end.
func (m *merge) first() *source {
	var least *source
	for _, f := range m.files {
		if len(f.spans) > 0 && (least == nil || f.spans[0].position < least.spans[0].position) {
			least = f
		}
	}
	return least
}
