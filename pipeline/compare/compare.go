// Package compare pairs what two versions of a stage make of the same batches, row by row, and says how they differ, column
// by column. It reads their streams as they are, in bounded memory, and says what it could not pair.
package compare

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/util"

	"hearthline/flow"
	"hearthline/pipeline"
	"hearthline/streams"
)

// Limits of a comparison.
const (
	heldBytesMax = 64 << 20 // records with rows that wait for the other version's
	heldRowsMax  = 200_000
	// A row waits for its partner until the other version has come so many batches of the input further: a window may close
	// with another batch.
	patience  = 64
	mostShown = 5 // differences of a column
)

// DefaultKeys are the columns that say which row is which, where a stream has them.
var DefaultKeys = []string{flow.ColTime, flow.ColHome, flow.ColDevice, flow.ColMetric, "window", "window_end"}

// Version is one of the two.
type Version int

// The versions.
const (
	First Version = iota
	Second
)

// Comparison gathers what two versions of a stage make. Its methods may be called by several goroutines.
type Comparison struct {
	// Tolerance is the share of the larger of two numbers by which they may differ and still be equal.
	Tolerance float64
	// Live says that messages are taken as they come, so that it means something which came first.
	Live bool
	// Keys are the columns that say which row is which; those that a stream has not are left out.
	Keys []string

	stage   *pipeline.StageNode
	percent float64 // of a canary; negative: a shadow
	outputs map[string]*output
	dead    map[string]Version

	mu       sync.Mutex
	marks    map[mark]flow.Position
	came     map[place]*reached
	bytes    int64
	rows     int64
	age      map[place][]*held // those with rows that wait, the oldest first
	duplic   int64
	deadRows [2]int64
	arrivals summary // seconds from the first version's row to the second's
	begun    time.Time
}

// mark is a producer in a stream's partition.
type mark struct {
	stream    string
	partition int32
	flow.Source
}

// place is a partition of an input of the stage, as a version has come through it.
type place struct {
	input     string
	partition int32
}

// reached is where each of two streams, what counts and the side, was first and last heard of. A row and its partner never
// stand in the same.
type reached struct{ first, last [2]int64 }

// output is a stream of the stage, and its rows that wait.
type output struct {
	stream  string
	columns []*column
	waiting map[string][]*waiting // by version and key
	paired  int64
	equal   int64 // in all columns
	only    [2]int64
	gaveUp  int64
	edge    int64
}

type column struct {
	name    string
	kind    string
	of      [2]summary
	paired  int64
	equal   int64
	diff    summary // of numbers: the second's less the first's
	largest differences
}

// held is a record with rows that wait.
type held struct {
	out    *output
	rec    arrow.Record
	cells  []cells // by column of out
	keys   []string
	at     place
	offset int64
	came   time.Time
	left   int
	bytes  int64
	rows   []*waiting
}

type waiting struct {
	*held
	row  int
	done bool
}

// New compares the versions of a stage that has a shadow or a canary.
func New(plan *pipeline.Plan, stage string) (*Comparison, error) {
	unit := plan.Node(stage)
	if unit == nil {
		return nil, fmt.Errorf("no stage %q in %s", stage, plan.Spec.File)
	}
	c := &Comparison{
		Tolerance: 1e-9, Keys: DefaultKeys, percent: -1, outputs: map[string]*output{}, dead: map[string]Version{},
		marks: map[mark]flow.Position{}, came: map[place]*reached{}, age: map[place][]*held{}, begun: time.Now(),
	}
	for _, s := range unit.Stages {
		if s.Name == stage {
			c.stage = s
		}
	}
	if c.stage == nil || c.stage.Trial == nil {
		return nil, fmt.Errorf("stage %s has neither a shadow nor a canary", stage)
	}
	kind := c.stage.Trial.Kind
	if kind == pipeline.TrialCanary {
		c.percent = c.stage.Trial.Percent
	}
	for _, stream := range c.stage.Outputs {
		side := plan.Streams[pipeline.Side(stream, kind)]
		if stream == pipeline.Drop || side == nil || !plan.Streams[stream].OnKafka() {
			continue
		}
		out := &output{stream: stream, waiting: map[string][]*waiting{}}
		c.outputs[stream], c.outputs[side.Name] = out, out
	}
	if len(c.outputs) == 0 {
		return nil, fmt.Errorf("no output of %s goes over Kafka, where it could be compared", stage)
	}
	c.dead[c.stage.Dead] = First
	for name, st := range plan.Streams {
		if st.Side && st.Writer == stage+"-"+pipeline.TrialShadow && strings.HasSuffix(name, ".dead") {
			c.dead[name] = Second
		}
	}
	return c, nil
}

