package peers

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"hearthline/ingest/mqtt"
	"hearthline/ingest/peers/peerspb"
	"hearthline/ingest/table"
)

// filtersMax is how many filters of a home a gateway writes down; where its clients have more, it asks for everything.
const filtersMax = 32

// audience knows which gateways have subscribers of a home.
type audience struct {
	mu     sync.RWMutex
	remote map[string]map[string][]string // by home and start: filters

	wanted  map[string][]string // what this gateway's clients have subscribed to, by home
	unsaid  map[string]bool     // homes whose wanted is not in the table yet
	waiting chan struct{}       // of one place: unsaid has something
}

func (a *audience) prepare() {
	a.remote = map[string]map[string][]string{}
	a.wanted, a.unsaid, a.waiting = map[string][]string{}, map[string]bool{}, make(chan struct{}, 1)
}

// Subscribed tells the others what this gateway's clients have subscribed to in a home: all filters, none when there is nobody
// left. It does not wait; they know within milliseconds.
func (p *Peers) Subscribed(home string, filters []string) {
	filters = slices.Clone(filters)
	slices.Sort(filters)
	filters = slices.Compact(filters)
	if len(filters) > filtersMax {
		filters = []string{"homes/" + home + "/#"}
	}
	a := &p.audience
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Equal(a.wanted[home], filters) {
		return
	}
	if len(filters) == 0 {
		delete(a.wanted, home)
	} else {
		a.wanted[home] = filters
	}
	a.unsaid[home] = true
	signal(a.waiting)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// again writes everything down once more.
func (a *audience) again() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for home := range a.wanted {
		a.unsaid[home] = true
	}
	signal(a.waiting)
}

// offerWait is how long what does not fit into a table's queue waits for another try.
const offerWait = 50 * time.Millisecond

// keepAudience writes down what this gateway's clients have subscribed to.
func (p *Peers) keepAudience(ctx context.Context) error {
	a := &p.audience
	for {
		select {
		case <-a.waiting:
		case <-ctx.Done():
			return nil
		}
		a.mu.Lock()
		for home := range a.unsaid {
			var value []byte
			if filters := a.wanted[home]; len(filters) > 0 {
				var err error
				if value, err = json.Marshal(filters); err != nil {
					a.mu.Unlock()
					return err
				}
			}
			if !p.Tables.Audiences.Offer(home+"/"+p.Start, value) {
				time.AfterFunc(offerWait, func() { signal(a.waiting) })
				break
			}
			delete(a.unsaid, home)
		}
		a.mu.Unlock()
	}
}

// audienceChanged follows the table.
func (p *Peers) audienceChanged(_, rec table.Record) {
	home, start, ok := strings.Cut(rec.Key, "/")
	if !ok || start == p.Start {
		return
	}
	var filters []string
	if rec.Value != nil {
		if err := json.Unmarshal(rec.Value, &filters); err != nil {
			p.Logger.Error("peers: what a gateway's clients have subscribed to cannot be read", "gateway", start, "home", home, "error", err)
			return
		}
	}
	a := &p.audience
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(filters) == 0 {
		if delete(a.remote[home], start); len(a.remote[home]) == 0 {
			delete(a.remote, home)
		}
		return
	}
	if a.remote[home] == nil {
		a.remote[home] = map[string][]string{}
	}
	a.remote[home][start] = filters
}

// Listeners gives the other gateways that live and whose clients have subscribed to a topic of a home. It is cheap where there are
// none.
func (p *Peers) Listeners(home, topic string) (starts []string) {
	a := &p.audience
	a.mu.RLock()
	for start, filters := range a.remote[home] {
		if slices.ContainsFunc(filters, func(f string) bool { return mqtt.Matches(f, topic) }) {
			starts = append(starts, start)
		}
	}
	a.mu.RUnlock()
	if len(starts) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(starts, func(s string) bool { return p.others[s] == nil || p.others[s].gone })
}

// Heard says whether another gateway, dead or alive, has subscribers for a topic of a home. It costs next to nothing where
// there are none.
func (p *Peers) Heard(home, topic string) bool {
	a := &p.audience
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, filters := range a.remote[home] {
		if slices.ContainsFunc(filters, func(f string) bool { return mqtt.Matches(f, topic) }) {
			return true
		}
	}
	return false
}

// Audiences is the number of homes that have subscribers on other gateways.
func (p *Peers) Audiences() int {
	p.audience.mu.RLock()
	defer p.audience.mu.RUnlock()
	return len(p.audience.remote)
}

// Publish hands a message to the gateways whose clients have subscribed to its topic. It does not wait: what one of them
// is too slow for is lost to its clients, and counted. The message is given away.
func (p *Peers) Publish(m *peerspb.Message) {
	for _, start := range p.Listeners(m.GetHome(), m.GetTopic()) {
		l := p.way(start)
		if l == nil {
			p.count.lost.Add(1)
			continue
		}
		select {
		case l.queue <- m:
		default:
			p.count.lost.Add(1)
		}
	}
}
