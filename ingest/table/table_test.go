package table_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc"

	"hearthline/ingest/table"
	"hearthline/ingest/table/tabletest"
)

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// put writes and waits until all of the tables have read it.
func put(t testing.TB, key, value string, tables ...*table.Table) table.Place {
	t.Helper()
	var v []byte
	if value != "" {
		v = []byte(value)
	}
	at, err := tables[0].Put(ctxOf(t), key, v)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range tables {
		if err := o.Reached(ctxOf(t), at); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

func held(tab *table.Table, prefix string) map[string]string {
	out := map[string]string{}
	for _, r := range tab.Scan(prefix) {
		out[r.Key] = string(r.Value)
	}
	return out
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came true: %s", what)
		}
	}
}

func TestTablesAgree(t *testing.T) {
	log := tabletest.NewLog(4)
	a, _ := tabletest.Start(t, log, nil)
	b, _ := tabletest.Start(t, log, nil)
	put(t, "h1/lamp", "on", a, b)
	put(t, "h1/lamp", "off", b, a)
	put(t, "h1/door", "open", a, b)
	put(t, "h2/lamp", "on", b, a)
	put(t, "h1x/lamp", "other", b, a)
	put(t, "h1/door", "", b, a)
	want := map[string]string{"h1/lamp": "off"}
	for _, tab := range []*table.Table{a, b} {
		if d := cmp.Diff(want, held(tab, "h1/")); d != "" {
			t.Error(d)
		}
		if got := len(tab.Scan("")); got != 3 {
			t.Errorf("%d keys; want 3", got)
		}
		if r, ok := tab.Get("h2/lamp"); !ok || string(r.Value) != "on" {
			t.Errorf("h2/lamp holds %+v, %t", r, ok)
		}
		if _, ok := tab.Get("h1/door"); ok {
			t.Error("a key that was taken back holds something")
		}
	}
	// One that comes later, after compaction, is the same.
	log.Compact()
	c, _ := tabletest.Start(t, log, nil)
	if d := cmp.Diff(held(a, ""), held(c, "")); d != "" {
		t.Error(d)
	}
	for _, key := range []string{"h1/lamp", "h2/lamp", "h1x/lamp"} {
		put(t, key, "", a, b, c)
	}
	if s := a.Stats(); s.Bytes != 0 || s.Keys != 0 {
		t.Errorf("an empty table holds %d keys, %d bytes", s.Keys, s.Bytes)
	}
}

// behind is a log of which a part is read, and that takes nothing.
type behind struct{ next, end int64 }

func (b behind) Append(context.Context, int32, []table.Record) (int64, error) {
	return 0, tabletest.ErrDown
}

