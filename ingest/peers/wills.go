package peers

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sourcegraph/conc/pool"
	"google.golang.org/protobuf/proto"

	"hearthline/ingest/peers/peerspb"
	"hearthline/ingest/table"
)

// Wills are the sessions of this gateway, as far as they leave something behind.
type Wills interface {
	// Will gives what a session leaves behind, nil if that is nothing.
	Will(user, client string) *peerspb.Will
	// WillGone says that another gateway has published a will of this number, or need not any more: it is not published here.
	WillGone(user, client string, number uint64)
	// PublishWill publishes what a session of a gateway that is dead left behind. It must not wait.
	PublishWill(w *peerspb.Will)
}

// wills are those that this gateway's sessions leave behind, and those that wait for their time though their gateways are gone.
type wills struct {
	mu      sync.Mutex
	unsaid  map[string]bool      // sessions of this gateway, escaped, whose wills are not in the table as they are now
	due     map[string]time.Time // by key of the table: wills of others whose connections have ended
	of      map[string][]string  // whose they are: starts, by session
	waiting chan struct{}
}

func (w *wills) prepare() {
	w.unsaid, w.due, w.of, w.waiting = map[string]bool{}, map[string]time.Time{}, map[string][]string{}, make(chan struct{}, 1)
}

// willPart stands between a session and a start in the key of a will. Claims have none, and what users and clients call themselves is
// escaped.
const willPart = "/will/"

func isWill(key string) bool { return strings.Count(key, "/") == 3 }

// splitWill takes the key of a will apart.
func splitWill(key string) (session, start string) {
	session, start, _ = strings.Cut(key, willPart)
	return session, start
}

// Willed says that what a session of this gateway leaves behind has changed. It does not wait: who dies within the next milliseconds leaves
// behind what was before.
func (p *Peers) Willed(user, client string) {
	w := &p.wills
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unsaid[SessionKey(user, client)] = true
	signal(w.waiting)
}

// keepWills writes them down.
func (p *Peers) keepWills(ctx context.Context) error {
	for {
		select {
		case <-p.wills.waiting:
		case <-ctx.Done():
			return nil
		}
		for session := range p.unsaidWills() {
			value, err := p.willOf(session)
			if err != nil {
				return err
			}
			if !p.Tables.Sessions.Offer(session+willPart+p.Start, value) {
				p.wills.again(session)
			}
		}
	}
}

// unsaidWills gives the sessions whose wills are to be written down.
func (p *Peers) unsaidWills() map[string]bool {
	w := &p.wills
	w.mu.Lock()
	defer w.mu.Unlock()
	unsaid := w.unsaid
	w.unsaid = map[string]bool{}
	return unsaid
}

// again has a will written down later: there was no room.
func (w *wills) again(session string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unsaid[session] = true
	time.AfterFunc(offerWait, func() { signal(w.waiting) })
}

// willOf gives a session's record. It is looked up when it is written, so the last one written is the last there was.
func (p *Peers) willOf(session string) ([]byte, error) {
	user, client, _ := strings.Cut(session, "/")
	w := p.Wills.Will(unescape(user), unescape(client))
	if w == nil {
		return nil, nil
	}
	return proto.Marshal(w)
}

// willChanged follows the table.
func (p *Peers) willChanged(old, rec table.Record) {
	session, start := splitWill(rec.Key)
	if start == p.Start {
		var was peerspb.Will
		if rec.Value == nil && proto.Unmarshal(old.Value, &was) == nil {
			user, client, _ := strings.Cut(session, "/")
			p.Wills.WillGone(unescape(user), unescape(client), was.GetNumber())
		}
		return
	}
	w := &p.wills
	w.mu.Lock()
	defer w.mu.Unlock()
	var is peerspb.Will
	_, waited := w.due[rec.Key]
	if rec.Value == nil || proto.Unmarshal(rec.Value, &is) != nil || is.GetDueMillis() == 0 {
		delete(w.due, rec.Key)
		if left := slices.DeleteFunc(w.of[session], func(s string) bool { return s == start }); len(left) > 0 {
			w.of[session] = left
		} else {
			delete(w.of, session)
		}
		return
	}
	w.due[rec.Key] = time.UnixMilli(is.GetDueMillis())
	if !waited {
		w.of[session] = append(w.of[session], start)
	}
}

// waitingOf gives the starts of which wills of a session wait for their time.
func (w *wills) waitingOf(session string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.of[session])
}

