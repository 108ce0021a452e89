package session

import (
	"slices"
	"sync/atomic"

	"hearthline/ingest/mqtt"
)

// share is a shared subscription (MQTT 5, section 4.8.2): each message goes to one of its members, in turn.
type share struct {
	filter  string // with $share/{group}/
	members []*listener
	next    atomic.Uint32
}

// join makes a listener a member of the home's share of a filter, or replaces the membership of its session. It says how
// many were added.
func (h *home) join(filter string, l *listener) int {
	sh := h.shares[filter]
	if sh == nil {
		sh = &share{filter: filter}
		if h.shares == nil {
			h.shares = make(map[string]*share)
		}
		h.shares[filter] = sh
		h.put(&listener{filter: l.filter, share: sh})
	}
	for i, m := range sh.members {
		if m.to == l.to {
			sh.members[i] = l
			return 0
		}
	}
	sh.members = append(sh.members, l)
	return 1
}

// part ends a session's membership. It says how many were ended.
func (h *home) part(filter string, s *Session) int {
	sh := h.shares[filter]
	if sh == nil {
		return 0
	}
	i := slices.IndexFunc(sh.members, func(m *listener) bool { return m.to == s })
	if i < 0 {
		return 0
	}
	rest := sh.members[0].filter
	if sh.members = slices.Delete(sh.members, i, i+1); len(sh.members) == 0 {
		delete(h.shares, filter)
		h.cut(rest, nil, sh)
	}
	return 1
}

// give delivers a message to one member: in turn to those who are connected, and to one who is away only when none is, or none
// has room.
func (sh *share) give(p *post, sent, dropped *int) {
	n := uint32(len(sh.members))
	first := sh.next.Add(1)
	for _, connected := range []bool{true, false} {
		for i := range n {
			l := sh.members[(first+i)%n]
			if l.to.connected() != connected {
				continue
			}
			d := Delivery{Share: sh.filter}
			l.addTo(&d, p.m, nil)
			if l.to.deliver(p, d) == onItsWay {
				*sent++
				return
			}
		}
	}
	*dropped++
}

func (s *Session) connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at != nil
}

// passOn gives what a session that has ended did not get by shared subscriptions to their other members. What may have been
// delivered in part, QoS 2, goes to nobody else (section 4.8.2).
func (a *Audience) passOn(flight, queue []Delivery) {
	for _, all := range [][]Delivery{flight, queue} {
		for i := range all {
			d := &all[i]
			if d.Share == "" || d.Message == nil || d.ID != 0 && d.Qos == 2 {
				continue
			}
			_, filter, _ := mqtt.Shared(d.Share)
			name, ok := HomeOf(filter)
			if !ok {
				continue
			}
			sh := a.shard(name)
			sh.mu.RLock()
			if h := sh.homes[name]; h != nil && h.shares[d.Share] != nil {
				var sent, dropped int
				h.shares[d.Share].give(&post{m: d.Message, own: true}, &sent, &dropped)
			}
			sh.mu.RUnlock()
		}
	}
}
