package peers

import (
	"context"
	"encoding/json"
	"net/url"
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
	waiting chan struct{}
}

func (c *claims) prepare() {
	c.held, c.unsaid, c.waiting = map[string]uint64{}, map[string]bool{}, make(chan struct{}, 1)
}

// claim is the value of a key of the table of sessions.
type claim struct {
	Number uint64 `json:"number"` // counts the claims of a start, so that each is another record
}

// Claim says that a session's client is connected to this gateway. It does not wait. If several gateways claim a session,
// the last claim in the log stands, and the others end their connections. The claim's number is above those before.
func (p *Peers) Claim(user, client string) (number uint64) {
	c := &p.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	key := escape(user) + "/" + escape(client)
	c.held[key] = c.next
	c.unsaid[key] = true
	signal(c.waiting)
	return c.next
}

// Release says that this gateway has the session of a claim no longer, unless it has claimed it again since.
func (p *Peers) Release(user, client string, number uint64) {
	c := &p.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	key := escape(user) + "/" + escape(client)
	if c.held[key] != number {
		return
	}
	delete(c.held, key)
	c.unsaid[key] = true
	signal(c.waiting)
}

// claimAgain claims what nobody else has claimed meanwhile, and lets go of the rest: their claim is later than ours was.
func (p *Peers) claimAgain() {
	c := &p.claims
	c.mu.Lock()
	var lost []string
	for key := range c.held {
		c.unsaid[key] = true
		for _, rec := range p.Tables.Sessions.Scan(key + "/") {
			if !strings.HasSuffix(rec.Key, "/"+p.Start) {
				delete(c.held, key)
				lost = append(lost, key)
				break
			}
		}
	}
	signal(c.waiting)
	c.mu.Unlock()
	for _, key := range lost {
		p.evict(key)
	}
}

func (p *Peers) evict(session string) {
	user, client, _ := strings.Cut(session, "/")
	p.count.evicted.Add(1)
	p.Local.Evict(unescape(user), unescape(client))
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
func (p *Peers) sessionChanged(_, rec table.Record) {
	at := strings.LastIndexByte(rec.Key, '/')
	if rec.Value == nil || at < 0 || rec.Key[at+1:] == p.Start {
		return
	}
	session := rec.Key[:at]
	c := &p.claims
	c.mu.Lock()
	number, held := c.held[session]
	if !held {
		c.mu.Unlock()
		return
	}
	ours, ok := p.Tables.Sessions.Get(session + "/" + p.Start)
	var said claim
	if !ok || json.Unmarshal(ours.Value, &said) != nil || said.Number != number {
		c.mu.Unlock()
		return
	}
	delete(c.held, session)
	c.unsaid[session] = true
	signal(c.waiting)
	c.mu.Unlock()
	p.evict(session)
}

func unescape(part string) string {
	if name, err := url.PathUnescape(part); err == nil {
		return name
	}
	return part
}
