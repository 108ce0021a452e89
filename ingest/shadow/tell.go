package shadow

import (
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
	is, err := decode(rec.Value)
	if err != nil {
		s.Logger.Error("shadow: a record of the table cannot be read", "key", rec.Key, "error", err)
		return
	}
	s.mu.Lock()
	if _, mine := s.wrote[is.Write]; mine {
		s.wrote[is.Write] = true
	}
	if is.Deleted {
		s.deleted[rec.Key] = is.Updated.Add(s.Keep)
	} else {
		delete(s.deleted, rec.Key)
	}
	s.mu.Unlock()
	var was *section
	if old.Value != nil {
		if was, err = decode(old.Value); err == nil && was.Version == is.Version {
			return // written again
		}
	}
	lock := s.order(home)
	defer lock.Unlock()
	s.publish(home, device)
	if s.grew(home, device, h, was) {
		s.deliver(home, device)
	}
}

// order makes what is told of a home come one after the other: each tells what stands then, so what comes later is never older.
func (s *Shadows) order(home string) *sync.Mutex {
	lock := &s.telling[maphash.String(s.seed, home)%uint64(len(s.telling))]
	lock.Lock()
	return lock
}

// publish gives the document to the apps here.
func (s *Shadows) publish(home, device string) {
	topic := Topic(home, device)
	if !s.Clients.Listening(home, topic) {
		return
	}
	if raw := s.encoded(home, device); raw != nil {
		s.Clients.Publish(home, topic, raw)
	}
}

func (s *Shadows) encoded(home, device string) []byte {
	d, err := s.get(home, device).document(home, device)
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
func (s *Shadows) grew(home, device string, h Half, before *section) bool {
	if !s.Clients.Listening(home, deltaTopic(home, device)) {
		return false
	}
	p := s.get(home, device)
	after, err := p.delta()
	if err != nil || len(after) == 0 {
		return err != nil // deliver says so
	}
	p[h] = before
	known, err := p.delta()
	return err != nil || len(difference(after, known)) > 0
}

// deliver gives the delta to the hubs here, if there is one. The order of the home is held.
func (s *Shadows) deliver(home, device string) {
	topic := deltaTopic(home, device)
	if !s.Clients.Listening(home, topic) {
		return
	}
	p := s.get(home, device)
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
	sent, noRoom := s.Clients.Hand(home, device, topic, raw, func() { s.count.acked.Add(1) })
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
		lock := s.order(home)
		s.deliver(home, device)
		lock.Unlock()
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
		if !s.get(home, device).there() {
			continue
		}
		if raw := s.encoded(home, device); raw != nil {
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
		lock := s.order(home)
		s.deliver(home, device)
		lock.Unlock()
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
