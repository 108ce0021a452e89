package run

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"

	"hearthline/blobs"
	"hearthline/flow"
	"hearthline/streams"
)

// The world of a simulation: what is kept of streams, commits, blobs and sinks while processes come and go, and what a
// process sees of it. Every use is a request (see simulation_schedule_test.go). The world itself checks, whenever it is
// used, what must never happen.

// at is a partition of a stream.
type at struct {
	stream    string
	partition int32
}

func (a at) String() string { return a.stream + "/" + itoa(a.partition) }

// keptRow is a row that a sink holds: a number and when it was received, or the text of a dead letter.
type keptRow struct {
	received, n int64
	text        string
}

// simWorld is what outlives every process.
type simWorld struct {
	logs   map[at][]flow.Batch
	said   map[said]uint64 // every batch ever published, by what it says it is
	groups map[string]*group
	blobs  map[string][]byte
	held   map[flow.Range][]keptRow
	broken error // the first thing that must never happen
}

// said is a place in a stream's lineage, under which there may be one batch only.
type said struct {
	at
	flow.Lineage
	kind flow.Kind
}

func newSimWorld() *simWorld {
	return &simWorld{
		logs: map[at][]flow.Batch{}, said: map[said]uint64{}, groups: map[string]*group{}, blobs: map[string][]byte{},
		held: map[flow.Range][]keptRow{},
	}
}

func (w *simWorld) violated(format string, args ...any) {
	if w.broken == nil {
		w.broken = fmt.Errorf(format, args...)
	}
}

// append adds batches (whose records it takes over) to a log. What is published twice must be the same twice.
func (w *simWorld) append(to at, batches ...flow.Batch) {
	for _, b := range batches {
		if b.Kind != unreadable {
			key, sum := said{to, b.Lineage, b.Kind}, contentOf(&b)
			if before, ok := w.said[key]; ok && before != sum {
				w.violated("%v: the batch %v %v (%v) was made twice and differs", to, b.Lineage.Source, b.Lineage.Position, b.Kind)
			}
			w.said[key] = sum
		}
		w.logs[to] = append(w.logs[to], b)
	}
}

func (w *simWorld) release() {
	for _, log := range w.logs {
		for _, b := range log {
			if b.Record != nil {
				b.Record.Release()
			}
		}
	}
}

// contentOf is a hash of what a batch says.
func contentOf(b *flow.Batch) uint64 {
	h := fnv.New64a()
	number := func(v int64) {
		var x [8]byte
		for i := range x {
			x[i] = byte(v >> (8 * i))
		}
		h.Write(x[:])
	}
	number(int64(b.Watermark))
	number(int64(b.Bounds.First))
	number(int64(b.Bounds.Last))
	for _, r := range keptOf(b.Record) {
		number(r.received)
		number(r.n)
		io.WriteString(h, r.text)
	}
	io.WriteString(h, b.Run)
	return h.Sum64()
}

// keptOf gives the rows of a record. Of a dead letter it leaves out the offset: gateways that repeat themselves move
// it. A sink's dead letters depend on how its ranges were cut, all but what was refused.
func keptOf(rec arrow.Record) []keptRow {
	if rec == nil {
		return nil
	}
	rows := make([]keptRow, rec.NumRows())
	if rec.Schema().Equal(flow.DeadSchema) {
		for i := range rows {
			rows[i].text = deadText(rec, i)
		}
		return rows
	}
	for i, r := range rowsOf(rec) {
		rows[i] = keptRow{received: r.Received, n: r.N}
	}
	return rows
}

func deadText(rec arrow.Record, row int) string {
	text := func(col int) string {
		d := rec.Column(col).(*array.Dictionary)
		return d.Dictionary().(*array.String).Value(d.GetValueIndex(row))
	}
	who, stream := text(2), text(4)
	body := rec.Column(10).(*array.String).Value(row)
	place := fmt.Sprintf("%s %s %s/%d %s", who, text(3), stream, rec.Column(5).(*array.Int32).Value(row), body)
	if who == "keep" || who == "graves" {
		return place
	}
	return fmt.Sprintf("%s row %d %d", place, rec.Column(7).(*array.Int32).Value(row), rec.Column(0).(*array.Timestamp).Value(row))
}

