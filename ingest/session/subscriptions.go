package session

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"hearthline/ingest/mqtt"
)

// HomeOf is the home that a topic or filter lies under: homes/{home}/… The home is a whole level: no wildcard reaches
// another one.
func HomeOf(topic string) (home string, ok bool) {
	rest, ok := strings.CutPrefix(topic, "homes/")
	if !ok {
		return "", false
	}
	home, _, ok = strings.Cut(rest, "/")
	return home, ok && home != "" && !strings.ContainsAny(home, "+#")
}

// Audience knows who has subscribed to what, home by home.
type Audience struct {
	SubscriptionsMax int                                 // of one session
	Changed          func(home string, filters []string) // is told what a home's sessions have subscribed to when that changes; may be nil

	count  atomic.Int64
	seed   maphash.Seed
	shards [64]shard
}

// shard holds some of the homes. Its lock is held while a message is given to a home's sessions, none of which waits for its
// client: what a session subscribes to meanwhile comes before or after the message.
type shard struct {
	mu    sync.RWMutex
	homes map[string]*home
}

// NewAudience makes an empty one.
func NewAudience(subscriptionsMax int) *Audience {
	return &Audience{SubscriptionsMax: subscriptionsMax, seed: maphash.MakeSeed()}
}

// Len is the number of subscriptions, all together.
func (a *Audience) Len() int { return int(a.count.Load()) }

func (a *Audience) shard(home string) *shard {
	return &a.shards[maphash.String(a.seed, home)%uint64(len(a.shards))]
}

// listener is a subscription in force: of a session, or of a share, which gives each message to one of its members.
type listener struct {
	filter  string // without $share/{group}/
	options byte
	id      uint32
	to      *Session
	share   *share
}

// Subscribe adds a subscription of a session to a home, or replaces the one with the same filter. ok is false, and nothing
// has changed, when the session holds as many as it may.
func (a *Audience) Subscribe(home string, s *Session, sub Subscription) (isNew, ok bool) {
	s.mu.Lock()
	i := slices.IndexFunc(s.subs, func(x Subscription) bool { return x.Filter == sub.Filter })
	switch {
	case s.gone || i < 0 && len(s.subs) >= a.SubscriptionsMax:
		s.mu.Unlock()
		return false, false
	case i >= 0:
		s.subs[i] = sub
	default:
		s.subs = append(s.subs, sub)
	}
	s.mu.Unlock()
	a.listen(home, s, sub)
	s.mu.Lock()
	gone := s.gone
	s.mu.Unlock()
	if gone { // it ended meanwhile
		a.unlisten(home, s, sub.Filter)
	}
	return i < 0, true
}

// Unsubscribe says whether the session held the filter.
func (a *Audience) Unsubscribe(home string, s *Session, filter string) bool {
	s.mu.Lock()
	i := slices.IndexFunc(s.subs, func(x Subscription) bool { return x.Filter == filter })
	if i >= 0 {
		if s.subs = slices.Delete(s.subs, i, i+1); len(s.subs) == 0 {
			s.subs = nil
		}
	}
	s.mu.Unlock()
	if i >= 0 {
		a.unlisten(home, s, filter)
	}
	return i >= 0
}

func (a *Audience) listen(name string, s *Session, sub Subscription) {
	group, filter, _ := mqtt.Shared(sub.Filter)
	sh := a.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	defer a.tell(sh, name)
	h := sh.homes[name]
	if h == nil {
		h = new(home)
		if sh.homes == nil {
			sh.homes = make(map[string]*home)
		}
		sh.homes[name] = h
	}
	l := &listener{filter: filter, options: sub.Options, id: sub.ID, to: s}
	if group != "" {
		a.count.Add(int64(h.join(sub.Filter, l)))
		return
	}
	a.count.Add(int64(h.put(l)))
}

func (a *Audience) unlisten(name string, s *Session, filter string) {
	group, rest, _ := mqtt.Shared(filter)
	sh := a.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	h := sh.homes[name]
	if h == nil {
		return
	}
	defer a.tell(sh, name)
	if group != "" {
		a.count.Add(-int64(h.part(filter, s)))
	} else {
		a.count.Add(-int64(h.cut(rest, s, nil)))
	}
	if h.n == 0 {
		delete(sh.homes, name)
	}
}

// forget removes everything that a session has subscribed to.
func (a *Audience) forget(s *Session, subs []Subscription) {
	for _, sub := range subs {
		_, filter, _ := mqtt.Shared(sub.Filter)
		if home, ok := HomeOf(filter); ok {
			a.unlisten(home, s, sub.Filter)
		}
	}
}

var hits = sync.Pool{New: func() any { return new([]*listener) }}

// Publish gives a message to the home's subscribers, and says to how many it is on its way, and for how many there was no
// room. A session gets it once, however many of its subscriptions take it (MQTT 5, section 3.3.4): with the
// highest QoS of these, and all their identifiers. from is the session that published it, or nil. The message is borrowed.
func (a *Audience) Publish(name string, m *mqtt.Message, from *Session) (sent, dropped int) {
	if a.count.Load() == 0 {
		return 0, 0
	}
	sh := a.shard(name)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	h := sh.homes[name]
	if h == nil {
		return 0, 0
	}
	pool := hits.Get().(*[]*listener)
	found := h.match(m.Topic, (*pool)[:0])
	defer func() {
		clear(found)
		*pool = found[:0]
		hits.Put(pool)
	}()
	if len(found) > 1 {
		slices.SortStableFunc(found, bySession)
	}
	p := &post{m: m}
	for i := 0; i < len(found); {
		l := found[i]
		if l.share != nil {
			l.share.give(p, &sent, &dropped)
			i++
			continue
		}
		d, any := Delivery{}, false
		for ; i < len(found) && found[i].to == l.to && found[i].share == nil; i++ {
			any = found[i].addTo(&d, m, from) || any
		}
		if any {
			count(l.to.deliver(p, d), &sent, &dropped)
		}
	}
	return sent, dropped
}

func count(what outcome, sent, dropped *int) {
	switch what {
	case onItsWay:
		*sent++
	case noRoom:
		*dropped++
	case missed:
	}
}

func bySession(a, b *listener) int {
	if a.to == b.to || a.to == nil || b.to == nil {
		return cmp.Compare(btoi(a.to == nil), btoi(b.to == nil))
	}
	return cmp.Or(strings.Compare(a.to.Key.User, b.to.Key.User), strings.Compare(a.to.Key.Client, b.to.Key.Client))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// addTo makes a delivery what this subscription makes of it, besides others of the same session.
func (l *listener) addTo(d *Delivery, m *mqtt.Message, from *Session) bool {
	if l.options&mqtt.SubNoLocal != 0 && l.to == from {
		return false
	}
	d.Qos = max(d.Qos, min(l.options&mqtt.SubQoS, m.Qos))
	d.Retain = d.Retain || m.Retain && l.options&mqtt.SubAsPublished != 0
	if l.id > 0 {
		d.IDs = append(d.IDs, l.id)
	}
	return true
}

// Replay gives a session the retained messages that a subscription takes. No message is published to the home meanwhile:
// an older one must not come after a newer.
func (a *Audience) Replay(name string, s *Session, sub Subscription, from Retained) (sent, dropped int) {
	sh := a.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	from.Match(name, sub.Filter, func(m *mqtt.Message) {
		d := Delivery{Qos: min(sub.Options&mqtt.SubQoS, m.Qos), Retain: true}
		if sub.ID > 0 {
			d.IDs = []uint32{sub.ID}
		}
		count(s.deliver(&post{m: m, own: true}, d), &sent, &dropped)
	})
	return sent, dropped
}
