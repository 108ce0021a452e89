// Package lookup gives rows the columns of a table that changes: of each key, the last row of a stream.
//
// Inputs: "table", each row of which replaces the one before it with the same key (On), by event time: of two rows with one
// time, the one that came later counts. A row whose further columns are all null, or whose column Deleted is true, deletes the
// key. And "rows", any schema with the key's columns; each row is given what the table holds when its turn comes.
// Which comes first, of rows and changes that are received at about the same time, is decided by data alone.
//
// Output "rows": the row's columns, then those of the table, all of them nullable. A row without a counterpart gets nulls,
// or is dropped, or goes to the output "unmatched", whose schema is that of the rows. A key that holds a null has none.
package lookup

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"

	"hearthline/flow"
	"hearthline/flow/columns"
	"hearthline/flow/rowstore"
)

// Stage is the stage and its settings. Make it with [New].
type Stage struct {
	// On are the columns of the key; both inputs have them.
	On []string `yaml:"on"`
	// Columns of the table that rows are given; all but On, time and received where it is not said.
	Columns []string `yaml:"columns"`
	// Prefix stands before the name of a column of the table that rows have already.
	Prefix string `yaml:"prefix"`
	// Unmatched is what becomes of rows without a counterpart: nulls, drop, or output.
	Unmatched string `yaml:"unmatched"`
	// Deleted is a boolean column of the table: where it is true, the row deletes its key.
	Deleted string `yaml:"deleted"`
	// TTL is how long a row of the table counts, in received time; 0 is for ever.
	TTL time.Duration `yaml:"ttl"`
	// Keys is how many keys the table may have in a partition; rows of further ones are refused.
	Keys int `yaml:"keys"`

	schemas map[string]*arrow.Schema
	picked  []int // columns of the table that rows are given
	out     *arrow.Schema
	byKey   map[string]*list.Element // of *entry
	order   *list.List               // by the last change, the oldest first
	store   rowstore.Store
	bytes   int64 // of all rows
	scratch []byte

	counts struct{ unmatched, outdated, expired, full, keys atomic.Int64 }
}

// entry is what is known of a key.
type entry struct {
	key            string
	time, received flow.Micros
	ref            columns.Ref // NoRow: it was deleted
	bytes          int64
}

// bytesMax bounds what the rows of the table of a partition take. Rows beyond it are refused.
const bytesMax = 512 << 20

// What becomes of rows without a counterpart.
const (
	unmatchedNulls  = "nulls"
	unmatchedDrop   = "drop"
	unmatchedOutput = "output"
)

// New gives the stage with its defaults.
func New() *Stage {
	return &Stage{On: []string{flow.ColHome, flow.ColDevice}, Prefix: "table_", Unmatched: unmatchedNulls, Keys: 1_000_000, schemas: map[string]*arrow.Schema{}, byKey: map[string]*list.Element{}, order: list.New()}
}

// InputNames implements flow.Inputs.
func (*Stage) InputNames() []string { return []string{"table", "rows"} }

// Process implements flow.Stage: it is not called, as the stage tells its inputs apart.
func (*Stage) Process(context.Context, arrow.Record) ([]flow.Output, error) {
	return nil, flow.Badf("lookup: write from: {rows: STREAM, table: STREAM}")
}

// Open checks the settings.
func (s *Stage) Open(context.Context) error { return s.check() }

// Check lets lint find bad settings before anything starts.
func (s *Stage) Check(string, *arrow.Schema) error { return s.check() }

func (s *Stage) check() error {
	switch {
	case len(s.On) == 0:
		return errors.New("lookup: on is empty; name the columns of the key, such as [device]")
	case !slices.Contains([]string{unmatchedNulls, unmatchedDrop, unmatchedOutput}, s.Unmatched):
		return fmt.Errorf("lookup: unmatched is %q; want nulls, drop or output", s.Unmatched)
	case s.TTL < 0:
		return fmt.Errorf("lookup: ttl is %v; it must not be below 0", s.TTL)
	case s.Keys < 1:
		return fmt.Errorf("lookup: keys is %d; it must be at least 1", s.Keys)
	}
	return nil
}

// Close gives back the rows of the table.
func (s *Stage) Close() error {
	s.store.Release()
	return nil
}

