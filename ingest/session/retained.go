package session

import (
	"errors"
	"strings"
	"sync"
	"time"

	"hearthline/ingest/mqtt"
)

// Retained keeps the last retained message of each topic.
type Retained interface {
	// Set keeps a message as the last of its topic, in place of the one before; one without a payload only removes that.
	// Home and message are borrowed. The error is ErrRetainedFull when there is no room for it, and nothing has changed.
	Set(home string, m *mqtt.Message) error
	// Match calls f with every message of the home whose topic the filter takes and that has not expired. It does not wait
	// for anything; f must not call back. The messages are shared, and not to be changed.
	Match(home, filter string, f func(*mqtt.Message))
}

// ErrRetainedFull says that a home, or all of them together, hold as many retained messages as they may.
var ErrRetainedFull = errors.New("as many retained messages as may be kept")

// Memory is a Retained in the memory of this process.
type Memory struct {
	HomeMax      int // messages of one home
	HomeBytesMax int // their topics, payloads and properties
	BytesMax     int // of all homes together

	mu    sync.RWMutex
	homes map[string]*retainedHome
	bytes int
}

type retainedHome struct {
	topics map[string]*mqtt.Message
	bytes  int
}

// Set implements Retained.
func (r *Memory) Set(home string, m *mqtt.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.homes[home]
	if len(m.Payload) == 0 {
		if h != nil {
			r.remove(home, h, m.Topic)
		}
		return nil
	}
	if h == nil {
		h = &retainedHome{topics: make(map[string]*mqtt.Message)}
	}
	if !r.fits(h, m) {
		r.expire(home, h)
		if !r.fits(h, m) {
			return ErrRetainedFull
		}
	}
	r.remove(home, h, m.Topic)
	if r.homes == nil {
		r.homes = make(map[string]*retainedHome)
	}
	r.homes[strings.Clone(home)] = h
	kept := clone(m)
	kept.Retain = true
	h.topics[kept.Topic] = kept
	h.bytes += kept.Size()
	r.bytes += kept.Size()
	return nil
}

func (r *Memory) fits(h *retainedHome, m *mqtt.Message) bool {
	more, count := m.Size(), 1
	if old := h.topics[m.Topic]; old != nil {
		more, count = more-old.Size(), 0
	}
	return len(h.topics)+count <= r.HomeMax && h.bytes+more <= r.HomeBytesMax && r.bytes+more <= r.BytesMax
}

func (r *Memory) expire(home string, h *retainedHome) {
	now := time.Now()
	for topic, m := range h.topics {
		if m.Expired(now) {
			r.remove(home, h, topic)
		}
	}
}

func (r *Memory) remove(home string, h *retainedHome, topic string) {
	old := h.topics[topic]
	if old == nil {
		return
	}
	delete(h.topics, topic)
	h.bytes -= old.Size()
	r.bytes -= old.Size()
	if len(h.topics) == 0 {
		delete(r.homes, home)
	}
}

// Match implements Retained.
func (r *Memory) Match(home, filter string, f func(*mqtt.Message)) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	h := r.homes[home]
	if h == nil {
		return
	}
	now := time.Now()
	if !strings.ContainsAny(filter, "+#") {
		if m := h.topics[filter]; m != nil && !m.Expired(now) {
			f(m)
		}
		return
	}
	for topic, m := range h.topics {
		if mqtt.Matches(filter, topic) && !m.Expired(now) {
			f(m)
		}
	}
}

// clone is a copy of a message that borrows nothing.
func clone(m *mqtt.Message) *mqtt.Message {
	own := *m
	own.Topic = strings.Clone(m.Topic)
	own.Payload = append([]byte(nil), m.Payload...)
	own.Props = append([]byte(nil), m.Props...)
	return &own
}
