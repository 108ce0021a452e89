package session

import (
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWhatIsLeftBehindIsSaid follows what a session leaves behind, as others are told.
func TestWhatIsLeftBehindIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said atomic.Int64
		b := newBench(t, func(r *Registry) { r.Willed = func(*Session) { said.Add(1) } })
		b.running()
		want := func(what string, times int64, left string, due time.Duration) {
			t.Helper()
			got, at := "", time.Duration(0)
			if l := b.Will(Key{"u", "c"}); l != nil {
				got = string(l.Will.Message.Payload)
				if !l.Due.IsZero() {
					at = time.Until(l.Due)
				}
			}
			if said.Load() != times || got != left || at != due {
				t.Errorf("%s: said %d times, %q in %s; want %d, %q in %s", what, said.Load(), got, at, times, left, due)
			}
		}
		b.connect("c").leave(false)
		want("no will costs nothing", 0, "", 0)
		c := b.connect("c", willed("one", 10))
		want("a will", 1, "one", 0)
		c.leave(false)
		want("a goodbye", 2, "", 0)
		c = b.connect("c", willed("two", 10))
		c.leave(true)
		want("it waits", 4, "two", 10*time.Second)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		want("it is published", 5, "", 0)
		b.connect("c", willed("three", 500)).leave(true)
		want("no longer than the session", 7, "three", 100*time.Second)
		left := b.Will(Key{"u", "c"})
		b.DropWill(Key{"u", "c"}, left.Number-1)
		want("another will was published elsewhere", 7, "three", 100*time.Second)
		b.DropWill(Key{"u", "c"}, left.Number)
		want("it was published elsewhere", 7, "", 0)
		time.Sleep(200 * time.Second)
		synctest.Wait()
		if got := b.left(); !slices.Equal(got, []string{"two"}) {
			t.Errorf("published: %q", got)
		}
	})
}

// TestNothingIsDoneInDoubt: a connection that ends while it is not known whose the session is ends when that is known, or after doubtMax.
func TestNothingIsDoneInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var doubt atomic.Bool
		b := newBench(t, func(r *Registry) { r.Doubt = doubt.Load })
		b.running()
		late := b.connect("late", willed("late", 3))
		late.leave(true)
		doubt.Store(true)
		one, two := b.connect("one", willed("one", 0)), b.connect("two", willed("two", 0))
		one.leave(true)
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if got := b.left(); len(got) != 0 {
			t.Errorf("in doubt %q", got)
		}
		b.DropWill(Key{"u", "one"}, b.Will(Key{"u", "one"}).Number) // another gateway has published it
		doubt.Store(false)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := b.left(); !slices.Equal(got, []string{"late"}) {
			t.Errorf("when it is known %q", got)
		}
		doubt.Store(true)
		two.leave(true)
		time.Sleep(doubtMax + time.Second)
		synctest.Wait()
		if got := b.left(); !slices.Equal(got, []string{"late", "two"}) {
			t.Errorf("after %s %q", doubtMax, got)
		}
		if _, away := b.Len(); away != 3 {
			t.Errorf("%d are away", away)
		}
	})
}
