package parquet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"hearthline/blobs"
	"hearthline/flow"
)

// RangeFiles is a range of a stream and the files that hold its rows. It can be written down (as JSON) and read later by
// [Reader.Range]: files that come to the folder meanwhile change nothing.
type RangeFiles struct {
	flow.Range
	Files []blobs.Info // in the order of their hours
	// Cut says that files of the range were left out, by the bounds of the reader that listed it.
	Cut bool `json:",omitempty"`
}

// Bytes is the size of its files.
func (r *RangeFiles) Bytes() (n int64) {
	for _, f := range r.Files {
		n += f.Size
	}
	return n
}

// Ranges lists the ranges that [Reader.Rows] would read, in its order but for one thing: incarnations of the stream come in
// the order of the first hour that they hold. A last range that a sink is still writing is left out.
func (r *Reader) Ranges(ctx context.Context) ([]RangeFiles, error) {
	whole := *r
	whole.From, whole.To = 0, 0
	groups, err := whole.groups(ctx)
	if err != nil {
		return nil, fmt.Errorf("list stream %q: %w", r.Stream, err)
	}
	begun := map[flow.Range]hour{} // by a range of which only partition and incarnation are set
	for _, g := range groups {
		_, h, _ := parseName(r.Stream, g.files[0].Name)
		line := flow.Range{Partition: g.Partition, StreamID: g.StreamID}
		if first, ok := begun[line]; !ok || h < first {
			begun[line] = h
		}
	}
	slices.SortStableFunc(groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition),
			cmp.Compare(begun[flow.Range{Partition: a.Partition, StreamID: a.StreamID}], begun[flow.Range{Partition: b.Partition, StreamID: b.StreamID}]),
			cmp.Compare(a.StreamID, b.StreamID))
	})
	var all []RangeFiles
	for i, g := range groups {
		if i+1 == len(groups) || !sameLine(g.Range, groups[i+1].Range) {
			if err := r.checkFiles(ctx, g.files); errors.Is(err, errNotWhole) {
				continue
			} else if err != nil {
				return nil, fmt.Errorf("list stream %q: %s: %w", r.Stream, g.Range, err)
			}
		}
		kept := r.within(g.files)
		if len(kept) > 0 {
			all = append(all, RangeFiles{Range: g.Range, Files: kept, Cut: len(kept) < len(g.files)})
		}
	}
	return all, nil
}

// within gives the files of hours that the reader's bounds take in.
func (r *Reader) within(files []blobs.Info) []blobs.Info {
	return slices.DeleteFunc(slices.Clone(files), func(o blobs.Info) bool {
		_, h, _ := parseName(r.Stream, o.Name)
		return !r.wants(h)
	})
}

// wants says whether an hour overlaps the reader's bounds.
func (r *Reader) wants(h hour) bool {
	return (r.From == 0 || (h+1).start() > r.From) && (r.To == 0 || h.start() < r.To)
}

// checkFiles opens the files of a range and checks that they are all of it.
func (r *Reader) checkFiles(ctx context.Context, list []blobs.Info) (err error) {
	var files []*source
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.close())
		}
	}()
	for _, o := range list {
		f, err := openSource(ctx, r.Store, o)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	return checkWhole(files)
}

// Range gives the rows of one range, in the order of the stream. An error is the last thing it gives.
func (r *Reader) Range(ctx context.Context, files RangeFiles) iter.Seq2[Rows, error] {
	return func(yield func(Rows, error) bool) {
		one := *r
		one.From, one.To = 0, 0
		if files.Cut {
			one.To = flow.EndOfTime // rows are not all there, and need not be
		}
		if _, err := one.readRange(ctx, group{files.Range, files.Files}, false, yield); err != nil {
			yield(Rows{}, fmt.Errorf("read %s: %w", files.Range, err))
		}
	}
}

// Hours gives the hours of which there are files, in their order, by their first instant.
func (r *Reader) Hours(ctx context.Context) ([]time.Time, error) {
	list, err := r.Store.List(ctx, r.Stream+"/")
	if err != nil {
		return nil, fmt.Errorf("list stream %q: %w", r.Stream, err)
	}
	seen := map[hour]bool{}
	var hours []time.Time
	for _, o := range list {
		if _, h, ok := parseName(r.Stream, o.Name); ok && !seen[h] && r.wants(h) {
			seen[h] = true
			hours = append(hours, h.start().Time())
		}
	}
	slices.SortFunc(hours, time.Time.Compare)
	return hours, nil
}
