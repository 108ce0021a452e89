package keyed

import (
	"bytes"
	"container/heap"
	"fmt"
	"io"
	"slices"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

// Declaration is a state whose fields are known only when it is read: one that another language declares.
type Declaration struct {
	Settings
	Fields []FieldDefault
	Timer  string // field of kind Instant that may be null: when its key wants to be told that time has passed; "" for none
}

// FieldDefault is a field, and what it is of a key that is new.
type FieldDefault struct {
	Field
	Default Value
}

// Value is a value of a field: Int of whole numbers, instants, and booleans (0 and 1); Text of texts and bytes.
type Value struct {
	Null  bool
	Int   int64
	Float float64
	Text  string
}

// Columns keeps declared fields for each key of one partition. The states of a batch's keys are taken out as a record, and what
// becomes of them is put back whole, or not at all. It is used by one goroutine at a time.
type Columns struct {
	index
	declaration Declaration
	fields      []fieldColumn
	timer       int     // field; -1 for none
	timers      dueHeap // of keys that want to be told; one whose field says otherwise is void
	forgot      int64
	entryOf     []int32 // by slot: its newest entry in the batch at hand; none
}

// NewColumns gives an empty one.
func NewColumns(d Declaration) (*Columns, error) {
	ix, err := newIndex(d.Settings)
	if err != nil {
		return nil, err
	}
	c := &Columns{index: ix, declaration: d, timer: -1}
	if len(d.Fields) == 0 || len(d.Fields) > fieldsMax {
		return nil, fmt.Errorf("state has %d fields; want 1 to %d", len(d.Fields), fieldsMax)
	}
	for i, f := range d.Fields {
		switch {
		case f.Name == "" || f.Name == entryColumn || f.Name == knownColumn || slices.Contains(d.Key, f.Name):
			return nil, fmt.Errorf("a field of state cannot be called %q: that is a column beside it", f.Name)
		case f.Kind.Type() == nil:
			return nil, fmt.Errorf("field %q of state is of an unknown kind %q", f.Name, f.Kind)
		case f.Default.Null && !f.Nullable:
			return nil, fmt.Errorf("field %q of state has no default", f.Name)
		case slices.ContainsFunc(d.Fields[:i], func(o FieldDefault) bool { return o.Name == f.Name }):
			return nil, fmt.Errorf("two fields of state are called %q", f.Name)
		}
		c.fields = append(c.fields, fieldColumn{FieldDefault: f})
	}
	if d.Timer == "" {
		return c, nil
	}
	c.timer = slices.IndexFunc(d.Fields, func(f FieldDefault) bool { return f.Name == d.Timer })
	switch {
	case c.timer < 0 || d.Fields[c.timer].Kind != Instant || !d.Fields[c.timer].Nullable:
		return nil, fmt.Errorf("the timer of state is the field %q, which is to be an instant or null", d.Timer)
	case d.TTL == 0:
		return nil, fmt.Errorf("state with a timer (%q) needs a ttl: how long a key may go on without rows", d.Timer)
	}
	return c, nil
}

// The columns beside the fields, in what is taken and in what is put.
const (
	entryColumn = "_entry" // of what is put: the place in what was taken
	knownColumn = "_known" // of what is taken: the key has a state; of what is put: keep it, or forget the key
)

// Taken is the states of some keys, on their way to those who change them. Entries are counted from 0; a key may have two, when its
// first state was forgotten within the batch.
type Taken struct {
	Index   []int32      // for each row, its entry; with a timer they may be fewer rows than the batch has
	Full    flow.BadRows // rows whose key is one too many, which have none
	entries []taken
	timed   bool // no batch, but time: the entries' timers have passed
	put     bool
}

// taken is the state of one entry.
type taken struct {
	slot     int32
	known    bool        // the key has a state
	fresh    bool        // the slot was made for the batch
	gone     bool        // a later entry has its key
	rows     bool        // it has any
	first    flow.Micros // received time of the key's first row
	received flow.Micros
	at       flow.Micros // timer that has passed
}

// Until is the earliest timer that has passed.
func (t *Taken) Until() flow.Micros { return t.entries[0].at }

// Len is the number of entries.
func (t *Taken) Len() int { return len(t.entries) }

// Take looks up the states of a batch's keys. What is taken is given to Put, or to Drop: until then nothing else is done with c.
//
// Where the state has a timer, rows are taken only up to the first that finds the state of a row before it forgotten: what the timer of
// that state has to say comes in between. The rest of the batch is then taken by itself.
func (c *Columns) Take(rec arrow.Record) (*Taken, error) {
	if err := c.begin(rec); err != nil {
		return nil, err
	}
	defer c.end()
	t := &Taken{Index: make([]int32, 0, rec.NumRows())}
	for row := range int(rec.NumRows()) {
		entry, whole := c.takeRow(t, row)
		if !whole {
			break
		}
		t.Index = append(t.Index, entry)
	}
	for _, e := range t.entries {
		c.entryOf[e.slot] = none
	}
	return t, nil
}

// takeRow gives the entry of a row, or none for a key too many. It says whether the row can be taken with those before it.
func (c *Columns) takeRow(t *Taken, row int) (entry int32, whole bool) {
	slot := c.find(row)
	if slot == none {
		// The key has a slot as long as the batch is in hand, that its rows find each other.
		var err error
		if slot, err = c.add(row); err != nil {
			t.Full.Add(row, err.Error())
			return none, true
		}
		c.room(slot)
		c.entryOf[slot] = t.enter(taken{slot: slot, fresh: true, received: c.received[slot]})
	} else if c.entryOf[slot] == none {
		c.entryOf[slot] = t.enter(taken{slot: slot, known: true, received: c.received[slot]})
	}
	e := &t.entries[c.entryOf[slot]]
	if c.times == nil {
		return c.entryOf[slot], true
	}
	now := flow.Micros(c.times[row])
	if !e.rows {
		e.first = now
	}
	if now.Sub(e.received) > c.settings.TTL {
		if e.rows && c.timer >= 0 {
			return none, false
		}
		e.gone = true
		c.entryOf[slot] = t.enter(taken{slot: slot, first: now, received: now})
		e = &t.entries[c.entryOf[slot]]
	}
	e.rows, e.received = true, max(e.received, now)
	return c.entryOf[slot], true
}

// Passed takes the keys among those of t whose timer has passed before their first row, or gives nil. They are to be told first; t is
// dropped for it.
func (c *Columns) Passed(t *Taken) *Taken {
	if c.timer < 0 {
		return nil
	}
	passed := &Taken{timed: true}
	for _, e := range t.entries {
		if !e.known {
			continue
		}
		if at := c.timerOf(e.slot); !at.Null && flow.Micros(at.Int) < e.first && flow.Micros(at.Int) <= later(c.received[e.slot], c.settings.TTL) {
			passed.entries = append(passed.entries, taken{slot: e.slot, known: true, received: c.received[e.slot], at: flow.Micros(at.Int)})
		}
	}
	if len(passed.entries) == 0 {
		return nil
	}
	c.Drop(t)
	c.sort(passed)
	return passed
}

func (t *Taken) enter(e taken) int32 {
	t.entries = append(t.entries, e)
	return int32(len(t.entries)) - 1
}

// Due takes the states of the keys whose timer is before the watermark, or nil. Keys that were silent for their TTL before are not told.
func (c *Columns) Due(watermark flow.Micros) *Taken {
	t := &Taken{timed: true}
	for len(c.timers) > 0 && c.timers[0].at < watermark {
		d := heap.Pop(&c.timers).(due)
		if c.lives[d.slot] != d.life || c.timerOf(d.slot) != (Value{Int: int64(d.at)}) || c.entryOf[d.slot] != none || d.at > later(c.received[d.slot], c.settings.TTL) {
			continue
		}
		c.entryOf[d.slot] = 0
		t.entries = append(t.entries, taken{slot: d.slot, known: true, received: c.received[d.slot], at: d.at})
	}
	for _, e := range t.entries {
		c.entryOf[e.slot] = none
	}
	if len(t.entries) == 0 {
		return nil
	}
	c.sort(t)
	return t
}

// sort orders keys whose timers have passed by the time, and then by themselves.
func (c *Columns) sort(t *Taken) {
	slices.SortFunc(t.entries, func(a, b taken) int {
		if a.at != b.at {
			if a.at < b.at {
				return -1
			}
			return 1
		}
		return c.compare(a.slot, b.slot)
	})
}

func (c *Columns) timerOf(slot int32) Value { return c.fields[c.timer].value(slot) }

// compare orders slots by their keys.
func (c *Columns) compare(a, b int32) int {
	for i := range c.columns {
		x, y := c.keys[a][i], c.keys[b][i]
		if x == y {
			continue
		}
		if x == idNull || y == idNull { // null is first
			return int(y) - int(x)
		}
		if c.columns[i].values[x] < c.columns[i].values[y] {
			return -1
		}
		return 1
	}
	return 0
}

// Record gives what was taken: a row an entry, with the columns of the key, _known, and the fields. The caller releases it.
func (c *Columns) Record(mem memory.Allocator, t *Taken) arrow.Record {
	b := array.NewRecordBuilder(mem, c.Schema())
	defer b.Release()
	b.Reserve(len(t.entries))
	for i := range c.columns {
		for _, e := range t.entries {
			c.columns[i].appendTo(b.Field(i), c.keys[e.slot][i])
		}
	}
	at := len(c.columns)
	for _, e := range t.entries {
		b.Field(at).(*array.BooleanBuilder).Append(e.known)
	}
	for i := range c.fields {
		f := &c.fields[i]
		for _, e := range t.entries {
			if e.known {
				f.append(b.Field(at+1+i), f.value(e.slot))
			} else {
				f.append(b.Field(at+1+i), f.Default)
			}
		}
	}
	return b.NewRecord()
}

// Schema is that of Record.
func (c *Columns) Schema() *arrow.Schema {
	var fields []arrow.Field
	for _, k := range c.columns {
		kind := k.kind
		if kind == "" { // no row has told
			kind = Text
		}
		fields = append(fields, arrow.Field{Name: k.name, Type: kind.Type(), Nullable: true})
	}
	fields = append(fields, arrow.Field{Name: knownColumn, Type: Bool.Type()})
	for _, f := range c.fields {
		fields = append(fields, arrow.Field{Name: f.Name, Type: f.Kind.Type(), Nullable: f.Nullable})
	}
	return arrow.NewSchema(fields, nil)
}

// Put says what has become of what was taken: rows with _entry (int32), _known (false forgets the key) and all fields. Entries without
// a row are as they were. After an error nothing has changed, and t can be put or dropped still.
func (c *Columns) Put(t *Taken, changed arrow.Record) error {
	rows, err := c.rowsOf(t, changed)
	if err != nil {
		return err
	}
	keep := changed.Column(1).(*array.Boolean)
	for i := range t.entries {
		e, row := &t.entries[i], rows[i]
		switch {
		case e.gone:
		case row != none && keep.Value(int(row)):
			c.keep(t, e, changed, int(row))
		case row != none || !e.known:
			c.drop(e.slot)
		default:
			c.received[e.slot] = e.received
			if t.timed {
				c.setTimer(e, e.at)
			}
		}
	}
	t.put = true
	return nil
}

// rowsOf checks what is put, and gives for each entry its row, or none.
func (c *Columns) rowsOf(t *Taken, changed arrow.Record) ([]int32, error) {
	if want := 2 + len(c.fields); int(changed.NumCols()) != want || changed.ColumnName(0) != entryColumn || changed.ColumnName(1) != knownColumn {
		return nil, fmt.Errorf("state came back as %v", changed.Schema())
	}
	entries, ok := changed.Column(0).(*array.Int32)
	known, ok2 := changed.Column(1).(*array.Boolean)
	if !ok || !ok2 || entries.NullN() > 0 || known.NullN() > 0 {
		return nil, fmt.Errorf("state came back as %v", changed.Schema())
	}
	for i := range c.fields {
		if err := c.fields[i].fits(changed.ColumnName(2+i), changed.Column(2+i)); err != nil {
			return nil, err
		}
	}
	rows := make([]int32, len(t.entries))
	for i := range rows {
		rows[i] = none
	}
	for row, e := range entries.Int32Values() {
		if e < 0 || int(e) >= len(rows) || rows[e] != none {
			return nil, fmt.Errorf("state came back for entry %d of %d, or twice", e, len(rows))
		}
		rows[e] = int32(row)
	}
	return rows, nil
}

// keep stores the state of an entry.
func (c *Columns) keep(t *Taken, e *taken, changed arrow.Record, row int) {
	c.received[e.slot] = e.received
	was := Value{Null: true}
	if c.timer >= 0 && e.known {
		was = c.timerOf(e.slot)
	}
	for i := range c.fields {
		c.fields[i].set(e.slot, valueAt(changed.Column(2+i), row))
	}
	switch {
	case c.timer < 0:
	case t.timed:
		c.setTimer(e, e.at)
	case c.timerOf(e.slot) != was:
		c.arm(e.slot)
	}
}

// setTimer sees to the timer of a key that was told: it is to be told again only later than that.
func (c *Columns) setTimer(e *taken, after flow.Micros) {
	if now := c.timerOf(e.slot); now.Null || flow.Micros(now.Int) <= after {
		c.fields[c.timer].set(e.slot, Value{Null: true})
		return
	}
	c.arm(e.slot)
}

func (c *Columns) arm(slot int32) {
	at := c.timerOf(slot)
	switch {
	case at.Null:
	case len(c.timers) > c.dueMost():
		c.timers = c.timers[:0]
		c.each(func(slot int32) {
			if at := c.timerOf(slot); !at.Null {
				c.timers = append(c.timers, due{flow.Micros(at.Int), slot, c.lives[slot]})
			}
		})
		heap.Init(&c.timers)
	default:
		heap.Push(&c.timers, due{flow.Micros(at.Int), slot, c.lives[slot]})
	}
}

// Drop leaves everything as it was before t was taken.
func (c *Columns) Drop(t *Taken) {
	if t.put {
		return
	}
	for i := range t.entries {
		e := &t.entries[i]
		switch {
		case t.timed:
			c.arm(e.slot)
		case e.fresh:
			c.drop(e.slot)
		}
	}
	t.put = true
}

func (c *Columns) drop(slot int32) {
	c.remove(slot)
	c.room(slot)
}

// Advance makes room: it forgets the keys that no row received at the watermark or later can find any more.
func (c *Columns) Advance(watermark flow.Micros) {
	c.advance(watermark, func(slot int32) {
		c.room(slot)
		c.forgot++
	})
}

// Len is the number of keys.
func (c *Columns) Len() int { return c.len() }

// Expired is how many keys Advance forgot for their TTL.
func (c *Columns) Expired() int64 { return c.forgot }

// Snapshot writes all keys and their states.
func (c *Columns) Snapshot(w io.Writer) error { return c.save(w, storedColumns{c}) }

// Restore replaces everything by what Snapshot wrote. After an error c is what it was.
func (c *Columns) Restore(r io.Reader) error {
	fresh, err := NewColumns(c.declaration)
	if err != nil {
		return err
	}
	if err := fresh.load(r, storedColumns{fresh}); err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	if fresh.timer >= 0 {
		fresh.each(fresh.arm)
	}
	*c = *fresh
	return nil
}

// Redeclared gives the same state under another declaration, as a snapshot would.
func (c *Columns) Redeclared(d Declaration) (*Columns, error) {
	now, err := NewColumns(d)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := c.Snapshot(&b); err != nil {
		return nil, err
	}
	return now, now.Restore(&b)
}