// Counters says what rows in and out do not show. It may be called at any time by any goroutine.
func (s *Stage) Counters() map[string]int64 {
	return map[string]int64{
		"unmatched": s.counts.unmatched.Load(), // rows without a counterpart
		"outdated":  s.counts.outdated.Load(),  // rows of the table that are older than the one it holds
		"expired":   s.counts.expired.Load(),   // keys forgotten for their age
		"full":      s.counts.full.Load(),      // rows of the table refused, as it has Keys keys
		"keys":      s.counts.keys.Load(),      // that the table has now
	}
}

// ProcessInput implements flow.Inputs.
func (s *Stage) ProcessInput(ctx context.Context, input string, in arrow.Record) ([]flow.Output, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := s.learn(input, in); err != nil {
		return nil, err
	}
	if input == "rows" {
		return s.enrich(ctx, in)
	}
	bad, err := s.change(in)
	if err != nil {
		return nil, err
	}
	s.store.Sweep(columns.Allocator(ctx), s.refs)
	s.counts.keys.Store(int64(len(s.byKey)))
	return nil, bad.Err()
}

// learn notes the schema of an input, and with both of them that of the output.
func (s *Stage) learn(input string, in arrow.Record) error {
	schema := in.Schema()
	if old := s.schemas[input]; old == schema || old != nil && old.Equal(schema) {
		return nil
	}
	if _, err := columns.KeyOf(in, s.On); err != nil {
		return err
	}
	if input == "table" {
		if err := s.learnTable(in); err != nil {
			return err
		}
	}
	s.schemas[input] = schema
	rows, table := s.schemas["rows"], s.schemas["table"]
	if rows == nil || table == nil {
		return nil
	}
	fields := slices.Clone(rows.Fields())
	for _, at := range s.picked {
		f := table.Field(at)
		if rows.HasField(f.Name) {
			f.Name = s.Prefix + f.Name
		}
		if slices.ContainsFunc(fields, func(o arrow.Field) bool { return o.Name == f.Name }) {
			return flow.Badf("lookup: rows have the column %q already; choose another prefix", f.Name)
		}
		fields = append(fields, arrow.Field{Name: f.Name, Type: f.Type, Nullable: true, Metadata: f.Metadata})
	}
	s.out = arrow.NewSchema(fields, nil)
	return nil
}

func (s *Stage) learnTable(in arrow.Record) error {
	for _, name := range []string{flow.ColTime, flow.ColReceived} {
		if _, err := flow.Instants(in, name); err != nil {
			return err
		}
	}
	schema := in.Schema()
	if f, ok := schema.FieldsByName(s.Deleted); s.Deleted != "" && (!ok || f[0].Type.ID() != arrow.BOOL) {
		return flow.Badf("lookup: no boolean column %q, which deleted names", s.Deleted)
	}
	if err := rowstore.Check(schema); err != nil {
		return flow.Badf("lookup: %v", err)
	}
	var picked []int
	for i, f := range schema.Fields() {
		own := slices.Contains(s.On, f.Name) || f.Name == flow.ColTime || f.Name == flow.ColReceived || f.Name == s.Deleted
		if slices.Contains(s.Columns, f.Name) || len(s.Columns) == 0 && !own {
			picked = append(picked, i)
		}
	}
	for _, name := range s.Columns {
		if !schema.HasField(name) {
			return flow.Badf("lookup: the table has no column %q, which columns names", name)
		}
	}
	if len(picked) == 0 {
		return flow.Badf("lookup: the table has no columns but the key's")
	}
	if err := s.store.Use(schema); err != nil {
		return fmt.Errorf("lookup: %w", err)
	}
	s.picked = picked
	return nil
}

// change takes rows of the table.
func (s *Stage) change(in arrow.Record) (bad flow.BadRows, err error) {
	if in.NumRows() == 0 {
		return bad, nil
	}
	times, err := flow.Instants(in, flow.ColTime)
	if err != nil {
		return bad, err
	}
	received, err := flow.Instants(in, flow.ColReceived)
	if err != nil {
		return bad, err
	}
	key, err := columns.KeyOf(in, s.On)
	if err != nil {
		return bad, err
	}
	deleted := s.deletes(in)
	chunk, sizes := s.store.Add(in), columns.RowSizes(in)
	for i := range int(in.NumRows()) {
		if key.HasNull(i) {
			bad.Add(i, "lookup: the key of a row of the table is null")
			continue
		}
		s.scratch = key.Append(s.scratch[:0], i)
		now := entry{time: flow.Micros(times[i]), received: flow.Micros(received[i]), ref: columns.Ref{Chunk: chunk, Row: int32(i)}, bytes: sizes[i] + int64(len(s.scratch))}
		if deleted(i) {
			now.ref, now.bytes = columns.NoRow, int64(len(s.scratch))
		}
		if !s.put(now) {
			s.counts.full.Add(1)
			bad.Add(i, fmt.Sprintf("lookup: the table of its partition is full: it may have %d keys and %d MiB", s.Keys, bytesMax>>20))
		}
	}
	return bad, nil
}

