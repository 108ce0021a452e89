package clickhouse

import (
	"context"
	"fmt"
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
	s.tell(ctx, err)
	if err != nil {
		s.stats.failed.Add(1)
		return fmt.Errorf("clickhouse at %s: write %s: %w%s", s.Address, r, err, hint(err))
	}
	s.stats.rows.Add(rows)
	s.stats.inserts.Add(blocks)
	s.stats.nanos.Add(int64(time.Since(begun)))
	return nil
}

func (s *Sink) write(ctx context.Context, r flow.Range, recs []arrow.Record) (rows, blocks int64, err error) {
	p, err := s.planFor(ctx, r.Stream, recs[0].Schema())
	if err != nil {
		return 0, 0, badOrWorld(err)
	}
	pieces := cut(recs, blockRows, blockBytes)
	for i, piece := range pieces {
		token := r.String()
		if len(pieces) > 1 {
			token = fmt.Sprintf("%s-%dof%d", token, i+1, len(pieces))
		}
		n, err := s.insert(ctx, p, token, piece)
		if staleTable(err) {
			// Somebody changed the table since we looked: look again, once.
			s.plans.forget(r.Stream)
			if p, err = s.planFor(ctx, r.Stream, recs[0].Schema()); err == nil {
				n, err = s.insert(ctx, p, token, piece)
			}
		}
		if err != nil {
			return 0, 0, badOrWorld(err)
		}
		rows += int64(n)
	}
	return rows, int64(len(pieces)), nil
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
		if f.nullFree && hasNulls(chunks) {
			return 0, flow.Badf("column %q holds a null, and is not nullable", f.name)
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

// part is the rows [from, to) of a record.
type part struct {
	rec      arrow.Record
	from, to int
}

// sizeOf is what rows take in memory, in bytes.
func sizeOf(piece []part) int64 {
	var n int64
	for _, p := range piece {
		n += util.TotalRecordSize(p.rec) * int64(p.to-p.from) / p.rec.NumRows()
	}
	return n
}

// cut makes blocks of recs that hold at most rowsMax rows and, where a row does not exceed it alone, about bytesMax bytes of
// strings. It looks at nothing but the rows.
func cut(recs []arrow.Record, rowsMax int, bytesMax int64) [][]part {
	var blocks [][]part
	var block []part
	rows, bytes := 0, int64(0)
	for _, rec := range recs {
		n := int(rec.NumRows())
		if n == 0 {
			continue
		}
		mean := max(1, stringBytes(rec)/int64(n)) // bytes a row
		for from := 0; from < n; {
			room := min(rowsMax-rows, int((bytesMax-bytes)/mean))
			if room <= 0 && rows > 0 {
				blocks, block, rows, bytes = append(blocks, block), nil, 0, 0
				continue
			}
			take := min(max(room, 1), n-from)
			block = append(block, part{rec, from, from + take})
			from, rows, bytes = from+take, rows+take, bytes+int64(take)*mean
		}
	}
	return append(blocks, block)
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