// store keeps the rows of a range. The same range must always hold the same rows.
func (w *simWorld) store(r flow.Range, rows []keptRow) {
	if before, ok := w.held[r]; ok && !slices.Equal(before, rows) {
		w.violated("range %v held %v and is written again with %v", r, before, rows)
	}
	w.held[r] = rows
}

// keeps is what the sinks hold of a partition, in the order of its ranges.
func (w *simWorld) keeps(a at) (rows []keptRow, err error) {
	var ranges []flow.Range
	for r := range w.held {
		if r.Stream == a.stream && r.Partition == a.partition {
			ranges = append(ranges, r)
		}
	}
	slices.SortFunc(ranges, func(a, b flow.Range) int { return cmp.Compare(a.First, b.First) })
	for i, r := range ranges {
		if i > 0 && r.First <= ranges[i-1].Last {
			return nil, fmt.Errorf("ranges overlap: %v and %v", ranges[i-1], r)
		}
		rows = append(rows, w.held[r]...)
	}
	return rows, nil
}

// Road, store and sink, as one process sees them.

var (
	errWorld      = errors.New("the world failed")
	errUnanswered = fmt.Errorf("%w: no answer", errWorld)
	errDead       = errors.New("the process was killed")
)

func (p *process) Publish(ctx context.Context, stream string, partition int32, batches ...flow.Batch) (int64, error) {
	to := at{stream, partition}
	r := &request{
		key:    "publish " + to.String() + " of " + batches[0].Lineage.Stream + "/" + itoa(batches[0].Lineage.Partition),
		faults: canFail | canLose | canBeLate,
		hold: func() {
			batches = slices.Clone(batches)
			for _, b := range batches {
				if b.Record != nil {
					b.Record.Retain()
				}
			}
		},
	}
	r.effect = func() error {
		if !r.held && len(batches) > 1 && p.s.dice.IntN(100) < p.s.tooLarge {
			return streams.ErrTooLarge
		}
		if !r.held {
			r.hold()
		}
		if p.s.bug.publish == nil || r.held {
			p.s.append(to, batches...)
		} else {
			p.s.bug.publish(p.s, r, to, batches)
		}
		return nil
	}
	r.drop = func() {
		for _, b := range batches {
			if b.Record != nil {
				b.Record.Release()
			}
		}
	}
	return 0, p.use(ctx, r)
}

func (p *process) Bounds(_ context.Context, stream string, partition int32) (first, next int64, err error) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return 0, int64(len(p.s.logs[at{stream, partition}])), nil
}

func (p *process) Reader(stream string, partition int32, offset int64) source {
	return &simReader{p: p, from: at{stream, partition}, next: offset}
}

// ofTask is the key of a context's value: for which partition a task works.
type ofTask struct{}

// readFor tells the requests of tasks apart that read a partition which is not theirs: one that begins anew looks for batches of
// its own in all partitions of a stream with a key.
func readFor(ctx context.Context, from at) string {
	if p, ok := ctx.Value(ofTask{}).(int32); ok && p != from.partition {
		return " for " + itoa(p)
	}
	return ""
}

type simReader struct {
	p    *process
	from at
	next int64
}

func (r *simReader) Close() error { return nil }

