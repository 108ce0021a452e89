package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"hearthline/ingest/table"
)

// claims are the sessions that this gateway holds.
type claims struct {
	mu      sync.Mutex
	next    uint64
	held    map[string]uint64 // by user/client, escaped: the claim's number
	unsaid  map[string]bool   // whose claim, or its end, is not in the table yet
	revoked map[string]bool   // that were taken out of the table by another gateway, which took this one for gone
	lent    map[string]string // to whom a session was handed over whose claim has not come back yet: a start
	waiting chan struct{}
}

func (c *claims) prepare() {
	c.held, c.unsaid, c.revoked, c.lent, c.waiting = map[string]uint64{}, map[string]bool{}, map[string]bool{}, map[string]string{}, make(chan struct{}, 1)
}

// claim is the value of a key of the table of sessions.
type claim struct {
	Number uint64 `json:"number"` // counts the claims of a start, so that each is another record
}

// SessionKey names a session in tables.
func SessionKey(user, client string) string { return escape(user) + "/" + escape(client) }

// Claim says that a session's client is connected to this gateway. It does not wait. If several gateways claim a session,
// the last claim in the log stands, and the others end their connections. The claim's number is above those before.
func (p *Peers) Claim(user, client string) (number uint64) {
	c := &p.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	key := SessionKey(user, client)
	c.held[key] = c.next
	c.unsaid[key] = true
	delete(c.lent, key)
	delete(c.revoked, key)
	signal(c.waiting)
	return c.next
}

// lend notes that a session was handed over: until its new holder's claim comes back, it is known to be there.
func (p *Peers) lend(session, to string) {
	c := &p.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[session] != 0 {
		c.lent[session] = to
	}
}

// holder gives the start that has a session, as far as is known here: the one whose claim stands last in the log. It is "" when
// that is this one, whose claim may be on its way, or there is none.
func (p *Peers) holder(session string) string {
	c := &p.claims
	c.mu.Lock()
	lent, held := c.lent[session], c.held[session] != 0
	c.mu.Unlock()
	if lent != "" || held {
		return lent
	}
	var last table.Record
	for _, rec := range p.records(session+"/", append(p.starts(), p.Start)) {
		if last.Key == "" || rec.Offset > last.Offset {
			last = rec
		}
	}
	if start := strings.TrimPrefix(last.Key, session+"/"); start != p.Start {
		return start
	}
	return ""
}

// starts gives the other starts that are known: those that live, and those whose leavings are still there.
func (p *Peers) starts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.others))
}

// records gives what starts have written under keys that end in them. It looks each up: a user may have a hundred thousand clients.
func (p *Peers) records(prefix string, starts []string) (out []table.Record) {
	for _, start := range starts {
		if rec, ok := p.Tables.Sessions.Get(prefix + start); ok {
			out = append(out, rec)
		}
	}
	return out
}

// Epoch gives the place of this gateway's claim to a session in the log, which is above those of all claims before it; it waits until
// the claim has come back. ok is false when another gateway has claimed the session since, or nobody here holds it.
func (p *Peers) Epoch(ctx context.Context, user, client string) (epoch int64, ok bool, err error) {
	c := &p.claims
	key := SessionKey(user, client)
	tick := time.NewTicker(epochEvery)
	defer tick.Stop()
	for {
		c.mu.Lock()
		number, revoked := c.held[key], c.revoked[key]
		c.mu.Unlock()
		switch {
		case number == 0:
			return 0, false, nil
		case revoked:
			return 0, false, errors.New("others took this gateway for gone; it has not claimed the session again yet")
		}
		rec, found := p.Tables.Sessions.Get(key + "/" + p.Start)
		var said claim
		if found && json.Unmarshal(rec.Value, &said) == nil && said.Number == number {
			return rec.Offset, true, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, false, fmt.Errorf("the claim to the session is not in the log: %w", ctx.Err())
		}
	}
}

// epochEvery is how often it is looked whether a claim has come back: as a rule it has.
const epochEvery = 5 * time.Millisecond

// Release says that this gateway has the session of a claim no longer, unless it has claimed it again since.
func (p *Peers) Release(user, client string, number uint64) {
	c := &p.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	key := SessionKey(user, client)
	if c.held[key] != number {
		return
	}
	c.forget(key)
	c.unsaid[key] = true
	signal(c.waiting)
}

// forget notes that a session is not this gateway's any more. Callers hold mu.
func (c *claims) forget(session string) {
	delete(c.held, session)
	delete(c.lent, session)
	delete(c.revoked, session)
}

// claimAgain claims what nobody else has claimed meanwhile, and lets go of the rest: their claim is later than ours was.
func (p *Peers) claimAgain() {
	starts := p.starts()
	c := &p.claims
	c.mu.Lock()
	lost := map[string]uint64{}
	clear(c.revoked)
	for key, number := range c.held {
		c.unsaid[key] = true
		if len(p.records(key+"/", starts)) > 0 {
			c.forget(key)
			lost[key] = number
		}
	}
	signal(c.waiting)
	c.mu.Unlock()
	for key, number := range lost {
		p.evict(key, number)
	}
}

func (p *Peers) evict(session string, number uint64) {
	user, client, _ := strings.Cut(session, "/")
	p.count.evicted.Add(1)
	p.Local.Evict(unescape(user), unescape(client), number)
}

func (p *Peers) keepClaims(ctx context.Context) error {
	c := &p.claims
	for {
		select {
		case <-c.waiting:
		case <-ctx.Done():
			return nil
		}
		c.mu.Lock()
		for key := range c.unsaid {
			var value []byte
			if n, held := c.held[key]; held {
				var err error
				if value, err = json.Marshal(claim{Number: n}); err != nil {
					c.mu.Unlock()
					return err
				}
			}
			if !p.Tables.Sessions.Offer(key+"/"+p.Start, value) {
				time.AfterFunc(offerWait, func() { signal(c.waiting) })
				break
			}
			delete(c.unsaid, key)
		}
		c.mu.Unlock()
	}
}

// sessionChanged ends a connection whose session another gateway has claimed after this one. A claim of ours that has not come
// back yet is later in the log than theirs: then it is they who end theirs.
func (p *Peers) sessionChanged(old, rec table.Record) {
	if isWill(rec.Key) {
		p.willChanged(old, rec)
		return
	}
	at := strings.LastIndexByte(rec.Key, '/')
	if at < 0 {
		return
	}
	c := &p.claims
	session, start := rec.Key[:at], rec.Key[at+1:]
	c.mu.Lock()
	number, held := c.held[session]
	switch {
	case start == p.Start:
		var was claim
		if rec.Value != nil {
			delete(c.revoked, session)
		} else if held && json.Unmarshal(old.Value, &was) == nil && was.Number == number {
			c.revoked[session] = true
		}
		held = false
	case rec.Value == nil:
		held = false
	case held && !c.revoked[session]:
		ours, ok := p.Tables.Sessions.Get(session + "/" + p.Start)
		var said claim
		held = ok && json.Unmarshal(ours.Value, &said) == nil && said.Number == number
	}
	if !held {
		c.mu.Unlock()
		return
	}
	c.forget(session)
	c.unsaid[session] = true
	signal(c.waiting)
	c.mu.Unlock()
	p.evict(session, number)
}

func unescape(part string) string {
	if name, err := url.PathUnescape(part); err == nil {
		return name
	}
	return part
}
