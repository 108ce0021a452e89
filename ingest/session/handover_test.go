package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"hearthline/ingest/mqtt"
)

// over gives a session to another gateway, as text.
func (b *bench) over(client string) (st *State, ended, here bool) {
	b.t.Helper()
	st, ended, here = b.HandOver(context.Background(), Key{"u", client})
	if st == nil {
		return nil, ended, here
	}
	text, err := json.Marshal(st)
	out := new(State)
	if err == nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return out, ended, here
}

// TestHandOver gives away the session of a client that is connected: all that it is, until the other gateway has claimed it.
func TestHandOver(t *testing.T) {
	b := newBench(t)
	if _, _, here := b.over("c"); here {
		t.Error("a session out of nothing")
	}
	c := b.connect("c", willed("will", 60))
	c.subscribe("homes/a/#", 2, 3)
	b.publish(1, "homes/a/x", "1")
	b.publish(2, "homes/a/x", "2")
	c.ack(mqtt.TypePubrec, 2)
	c.Take(9)
	st, ended, here := b.over("c")
	c.want("the client is told", "CONNACK present=false", "PUBLISH 1 q1 homes/a/x=1 ids=[3]", "PUBLISH 2 q2 homes/a/x=2 ids=[3]", "PUBREL 2", "DISCONNECT 0x8e")
	c.leave(true)
	if !here || ended || st == nil || len(st.Flight) != 2 || !st.Flight[1].Released || len(st.Subscriptions) != 1 || len(st.Received) != 1 || st.Will == nil || st.Away.IsZero() || st.Expiry != 100 {
		t.Fatalf("%+v, %t, %t", st, ended, here)
	}
	if again, _, here := b.over("c"); !here || len(again.Flight) != 2 {
		t.Error("the other gateway died, and a third is not given it")
	}
	if _, here := b.Surrender(Key{"u", "c"}, 5); here {
		t.Error("the one of another claim is let go")
	}
	if lost, here := b.Surrender(Key{"u", "c"}, 0); lost || !here {
		t.Error(lost, here)
	}
	if all, away := b.Len(); all != 0 || away != 0 || b.Audience.Len() != 0 || b.bytes.Load() != 0 || b.messages.Load() != 0 || len(b.left()) != 0 {
		t.Error("something stays behind", all, away, b.Audience.Len(), b.bytes.Load(), b.left())
	}
	d := b.connect("d")
	d.leave(false)
	if st, _, here := b.over("d"); !here || st == nil || st.Away.IsZero() {
		t.Errorf("a client that is away: %+v, %t", st, here)
	}
}

// TestWillsOfSessionsThatMove: a connection that ends by a takeover leaves its will, unless that has a delay and the session goes on.
func TestWillsOfSessionsThatMove(t *testing.T) {
	for _, c := range []struct {
		name          string
		delay, expiry uint32
		asked, clean  bool
		wills         int
	}{
		{"no delay", 0, 100, true, false, 1},
		{"within the delay", 60, 100, true, false, 0},
		{"the session ends with the connection", 60, 0, true, false, 1},
		{"a clean start ends it there", 60, 100, true, true, 1},
		{"not asked, no delay", 0, 100, false, false, 1},
		{"not asked, within the delay", 60, 100, false, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := new(shelf)
			here := newBench(t)
			there := newBench(t, func(r *Registry) { r.Store = store })
			here.connect("c", expiry(c.expiry), willed("will", c.delay))
			if c.asked {
				if st, _, _ := here.over("c"); st != nil {
					store.Save(context.Background(), st)
				}
				next := func(e *Entry) { e.Clean = c.clean }
				there.connect("c", next)
			}
			here.Surrender(Key{"u", "c"}, 0)
			if n := len(here.left()) + len(there.left()); n != c.wills {
				t.Errorf("%d wills; want %d", n, c.wills)
			}
		})
	}
}

// TestHandOverWaitsForTheLog: a QoS 2 message that is on its way into the log is known to whoever has the session next.
func TestHandOverWaitsForTheLog(t *testing.T) {
	b := newBench(t)
	c := b.connect("c")
	c.Pend(c.terms, 7)
	time.AfterFunc(50*time.Millisecond, func() { c.Take(7) })
	if st, _, _ := b.over("c"); st == nil || len(st.Received) != 1 || st.Received[0] != 7 {
		t.Errorf("%+v", st)
	}
	c = b.connect("stuck")
	c.Pend(c.terms, 7)
	start := time.Now()
	if st, _, _ := b.over("stuck"); st == nil || len(st.Received) != 0 || time.Since(start) < settleMax || time.Since(start) > 10*settleMax {
		t.Errorf("%+v after %s", st, time.Since(start))
	}
}

