package keyed

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"

	"hearthline/flow"
	"hearthline/flow/flowtest"
)

type reading struct {
	Time   flow.Micros `flow:"time"`
	Device *string     `flow:"device"`
	Value  *float64    `flow:"value"`
}

type rise struct {
	Time   flow.Micros `flow:"time"`
	Device *string     `flow:"device"`
	By     float64     `flow:"by"`
	Rises  int64       `flow:"rises"`
}

type last struct {
	Value  float64 `state:"value"`
	Rises  int64   `state:"rises"`
	Device *string `state:"device"`
}

// rises is a stage as its author writes it.
func rises() flow.Stage {
	return Rows("rises", Settings{Key: []string{"home", "device"}, TTL: time.Hour, Limit: 3}, last{},
		func(r reading, s *last) (rise, bool) {
			if r.Value == nil {
				return rise{}, false
			}
			if *r.Value == 0 {
				*s = last{}
				return rise{}, false
			}
			before := s.Value
			rose := before > 0 && *r.Value > before
			if rose {
				s.Rises++
			}
			s.Value, s.Device = *r.Value, r.Device
			return rise{r.Time, r.Device, *r.Value - before, s.Rises}, rose
		})
}

func TestRows(t *testing.T) { flowtest.Run(t, rises, "testdata/rises.yaml") }

// keyRecord has rows (home, room, floor, received), the texts with a dictionary or without.
func keyRecord(rows [][4]any, dictionary bool) arrow.Record {
	text := arrow.DataType(arrow.BinaryTypes.String)
	if dictionary {
		text = flow.KeyType
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{
		{Name: "home", Type: text, Nullable: true}, {Name: "room", Type: text, Nullable: true}, {Name: "floor", Type: arrow.PrimitiveTypes.Int64, Nullable: true},
		{Name: "received", Type: flow.InstantType}}, nil))
	defer b.Release()
	for _, row := range rows {
		for i, v := range row {
			switch to := b.Field(i).(type) {
			case *array.BinaryDictionaryBuilder:
				if v == nil {
					to.AppendNull()
				} else if err := to.AppendString(v.(string)); err != nil {
					panic(err)
				}
			case *array.StringBuilder:
				if v == nil {
					to.AppendNull()
				} else {
					to.Append(v.(string))
				}
			case *array.Int64Builder:
				if v == nil {
					to.AppendNull()
				} else {
					to.Append(v.(int64))
				}
			case *array.TimestampBuilder:
				to.Append(arrow.Timestamp(v.(int64)))
			}
		}
	}
	return b.NewRecord()
}

type counted struct {
	N     int64       `state:"n"`
	Sum   float64     `state:"sum"`
	On    bool        `state:"on"`
	Name  string      `state:"name"`
	At    flow.Micros `state:"at"`
	Maybe *int64      `state:"maybe"`
}

// TestTableAgainstAMap does at random what a map does, over every way in which keys are numbered, with restarts in between.
func TestTableAgainstAMap(t *testing.T) {
	const ttl = 50
	for _, key := range [][]string{{"home"}, {"floor"}, {"home", "room"}, {"room", "home", "floor"}} {
		for seed := range uint64(20) {
			rng := rand.New(rand.NewPCG(seed, 7))
			table, err := New(counted{Sum: 1}, Settings{Key: key, TTL: ttl * time.Microsecond, Limit: 40})
			if err != nil {
				t.Fatal(err)
			}
			type entry struct {
				counted
				received int64
			}
			model := map[string]entry{}
			clock := int64(1000)
			for range 30 {
				var rows [][4]any
				for range rng.IntN(40) {
					text := func() any {
						if rng.IntN(8) == 0 {
							return nil
						}
						return fmt.Sprint("a", rng.IntN(5))
					}
					floor := any(int64(rng.IntN(3)))
					if rng.IntN(8) == 0 {
						floor = nil
					}
					clock += int64(rng.IntN(6))
					rows = append(rows, [4]any{text(), text(), floor, clock - int64(rng.IntN(3))})
				}
				rec := keyRecord(rows, rng.IntN(2) == 0)
				if rng.IntN(4) == 0 && len(rows) > 1 { // a slice reads the same
					cut := rec.NewSlice(1, rec.NumRows())
					rec.Release()
					rec, rows = cut, rows[1:]
				}
				if err := table.Begin(rec); err != nil {
					t.Fatal(err)
				}
				for i, row := range rows {
					id := ""
					for _, k := range key {
						id += fmt.Sprint(row[map[string]int{"home": 0, "room": 1, "floor": 2}[k]], "|")
					}
					was, known := model[id]
					if known && row[3].(int64)-was.received > ttl {
						delete(model, id)
						was, known = entry{}, false
					}
					if !known {
						was.counted = counted{Sum: 1}
					} else {
						was.received = max(was.received, row[3].(int64))
						model[id] = was
					}
					got, ok := table.Get(i)
					if ok != known || got != was.counted && (got.Maybe == nil || *got.Maybe != *was.Maybe) {
						t.Fatalf("key %v seed %d: %s has %+v %v, want %+v %v", key, seed, id, got, ok, was, known)
					}
					if rng.IntN(6) == 0 {
						table.Delete(i)
						delete(model, id)
						continue
					}
					was.N++
					was.Sum += rng.Float64()
					was.On, was.Name, was.At = !was.On, fmt.Sprint("n", was.N), flow.Micros(was.N)
					err := table.Put(i, was.counted)
					if full := !known && len(model) >= 40; full != errors.Is(err, ErrFull) || !full && err != nil {
						t.Fatalf("%d keys: %v", len(model), err)
					} else if full {
						continue
					}
					was.received = max(was.received, row[3].(int64))
					model[id] = was
				}
				table.End()
				rec.Release()
				if rng.IntN(3) == 0 {
					table.Advance(flow.Micros(clock - 3))
					for id, e := range model {
						if clock-3-e.received > ttl {
							delete(model, id)
						}
					}
				}
				if table.Len() != len(model) {
					t.Fatalf("%d keys, want %d", table.Len(), len(model))
				}
				if rng.IntN(4) == 0 {
					table = restored(t, table)
				}
			}
		}
	}
}