// Streams lists what is to be read.
func (c *Comparison) Streams() []string {
	var names []string
	for name := range c.outputs {
		names = append(names, name)
	}
	for name := range c.dead {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Take adds a message of one of the streams, which it borrows. Heartbeats count, too: they say how far a version is.
func (c *Comparison) Take(m streams.Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := mark{m.Stream, m.Partition, m.Batch.Lineage.Source}
	if last, known := c.marks[key]; known && !m.Batch.Lineage.Position.After(last) {
		c.duplic++
		return nil
	}
	c.marks[key] = m.Batch.Lineage.Position
	if v, dead := c.dead[m.Stream]; dead {
		if m.Batch.Record != nil {
			c.deadRows[v] += m.Batch.Record.NumRows()
		}
		return nil
	}
	out := c.outputs[m.Stream]
	if out == nil {
		return nil
	}
	at := place{m.Batch.Lineage.Stream, m.Batch.Lineage.Partition}
	c.heard(m, out, at)
	if m.Batch.Record != nil {
		if err := c.record(m, out, at); err != nil {
			return err
		}
	}
	c.expire(at)
	return nil
}

// heard notes how far a stream is.
func (c *Comparison) heard(m streams.Message, out *output, at place) {
	r := c.came[at]
	if r == nil {
		r = &reached{first: [2]int64{math.MaxInt64, math.MaxInt64}, last: [2]int64{-1, -1}}
		c.came[at] = r
	}
	i := 0
	if m.Stream != out.stream {
		i = 1
	}
	r.first[i] = min(r.first[i], m.Batch.Lineage.Offset)
	r.last[i] = max(r.last[i], m.Batch.Lineage.Offset)
}

// record pairs the rows of a record, and holds those that find no partner.
func (c *Comparison) record(m streams.Message, out *output, at place) error {
	rec := m.Batch.Record
	h := &held{out: out, rec: rec, at: at, offset: m.Batch.Lineage.Offset, came: time.Now(), bytes: util.TotalRecordSize(rec)}
	out.shape(rec)
	for _, col := range out.columns {
		i := rec.Schema().FieldIndices(col.name)
		if len(i) == 0 {
			h.cells = append(h.cells, cells{kind: kindOther, null: func(int) bool { return true }, text: func(int) string { return "" }})
			continue
		}
		h.cells = append(h.cells, cellsOf(rec, i[0]))
	}
	theirs := func(int) bool { return m.Stream != out.stream }
	if c.percent >= 0 {
		homes, err := flow.StringsOf(rec, flow.ColHome)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Stream, err)
		}
		side := m.Stream != out.stream
		theirs = func(row int) bool {
			return pipeline.IsCanary(c.stage.ID(), homes.Value(row), c.percent) != side
		}
	}
	var key strings.Builder
	for row := range int(rec.NumRows()) {
		v := First
		if theirs(row) {
			v = Second
		}
		key.Reset()
		key.WriteByte('0' + byte(v))
		for i, col := range out.columns {
			if slices.Contains(c.Keys, col.name) {
				key.WriteByte(0)
				key.WriteString(h.cells[i].shown(row))
			}
		}
		c.row(h, row, v, key.String())
	}
	if h.left > 0 {
		rec.Retain()
		c.bytes += h.bytes
		c.age[at] = append(c.age[at], h)
	}
	return nil
}

// shape learns the columns of an output from its first record, and of the other version's what it has more.
func (o *output) shape(rec arrow.Record) {
	for i, f := range rec.Schema().Fields() {
		if !slices.ContainsFunc(o.columns, func(c *column) bool { return c.name == f.Name }) {
			o.columns = append(o.columns, &column{name: f.Name, kind: cellsOf(rec, i).kind})
		}
	}
}

// row pairs a row, with one of the same batch of the input if there is one, or lets it wait. The version stands in front of the
// key.
func (c *Comparison) row(h *held, row int, v Version, key string) {
	other := string(rune('0'+int(Second-v))) + key[1:]
	list := h.out.waiting[other]
	best := -1
	for i, w := range list {
		if best < 0 || w.at == h.at && w.offset == h.offset && list[best].offset != h.offset {
			best = i
		}
	}
	if best < 0 {
		w := &waiting{held: h, row: row}
		h.rows = append(h.rows, w)
		h.keys = append(h.keys, key)
		h.out.waiting[key] = append(h.out.waiting[key], w)
		h.left++
		c.rows++
		return
	}
	w := list[best]
	if list = slices.Delete(list, best, best+1); len(list) == 0 {
		delete(h.out.waiting, other)
	} else {
		h.out.waiting[other] = list
	}
	c.pair(w, h, row, v)
	c.settled(w)
}

// settled lets go of a row that waited.
func (c *Comparison) settled(w *waiting) {
	w.done = true
	w.left--
	c.rows--
	if w.left == 0 {
		c.bytes -= w.bytes
		w.rec.Release()
		w.rec, w.cells = nil, nil
	}
}

