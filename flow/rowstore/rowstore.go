// Package rowstore keeps rows of record batches for as long as somebody refers to them: those of an open window, of a table,
// of a join. Rows stay in the batches they came in, which are retained, until so few of a batch are left that these are
// copied; so a row costs no allocation of its own.
package rowstore

import (
	"bytes"
	"fmt"
	"iter"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/apache/arrow/go/v15/arrow/util"

	"hearthline/flow/columns"
	"hearthline/flow/snapshot"
)

const (
	// pieceRows is how many rows are copied, or written, as one record.
	pieceRows = 16_384
	// A chunk of fewer rows than smallRows is joined with others once there are more than chunksMax of them.
	smallRows, chunksMax = 4096, 64
	// slackRows is how many rows that nobody refers to are kept, beside as many as are referred to.
	slackRows = 65_536
	// pieceBytesMax is the most that one piece of a snapshot takes; see snapshot.MaxString.
	pieceBytesMax = 64 << 20
)

// Store holds rows of one schema. The zero value is ready. It is used by one goroutine at a time; Release frees it.
type Store struct {
	schema *arrow.Schema
	chunks []chunk // a released one has no record, and its place is used again
	free   []int32
	small  int // chunks of fewer than smallRows rows
	live   int // rows that are referred to
	held   int // rows of all chunks
	local  []int32
}

type chunk struct {
	rec  arrow.Record
	live int
}

// Schema is that of the rows; nil before the first.
func (s *Store) Schema() *arrow.Schema { return s.schema }

// Len is the number of rows that are referred to.
func (s *Store) Len() int { return s.live }

// Check says whether rows of a schema can be kept.
func Check(schema *arrow.Schema) error {
	for _, f := range schema.Fields() {
		if err := columns.CanGather(f.Type); err != nil {
			return fmt.Errorf("column %q is of a %w", f.Name, err)
		}
	}
	return nil
}

// Use makes schema that of the store. Rows that are there already get the columns they lack as nulls, and lose those that
// schema has not.
func (s *Store) Use(schema *arrow.Schema) error {
	if s.schema == schema || s.schema != nil && s.schema.Equal(schema) {
		return nil
	}
	if err := Check(schema); err != nil {
		return err
	}
	if s.live > 0 {
		if err := fits(s.schema, schema); err != nil {
			return fmt.Errorf("rows that are kept do not have the columns of those that come now: %w", err)
		}
	}
	for i, c := range s.chunks {
		if c.rec != nil {
			s.chunks[i].rec = as(c.rec, schema)
			c.rec.Release()
		}
	}
	s.schema = schema
	return nil
}

func fits(old, now *arrow.Schema) error {
	for _, f := range now.Fields() {
		was, ok := old.FieldsByName(f.Name)
		switch {
		case !ok && !f.Nullable:
			return fmt.Errorf("column %s is new and cannot be null", f.Name)
		case ok && !arrow.TypeEqual(was[0].Type, f.Type):
			return fmt.Errorf("column %s was %s and is %s", f.Name, was[0].Type, f.Type)
		case ok && was[0].Nullable && !f.Nullable:
			return fmt.Errorf("column %s could be null and cannot be any more", f.Name)
		}
	}
	return nil
}

func as(rec arrow.Record, schema *arrow.Schema) arrow.Record {
	var cols []arrow.Array
	for _, f := range schema.Fields() {
		if at := rec.Schema().FieldIndices(f.Name); len(at) > 0 {
			rec.Column(at[0]).Retain()
			cols = append(cols, rec.Column(at[0]))
		} else {
			cols = append(cols, array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, int(rec.NumRows())))
		}
	}
	defer func() {
		for _, c := range cols {
			c.Release()
		}
	}()
	return array.NewRecord(schema, cols, rec.NumRows())
}

// Add gives a record (borrowed) a number, under which rows of it can be kept. Its schema is that of Use.
func (s *Store) Add(rec arrow.Record) (number int32) {
	rec.Retain()
	s.held += int(rec.NumRows())
	if rec.NumRows() < smallRows {
		s.small++
	}
	if n := len(s.free); n > 0 {
		number = s.free[n-1]
		s.free = s.free[:n-1]
		s.chunks[number] = chunk{rec: rec}
		return number
	}
	s.chunks = append(s.chunks, chunk{rec: rec})
	return int32(len(s.chunks) - 1)
}

// Keep notes that a row is referred to.
func (s *Store) Keep(r columns.Ref) {
	s.chunks[r.Chunk].live++
	s.live++
}

// Drop notes that a row is not referred to any more. Until the next Sweep it can still be read.
func (s *Store) Drop(r columns.Ref) {
	s.chunks[r.Chunk].live--
	s.live--
}

// Record copies rows to a record. refs may hold [columns.NoRow], which becomes a row of nulls. The caller releases it.
func (s *Store) Record(mem memory.Allocator, refs []columns.Ref) arrow.Record {
	cols := s.Columns(mem, refs, nil)
	return columns.Record(s.schema, cols...)
}

