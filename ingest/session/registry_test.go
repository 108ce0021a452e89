package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"hearthline/ingest/mqtt"
)

// running runs the registry's clockwork for the length of a test in a bubble.
func (b *bench) running() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	b.t.Cleanup(func() { cancel(); <-done })
}

func TestSessionsEndWhenTheirTimeHasCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.running()
		for i, seconds := range []uint32{0, 10, 20, Forever} {
			c := b.connect(fmt.Sprint(i), expiry(seconds))
			c.subscribe("homes/a/#", 1, 0)
		}
		for i := range 4 {
			c := b.connect(fmt.Sprint(i), expiry([]uint32{0, 10, 20, Forever}[i]))
			if i > 0 {
				c.want("a takeover resumes", "CONNACK present=true")
			} else {
				c.want("a session of no length ends with its connection", "CONNACK present=false")
			}
			c.leave(false)
		}
		for _, step := range []struct{ after, left int }{{1, 3}, {10, 2}, {10, 1}, {1_000_000, 1}} {
			time.Sleep(time.Duration(step.after) * time.Second)
			synctest.Wait()
			if all, away := b.Len(); all != step.left || away != step.left || b.Audience.Len() != step.left {
				t.Errorf("%d s on: %d sessions, %d away, %d subscriptions; want %d", step.after, all, away, b.Audience.Len(), step.left)
			}
		}
		c := b.connect("1")
		c.want("an expired session is not found", "CONNACK present=false")
		c.Expire(c.terms, 5)
		c.leave(false)
		time.Sleep(4 * time.Second)
		c = b.connect("1", expiry(5))
		c.want("DISCONNECT may change the expiry", "CONNACK present=true")
		time.Sleep(time.Hour)
		synctest.Wait()
		if all, away := b.Len(); all != 2 || away != 1 {
			t.Errorf("a session expires while it has a connection: %d, %d", all, away)
		}
	})
}

func TestWills(t *testing.T) {
	for _, c := range []struct {
		name   string
		delay  uint32
		expiry uint32
		then   func(b *bench, c *client)
		at     []int // seconds at which to look
		left   []int // wills by then
	}{
		{"a goodbye takes it back", 0, 100, func(b *bench, c *client) { c.leave(false) }, []int{200}, []int{0}},
		{"at once without a delay", 0, 100, func(b *bench, c *client) { c.leave(true) }, []int{0}, []int{1}},
		{"after its delay", 10, 100, func(b *bench, c *client) { c.leave(true) }, []int{9, 11, 200}, []int{0, 1, 1}},
		{"[MQTT-3.1.2-8] at the end of the session, if that is before", 50, 10, func(b *bench, c *client) { c.leave(true) }, []int{9, 11, 200}, []int{0, 1, 1}},
		{"at once when the session ends with its connection", 50, 0, func(b *bench, c *client) { c.leave(true) }, []int{0, 200}, []int{1, 1}},
		{"[MQTT-3.1.3-9] not when the client is back before", 50, 100, func(b *bench, c *client) { c.leave(true); time.Sleep(49 * time.Second); b.connect("c") }, []int{1, 1000}, []int{0, 0}},
		{"at once when a clean start ends the session", 50, 100, func(b *bench, c *client) { c.leave(true); b.connect("c", clean) }, []int{0, 200}, []int{1, 1}},
		{"at once when another connection takes over and there is no delay", 0, 100, func(b *bench, c *client) { b.connect("c"); c.leave(true) }, []int{0, 200}, []int{1, 1}},
		{"not when another connection takes over within the delay", 50, 100, func(b *bench, c *client) { b.connect("c"); c.leave(true) }, []int{0, 200}, []int{0, 0}},
		{"at once when a takeover ends the session", 50, 0, func(b *bench, c *client) { b.connect("c"); c.leave(true) }, []int{0, 200}, []int{1, 1}},
		{"at once when a clean takeover ends the session", 50, 100, func(b *bench, c *client) { b.connect("c", clean); c.leave(true) }, []int{0, 200}, []int{1, 1}},
		{"[MQTT-3.14.4-3] not when another connection takes over from one that has said goodbye", 0, 100, func(b *bench, c *client) { c.DiscardWill(c.terms); b.connect("c"); c.leave(false) }, []int{0, 200}, []int{0, 0}},
		{"nor when that takeover ends the session", 0, 0, func(b *bench, c *client) { c.DiscardWill(c.terms); b.connect("c"); c.leave(false) }, []int{0, 200}, []int{0, 0}},
		{"what a connection says after a takeover changes nothing", 0, 100, func(b *bench, c *client) {
			other := b.connect("c", willed("other", 0))
			c.Expire(c.terms, 0)
			c.DiscardWill(c.terms)
			other.leave(true)
		}, []int{0, 200}, []int{2, 2}},
		{"the last connection's counts", 0, 100, func(b *bench, c *client) { c.leave(false); b.connect("c", willed("other", 0)).leave(true) }, []int{0, 200}, []int{1, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.running()
				c.then(b, b.connect("c", expiry(c.expiry), willed("will", c.delay)))
				for i, after := range c.at {
					time.Sleep(time.Duration(after) * time.Second)
					synctest.Wait()
					if got := b.left(); len(got) != c.left[i] {
						t.Errorf("look %d: %q; want %d wills", i, got, c.left[i])
					}
				}
			})
		})
	}
}

func TestAWillExpiresFromItsPublicationOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.running()
		sub := b.connect("sub")
		sub.subscribe("homes/a/#", 1, 0)
		b.connect("c", func(e *Entry) { e.Will = &Will{Message: *message("homes/a/will", "bye"), Delay: 10, Expiry: 60} }).leave(true)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		sub.want("11 s after the end", "CONNACK present=false", "PUBLISH 1 q1 homes/a/will=bye expires=60")
	})
}

func TestTakeover(t *testing.T) {
	b := newBench(t)
	first := b.connect("c")
	first.subscribe("homes/a/#", 1, 0)
	b.publish(1, "homes/a/x", "1")
	second := b.connect("c")
	first.want("the first is told", "CONNACK present=false", "PUBLISH 1 q1 homes/a/x=1", "DISCONNECT 0x8e")
	second.want("the second has its session", "CONNACK present=true", "PUBLISH 1 q1 dup homes/a/x=1")
	first.leave(true)
	if !second.connected() {
		t.Error("the end of the first ends the second")
	}
	stranger := b.connect("c", func(e *Entry) { e.Key.User = "other" })
	stranger.want("a client id belongs to a user", "CONNACK present=false")
	if b.publish(1, "homes/a/x", "2") != 1 {
		t.Error("the subscription is lost")
	}
}

func TestSessionsAreBounded(t *testing.T) {
	b := newBench(t, func(r *Registry) { r.AwayMax, r.UserAwayMax = 4, 2 })
	for i := range 6 {
		for _, user := range []string{"u", "v", "w"} {
			b.connect(fmt.Sprint(i), func(e *Entry) { e.Key.User = user; e.Expiry = 100 + uint32(i) }).leave(false)
		}
	}
	if all, away := b.Len(); all != 4 || away != 4 {
		t.Errorf("%d sessions, %d away; want 4", all, away)
	}
	for user, n := range b.awayOf {
		if n < 1 || n > 2 {
			t.Errorf("user %s has %d", user, n)
		}
	}
}

func TestSubscriptionsThatAreNotAllowedAnyMoreEnd(t *testing.T) {
	b := newBench(t)
	c := b.connect("c")
	c.subscribe("homes/a/#", 1, 0)
	c.subscribe("homes/b/#", 1, 0)
	c.leave(false)
	b.publish(1, "homes/a/x", "a")
	b.publish(1, "homes/b/x", "b")
	c = b.connect("c", func(e *Entry) { e.May = func(f string) bool { home, _ := HomeOf(f); return home == "a" } })
	c.want("what may not be seen any more is not sent", "CONNACK present=true", "PUBLISH 1 q1 homes/a/x=a")
	if b.publish(1, "homes/b/x", "b") != 0 || b.Audience.Len() != 1 {
		t.Error("the subscription is still in force")
	}
}

