// Package parquet keeps streams as Parquet files that pandas, DuckDB, ClickHouse and Spark read as they are:
//
//	<stream>/dt=2026-11-22/hour=18/<range>.parquet
//
// The folders are Hive-style partitions by the rows' event time, in UTC. A range whose rows fall into several hours
// gives a file in each. Names and bytes follow from the range and its rows alone, however the rows are cut into records:
// a range that is written again replaces its files by equal ones, so every row is there once. (Equal bytes hold for one
// build of the program; another may compress otherwise. Its rows are equal all the same.)
//
// Rows stand in a file in the order of the stream. Where a range has several files, each notes which rows of the
// range it holds, and [Reader] puts them together again: a replay sees exactly what was written.
//
// Small files are the price of fresh ones: at the default wait of 10 s a partition makes up to 8,640 a day. Setting a
// longer flush_wait makes fewer. Nothing merges files afterwards yet; a verb that compacts finished hours is for later.
package parquet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	kzstd "github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"hearthline/blobs"
	"hearthline/flow"
)

// Sink writes Parquet files. Its fields are set before Open and not changed after.
type Sink struct {
	// To is where the files go: a directory, or s3://bucket/prefix.
	To string `yaml:"to"`
	// S3 says how the server of a bucket is reached.
	S3 blobs.S3 `yaml:"s3"`
	// Level of zstd compression, 1 to 22 as in the zstd tool. Encoded columns leave it little to do: 7 saves about
	// one per cent of the bytes of level 3 for an eighth more time.
	Level int `yaml:"zstd_level"`
	// RowGroupRows is the number of rows of a row group, the piece that readers take at once and in parallel.
	RowGroupRows int64 `yaml:"row_group_rows"`
	// FlushRows is the number of rows at which a range is cut. A million rows of readings are some 100 MB in memory and
	// 10 to 20 MB as a file: what one partition may hold while it catches up, and a good size for readers.
	FlushRows int64 `yaml:"flush_rows"`
	// FlushWait is how long the first row of a range waits at most: how old the newest file may be. 10 s keep
	// notebooks close to live; a longer wait makes fewer and larger files.
	FlushWait time.Duration `yaml:"flush_wait"`

	// Store is used instead of To where it is set; the caller closes it.
	Store blobs.Store `yaml:"-"`

	store   blobs.Store
	codec   *zstd.Codec // shared: its pool of encoders is what costs memory
	layouts layouts
	buffers sync.Pool // of *bytes.Buffer, each with a file in the making
	stats   struct{ files, rows, bytes atomic.Int64 }
}

// New gives a Sink with the defaults.
func New() *Sink {
	return &Sink{Level: 3, RowGroupRows: 128 << 10, FlushRows: 1_000_000, FlushWait: 10 * time.Second}
}

var _ interface {
	flow.Sink
	flow.Opener
	flow.Closer
	flow.Flushing
	flow.Checker
} = (*Sink)(nil)

// bufferKeptMax is the largest buffer kept for the next file, bytes.
const bufferKeptMax = 64 << 20

// Open opens the store.
func (s *Sink) Open(context.Context) error {
	if err := s.checkSettings(); err != nil {
		return err
	}
	s.codec = &zstd.Codec{Level: kzstd.EncoderLevelFromZstd(s.Level)}
	s.buffers.New = func() any { return new(bytes.Buffer) }
	if s.store = s.Store; s.store != nil {
		return nil
	}
	store, err := blobs.Open(s.To, s.S3)
	if err != nil {
		return fmt.Errorf("parquet sink: %w", err)
	}
	s.store = store
	return nil
}

// Close closes the store that Open opened.
func (s *Sink) Close() error {
	if c, ok := s.store.(interface{ Close() error }); ok && s.Store == nil {
		return c.Close()
	}
	return nil
}

// Flush is what the settings say.
func (s *Sink) Flush() (rows int64, wait time.Duration) { return s.FlushRows, s.FlushWait }

// Check says whether rows of schema can be kept, and whether the settings make sense.
func (s *Sink) Check(stream string, schema *arrow.Schema) error {
	if err := s.checkSettings(); err != nil {
		return err
	}
	if err := blobs.CheckName(stream + "/x"); err != nil {
		return fmt.Errorf("parquet sink: stream %q cannot be a folder: %w", stream, err)
	}
	if _, err := newLayout(schema); err != nil {
		return fmt.Errorf("parquet sink: stream %q: %w", stream, err)
	}
	return nil
}

