package keyed

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
)

type tally struct {
	N    int64   `state:"n"`
	Last *string `state:"last"`
}

func tallies(s Settings) Declaration {
	return Declaration{Settings: s, Fields: []FieldDefault{{Field: Field{"n", Int, false}}, {Field: Field{"last", Text, true}, Default: Value{Null: true}}}}
}

// putRows is what a worker gives back: entries, whether to keep them, and their fields.
func putRows(c *Columns, rows []putRow) arrow.Record {
	fields := []arrow.Field{{Name: entryColumn, Type: arrow.PrimitiveTypes.Int32}, {Name: knownColumn, Type: arrow.FixedWidthTypes.Boolean}}
	for _, f := range c.fields {
		fields = append(fields, arrow.Field{Name: f.Name, Type: f.Kind.Type(), Nullable: true})
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema(fields, nil))
	defer b.Release()
	for _, r := range rows {
		b.Field(0).(*array.Int32Builder).Append(r.entry)
		b.Field(1).(*array.BooleanBuilder).Append(r.keep)
		for i, v := range r.values {
			c.fields[i].append(b.Field(2+i), v)
		}
	}
	return b.NewRecord()
}

type putRow struct {
	entry  int32
	keep   bool
	values []Value
}

// TestColumnsAreATable does to whole batches what a Table does row by row: the snapshots are the same bytes, however the rows are
// cut, whatever is dropped and tried again, and wherever time is told and the state restored.
func TestColumnsAreATable(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		s := Settings{Key: [][]string{{"home"}, {"home", "room"}, {"room", "floor", "home"}}[seed%3], TTL: 40 * time.Microsecond}
		table, err1 := New(tally{}, s)
		all, err2 := NewColumns(tallies(s))
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		clock := int64(1000)
		for range 20 {
			var rows [][4]any
			for range 1 + rng.IntN(30) {
				clock += int64(rng.IntN(12))
				rows = append(rows, [4]any{fmt.Sprint("h", rng.IntN(4)), fmt.Sprint("r", rng.IntN(3)), int64(rng.IntN(2)), clock})
			}
			whole := keyRecord(rows, true)
			if err := table.Begin(whole); err != nil {
				t.Fatal(err)
			}
			for row := range rows {
				state, _ := table.Get(row)
				if state.N++; state.N == 5 {
					table.Delete(row)
					continue
				}
				state.Last = new(fmt.Sprint(rows[row][3]))
				if err := table.Put(row, state); err != nil {
					t.Fatal(err)
				}
			}
			table.End()
			for from := 0; from < len(rows); {
				to := from + 1 + rng.IntN(len(rows)-from)
				part := keyRecord(rows[from:to], rng.IntN(2) == 0)
				tallied(t, all, part, rows[from:to], rng)
				part.Release()
				from = to
			}
			whole.Release()
			if rng.IntN(2) == 0 {
				table.Advance(flow.Micros(clock))
				all.Advance(flow.Micros(clock))
			}
			if rng.IntN(4) == 0 {
				var b bytes.Buffer
				if err := errors.Join(all.Snapshot(&b), all.Restore(&b)); err != nil {
					t.Fatal(err)
				}
			}
			// What a row has found to be too old is gone from both, what none has come for since may be in one.
			table.Advance(flow.Micros(clock))
			all.Advance(flow.Micros(clock))
			var a, b bytes.Buffer
			if err := errors.Join(table.Snapshot(&a), all.Snapshot(&b)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(a.Bytes(), b.Bytes()) {
				t.Fatalf("seed %d: %d keys of a table, %d of columns; the snapshots differ", seed, table.Len(), all.Len())
			}
		}
	}
}