func TestStoredSessionsAreResumedElsewhere(t *testing.T) {
	store := new(shelf)
	here := newBench(t, func(r *Registry) { r.Store = store })
	c := here.connect("c")
	c.subscribe("homes/a/#", 2, 7)
	c.subscribe("$share/g/homes/a/y", 1, 0)
	here.publish(1, "homes/a/x", "1", func(m *mqtt.Message) { m.Props = []byte{mqtt.PropPayloadFormat, 1} })
	here.publish(2, "homes/a/x", "2")
	c.ack(mqtt.TypePubrec, 2)
	c.Take(11)
	c.Pend(c.terms, 12)
	c.leave(false)
	here.publish(1, "homes/a/x", "away")
	if err := here.SaveAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if calls := fmt.Sprint(store.calls); calls != "[load c save c save c]" {
		t.Error(calls)
	}
	there := newBench(t, func(r *Registry) { r.Store = store })
	c = there.connect("c")
	c.want("there", "CONNACK present=true", "PUBLISH 1 q1 dup homes/a/x=1 ids=[7]", "PUBREL 2", "PUBLISH 3 q1 homes/a/x=away ids=[7]")
	if there.publish(1, "homes/a/x", "new") != 1 || there.publish(1, "homes/a/y", "new") != 2 {
		t.Error("a subscription is lost")
	}
	if taken, _ := c.Seen(11); !taken {
		t.Error("a QoS 2 message would be taken twice")
	}
	if taken, wait := c.Seen(12); taken || wait != nil {
		t.Error("a message that the log may not have is answered for")
	}
	c = there.connect("c", clean)
	c.want("a clean start", "CONNACK present=false")
	if got := store.keys(); len(got) != 0 {
		t.Errorf("%v is left in the store", got)
	}
	c.leave(false)
	if got := store.keys(); !slices.Equal(got, []string{"c"}) {
		t.Error(got)
	}
}

func TestAStoreThatFails(t *testing.T) {
	store := &shelf{fail: errors.New("no broker")}
	b := newBench(t, func(r *Registry) { r.Store = store })
	e := &Entry{Key: Key{"u", "c"}, Expiry: 10, Terms: &Terms{Link: &line{version: 5}, Version: 5}, Welcome: func(bool) error { t.Error("welcome"); return nil }}
	if _, _, err := b.Claim(t.Context(), e); !errors.Is(err, store.fail) {
		t.Error(err)
	}
	if all, _ := b.Len(); all != 0 {
		t.Error("something is left")
	}
	store.fail = nil
	c := b.connect("c")
	c.subscribe("homes/a/#", 1, 0)
	store.fail = errors.New("no broker")
	c.leave(false)
	b.publish(1, "homes/a/x", "1")
	c = b.connect("c")
	c.want("this gateway goes on", "CONNACK present=true", "PUBLISH 1 q1 homes/a/x=1")
	c.leave(false)
	if err := b.SaveAll(t.Context()); !errors.Is(err, store.fail) {
		t.Error(err)
	}
	store.fail = nil
	if err := b.SaveAll(t.Context()); err != nil || len(store.keys()) != 1 {
		t.Error(err, store.keys())
	}
}

func TestStoredSessionsExpireEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(shelf)
		b := newBench(t, func(r *Registry) { r.Store = store })
		b.connect("c", expiry(10)).leave(false)
		time.Sleep(11 * time.Second)
		there := newBench(t, func(r *Registry) { r.Store = store })
		there.connect("c").want("it has expired", "CONNACK present=false")
		b.running()
		synctest.Wait()
		if all, _ := b.Len(); all != 0 {
			t.Error("it is still here")
		}
	})
}
