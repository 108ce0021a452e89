package session

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"hearthline/ingest/mqtt"
)

// TestMatchIsMatches holds the tree and the list to mqtt.Matches, over random filters that come and go.
func TestMatchIsMatches(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	random := func(levels ...string) string {
		out := []string{"homes", "a"}
		for range r.IntN(4) + 1 {
			out = append(out, levels[r.IntN(len(levels))])
		}
		return strings.Join(out, "/")
	}
	for round := range 200 {
		a := NewAudience(1000)
		sessions := make([]*Session, 1+r.IntN(5))
		for i := range sessions {
			sessions[i] = &Session{Key: Key{User: "u", Client: fmt.Sprint(i)}}
		}
		held := map[*Session]map[string]bool{}
		for range r.IntN(120) {
			s := sessions[r.IntN(len(sessions))]
			f := random("x", "y", "", "+", "z")
			if r.IntN(4) == 0 {
				f += "/#"
			}
			if r.IntN(3) > 0 {
				a.Subscribe("a", s, Subscription{Filter: f})
				if held[s] == nil {
					held[s] = map[string]bool{}
				}
				held[s][f] = true
			} else if got := a.Unsubscribe("a", s, f); got != held[s][f] {
				t.Fatalf("unsubscribe %s: %t", f, got)
			} else {
				delete(held[s], f)
			}
		}
		total := 0
		for _, fs := range held {
			total += len(fs)
		}
		if a.Len() != total {
			t.Fatalf("%d subscriptions; want %d", a.Len(), total)
		}
		for range 30 {
			topic := random("x", "y", "", "z", "w")
			var got, want []string
			if h := a.shard("a").homes["a"]; h != nil {
				for _, l := range h.match(topic, nil) {
					got = append(got, l.to.Key.Client+" "+l.filter)
				}
			}
			for s, fs := range held {
				for f := range fs {
					if mqtt.Matches(f, topic) {
						want = append(want, s.Key.Client+" "+f)
					}
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("round %d, %s: %q; want %q", round, topic, got, want)
			}
		}
		for s, fs := range held {
			for f := range fs {
				a.Unsubscribe("a", s, f)
			}
		}
		if a.Len() != 0 || len(a.shard("a").homes) != 0 {
			t.Fatalf("%d subscriptions, %v are left behind", a.Len(), a.shard("a").homes)
		}
	}
}

func TestOverlappingSubscriptions(t *testing.T) {
	b := newBench(t)
	c, d := b.connect("c"), b.connect("d")
	c.subscribe("homes/a/#", 0, 3)
	c.subscribe("homes/a/x", 2|mqtt.SubAsPublished, 1)
	c.subscribe("homes/a/+", 1, 0)
	d.subscribe("homes/a/x", 1, 5)
	c.said(t)
	d.said(t)
	retained := func(m *mqtt.Message) { m.Retain = true }
	if n := b.publish(2, "homes/a/x", "1", retained); n != 2 {
		t.Errorf("%d sessions", n)
	}
	c.want("one copy, the highest QoS, all identifiers", "PUBLISH 1 q2 retain homes/a/x=1 ids=[1 3]")
	d.want("one of its own", "PUBLISH 1 q1 homes/a/x=1 ids=[5]")
	c.subscribe("homes/a/x", 0, 9)
	b.publish(1, "homes/a/x", "2", retained)
	c.want("a subscription again replaces it", "PUBLISH 2 q1 homes/a/x=2 ids=[3 9]")
	b.publish(1, "homes/a/y/z", "3")
	c.want("only what matches", "PUBLISH 0 q0 homes/a/y/z=3 ids=[3]")
	b.publish(1, "homes/ab/x", "4")
	c.want("another home")
}

func TestNoLocal(t *testing.T) {
	b := newBench(t)
	c, d := b.connect("c"), b.connect("d")
	c.subscribe("homes/a/#", mqtt.SubNoLocal, 1)
	d.subscribe("homes/a/#", mqtt.SubNoLocal, 1)
	c.said(t)
	d.said(t)
	b.Audience.Publish("a", message("homes/a/x", "1"), c.Session)
	c.want("its own")
	d.want("of another", "PUBLISH 0 q0 homes/a/x=1 ids=[1]")
	c.subscribe("homes/a/x", 0, 2)
	b.Audience.Publish("a", message("homes/a/x", "2"), c.Session)
	c.want("by a subscription that does not mind", "PUBLISH 0 q0 homes/a/x=2 ids=[2]")
}

func TestReplay(t *testing.T) {
	b := newBench(t)
	kept := &Memory{HomeMax: 10, HomeBytesMax: 1 << 20, BytesMax: 1 << 20}
	for _, m := range []*mqtt.Message{message("homes/a/x", "1"), message("homes/a/y", "2"), message("homes/b/x", "3")} {
		if err := kept.Set(strings.Split(m.Topic, "/")[1], m); err != nil {
			t.Fatal(err)
		}
	}
	c := b.connect("c")
	c.said(t)
	b.Audience.Replay("a", c.Session, Subscription{Filter: "homes/a/#", Options: 2, ID: 4}, kept)
	got := c.said(t)
	slices.Sort(got)
	if fmt.Sprint(got) != "[PUBLISH 1 q1 retain homes/a/x=1 ids=[4] PUBLISH 2 q1 retain homes/a/y=2 ids=[4]]" &&
		fmt.Sprint(got) != "[PUBLISH 1 q1 retain homes/a/y=2 ids=[4] PUBLISH 2 q1 retain homes/a/x=1 ids=[4]]" {
		t.Errorf("%q", got)
	}
}

func TestSharedSubscriptions(t *testing.T) {
	b := newBench(t)
	one, two, other, alone := b.connect("one"), b.connect("two"), b.connect("other"), b.connect("alone")
	one.subscribe("$share/g/homes/a/#", 1, 1)
	two.subscribe("$share/g/homes/a/#", 1, 2)
	other.subscribe("$share/h/homes/a/#", 0, 0)
	alone.subscribe("homes/a/#", 0, 0)
	for i := range 6 {
		if n := b.publish(1, "homes/a/x", fmt.Sprint(i)); n != 3 {
			t.Errorf("%d sessions; want one of each share, and one", n)
		}
	}
	for _, c := range []*client{one, two} {
		if got := c.said(t); len(got) != 1+3 || !strings.Contains(got[1], " ids=[") {
			t.Errorf("a member got %q; want 3 of 6", got)
		}
	}
	for _, c := range []*client{other, alone} {
		if got := c.said(t); len(got) != 1+6 {
			t.Errorf("%q; want all 6", got)
		}
	}
	one.leave(false)
	for range 2 {
		b.publish(1, "homes/a/x", "to two")
	}
	if got := two.said(t); len(got) != 2 {
		t.Errorf("%q: those who are connected come first", got)
	}
	two.leave(false)
	if n := b.publish(1, "homes/a/x", "kept"); n != 3 {
		t.Error("nobody is connected: one who is away gets it")
	}
	if n := b.publish(0, "homes/a/x", "not kept"); n != 2 {
		t.Error("QoS 0 is kept")
	}
}

func TestMembersInheritFromOneThatIsGone(t *testing.T) {
	b := newBench(t)
	one := b.connect("one", terms(func(t *Terms) { t.Window = 2 }))
	one.subscribe("$share/g/homes/a/#", 2, 0)
	one.subscribe("homes/a/own", 1, 0)
	b.publish(2, "homes/a/x", "begun") // in flight, QoS 2: nobody else's
	b.publish(1, "homes/a/x", "sent")
	b.publish(2, "homes/a/x", "waits")
	two := b.connect("two")
	two.subscribe("$share/g/homes/a/#", 2, 0)
	one.Expire(one.terms, 0)
	one.leave(false)
	two.want("[MQTT-4.8.2-5] what is begun with QoS 2 goes to nobody else", "CONNACK present=false", "PUBLISH 1 q1 homes/a/x=sent", "PUBLISH 2 q2 homes/a/x=waits")
	two.ack(mqtt.TypePuback, 1, 0x83)
	two.want("[MQTT-4.8.2-6] what is refused is discarded")
	if b.Audience.Len() != 1 {
		t.Error(b.Audience.Len())
	}
}

func TestSharesComeAndGo(t *testing.T) {
	b := newBench(t)
	c := b.connect("c")
	for range 3 {
		c.subscribe("$share/g/homes/a/#", 1, 1)
		c.subscribe("$share/g/homes/a/#", 0, 2)
	}
	c.said(t)
	b.publish(1, "homes/a/x", "1")
	c.want("a membership again replaces it", "PUBLISH 0 q0 homes/a/x=1 ids=[2]")
	if !b.Audience.Unsubscribe("a", c.Session, "$share/g/homes/a/#") || b.Audience.Unsubscribe("a", c.Session, "$share/g/homes/a/#") {
		t.Error("it does not end once")
	}
	if b.Audience.Len() != 0 || len(b.Audience.shard("a").homes) != 0 {
		t.Error("something is left")
	}
}

func TestAnEndedSessionHoldsNoSubscription(t *testing.T) {
	b := newBench(t)
	c := b.connect("c", expiry(0))
	c.leave(false)
	if _, ok := b.Audience.Subscribe("a", c.Session, Subscription{Filter: "homes/a/#"}); ok || b.Audience.Len() != 0 {
		t.Error("it subscribes after its end")
	}
}

// BenchmarkPublishIntoALargeHome is one message to one subscriber of many, in a home with so many subscriptions.
func BenchmarkPublishIntoALargeHome(b *testing.B) {
	for _, n := range []int{1, 10, 100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := newBench(b, func(r *Registry) { r.Audience.SubscriptionsMax = n })
			c := k.connect("c")
			for i := range n {
				c.subscribe(fmt.Sprintf("homes/a/devices/d%d/commands", i), 0, 0)
			}
			m := message("homes/a/devices/d0/commands", "on")
			b.ReportAllocs()
			for b.Loop() {
				k.Audience.Publish("a", m, nil)
				c.bytes = c.bytes[:0]
			}
		})
	}
}