// tallied counts a batch's rows in the states of its keys, sometimes after an attempt that came to nothing.
func tallied(t *testing.T, c *Columns, rec arrow.Record, rows [][4]any, rng *rand.Rand) {
	t.Helper()
	for rng.IntN(3) == 0 {
		failed, err := c.Take(rec)
		if err != nil {
			t.Fatal(err)
		}
		c.Drop(failed)
	}
	taken, err := c.Take(rec)
	if err != nil || len(taken.Full.Rows) > 0 {
		t.Fatal(taken, err)
	}
	states := c.Record(memory.DefaultAllocator, taken)
	defer states.Release()
	now := make([]putRow, taken.Len())
	at := int(states.NumCols()) - 2
	for e := range now {
		now[e] = putRow{int32(e), states.Column(at - 1).(*array.Boolean).Value(e), []Value{valueAt(states.Column(at), e), valueAt(states.Column(at+1), e)}}
	}
	for row, e := range taken.Index {
		n := &now[e]
		if n.values[0].Int++; n.values[0].Int == 5 {
			*n = putRow{e, false, []Value{{}, {Null: true}}}
			continue
		}
		n.keep, n.values[1] = true, Value{Text: fmt.Sprint(rows[row][3])}
	}
	changed := putRows(c, now)
	defer changed.Release()
	if err := c.Put(taken, changed); err != nil {
		t.Fatal(err)
	}
}

