package parquet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/sinks/parquet"
	"hearthline/sinks/sinktest"
)

// allTypes is a stream of every type that is kept.
var allTypes = arrow.NewSchema([]arrow.Field{
	{Name: "zuletzt", Type: flow.InstantType, Nullable: true}, // sorts after the others: columns keep their order
	{Name: flow.ColTime, Type: flow.InstantType},
	{Name: "ms", Type: &arrow.TimestampType{Unit: arrow.Millisecond}, Nullable: true},
	{Name: "ns", Type: &arrow.TimestampType{Unit: arrow.Nanosecond, TimeZone: "UTC"}},
	{Name: "key", Type: flow.KeyType},
	{Name: "key_or_null", Type: flow.KeyType, Nullable: true},
	{Name: "text", Type: arrow.BinaryTypes.String},
	{Name: "text_or_null", Type: arrow.BinaryTypes.String, Nullable: true},
	{Name: "f32", Type: arrow.PrimitiveTypes.Float32, Nullable: true},
	{Name: "f64", Type: arrow.PrimitiveTypes.Float64},
	{Name: "i32", Type: arrow.PrimitiveTypes.Int32, Nullable: true},
	{Name: "i64", Type: arrow.PrimitiveTypes.Int64},
	{Name: "u64", Type: arrow.PrimitiveTypes.Uint64, Nullable: true},
	{Name: "yes", Type: arrow.FixedWidthTypes.Boolean, Nullable: true},
	{Name: "pairs", Type: flow.AttributesType},
	{Name: "list", Type: arrow.ListOf(arrow.PrimitiveTypes.Float64)},
	{Name: "list_or_null", Type: arrow.ListOf(arrow.PrimitiveTypes.Float64), Nullable: true},
	{Name: "pairs_or_null", Type: flow.AttributesType, Nullable: true},
}, nil)

func TestContract(t *testing.T) {
	for name, schema := range map[string]*arrow.Schema{"events": flow.EventSchema, "all types": allTypes} {
		t.Run(name, func(t *testing.T) {
			sinktest.Run(t, func(t *testing.T) sinktest.Place {
				store := &shaky{Store: newDirectory(t), left: -1}
				return sinktest.Place{
					Stream: "room-readings",
					Schema: schema,
					Sink: func() flow.Sink {
						s := parquet.New()
						s.Store, s.RowGroupRows = store, 700
						return s
					},
					Rows: func(ctx context.Context) ([]sinktest.Row, error) {
						rows, err := readRows(ctx, store, "room-readings")
						if err != nil {
							return nil, err
						}
						n, err := parquet.Count(ctx, store, "room-readings")
						if err == nil && n.Rows != int64(len(rows)) {
							err = fmt.Errorf("count says %+v; read %d rows", n, len(rows))
						}
						return rows, err
					},
					NeedsTime: true,
					Break:     store.breakAt,
				}
			})
		})
	}
}

func readRows(ctx context.Context, store blobs.Store, stream string) ([]sinktest.Row, error) {
	var rows []sinktest.Row
	for r, err := range parquet.Read(ctx, store, stream) {
		if err != nil {
			return nil, err
		}
		rows = append(rows, sinktest.Values(r.Record)...)
	}
	return rows, nil
}

func newDirectory(tb testing.TB) blobs.Store {
	tb.Helper()
	d := &blobs.Directory{Path: tb.TempDir(), NoSync: true}
	if err := d.Open(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

// shaky is a store that fails at will, before a put or in the midst of it.
type shaky struct {
	blobs.Store
	mu   sync.Mutex
	left int
}

var errShaken = errors.New("the disk is gone")

func (s *shaky) breakAt(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = n
}

func (s *shaky) step() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		return errShaken
	}
	if s.left > 0 {
		s.left--
	}
	return nil
}

func (s *shaky) Put(ctx context.Context, name string, r io.Reader) error {
	if err := s.step(); err != nil {
		return err
	}
	return s.Store.Put(ctx, name, shakyReader{s, r})
}

type shakyReader struct {
	s *shaky
	r io.Reader
}

func (r shakyReader) Read(p []byte) (int, error) {
	if err := r.s.step(); err != nil {
		return 0, err
	}
	return r.r.Read(p[:min(len(p), 5000)])
}
