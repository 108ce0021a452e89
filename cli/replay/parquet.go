package replay

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/pipeline/run"
	"hearthline/sinks/parquet"
	"hearthline/streams"
)

// recordRows is how many rows of a file make one message. It is never changed for a replay that has begun: offsets
// count on it.
const recordRows = 8192

// arrivalSlack is how far the time that is told lies behind the newest arrival read. Live, a producer holds the others'
// time back by a minute at most, so no row that arrived earlier than that comes without having been late then, too.
const arrivalSlack = time.Minute

// Files lists what a place of the Parquet sink holds of a stream, a list a partition. Bounds are of event time, zero is none.
func Files(ctx context.Context, store blobs.Store, stream string, since, until flow.Micros) ([][]parquet.RangeFiles, error) {
	r := parquet.Reader{Store: store, Stream: stream, From: since, To: until}
	all, err := r.Ranges(ctx)
	if err != nil {
		return nil, err
	}
	var byPartition [][]parquet.RangeFiles
	for _, files := range all {
		for len(byPartition) <= int(files.Partition) {
			byPartition = append(byPartition, nil)
		}
		byPartition[files.Partition] = append(byPartition[files.Partition], files)
	}
	return byPartition, nil
}

// Parquet is history in files of the Parquet sink. Rows come in the order of the stream. The offset of a message is the number of
// its range, counted over all of its partition, shifted by 32 bits, and the place of its first row in the range.
type Parquet struct {
	Stream string
	Store  blobs.Store
	Ranges [][]parquet.RangeFiles
	Bound  Bound
	Mem    memory.Allocator // nil: the Go heap
	Done   *Progress
}

// Bound is what of history is replayed, and how it ends.
type Bound struct {
	Since, Until flow.Micros // of event time; 0 is none
	Run          string      // that ends with it
	Close        bool        // every window
}

// end is the last message of a partition.
func (b *Bound) end(stream string, partition int32, offset int64) streams.Message {
	batch := flow.Batch{Kind: flow.KindEnd, Run: b.Run, Lineage: lineage(stream, partition, offset)}
	if b.Close {
		batch.Watermark = flow.EndOfTime
	}
	return streams.Message{Stream: stream, Partition: partition, Offset: offset, Batch: batch}
}

func lineage(stream string, partition int32, offset int64) flow.Lineage {
	return flow.Lineage{Source: flow.Source{Producer: "replay", Stream: stream, Partition: partition}, Position: flow.Position{Offset: offset}}
}

const rangeBits = 32

// Bounds implements run.History.
func (p *Parquet) Bounds(partition int32) (first, next int64) {
	return 0, int64(len(p.of(partition)))<<rangeBits + 1
}

func (p *Parquet) of(partition int32) []parquet.RangeFiles {
	if int(partition) >= len(p.Ranges) {
		return nil
	}
	return p.Ranges[partition]
}

// Read implements run.History.
func (p *Parquet) Read(partition int32, offset int64) run.Messages {
	ctx, cancel := context.WithCancel(context.Background())
	m := &parquetMessages{p: p, partition: partition, ranges: p.of(partition), at: int(offset >> rangeBits), from: offset, ctx: ctx, cancel: cancel}
	var before, all int64
	for i, r := range m.ranges {
		if i < m.at {
			before += r.Bytes()
		}
		all += r.Bytes()
	}
	m.done = p.Done.part(p.Stream, partition, before, all)
	return m
}

type parquetMessages struct {
	p         *Parquet
	partition int32
	ranges    []parquet.RangeFiles
	at        int   // the range that is read
	from      int64 // messages below are passed over
	done      *part

	ctx     context.Context // of the rows being read
	cancel  context.CancelFunc
	next    func() (parquet.Rows, error, bool)
	stop    func()
	arrived flow.Micros // the newest of the range
	ended   bool
}

// Next implements run.Messages. It waits for no one until the end: files are there.
func (m *parquetMessages) Next(ctx context.Context) (streams.Message, error) {
	for {
		if m.ended {
			<-ctx.Done()
		}
		if err := ctx.Err(); err != nil {
			return streams.Message{}, err
		}
		if m.at >= len(m.ranges) {
			m.ended = true
			m.done.finish()
			if last := int64(len(m.ranges)) << rangeBits; last >= m.from {
				return m.p.Bound.end(m.p.Stream, m.partition, last), nil
			}
			continue
		}
		if m.next == nil {
			r := parquet.Reader{Store: m.p.Store, Stream: m.p.Stream, RecordRows: recordRows, Memory: m.p.Mem}
			m.next, m.stop = iter.Pull2(r.Range(m.ctx, m.ranges[m.at]))
			m.arrived = 0
		}
		rows, err, ok := m.next()
		if err != nil {
			m.close()
			return streams.Message{}, fmt.Errorf("replay %s: %w", m.p.Stream, err)
		}
		if !ok {
			m.close()
			m.done.add(m.ranges[m.at].Bytes(), m.arrived)
			m.at++
			continue
		}
		if msg, ok := m.message(rows); ok {
			return msg, nil
		}
	}
}

// message makes one of a record, if it is not one of those that are passed over.
func (m *parquetMessages) message(rows parquet.Rows) (streams.Message, bool) {
	if at, err := flow.Instants(rows.Record, flow.ColReceived); err == nil {
		for _, t := range at {
			m.arrived = max(m.arrived, flow.Micros(t))
		}
	}
	offset := int64(m.at)<<rangeBits + rows.Position
	if offset < m.from {
		return streams.Message{}, false
	}
	batch := flow.Batch{Lineage: lineage(m.p.Stream, m.partition, offset), Record: m.p.Bound.within(rows.Record)}
	if m.arrived != 0 {
		batch.Watermark = m.arrived.Add(-arrivalSlack)
	}
	if batch.Record == nil {
		batch.Kind = flow.KindHeartbeat
	}
	return streams.Message{Stream: m.p.Stream, Partition: m.partition, Offset: offset, Batch: batch}, true
}

func (m *parquetMessages) close() {
	if m.stop != nil {
		m.stop()
	}
	m.next, m.stop = nil, nil
}

// Close implements run.Messages.
func (m *parquetMessages) Close() error {
	m.close()
	m.cancel()
	return nil
}
