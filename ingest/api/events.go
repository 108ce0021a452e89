package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"hearthline/ingest/identity"
)

// Limits of event streams.
const (
	AliveEvery = 15 * time.Second // a stream that has nothing to say says so, and looks whether its reader may still read
	writeWait  = 10 * time.Second // a reader that takes nothing for as long is given up
)

// Events is a stream of Server-Sent Events (WHATWG HTML, section 9.2). It is used by one goroutine.
type Events struct {
	w       http.ResponseWriter
	id      *identity.Identity
	control *http.ResponseController
}

// OpenEvents begins the answer.
func OpenEvents(w http.ResponseWriter, id *identity.Identity) (*Events, error) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	e := &Events{w: w, id: id, control: http.NewResponseController(w)}
	// The door's limit on reading a request would end the stream.
	return e, e.control.SetReadDeadline(time.Time{})
}

// Send sends an event, unless the reader's credentials are no longer good. data is JSON on one line.
func (e *Events) Send(event, id string, data []byte) error {
	return e.write(fmt.Sprintf("event: %s\nid: %s\ndata: %s\n\n", event, id, data))
}

// Retry tells the reader how long to wait before it comes back.
func (e *Events) Retry(wait time.Duration) error {
	return e.write(fmt.Sprintf("retry: %d\n\n", wait.Milliseconds()))
}

// Comment sends what no reader is told of.
func (e *Events) Comment(text string) error { return e.write(": " + text + "\n\n") }

func (e *Events) write(text string) error {
	if err := e.id.Gone(time.Now()); err != nil {
		return err
	}
	return e.put(text)
}

// End says why nothing more comes. The event changes nothing about where the reader goes on.
func (e *Events) End(why []byte) { _ = e.put(fmt.Sprintf("event: end\ndata: %s\n\n", why)) } // its reader may be gone

// ErrSlow is a reader that took nothing for too long.
var ErrSlow = errors.New("the reader takes nothing")

func (e *Events) put(text string) error {
	begun := time.Now()
	err := e.control.SetWriteDeadline(begun.Add(writeWait))
	if err == nil {
		_, err = io.WriteString(e.w, text)
	}
	if err == nil {
		err = e.control.Flush()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || err != nil && time.Since(begun) >= writeWait { // HTTP/2 only says that the stream is closed
		return fmt.Errorf("%w: %w", ErrSlow, err)
	}
	if err != nil {
		return err
	}
	return e.control.SetWriteDeadline(time.Time{}) // HTTP/2 ends a stream at its deadline, though nothing is being written
}