func (s *Sink) checkSettings() error {
	var err error
	switch {
	case s.Store == nil && s.To == "":
		err = errors.New("setting to: give the place for the files, such as data/parquet or s3://bucket/prefix")
	case s.Level < 1 || s.Level > 22:
		err = fmt.Errorf("setting zstd_level: %d; want 1 to 22", s.Level)
	case s.RowGroupRows < 1:
		err = fmt.Errorf("setting row_group_rows: %d; want at least 1", s.RowGroupRows)
	case s.FlushRows < 1:
		err = fmt.Errorf("setting flush_rows: %d; want at least 1", s.FlushRows)
	case s.FlushWait <= 0:
		err = fmt.Errorf("setting flush_wait: %s; want more than 0s", s.FlushWait)
	case s.Store == nil && !blobs.IsShared(s.To) && s.S3 != (blobs.S3{}):
		err = fmt.Errorf("setting to: %q is a folder, but s3 is set; write s3://bucket/prefix, or leave s3 out", s.To)
	case s.Store == nil:
		if err = blobs.Check(s.To); err != nil {
			err = fmt.Errorf("setting to: %w", err)
		}
	}
	if err != nil {
		return fmt.Errorf("parquet sink: %w", err)
	}
	return nil
}

// Write makes the files of a range, one hour after the other, so that it holds one file in memory at a time however
// many hours the rows fall into.
func (s *Sink) Write(ctx context.Context, r flow.Range, recs []arrow.Record) error {
	l, err := s.layouts.of(recs[0].Schema())
	if err != nil {
		return fmt.Errorf("parquet sink: %s: %w: %w", r, flow.ErrBad, err)
	}
	parts, bad, err := splitHours(recs)
	if err != nil {
		return fmt.Errorf("parquet sink: %s: %w", r, err)
	}
	total := int64(0)
	for _, p := range parts {
		total += p.rows
	}
	buf := s.buffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= bufferKeptMax {
			s.buffers.Put(buf)
		}
	}()
	for _, p := range parts {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("parquet sink: %s: %w", r, err)
		}
		buf.Reset()
		f := file{layout: l, codec: s.codec, rowGroupRows: s.RowGroupRows, metadata: metadataOf(r, l, p, len(parts) > 1, total)}
		if err := f.write(buf, recs, p.runs); err != nil {
			return fmt.Errorf("parquet sink: %s: %w", r, err)
		}
		size := int64(buf.Len())
		if err := s.store.Put(ctx, objectName(r, p.hour), bytes.NewReader(buf.Bytes())); err != nil {
			return fmt.Errorf("parquet sink: %w", err)
		}
		s.stats.files.Add(1)
		s.stats.rows.Add(p.rows)
		s.stats.bytes.Add(size)
	}
	if err := bad.Err(); err != nil {
		return fmt.Errorf("parquet sink: %s: %w", r, err)
	}
	return nil
}

// Stats is what a sink has written since it was opened, rewritten files included.
type Stats struct{ Files, Rows, Bytes int64 }

// Stats may be called at any time.
func (s *Sink) Stats() Stats {
	return Stats{Files: s.stats.files.Load(), Rows: s.stats.rows.Load(), Bytes: s.stats.bytes.Load()}
}

// layouts remembers the layout of the schemas seen: a stream has one, which changes when the plan does.
type layouts struct {
	mu    sync.Mutex
	known []*layout
}

// layoutsMax bounds layouts. The oldest goes first.
const layoutsMax = 64

func (ls *layouts) of(schema *arrow.Schema) (*layout, error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.known {
		if l.arrow == schema || l.arrow.Equal(schema) && l.arrow.Metadata().Equal(schema.Metadata()) {
			return l, nil
		}
	}
	l, err := newLayout(schema)
	if err != nil {
		return nil, err
	}
	if len(ls.known) == layoutsMax {
		ls.known = slices.Delete(ls.known, 0, 1)
	}
	ls.known = append(ls.known, l)
	return l, nil
}
