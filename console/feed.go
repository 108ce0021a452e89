package console

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	feedsMax     = 32               // pages that are open at once
	writeTimeout = 10 * time.Second // for one event, or some rows, to leave; who is slower is cut off
)

// feed gives the same status to every open page, once a second. A page that is slow skips some.
type feed struct {
	mu      sync.Mutex
	readers map[chan []byte]bool
}

func newFeed() *feed { return &feed{readers: map[chan []byte]bool{}} }

// publish sends the status that make makes, if anybody is there to read it.
func (f *feed) publish(make func() *Status) error {
	f.mu.Lock()
	n := len(f.readers)
	f.mu.Unlock()
	if n == 0 {
		return nil
	}
	body, err := json.Marshal(make())
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	event := append(append([]byte("data: "), body...), '\n', '\n')
	f.mu.Lock()
	defer f.mu.Unlock()
	for r := range f.readers {
		select {
		case <-r: // it has not taken the last one; that is old now
		default:
		}
		r <- event // has room: only publish sends, and it holds the lock
	}
	return nil
}

// join gives a channel of events; ok is false when there are too many readers.
func (f *feed) join() (events chan []byte, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.readers) >= feedsMax {
		return nil, false
	}
	events = make(chan []byte, 1)
	f.readers[events] = true
	return events, true
}

func (f *feed) leave(events chan []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.readers, events)
}

// serveFeed sends a status each second as a server-sent event (HTML Living Standard, section 9.2).
func (s *Server) serveFeed(w http.ResponseWriter, r *http.Request) {
	events, ok := s.feed.join()
	if !ok {
		w.Header().Set("Retry-After", "10")
		http.Error(w, fmt.Sprintf("%d pages are open already; close one, or ask /api/status", feedsMax), http.StatusServiceUnavailable)
		return
	}
	defer s.feed.leave(events)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // of proxies
	out := http.NewResponseController(w)
	if !s.send(out, w, []byte("retry: 2000\n\n")) {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case event := <-events:
			if !s.send(out, w, event) {
				return
			}
		}
	}
}

// send writes and flushes in time; false when whoever reads is gone or too slow.
func (s *Server) send(out *http.ResponseController, w http.ResponseWriter, b []byte) bool {
	if err := out.SetWriteDeadline(time.Now().Add(s.writeWait)); err != nil {
		return false
	}
	if _, err := w.Write(b); err != nil {
		return false
	}
	return out.Flush() == nil
}