func timed(t *testing.T) *Columns {
	t.Helper()
	c, err := NewColumns(Declaration{Settings: Settings{Key: []string{"home"}, TTL: time.Second}, Timer: "at",
		Fields: []FieldDefault{{Field: Field{"at", Instant, true}, Default: Value{Null: true}}}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestTimers: a key is told once for each time that it asked for, in the order of time, and not after it was forgotten.
func TestTimers(t *testing.T) {
	c := timed(t)
	var said []string
	put := func(home string, received int64, at Value) {
		rec := keyRecord([][4]any{{home, "r", int64(0), received}}, true)
		defer rec.Release()
		taken, err := c.Take(rec)
		if err != nil {
			t.Fatal(err)
		}
		changed := putRows(c, []putRow{{0, true, []Value{at}}})
		defer changed.Release()
		if err := c.Put(taken, changed); err != nil {
			t.Fatal(err)
		}
	}
	advance := func(to int64, again int64, want string) {
		t.Helper()
		said = nil
		for taken := c.Due(flow.Micros(to)); taken != nil; taken = c.Due(flow.Micros(to)) {
			if len(said)%2 == 0 { // as if the answer was lost
				c.Drop(taken)
				if taken = c.Due(flow.Micros(to)); taken == nil {
					t.Fatal("what was dropped is not told again")
				}
			}
			rec := c.Record(memory.DefaultAllocator, taken)
			var rows []putRow
			for i := range taken.Len() {
				at := rec.Column(2).(*array.Timestamp).Value(i)
				said = append(said, fmt.Sprint(rec.Column(0).ValueStr(i), "@", int64(at)))
				if again > 0 {
					rows = append(rows, putRow{int32(i), true, []Value{{Int: int64(at) + again}}})
				}
			}
			changed := putRows(c, rows)
			if err := c.Put(taken, changed); err != nil {
				t.Fatal(err)
			}
			changed.Release()
			rec.Release()
		}
		c.Advance(flow.Micros(to))
		if got := strings.Join(said, " "); got != want {
			t.Errorf("at %d: %s; want %s", to, got, want)
		}
	}
	put("b", 0, Value{Int: 50})
	put("a", 0, Value{Int: 50})
	put("c", 0, Value{Int: 10})
	put("c", 1, Value{Int: 60}) // instead
	put("d", 0, Value{Int: 20})
	put("d", 2, Value{Null: true}) // not at all
	advance(50, 0, "")             // a row of that very time may come still
	advance(51, 0, "a@50 b@50")
	advance(1000, 0, "c@60")
	put("e", 1000, Value{Int: 2000})
	var snap bytes.Buffer
	if err := errors.Join(c.Snapshot(&snap), c.Restore(&snap)); err != nil {
		t.Fatal(err)
	}
	advance(5000, 1500, "e@2000 e@3500")
	advance(6000, 0, "e@5000")
	put("f", 10_000, Value{Int: 3_000_000}) // it is forgotten before
	advance(int64(flow.EndOfTime), 0, "")
	if c.Len() != 0 {
		t.Errorf("%d keys are left", c.Len())
	}
}

// TestVoidTimesTakeNoRoom: keys that come and go, and timers that are put off, leave nothing behind.
func TestVoidTimesTakeNoRoom(t *testing.T) {
	c := timed(t)
	rec := keyRecord([][4]any{{"a", "r", int64(0), int64(1)}, {"b", "r", int64(0), int64(1)}}, true)
	defer rec.Release()
	for i := range int64(10_000) {
		taken, err := c.Take(rec)
		if err != nil {
			t.Fatal(err)
		}
		changed := putRows(c, []putRow{{0, true, []Value{{Int: 1000 + i}}}})
		if err := c.Put(taken, changed); err != nil {
			t.Fatal(err)
		}
		changed.Release()
	}
	if c.Len() != 1 || len(c.due) > 2000 || len(c.timers) > 2000 || len(c.keys) > 10 {
		t.Errorf("%d keys, %d times, %d timers, %d slots", c.Len(), len(c.due), len(c.timers), len(c.keys))
	}
}

// TestWhatCannotBePut: the states come back from a process of the stage's author, who may send anything.
func TestWhatCannotBePut(t *testing.T) {
	c, err := NewColumns(tallies(Settings{Key: []string{"home"}}))
	if err != nil {
		t.Fatal(err)
	}
	rec := keyRecord([][4]any{{"a", "r", int64(0), int64(1)}}, true)
	defer rec.Release()
	for want, rows := range map[string][]putRow{
		"for entry 1 of 1":     {{1, true, []Value{{}, {}}}},
		"for entry -1 of 1":    {{-1, true, []Value{{}, {}}}},
		"or twice":             {{0, true, []Value{{}, {}}}, {0, true, []Value{{}, {}}}},
		`field "n" of the st`:  {{0, true, []Value{{Null: true}, {}}}},
		"would have 65537 byt": {{0, true, []Value{{}, {Text: strings.Repeat("x", textMax+1)}}}},
	} {
		taken, err := c.Take(rec)
		if err != nil {
			t.Fatal(err)
		}
		changed := putRows(c, rows)
		if err := c.Put(taken, changed); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
		short := changed.NewSlice(0, 0)
		for name, wrong := range map[string]arrow.Record{"the batch": rec, "fewer columns": array.NewRecord(arrow.NewSchema(short.Schema().Fields()[:3], nil), short.Columns()[:3], 0)} {
			if err := c.Put(taken, wrong); err == nil || !strings.Contains(err.Error(), "state came back as") {
				t.Errorf("%s: %v", name, err)
			}
		}
		short.Release()
		changed.Release()
		c.Drop(taken)
		if c.Len() != 0 {
			t.Fatalf("%d keys", c.Len())
		}
	}
	for want, d := range map[string]Declaration{
		"cannot be called \"home\"": {Settings: c.settings, Fields: []FieldDefault{{Field: Field{"home", Int, false}}}},
		"unknown kind \"complex\"":  {Settings: c.settings, Fields: []FieldDefault{{Field: Field{"a", "complex", false}}}},
		"has no default":            {Settings: c.settings, Fields: []FieldDefault{{Field: Field{"a", Int, false}, Default: Value{Null: true}}}},
		"state has 0 fields":        {Settings: c.settings},
		"two fields of state":       {Settings: c.settings, Fields: []FieldDefault{{Field: Field{"a", Int, false}}, {Field: Field{"a", Int, false}}}},
		"which is to be an instant": {Settings: c.settings, Timer: "a", Fields: []FieldDefault{{Field: Field{"a", Int, false}}}},
		"needs a ttl":               {Settings: c.settings, Timer: "a", Fields: []FieldDefault{{Field: Field{"a", Instant, true}}}},
		"has 5 columns; at most 4":  {Settings: Settings{Key: []string{"a", "b", "c", "d", "e"}}},
	} {
		if _, err := NewColumns(d); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}
