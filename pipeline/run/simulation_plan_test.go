package run

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/pipeline"
)

// What a simulation runs: small pipelines, the stages in them, and what the gateways say.

// counted is an allocator that knows how many bytes are out.
type counted struct {
	memory.Allocator
	out atomic.Int64
}

func (c *counted) Allocate(size int) []byte {
	c.out.Add(int64(size))
	return c.Allocator.Allocate(size)
}
func (c *counted) Free(b []byte) { c.out.Add(-int64(len(b))); c.Allocator.Free(b) }
func (c *counted) Reallocate(size int, b []byte) []byte {
	c.out.Add(int64(size - len(b)))
	return c.Allocator.Reallocate(size, b)
}

func recordIn(mem memory.Allocator, rows []pending) arrow.Record {
	b := array.NewRecordBuilder(mem, numbers)
	defer b.Release()
	for _, r := range rows {
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(r.Received))
		b.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(r.Received))
		b.Field(2).(*array.Int64Builder).Append(r.N)
	}
	return b.NewRecord()
}

func rowsOf(rec arrow.Record) []pending {
	received, values := rec.Column(1).(*array.Timestamp).TimestampValues(), valuesOf(rec)
	rows := make([]pending, len(values))
	for i := range values {
		rows[i] = pending{int64(received[i]), values[i]}
	}
	return rows
}

// stageWorld is what the stages of a simulation use of it.
type stageWorld interface {
	// takesTime returns when the scheduler says so: workers of a stateless unit end in any order.
	takesTime(ctx context.Context, stage string, first int64) error
	mem() memory.Allocator
}

// filter remembers nothing. It passes the rows that div divides (all, if it is 0), finds multiples of 7 bad, and
// panics with a whole batch that holds a multiple of 41.
type filter struct {
	w    stageWorld
	name string
	div  int64
}

func (f filter) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	rows := rowsOf(in)
	if err := f.w.takesTime(ctx, f.name, rows[0].N); err != nil {
		return nil, err
	}
	var good []pending
	var bad flow.BadRows
	for i, r := range rows {
		switch {
		case f.div != 0 && r.N%f.div != 0:
		case r.N%41 == 0:
			panic("forty-one")
		case r.N%7 == 0:
			bad.Add(i, "a multiple of seven")
		default:
			good = append(good, r)
		}
	}
	return []flow.Output{{To: "out", Record: recordIn(f.w.mem(), good)}}, bad.Err()
}

// adder remembers a running sum, and gives it for every row.
type adder struct {
	w     stageWorld
	total int64
}

func (s *adder) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	rows := rowsOf(in)
	if err := s.w.takesTime(ctx, "sum", rows[0].N); err != nil {
		return nil, err
	}
	for i := range rows {
		s.total += rows[i].N
		rows[i].N = s.total
	}
	return []flow.Output{{To: "sums", Record: recordIn(s.w.mem(), rows)}}, nil
}
func (s *adder) Snapshot(w io.Writer) error { return binary.Write(w, binary.LittleEndian, s.total) }
func (s *adder) Restore(r io.Reader) error  { return binary.Read(r, binary.LittleEndian, &s.total) }

// ringer gives, whenever a second has passed, how many rows came since it last did: one row a second that had some.
type ringer struct {
	w                  stageWorld
	Rows, Second, Rung int64
}

func (b *ringer) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	b.Rows += in.NumRows()
	return []flow.Output{{To: "counts", Record: recordIn(b.w.mem(), nil)}}, nil
}
func (b *ringer) Advance(_ context.Context, w flow.Micros) ([]flow.Output, error) {
	second := int64(w) / 1_000_000
	if second <= b.Second {
		return nil, nil
	}
	b.Second = second
	b.Rung++
	out := recordIn(b.w.mem(), []pending{{int64(w), b.Rows}})
	b.Rows = 0
	return []flow.Output{{To: "counts", Record: out}}, nil
}
func (b *ringer) Snapshot(w io.Writer) error {
	return binary.Write(w, binary.LittleEndian, []int64{b.Rows, b.Second, b.Rung})
}
func (b *ringer) Restore(r io.Reader) error {
	for _, v := range []*int64{&b.Rows, &b.Second, &b.Rung} {
		if err := binary.Read(r, binary.LittleEndian, v); err != nil {
			return err
		}
	}
	return nil
}

// weaver is weave (see merge_test.go) whose memory is counted.
type weaver struct {
	w       stageWorld
	Hash    int64
	Pending []pending
}