// TestAClientComesBackFromWhereItsSessionWent: what was handed over has gone on elsewhere, and is not resumed as it was.
func TestAClientComesBackFromWhereItsSessionWent(t *testing.T) {
	store := new(shelf)
	b := newBench(t, func(r *Registry) { r.Store = store })
	c := b.connect("c")
	c.subscribe("homes/a/#", 1, 0)
	b.publish(1, "homes/a/x", "old")
	st, _, _ := b.over("c")
	// The other gateway's client acknowledges it, gets another message, and leaves.
	st.Flight[0].Message.Payload = []byte("new")
	save := func() { store.Save(context.Background(), st) }
	b.Store = &thenStore{shelf: store, then: save}
	c = b.connect("c")
	c.want("what the other has made of it", "CONNACK present=true", "PUBLISH 1 q1 dup homes/a/x=new")
	if n := b.publish(1, "homes/a/x", "more"); n != 1 {
		t.Errorf("%d sessions hear it", n)
	}
	if all, _ := b.Len(); all != 1 || b.Audience.Len() != 1 {
		t.Error(all, b.Audience.Len())
	}
	// The other gateway died instead: it is what it was.
	b.over("c")
	b.Store = store
	c = b.connect("c")
	c.want("as it was", "CONNACK present=true", "PUBLISH 1 q1 dup homes/a/x=new", "PUBLISH 2 q1 dup homes/a/x=more")
}

// thenStore does something after a session was saved: another gateway saves it, too.
type thenStore struct {
	*shelf
	then func()
}

func (s *thenStore) Save(ctx context.Context, st *State) error {
	err := s.shelf.Save(ctx, st)
	s.then()
	return err
}

// TestAClientThatWentBeforeItWasWelcome leaves the session that was loaded for it as it was.
func TestAClientThatWentBeforeItWasWelcome(t *testing.T) {
	store := new(shelf)
	a, b := newBench(t, func(r *Registry) { r.Store = store }), newBench(t, func(r *Registry) { r.Store = store })
	c := a.connect("c")
	c.subscribe("homes/a/#", 1, 0)
	c.leave(false)
	e := &Entry{Key: Key{"u", "c"}, Expiry: 100, Terms: &Terms{Link: &line{version: 5}, PacketMax: 1000, Window: 10, Version: mqtt.V5},
		May: func(string) bool { return true }, Welcome: func(bool) error { return context.Canceled }}
	if _, _, err := b.Claim(context.Background(), e); err == nil {
		t.Fatal("it is welcome")
	}
	if n := b.publish(1, "homes/a/x", "1"); n != 1 {
		t.Errorf("%d sessions hear it", n)
	}
	c = b.connect("c")
	c.want("it has waited", "CONNACK present=true", "PUBLISH 1 q1 homes/a/x=1")
}

// narrowStore has no room for one client's session.
type narrowStore struct {
	*shelf
	client string
}

func (s *narrowStore) Save(ctx context.Context, st *State) error {
	if st.Key.Client == s.client && len(st.Queue) > 1 {
		return fmt.Errorf("no room: %w", ErrTooLarge)
	}
	return s.shelf.Save(ctx, st)
}

// TestASessionThatIsTooLargeHoldsUpNoOther: it is counted, and tried again when it is another.
func TestASessionThatIsTooLargeHoldsUpNoOther(t *testing.T) {
	store := &narrowStore{new(shelf), "c00"}
	b := newBench(t, func(r *Registry) { r.Store = store })
	for i := range 100 { // more than are stored at once
		c := b.connect(fmt.Sprintf("c%02d", i), func(e *Entry) { e.Key.User = fmt.Sprint(i) })
		c.subscribe("homes/a/#", 1, 0)
		c.leave(false)
	}
	b.publish(1, "homes/a/x", "1")
	b.publish(1, "homes/a/x", "2")
	saved := func() int {
		n := 0
		for _, text := range store.states {
			if strings.Contains(string(text), `"queue"`) {
				n++
			}
		}
		return n
	}
	if err := b.SaveAll(context.Background()); !errors.Is(err, ErrTooLarge) || saved() != 99 || b.Unsaved() != 1 {
		t.Errorf("%v, %d are stored, %d not", err, saved(), b.Unsaved())
	}
	if err := b.SaveAll(context.Background()); err != nil || b.Unsaved() != 1 {
		t.Errorf("it is tried again though nothing has changed: %v, %d", err, b.Unsaved())
	}
	b.publish(1, "homes/a/x", "3")
	if err := b.SaveAll(context.Background()); !errors.Is(err, ErrTooLarge) || b.Unsaved() != 2 {
		t.Errorf("%v, %d", err, b.Unsaved())
	}
}
