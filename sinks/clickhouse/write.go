package clickhouse

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/util"

	"hearthline/flow"
)

// Limits of a block. A range beyond them is cut into several blocks with tokens of their own. Where it is cut
// depends on the rows alone, so it is cut the same way when it is written again. The limits are therefore for ever: under
// other limits a range that was half written before an upgrade would be cut elsewhere after it, and count twice. The server
// itself joins and cuts at 1,048,449 rows or 256 MiB; both limits stay below.
const (
	blockRows  = 1_000_000
	blockBytes = 128 << 20 // of strings
)

// A connection keeps buffers for its largest block, as columns and compressed: measured after an outage, eight that had had
// blocks of four megabytes each held 160 MB.
const (
	insertBytesMax = 16 << 20 // in memory, of all that is being inserted at once; a block that is larger goes alone
	keptBytesMax   = 1 << 20  // of a block whose connection is used again: the next one makes smaller buffers anew
)

// Write inserts a range, in one block as a rule.
func (s *Sink) Write(ctx context.Context, r flow.Range, recs []arrow.Record) error {
	begun := time.Now()
	rows, blocks, err := s.write(ctx, r, recs)
	if rows > 0 && isBad(err) {
		s.tell(ctx, nil) // it is there, and refuses some rows
	} else {
		s.tell(ctx, err)
	}
	if err == nil || isBad(err) {
		s.stats.rows.Add(rows)
		s.stats.inserts.Add(blocks)
	}
	if err != nil {
		s.stats.failed.Add(1)
		return fmt.Errorf("clickhouse at %s: write %s: %w%s", s.Address, r, err, hint(err))
	}
	s.stats.nanos.Add(int64(time.Since(begun)))
	return nil
}

// write gives how many rows and blocks the server has now, as far as it came.
func (s *Sink) write(ctx context.Context, r flow.Range, recs []arrow.Record) (rows, blocks int64, err error) {
	p, err := s.planFor(ctx, r.Stream, recs[0].Schema())
	if err != nil {
		return 0, 0, badOrWorld(err)
	}
	rows, blocks, err = s.writeBy(ctx, p, r, recs)
	if staleTable(err) {
		// Somebody changed the table since we looked: look again, once. What is there already counts once.
		s.plans.forget(r.Stream)
		if p, err = s.planFor(ctx, r.Stream, recs[0].Schema()); err == nil {
			rows, blocks, err = s.writeBy(ctx, p, r, recs)
		}
	}
	return rows, blocks, badOrWorld(err)
}

func (s *Sink) writeBy(ctx context.Context, p *plan, r flow.Range, recs []arrow.Record) (rows, blocks int64, err error) {
	all, bad := p.storable(recs)
	pieces := cut(all, blockRows, blockBytes)
	for i, piece := range pieces {
		token := r.String()
		if len(pieces) > 1 {
			token = fmt.Sprintf("%s-%dof%d", token, i+1, len(pieces))
		}
		n, err := s.insertSome(ctx, p, token, piece, &bad)
		if err != nil {
			return rows, blocks, err
		}
		if n > 0 {
			rows += int64(n)
			blocks++
		}
	}
	bad.Sort()
	return rows, blocks, bad.Err()
}

// insertSome inserts a block without the rows that the server refuses. It takes a block or leaves it, and names one row that
// breaks a constraint, so that a block is sent again without it. Of refusals that name none, or too many, all rows are bad.
func (s *Sink) insertSome(ctx context.Context, p *plan, token string, piece []part, bad *flow.BadRows) (rows int, err error) {
	for named := 0; len(piece) > 0; named++ {
		n, err := s.insert(ctx, p, token, piece)
		if !isBad(badOrWorld(err)) {
			return n, err
		}
		at, rest, ok := without(piece, violatedRow(err))
		if !ok || named == violationsMax {
			for _, k := range piece {
				bad.AddAll(k.place, k.to-k.from, err.Error())
			}
			return 0, nil
		}
		bad.Add(at, err.Error())
		piece = rest
	}
	return 0, nil
}

// violationsMax is how many rows of one block are found out one by one. Each costs a sending of the block. It is for ever, as the
// limits of a block are.
const violationsMax = 32

// without takes the nth row (from 0) out of a block, and gives its place in the range.
func without(piece []part, nth int) (place int, rest []part, ok bool) {
	for i, k := range piece {
		if n := k.to - k.from; nth >= n {
			nth -= n
			continue
		}
		if nth < 0 {
			break
		}
		rest = append(rest, piece[:i]...)
		if nth > 0 {
			rest = append(rest, part{k.rec, k.from, k.from + nth, k.place})
		}
		if from := k.from + nth + 1; from < k.to {
			rest = append(rest, part{k.rec, from, k.to, k.place + nth + 1})
		}
		return k.place + nth, append(rest, piece[i+1:]...), true
	}
	return 0, nil, false
}

// storable leaves out the rows that are null where the table takes no null.
func (p *plan) storable(recs []arrow.Record) (all []part, bad flow.BadRows) {
	place := 0
	for _, rec := range recs {
		n := int(rec.NumRows())
		var strict []planField
		for _, f := range p.fields {
			if f.nullFree && rec.Column(f.at).NullN() > 0 {
				strict = append(strict, f)
			}
		}
		from := 0
		for row := 0; row < n && len(strict) > 0; row++ {
			at := slices.IndexFunc(strict, func(f planField) bool { return rec.Column(f.at).IsNull(row) })
			if at < 0 {
				continue
			}
			bad.Add(place+row, fmt.Sprintf("column %q holds a null, and is not nullable in table %s", strict[at].name, p.table))
			if row > from {
				all = append(all, part{rec, from, row, place + from})
			}
			from = row + 1
		}
		if n > from {
			all = append(all, part{rec, from, n, place + from})
		}
		place += n
	}
	return all, bad
}