// Columns copies some columns of rows (nil: all, in the order of the schema). The caller releases them.
func (s *Store) Columns(mem memory.Allocator, refs []columns.Ref, at []int) []arrow.Array {
	if at == nil {
		for i := range s.schema.NumFields() {
			at = append(at, i)
		}
	}
	// Only the chunks that are referred to are looked at: there may be hundreds.
	for len(s.local) < len(s.chunks) {
		s.local = append(s.local, -1)
	}
	var used []int32
	local := make([]columns.Ref, len(refs))
	for i, r := range refs {
		if r.Chunk < 0 {
			local[i] = columns.NoRow
			continue
		}
		if s.local[r.Chunk] < 0 {
			s.local[r.Chunk] = int32(len(used))
			used = append(used, r.Chunk)
		}
		local[i] = columns.Ref{Chunk: s.local[r.Chunk], Row: r.Row}
	}
	cols := make([]arrow.Array, len(at))
	for i, col := range at {
		arrays := make([]arrow.Array, len(used))
		for k, c := range used {
			arrays[k] = s.chunks[c].rec.Column(col)
		}
		cols[i] = columns.Gather(mem, s.schema.Field(col).Type, arrays, local)
	}
	for _, c := range used {
		s.local[c] = -1
	}
	return cols
}

// Sweep gives back what nobody refers to. Where few rows of a chunk are left, or chunks are small, they are copied: all
// gives every reference there is, to be changed in place.
func (s *Store) Sweep(mem memory.Allocator, all iter.Seq[*columns.Ref]) {
	for i := range s.chunks {
		if c := &s.chunks[i]; c.rec != nil && c.live == 0 {
			s.drop(int32(i))
		}
	}
	if s.small <= chunksMax && s.held <= 2*s.live+slackRows {
		return
	}
	sparse := make([]bool, len(s.chunks))
	for i, c := range s.chunks {
		sparse[i] = c.rec != nil && (c.rec.NumRows() < smallRows || 2*c.live < int(c.rec.NumRows()))
	}
	var move []*columns.Ref
	flush := func() {
		refs := make([]columns.Ref, len(move))
		for i, r := range move {
			refs[i] = *r
		}
		rec := s.Record(mem, refs)
		to := s.Add(rec)
		rec.Release()
		for i, r := range move {
			s.Drop(*r)
			*r = columns.Ref{Chunk: to, Row: int32(i)}
			s.Keep(*r)
		}
		move = move[:0]
	}
	for r := range all {
		if int(r.Chunk) < len(sparse) && sparse[r.Chunk] {
			if move = append(move, r); len(move) == pieceRows {
				flush()
			}
		}
	}
	if len(move) > 0 {
		flush()
	}
	for i := range sparse {
		if sparse[i] {
			s.drop(int32(i))
		}
	}
}

func (s *Store) drop(i int32) {
	c := &s.chunks[i]
	s.held -= int(c.rec.NumRows())
	if c.rec.NumRows() < smallRows {
		s.small--
	}
	c.rec.Release()
	*c = chunk{}
	s.free = append(s.free, i)
}

// Release gives back all rows.
func (s *Store) Release() {
	for _, c := range s.chunks {
		if c.rec != nil {
			c.rec.Release()
		}
	}
	*s = Store{}
}

// Save writes rows, in the order of refs. The same rows give the same bytes.
func (s *Store) Save(w *snapshot.Writer, refs []columns.Ref) error {
	var pieces [][]byte
	for from := 0; from < len(refs); from += pieceRows {
		if err := s.pieces(refs[from:min(from+pieceRows, len(refs))], &pieces); err != nil {
			return err
		}
	}
	w.Uint(uint64(len(pieces)))
	for _, p := range pieces {
		w.Bytes(p)
	}
	return nil
}

func (s *Store) pieces(refs []columns.Ref, to *[][]byte) error {
	rec := s.Record(memory.DefaultAllocator, refs)
	defer rec.Release()
	if util.TotalRecordSize(rec) > pieceBytesMax && len(refs) > 1 {
		if err := s.pieces(refs[:len(refs)/2], to); err != nil {
			return err
		}
		return s.pieces(refs[len(refs)/2:], to)
	}
	var b bytes.Buffer
	w := ipc.NewWriter(&b, ipc.WithSchema(rec.Schema()))
	if err := w.Write(rec); err != nil {
		return fmt.Errorf("write rows: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write rows: %w", err)
	}
	*to = append(*to, b.Bytes())
	return nil
}

// Saved is what Save wrote, read but not yet looked into.
type Saved [][]byte

// Read reads what Save wrote. The rows are made of it by Load, once the snapshot's checksum is known to be right.
func Read(r *snapshot.Reader) Saved {
	var saved Saved
	for range r.Count(1 << 20) {
		if b := r.Bytes(); r.Err() == nil {
			saved = append(saved, b)
		}
	}
	return saved
}

// Load puts rows into an empty store, and gives a reference to each, in their order, and the record it stands in.
// The caller keeps all of them.
func (s *Store) Load(saved Saved) (refs []columns.Ref, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read rows: %v", p)
		}
	}()
	for _, b := range saved {
		if err := s.loadPiece(b, &refs); err != nil {
			return nil, fmt.Errorf("read rows: %w", err)
		}
	}
	return refs, nil
}

func (s *Store) loadPiece(b []byte, refs *[]columns.Ref) error {
	r, err := ipc.NewReader(bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer r.Release()
	for r.Next() {
		if err := s.Use(r.Record().Schema()); err != nil {
			return err
		}
		n := s.Add(r.Record())
		for row := range r.Record().NumRows() {
			ref := columns.Ref{Chunk: n, Row: int32(row)}
			s.Keep(ref)
			*refs = append(*refs, ref)
		}
	}
	return r.Err()
}

// Chunk is the record of a number; it is borrowed.
func (s *Store) Chunk(number int32) arrow.Record { return s.chunks[number].rec }