// writeWill writes down a will, and waits until it is read.
func (p *Peers) writeWill(ctx context.Context, session string) error {
	value, err := p.willOf(session)
	if err != nil {
		return err
	}
	at, err := p.Tables.Sessions.Put(ctx, session+willPart+p.Start, value)
	if err != nil {
		return err
	}
	return p.Tables.Sessions.Reached(ctx, at)
}

// orphans takes away the wills that gateways which are gone left behind of a session, and one that does not answer, for who takes the
// session over to publish them or to forget them. The claim that it makes then stands behind.
func (p *Peers) orphans(session, silent string) (left []*peerspb.Will) {
	starts := slices.DeleteFunc(p.starts(), func(start string) bool { return start != silent && p.lives(start) })
	for _, start := range p.wills.waitingOf(session) {
		if !p.lives(start) && !slices.Contains(starts, start) {
			starts = append(starts, start)
		}
	}
	for _, rec := range p.records(session+willPart, starts) {
		w := new(peerspb.Will)
		if proto.Unmarshal(rec.Value, w) == nil && p.Tables.Sessions.Offer(rec.Key, nil) {
			left = append(left, w)
		}
	}
	return left
}

// bequeath does with a dead gateway's will what is to be done when that is found: it is published, or written down when it will be.
func (p *Peers) bequeath(ctx context.Context, rec table.Record) error {
	session, start := splitWill(rec.Key)
	w := new(peerspb.Will)
	if err := proto.Unmarshal(rec.Value, w); err != nil {
		p.Logger.Error("peers: a will cannot be read; it is not published", "error", err)
		_, err := p.Tables.Sessions.Put(ctx, rec.Key, nil)
		return err
	}
	switch {
	case w.GetDueMillis() != 0:
		return nil // it waits already
	case w.GetDelay() > 0 && p.claimedBut(session, start): // its client is back before
		w = nil
	case w.GetDelay() > 0:
		w.DueMillis = time.Now().Add(time.Duration(w.GetDelay()) * time.Second).UnixMilli()
		value, err := proto.Marshal(w)
		if err == nil {
			_, err = p.Tables.Sessions.Put(ctx, rec.Key, value)
		}
		return err
	}
	return p.execute(ctx, rec.Key, w)
}

// execute publishes a will, unless it is nil, and then takes it away: if this gateway dies in between, it is published again.
func (p *Peers) execute(ctx context.Context, key string, w *peerspb.Will) error {
	if w != nil {
		p.Wills.PublishWill(w)
		p.count.wills.Add(1)
	}
	at, err := p.Tables.Sessions.Put(ctx, key, nil)
	if err != nil {
		return err
	}
	return p.Tables.Sessions.Reached(ctx, at) // or it would be found again
}

// claimedBut says whether a start other than one that is dead has a claim to a session.
func (p *Peers) claimedBut(session, dead string) bool {
	others := slices.DeleteFunc(p.starts(), func(start string) bool { return start == dead })
	return len(p.records(session+"/", append(others, p.Start))) > 0
}

// executeDue publishes the wills whose time has come and whose gateways are gone. Of those that live, the first by name does it.
func (p *Peers) executeDue(ctx context.Context, now time.Time) error {
	if p.Wills == nil || !p.First() {
		return nil
	}
	puts := pool.New().WithContext(ctx).WithMaxGoroutines(putsMax).WithFirstError()
	for _, key := range p.wills.dueBy(now) {
		_, start := splitWill(key)
		rec, ok := p.Tables.Sessions.Get(key)
		w := new(peerspb.Will)
		if !ok || p.lives(start) || proto.Unmarshal(rec.Value, w) != nil {
			continue
		}
		puts.Go(func(ctx context.Context) error { return p.execute(ctx, key, w) })
	}
	return puts.Wait()
}

func (w *wills) dueBy(now time.Time) (keys []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, at := range w.due {
		if !now.Before(at) {
			keys = append(keys, key)
		}
	}
	return keys
}

// lives says whether another start lives, as far as is known here.
func (p *Peers) lives(start string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.others[start]
	return o != nil && !o.gone
}

// waits says whether a will waits for its time, its connection having ended.
func waits(rec table.Record) bool {
	var w peerspb.Will
	return proto.Unmarshal(rec.Value, &w) == nil && w.GetDueMillis() != 0
}