// restored takes a table through its snapshot.
func restored[S any](t *testing.T, table *Table[S]) *Table[S] {
	t.Helper()
	var b, again bytes.Buffer
	if err := table.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	fresh, err := New(table.initial, table.settings)
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.Restore(bytes.NewReader(b.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := fresh.Snapshot(&again); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Fatal("restored, it gives another snapshot")
	}
	return fresh
}

// filled is a table of n homes, which came in the order of a seed.
func filled[S any](t testing.TB, initial S, n int, seed uint64, make func(i int) S) *Table[S] {
	table, err := New(initial, Settings{Key: []string{"home"}, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	var rows [][4]any
	for _, i := range rand.New(rand.NewPCG(seed, 1)).Perm(n) {
		rows = append(rows, [4]any{fmt.Sprintf("home-%04d", i), "r", int64(i), int64(i)})
	}
	rec := keyRecord(rows, true)
	defer rec.Release()
	if err := table.Begin(rec); err != nil {
		t.Fatal(err)
	}
	defer table.End()
	for i, row := range rows {
		if err := table.Put(i, make(int(row[2].(int64)))); err != nil {
			t.Fatal(err)
		}
	}
	return table
}

func TestTheSameStateIsTheSameBytes(t *testing.T) {
	var first []byte
	for seed := range uint64(5) {
		var b bytes.Buffer
		if err := filled(t, last{}, 500, seed, func(i int) last { return last{Value: float64(i)} }).Snapshot(&b); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b.Bytes()
		}
		if !bytes.Equal(first, b.Bytes()) {
			t.Fatal("keys that came in another order give another snapshot")
		}
	}
}

// TestASnapshotOfAnOlderState is understood where a field is new, and refused by name where it is not.
func TestASnapshotOfAnOlderState(t *testing.T) {
	type one struct {
		A int64 `state:"a"`
		B *bool `state:"b"`
	}
	var snap bytes.Buffer
	if err := filled(t, one{}, 3, 1, func(i int) one { return one{A: int64(i)} }).Snapshot(&snap); err != nil {
		t.Fatal(err)
	}
	more := struct {
		New string `state:"new"`
		B   *bool  `state:"b"`
		A   int64  `state:"a"`
	}{New: "initial"}
	now := filled(t, more, 0, 1, nil)
	if err := now.Restore(bytes.NewReader(snap.Bytes())); err != nil {
		t.Fatal(err)
	}
	rec := keyRecord([][4]any{{"home-0002", "r", int64(1), int64(5)}}, false)
	defer rec.Release()
	if err := now.Begin(rec); err != nil {
		t.Fatal(err)
	}
	if got, ok := now.Get(0); !ok || got.New != "initial" || got.A != 2 {
		t.Errorf("%+v", got)
	}
	now.End()
	refused(t, snap.Bytes(), struct {
		B *bool `state:"b"`
	}{}, `field "a" of the state that was kept (int64) is not declared any more`)
	refused(t, snap.Bytes(), struct {
		A float64 `state:"a"`
		B *bool   `state:"b"`
	}{}, `field "a" is declared as float64, and the state was kept as int64`)
	refused(t, snap.Bytes(), struct {
		A int64 `state:"a"`
		B bool  `state:"b"`
	}{}, `field "b" is declared as bool, and the state was kept as bool or null`)
	other, err := New(one{}, Settings{Key: []string{"home", "room"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Restore(bytes.NewReader(snap.Bytes())); err == nil || !strings.Contains(err.Error(), "state is kept by home, room, and the snapshot by home") {
		t.Error(err)
	}
	small, err := New(one{}, Settings{Key: []string{"home"}, Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := small.Restore(bytes.NewReader(snap.Bytes())); err == nil || !strings.Contains(err.Error(), "3 keys, and the limit is 2") {
		t.Error(err)
	}
	if err := now.Begin(keyRecord([][4]any{{"x", "r", int64(1), int64(5)}}, false)); err != nil {
		t.Error("texts with a dictionary and without are the same: ", err)
	}
	damaged := bytes.Clone(snap.Bytes())
	damaged[len(damaged)-7] ^= 1
	if err := now.Restore(bytes.NewReader(damaged)); err == nil {
		t.Error("a damaged snapshot is taken")
	} else if now.Len() != 3 {
		t.Error("it left", now.Len(), "keys")
	}
}

func refused[S any](t *testing.T, snap []byte, initial S, want string) {
	t.Helper()
	table := filled(t, initial, 0, 1, nil)
	if err := table.Restore(bytes.NewReader(snap)); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %s", err, want)
	}
}

func TestWhatCannotBeDeclared(t *testing.T) {
	good := Settings{Key: []string{"home"}}
	for want, made := range map[string]func() error{
		"is no struct":     func() error { _, err := New(1, good); return err },
		"has no fields":    func() error { _, err := New(struct{}{}, good); return err },
		"field A of state": func() error { _, err := New(struct{ A int64 }{}, good); return err },
		"is a int32": func() error {
			_, err := New(struct {
				A int32 `state:"a"`
			}{}, good)
			return err
		},
		`are called "a"`: func() error {
			_, err := New(struct {
				A, B int64 `state:"a"`
			}{}, good)
			return err
		},
		"state needs a key":             func() error { _, err := New(last{}, Settings{}); return err },
		"names \"home\" twice":          func() error { _, err := New(last{}, Settings{Key: []string{"home", "home"}}); return err },
		"the ttl of state is -1s":       func() error { _, err := New(last{}, Settings{Key: []string{"home"}, TTL: -time.Second}); return err },
		"the limit of state is -1 keys": func() error { _, err := New(last{}, Settings{Key: []string{"home"}, Limit: -1}); return err },
	} {
		if err := made(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
	table, err := New(last{}, good)
	if err != nil {
		t.Fatal(err)
	}
	rec := keyRecord([][4]any{{"x", "r", int64(1), int64(5)}}, false)
	defer rec.Release()
	if err := table.Begin(rec); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", textMax+1)
	if err := table.Put(0, last{Device: &long}); !errors.Is(err, flow.ErrBad) || !strings.Contains(err.Error(), `field "device" of the state would be a text of 65537 bytes`) {
		t.Error(err)
	}
}

// FuzzRestore: a snapshot comes from a store that others may write to.
func FuzzRestore(f *testing.F) {
	var b bytes.Buffer
	if err := filled(f, last{}, 4, 1, func(i int) last { return last{Value: float64(i)} }).Snapshot(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("hearthline keyed state 1\n\x01\x04home"))
	f.Fuzz(func(t *testing.T, snap []byte) {
		table := filled(t, last{}, 0, 1, nil)
		if err := table.Restore(bytes.NewReader(snap)); err == nil {
			restored(t, table)
		}
	})
}

type mean struct {
	Count int64   `state:"count"`
	Mean  float64 `state:"mean"`
}

// BenchmarkTable gets the state of each row and puts it back, of 100,000 keys (1,000 homes of 100 devices); batches of 10,000
// rows hold some of the homes, as they come from gateways, or any.
func BenchmarkTable(b *testing.B) {
	for _, c := range []struct {
		name string
		keys int // of a batch
	}{{"1000 keys a batch", 1000}, {"10000 keys a batch", 10_000}} {
		var recs []arrow.Record
		for batch := range 100_000 / c.keys {
			var rows [][4]any
			for i := range 10_000 {
				key := batch*c.keys + i%c.keys
				rows = append(rows, [4]any{fmt.Sprintf("home-%06d", key/100), fmt.Sprintf("sensor-%03d", key%100), int64(0), int64(i)})
			}
			recs = append(recs, keyRecord(rows, true))
		}
		for _, put := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s, put %v", c.name, put), func(b *testing.B) {
				table, err := New(mean{}, Settings{Key: []string{"home", "room"}, TTL: time.Hour})
				if err != nil {
					b.Fatal(err)
				}
				pass := func(rec arrow.Record, put bool) {
					if err := table.Begin(rec); err != nil {
						b.Fatal(err)
					}
					for row := range int(rec.NumRows()) {
						s, _ := table.Get(row)
						s.Count++
						if put {
							if err := table.Put(row, s); err != nil {
								b.Fatal(err)
							}
						}
					}
					table.End()
				}
				for _, rec := range recs {
					pass(rec, true)
				}
				b.ReportAllocs()
				b.ResetTimer()
				n, before := 0, cpu(b)
				for b.Loop() {
					pass(recs[n%len(recs)], put)
					n++
				}
				b.ReportMetric(float64(n)*10_000/(cpu(b)-before).Seconds(), "rows/core-s")
			})
		}
	}
}

// cpu is what this process has spent on the processor: a machine that does other things does not change it.
func cpu(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkSnapshot writes and reads the state of 100,000 keys.
func BenchmarkSnapshot(b *testing.B) {
	table := filled(b, last{}, 100_000, 1, func(i int) last { return last{Value: float64(i), Rises: int64(i)} })
	var snap bytes.Buffer
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			snap.Reset()
			if err := table.Snapshot(&snap); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if err := table.Restore(bytes.NewReader(snap.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
}