func (w *weaver) Process(_ context.Context, in arrow.Record) ([]flow.Output, error) {
	var order []pending
	for _, r := range rowsOf(in) {
		w.Hash = w.Hash*31 + r.N
		order = append(order, pending{r.Received, w.Hash})
		w.Pending = append(w.Pending, r)
	}
	return []flow.Output{{To: "order", Record: recordIn(w.w.mem(), order)}, {To: "due", Record: recordIn(w.w.mem(), nil)}}, nil
}

func (w *weaver) Advance(_ context.Context, watermark flow.Micros) ([]flow.Output, error) {
	slices.SortFunc(w.Pending, func(a, b pending) int { return cmp.Or(cmp.Compare(a.Received, b.Received), cmp.Compare(a.N, b.N)) })
	n, _ := slices.BinarySearchFunc(w.Pending, int64(watermark), func(p pending, at int64) int { return cmp.Compare(p.Received, at) })
	due := w.Pending[:n]
	w.Pending = slices.Clone(w.Pending[n:])
	return []flow.Output{{To: "due", Record: recordIn(w.w.mem(), due)}}, nil
}
func (w *weaver) Snapshot(to io.Writer) error {
	return gob.NewEncoder(to).Encode(weave{w.Hash, w.Pending})
}
func (w *weaver) Restore(from io.Reader) error {
	var s weave
	err := gob.NewDecoder(from).Decode(&s)
	w.Hash, w.Pending = s.Hash, s.Pending
	return err
}

// crowder remembers a sum, which the order of its rows does not change: several tasks write to what it reads, and which of
// them comes first is not told.
type crowder struct {
	w     stageWorld
	total int64
}

func (s *crowder) Process(ctx context.Context, in arrow.Record) ([]flow.Output, error) {
	rows := rowsOf(in)
	if err := s.w.takesTime(ctx, "crowd", rows[0].N); err != nil {
		return nil, err
	}
	for _, r := range rows {
		s.total += r.N * r.N
	}
	return []flow.Output{{To: "all", Record: recordIn(s.w.mem(), rows)}}, nil
}
func (s *crowder) Snapshot(w io.Writer) error { return binary.Write(w, binary.LittleEndian, s.total) }
func (s *crowder) Restore(r io.Reader) error  { return binary.Read(r, binary.LittleEndian, &s.total) }

// crossing is a weaver that tells its inputs apart.
type crossing struct{ weaver }

func (*crossing) InputNames() []string { return []string{"warp", "weft"} }

func (c *crossing) ProcessInput(ctx context.Context, input string, in arrow.Record) ([]flow.Output, error) {
	if input == "weft" {
		c.Hash += 7
	}
	return c.Process(ctx, in)
}