func (b behind) Follow(ctx context.Context, _ int32, take func(table.Read) error) error {
	if err := take(table.Read{Next: b.next, End: b.end}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// A table says how far behind its log it is, since when it has not heard of it, and what that did not take.
func TestHowFarBehind(t *testing.T) {
	tab := table.New()
	tab.Name, tab.Log, tab.Partitions = "t", behind{next: 3, end: 10}, 2
	if err := tab.Prepare(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var work conc.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() { _ = tab.Run(ctx) })
	if _, err := tab.Put(ctx, "h/x", []byte("1")); err == nil {
		t.Error("a log that is down took a record")
	}
	eventually(t, "the lag of both partitions", func() bool { return tab.Stats().Lag == 14 })
	first := tab.Stats()
	eventually(t, "silence grows", func() bool { return tab.Stats().Silence > first.Silence+20*time.Millisecond })
	if s := tab.Stats(); s.Failed != 1 || s.Appends != 1 {
		t.Errorf("of one append that failed: %+v", s)
	}
}

// forward is a rule: numbers only rise.
func forward(old, new table.Record) bool {
	if old.Value == nil || new.Value == nil {
		return true
	}
	was, _ := strconv.Atoi(string(old.Value))
	is, _ := strconv.Atoi(string(new.Value))
	return is > was
}

// What a rule refused does not come back by compaction.
func TestRefusedIsWrittenOver(t *testing.T) {
	log := tabletest.NewLog(1)
	rule := func(tab *table.Table) { tab.Rule = forward }
	a, _ := tabletest.Start(t, log, rule)
	b, _ := tabletest.Start(t, log, rule)
	put(t, "h/x", "5", a, b)
	put(t, "h/x", "3", b, a)
	for _, tab := range []*table.Table{a, b} {
		if r, _ := tab.Get("h/x"); string(r.Value) != "5" || r.Offset != 0 {
			t.Fatalf("after a refused record the key holds %s of offset %d", r.Value, r.Offset)
		}
	}
	eventually(t, "somebody writes 5 again", func() bool { return a.Stats().Repairs+b.Stats().Repairs > 0 })
	var c *table.Table
	eventually(t, "who reads what compaction has left has 5", func() bool {
		log.Compact()
		var stop func()
		c, stop = tabletest.Start(t, log, rule)
		r, _ := c.Get("h/x")
		stop()
		return string(r.Value) == "5"
	})
	<-time.After(150 * time.Millisecond)
	if n := a.Stats().Repairs + b.Stats().Repairs; n > 4 {
		t.Errorf("%d repairs of one record", n)
	}
}

// Many writers, a rule and compaction at any time: all tables come to the highest numbers, and so does who reads later.
func TestRuleUnderCompaction(t *testing.T) {
	const seed = 11
	rnd := rand.New(rand.NewPCG(seed, 0))
	log := tabletest.NewLog(2)
	rule := func(tab *table.Table) { tab.Rule, tab.RepairWait = forward, 2*time.Millisecond }
	var tables []*table.Table
	for range 3 {
		tab, _ := tabletest.Start(t, log, rule)
		tables = append(tables, tab)
	}
	want := map[string]string{}
	highest := map[string]int{}
	for i := range 3000 {
		key, n := fmt.Sprintf("h%d/x", rnd.IntN(20)), rnd.IntN(1_000_000)
		if n > highest[key] || want[key] == "" {
			highest[key], want[key] = n, strconv.Itoa(n)
		}
		if !tables[rnd.IntN(3)].Offer(key, []byte(strconv.Itoa(n))) {
			t.Fatal("no room")
		}
		if i%100 == 0 {
			<-time.After(time.Millisecond)
		}
	}
	for i, tab := range tables {
		eventually(t, fmt.Sprintf("seed %d: table %d has the highest", seed, i), func() bool { return cmp.Equal(want, held(tab, "")) })
	}
	eventually(t, "what compaction leaves is the highest", func() bool {
		log.Compact()
		late, stop := tabletest.Start(t, log, rule)
		stop()
		return cmp.Equal(want, held(late, ""))
	})
}

func TestPutsShareAppends(t *testing.T) {
	log := tabletest.NewLog(1)
	log.SetDelay(2 * time.Millisecond)
	tab, _ := tabletest.Start(t, log, nil)
	const puts = 2000
	places := make([]table.Place, puts)
	var work sync.WaitGroup
	for i := range puts {
		work.Add(1)
		go func() {
			defer work.Done()
			var err error
			if places[i], err = tab.Put(ctxOf(t), fmt.Sprintf("h/%d", i), []byte("x")); err != nil {
				t.Error(err)
			}
		}()
	}
	work.Wait()
	if n := log.Appends(); n > puts/20 {
		t.Errorf("%d appends for %d puts", n, puts)
	}
	for i, at := range places {
		if err := tab.Reached(ctxOf(t), at); err != nil {
			t.Fatal(err)
		}
		if r, ok := tab.Get(fmt.Sprintf("h/%d", i)); !ok || r.Offset != at.Offset {
			t.Fatalf("put at %d, held of %d", at.Offset, r.Offset)
		}
	}
}

func TestPutLimits(t *testing.T) {
	log := tabletest.NewLog(1)
	tab, _ := tabletest.Start(t, log, func(tab *table.Table) { tab.BytesMax, tab.RecordMax = 2000, 1000 })
	if _, err := tab.Put(ctxOf(t), "h/x", make([]byte, 1000)); !errors.Is(err, table.ErrTooLong) {
		t.Errorf("a record that is too long: %v", err)
	}
	n := 0
	for ; n < 100; n++ {
		at, err := tab.Put(ctxOf(t), fmt.Sprintf("h/%d", n), make([]byte, 100))
		if errors.Is(err, table.ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if err := tab.Reached(ctxOf(t), at); err != nil {
			t.Fatal(err)
		}
	}
	if n < 5 || n > 15 {
		t.Errorf("a table of 2000 bytes took %d records of 100", n)
	}
	put(t, "h/0", "changed", tab) // what is there can be changed
	put(t, "h/1", "", tab)        // and taken back
	log.SetDown(true)
	if _, err := tab.Put(ctxOf(t), "h/0", []byte("y")); !errors.Is(err, tabletest.ErrDown) {
		t.Errorf("put without a log: %v", err)
	}
	log.SetDown(false)
	put(t, "h/0", "again", tab)
	log.SetDelay(time.Hour)
	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := tab.Put(short, "h/0", []byte("z")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put into a log that hangs: %v", err)
	}
}

func TestWatch(t *testing.T) {
	log := tabletest.NewLog(4)
	tab, _ := tabletest.Start(t, log, func(tab *table.Table) { tab.WatchMax = 8 })
	home, all, other := tab.Watch("h1/"), tab.Watch(""), tab.Watch("h1/lamp/")
	defer all.Close()
	defer other.Close()
	put(t, "h1/lamp", "on", tab)
	put(t, "h2/lamp", "on", tab)
	put(t, "h1/lamp", "on", tab) // no change
	put(t, "h1/lamp", "", tab)
	next := func(w *table.Watcher) string {
		select {
		case c := <-w.C:
			return fmt.Sprintf("%s %s→%s", c.New.Key, c.Old.Value, c.New.Value)
		case <-time.After(10 * time.Second):
			return "nothing"
		}
	}
	for _, want := range []string{"h1/lamp →on", "h1/lamp on→"} {
		if got := next(home); got != want {
			t.Errorf("a watcher of h1/ sees %s; want %s", got, want)
		}
	}
	if got := next(all); got != "h1/lamp →on" {
		t.Errorf("a watcher of all sees %s", got)
	}
	for i := range 10 {
		put(t, "h1/lamp", fmt.Sprint(i), tab)
	}
	n := 0
	for range home.C {
		n++
	}
	if n != 8 || tab.Stats().Lost != 2 {
		t.Errorf("a watcher that does not keep up saw %d, and %d have lost; want 8 and 2", n, tab.Stats().Lost)
	}
	select {
	case c, ok := <-other.C:
		t.Error("a watcher of h1/lamp/ saw", c, ok)
	default:
	}
	home.Close()
}

// TestSync: what stood in the log is read when it returns, and it leaves nothing behind.
func TestSync(t *testing.T) {
	log := tabletest.NewLog(5)
	one, _ := tabletest.Start(t, log, nil)
	two, _ := tabletest.Start(t, log, nil)
	for i := range 200 {
		if _, err := one.Put(ctxOf(t), fmt.Sprintf("h%d/x", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if i%20 != 0 {
			continue
		}
		if err := two.Sync(ctxOf(t)); err != nil {
			t.Fatal(err)
		}
		if got := len(two.Scan("")); got != i+1 {
			t.Fatalf("%d keys are read; want %d", got, i+1)
		}
	}
	log.SetDown(true)
	if err := two.Sync(ctxOf(t)); err == nil {
		t.Error("without a log it is sure")
	}
	log.SetDown(false)
	log.Compact()
	if log.Len() != 200 {
		t.Errorf("%d records; want 200", log.Len())
	}
}