// insert sends rows as one block. The server has them on disk when it answers.
func (s *Sink) insert(ctx context.Context, p *plan, token string, piece []part) (rows int, err error) {
	weight := min(sizeOf(piece), insertBytesMax)
	if err := s.inserting.Acquire(ctx, weight); err != nil {
		return 0, err
	}
	defer s.inserting.Release(weight)
	input := make(proto.Input, len(p.fields))
	for i, f := range p.fields {
		chunks := make([]chunk, len(piece))
		for j, k := range piece {
			chunks[j] = chunk{k.rec.Column(f.at), k.from, k.to}
		}
		input[i] = proto.InputColumn{Name: f.name, Data: f.fill(chunks)}
		rows = rowsOf(chunks)
	}
	ctx, cancel := context.WithTimeout(ctx, s.answer)
	defer cancel()
	conn, err := s.inserts.Acquire(ctx)
	if err == nil {
		done := conn.Release
		if weight > keptBytesMax {
			done = func() { _ = conn.Close() } // what it had to say was said
		}
		defer done()
		err = conn.Do(ctx, ch.Query{Body: p.query, Input: input, Settings: insertSettings(token)})
	}
	if err != nil {
		return 0, fmt.Errorf("insert: %w", err) // wrapped, or a log would hold ch-go's stack trace
	}
	return rows, nil
}

// insertSettings make an insert count once. None of them may change between the first writing of a range and its last.
func insertSettings(token string) []ch.Setting {
	// Important: a server that does not know one refuses the insert, where it would else ignore it and count twice.
	set := func(key, value string) ch.Setting { return ch.Setting{Key: key, Value: value, Important: true} }
	return []ch.Setting{
		set("insert_deduplication_token", token),
		set("insert_deduplicate", "1"),
		set("deduplicate_blocks_in_dependent_materialized_views", "1"),
		set("async_insert", "0"),
		// One thread, or a view's rows come in blocks that chance has cut.
		set("max_insert_threads", "1"),
		set("parallel_view_processing", "0"),
		// A view that fails must fail the insert, or its rows would be missing for ever.
		set("materialized_views_ignore_errors", "0"),
		// A hub that was away for half a year sends half a year of days at once: many small parts, once.
		set("max_partitions_per_insert_block", "0"),
	}
}

// part is the rows [from, to) of a record. place is that of the first in the range.
type part struct {
	rec      arrow.Record
	from, to int
	place    int
}

// sizeOf is what rows take in memory, in bytes.
func sizeOf(piece []part) int64 {
	var n int64
	for _, p := range piece {
		n += util.TotalRecordSize(p.rec) * int64(p.to-p.from) / p.rec.NumRows()
	}
	return n
}

// cut makes blocks of parts that hold at most rowsMax rows and, where a row does not exceed it alone, about bytesMax bytes of
// strings. It looks at nothing but the rows.
func cut(all []part, rowsMax int, bytesMax int64) [][]part {
	var blocks [][]part
	var block []part
	rows, bytes := 0, int64(0)
	for _, of := range all {
		mean := max(1, stringBytes(of.rec)/of.rec.NumRows()) // bytes a row
		for from := of.from; from < of.to; {
			room := min(rowsMax-rows, int((bytesMax-bytes)/mean))
			if room <= 0 && rows > 0 {
				blocks, block, rows, bytes = append(blocks, block), nil, 0, 0
				continue
			}
			take := min(max(room, 1), of.to-from)
			block = append(block, part{of.rec, from, from + take, of.place + from - of.from})
			from, rows, bytes = from+take, rows+take, bytes+int64(take)*mean
		}
	}
	if len(block) > 0 {
		blocks = append(blocks, block)
	}
	return blocks
}

// stringBytes is the size of a record's strings that are not in dictionaries.
func stringBytes(rec arrow.Record) int64 {
	var n int64
	for _, col := range rec.Columns() {
		n += stringBytesOf(col, 0, col.Len())
	}
	return n
}

// tell logs when the server is lost and when it is back, not each attempt.
func (s *Sink) tell(ctx context.Context, err error) {
	switch {
	case err == nil:
		if s.down.CompareAndSwap(true, false) {
			s.Logger.Info("clickhouse: inserts go through again", "address", s.Address)
		}
	case ctx.Err() == nil && !isBad(err):
		if s.down.CompareAndSwap(false, true) {
			s.Logger.Warn("clickhouse: inserts fail; they are tried again until they go through", "address", s.Address, "error", err)
		}
	}
}

type counters struct{ rows, inserts, failed, nanos atomic.Int64 }

// Stats are counts since the sink was made.
type Stats struct {
	Rows    int64         // inserted
	Inserts int64         // blocks that went through
	Failed  int64         // calls of Write that returned an error
	Time    time.Duration // spent in calls of Write that went through
}

// Stats returns the counts so far. It may be called at any time.
func (s *Sink) Stats() Stats {
	return Stats{s.stats.rows.Load(), s.stats.inserts.Load(), s.stats.failed.Load(), time.Duration(s.stats.nanos.Load())}
}