func (r *simReader) Next(ctx context.Context) (streams.Message, error) {
	s := r.p.s
	var b flow.Batch
	err := r.p.use(ctx, &request{
		key:    "fetch " + r.from.String() + readFor(ctx, r.from),
		faults: canFail,
		ready:  func() bool { return r.next < int64(len(s.logs[r.from])) },
		effect: func() error {
			b = s.logs[r.from][r.next]
			if b.Record != nil {
				b.Record.Retain()
			}
			return nil
		},
	})
	if err != nil {
		return streams.Message{}, err
	}
	r.next++
	if b.Kind == unreadable {
		return streams.Message{}, &streams.DecodeError{Stream: r.from.stream, Partition: r.from.partition, Offset: r.next - 1, Err: errors.New("unreadable")}
	}
	m := streams.Message{Stream: r.from.stream, Partition: r.from.partition, Offset: r.next - 1, Batch: b, Bytes: 100}
	if s.bug.read != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bug.read(s, &m)
	}
	return m, nil
}

func (p *process) takesTime(ctx context.Context, stage string, first int64) error {
	return p.use(ctx, &request{
		key: "process " + stage + " " + strconv.FormatInt(first, 10), faults: canFail | often,
		effect: func() error { return nil },
	})
}

// Put, Get, List and Delete are of blobs.Store. The place of a name that its key tells is its prefix: names hold times.
func (p *process) Put(ctx context.Context, name string, from io.Reader) error {
	b, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	return p.use(ctx, &request{
		key: "put " + blobPlace(name), faults: canFail | canLose | canBeLate | slow,
		effect: func() error { p.s.blobs[name] = p.s.bug.kept(p.s, name, b); return nil },
	})
}

func blobPlace(name string) string { return name[:strings.LastIndexByte(name, '/')] }

func (p *process) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	var b []byte
	err := p.use(ctx, &request{
		key: "get " + blobPlace(name), faults: canFail | slow,
		effect: func() error {
			var ok bool
			if b, ok = p.s.blobs[name]; !ok {
				return fs.ErrNotExist
			}
			return nil
		},
	})
	return io.NopCloser(bytes.NewReader(b)), err
}

func (p *process) List(ctx context.Context, prefix string) ([]blobs.Info, error) {
	var infos []blobs.Info
	err := p.use(ctx, &request{
		key: "list " + prefix, faults: canFail | slow,
		effect: func() error {
			for _, name := range slices.Sorted(maps.Keys(p.s.blobs)) {
				if strings.HasPrefix(name, prefix) {
					infos = append(infos, blobs.Info{Name: name, Size: int64(len(p.s.blobs[name]))})
				}
			}
			return nil
		},
	})
	return infos, err
}

func (p *process) Delete(ctx context.Context, name string) error {
	return p.use(ctx, &request{
		key: "delete " + blobPlace(name), faults: canFail | canLose | canBeLate | slow,
		effect: func() error { delete(p.s.blobs, name); return nil },
	})
}

// Write is of flow.Sink.
func (p *process) Write(ctx context.Context, r flow.Range, recs []arrow.Record) error {
	var rows []keptRow
	for _, rec := range recs {
		if !rec.Schema().Equal(recs[0].Schema()) {
			return fmt.Errorf("range %s holds rows of two schemas", r)
		}
		rows = append(rows, keptOf(rec)...)
	}
	var bad flow.BadRows
	good := rows
	if p.s.fussy {
		if slices.ContainsFunc(rows, func(k keptRow) bool { return k.text == "" && k.n%37 == 5 }) {
			return flow.Badf("37 times something and 5: with all that came with it")
		}
		good = nil
		for i, k := range rows {
			if k.refused() {
				bad.Add(i, "eleven times something and three")
			} else {
				good = append(good, k)
			}
		}
	}
	err := p.use(ctx, &request{
		key: fmt.Sprintf("write %s/%d", r.Stream, r.Partition), faults: canFail | canLose | canBeLate | slow | often,
		effect: func() error { p.s.store(r, good); return nil },
	})
	return cmp.Or(err, bad.Err())
}

// refused says whether a fussy sink refuses a row by itself.
func (k keptRow) refused() bool { return k.text == "" && k.n%11 == 3 }
