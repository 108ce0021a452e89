package session

import (
	"slices"

	"hearthline/ingest/mqtt"
)

// Hand gives a message to those of the home's subscribers that are connected and that may takes, and says to how many it is
// on its way. It is for their connections of this moment alone: it does not wait for a client that is away, and is not sent
// again when one comes back. acked is called when one of them has acknowledged it, not under a lock. The message is borrowed.
func (a *Audience) Hand(name string, m *mqtt.Message, may func(*Terms) bool, acked func()) (sent int) {
	sh := a.shard(name)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	h := sh.homes[name]
	if h == nil {
		return 0
	}
	p := &post{m: m}
	given := map[*Session]bool{}
	for _, l := range h.match(m.Topic, nil) {
		if l.share != nil || given[l.to] {
			continue
		}
		l.to.mu.Lock()
		connected := l.to.at != nil && may(l.to.at)
		l.to.mu.Unlock()
		if !connected {
			continue
		}
		given[l.to] = true
		if l.to.deliver(p, Delivery{Qos: min(l.options&mqtt.SubQoS, m.Qos), acked: acked}) == onItsWay {
			sent++
		}
	}
	return sent
}

// Listening says whether some session here has subscribed to a topic of a home.
func (a *Audience) Listening(name, topic string) bool {
	if a.count.Load() == 0 {
		return false
	}
	sh := a.shard(name)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	h := sh.homes[name]
	return h != nil && len(h.match(topic, nil)) > 0
}

// tell says what has been subscribed to in a home. The shard's lock is held, so that the last word is the last.
func (a *Audience) tell(sh *shard, name string) {
	if a.Changed == nil {
		return
	}
	h := sh.homes[name]
	if h == nil || h.n == 0 {
		a.Changed(name, nil)
		return
	}
	if h.tree != nil {
		a.Changed(name, []string{"homes/" + name + "/#"})
		return
	}
	filters := make([]string, 0, len(h.flat)+1)
	for _, l := range h.flat {
		if l.share == nil {
			filters = append(filters, l.filter)
		}
	}
	for shared := range h.shares {
		_, filter, _ := mqtt.Shared(shared)
		filters = append(filters, filter)
	}
	slices.Sort(filters)
	a.Changed(name, slices.Compact(filters))
}