// put replaces what is known of the key in scratch, unless that is newer. It says whether there is room.
func (s *Stage) put(now entry) bool {
	at := s.byKey[string(s.scratch)]
	if at != nil && now.time < at.Value.(*entry).time {
		s.counts.outdated.Add(1)
		return true
	}
	if at == nil && len(s.byKey) >= s.Keys || s.bytes+now.bytes > bytesMax {
		return false
	}
	s.bytes += now.bytes
	if at == nil {
		now.key = string(s.scratch)
		s.byKey[now.key] = s.order.PushBack(&now)
	} else {
		old := at.Value.(*entry)
		s.drop(old)
		now.key = old.key
		*old = now
		s.order.MoveToBack(at)
	}
	if now.ref.Chunk >= 0 {
		s.store.Keep(now.ref)
	}
	return true
}

func (s *Stage) drop(e *entry) {
	s.bytes -= e.bytes
	if e.ref.Chunk >= 0 {
		s.store.Drop(e.ref)
	}
}

// deletes says which rows of the table delete their keys.
func (s *Stage) deletes(in arrow.Record) func(row int) bool {
	if s.Deleted != "" {
		gone, err := flow.Column[interface {
			arrow.Array
			Value(int) bool
		}](in, s.Deleted)
		if err != nil {
			return func(int) bool { return false }
		}
		return func(row int) bool { return !gone.IsNull(row) && gone.Value(row) }
	}
	return func(row int) bool {
		for _, at := range s.picked {
			if !in.Column(at).IsNull(row) {
				return false
			}
		}
		return true
	}
}

// enrich gives rows what the table holds.
func (s *Stage) enrich(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	if s.out == nil {
		return nil, nil // the schema of the table is not known yet
	}
	key, err := columns.KeyOf(in, s.On)
	if err != nil {
		return nil, err
	}
	var received []arrow.Timestamp
	if s.TTL > 0 {
		if received, err = flow.Instants(in, flow.ColReceived); err != nil {
			return nil, err
		}
	}
	refs := make([]columns.Ref, in.NumRows())
	var without []int
	for i := range refs {
		refs[i] = columns.NoRow
		if !key.HasNull(i) {
			s.scratch = key.Append(s.scratch[:0], i)
			if at := s.byKey[string(s.scratch)]; at != nil {
				if e := at.Value.(*entry); received == nil || flow.Micros(received[i]).Sub(e.received) <= s.TTL {
					refs[i] = e.ref
				}
			}
		}
		if refs[i].Chunk < 0 {
			without = append(without, i)
		}
	}
	s.counts.unmatched.Add(int64(len(without)))
	return s.outputs(columns.Allocator(ctx), in, refs, without)
}

// Advance forgets the keys whose time is over.
func (s *Stage) Advance(ctx context.Context, watermark flow.Micros) ([]flow.Output, error) {
	if s.TTL == 0 || watermark == flow.EndOfTime {
		return nil, nil
	}
	for at := s.order.Front(); at != nil && watermark.Sub(at.Value.(*entry).received) > s.TTL; at = s.order.Front() {
		e := at.Value.(*entry)
		s.drop(e)
		s.order.Remove(at)
		delete(s.byKey, e.key)
		s.counts.expired.Add(1)
	}
	s.store.Sweep(columns.Allocator(ctx), s.refs)
	s.counts.keys.Store(int64(len(s.byKey)))
	return nil, nil
}

// refs gives the place of every row of the table.
func (s *Stage) refs(yield func(*columns.Ref) bool) {
	for at := s.order.Front(); at != nil; at = at.Next() {
		if e := at.Value.(*entry); e.ref.Chunk >= 0 && !yield(&e.ref) {
			return
		}
	}
}
