package peers

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sourcegraph/conc/pool"

	"hearthline/ingest/table"
)

// retire takes away what gateways that are gone have left in the tables. Of those that live, the first by name does it;
// if it dies on it, the next one goes on.
func (p *Peers) retire(ctx context.Context) error {
	tick := time.NewTicker(p.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if err := p.executeDue(ctx, time.Now()); err != nil && ctx.Err() == nil {
			p.Logger.Warn("peers: wills of gateways that are gone could not be published; trying again", "error", err)
		}
		for _, start := range p.mine() {
			if err := p.forget(ctx, start, true); err != nil {
				p.Logger.Warn("peers: what a gateway that is gone has left could not be taken away; trying again", "gateway", start, "error", err)
				break
			}
			p.count.retired.Add(1)
			p.Logger.Info("peers: what a gateway that is gone has left is taken away", "gateway", start)
		}
	}
}

// First says whether this gateway is the first by name of those that live: the one to see to what one of them must.
func (p *Peers) First() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first()
}

// first is First, for who holds p.mu.
func (p *Peers) first() bool {
	for _, o := range p.others {
		if !o.gone && o.start < p.Start {
			return false
		}
	}
	return true
}

// mine gives the starts that are gone, if this gateway is the one to see to them.
func (p *Peers) mine() (gone []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.first() {
		return nil
	}
	for _, o := range p.others {
		if o.gone {
			gone = append(gone, o.start)
		}
	}
	return gone
}

// putsMax is how many records are put at once when much is to be put in order.
const putsMax = 256

// forget takes a start out of all tables, out of that of gateways last: then it is known to be done. Its wills that wait for their
// time stay; of one that is dead, the others are published.
func (p *Peers) forget(ctx context.Context, start string, dead bool) error {
	puts := pool.New().WithContext(ctx).WithMaxGoroutines(putsMax).WithFirstError()
	for _, t := range []*table.Table{p.Tables.Sessions, p.Tables.Audiences} {
		for _, rec := range t.Scan("") {
			switch {
			case !strings.HasSuffix(rec.Key, "/"+start):
			case t == p.Tables.Sessions && isWill(rec.Key) && p.Wills != nil && dead:
				puts.Go(func(ctx context.Context) error { return p.bequeath(ctx, rec) })
			case t == p.Tables.Sessions && isWill(rec.Key) && waits(rec):
			default:
				puts.Go(func(ctx context.Context) error { _, err := t.Put(ctx, rec.Key, nil); return err })
			}
		}
	}
	if err := puts.Wait(); err != nil {
		return err
	}
	if _, err := p.Tables.Gateways.Put(ctx, start, nil); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.others[start]; o != nil && o.gone {
		o.close()
		delete(p.others, start)
	}
	return nil
}

// leave takes this gateway out of the tables.
func (p *Peers) leave(ctx context.Context) error {
	p.leaving.Store(true)
	p.mu.Lock()
	for _, o := range p.others {
		o.close()
	}
	p.mu.Unlock()
	for session := range p.unsaidWills() {
		if err := p.writeWill(ctx, session); err != nil {
			return fmt.Errorf("peers: not all wills could be written down: %w", err)
		}
	}
	if err := p.forget(ctx, p.Start, false); err != nil {
		return fmt.Errorf("peers: not everything of this gateway could be taken out of the tables; the others will: %w", err)
	}
	return nil
}
