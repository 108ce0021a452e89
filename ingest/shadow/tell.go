package shadow

import (
	"encoding/json"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"hearthline/ingest/mqtt"
	"hearthline/ingest/table"
)

// Topic is where a device's shadow is published to apps; what hubs hear and say lies below it.
func Topic(home, device string) string { return "homes/" + home + "/devices/" + device + "/shadow" }

func deltaTopic(home, device string) string { return Topic(home, device) + "/delta" }

// changed follows the table. It runs in the order of a home's changes.
func (s *Shadows) changed(old, rec table.Record) {
	home, device, h, ok := splitKey(rec.Key)
	if !ok {
		s.Logger.Error("shadow: the table holds a key that is none of its own", "key", rec.Key)
		return
	}
	if rec.Value == nil {
		s.mu.Lock()
		delete(s.deleted, rec.Key)
		s.mu.Unlock()
		return
	}
	is, rest, err := readHeader(rec.Value)
	if err != nil {
		s.Logger.Error("shadow: a record of the table cannot be read", "key", rec.Key, "error", err)
		return
	}
	s.mu.Lock()
	if _, mine := s.wrote[is.write]; mine {
		s.wrote[is.write] = true
	}
	if is.deleted {
		s.deleted[rec.Key] = s.deletedAt(rest).Add(s.Keep)
	} else {
		delete(s.deleted, rec.Key)
	}
	s.mu.Unlock()
	if was, _, err := readHeader(old.Value); err == nil && was.version == is.version {
		return // written again
	}
	apps, hubs := s.Clients.Listening(home, Topic(home, device)), s.Clients.Listening(home, deltaTopic(home, device))
	if !apps && !hubs {
		return
	}
	lock := s.order(home)
	defer lock.Unlock()
	p := s.get(home, device)
	if apps {
		if raw := s.encoded(home, device, p); raw != nil {
			s.Clients.Publish(home, Topic(home, device), raw)
		}
	}
	if hubs && p.grew(h, old.Value) {
		s.hand(home, device, p)
	}
}

// deletedAt is when a shadow was deleted, as its record says.
func (s *Shadows) deletedAt(rest []byte) time.Time {
	var r struct{ Updated time.Time }
	if json.Unmarshal(rest, &r) != nil {
		return s.Now()
	}
	return r.Updated
}

// order makes what is told of a home come one after the other: each tells what stands then, so what comes later is never older.
func (s *Shadows) order(home string) *sync.Mutex {
	lock := &s.telling[maphash.String(s.seed, home)%uint64(len(s.telling))]
	lock.Lock()
	return lock
}

func (s *Shadows) encoded(home, device string, p pair) []byte {
	d, err := p.document(home, device)
	var raw []byte
	if err == nil {
		raw, err = encode(d)
	}
	if err != nil {
		s.Logger.Error("shadow: a document cannot be written", "home", home, "device", device, "error", err)
		return nil
	}
	return raw
}

// grew says whether something differs that did not before a half was changed, or not so. A change that only brings both halves
// nearer needs no answer: a hub that reports property by property would be told the rest of its work again and again.
func (p pair) grew(h Half, before []byte) bool {
	after, err := p.delta()
	if err != nil || len(after) == 0 {
		return err != nil // hand says so
	}
	if p[h] = nil; before != nil {
		if p[h], err = decode(before); err != nil {
			return true // whatever it was
		}
	}
	known, err := p.delta()
	return err != nil || len(difference(after, known)) > 0
}

// deliver gives the delta to the hubs here, if there is one.
func (s *Shadows) deliver(home, device string) {
	lock := s.order(home)
	defer lock.Unlock()
	if s.Clients.Listening(home, deltaTopic(home, device)) {
		s.hand(home, device, s.get(home, device))
	}
}

// hand is called with the order of the home held.
func (s *Shadows) hand(home, device string, p pair) {
	missing, err := p.delta()
	var raw []byte
	if err == nil && len(missing) > 0 {
		raw, err = p.message(missing)
	}
	if err != nil {
		s.Logger.Error("shadow: a delta cannot be made", "home", home, "device", device, "error", err)
	}
	if len(raw) == 0 {
		return
	}
	sent, noRoom := s.Clients.Hand(home, device, deltaTopic(home, device), raw, func() { s.count.acked.Add(1) })
	s.count.deltas.Add(int64(sent))
	if noRoom > 0 {
		s.count.owed.Add(int64(noRoom))
		s.mu.Lock()
		s.owed[home+"/"+device] = true
		s.mu.Unlock()
	}
}

// Connected is told that a hub here has subscribed to a filter: it is given the deltas that there are.
func (s *Shadows) Connected(home, filter string) {
	for _, rec := range s.Table.Scan(home + "/") {
		_, device, h, ok := splitKey(rec.Key)
		if !ok || h != Desired || !mqtt.Matches(filter, deltaTopic(home, device)) {
			continue
		}
		s.deliver(home, device)
	}
}

// Replay calls f with the documents of a home whose topics a filter takes. f must not call back.
func (s *Shadows) Replay(home, filter string, f func(topic string, payload []byte)) {
	last := ""
	for _, rec := range s.Table.Scan(home + "/") {
		_, device, _, ok := splitKey(rec.Key)
		if !ok || device == last || !mqtt.Matches(filter, Topic(home, device)) {
			continue
		}
		last = device
		p := s.get(home, device)
		if !p.there() {
			continue
		}
		if raw := s.encoded(home, device, p); raw != nil {
			f(Topic(home, device), raw)
		}
	}
}

// settle gives hubs the deltas that they had no room for.
func (s *Shadows) settle() {
	s.mu.Lock()
	owed := s.owed
	s.owed = map[string]bool{}
	s.mu.Unlock()
	for key := range owed {
		home, device, _ := strings.Cut(key, "/")
		s.deliver(home, device)
	}
}

// forget takes back what was deleted long ago. All gateways do: the log takes one as it takes many.
func (s *Shadows) forget() {
	now := s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, at := range s.deleted {
		if now.After(at) && s.Table.Offer(key, nil) {
			s.deleted[key] = now.Add(time.Minute) // until it is seen to be gone
		}
	}
}
