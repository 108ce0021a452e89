package ingest

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// problem is a problem document (RFC 9457). Its type is a stable name under /problems/.
type problem struct {
	Type     string    `json:"type"`
	Title    string    `json:"title"`
	Status   int       `json:"status"`
	Detail   string    `json:"detail,omitempty"`
	Accepted int       `json:"accepted"`          // rows that are durable
	Refused  int       `json:"refused,omitempty"` // rows that are not taken
	Rows     []verdict `json:"rows,omitempty"`

	retryAfter time.Duration
}

// verdict is why one row was not taken.
type verdict struct {
	Row    int    `json:"row"` // from 0; in NDJSON lines that are empty are not counted
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

func problemOf(status int, name, detail string) *problem {
	return &problem{Type: "/problems/" + name, Title: http.StatusText(status), Status: status, Detail: detail}
}

func (p *problem) write(w http.ResponseWriter) {
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int((p.retryAfter+time.Second-1)/time.Second))))
	}
	writeJSON(w, p.Status, "application/problem+json", p)
}

func writeJSON(w http.ResponseWriter, status int, media string, v any) {
	w.Header().Set("Content-Type", media)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // the client is gone if this fails; the rows are safe
}