// simPlan makes one of the pipelines that are simulated.
//
//	0: raw → sieve → good → [sum → sums, bell → counts]; keep(sums, counts), graves(sieve.dead, keep.dead)
//	1: raw → twos, raw → thirds; twos, thirds → weave → order, due; keep(order, due), graves(twos.dead, keep.dead)
//	3: raw → spread → shares, whose rows are parted by number; shares → crowd → all; keep(all, shares), graves(spread.dead, keep.dead)
//	2: raw → thirds; raw, thirds → weave, which tells them apart; keep(order, due), graves(weave.dead, keep.dead)
func simPlan(kind int, partitions int, w stageWorld) *pipeline.Plan {
	p := &pipeline.Plan{
		Spec:    &pipeline.Spec{Name: "sim", Partitions: partitions, Gateway: pipeline.Gateway{To: "raw"}},
		Streams: map[string]*pipeline.Stream{},
	}
	node := func(from []string, outputs map[string]string, name string, make func() flow.Stage) *pipeline.StageNode {
		n := stage(name, "", make, outputs)
		n.From = from
		return n
	}
	unit := func(name string, inputs []string, stages ...*pipeline.StageNode) {
		p.Units = append(p.Units, &pipeline.Unit{Name: name, Inputs: inputs, Stages: stages})
	}
	pass := func(name, to string, div int64) {
		unit(name, []string{"raw"}, node([]string{"raw"}, map[string]string{"out": to}, name, func() flow.Stage { return filter{w, name, div} }))
	}
	join := func(inputs ...string) {
		unit("weave", inputs, node(inputs, map[string]string{"order": "order", "due": "due"}, "weave", func() flow.Stage { return &weaver{w: w} }))
	}
	crossed := func(warp, weft string) {
		join(warp, weft)
		n := p.Units[len(p.Units)-1].Stages[0]
		n.New, n.Inputs = func() flow.Stage { return &crossing{weaver{w: w}} }, map[string]string{"warp": warp, "weft": weft}
	}
	var kept, buried []string
	switch kind {
	case 0:
		pass("sieve", "good", 0)
		unit("sum+bell", []string{"good"},
			node([]string{"good"}, map[string]string{"sums": "sums"}, "sum", func() flow.Stage { return &adder{w: w} }),
			node([]string{"sums"}, map[string]string{"counts": "counts"}, "bell", func() flow.Stage { return &ringer{w: w} }))
		kept, buried = []string{"counts", "sums"}, []string{"keep.dead", "sieve.dead"}
	case 1:
		pass("twos", "twos", 2)
		pass("thirds", "thirds", 3)
		join("thirds", "twos")
		kept, buried = []string{"due", "order"}, []string{"keep.dead", "twos.dead"}
	case 2:
		pass("thirds", "thirds", 3)
		crossed("raw", "thirds")
		kept, buried = []string{"due", "order"}, []string{"keep.dead", "weave.dead"}
	}
	key := map[string][]string{}
	if kind == 3 {
		pass("spread", "shares", 0)
		unit("crowd", []string{"shares"}, node([]string{"shares"}, map[string]string{"all": "all"}, "crowd", func() flow.Stage { return &crowder{w: w} }))
		kept, buried = []string{"all", "shares"}, []string{"keep.dead", "spread.dead"}
		key["shares"] = []string{"n"}
	}
	p.Sinks = []*pipeline.SinkNode{
		{Sink: pipeline.Sink{Name: "keep"}, Streams: kept, Dead: "keep.dead"},
		{Sink: pipeline.Sink{Name: "graves"}, Streams: buried, Dead: "graves.dead"},
	}
	names := []string{"raw", "keep.dead", "graves.dead"}
	for _, u := range p.Units {
		for _, s := range u.Stages {
			names = append(names, s.Dead)
			for _, stream := range s.Outputs {
				names = append(names, stream)
			}
		}
	}
	for _, s := range names {
		p.Streams[s] = &pipeline.Stream{Name: s, Key: key[s]}
	}
	for _, u := range p.Units {
		for _, s := range u.Stages {
			for _, stream := range s.Outputs {
				p.Streams[stream].Writer = s.Name
			}
		}
	}
	return p
}

const simKinds = 4

// simGateways is how many gateways write each partition of raw.
const simGateways = 2

// script is what the gateways write to one partition of raw, in this order.
type script []flow.Batch

// write makes a script: rows, heartbeats, messages that nobody can read, a gateway that falls silent for more than a
// minute of the others' time and comes back, and the end.
func write(mem memory.Allocator, dice *rand.Rand, partition int32, batches int) script {
	var s script
	now, n := int64(1_000_000), 1000*int64(partition) // no two partitions have a number in common
	var offset [simGateways]int64
	var told [simGateways]int64
	var start [simGateways]int
	silent := -1
	add := func(g int, b flow.Batch) {
		offset[g]++
		told[g] = max(told[g], now-int64(dice.IntN(400_000))) // their clocks differ
		b.Lineage = flow.Lineage{
			Source:   flow.Source{Producer: fmt.Sprintf("gateway/%d~%d", g, start[g]), Partition: partition},
			Position: flow.Position{Offset: offset[g]},
		}
		b.Watermark = flow.Micros(told[g])
		s = append(s, b)
	}
	for range batches {
		switch dice.IntN(24) {
		case 0:
			now += 70_000_000
		case 1:
			now += int64(25 * time.Hour / time.Microsecond)
		default:
			now += int64(dice.IntN(1_200_000))
		}
		if dice.IntN(8) == 0 {
			silent = dice.IntN(simGateways+1) - 1
		}
		g := dice.IntN(simGateways)
		if g == silent {
			g = (g + 1) % simGateways
		}
		if dice.IntN(12) == 0 {
			start[g]++ // it is started anew: see docs/decisions/0016
			offset[g] = 0
		}
		var b flow.Batch
		switch dice.IntN(10) {
		case 0, 1:
			b.Kind = flow.KindHeartbeat
		case 2:
			b.Kind = unreadable
		default:
			var rows []pending
			for range 1 + dice.IntN(4) {
				n++
				rows = append(rows, pending{now, n})
			}
			b.Record = recordIn(mem, rows)
		}
		add(g, b)
	}
	for g := range simGateways {
		now += 100_000
		add(g, flow.Batch{Kind: flow.KindEnd, Run: "r"})
	}
	return s
}

func (s script) release() {
	for _, b := range s {
		if b.Record != nil {
			b.Record.Release()
		}
	}
}