// pair compares a row that waited with one that has come.
func (c *Comparison) pair(w *waiting, h *held, row int, v Version) {
	out := h.out
	one, i, two, j := w.held, w.row, h, row
	wait := h.came.Sub(w.came).Seconds()
	if v == First {
		one, i, two, j = h, row, w.held, w.row
		wait = -wait
	}
	c.arrivals.add(&cells{kind: kindNumber, null: func(int) bool { return false }, number: func(int) float64 { return wait }}, 0)
	out.paired++
	same := true
	for k, col := range out.columns {
		a, b := &one.cells[min(k, len(one.cells)-1)], &two.cells[min(k, len(two.cells)-1)]
		if k >= len(one.cells) || k >= len(two.cells) {
			continue // a column that only a later record has
		}
		col.of[First].add(a, i)
		col.of[Second].add(b, j)
		col.paired++
		if a.equal(i, b, j, c.Tolerance) {
			col.equal++
		} else {
			same = false
			col.differs(c, out, one, i, two, j, a, b)
		}
		if a.kind == kindNumber && b.kind == kindNumber && !a.null(i) && !b.null(j) {
			x := b.number(j) - a.number(i)
			col.diff.add(&cells{kind: kindNumber, null: func(int) bool { return false }, number: func(int) float64 { return x }}, 0)
		}
	}
	if same {
		out.equal++
	}
}

// alone counts a row that has no partner.
func (c *Comparison) alone(w *waiting, v Version) {
	for k, col := range w.out.columns {
		if k < len(w.cells) {
			col.of[v].add(&w.cells[k], w.row)
		}
	}
	w.out.only[v]++
}

// expire gives up the rows of a partition whose partners will not come, since both versions are further; and, while there is no
// more room, the oldest of any.
func (c *Comparison) expire(at place) {
	r := c.came[at]
	for len(c.age[at]) > 0 {
		h := c.age[at][0]
		past := min(r.last[0], r.last[1]) > h.offset+patience
		if h.left > 0 && !past {
			break
		}
		c.drop(at, past)
	}
	for c.bytes > heldBytesMax || c.rows > heldRowsMax {
		oldest, found := place{}, false
		for other, list := range c.age {
			if len(list) > 0 && (!found || list[0].came.Before(c.age[oldest][0].came)) {
				oldest, found = other, true
			}
		}
		if !found {
			return
		}
		c.drop(oldest, false)
	}
}

// drop gives up the oldest record of a partition.
func (c *Comparison) drop(at place, past bool) {
	h := c.age[at][0]
	for i, w := range h.rows {
		if !w.done {
			c.giveUp(w, h.keys[i], past)
		}
	}
	c.age[at] = c.age[at][1:]
}

// giveUp takes a row out of those that wait.
func (c *Comparison) giveUp(w *waiting, key string, past bool) {
	list := w.out.waiting[key]
	if i := slices.Index(list, w); i >= 0 {
		if list = slices.Delete(list, i, i+1); len(list) == 0 {
			delete(w.out.waiting, key)
		} else {
			w.out.waiting[key] = list
		}
	}
	v := Version(key[0] - '0')
	switch r := c.came[w.at]; {
	case !past:
		w.out.gaveUp++
	case w.offset <= max(r.first[0], r.first[1]):
		w.out.edge++ // what the other made of it came before this began
	default:
		c.alone(w, v)
	}
	c.settled(w)
}

// differences keeps the largest, the smallest of them first.
type differences []Difference

func (d differences) Len() int           { return len(d) }
func (d differences) Less(i, j int) bool { return d[i].size < d[j].size }
func (d differences) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *differences) Push(x any)        { *d = append(*d, x.(Difference)) }
func (d *differences) Pop() any          { old := *d; x := old[len(old)-1]; *d = old[:len(old)-1]; return x }

// differs keeps a difference if it is one of the largest of its column.
func (col *column) differs(c *Comparison, out *output, one *held, i int, two *held, j int, a, b *cells) {
	d := Difference{size: math.MaxFloat64}
	if a.kind == kindNumber && b.kind == kindNumber && !a.null(i) && !b.null(j) {
		d.size = math.Abs(b.number(j) - a.number(i))
	}
	if len(col.largest) >= mostShown && d.size <= col.largest[0].size {
		return
	}
	d.First, d.Second = a.shown(i), b.shown(j)
	for k, other := range out.columns {
		if slices.Contains(c.Keys, other.name) && k < len(one.cells) {
			d.Row = append(d.Row, other.name+"="+one.cells[k].shown(i))
		}
	}
	heap.Push(&col.largest, d)
	if len(col.largest) > mostShown {
		heap.Pop(&col.largest)
	}
}

func sortedDifferences(d differences) []Difference {
	return slices.SortedStableFunc(slices.Values(d), func(a, b Difference) int { return cmp.Compare(b.size, a.size) })
}
